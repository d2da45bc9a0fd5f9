"""Tables of text: cells separated by commas, tabs, semicolons, bars or blanks, also packed (gzip).

Pandas parses a file that has been gone through with Python's ``csv``: for pandas, cells that a row
lacks are empty ones. Cells of ids stay as they are, so that ``007``, ``1e5`` and ``NA`` are names.
The line of a row is looked up only for an error.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any, BinaryIO, Optional, cast

import pandas as pd

from dgl_dmns.cli.tables import FileError, IdColumn, Table, Wanted, find_columns, numbers
from dgl_dmns.messages import one_line

__all__ = ["LARGEST", "read_text"]

LARGEST = 2 << 30
"""Bytes of a file that is read, unpacked."""
_SEPARATORS = ("\t", ",", ";", "|", None)  # None: any blanks
_COMMENT = re.compile(r"[#%]+(\s|$)")
_PACKED = {
    b"PK\3\4": "a zip archive or a workbook; save its table as CSV",
    b"\x1f\x8b": "packed by gzip twice; unpack it, or pack it once by gzip",
    b"BZh91AY&SY": "packed by bzip2; unpack it, or pack it once by gzip",
    b"\xfd7zXZ\0": "packed by xz; unpack it, or pack it once by gzip",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it, or pack it once by gzip",
}
_END = "\udc00"  # a last line, which no UTF-8 has: a quote that is open takes it in


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Cells of any length for csv, which otherwise stops at 128 KiB."""
    limit = csv.field_size_limit(LARGEST - 1)  # that of a C long everywhere
    try:
        yield
    finally:
        csv.field_size_limit(limit)


@_long_cells()
def read_text(file: Path, wanted: Wanted) -> Table:
    """The table in a file of text, UTF-8, or that packed with gzip."""
    content, rest = _content(file), wanted.rest
    skip, names, places, separator = _layout(file, content, wanted)

    @_long_cells()
    def where(row: int) -> str:
        reader = _reader(content, skip, separator)
        lines = (skip + reader.line_num for cells in reader if cells)
        return f"{file}, line {next(islice(lines, row, None))}"

    reader = _reader(content, skip, separator)
    rows = 0
    for cells in reader:
        if len(cells) == len(names):
            rows += 1
        elif cells and not cells[-1].endswith(_END):
            raise FileError(
                f"{where(rows)}, column {min(len(cells), len(names)) + 1}: expected {len(names)} "
                f"cells, as in the first line, got {len(cells)}"
            )
    _check_closed(file, cells, skip + reader.line_num)
    if not rows:
        raise FileError(f"{file}: expected at least one row below the names of the columns")

    # Line ends are kept for cells in quotes; not where pandas may take some for cells.
    kept = separator and b'"' in content and not re.search(rb"\r(?!\n)", content)

    def parsed(others: type) -> pd.DataFrame:
        order = range(len(names))
        return pd.read_csv(
            _text(content, skip, "" if kept else None),
            sep=separator or r"\s+",
            header=None,
            names=order,
            usecols=order if rest else places,
            dtype={place: object if place in places else others for place in order},
            na_filter=False,
            skipinitialspace=True,
            float_precision="round_trip",
        )

    try:
        table = parsed(float)
    except ValueError:  # no numbers, of which the first is named, or some that only Python reads
        table = parsed(object)
    found = [IdColumn(names[p], table[p].to_numpy(), False, where) for p in places]
    others = [place for place in range(len(names)) if rest and place not in places]
    return found, [(names[p], numbers(names[p], table[p], where)) for p in others]


def _content(file: Path) -> bytes:
    """The unpacked bytes of a file, refused unless they are text of a size that can be read."""
    parts, size = [], 0
    try:
        with file.open("rb") as raw:
            packed = raw.peek(2).startswith(b"\x1f\x8b")
            opened = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
            while part := opened.read(1 << 20):
                parts.append(part)
                size += len(part)
                if size > LARGEST:
                    raise FileError(
                        f"{file}: expected at most {LARGEST} bytes, got more; write it as Parquet, "
                        "or build the graph in Python and train there (docs/get-started.md)"
                    )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileError(f"{file}: not a complete gzip file ({one_line(error)})") from error
    content = b"".join(parts)
    if not content:
        raise FileError(f"{file}: the file is empty")
    for start, said in _PACKED.items():
        if content.startswith(start):
            raise FileError(f"{file}: {said}")
    place, fault = content.find(b"\0"), "a byte 0"
    try:
        content.decode()
    except UnicodeDecodeError as error:
        place, fault = error.start, error.reason
    if place >= 0:
        line = 1 + content.count(b"\n", 0, place)
        raise FileError(f"{file}, line {line}: not UTF-8 text ({fault}); save the file as UTF-8")
    return content if content.endswith((b"\n", b"\r")) else content + b"\n"


