"""The autoencoder: a linear layer, propagation without weights, and a decoder of Hadamard products.

Source: Ma et al., "Reconsidering the Performance of GAE in Link Prediction", CIKM 2025, arXiv
2411.03845.  Symbols: N nodes, F features, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from dgl.nn.pytorch import GraphConv
from torch import Tensor, nn
from torch.nn.functional import dropout

__all__ = ["Decoder", "Encoder"]


class Encoder(nn.Module):
    """``sum_l a_l x_l`` with ``x_0 = X W + b``, ``x_{l+1} = dropout(norm(A x_l))``.

    A is the symmetrically normalised adjacency without self loops, as in LightGCN; the shares a_l
    are a learned softmax.

    Args:
        in_feats: F.
        width: D.
        steps: of propagation.
        drop: probability of dropout.
    """

    def __init__(self, in_feats: int, width: int, steps: int, drop: float) -> None:
        super().__init__()
        self.linear = nn.Linear(in_feats, width)
        self.propagate = GraphConv(
            width, width, norm="both", weight=False, bias=False, allow_zero_in_degree=True
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(steps))
        self.shares = nn.Parameter(torch.zeros(steps + 1))
        self.drop = drop

    def forward(self, graph: Any, features: Tensor) -> Tensor:
        """Embeddings, shape [N, D], of features [N, F]."""
        x = self.linear(features)
        shares = torch.softmax(self.shares, dim=0)
        total: Tensor = shares[0] * x
        for share, norm in zip(shares[1:], self.norms):
            x = dropout(norm(self.propagate(graph, x)), self.drop, self.training)
            total = total + share * x
        return total


class Decoder(nn.Module):
    """Logits of pairs: residual layers on the product of both ends.

    Args:
        width: D.
        layers: linear ones, the last to a single logit.
        drop: probability of dropout.
    """

    def __init__(self, width: int, layers: int, drop: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Dropout(drop), nn.Linear(width, width))
            for _ in range(layers - 1)
        )
        self.last = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, h_query: Tensor, h_candidate: Tensor) -> Tensor:
        """Broadcastable embeddings [.., D] to logits [..]."""
        z = h_query * h_candidate
        for block in self.blocks:
            z = z + block(z)
        logit: Tensor = self.last(z).squeeze(-1)
        return logit
