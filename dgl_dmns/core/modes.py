"""Decorators for work that the caller's modes of torch must not change."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch

__all__ = ["in_float32", "outside_inference_mode"]

Function = TypeVar("Function", bound=Callable[..., Any])


def _under(context: Callable[[], AbstractContextManager[Any]]) -> Callable[[Function], Function]:
    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            with context():
                return function(*arguments, **named)

        return cast("Function", wrapped)

    return decorate


def in_float32(function: Function) -> Function:
    """Run a function on the CPU in the precision of its tensors, also inside ``torch.autocast``.

    Autocast rounds matrix products, and it keeps rounded copies of weights until its block ends, so
    that steps of an optimizer within the block train on weights of before.
    """
    return _under(lambda: torch.autocast("cpu", enabled=False))(function)


def outside_inference_mode(function: Function) -> Function:
    """Run a function outside ``torch.inference_mode``, whose tensors no gradient can pass."""
    return _under(lambda: torch.inference_mode(False))(function)
