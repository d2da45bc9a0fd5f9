"""Parquet tables: one file, or a folder of part files; columns of ids count by their type.

Integers are integers and text is text, whatever the text looks like. Types that could be either,
such as floating point, are refused with what to cast them to.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dgl_dmns.cli.tables import (
    FileError,
    IdColumn,
    Table,
    advice_on_ends,
    find_columns,
    one_line,
)
from dgl_dmns.parquet import read_arrow, read_names

__all__ = ["is_parquet", "read_columns"]


def is_parquet(file: Path) -> bool:
    """Whether a file begins as Parquet does, or says so by its name."""
    with file.open("rb") as content:
        return content.read(4) == b"PAR1" or file.suffix.lower() in (".parquet", ".pq")


def read_columns(file: Path, wanted: Sequence[str], rest: bool = False) -> Table:
    """The table in a Parquet file, or in the part files below a folder.

    Args:
        file: a file, or a folder as Spark writes it: names that begin with ``.`` or ``_`` are left
            out. Values in the names of folders (``key=value``) are not read.
        wanted: names of the columns that hold ids.
        rest: whether the other columns are read, too.

    Raises:
        FileError: if it is no such table, or lacks a column.
    """
    parts = _parts(file)
    try:
        found = [read_names(part) for part in parts]
        places = [find_columns(n, wanted, str(p), _advice(n, wanted)) for n, p in zip(found, parts)]
        names = [[n[i] for i in place] for n, place in zip(found, places)]
        tables = read_arrow(parts, None if rest else names)
        others = _frame(file, tables, names) if rest else pd.DataFrame()
    except FileError:
        raise
    except ImportError as error:
        raise FileError(
            f"{file}: reading Parquet needs pyarrow (python -m pip install pyarrow); or convert "
            "the file to CSV"
        ) from error
    except Exception as error:  # pyarrow has errors of its own
        raise FileError(f"{file}: not a Parquet file ({one_line(error)})") from error
    ends = list(itertools.accumulate(table.num_rows for table in tables))
    if not ends[-1]:
        raise FileError(f"{file}: expected at least one row, got none")

    def where(row: int) -> str:
        part = bisect.bisect_right(ends, row)
        return f"{parts[part]}, row {row - (ends[part] - tables[part].num_rows) + 1}"

    ids = []
    for place, name in enumerate(wanted):
        values, first = [], 0
        for table, own in zip(tables, names):
            if table.num_rows:
                values.append(_ids(table.column(own[place]), first, name, where))
                first += table.num_rows
        if len({part.dtype for part in values}) > 1:  # text in one, integers in one
            values = [np.array(list(map(str, part.tolist())), dtype=object) for part in values]
        ids.append(IdColumn(name, np.concatenate(values), True, where))
    return Table(ids, others, where)


def _advice(names: Sequence[str], wanted: Sequence[str]) -> str:
    return advice_on_ends(names) if len(wanted) > 1 else "rename the one that is meant"


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
    if other:
        raise FileError(
            f"{file}: expected a folder of Parquet files, got {other[0].name} in it; join files of "
            "text to one"
        )
    if not parts:
        raise FileError(f"{file}: expected a folder of Parquet files, got none in it")
    return parts


def _frame(file: Path, tables: Sequence[Any], names: Sequence[Sequence[str]]) -> Any:
    """The other columns of all parts, in the order of the first."""
    import pyarrow as pa

    others = [table.drop(list(own)) for table, own in zip(tables, names)]
    order = others[0].column_names
    try:
        together = pa.concat_tables([other.select(order) for other in others])
    except (pa.ArrowInvalid, KeyError) as error:
        raise FileError(f"{file}: part files with different columns ({one_line(error)})") from error
    return together.to_pandas(ignore_metadata=True)


def _ids(column: Any, first: int, name: str, where: Any) -> np.ndarray[Any, Any]:
    """The ids of a column: int64, or text as objects. ``first`` is its first row in the table."""
    import pyarrow as pa
    from pyarrow import compute, types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind, asked = column.type, str(column.type)
    gaps = compute.is_null(column, nan_is_null=types.is_floating(kind))
    if compute.any(gaps).as_py():
        row = first + int(np.flatnonzero(gaps.to_numpy())[0])
        raise FileError(f"{where(row)}, column {name}: expected a node's id, got an empty cell")
    if types.is_integer(kind) or (types.is_decimal(kind) and kind.scale == 0):
        try:
            return np.asarray(column.cast(pa.int64()).to_numpy(), dtype=np.int64)
        except pa.ArrowInvalid:  # beyond 64 bits, as text in all readers
            return np.array([str(int(value)) for value in column.to_pylist()], dtype=object)
    if "binary" in asked:
        try:
            column = column.cast(pa.large_binary()).cast(pa.large_string())
        except pa.ArrowInvalid as error:
            raise FileError(
                f"{where(first)}, column {name}: expected integers or text, got bytes that are not "
                "UTF-8; cast the column to string"
            ) from error
    elif "string" not in asked or types.is_nested(kind):
        example = one_line(column[0].as_py())
        raise FileError(
            f"{where(first)}, column {name}: expected integers or text, got {asked} ({example}); "
            "cast the column to int64 or to string"
        )
    return np.array(column.to_pylist(), dtype=object)
