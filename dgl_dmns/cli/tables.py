"""Tables in a user's files: which columns are meant, where a row is, and which nodes ids name.

Text is read by `dgl_dmns.cli.delimited`. Parquet is read here, from one file or a folder of part
files; there integers are integers and text is text, whatever the text looks like. Types that could
be either, such as floating point, are refused with what to cast them to.

Ids are names. They are integers where every cell of every column is a canonical one: ``0``, or
digits without a leading zero and perhaps a minus before them, within 64 bits. Otherwise all of them
are text, so that ``7`` and ``007`` are two nodes wherever they stand. Blanks around an id are no
part of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dgl_dmns.files import check_parquet, read_arrow, read_names
from dgl_dmns.messages import one_line

__all__ = [
    "ColumnsError",
    "FileError",
    "IdColumn",
    "Table",
    "Wanted",
    "arrays_of",
    "find_columns",
    "ids_of",
    "is_parquet",
    "look_up",
    "number_nodes",
    "numbers",
    "read_columns",
]

Array = np.ndarray[Any, Any]
Place = Callable[[int], str]
"""The file and the place of a row, for messages."""

_PAIRS = (
    ("source", "target"),
    ("source", "destination"),
    ("from", "to"),
    ("head", "tail"),
    ("u", "v"),
    ("user", "item"),
    ("user_id", "item_id"),
)
_LONGEST_INTEGER = 20  # characters of one within 64 bits
_PROPORTION = 8  # bytes that an array of fixed width may take for each byte of text
_SMALL = 1 << 24  # bytes that it may take at any rate


class FileError(ValueError):
    """A file that cannot be used; the message names it and the line and column."""


class ColumnsError(FileError):
    """A file without the columns that were asked for."""


@dataclass(frozen=True)
class Wanted:
    """What is read of a file.

    Attributes:
        columns: names of the columns of ids; without a header the first ones count.
        header: whether the first line of text has the names.
        rest: whether the others are read as well, as numbers.
        advice: what to do where columns are absent.
    """

    columns: Sequence[str]
    header: bool = True
    rest: bool = False
    advice: str = ""


@dataclass(frozen=True, eq=False)
class IdColumn:
    """A column of ids as it stands in a file: int64, or text as objects, shape [rows].

    An empty text is a missing id; ``typed`` says whether the file tells text and integers apart, as
    Parquet does; ``where`` names the place of a row.
    """

    name: str
    values: Array
    typed: bool
    where: Place


Table = tuple[list[IdColumn], list[tuple[str, Array]]]
"""The columns of ids that were asked for, and the others as float64 with their names."""


def find_columns(names: Sequence[str], wanted: Wanted, place: str, more: str = "") -> list[int]:
    """The places of the wanted columns; upper and lower case count where there are both.

    Errors (a column that is absent, or there twice) begin with ``place``; ``more`` is what else to
    do where both ends of edges are absent and no advice is given.
    """
    found = []
    for name in wanted.columns:
        same = [i for i, one in enumerate(names) if one == name]
        same = same or [i for i, one in enumerate(names) if one.lower() == name.lower()]
        if len(same) > 1:
            first, second = (names[i] for i in same[:2])
            got, advice = f"{first!r} and {second!r}", "name the one that is meant exactly"
            if first == second:
                got, advice = f"{first!r} twice", "rename one"
            raise FileError(f"{place}: expected one column {name}, got {got}; {advice}")
        found += same
    columns = wanted.columns
    if len(found) < len(columns):
        got = one_line(", ".join(names)) or "none"
        ends = f"{_advice_on_ends(names)}{more}" if len(columns) > 1 else "rename the one meant"
        raise ColumnsError(
            f"{place}: expected the column(s) {', '.join(columns)}, got {got}; "
            f"{wanted.advice or ends}"
        )
    if len(set(found)) < len(found):
        raise FileError(f"{place}: expected different columns, got {columns[0]!r} twice")
    return found


def _advice_on_ends(names: Sequence[str]) -> str:
    """What to add to the command where the ends of a graph's edges have other names."""
    small = [name.lower() for name in names]
    for pair in _PAIRS:
        if pair[0] in small and pair[1] in small:
            first, second = (names[small.index(name)] for name in pair)
            ends = f"--source {first} --target {second}"
            if pair[0].startswith("user"):
                return f"add --kind bipartite {ends}, or the last two if all ids name one kind"
            if pair == ("head", "tail") and "relation" in small:
                return f"add --kind knowledge, or {ends} to leave relations aside"
            return f"add {ends}"
    return "name yours with --source NAME --target NAME"


