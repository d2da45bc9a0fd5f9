"""When an attached sampler refreshes: after a number of steps, or within a share of the time."""

from __future__ import annotations

import math

import torch

from dgl_dmns.core.engine import Stopwatch

__all__ = ["Cadence", "steps_of_a_pass"]

_BATCH = 1024  # positives that a step is taken to have, where nothing is said


class Cadence:
    """Counts optimizer steps, and says after which of them a refresh is due.

    Args:
        every: steps between refreshes.
        share: share of the time that refreshes may take, in (0, 1), instead.
        otherwise: steps between refreshes where neither is given.

    Raises:
        ValueError: for a value out of range, or both.
    """

    def __init__(self, every: int | None, share: float | None, otherwise: int) -> None:
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
        self.every = otherwise if every is None else every
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


def steps_of_a_pass(edges: int) -> int:
    """Optimizer steps that one pass over the positives takes in batches of 1024.

    What refreshes go by where nothing is said: the share of the time that they take falls with the
    size of the graph, and a table is not drawn from much more often than it has rows.

    Args:
        edges: number of positives; on several ranks they share them.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    ranks = torch.distributed.get_world_size() if several else 1
    return max(1, math.ceil(edges / (_BATCH * ranks)))
