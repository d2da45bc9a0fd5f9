"""The link predictor of the command line: GraphSAGE and an inner product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dgl_dmns._compat import require_dgl

__all__ = ["SAGE", "edge_score"]

_SAGEConv: Any = require_dgl().nn.SAGEConv


class SAGE(nn.Module):
    """GraphSAGE with mean aggregation; nodes without features have a vector each, learned.

    Args:
        num_nodes: number of nodes N.
        features: width of the features; 0 for learned vectors.
        hidden: width of the layers and the embeddings.
        layers: number of layers.
    """

    def __init__(self, num_nodes: int, features: int, hidden: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.own = None if features else nn.Embedding(num_nodes, hidden)
        if self.own is not None:
            nn.init.normal_(self.own.weight, std=hidden**-0.5)
        widths = [features or hidden, *[hidden] * layers]
        self.layers = nn.ModuleList([_SAGEConv(a, b, "mean") for a, b in zip(widths, widths[1:])])

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        """Embeddings of the output nodes.

        Args:
            graph: blocks of a minibatch, or the whole graph.
            x: features of the input nodes, shape [M, F]; their ids, int64 [M], for learned vectors.

        Returns:
            Embeddings, shape [N, hidden].
        """
        blocks = graph if isinstance(graph, list) else [graph] * len(self.layers)
        if self.own is not None:
            x = self.own(x)
        for block, layer in zip(blocks, self.layers):
            x = layer(block, x)
            if layer is not self.layers[-1]:
                x = torch.relu(x)
        return x


def edge_score(graph: Any, h: Tensor) -> Tensor:
    """Inner products along the edges of a pair graph, shape [E]."""
    src, dst = graph.edges()
    return (h[src] * h[dst]).sum(-1)
