"""Work that the caller's modes of torch must not change, and seeds of any size."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch

from dgl_dmns.checks import as_integer

__all__ = [
    "CPU",
    "callers_device",
    "fit_seed",
    "generator_on",
    "in_float32",
    "outside_inference_mode",
    "shielded",
]

CPU = torch.device("cpu")
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
    """Run a function in the precision of its tensors, also inside ``torch.autocast``.

    Autocast rounds matrix products, and keeps rounded copies of weights until its block ends, so
    that steps of an optimizer within the block would use stale weights.
    """
    return _under(_without_autocast)(function)


@contextmanager
def _without_autocast() -> Iterator[None]:
    with ExitStack() as off:
        off.enter_context(torch.autocast("cpu", enabled=False))
        if torch.is_autocast_enabled():  # on a GPU
            off.enter_context(torch.autocast("cuda", enabled=False))
        yield


def outside_inference_mode(function: Function) -> Function:
    """Run a function outside ``torch.inference_mode``, whose tensors carry no gradient."""
    return _under(lambda: torch.inference_mode(False))(function)


def shielded(function: Function) -> Function:
    """Run a function that makes tensors to keep as if torch stood at its defaults.

    On the CPU, whatever ``torch.set_default_device``, and outside ``torch.inference_mode``, whose
    tensors cannot be written to later. If neither is in use this costs about two microseconds.
    Functions of the user in between are called in `callers_device`.
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


def fit_seed(seed: Any, *places: int, bits: int = 63) -> int:
    """A seed in ``0 .. 2**bits - 1`` from a whole number of any size and sign.

    Args:
        seed: the user's seed; integers of NumPy are taken.
        *places: what tells several seeds of one run apart, such as the number of an epoch.
        bits: at most 64.

    Returns:
        ``seed`` itself if it is in the range and no place is given; otherwise bits of a SHA-256.

    Raises:
        TypeError: if the seed is no integer.

    >>> fit_seed(7), fit_seed(7, 1) == fit_seed(8, 1), fit_seed(1 << 70) < 1 << 63
    (7, False, True)
    """
    number = as_integer("seed", seed)
    if not places and 0 <= number < 1 << bits:
        return number
    text = ",".join(str(int(part)) for part in (number, *places))
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - bits)


def generator_on(device: torch.device, generator: torch.Generator | None) -> torch.Generator | None:
    """A source of randomness of a device: on the CPU the one that is given, None for torch's own.

    Elsewhere a new one, seeded by a draw from that, so that no generator of the device is needed.
    """
    if device.type == "cpu":
        return generator
    return torch.Generator(device).manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
