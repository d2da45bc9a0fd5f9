"""The range of seeds."""

from __future__ import annotations

import operator
from typing import Any

__all__ = ["check_seed"]


def check_seed(seed: Any) -> int:
    """A seed as an integer of Python; those of numpy are taken.

    Raises:
        TypeError: if it is no integer.
        ValueError: if torch's generators cannot take it.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed: expected an integer, got {seed!r}") from None
    if isinstance(seed, bool):
        raise TypeError(f"seed: expected an integer, got {seed!r}")
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"seed: expected an integer from -2**63 to 2**63 - 1, got {number}")
    return number
