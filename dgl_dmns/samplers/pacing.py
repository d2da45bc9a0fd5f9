"""When a refresh runs: after some steps of an optimizer, as time allows, or in a thread.

The thread is a daemon, so that it keeps no process alive, and dies with a process that is killed.
At the end of the interpreter it is told to stop and waited for: torch must not be at work while the
interpreter is taken down. Tasks look whether they are to stop wherever they can.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import torch

from dgl_dmns.checks import as_integer, as_number, type_name
from dgl_dmns.core import Stopwatch

__all__ = [
    "Cadence",
    "Stopped",
    "Task",
    "check_optimizer",
    "in_a_task",
    "passes_of",
    "steps_of_a_pass",
]

_GRACE = 0.05  # seconds
_BATCH = 1024  # positives that a step is taken to have, where nothing is said


class Cadence:
    """Counts optimizer steps, and says after which of them a refresh is due.

    After every ``every`` of them, or, where neither is given, ``otherwise``; or so that refreshes
    take no more than a ``share`` of the time.
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
    """Optimizer steps that one pass over the positives takes in batches of 1024 on each rank.

    What refreshes go by where nothing is said: the share of the time that they take falls with the
    size of the graph, and a table is not drawn from much more often than it has rows.
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
    """Refuse what does not call a hook after each of its steps: a wrapper, an optimizer of DGL."""
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


Result = TypeVar("Result")


class Stopped(Exception):  # noqa: N818 - no error: the process is about to end
    """Raised in a task that is to stop."""


class _Thread(threading.Thread):
    """One that a task runs in."""


def in_a_task() -> bool:
    """Whether the caller runs in the thread of a task."""
    return isinstance(threading.current_thread(), _Thread)


class Task(Generic[Result]):
    """A function that runs in a thread of its own from now on.

    It is handed another one, to be called now and then, that raises `Stopped` at the end of the
    process; its argument has no meaning.
    """

    def __init__(self, work: Callable[[Callable[[int], None]], Result]) -> None:
        ended: Future[Result] = Future()  # with what it returns or raises
        self.ended, stop = ended, threading.Event()

        def check(_: int) -> None:
            if stop.is_set():
                raise Stopped

        def run() -> None:  # without the task itself, whose end it would put off
            try:
                ended.set_result(work(check))
            except BaseException as error:
                ended.set_exception(error)

        thread = _Thread(target=run, name="dgl-dmns-refresh", daemon=True)
        # Called at the latest when the interpreter ends, before its threads are.
        weakref.finalize(self, _end, stop, thread)
        thread.start()


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    if thread is not threading.current_thread():  # whose end may be what ends the task's life
        thread.join()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # A thread of gloo that has yet to let go of a tensor needs the interpreter for it.
            time.sleep(_GRACE)
