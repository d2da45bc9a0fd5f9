"""Modules of the user in eval mode for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["modes_kept"]


@contextmanager
def modes_kept() -> Iterator[Callable[[nn.Module], None]]:
    """A function that puts a module into eval mode; at the end each part has its own mode back."""
    modes: list[tuple[nn.Module, bool]] = []

    def settle(module: nn.Module) -> None:
        modes.extend((part, part.training) for part in module.modules())
        module.eval()

    try:
        yield settle
    finally:
        for part, mode in reversed(modes):  # what was noted first counts
            part.training = mode
