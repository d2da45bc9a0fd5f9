"""What a run of the scale study needs: a graph, its split, and features smoothed over neighbours.

Generated graphs have communities within communities. Nodes are the leaves of a tree with
``_BRANCHES`` children each, in order, so that a community of any depth is a range of numbers. An
edge chooses a node by its weight, a depth, and another node of that community by weight; weights
have a heavy tail. A node's features are a sum of random vectors of its communities, and noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.common.training import benchmark_data
from dgl_dmns.core import KnownEdges
from dgl_dmns.data import EdgeSplit, GraphData, simple_undirected, split_pairs

__all__ = ["GENERATED", "Problem", "load_problem", "nested_graph"]

GENERATED = {"nested-10k": 10_000, "nested-100k": 100_000, "nested-1m": 1_000_000}
"""Generated graphs by name, and their numbers of nodes."""

_BRANCHES = 8
_LEAF = 24  # nodes in the smallest communities, about
_INWARD = 0.75  # share of the edges of a community that stay in one of its children
_TAIL, _HEAVIEST = 1.5, 30.0  # exponent of the weights' density, less one; the largest weight
_WIDTH, _NOISE = 64, 1.0  # of the features; the standard deviation beside communities of 1
_HELD = 2000  # pairs for validation, and for the test, at most

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Problem:
    """All that a run needs."""

    num_nodes: int
    split: EdgeSplit  # its pairs
    src: Tensor  # training edges in both directions, int64 [E]
    dst: Tensor
    features: Tensor  # of the nodes and of what is one and two steps away, float32 [N, 3 F]
    csr: tuple[Tensor, Tensor]  # all edges, for filtered ranks


def nested_graph(num_nodes: int, seed: int = 0, mean_degree: float = 10.0) -> GraphData:
    """A graph with communities within communities, heavy-tailed degrees and features."""
    rng = np.random.default_rng(seed)
    depth = max(1, round(math.log(num_nodes / _LEAF, _BRANCHES)))
    weight = np.minimum((1.0 - rng.random(num_nodes)) ** (-1.0 / _TAIL), _HEAVIEST)
    below = np.concatenate([[0.0], np.cumsum(weight)])
    count = int(num_nodes * mean_degree / 2 * 1.1)  # some are drawn twice
    src = _by_weight(below, rng.random(count))
    level = np.full(count, depth)
    stays = rng.random((depth, count)) < _INWARD
    for at in range(depth):  # the first community that an edge leaves
        level = np.where((level == depth) & ~stays[at], at, level)
    parts = _BRANCHES ** level.astype(np.float64)
    group = np.floor(src * parts / num_nodes)
    begin = np.ceil(group * num_nodes / parts).astype(np.int64)
    end = np.ceil((group + 1) * num_nodes / parts).astype(np.int64)
    low, high = below[begin], below[np.minimum(end, num_nodes)]
    dst = _by_weight(below, (low + rng.random(count) * (high - low)) / below[-1])
    features = _NOISE * rng.standard_normal((num_nodes, _WIDTH), dtype=np.float32)
    for at in range(1, depth + 1):
        vectors = rng.standard_normal((_BRANCHES**at, _WIDTH), dtype=np.float32)
        features += vectors[np.arange(num_nodes) * _BRANCHES**at // num_nodes]
    order = torch.from_numpy(rng.permutation(num_nodes))  # ids say nothing
    found = torch.empty(num_nodes, _WIDTH)
    found[order] = torch.from_numpy(features)
    ends = simple_undirected(order[torch.from_numpy(src)], order[torch.from_numpy(dst)])
    return GraphData("nested", num_nodes, *ends, found, torch.zeros(num_nodes).long(), *ends)


def _by_weight(below: _Floats, point: _Floats) -> npt.NDArray[np.int64]:
    """The node under each point of [0, 1) of the cumulative weights [N + 1]."""
    found: npt.NDArray[np.int64] = np.searchsorted(below, point * below[-1], side="right") - 1
    return np.minimum(found, len(below) - 2)


def load_problem(dataset: str, recipe: object, seed: int, folder: str | None) -> Problem:
    """Generate or load a data set, and split it by ``seed``; ``folder`` is DGL's cache."""
    nodes = GENERATED.get(dataset)
    data = benchmark_data(dataset, folder) if nodes is None else nested_graph(nodes)
    pairs = len(data.src) // 2
    val, test = min(0.05, _HELD / pairs), min(0.1, _HELD / pairs)
    split = split_pairs(data, val=val, test=test, seed=seed)
    src, dst = split.message_edges()
    near = KnownEdges(src, dst, data.num_nodes, exclude_self=False)
    steps = [normalize(data.features.float(), dim=1)]
    for _ in range(2):
        steps.append(_mean_of_neighbours(near, steps[-1]))
    x = torch.cat([normalize(part, dim=1) for part in steps], dim=1)
    return Problem(data.num_nodes, split, src, dst, x, data.csr())


def _mean_of_neighbours(near: KnownEdges, x: Tensor) -> Tensor:
    """Means [N, F] of the neighbours of every node; of none, its own."""
    adjacency = torch.sparse_csr_tensor(
        near.indptr.long(), near.indices.long(), torch.ones(near.indices.numel()), (len(x), len(x))
    )
    degree = near.degrees().unsqueeze(1)
    mean: Tensor = torch.where(degree > 0, adjacency @ x / degree.clamp(min=1), x)
    return mean
