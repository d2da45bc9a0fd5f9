"""A data set made ready: graphs, the split, and one shared set of non-edges a part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dgl
import torch
from torch import Tensor

from benchmarks.common.training import benchmark_data, reverse_ids
from benchmarks.gae.config import Recipe
from dgl_dmns.core import KnownEdges
from dgl_dmns.data import EdgeSplit, GraphData, split_pairs

__all__ = ["Problem", "load_problem"]


@dataclass(frozen=True, eq=False)
class Problem:
    """All that a cell needs."""

    data: GraphData  # the data set
    split: EdgeSplit  # its pairs
    graph: Any  # the training graph, both directions
    reverse: Tensor  # id of the reverse of each edge of ``graph``, int64 [E]
    forward: Tensor  # ids of one direction of each training pair, int64 [E / 2]
    # of ``val`` and ``test``, int64 [2, V]: uniform pairs that are no known edge, as many as
    # positives, against which Hits@K is taken
    non_edges: dict[str, Tensor]


def load_problem(dataset: str, recipe: Recipe, seed: int, folder: str | None) -> Problem:
    """Load and split a data set; ``tiny`` is a small generated graph for tests.

    Args:
        dataset: ``tiny`` or a name that `dgl_dmns.data.load_dataset` knows.
        recipe: decides about shares.
        seed: of the split and of the non-edges.
        folder: DGL's cache; None: its own.
    """
    data = benchmark_data(dataset, folder)
    nodes = data.num_nodes
    split = split_pairs(data, val=recipe.val, test=recipe.test, seed=seed)
    src, dst = split.message_edges()
    known = KnownEdges(data.src, data.dst, nodes)
    generator = torch.Generator().manual_seed(seed)

    def non_edges(count: int) -> Tensor:
        first = torch.randint(nodes, (count,), generator=generator)
        return torch.stack([first, known.uniform(first, 1, generator=generator).squeeze(1)])

    return Problem(
        data=data,
        split=split,
        graph=dgl.graph((src, dst), num_nodes=nodes),
        reverse=reverse_ids(src, dst, nodes),
        forward=(src < dst).nonzero().squeeze(1),
        non_edges={part: non_edges(getattr(split, part).shape[1]) for part in ("val", "test")},
    )
