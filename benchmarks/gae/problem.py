"""The recipe, the rows of the table, and a data set made ready for them.

A data set comes with one shared set of non-edges a part, against which Hits@K is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dgl
import torch
from torch import Tensor

from benchmarks.common.rows import Row
from benchmarks.common.training import benchmark_data, reverse_ids
from dgl_dmns.core import Density, KnownEdges
from dgl_dmns.data import EdgeSplit, GraphData, split_pairs

__all__ = ["ROWS", "Problem", "Recipe", "load_problem"]


@dataclass(frozen=True)
class Recipe:
    """A graph autoencoder as tuned by Ma et al. (arXiv 2411.03845), in a smaller size."""

    hidden: int = 64  # width D of the embeddings and of the decoder
    steps: int = 4  # of propagation
    decoder_layers: int = 4  # linear layers of the decoder
    dropout: float = 0.5  # after each propagation and in the decoder
    k: int = 3  # negatives per edge
    batch_size: int = 1024  # positives in a batch; their edges carry no messages in it
    learning_rate: float = 2e-3  # of AdamW
    weight_decay: float = 1e-2  # of AdamW
    clip: float = 1.0  # largest norm of the gradient
    epochs: int = 300  # at most this many
    patience: int = 30  # epochs without better validation Hits@100 before training stops
    val: float = 0.1  # share of the pairs for validation
    test: float = 0.1  # share of the pairs for test
    refresh_every: int = 1  # epochs between refreshes of the samplers that follow the encoder


# Densities ask for no scores; they are drawn by those of the generator alone.
_DENSITY = {"rule": Density(), "scorer": None}
_CALIBRATED = "DMNS, density, calibrated"

ROWS: dict[str, Row] = {
    "global": Row("both ends uniform (the recipe's own)", "dgl, both ends"),
    "per-source": Row("uniform, per source", "dgl"),
    "self-adversarial": Row("self-adversarial", "self-adversarial"),
    "dmns": Row("DMNS", "dmns"),
    "calibrated": Row("DMNS, calibrated", "dmns", loss="calibrated"),
    "density-calibrated": Row(_CALIBRATED, "dmns", _DENSITY, "calibrated"),
    "both-ends-calibrated": Row(
        f"{_CALIBRATED}, both ends drawn", "dmns", {**_DENSITY, "source": "uniform"}, "calibrated"
    ),
}
"""By command-line names; differences are taken to the first."""


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
    """Load and split a data set, by ``seed``; ``folder`` is DGL's cache, by default its own."""
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
