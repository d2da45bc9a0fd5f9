"""One task at a time in a thread beside the training.

The thread is a daemon, so that it keeps no process alive, and dies with a process that is killed.
At the end of the interpreter it is told to stop and waited for: torch must not be at work while the
interpreter is taken down. Tasks look whether they are to stop wherever they can.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

__all__ = ["Stopped", "Task"]

Result = TypeVar("Result")


class Stopped(Exception):  # noqa: N818 - no error: the process is about to end
    """Raised in a task that is to stop."""


class Task(Generic[Result]):
    """A function that runs in a thread of its own from now on.

    Args:
        work: takes a function, to be called now and then, that raises `Stopped` at the end of the
            process; its argument has no meaning.
    """

    def __init__(self, work: Callable[[Callable[[int], None]], Result]) -> None:
        self._future: Future[Result] = Future()
        stop = threading.Event()
        self._thread = threading.Thread(
            target=_run, args=(work, self._future, stop), name="dgl-dmns-refresh", daemon=True
        )
        # Called at the latest when the interpreter ends, before its threads are.
        weakref.finalize(self, _end, stop, self._thread)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended, one way or the other."""
        return self._future.done()

    @property
    def error(self) -> BaseException | None:
        """What it raised; waits for its end."""
        return self._future.exception()

    @property
    def result(self) -> Result:
        """What it returned; waits for its end, and raises what it raised."""
        return self._future.result()


def _run(
    work: Callable[[Callable[[int], None]], Result], future: Future[Result], stop: threading.Event
) -> None:
    def check(_: int) -> None:
        if stop.is_set():
            raise Stopped

    try:
        future.set_result(work(check))
    except BaseException as error:
        future.set_exception(error)


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    if thread is not threading.current_thread():  # whose end may be what ends the task's life
        thread.join()
