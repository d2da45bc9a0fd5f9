"""A user's files: edge lists and node features, as a graph, with errors that name the place.

An edge list has two columns of ids, ``src`` and ``dst``; others are ignored. Ids are names (see
`dgl_dmns.cli.ids`), and nodes are numbered in ascending order of them.

Nothing in a file is executed, and files of more than 2 GiB are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dgl_dmns.cli.columns import is_parquet, read_columns
from dgl_dmns.cli.delimited import read_text
from dgl_dmns.cli.ids import arrays_of, number_nodes
from dgl_dmns.cli.kinds import looks_bipartite, names_of_two_kinds
from dgl_dmns.cli.tables import FileError, IdColumn, Table, one_line
from dgl_dmns.data import GraphData, simple_undirected

__all__ = ["FileError", "NamedGraph", "read_edges"]


@dataclass(frozen=True, eq=False)
class NamedGraph:
    """A graph, and the ids that its nodes have in the user's files.

    Attributes:
        data: the graph; its nodes are numbered from 0.
        ids: the ids of the nodes, int64 or text as objects, shape [N].
        side: where the columns name two kinds of nodes, 0 for a node of the first column and 1 for
            one of the second, uint8, shape [N]; None otherwise.
    """

    data: GraphData
    ids: np.ndarray[Any, Any]
    side: np.ndarray[Any, Any] | None = None

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The ids and sides as arrays for a file without pickles; see `arrays_of`."""
        return {**arrays_of(self.ids), **({} if self.side is None else {"side": self.side})}


def read_edges(
    edges: Path,
    features: Path | None = None,
    *,
    source: str = "src",
    target: str = "dst",
    header: bool = True,
    kind: str | None = None,
) -> NamedGraph:
    """A graph from an edge list and, if given, node features.

    Self loops and duplicates are left out, and both directions put in.

    Args:
        edges: a file of text (see `read_text`), a Parquet file or a folder of these.
        features: the same with a column ``id`` and numbers, or a NumPy file (``.npy``) of shape
            [N, F] for ids 0 .. N - 1. Where not given, the features have width 0.
        source: name of the column with the one end of the edges.
        target: name of that with the other end.
        header: whether the edge list has the names of its columns in its first line. Where not,
            the ends are its first two columns.
        kind: ``"graph"`` where ids of both columns name the same nodes; ``"bipartite"`` where they
            name two kinds of nodes, which are kept apart; None to refuse a list that looks so.

    Returns:
        The graph with its ids. Nodes that have features but no edge are part of it.

    Raises:
        FileError: if a file is missing, cannot be read, lacks a column or a value, holds no edge
            between two nodes, or may be of either kind.
    """
    if features is not None and kind == "bipartite":
        raise FileError(f"{features}: features are for one kind of nodes, not for kind 'bipartite'")
    table = _table(edges, (source, target), header=header)
    given = None if features is None else _features(features)
    columns = table.ids if given is None else [*table.ids, given[0]]
    ids, (first, second, *own) = number_nodes(columns)
    if not header:
        _check_first_row(table, ids, first, second)
    side = None
    if kind == "bipartite":
        ids, first, second, side = _apart(ids, first, second)
    elif kind is None:
        _check_kind(edges, (source, target), first, second, len(ids))
    src, dst = torch.from_numpy(first), torch.from_numpy(second)
    both = simple_undirected(src, dst)
    if not len(both[0]):
        raise FileError(f"{edges}: expected edges between two nodes, got {len(src)} self loops")
    x = torch.zeros(len(ids), 0)
    if given is not None and features is not None:
        x = _by_node(given[1], own[0], ids, features, edges)
    data = GraphData(
        name=edges.stem if edges.suffix != ".gz" else Path(edges.stem).stem,
        num_nodes=len(ids),
        src=both[0],
        dst=both[1],
        features=x,
        labels=torch.zeros(len(ids), dtype=torch.int64),
        raw_src=src,
        raw_dst=dst,
    )
    return NamedGraph(data, ids, side)


def _table(file: Path, wanted: Sequence[str], header: bool = True, rest: bool = False) -> Table:
    if not file.exists():
        raise FileError(f"{file}: there is no such file; check the name")
    if not file.is_dir() and not file.is_file():
        raise FileError(f"{file}: expected a file or a folder of Parquet files, got neither")
    if file.is_dir() or is_parquet(file):
        if not header:
            raise FileError(f"{file}: --no-header is for text; name columns of Parquet by --source")
        return read_columns(file, wanted, rest)
    return read_text(file, wanted, header)


def _check_first_row(table: Table, ids: Any, first: Any, second: Any) -> None:
    """Refuse a header that was said not to be there: words above nothing but integers."""
    if ids.dtype != object or len(first) < 2:
        return
    digits = np.array([text.removeprefix("-").isdigit() for text in ids.tolist()])
    if not any(digits[column[0]] or not digits[column[1:]].all() for column in (first, second)):
        raise FileError(
            f"{table.where(0)}: words above integers, such as names of columns; leave --no-header "
            "out, or remove the line"
        )


