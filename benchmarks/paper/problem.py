"""A data set made ready for protocol A: graphs, features, training pairs, held-out candidates."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import dgl
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.common.training import benchmark_data
from benchmarks.paper.config import Training
from benchmarks.paper.encoders import SparseFeatures
from dgl_dmns.core import KnownEdges
from dgl_dmns.data import RankingSplit, official_split, split_directed
from dgl_dmns.evaluate import candidate_ranking, ranking_metrics

__all__ = ["OFFICIAL", "Folders", "Problem", "load_problem"]

OFFICIAL = ("cora", "citeseer", "actor")
"""Data sets with a published split."""


@dataclass(frozen=True)
class Folders:
    """Where files lie: DGL's cache (None: its own) and the published splits (None: not used)."""

    data: str | None = None
    splits: str | None = None

    def has_split(self, dataset: str) -> bool:
        """Whether the published split of a data set can be used."""
        return self.splits is not None and dataset in OFFICIAL


@dataclass(frozen=True, eq=False)
class Problem:
    """All that a cell needs."""

    graph: Any  # the training graph, both directions, no self loops; samplers know its edges
    messages: Any  # the graph that the encoder runs on, self loops added for GCN and GAT
    features: SparseFeatures  # of the nodes
    labels: Tensor  # classes, int64 [N]; read by the linear probe alone
    eids: Tensor  # the training edges' ids in ``graph``, int64 [E]; self loops are left out
    query: Tensor  # first ends of the training edges, int64 [E]
    positive: Tensor  # their second ends, int64 [E]
    split: RankingSplit  # the held-out part
    known: KnownEdges  # the edges of ``graph``

    def metrics(self, h: Tensor, part: str) -> dict[str, float]:
        """MAP, NDCG and Hits@1 of embeddings [N, D] on ``val`` or ``test``, ties averaged."""
        split = self.split
        if part == "val":
            rank = candidate_ranking(h, split.val_query, split.val_candidates)
        else:
            rank = candidate_ranking(h, split.test_query, split.test_candidates)
        found = ranking_metrics(rank, hits=(1,))
        return {"MAP": found["MRR"], "NDCG": found["NDCG"], "Hits@1": found["Hits@1"]}


def _prepared(features: Tensor, kind: str) -> Tensor:
    if kind == "binary":
        return (features != 0).float()
    return normalize(features, dim=1) if kind == "unit" else features


def load_problem(dataset: str, training: Training, seed: int, folders: Folders) -> Problem:
    """Load and split a data set; ``seed`` is that of the split, where it is our own."""
    data = benchmark_data(dataset, folders.data)
    if training.official:
        if folders.splits is None:
            raise ValueError("splits: the cell uses the published split, but no folder was given")
        split = official_split(os.fspath(folders.splits), dataset)
    else:
        split = split_directed(data, seed=seed)
    src, dst = split.message_edges()
    graph = dgl.graph((src, dst), num_nodes=data.num_nodes)
    messages = graph if training.encoder == "sage" else dgl.add_self_loop(graph)
    pairs = split.train[:, split.train[0] != split.train[1]]
    return Problem(
        graph=graph,
        messages=messages,
        features=SparseFeatures(_prepared(data.features, training.features)),
        labels=data.labels,
        eids=graph.edge_ids(pairs[0], pairs[1]),
        query=pairs[0],
        positive=pairs[1],
        split=split,
        known=KnownEdges(src, dst, data.num_nodes),
    )