def numbers(name: str, cells: Any, where: Place) -> Array:
    """The cells of a column, a series of pandas, as float64."""
    try:
        return np.asarray(cells.to_numpy(object), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        row = next(row for row, cell in enumerate(cells) if not _is_number(cell))
    got = "an empty cell" if cells[row] == "" else one_line(repr(cells[row]))
    raise FileError(f"{where(row)}, column {name}: expected a number, got {got}")


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def is_parquet(file: Path) -> bool:
    """Whether a file begins as Parquet does, or says so by its name."""
    with file.open("rb") as content:
        return content.read(4) == b"PAR1" or file.suffix.lower() in (".parquet", ".pq")


def read_columns(file: Path, wanted: Wanted) -> Table:
    """The table in a Parquet file, or in the part files below a folder as Spark writes it.

    Names that begin with ``.`` or ``_`` are left out, and values in the names of folders
    (``key=value``) are not read.
    """
    check_parquet(file, "convert the file to CSV")
    parts = _parts(file)
    try:
        found = [read_names(part) for part in parts]
        places = [find_columns(have, wanted, str(p)) for have, p in zip(found, parts)]
        names = [[have[i] for i in place] for have, place in zip(found, places)]
        tables = read_arrow(parts, None if wanted.rest else names)
        others = _others(file, tables, names) if wanted.rest else []
    except FileError:
        raise
    except Exception as error:  # pyarrow has errors of its own
        raise FileError(f"{file}: not a Parquet file ({one_line(error)})") from error

    rows = [table.num_rows for table in tables]
    ends = np.cumsum(rows)
    if not ends[-1]:
        raise FileError(f"{file}: expected at least one row, got none")

    def where(row: int) -> str:
        part = int(np.searchsorted(ends, row, side="right"))
        return f"{parts[part]}, row {row - ends[part] + rows[part] + 1}"

    ids = []
    for place, name in enumerate(wanted.columns):
        values, first = [], 0
        for table, own in zip(tables, names):
            if table.num_rows:
                values.append(_ids(table.column(own[place]), first, name, where))
                first += table.num_rows
        if len({part.dtype for part in values}) > 1:  # text in one, integers in one
            values = [np.array(list(map(str, part.tolist())), dtype=object) for part in values]
        ids.append(IdColumn(name, np.concatenate(values), True, where))
    return ids, [(name, numbers(name, cells, where)) for name, cells in others]


def _parts(file: Path) -> list[Path]:
    if not file.is_dir():
        return [file]
    if (file / "_delta_log").exists():
        raise FileError(
            f"{file}: a Delta table, whose folder may hold rows that were deleted; write its "
            "present version as Parquet"
        )
    parts = sorted(
        part
        for part in file.rglob("*")
        if part.is_file() and not any(n[0] in "._" for n in part.relative_to(file).parts)
    )
    other = [part for part in parts if not is_parquet(part)]
    if other or not parts:
        got = f"{other[0].name} in it; join files of text to one" if other else "none in it"
        raise FileError(f"{file}: expected a folder of Parquet files, got {got}")
    return parts


def _others(file: Path, tables: Sequence[Any], names: Sequence[Sequence[str]]) -> list[Any]:
    """The other columns of all parts with their names, in the order of the first."""
    import pyarrow as pa

    others = [table.drop(list(own)) for table, own in zip(tables, names)]
    order = others[0].column_names
    try:
        together = pa.concat_tables([other.select(order) for other in others])
    except (pa.ArrowInvalid, KeyError) as error:
        raise FileError(f"{file}: part files with different columns ({one_line(error)})") from error
    return list(together.to_pandas(ignore_metadata=True).items())


def _ids(column: Any, first: int, name: str, where: Place) -> Array:
    """The ids of a column: int64, or text as objects. ``first`` is its first row in the table."""
    import pyarrow as pa
    from pyarrow import compute, types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind, asked = column.type, str(column.type)
    gaps = compute.is_null(column, nan_is_null=types.is_floating(kind))
    if compute.any(gaps).as_py():
        raise _no_id(where(first + int(np.flatnonzero(gaps.to_numpy())[0])), name)
    if types.is_integer(kind) or (types.is_decimal(kind) and kind.scale == 0):
        try:
            return np.asarray(column.cast(pa.int64()).to_numpy(), dtype=np.int64)
        except pa.ArrowInvalid:  # beyond 64 bits, as text in all readers
            return np.array([str(int(value)) for value in column.to_pylist()], dtype=object)
    got, advice = f"{asked} ({one_line(column[0].as_py())})", "int64 or to string"
    if "binary" in asked:
        got, advice = "bytes that are not UTF-8", "string"
        with contextlib.suppress(pa.ArrowInvalid):
            column = column.cast(pa.large_binary()).cast(pa.large_string())
    if "string" not in str(column.type) or types.is_nested(kind):
        raise FileError(
            f"{where(first)}, column {name}: expected integers or text, got {got}; cast the column "
            f"to {advice}"
        )
    return np.array(column.to_pylist(), dtype=object)


def _no_id(place: str, name: str) -> FileError:
    return FileError(f"{place}, column {name}: expected a node's id, got an empty cell")


def number_nodes(columns: Sequence[IdColumn]) -> tuple[Array, list[Array]]:
    """Number the nodes by their ids, in ascending order.

    Returns:
        The ids [N], int64 or text as objects, and the node of each row of each column.
    """
    values = [column.values for column in columns]
    if any(part.dtype == object for part in values):
        values = [p if p.dtype == object else p.astype(str).astype(object) for p in values]
    codes, found = pd.factorize(np.concatenate(values))
    ends = np.cumsum([len(part) for part in values])[:-1]
    if found.dtype == object:
        found[:] = [name.strip() for name in found]
        for column, gaps in zip(columns, np.split((found == "")[codes], ends)):
            if gaps.any():
                raise _no_id(column.where(int(gaps.argmax())), column.name)
        words = any(column.typed and column.values.dtype == object for column in columns)
        found = found if words else _integers(found)
    ids, places = np.unique(found, return_inverse=True)
    return ids, np.split(places[codes], ends)


def _integers(names: Array) -> Array:
    """The ids as int64, if all of them are canonical integers; else as they are."""
    if max(map(len, names)) > _LONGEST_INTEGER:
        return names
    try:
        found = np.array(list(map(int, names)), dtype=np.int64)
    except (ValueError, OverflowError):
        return names
    return found if np.array_equal(found.astype(str), names) else names


def look_up(column: IdColumn, ids: Array, what: str) -> Array:
    """The node of each row of a column, int64, among nodes with such ids.

    Raises:
        FileError: for an id that is none of these, or that is missing.
    """
    found, (codes,) = number_nodes([column])
    place = {str(name): node for node, name in enumerate(ids.tolist())}
    nodes = np.array([place.get(str(name), -1) for name in found.tolist()], dtype=np.int64)[codes]
    if (nodes < 0).any():
        row = int((nodes < 0).argmax())
        got = one_line(repr(str(found[codes[row]])))
        raise FileError(
            f"{column.where(row)}, column {column.name}: expected {what} that the run was trained "
            f"with, got {got}; correct it, remove the row, or train again with it"
        )
    return nodes


def arrays_of(ids: Array, name: str = "id") -> dict[str, Array]:
    """The ids as arrays that NumPy stores without pickles, in proportion to their letters.

    Returns:
        ``NAME`` [N], int64 or text of fixed width. Where a few long ones would blow that up, in its
        place ``NAME_utf8``, the UTF-8 bytes of all of them, and ``NAME_end`` [N], where each ends.
    """
    if ids.dtype != object:
        return {name: ids}
    packed = [text.encode("utf-8", "surrogatepass") for text in ids.tolist()]
    lengths = np.array([len(text) for text in packed])
    if 4 * len(ids) * max(map(len, ids.tolist())) <= max(_SMALL, _PROPORTION * lengths.sum()):
        return {name: ids.astype(str)}
    joined = np.frombuffer(b"".join(packed), np.uint8)
    return {f"{name}_utf8": joined, f"{name}_end": lengths.cumsum()}


def ids_of(arrays: Mapping[str, Array], name: str = "id") -> Array:
    """The ids behind arrays of `arrays_of`, int64 or text as objects, [N]; KeyError for none."""
    if name in arrays:
        ids = arrays[name]
        return ids if ids.dtype.kind == "i" else ids.astype(object)
    text, ends = arrays[f"{name}_utf8"].tobytes(), arrays[f"{name}_end"].tolist()
    parts = [text[a:b].decode("utf-8", "surrogatepass") for a, b in zip([0, *ends], ends)]
    return np.array(parts, dtype=object)
