"""When an attached sampler refreshes: after a number of steps, or within a share of the time."""

from __future__ import annotations

from dgl_dmns.core.engine import Stopwatch

__all__ = ["Cadence"]

_STEPS = 100  # between refreshes, where nothing is said


class Cadence:
    """Counts optimizer steps, and says after which of them a refresh is due.

    Args:
        every: steps between refreshes; 100 where neither is given.
        share: share of the time that refreshes may take, in (0, 1), instead.

    Raises:
        ValueError: for a value out of range, or both.
    """

    def __init__(self, every: int | None, share: float | None) -> None:
        if every is not None and share is not None:
            raise ValueError(
                f"every, share: expected one of them, got every={every} and share={share}; steps "
                "make runs repeatable, a share bounds the time"
            )
        if every is not None and every < 1:
            raise ValueError(f"every: expected at least 1 optimizer step, got {every}")
        if share is not None and not 0 < share < 1:
            raise ValueError(
                f"share: expected a share of the time between 0 and 1, got {share}; 0.1 is a good "
                "start"
            )
        self.every = _STEPS if every is None else every
        self.share = share
        self.steps = 0
        self._ended = self._seconds = 0.0

    def done(self, seconds: float) -> None:
        """Note that a refresh, of that many seconds, is done; until then one stays due."""
        self._ended, self._seconds = Stopwatch.clock(), seconds
        self.steps = 0

    def due(self) -> bool:
        """Count a step; whether a refresh is due after it."""
        self.steps += 1
        if self.share is None:
            return self.steps >= self.every
        return Stopwatch.clock() - self._ended >= self._seconds * (1 / self.share - 1)
