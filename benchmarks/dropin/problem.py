"""A data set made ready for protocol B: graphs, features, the split, fixed candidates.

Data sets and features are kept in memory for the next cell of the same process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import dgl
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.common.training import benchmark_data, reverse_ids
from benchmarks.dropin.config import Recipe
from dgl_dmns.core import KnownEdges
from dgl_dmns.data import EdgeSplit, GraphData, split_pairs
from dgl_dmns.evaluate import heart_negatives

__all__ = ["Problem", "load_problem", "prepared_features"]

NINE = 9


@dataclass(frozen=True, eq=False)
class Problem:
    """All that a cell needs."""

    data: GraphData  # the data set
    split: EdgeSplit  # its pairs
    graph: Any  # the training graph, both directions, no self loops; samplers know its edges
    # the graph that the encoder runs on, self loops appended for GCN and GAT, so that an edge of
    # ``graph`` has the same id in both
    messages: Any
    reverse: Tensor  # id of the reverse of each edge of ``graph``, int64 [E]
    features: Tensor  # of the nodes, float32 [N, F]; ids, int64 [N], where the graph has none
    held: KnownEdges  # the validation and test edges, both directions
    nine: dict[str, Tensor]  # the fixed uniform negatives of ``val`` and ``test``, int64 [V, 9]
    heart: Tensor | None  # HeaRT's negatives of the test edges, int64 [2, V, n / 2], or None


def load_problem(dataset: str, recipe: Recipe, seed: int, folder: str | None) -> Problem:
    """Load and split a data set, by ``seed``; ``folder`` is DGL's cache, by default its own."""
    data = benchmark_data(dataset, folder)
    nodes = data.num_nodes
    split = split_pairs(data, val=recipe.val, test=recipe.test, seed=seed)
    src, dst = split.message_edges()
    graph = dgl.graph((src, dst), num_nodes=nodes)
    held = torch.cat([split.val, split.test], dim=1)
    known = KnownEdges(data.src, data.dst, nodes)
    generator = torch.Generator().manual_seed(seed)
    return Problem(
        data=data,
        split=split,
        graph=graph,
        messages=graph if recipe.encoder == "sage" else dgl.add_self_loop(graph),
        reverse=reverse_ids(src, dst, nodes),
        features=_features(dataset, folder, recipe.features, recipe.width),
        held=KnownEdges(
            torch.cat([held[0], held[1]]), torch.cat([held[1], held[0]]), nodes, exclude_self=False
        ),
        nine={
            part: known.uniform(getattr(split, part)[0], NINE, generator=generator)
            for part in ("val", "test")
        },
        heart=_heart(dataset, folder, recipe.val, recipe.test, seed, recipe.heart),
    )


@lru_cache(maxsize=16)
def _heart(
    dataset: str, folder: str | None, val: float, test: float, seed: int, n: int
) -> Tensor | None:
    """HeaRT's negatives, which take a while and are the same for all rows of a seed."""
    if n == 0:
        return None
    data = benchmark_data(dataset, folder)
    split = split_pairs(data, val=val, test=test, seed=seed)
    observed = dgl.graph(split.message_edges(), num_nodes=data.num_nodes).adj_tensors("csr")[:2]
    return heart_negatives(split.test, observed, data.csr(), data.features, n)


@lru_cache(maxsize=1)
def _features(dataset: str, folder: str | None, kind: str, width: int) -> Tensor:
    x = benchmark_data(dataset, folder).features
    return prepared_features(x, kind, width) if x.shape[1] else torch.arange(len(x))


def prepared_features(x: Tensor, kind: str, width: int) -> Tensor:
    """Features [N, F] in the form ``kind`` that a recipe asks for, float32 [N, F'].

    ``width`` is the number of principal directions kept, at most N and F.
    """
    if kind == "stored":
        return x
    if kind == "pca-unit" and x.shape[1] <= width:
        return normalize(x, dim=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, _ = torch.pca_lowrank(x, q=min(width, *x.shape), niter=4)
    if kind == "pca-white":
        return u[:, s > 1e-5 * s[0]] * math.sqrt(len(x))
    x = u * s
    if kind == "pca-unit":
        return normalize(x, dim=1)
    return x / x.square().sum(1).mean().sqrt() if kind == "pca-scaled" else x
