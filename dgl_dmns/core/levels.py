"""Hardness levels: the points of the reverse chain at which negatives are taken.

A level is a fraction ``f`` of the ``T`` diffusion steps; its state is ``x_t`` with
``t = max(1, floor(f T))``. Small fractions lie close to the clean neighbours of the query and are
hard; large ones are noisy and easy (DMNS, section 4.3). Weights scale a level's term in the paper's
multi-level loss; shares are the proportions in which levels enter a mixture of real nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dgl_dmns.checks import as_number, check_object

__all__ = ["Levels"]


@dataclass(frozen=True)
class Levels:
    """Fractions of ``T``, hardest first, with the paper's values as the default.

    Args:
        fractions: L increasing numbers in (0, 1].
        weights: L positive loss weights; the paper's are 1, 0.9, 0.8, 0.7.
        shares: L non-negative mixture shares; any positive scale, equal where not given.

    Raises:
        ValueError: for an empty or non-increasing list, a fraction outside (0, 1], lengths that
            differ, or a weight or share out of range (NaN and infinity are).
    """

    fractions: tuple[float, ...] = (1 / 10, 1 / 8, 1 / 4, 1 / 2)
    weights: tuple[float, ...] | None = None
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        fractions = tuple(float(f) for f in self.fractions)
        if not fractions or not all(0.0 < f <= 1.0 for f in fractions):
            raise ValueError(
                f"levels: expected one or more fractions in (0, 1], got {self.fractions}; "
                "a level is a fraction of the T diffusion steps, for example (0.1, 0.25, 0.5)"
            )
        if any(b <= a for a, b in zip(fractions, fractions[1:])):
            raise ValueError(
                f"levels: expected strictly increasing fractions, got {self.fractions}; "
                "list the hardest (smallest) level first"
            )
        count = len(fractions)
        weights = self.weights
        if weights is None:
            weights = tuple(max(1.0 - 0.1 * i, 0.1) for i in range(count))
        shares = self.shares
        if shares is None:
            shares = (1.0,) * count
        for name, values in (("weights", weights), ("shares", shares)):
            if len(values) != count:
                raise ValueError(f"levels: expected {count} {name}, got {len(values)}")
        if not all(0 < w < math.inf for w in weights):
            raise ValueError(f"levels: expected positive weights, got {weights}")
        if not all(0 <= s < math.inf for s in shares) or sum(shares) <= 0:
            raise ValueError(f"levels: expected non-negative shares, not all zero, got {shares}")
        total = float(sum(shares))
        object.__setattr__(self, "fractions", fractions)
        object.__setattr__(self, "weights", tuple(float(w) for w in weights))
        object.__setattr__(self, "shares", tuple(float(s) / total for s in shares))

    @classmethod
    def of(cls, levels: Levels | Iterable[float] | None) -> Levels:
        """Levels, their fractions alone, or the paper's where None.

        Raises:
            TypeError: for anything else, such as the class or a name.
        """
        if levels is None:
            return cls()
        if isinstance(levels, cls):
            return levels
        if isinstance(levels, Iterable) and not isinstance(levels, (type, str)):
            return cls(tuple(as_number("levels", one) for one in levels))
        check_object("levels", levels, cls, "Levels((0.1, 0.25, 0.5))")
        raise AssertionError  # the check has raised

    def __len__(self) -> int:
        return len(self.fractions)

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """The L loss weights, hardest level first."""
        assert self.weights is not None
        return self.weights

    @property
    def mixture_shares(self) -> tuple[float, ...]:
        """The L mixture shares, summing to 1, hardest level first."""
        assert self.shares is not None
        return self.shares

    def steps(self, total: int) -> tuple[int, ...]:
        """The step ``t`` of each level for a chain of ``total`` steps, hardest first.

        >>> Levels().steps(50)
        (5, 6, 12, 25)

        Raises:
            ValueError: if two levels fall on one step, so that they cannot be told apart.
        """
        steps = tuple(max(1, int(f * total + 1e-9)) for f in self.fractions)
        if len(set(steps)) != len(steps):
            raise ValueError(
                f"levels: fractions {self.fractions} of T = {total} fall on steps {steps}; "
                "choose fractions further apart or more diffusion steps"
            )
        return steps
