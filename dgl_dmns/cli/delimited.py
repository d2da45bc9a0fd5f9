"""Tables of text: cells separated by commas, tabs, semicolons, bars or blanks, also packed (gzip).

Cells of ids are kept as they stand, so that ``007``, ``1e5`` and ``NA`` stay names. A file is gone
through twice: its bytes, before anything parses them, and its records, with the line of each.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import numpy as np

from dgl_dmns.cli.tables import FileError, IdColumn, Table, find_columns, numbers
from dgl_dmns.messages import one_line

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
_BATCH = 1 << 15  # rows that are held as lists of cells


@dataclass(frozen=True)
class _Layout:
    """Where the records of a file begin (lines to skip), and how their cells are separated.

    A separator of None is any blanks; ``names`` are numbers where the file has no header;
    ``places`` are those of the columns of ids.
    """

    skip: int
    separator: str | None
    names: tuple[str, ...]
    places: list[int]


def read_text(file: Path, wanted: Sequence[str], header: bool = True, rest: bool = False) -> Table:
    """The table in a file of text, UTF-8, or that packed with gzip.

    ``wanted`` are the columns of ids, or the first ones where there is no ``header``; ``rest`` asks
    for the others, as numbers.
    """
    _check_bytes(file)
    layout = _layout(file, wanted, header)
    lines = array("q")

    def where(row: int) -> str:
        return f"{file}, line {lines[row]}"

    others = [place for place in range(len(layout.names)) if rest and place not in layout.places]
    ids: list[list[str]] = [[] for _ in layout.places]
    values: list[list[Any]] = [[] for _ in others]
    same: dict[str, str] = {}  # a cell that stands there often is held once
    with _long_cells():
        for rows in _batches(file, layout, lines):
            first, columns = len(ids[0]), list(zip(*rows))
            for place, parts in zip(others, values):
                parts.append(numbers(layout.names[place], columns[place], where, first))
            for place, cells in zip(layout.places, ids):
                cells.extend(map(same.setdefault, columns[place], columns[place]))
    if not lines:
        raise FileError(f"{file}: expected at least one row below the names of the columns")
    named = [layout.names[place] for place in layout.places]
    found = [
        IdColumn(name, np.array(cells, dtype=object), False, where)
        for name, cells in zip(named, ids)
    ]
    arrays = [(layout.names[p], np.concatenate(parts)) for p, parts in zip(others, values)]
    return Table(found, arrays, where)


def _open_bytes(file: Path) -> BinaryIO:
    with file.open("rb") as content:
        packed = content.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(file)) if packed else file.open("rb")


def _open(file: Path) -> TextIO:
    # Line ends are kept: csv tells those within quotes.
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
                if b"\0" in part:
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


def _layout(file: Path, wanted: Sequence[str], header: bool) -> _Layout:
    skip, record = _first_record(file)
    place, text = f"{file}, line {skip + 1}", "".join(record)
    if not header:
        separator = _separator_of_data(text, place)
        width = len(_split(text, separator))
        if width < len(wanted):
            raise FileError(
                f"{place}: expected {len(wanted)} ids, got {width} cell(s); cells are separated by "
                "commas, tabs, semicolons, bars or blanks"
            )
        names = tuple(f"{i + 1}" for i in range(width))
        return _Layout(skip, separator, names, list(range(len(wanted))))
    choices = {one: _split(text, one) for one in (*_SEPARATORS, None)}
    small = {name.lower() for name in wanted}
    fit = [one for one, cells in choices.items() if small <= {cell.lower() for cell in cells}]
    separator = fit[0] if fit else max(choices, key=lambda one: (len(choices[one]), one or ""))
    names = tuple(choices[separator])
    places = find_columns(names, wanted, place, ", or --no-header where this line is an edge")
    return _Layout(skip + len(record), separator, names, places)


def _first_record(file: Path) -> tuple[int, list[str]]:
    """The number of lines before the first record, and its lines."""
    with _open(file) as lines:
        skip, first = 0, lines.readline()
        while first and (not first.strip() or _COMMENT.match(first)):
            skip, first = skip + 1, lines.readline()
        if not first:
            raise FileError(f"{file}: the file is empty but for comments")
        record, opened = [first], 0
        while sum(line.count('"') for line in record) % 2:
            if record[-1].count('"') % 2:
                opened = len(record) - 1
            more = lines.readline()
            if not more or len(record) == _HEADER_LINES:
                raise _unclosed(file, skip + 1 + opened)
            record.append(more)
    return skip, record


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


def _batches(file: Path, layout: _Layout, lines: array[int]) -> Iterator[list[list[str]]]:
    """The records, some thousand at a time; the line where each ends is added to ``lines``."""
    width, ended = len(layout.names), []

    def to_the_end(content: TextIO) -> Iterator[str]:
        for _ in range(layout.skip):
            content.readline()
        yield from iter(content.readline, "")
        ended.append(True)

    try:
        with _open(file) as content:
            rows: list[list[str]] = []
            reader = _reader(to_the_end(content), layout.separator)
            for cells in reader:
                line = layout.skip + reader.line_num
                if ended:  # the reader wanted more of this record
                    breaks = len(re.findall(r"\r\n?|\n", cells[-1]))
                    raise _unclosed(file, line - breaks + cells[-1].endswith(("\n", "\r")))
                if len(cells) < 2 and not "".join(cells).strip():
                    continue
                if len(cells) != width:
                    raise FileError(
                        f"{file}, line {line}, column {min(len(cells), width) + 1}: expected "
                        f"{width} cells, as in the first line, got {len(cells)}"
                    )
                rows.append(cells)
                lines.append(line)
                if len(rows) == _BATCH:
                    yield rows
                    rows = []
            if rows:
                yield rows
    except csv.Error as error:
        raise FileError(f"{file}: not a table of text ({error})") from error


def _unclosed(file: Path, line: int) -> FileError:
    fault = "a quote opens here and does not close; close or remove it"
    return FileError(f"{file}, line {line}: {fault}")
