"""A user's files: edge lists and node features, as a graph, with errors that name the place.

An edge list has the columns ``src`` and ``dst``; others are ignored. Ids are integers or words, and
need not be consecutive: nodes are numbered in ascending order of their ids. Pandas reads a file in
one go; only where that fails is a CSV file gone through again, line by line, for the place of the
error.

Nothing in a file is executed. Files of more than 2 GiB are refused, and integers that could not be
told from their neighbours: beyond 64 bits, or from 2^53 on in a column that is read as fractions.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dgl_dmns.data import GraphData, simple_undirected
from dgl_dmns.parquet import read_parquet

__all__ = ["FileError", "NamedGraph", "read_edges"]

ENDS = ("src", "dst")
LARGEST = 2 << 30
"""Bytes of a CSV or NumPy file that is read."""
_EXACT = 1 << 53  # fractions with 64 bits are exact integers below


class FileError(ValueError):
    """A file that cannot be used; the message names it and the line and column."""


@dataclass(frozen=True, eq=False)
class NamedGraph:
    """A graph, and the ids that its nodes have in the user's files.

    Attributes:
        data: the graph; its nodes are numbered from 0.
        ids: the ids of the nodes, integers or words, shape [N].
    """

    data: GraphData
    ids: np.ndarray[Any, Any]


def read_edges(edges: Path, features: Path | None = None) -> NamedGraph:
    """A graph from an edge list and, if given, node features.

    Self loops and duplicates are left out, and both directions put in.

    Args:
        edges: CSV or Parquet file with the columns ``src`` and ``dst``.
        features: CSV or Parquet file with a column ``id`` and numbers, or a NumPy file (``.npy``)
            of shape [N, F] for ids 0 .. N - 1. Where not given, the features have width 0.

    Returns:
        The graph with its ids. Nodes that have features but no edge are part of it.

    Raises:
        FileError: if a file is missing, cannot be read, lacks a column or a value, or holds no edge
            between two nodes.
    """
    ends = _table(edges, ENDS, ENDS)
    columns = [_ids(edges, ends, name) for name in ENDS]
    if columns[0].dtype != columns[1].dtype:  # numbers at one end, words at the other
        columns = [column.astype(str) for column in columns]
    given = None if features is None else _features(features)
    every = columns if given is None else [*columns, _same_kind(given[0], columns[0], features)]
    ids = np.unique(np.concatenate(every))
    src, dst = (torch.from_numpy(np.searchsorted(ids, column)) for column in columns)
    both = simple_undirected(src, dst)
    if not len(both[0]):
        raise FileError(f"{edges}: expected edges between two nodes, got {len(src)} self loops")
    x = torch.zeros(len(ids), 0)
    if given is not None:
        missing = np.setdiff1d(ids, every[2])
        if len(missing):
            raise FileError(
                f"{features}: no features for {len(missing)} node(s) of {edges.name}, for example "
                f"{missing[0]!s}; add a row for each, or leave --features out"
            )
        x = torch.zeros(len(ids), given[1].shape[1])
        x[torch.from_numpy(np.searchsorted(ids, every[2]))] = given[1]
    data = GraphData(
        name=edges.stem,
        num_nodes=len(ids),
        src=both[0],
        dst=both[1],
        features=x,
        labels=torch.zeros(len(ids), dtype=torch.int64),
        raw_src=src,
        raw_dst=dst,
    )
    return NamedGraph(data, ids)


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise FileError(f"{file}: there is no such file; check the name")
    size = file.stat().st_size
    if size > LARGEST and file.suffix != ".parquet":  # which has limits of its own
        raise FileError(
            f"{file}: expected at most {LARGEST} bytes, got {size}; write it as Parquet, or build "
            "the graph in Python and train there (docs/get-started.md)"
        )


def _table(
    file: Path, needed: tuple[str, ...], columns: tuple[str, ...] | None = None
) -> pd.DataFrame:
    """The table in a CSV or Parquet file, which has the columns that are needed.

    Of a Parquet file only ``columns`` are read, where those are given.
    """
    _check_file(file)
    if file.suffix == ".csv":
        try:
            # In one piece: by pieces, a column could be read as numbers here and as words there.
            table = pd.read_csv(file, skipinitialspace=True, low_memory=False)
        except UnicodeDecodeError as error:
            line = _line_not_in_utf8(file.read_bytes())
            raise FileError(
                f"{file}, line {line}: not UTF-8 text ({error.reason}); save the file as UTF-8"
            ) from error
        except pd.errors.EmptyDataError as error:
            raise FileError(f"{file}: the file is empty") from error
        except Exception as error:  # pandas has many
            _find_in_lines(file, needed)
            raise FileError(f"{file}: not a CSV file ({error})") from error
        if not isinstance(table.index, pd.RangeIndex):  # more cells than names, and no error
            _find_in_lines(file, needed)
    elif file.suffix == ".parquet":
        table = _parquet(file, columns)
    else:
        raise FileError(f"{file}: expected a name that ends in .csv or .parquet")
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise FileError(f"{file}: expected columns with different names, got {twice!r} twice")
    absent = [name for name in needed if name not in table.columns]
    if absent:
        one = len(table.columns) == 1 and not str(table.columns[0]).isidentifier()
        hint = ", separated by commas" if one else ""
        raise FileError(
            f"{file}, line 1: expected the column(s) {', '.join(needed)}, got "
            f"{', '.join(map(str, table.columns)) or 'none'}; name them in the first line{hint}"
        )
    if not len(table):
        raise FileError(f"{file}: expected at least one row below the names of the columns")
    return table


def _line_not_in_utf8(content: bytes) -> int:
    """The line of the first byte that is not UTF-8; pandas counts from a cell or a part on."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        content = content[: error.start]
    return content.count(b"\n") + 1


