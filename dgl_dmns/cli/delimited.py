"""Tables of text: cells separated by commas, tabs, semicolons, bars or blanks, also packed (gzip).

Cells of ids are kept as they stand: pandas reads them as text, so that ``007``, ``1e5`` and ``NA``
stay names. Pandas reads a file in one go; only for the place of an error is it gone through again,
record by record.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import pandas as pd

from dgl_dmns.cli.tables import (
    FileError,
    IdColumn,
    Table,
    advice_on_ends,
    find_columns,
    one_line,
)

__all__ = ["LARGEST", "read_text"]

LARGEST = 2 << 30
"""Bytes of a file that is read, unpacked."""
_SEPARATORS = ("\t", ",", ";", "|")
_COMMENT = re.compile(r"[#%]+(\s|$)")
_PACKERS = {
    "gzip twice": b"\x1f\x8b",
    "bzip2": b"BZh91AY&SY",
    "xz": b"\xfd7zXZ\0",
    "zstd": b"\x28\xb5\x2f\xfd",
}
_HEADER_LINES = 100  # that a header with line ends in quotes may have


@dataclass(frozen=True)
class _Layout:
    """Where the records of a file begin, and how their cells are separated.

    Attributes:
        skip: lines before the first record.
        separator: of the cells; None for any blanks.
        names: of the columns; numbers where the file has no header.
    """

    skip: int
    separator: str | None
    names: tuple[str, ...]


def read_text(file: Path, wanted: Sequence[str], header: bool = True) -> Table:
    """The table in a file of text.

    Args:
        file: the file, of any name; UTF-8, or that packed with gzip.
        wanted: names of the columns that hold ids.
        header: whether the first line has the names of the columns. Where not, the first columns
            are those wanted.

    Raises:
        FileError: if it is no such table, or lacks a column.
    """
    _check_bytes(file)
    layout, places = _layout(file, wanted, header)

    def where(row: int) -> str:
        return _where(file, layout, row)

    with _open(file) as lines:
        for _ in range(layout.skip):
            lines.readline()
        try:
            # In one piece: by pieces, a column could be read as numbers here and as words there.
            frame = pd.read_csv(
                lines,
                header=None,
                names=list(range(len(layout.names))),
                sep=layout.separator or r"\s+",
                dtype={place: object for place in places},
                skipinitialspace=True,
                na_filter=False,
                low_memory=False,
            )
        except pd.errors.EmptyDataError as error:
            raise FileError(f"{file}: expected at least one row, got none") from error
        except Exception as error:  # pandas has many
            _find_fault(file, layout)
            raise FileError(f"{file}: not a table of text ({one_line(error)})") from error
    if not isinstance(frame.index, pd.RangeIndex):  # more cells than names, and no error
        _find_fault(file, layout)
    if not len(frame):
        raise FileError(f"{file}: expected at least one row below the names of the columns")
    ids = [
        IdColumn(layout.names[place], frame[place].to_numpy(dtype=object), False, where)
        for place in places
    ]
    others = [place for place in range(len(layout.names)) if place not in places]
    rest = frame[others].set_axis([layout.names[place] for place in others], axis="columns")
    return Table(ids, rest, where)


def _open_bytes(file: Path) -> BinaryIO:
    with file.open("rb") as content:
        packed = content.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(file)) if packed else file.open("rb")


def _open(file: Path) -> TextIO:
    # Line ends are kept: pandas and csv tell those within quotes.
    return io.TextIOWrapper(_open_bytes(file), encoding="utf-8-sig", newline="")


def _check_bytes(file: Path) -> None:
    """Refuse what is no text of a size that can be read, before anything parses it."""
    line, size, decoder = 1, 0, codecs.getincrementaldecoder("utf-8")()
    try:
        with _open_bytes(file) as content:
            for part in iter(lambda: content.read(1 << 20), b""):
                size += len(part)
                if size > LARGEST:
                    raise FileError(
                        f"{file}: expected at most {LARGEST} bytes, got more; write it as Parquet, "
                        "or build the graph in Python and train there (docs/get-started.md)"
                    )
                packed = _packed(part) if size == len(part) else None
                if packed is not None:
                    raise FileError(f"{file}: {packed}")
                if b"\0" in part:  # which would end a cell for pandas
                    line += part.count(b"\n", 0, part.index(b"\0"))
                    raise FileError(
                        f"{file}, line {line}: not UTF-8 text (a byte 0); save it as UTF-8"
                    )
                decoder.decode(part)
                line += part.count(b"\n")
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        raise FileError(
            f"{file}, line {line}: not UTF-8 text ({error.reason}); save the file as UTF-8"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileError(f"{file}: not a complete gzip file ({one_line(error)})") from error
    if not size:
        raise FileError(f"{file}: the file is empty")


def _packed(start: bytes) -> str | None:
    """What to do about a file that is packed otherwise than by gzip, or twice."""
    if start.startswith(b"PK\3\4"):
        return "a zip archive or a workbook; save its table as CSV"
    for name, begins in _PACKERS.items():
        if start.startswith(begins):
            return f"packed by {name}; unpack it, or pack it once by gzip"
    return None


def _layout(file: Path, wanted: Sequence[str], header: bool) -> tuple[_Layout, list[int]]:
    """The layout, and the places of the columns that are wanted."""
    with _open(file) as lines:
        skip, first = 0, lines.readline()
        while first and (not first.strip() or _COMMENT.match(first)):
            skip, first = skip + 1, lines.readline()
        if not first:
            raise FileError(f"{file}: the file is empty but for comments")
        place = f"{file}, line {skip + 1}"
        record, opened = [first], 0
        while sum(line.count('"') for line in record) % 2:
            if record[-1].count('"') % 2:
                opened = len(record) - 1
            more = lines.readline()
            if not more or len(record) == _HEADER_LINES:
                raise FileError(_unclosed(file, skip + 1 + opened))
            record.append(more)
    text = "".join(record)
    if not header:
        separator = _separator_of_data(text, place)
        width = len(_split(text, separator))
        if width < len(wanted):
            raise FileError(
                f"{place}: expected {len(wanted)} ids, got {width} cell(s); cells are separated by "
                "commas, tabs, semicolons, bars or blanks"
            )
        names = tuple(f"{i + 1}" for i in range(width))
        return _Layout(skip, separator, names), list(range(len(wanted)))
    choices = {one: _split(text, one) for one in (*_SEPARATORS, None)}
    small = {name.lower() for name in wanted}
    fit = [one for one, cells in choices.items() if small <= {cell.lower() for cell in cells}]
    separator = fit[0] if fit else max(choices, key=lambda one: (len(choices[one]), one or ""))
    names = tuple(choices[separator])
    advice = "name it in the first line"
    if len(wanted) > 1:
        advice = f"{advice_on_ends(names)}, or --no-header where this line is an edge"
    return (
        _Layout(skip + len(record), separator, names),
        find_columns(names, wanted, place, advice),
    )


def _separator_of_data(line: str, place: str) -> str | None:
    """The separator of a first line that is an edge: one that its ids do not hold others of."""
    found = [one for one in _SEPARATORS if len(_split(line, one)) > 1]
    clean = [
        one
        for one in found
        if not any(other in cell for cell in _split(line, one)[:2] for other in found)
    ]
    if len(clean) != 1 and found:
        raise FileError(
            f"{place}: cells could be separated by {' or '.join(map(repr, found))}; put a line "
            "with names above it, such as src and dst, and leave --no-header out"
        )
    return clean[0] if found else None


def _split(text: str, separator: str | None) -> list[str]:
    with _long_cells():
        cells: list[str] = next(_reader(io.StringIO(text, newline=""), separator), [])
    return [cell.strip() for cell in cells]


@contextmanager
def _long_cells() -> Iterator[None]:
    """Cells of any length for csv, which otherwise stops at 128 KiB."""
    limit = csv.field_size_limit(LARGEST - 1)  # that of a C long everywhere
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _reader(lines: Iterator[str], separator: str | None) -> Any:
    if separator is None:
        lines = (line.replace("\t", " ").rstrip(" \r\n") + "\n" for line in lines)
    return csv.reader(lines, delimiter=separator or " ", skipinitialspace=True)


def _records(file: Path, layout: _Layout) -> Iterator[tuple[int, list[str]]]:
    """The records that pandas sees, each with the line where it ends.

    Raises:
        FileError: for a quote that does not close.
    """
    ended = False

    def to_the_end(lines: TextIO) -> Iterator[str]:
        nonlocal ended
        yield from itertools.islice(iter(lines.readline, ""), layout.skip, None)
        ended = True

    try:
        with _long_cells(), _open(file) as lines:
            reader = _reader(to_the_end(lines), layout.separator)
            for cells in reader:
                line = layout.skip + reader.line_num
                if ended:  # the reader wanted more of this record
                    ends = len(re.findall(r"\r\n?|\n", cells[-1]))
                    within = ends - cells[-1].endswith(("\n", "\r"))
                    raise FileError(_unclosed(file, line - within))
                if len(cells) > 1 or "".join(cells).strip():
                    yield line, cells
    except csv.Error as error:
        raise FileError(f"{file}: not a table of text ({error})") from error


def _unclosed(file: Path, line: int) -> str:
    return f"{file}, line {line}: a quote opens here and does not close; close or remove it"


def _where(file: Path, layout: _Layout, row: int) -> str:
    """The file and the line of a row.

    Raises:
        FileError: if the row has too few cells, which are empty ones for pandas.
    """
    line, cells = next(itertools.islice(_records(file, layout), row, None), (0, []))
    if not line:  # the two readers see other records
        return f"{file}, row {row + 1}"
    _check_width(file, layout, line, cells)
    return f"{file}, line {line}"


def _find_fault(file: Path, layout: _Layout) -> None:
    """Raise for the first record that pandas does not take."""
    for line, cells in _records(file, layout):
        if len(cells) > len(layout.names):
            _check_width(file, layout, line, cells)


def _check_width(file: Path, layout: _Layout, line: int, cells: list[str]) -> None:
    got, width = len(cells), len(layout.names)
    if got != width:
        raise FileError(
            f"{file}, line {line}, column {min(got, width) + 1}: expected {width} cells, as in the "
            f"first line, got {got}"
        )
