"""Tables in a user's files: which reader a file needs, which columns are meant, where a row is.

A table is read by `dgl_dmns.cli.delimited` (text) or `dgl_dmns.cli.columns` (Parquet).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
import pandas as pd

__all__ = ["FileError", "IdColumn", "Table", "find_columns", "one_line"]

_LONGEST = 200  # characters that an error shows of a file or of another library's error
_PAIRS = (
    ("source", "target"),
    ("source", "destination"),
    ("from", "to"),
    ("head", "tail"),
    ("u", "v"),
    ("user", "item"),
    ("user_id", "item_id"),
)


class FileError(ValueError):
    """A file that cannot be used; the message names it and the line and column."""


@dataclass(frozen=True, eq=False)
class IdColumn:
    """A column of ids as it stands in a file.

    Attributes:
        name: its name in messages.
        values: int64, or text as objects, shape [rows]; an empty text is a missing id.
        typed: whether the file says that this is text or integers, as Parquet does.
        where: the file and the place of a row, for messages.
    """

    name: str
    values: np.ndarray[Any, Any]
    typed: bool
    where: Callable[[int], str]


@dataclass(frozen=True, eq=False)
class Table:
    """A table, with its columns of ids apart.

    Attributes:
        ids: the columns of ids, in the order that was asked for.
        rest: the other columns, as pandas reads them; their names are those of the file.
        where: the file and the place of a row, for messages.
    """

    ids: list[IdColumn]
    rest: pd.DataFrame
    where: Callable[[int], str]


def find_columns(names: Sequence[str], wanted: Sequence[str], place: str, advice: str) -> list[int]:
    """The places of the wanted columns; upper and lower case count where there are both.

    Raises:
        FileError: if one is absent, or stands there twice.
    """
    found = []
    for name in wanted:
        same = [i for i, one in enumerate(names) if one == name]
        same = same or [i for i, one in enumerate(names) if one.lower() == name.lower()]
        if len(same) > 1:
            raise FileError(
                f"{place}: expected one column {name}, got {names[same[0]]!r} twice; rename one"
                if names[same[0]] == names[same[1]]
                else f"{place}: expected one column {name}, got {names[same[0]]!r} and "
                f"{names[same[1]]!r}; name the one that is meant exactly"
            )
        found += same
    if len(found) < len(wanted):
        got = one_line(", ".join(names)) or "none"
        raise FileError(f"{place}: expected the column(s) {', '.join(wanted)}, got {got}; {advice}")
    if len(set(found)) < len(found):
        raise FileError(f"{place}: expected different columns, got {wanted[0]!r} twice")
    return found


def advice_on_ends(names: Sequence[str]) -> str:
    """What to add to the command where the two ends of the edges have other names."""
    small = [name.lower() for name in names]
    for pair in _PAIRS:
        if pair[0] in small and pair[1] in small:
            first, second = (names[small.index(name)] for name in pair)
            return f"add --source {first} --target {second}"
    return "name yours with --source NAME --target NAME"


def one_line(text: object) -> str:
    """The text without line ends, cut where it is long."""
    line = " ".join(str(text).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 4]} ..."
