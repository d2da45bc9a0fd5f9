"""Decorators for work that the caller's modes of torch must not change."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch

__all__ = ["callers_device", "in_float32", "outside_inference_mode", "shielded"]

_caller = threading.local()  # device: the default one outside of `shielded`

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


def shielded(function: Function) -> Function:
    """Run a function that makes tensors to keep as if torch stood at its defaults.

    On the CPU, whatever ``torch.set_default_device``, and outside ``torch.inference_mode``, whose
    tensors cannot be written on later. Where neither is in use this costs about two microseconds.
    What the user's own functions make in between goes where it always goes: call them in
    `callers_device`.
    """

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        device = torch.empty(0).device
        if device.type == "cpu" and not torch.is_inference_mode_enabled():
            return function(*arguments, **named)
        before = getattr(_caller, "device", None)
        if device.type != "cpu":
            _caller.device = device
        try:
            with torch.inference_mode(False), torch.device("cpu"):
                return function(*arguments, **named)
        finally:
            _caller.device = before

    return cast("Function", wrapped)


def callers_device() -> AbstractContextManager[Any]:
    """The default device outside of `shielded`, for functions of the user called within."""
    device = getattr(_caller, "device", None)
    return nullcontext() if device is None else device
