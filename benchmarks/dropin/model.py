"""Encoders from DGL's own convolutions, on blocks and on whole graphs, and two scorers.

Symbols: N nodes, F features, D hidden width.
"""

from __future__ import annotations

from typing import Any

import dgl.nn.pytorch as dglnn
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dgl_dmns.core import dot_score

__all__ = ["DotScorer", "Encoder", "MLPScorer", "make_scorer"]


class Encoder(nn.Module):
    """Convolutions, ``sage`` (mean), ``gcn`` or ``gat`` (one head), and ReLU and dropout between.

    GCN averages over incoming edges (``norm="right"``): DGL's symmetric norm counts the out-edges
    that a block happens to hold, so that a block and the whole graph would disagree. GCN and GAT
    expect self loops in the graph; a node whose drawn neighbours are all left out of a block, since
    they are the batch's own edges, has no message there.

    With a ``temperature`` embeddings get the norm ``temperature ** -0.5``, so that their inner
    product is the cosine over the temperature. Without features (``in_feats`` 0) nodes have learned
    vectors.

    Raises:
        ValueError: for an unknown kind.
    """

    def __init__(
        self,
        kind: str,
        in_feats: int,
        hidden: int,
        layers: int,
        dropout: float,
        temperature: float | None = None,
        num_nodes: int = 0,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.own = None if in_feats else nn.Embedding(num_nodes, hidden)
        widths = [in_feats or hidden] + [hidden] * (layers - 1)
        self.layers = nn.ModuleList(_convolution(kind, width, hidden) for width in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        """Embeddings of the output nodes, shape [N', D].

        ``graph`` is the whole graph, or a list of blocks, one a layer; ``x`` has the features of
        the input nodes, shape [N, F], or for learned vectors their ids, int64 [N].
        """
        blocks = graph if isinstance(graph, list) else [graph] * len(self.layers)
        if self.own is not None:
            x = self.own(x)
        for block, layer in zip(blocks, self.layers):
            x = layer(block, x).flatten(1)
            if layer is not self.layers[-1]:
                x = self.dropout(torch.relu(x))
        if self.temperature is not None:
            x = normalize(x, dim=-1) * self.temperature**-0.5
        return x


def _convolution(kind: str, width: int, hidden: int) -> nn.Module:
    made: nn.Module
    if kind == "sage":
        made = dglnn.SAGEConv(width, hidden, "mean")
    elif kind == "gcn":
        made = dglnn.GraphConv(width, hidden, norm="right", allow_zero_in_degree=True)
    elif kind == "gat":
        made = dglnn.GATConv(width, hidden, 1, allow_zero_in_degree=True)
    else:
        raise ValueError(f"encoder: expected 'sage', 'gcn' or 'gat', got {kind!r}")
    return made


class DotScorer(nn.Module):
    """Inner products of broadcastable embeddings [.., D]: shape [..]."""

    def forward(self, h_query: Tensor, h_candidate: Tensor) -> Tensor:
        return dot_score(h_query, h_candidate)


class MLPScorer(nn.Module):
    """Two layers on the product of both ends: broadcastable embeddings [.., D] to [..]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, h_query: Tensor, h_candidate: Tensor) -> Tensor:
        score: Tensor = self.layers(h_query * h_candidate)
        return score.squeeze(-1)


def make_scorer(kind: str, hidden: int) -> nn.Module:
    """The scorer of a recipe.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in ("dot", "mlp"):
        raise ValueError(f"scorer: expected 'dot' or 'mlp', got {kind!r}")
    return DotScorer() if kind == "dot" else MLPScorer(hidden)
