"""Comparing nested states of samplers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["same"]


def same(first: Any, second: Any) -> bool:
    """Whether two nested states are equal, NaN being equal to NaN."""
    if isinstance(first, Tensor):
        return bool(torch.equal(first.nan_to_num(77), second.nan_to_num(77)))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)