def _parquet(file: Path, columns: tuple[str, ...] | None) -> pd.DataFrame:
    try:
        return read_parquet(file, columns)
    except ImportError as error:
        raise FileError(
            f"{file}: reading Parquet needs pyarrow (python -m pip install pyarrow); or convert "
            "the file to CSV"
        ) from error
    except Exception as error:  # pyarrow has errors of its own
        raise FileError(f"{file}: not a Parquet file ({error})") from error


def _ids(file: Path, table: pd.DataFrame, name: str) -> np.ndarray[Any, Any]:
    """The ids of a column, int64 or words."""
    column = table[name]
    whole = pd.api.types.is_integer_dtype(column) and not column.isna().any()
    if whole and not (column > np.iinfo(np.int64).max).any():
        return column.to_numpy(dtype=np.int64)
    if file.suffix == ".csv":
        _find_in_lines(file, (name,))
    numbers = pd.api.types.is_numeric_dtype(column)
    if numbers and not pd.api.types.is_bool_dtype(column):
        bad = column.isna() | (column != column.round()) | (column.abs() >= _EXACT)
        wanted = "an integer that is exact in this column (below 2^63, with fractions below 2^53)"
        values = column
    else:
        values = column.map(lambda v: str(v).strip() if isinstance(v, (str, int, bool)) else "")
        bad, wanted = values == "", "an integer or a word"
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise FileError(
            f"{file}, {_line(file, row)}, column {name}: expected {wanted}, got {column.iloc[row]}"
        )
    return values.to_numpy(dtype=np.int64 if values is column else str)


def _find_in_lines(file: Path, needed: tuple[str, ...]) -> None:
    """Raise for the first line of a CSV file that has too few or many cells, or no proper id."""
    with file.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
        reader = csv.reader(lines, skipinitialspace=True)
        header = next(reader, [])
        places = [(name, header.index(name)) for name in needed if name in header]
        for cells in _lines(file, reader):
            where = f"{file}, line {reader.line_num}"
            if cells and len(cells) != len(header):
                raise FileError(
                    f"{where}, column {min(len(cells), len(header)) + 1}: expected "
                    f"{len(header)} cells, as in the first line, got {len(cells)}"
                )
            for name, place in places if cells else []:
                cell = cells[place].strip()
                if not cell or cell.lower() in ("nan", "null", "na", "n/a", "none"):
                    raise FileError(
                        f"{where}, column {name}: expected a node's id, got "
                        f"{'an empty cell' if not cell else repr(cell)}"
                    )
                if _is_fraction(cell):
                    raise FileError(
                        f"{where}, column {name}: expected an integer or a word, got {cell!r}"
                    )


def _lines(file: Path, reader: Any) -> Iterator[list[str]]:
    """The lines of a CSV reader, whose own errors have a place, too."""
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise FileError(f"{file}, line {reader.line_num}: not CSV ({error})") from error
        yield cells


def _is_fraction(cell: str) -> bool:
    try:
        return not float(cell).is_integer()
    except ValueError:
        return False


def _features(file: Path) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
    """Ids [M] and features [M, F], float32."""
    if file.suffix == ".npy":
        _check_file(file)
        try:
            # Mapped: a shape that the file does not hold is refused before it takes memory.
            array = np.lib.format.open_memmap(file, mode="r")  # type: ignore[no-untyped-call]
        except Exception as error:  # a damaged header fails in many ways
            raise FileError(f"{file}: not a NumPy file of numbers ({error})") from error
        if array.ndim != 2 or array.dtype.kind not in "iuf":
            raise FileError(
                f"{file}: expected numbers of shape [N, F], got {array.dtype} "
                f"{list(array.shape)}"
            )
        ids, x = np.arange(len(array)), torch.from_numpy(array.astype(np.float32))
        names = [str(place) for place in range(x.shape[1])]
    else:
        table = _table(file, ("id",))
        ids = _ids(file, table, "id")
        values = table.drop(columns="id")
        for name in values.columns:
            if values[name].dtype.kind not in "iufb":
                bad = ~values[name].map(_is_number).astype(bool)
                if bad.any():
                    row = int(np.flatnonzero(bad)[0])
                    raise FileError(
                        f"{file}, {_line(file, row)}, column {name}: expected a number, got "
                        f"{values[name].iloc[row]!r}"
                    )
                values[name] = values[name].map(float)  # integers of any length
        names = list(map(str, values.columns))
        with np.errstate(over="ignore"):  # to infinity, which is refused below
            x = torch.from_numpy(values.to_numpy(dtype=np.float32, copy=True))  # writable
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        row, place = (int(i) for i in (~finite).nonzero()[0])
        raise FileError(
            f"{file}, {_line(file, row)}, column {names[place]}: expected a finite number, got "
            f"{float(x[row, place])}"
        )
    if not x.shape[1]:
        raise FileError(f"{file}: expected columns with numbers beside the ids, got none")
    twice = pd.Series(ids).duplicated()
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        raise FileError(f"{file}, {_line(file, row)}, column id: {ids[row]} stands there twice")
    return ids, x


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _line(file: Path, row: int) -> str:
    return f"line {row + 2}" if file.suffix == ".csv" else f"row {row + 1}"


def _same_kind(
    ids: np.ndarray[Any, Any], like: np.ndarray[Any, Any], file: Path | None
) -> np.ndarray[Any, Any]:
    """Ids as integers or as words, as those of the edge list are."""
    if like.dtype.kind == ids.dtype.kind:
        return ids
    if like.dtype.kind == "U":
        return ids.astype(str)
    raise FileError(
        f"{file}, column id: the edge list has integers, got words such as {ids[0]!r}; use the "
        "same ids in both files"
    )