def _check_kind(file: Path, names: tuple[str, str], src: Any, dst: Any, num_nodes: int) -> None:
    """Refuse an edge list that may hold nodes of one kind or of two."""
    count = [len(np.unique(end)) for end in (src, dst)]
    shared = sum(count) - num_nodes
    if shared > 0 and (names_of_two_kinds(*names) or looks_bipartite(src, dst, num_nodes)):
        raise FileError(
            f"{file}: columns {names[0]} and {names[1]} look like two kinds of nodes (users and "
            f"items?) with {shared} ids in both; add --kind bipartite to keep these apart "
            f"({sum(count)} nodes), or --kind graph where they are the same nodes ({num_nodes})"
        )


def _apart(ids: Any, src: Any, dst: Any) -> tuple[Any, Any, Any, Any]:
    """The nodes of the one column, then those of the other, each in ascending order."""
    (first, src), (second, dst) = (np.unique(end, return_inverse=True) for end in (src, dst))
    side = np.repeat(np.array([0, 1], dtype=np.uint8), [len(first), len(second)])
    return np.concatenate([ids[first], ids[second]]), src, dst + len(first), side


def _by_node(x: torch.Tensor, own: Any, ids: Any, file: Path, edges: Path) -> torch.Tensor:
    """The features in the order of the nodes, float32 [N, F]; ``own``: the node of each row."""
    missing = np.setdiff1d(np.arange(len(ids)), own)
    if len(missing):
        raise FileError(
            f"{file}: no features for {len(missing)} node(s) of {edges.name}, for example "
            f"{one_line(ids[missing[0]])} (the first row is of {one_line(ids[own[0]])}); write ids "
            "alike in both files, add a row for each, or leave --features out"
        )
    found = torch.zeros(len(ids), x.shape[1])
    found[torch.from_numpy(own)] = x
    return found


def _features(file: Path) -> tuple[IdColumn, torch.Tensor]:
    """Ids [M] and features [M, F], float32."""
    if file.suffix.lower() == ".npy":
        ids, x = _numpy(file)
        names = list(map(str, range(x.shape[1])))
    else:
        table = _table(file, ("id",), rest=True)
        ids, names = table.ids[0], list(map(str, table.rest.columns))
        if not names:
            raise FileError(f"{file}: expected columns with numbers beside the ids, got none")
        values = [_numbers(table, place) for place in range(len(names))]
        with np.errstate(over="ignore"):  # to infinity, which is refused below
            x = torch.from_numpy(np.stack([v.astype(np.float32) for v in values], axis=1))
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        row, place = (int(i) for i in (~finite).nonzero()[0])
        raise FileError(
            f"{ids.where(row)}, column {names[place]}: expected a finite number, got "
            f"{float(x[row, place])}"
        )
    twice = number_nodes([ids])[1][0]
    order = np.argsort(twice, kind="stable")
    again = order[1:][np.diff(twice[order]) == 0]
    if len(again):
        row = int(again.min())
        raise FileError(
            f"{ids.where(row)}, column id: {one_line(ids.values[row])} stands there twice"
        )
    return ids, x


def _numpy(file: Path) -> tuple[IdColumn, torch.Tensor]:
    if not file.is_file():
        raise FileError(f"{file}: there is no such file; check the name")
    try:
        # Mapped: a shape that the file does not hold is refused before it takes memory.
        array = np.lib.format.open_memmap(file, mode="r")  # type: ignore[no-untyped-call]
    except Exception as error:  # a damaged header fails in many ways
        raise FileError(f"{file}: not a NumPy file of numbers ({one_line(error)})") from error
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise FileError(
            f"{file}: expected numbers of shape [N, F], got {array.dtype} {list(array.shape)}"
        )
    if not array.shape[1]:
        raise FileError(f"{file}: expected columns with numbers, got none")
    ids = IdColumn("id", np.arange(len(array)), True, lambda row: f"{file}, row {row + 1}")
    return ids, torch.from_numpy(array.astype(np.float32))


def _numbers(table: Table, place: int) -> np.ndarray[Any, Any]:
    """A column of numbers."""
    column = table.rest.iloc[:, place]
    if column.dtype.kind in "iufb":
        return column.to_numpy()
    found = [_number(value) for value in column]
    if None in found:
        row = found.index(None)
        value = column.iloc[row]
        raise FileError(
            f"{table.where(row)}, column {table.rest.columns[place]}: expected a number, got "
            f"{'an empty cell' if isinstance(value, str) and not value else one_line(repr(value))}"
        )
    return np.array(found, dtype=float)  # integers of any length


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
