"""A user's files: edge lists and node features, as a graph, with errors that name the place.

An edge list has two columns of ids, ``src`` and ``dst``; others are ignored. Ids are names (see
`dgl_dmns.cli.tables`), and nodes are numbered in ascending order of them. Nothing in a file is
executed, and files of more than 2 GiB are refused.

Do the two columns name one kind of nodes, or two that share numbers? Users 1 .. 6040 and items
1 .. 3706 look like one graph of 6040 nodes, in which user 5 is item 5. Nothing in the file says so;
but ids that were numbered by themselves show it by four signs that an ordinary graph does not have
together:

1. Some ids are in both columns (otherwise nothing is merged, and nothing is asked).
2. One column ends early: beyond its last id (or before its first) a good part of the ids is in the
   other column alone, more than chance would have left out of a column that has so many of the ids
   between its ends.
3. Pairs run both ways, from smaller to larger ids and back. In trees, citations and lists of
   undirected edges that are sorted they run one way, which explains 2.
4. Pairs that are their own reverse, and those of a node with itself, are as frequent as chance has
   it. Directed graphs have more; lists that have each undirected edge once have none.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dgl_dmns.cli.delimited import read_text
from dgl_dmns.cli.tables import (
    Array,
    FileError,
    IdColumn,
    Table,
    Wanted,
    arrays_of,
    is_parquet,
    number_nodes,
    read_columns,
)
from dgl_dmns.data import GraphData, simple_undirected
from dgl_dmns.messages import one_line

__all__ = [
    "FileError",
    "NamedGraph",
    "check_first_row",
    "digest",
    "looks_bipartite",
    "name_of",
    "names_of_two_kinds",
    "read_edges",
    "read_table",
]

_LEFT_OUT = 0.05  # share of the nodes beyond the end of a column
_SURE = math.log(1e6)
_BOTH_WAYS = 0.05  # share of the pairs that run the rarer way
_AGENTS = {"user", "customer", "reader", "buyer", "author", "person", "member", "visitor", "client"}
_THINGS = {"item", "product", "movie", "film", "book", "song", "track", "artist", "game", "paper"}
_THINGS |= {"article", "page", "tag", "category", "business", "venue", "place", "anime", "ad"}


@dataclass(frozen=True, eq=False)
class NamedGraph:
    """A graph, the ids of its nodes, int64 or text as objects [N], and the names of the columns."""

    data: GraphData
    ids: Array
    columns: tuple[str, str] = ("src", "dst")

    @property
    def name(self) -> str:
        """What the graph is called."""
        return self.data.name

    def facts(self) -> dict[str, Any]:
        """The record of a run on its data."""
        return {
            "name": self.name,
            "nodes": self.data.num_nodes,
            "edges": f"{len(self.data.src) // 2}, each in both directions",
            "features": self.data.features.shape[1] or "none; a learned vector for each node",
            "held out": "5 % of the edges for validation (mrr), 10 % for the test",
        }

    def __str__(self) -> str:
        data, width = self.data, self.data.features.shape[1]
        features = f"{width} features" if width else "no features: a learned vector for each node"
        return f"{data.name}: {data.num_nodes} nodes, {len(data.src) // 2} edges, {features}"

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the edges, the ids and the features, by those names.

        The edges are those after cleaning, in their order there: a file with the same edges in
        another order, or under another name, is the same.
        """
        return {
            "edges": digest(self.data.src.numpy(), self.data.dst.numpy()),
            "ids": digest(*arrays_of(self.ids).values()),
            "features": digest(self.data.features.numpy()),
        }


