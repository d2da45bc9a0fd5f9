"""What users are told: warnings that point to their line, and errors in one line."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar, cast

__all__ = ["about", "first_line", "one_line", "say", "warn"]

Function = TypeVar("Function", bound=Callable[..., Any])

_SUBJECT: ContextVar[str] = ContextVar("dgl_dmns_subject", default="")
_BETWEEN = ("dgl_dmns", "torch", "dgl", "torchdata", "contextlib", "functools", "threading")
"""Packages whose lines are not the user's: an optimizer's step refreshes by a hook of torch."""
_PLAIN = (ValueError, TypeError, OSError, RuntimeError)
"""Errors whose text says enough without their kind."""


def about(function: Function) -> Function:
    """Name a method's object, its ``subject`` or else its class, in warnings of the method."""

    @functools.wraps(function)
    def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
        before = _SUBJECT.set(getattr(self, "subject", type(self).__name__))
        try:
            return function(self, *arguments, **named)
        finally:
            _SUBJECT.reset(before)

    return cast("Function", wrapped)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the nearest line of the user's code, under the name that `about` has set."""
    subject = _SUBJECT.get()
    message = f"{subject}: {message}" if subject else message
    warnings.warn(message, category, stacklevel=_level())


def first_line(error: BaseException) -> str:
    """What kind of error it is, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def one_line(said: object, longest: int = 200) -> str:
    """A text, or what an error says, without line ends and cut where it is long.

    An error that is not about a user's words or files is preceded by its kind.
    """
    line = " ".join(part.strip() for part in str(said).splitlines())
    if isinstance(said, BaseException) and not isinstance(said, _PLAIN):
        line = f"{type(said).__name__}: {line}"
    return line if len(line) <= longest else f"{line[: longest - 4]} ..."


def say(text: str) -> None:
    """Print a line of a command's output, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _level() -> int:
    """The caller's ``stacklevel`` that points to the nearest line of the user's code.

    Where there is none, in a thread of this package or a worker, to the nearest line outside it.
    """
    frame, level, outside = sys._getframe(1), 1, 0
    while True:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package != "dgl_dmns" and not outside:
            outside = level
        if package not in _BETWEEN:
            return level
        if frame.f_back is None:
            break
        frame, level = frame.f_back, level + 1
    return outside or level
