"""Where a property that holds up to some number stops to hold."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["bisect"]


def bisect(
    holds: Callable[[float], bool], low: float, high: float, halvings: int
) -> tuple[float, float]:
    """Halve an interval at whose lower end a property holds, and at whose upper end it does not.

    Args:
        holds: the property; it is asked inside of the interval only.
        low: lower end.
        high: upper end.
        halvings: number of times.

    Returns:
        The ends of the part that is left.
    """
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, high