def _text(content: bytes, skip: int = 0, newline: str | None = "") -> io.TextIOWrapper:
    """The text below some lines; line ends are kept, for parsers tell those within quotes."""
    text = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline=newline)
    for _ in range(skip):
        text.readline()
    return text


def _reader(content: bytes, skip: int, separator: str | None) -> Any:
    """The records below some lines, blank ones as empty lists, and the mark of the end."""
    lines: Iterator[str] = _text(content, skip)
    if separator is None:
        lines = (line.replace("\t", " ").rstrip(" \r\n") + "\n" for line in lines)
    else:
        blanks = " \t\r\n".replace(separator, "")
        lines = (line if line.strip(blanks) else "\n" for line in lines)
    lines = chain(lines, [_END])
    return csv.reader(lines, delimiter=separator or " ", skipinitialspace=True)


def _check_closed(file: Path, last: list[str], line: int) -> None:
    """Refuse a last record that is more than the mark of the end; ``line`` is that of the mark."""
    if last != [_END]:
        line -= len(re.findall(r"\r\n?|\n", last[-1]))
        fault = "a quote opens here and does not close; close or remove it"
        raise FileError(f"{file}, line {line}: {fault}")


def _layout(
    file: Path, content: bytes, wanted: Wanted
) -> tuple[int, tuple[str, ...], list[int], str | None]:
    """Lines above the rows, names of all columns, places of the wanted ones, and the separator.

    The names are numbers where there is no header.
    """
    top = takewhile(lambda line: not line.strip() or _COMMENT.match(line), _text(content))
    skip = sum(1 for _ in top)
    place = f"{file}, line {skip + 1}"
    heads, ends = {}, {}
    for one in _SEPARATORS:
        reader = _reader(content, skip, one)
        heads[one] = [cell.strip() for cell in next(reader)]
        ends[one] = skip + reader.line_num
    if heads[None] == [_END]:
        raise FileError(f"{file}: the file is empty but for comments")
    separator = (_separator if wanted.header else _separator_of_data)(heads, wanted.columns, place)
    cells = heads[separator]
    if cells[-1].endswith(_END):
        _check_closed(file, cells, ends[separator])
    if wanted.header:
        more = ", or --no-header where this line is an edge"
        places = find_columns(cells, wanted, place, more)
        return ends[separator], tuple(cells), places, separator
    if len(cells) < len(wanted.columns):
        raise FileError(
            f"{place}: expected {len(wanted.columns)} ids, got {len(cells)} cell(s); cells are "
            "separated by commas, tabs, semicolons, bars or blanks"
        )
    names = tuple(f"{i + 1}" for i in range(len(cells)))
    return skip, names, list(range(len(wanted.columns))), separator


_Heads = dict[Optional[str], list[str]]
"""The cells of the first record by separator."""


def _separator(heads: _Heads, wanted: Sequence[str], place: str) -> str | None:
    """The separator of a header: one that shows the wanted names, else the one with most cells."""
    small = {name.lower() for name in wanted}
    fit = [one for one, cells in heads.items() if small <= {cell.lower() for cell in cells}]
    return fit[0] if fit else max(heads, key=lambda one: (len(heads[one]), one or ""))


def _separator_of_data(heads: _Heads, _: Sequence[str], place: str) -> str | None:
    """The separator of a first line that is an edge: one that its ids do not hold others of."""
    found = [one for one, cells in heads.items() if one and len(cells) > 1]
    clean = [
        one for one in found if not any(o in cell for cell in heads[one][:2] for o in found if o)
    ]
    if len(clean) != 1 and found:
        raise FileError(
            f"{place}: cells could be separated by {' or '.join(map(repr, found))}; put a line "
            "with names above it, such as src and dst, and leave --no-header out"
        )
    return clean[0] if found else None
