"""Splits of a graph's edges into training, validation and test pairs, without leakage.

Two protocols. Both remove from training what would give a held-out edge away.

* Protocol B, `split_pairs`: the *undirected* pairs are split, so that a pair is in exactly one
  part. Ranking is over all nodes (`dgl_dmns.evaluate.full_ranking`).
* Protocol A, `split_directed` and `official_split`: the *directed* edges are split, as published
  with the data sets' ten uniform negatives; training drops the reverses of validation and test
  edges. Ranking is among nine fixed negatives (`dgl_dmns.evaluate.candidate_ranking`). A
  validation edge may be the reverse of a test edge, in the published splits too; messages travel
  along training edges only, so that neither is seen by the encoder.

Symbols: N nodes, E edges, V validation or test pairs; a pair is (query, positive).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgl_dmns.checks import as_number, check_object
from dgl_dmns.core import KnownEdges, fit_seed, shielded
from dgl_dmns.data.embedded import GraphData, simple_undirected

__all__ = ["EdgeSplit", "RankingSplit", "official_split", "split_directed", "split_pairs"]

NEGATIVES = 9
OFFICIAL_NODES: dict[str, int] = {"cora": 2708, "citeseer": 3327, "actor": 7600}
OFFICIAL_COLUMNS = 12


@dataclass(frozen=True, eq=False)
class _Split:
    train: Tensor

    @shielded
    def message_edges(self) -> tuple[Tensor, Tensor]:
        """The training graph made undirected: src and dst, int64 [E'], in (src, dst) order."""
        return simple_undirected(self.train[0], self.train[1])


@dataclass(frozen=True, eq=False)
class EdgeSplit(_Split):
    """Pairs for training, validation and test over a full ranking (protocol B).

    Attributes:
        train: int64 [2, E_tr], unordered training pairs, each listed once (smaller id first).
        val: int64 [2, E_va], (query, positive) rows, each pair in one direction.
        test: int64 [2, E_te], likewise.
    """

    val: Tensor
    test: Tensor


@dataclass(frozen=True, eq=False)
class RankingSplit(_Split):
    """Directed training edges, and held-out queries with fixed candidates (protocol A).

    Attributes:
        train: int64 [2, E_tr], directed training edges as (query, positive) columns.
        val_query: int64 [V].
        val_candidates: int64 [V, 10]; column 0 is the positive, 1 to 9 are uniform negatives.
        test_query: int64 [T].
        test_candidates: int64 [T, 10], likewise.
    """

    val_query: Tensor
    val_candidates: Tensor
    test_query: Tensor
    test_candidates: Tensor

    @staticmethod
    def of(train: Tensor, val: Tensor, test: Tensor) -> RankingSplit:
        """A split of rows of a query, its positive and its negatives, int64 [*, 11]."""
        parts = [part.clone() for rows in (val, test) for part in (rows[:, 0], rows[:, 1:])]
        return RankingSplit(train.contiguous(), *parts)


def _check_arguments(data: GraphData, val: float, test: float) -> None:
    check_object("data", data, GraphData, 'load_dataset("cora")')
    for name, share in (("val", val), ("test", test)):
        if not 0.0 < as_number(name, share) < 1.0:
            raise ValueError(
                f"{name}: expected a share of the edges in (0, 1), got {share}; "
                "pass for example 0.05"
            )
    if val + test >= 1.0:
        raise ValueError(
            f"val + test: expected less than 1, got {val} + {test}; leave some edges for training"
        )


def _check_parts(data: GraphData, sizes: dict[str, int]) -> None:
    for part, size in sizes.items():
        if size < 1:
            raise ValueError(
                f"data: graph {data.name!r} has too few edges, its {part} part is empty; "
                f"raise {part} or pass a larger graph"
            )


def _floor(share: float, count: int) -> int:
    """floor(share * count), with shares such as 1 - 0.05 - 0.05 read as 0.9."""
    return math.floor(share * count + 1e-6)


@shielded
def split_pairs(data: GraphData, val: float = 0.05, test: float = 0.1, seed: int = 0) -> EdgeSplit:
    """Split the undirected pairs of a graph (protocol B).

    Args:
        data: the graph with P = E / 2 pairs.
        val: share of the pairs for validation, rounded down.
        test: share of the pairs for test, rounded down.
        seed: decides which pair goes where, and which end of a held-out pair is its query.

    Returns:
        The three disjoint parts, which together are all pairs.

    Raises:
        ValueError: a share is outside (0, 1), both leave nothing, or a part would be empty.
    """
    _check_arguments(data, val, test)
    generator = torch.Generator().manual_seed(fit_seed(seed))
    once = data.src < data.dst
    pairs = torch.stack([data.src[once], data.dst[once]])
    count = pairs.shape[1]
    num_val, num_test = _floor(val, count), _floor(test, count)
    num_train = count - num_val - num_test
    _check_parts(data, {"val": num_val, "test": num_test, "train": num_train})
    pairs = pairs[:, torch.randperm(count, generator=generator)]
    held = pairs[:, : num_val + num_test]
    flip = torch.rand(held.shape[1], generator=generator, dtype=torch.float32) < 0.5
    held = torch.where(flip, held.flip(0), held)
    return EdgeSplit(
        train=pairs[:, num_val + num_test :].contiguous(),
        val=held[:, :num_val].contiguous(),
        test=held[:, num_val:].contiguous(),
    )


@shielded
def split_directed(
    data: GraphData, val: float = 0.05, test: float = 0.05, seed: int = 0
) -> RankingSplit:
    """Split the directed edges of a graph and draw fixed negatives (protocol A).

    The edges are the raw ones without self loops and duplicates (for a pair stored in both
    directions, both count). The training share is rounded down and the rest is divided, as in the
    published splits; then training loses the reverses of held-out edges.

    Args:
        data: the graph.
        val: share of the edges for validation.
        test: share of the edges for test.
        seed: decides the parts and the negatives.

    Returns:
        The split; its negatives are uniform over the nodes other than the query and its
        neighbours in the whole graph in either direction, with replacement.

    Raises:
        ValueError: a share is outside (0, 1), both leave nothing, a part would be empty, or a
            held-out query is joined to every node.
    """
    _check_arguments(data, val, test)
    generator = torch.Generator().manual_seed(fit_seed(seed))
    proper = data.raw_src != data.raw_dst
    key = (data.raw_src[proper] * data.num_nodes + data.raw_dst[proper]).unique()
    key = key[torch.randperm(len(key), generator=generator)]
    num_train = _floor(1.0 - val - test, len(key))
    num_val = _floor(val / (val + test), len(key) - num_train)
    num_test = len(key) - num_train - num_val
    _check_parts(data, {"val": num_val, "test": num_test, "train": num_train})
    query, positive = torch.div(key, data.num_nodes, rounding_mode="floor"), key % data.num_nodes
    reverse = (positive * data.num_nodes + query)[num_train:]
    train = torch.stack([query, positive])[:, :num_train][:, ~torch.isin(key[:num_train], reverse)]
    _check_parts(data, {"train": train.shape[1]})
    query, positive = query[num_train:, None], positive[num_train:, None]
    known = KnownEdges(data.src, data.dst, data.num_nodes)
    full = query[torch.isin(query, known.saturated())]
    if len(full):
        raise ValueError(
            f"data: node {int(full[0])} of graph {data.name!r} is joined to every other node, so "
            "that it has no negatives; remove its edges or pass a sparser graph"
        )
    negatives = known.uniform_by_rank(query.expand(-1, NEGATIVES), generator=generator)
    held = torch.cat([query, positive, negatives], dim=1)
    return RankingSplit.of(train, held[:num_val], held[num_val:])


@shielded
def official_split(path: str | os.PathLike[str], name: str) -> RankingSplit:
    """Load a split published with the paper's data (protocol A).

    The file holds arrays train, val and test, integers of shape [*, 12]: columns 0 and 1 are
    (query, positive), columns 2 to 11 ten uniform negatives, of which the first nine are used.
    Node ids are those of DGL's data set of that name.

    The pairs are left as published. Those of Cora and Citeseer are edges of DGL's graph. Those
    of Actor run against the direction of DGL 2.1's edges (compare them with ``src`` and ``dst`` of
    `GraphData`), and a few are self loops, 8 of the 1501 test pairs. A few negatives are
    neighbours of their query.

    Args:
        path: the file ``<name>.npz``, or the directory that holds it.
        name: ``cora``, ``citeseer`` or ``actor``; there is no published split of another set.

    Returns:
        The split.

    Raises:
        ValueError: the name is unknown, or an array is absent, of another shape or type, or out
            of the range of the data set's node ids.
        FileNotFoundError: there is no such file.
    """
    if name not in OFFICIAL_NODES:
        raise ValueError(
            f"name: expected one of {', '.join(OFFICIAL_NODES)}, got {name!r}; "
            "for another graph use split_directed"
        )
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / f"{name}.npz"
    if not file.is_file():
        raise FileNotFoundError(
            f"path: expected the file {name}.npz or the directory that holds it, found no file "
            f"{file}; pass where the published splits lie, or use split_directed"
        )
    parts: dict[str, Tensor] = {}
    with np.load(file, allow_pickle=False) as archive:
        for part in ("train", "val", "test"):
            if part not in archive.files:
                raise ValueError(
                    f"{file}: expected the arrays train, val and test, got "
                    f"{', '.join(archive.files) or 'none'}; check that it is a published split"
                )
            parts[part] = _official_part(archive[part], f"{file}, array {part}", name)
    last = 2 + NEGATIVES
    return RankingSplit.of(
        parts["train"][:, :2].t(), parts["val"][:, :last], parts["test"][:, :last]
    )


def _official_part(array: np.ndarray[Any, Any], place: str, name: str) -> Tensor:
    """A part of a published split, int64 [*, 12], checked."""
    if array.ndim != 2 or array.shape[1] != OFFICIAL_COLUMNS or len(array) == 0:
        raise ValueError(
            f"{place}: expected shape [*, {OFFICIAL_COLUMNS}] with at least one row, got "
            f"{list(array.shape)}; check that it is a published split"
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{place}: expected integers, got {array.dtype}; store node ids as int32 or int64"
        )
    if array.min() < 0 or array.max() >= OFFICIAL_NODES[name]:
        raise ValueError(
            f"{place}: expected node ids in 0 .. {OFFICIAL_NODES[name] - 1} ({name}), got "
            f"{array.min()} .. {array.max()}; check the name"
        )
    return torch.from_numpy(array.astype(np.int64))
