"""Curricula: which hardness levels a refresh may use, as training goes on.

A curriculum is a function ``(refresh, levels) -> shares``: for the refresh of that number (0 is the
first) and L levels, hardest first, it returns L non-negative mixture shares, of any positive scale.
The paper leaves open whether hard negatives should come late; these are the two answers beside the
constant shares of `Levels`. A function of one's own will do as well. The gate has a curriculum of
its own: it is nearly uniform while scores are small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dgl_dmns.checks import as_integer, check_object

__all__ = ["Curriculum", "EasyFirst", "HardFirst", "check_curriculum"]

Curriculum = Callable[[int, int], Sequence[float]]
"""From the number of a refresh and the number of levels L to L mixture shares, hardest first."""


def check_curriculum(curriculum: object) -> None:
    """Refuse a class or anything that cannot be called in place of a curriculum.

    Raises:
        TypeError: if it is none.
    """
    check_object("curriculum", curriculum, ("__call__",), "EasyFirst(10)")


@dataclass(frozen=True)
class _Staged:
    stage: int

    def __post_init__(self) -> None:
        if as_integer("stage", self.stage) < 1:
            raise ValueError(f"stage: expected at least 1 refresh for each level, got {self.stage}")


class EasyFirst(_Staged):
    """The easiest level alone at first; every ``stage`` refreshes the next harder one joins it.

    Args:
        stage: refreshes before the next level joins, at least 1.

    Raises:
        ValueError: if ``stage`` is below 1.

    >>> EasyFirst(10)(10, 4)
    (0.0, 0.0, 1.0, 1.0)
    """

    def __call__(self, refresh: int, levels: int) -> tuple[float, ...]:
        """Mixture shares of the levels at a refresh."""
        return tuple(float(level + refresh // self.stage >= levels - 1) for level in range(levels))


class HardFirst(_Staged):
    """The hardest level alone at first; every ``stage`` refreshes the next easier one joins it.

    Args:
        stage: refreshes before the next level joins, at least 1.

    Raises:
        ValueError: if ``stage`` is below 1.

    >>> HardFirst(10)(10, 4)
    (1.0, 1.0, 0.0, 0.0)
    """

    def __call__(self, refresh: int, levels: int) -> tuple[float, ...]:
        """Mixture shares of the levels at a refresh."""
        return tuple(float(level <= refresh // self.stage) for level in range(levels))