def digest(*arrays: Array) -> str:
    """SHA-256 of the types, shapes and values of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def read_edges(
    edges: Path,
    features: Path | None = None,
    *,
    source: str = "src",
    target: str = "dst",
    header: bool = True,
    sure: bool = False,
) -> NamedGraph:
    """A graph from an edge list and, if given, node features.

    Self loops and duplicates are left out, and both directions put in. Nodes that have features but
    no edge are part of the graph.

    Args:
        edges: a file of text, a Parquet file or a folder of these.
        features: the same with a column ``id`` and numbers, or a NumPy file (``.npy``) of shape
            [N, F] for ids 0 .. N - 1. Without it, the features have width 0.
        source: name of the column with the one end of the edges.
        target: name of that with the other end.
        header: whether the first line of text has the names; if not, the ends come first.
        sure: that ids of both columns name the same nodes; otherwise, a list that looks as if they
            named two kinds of nodes is refused.

    Raises:
        FileError: if a file is missing, cannot be read, lacks a column or a value, holds no edge
            between two nodes, or may be of either kind.
    """
    ends, _ = read_table(edges, Wanted((source, target), header))
    given = None if features is None else _features(features)
    ids, (first, second, *own) = number_nodes(ends if given is None else [*ends, given[0]])
    if not header:
        check_first_row(ends[0], [(ids, first), (ids, second)])
    if not sure:
        _check_kind(edges, (source, target), first, second, len(ids))
    src, dst = torch.from_numpy(first), torch.from_numpy(second)
    both = simple_undirected(src, dst)
    if not len(both[0]):
        raise FileError(f"{edges}: expected edges between two nodes, got {len(src)} self loops")
    x = torch.zeros(len(ids), 0)
    if given is not None and features is not None:
        x = _by_node(given[1], own[0], ids, features, edges)
    data = GraphData(
        name=name_of(edges),
        num_nodes=len(ids),
        src=both[0],
        dst=both[1],
        features=x,
        labels=torch.zeros(len(ids), dtype=torch.int64),
        raw_src=src,
        raw_dst=dst,
    )
    return NamedGraph(data, ids, (source, target))


def name_of(file: Path) -> str:
    """What data are called after their file."""
    return file.stem if file.suffix != ".gz" else Path(file.stem).stem


def read_table(file: Path, wanted: Wanted) -> Table:
    """The columns of ids in a file, see `read_text` and `read_columns`."""
    if not file.exists():
        raise FileError(f"{file}: there is no such file; check the name")
    if not file.is_dir() and not file.is_file():
        raise FileError(f"{file}: expected a file or a folder of Parquet files, got neither")
    if file.is_dir() or is_parquet(file):
        if not wanted.header:
            raise FileError(
                f"{file}: --no-header is for text; name columns of Parquet by their options, such "
                "as --source"
            )
        return read_columns(file, wanted)
    return read_text(file, wanted)


def check_first_row(column: IdColumn, ends: Sequence[tuple[Array, Array]]) -> None:
    """Refuse a header that was said not to be there: words above nothing but integers.

    ``ends`` are the ids of the nodes, and the nodes, of each column.
    """
    for ids, nodes in ends:
        if ids.dtype != object or len(nodes) < 2:
            return
        digits = np.array([text.removeprefix("-").isdigit() for text in ids.tolist()])
        if digits[nodes[0]] or not digits[nodes[1:]].all():
            return
    raise FileError(
        f"{column.where(0)}: words above integers, such as names of columns; leave --no-header "
        "out, or remove the line"
    )


def _features(file: Path) -> tuple[IdColumn, torch.Tensor]:
    """Ids [M] and features [M, F], float32."""
    if file.suffix.lower() == ".npy":
        ids, x = _numpy(file)
        names = list(map(str, range(x.shape[1])))
    else:
        (ids,), rest = read_table(file, Wanted(("id",), rest=True))
        names = [name for name, _ in rest]
        if not names:
            raise FileError(f"{file}: expected columns with numbers beside the ids, got none")
        with np.errstate(over="ignore"):  # to infinity, which is refused below
            x = torch.from_numpy(np.stack([v.astype(np.float32) for _, v in rest], axis=1))
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        row, place = (int(i) for i in (~finite).nonzero()[0])
        raise FileError(
            f"{ids.where(row)}, column {names[place]}: expected a finite number, got "
            f"{float(x[row, place])}"
        )
    node = number_nodes([ids])[1][0]
    order = np.argsort(node, kind="stable")
    again = order[1:][np.diff(node[order]) == 0]
    if len(again):
        row = int(again.min())
        twice = one_line(ids.values[row])
        raise FileError(f"{ids.where(row)}, column id: {twice} stands there twice")
    return ids, x


def _numpy(file: Path) -> tuple[IdColumn, torch.Tensor]:
    if not file.is_file():
        raise FileError(f"{file}: there is no such file; check the name")
    try:
        # Mapped: a shape that the file does not hold is refused before it takes memory.
        array = np.lib.format.open_memmap(file, mode="r")  # type: ignore[no-untyped-call]
    except Exception as error:  # a damaged header fails in many ways
        raise FileError(f"{file}: not a NumPy file of numbers ({one_line(error)})") from error
    if array.ndim != 2 or array.dtype.kind not in "iuf" or not array.shape[1]:
        raise FileError(
            f"{file}: expected numbers of shape [N, F], got {array.dtype} {list(array.shape)}"
        )
    ids = IdColumn("id", np.arange(len(array)), True, lambda row: f"{file}, row {row + 1}")
    return ids, torch.from_numpy(array.astype(np.float32))


def _by_node(x: torch.Tensor, own: Array, ids: Array, file: Path, edges: Path) -> torch.Tensor:
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


def _check_kind(file: Path, names: tuple[str, str], src: Array, dst: Array, num_nodes: int) -> None:
    """Refuse an edge list that may hold nodes of one kind or of two."""
    count = [len(np.unique(end)) for end in (src, dst)]
    shared = sum(count) - num_nodes
    if shared > 0 and (names_of_two_kinds(*names) or looks_bipartite(src, dst, num_nodes)):
        raise FileError(
            f"{file}: columns {names[0]} and {names[1]} look like two kinds of nodes (users and "
            f"items?) with {shared} ids in both; add --kind bipartite to keep these apart "
            f"({sum(count)} nodes), or --kind graph where they are the same nodes ({num_nodes})"
        )


def names_of_two_kinds(first: str, second: str) -> bool:
    """Whether columns are named after two kinds of nodes, such as ``user_id`` and ``movie_id``."""
    words = {name.lower().replace("_", "").removesuffix("id") for name in (first, second)}
    return bool(words & _AGENTS) and bool(words & _THINGS)


def looks_bipartite(src: Array, dst: Array, num_nodes: int) -> bool:
    """Whether pairs of nodes, numbered by ascending id, have the four signs of two kinds."""
    first, second = np.zeros((2, num_nodes), dtype=bool)
    first[src] = True
    second[dst] = True
    shared = first & second
    if not shared.any() or not (_ends_early(first) or _ends_early(second)):
        return False
    key = np.unique(src * num_nodes + dst)  # each pair once
    src, dst = key // num_nodes, key % num_nodes
    out, into = (np.bincount(end, minlength=num_nodes).astype(float) for end in (src, dst))
    among = shared[src] & shared[dst]
    src, dst = src[among], dst[among]
    up, down = int((src < dst).sum()), int((src > dst).sum())
    if min(up, down) < max(3, _BOTH_WAYS * (up + down)):
        return False
    chance = np.minimum(out[dst] * into[src] / len(key), 1.0)[src != dst].sum() / 2
    chance += np.minimum(out * into / len(key), 1.0).sum()
    seen = int(np.isin(dst * num_nodes + src, key)[src != dst].sum()) / 2 + int((src == dst).sum())
    noise = 3 * math.sqrt(chance)
    return bool(chance / 2 - noise <= seen <= 2 * chance + noise + 3)


def _ends_early(there: Array) -> bool:
    """Whether more ids lie beyond the ends of a column than its gaps between them explain."""
    places = np.flatnonzero(there)
    within = int(places[-1] - places[0]) + 1
    beyond = len(there) - within
    gap = (within - len(places) + 1) / (within + 2)
    return beyond >= _LEFT_OUT * len(there) and beyond * -math.log(gap) > _SURE
