"""What a sampler is attached to, and when it refreshes: after some steps, or as time allows."""

from __future__ import annotations

import math
from typing import Any

import torch

from dgl_dmns.checks import as_integer, as_number, type_name
from dgl_dmns.core import Stopwatch

__all__ = ["Cadence", "check_optimizer", "passes_of", "steps_of_a_pass"]

_BATCH = 1024  # positives that a step is taken to have, where nothing is said


class Cadence:
    """Counts optimizer steps, and says after which of them a refresh is due.

    Args:
        every: steps between refreshes.
        share: share of the time that refreshes may take, in (0, 1), instead.
        otherwise: steps between refreshes where neither is given.

    Raises:
        ValueError: for a value out of range, or both.
        TypeError: for what is no number.
    """

    def __init__(self, every: int | None, share: float | None, otherwise: int) -> None:
        if every is not None and share is not None:
            raise ValueError(
                f"every, share: expected one of them, got every={every} and share={share}; steps "
                "make runs repeatable, a share bounds the time"
            )
        every = None if every is None else as_integer("every", every)
        if every is not None and every < 1:
            raise ValueError(f"every: expected at least 1 optimizer step, got {every}")
        if share is not None and not 0 < as_number("share", share) < 1:
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


def passes_of(steps: int, edges: int) -> int:
    """Passes over the positives that so many optimizer steps take in batches of 1024, or of all.

    What a table has to last for, on each of several ranks alone; 1 at least.
    """
    return max(1, math.ceil(steps * min(_BATCH, edges) / edges))


def check_optimizer(optimizer: Any) -> None:
    """Refuse what does not call a hook after each of its steps.

    Raises:
        TypeError: for a class, a list, an optimizer of DGL, a wrapper, a schedule of rates.
    """
    hooks = callable(getattr(optimizer, "register_step_post_hook", None))
    if isinstance(optimizer, torch.optim.Optimizer):  # a wrapper may have no hooks of its own
        hooks = hooks and hasattr(optimizer, "_optimizer_step_post_hooks")
    if hooks and not isinstance(optimizer, type):
        return
    advice = "attach to the torch optimizer of the encoder"
    if callable(getattr(getattr(optimizer, "optimizer", None), "register_step_post_hook", None)):
        advice = "pass the optimizer inside: attach(optimizer.optimizer)"
    elif isinstance(optimizer, (list, tuple)):
        advice = "pass one of them, that of the encoder: attach(optimizers[0])"
    elif isinstance(optimizer, type):
        advice = "pass an optimizer that was made, with the encoder's parameters"
    raise TypeError(
        "optimizer: expected a torch.optim.Optimizer that calls hooks after its steps, got "
        f"{type_name(optimizer)}; {advice}, or call sampler.refresh() every so many steps"
    )
