"""Two-layer encoders from DGL's own convolutions, L2-normalised, on sparse fixed features.

The features are fixed and sparse (bags of words), so the first layer's product ``X W`` is taken as
a sparse one: on Coauthor-CS (18333 x 6805), a dense one would rule the cost of an epoch.  The
layers are DGL's; only this product is computed elsewhere.
"""

from __future__ import annotations

import warnings
from typing import Any

import dgl.nn.pytorch as dglnn
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

__all__ = ["Encoder", "SparseFeatures"]


class _SparseProduct(torch.autograd.Function):
    """``X W`` for a fixed sparse X; the gradient of W is a sparse product too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, x_t: Tensor, weight: Tensor) -> Tensor:
        ctx.x_t = x_t
        return x @ weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.x_t @ grads[0].contiguous()


class SparseFeatures:
    """Fixed node features in compressed rows, and their transpose.

    Args:
        dense: features, shape [N, F].
    """

    def __init__(self, dense: Tensor) -> None:
        self.shape = dense.shape
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            entries = dense.to_sparse()  # straight to rows is ten times as slow
            self.x = entries.to_sparse_csr()
            self.x_t = entries.t().coalesce().to_sparse_csr()

    def times(self, weight: Tensor) -> Tensor:
        """``X W`` for W of shape [F, D]: shape [N, D], differentiable in W."""
        apply: Any = _SparseProduct.apply  # it carries no annotations
        product: Tensor = apply(self.x, self.x_t, weight)
        return product


class _FeatureLinear(nn.Module):
    """A linear layer that is bound to the features; what it is called with only marks the rows."""

    def __init__(self, features: SparseFeatures, width: int, bias: bool) -> None:
        super().__init__()
        self.features = features
        self.weight = nn.Parameter(torch.empty(features.shape[1], width))
        nn.init.xavier_uniform_(self.weight)
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, _: Tensor) -> Tensor:
        product = self.features.times(self.weight)
        return product if self.bias is None else product + self.bias


class Encoder(nn.Module):
    """``gcn``, ``gat`` (one head) or ``sage`` (mean): two convolutions and L2-normalised output.

    An activation, ``relu`` or ``none``, and dropout lie between them.

    Raises:
        ValueError: for an unknown kind.
    """

    def __init__(
        self,
        kind: str,
        features: SparseFeatures,
        hidden: int,
        dropout: float,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.first: Any
        self.second: Any
        self.input: _FeatureLinear | None = None
        if kind == "gcn":
            # GraphConv multiplies by W first where that narrows; here that is done outside.
            self.input = _FeatureLinear(features, hidden, bias=False)
            self.first = dglnn.GraphConv(hidden, hidden, weight=False)
            self.second = dglnn.GraphConv(hidden, hidden)
        elif kind == "gat":
            self.first = dglnn.GATConv(hidden, hidden, 1)
            self.first.fc = _FeatureLinear(features, hidden, bias=False)
            self.second = dglnn.GATConv(hidden, hidden, 1)
        elif kind == "sage":
            # An input wider than the output makes SAGEConv multiply before it aggregates.
            self.first = dglnn.SAGEConv(hidden + 1, hidden, "mean")
            self.first.fc_self = _FeatureLinear(features, hidden, bias=False)
            self.first.fc_neigh = _FeatureLinear(features, hidden, bias=False)
            self.second = dglnn.SAGEConv(hidden, hidden, "mean")
        else:
            raise ValueError(f"encoder: expected 'gcn', 'gat' or 'sage', got {kind!r}")
        self.rows = torch.zeros(features.shape[0], 1)
        self.between = nn.Sequential(
            nn.ReLU() if activation == "relu" else nn.Identity(), nn.Dropout(dropout)
        )

    def forward(self, graph: Any) -> Tensor:
        """Embeddings of unit norm, shape [N, hidden]."""
        start = self.rows if self.input is None else self.input(self.rows)
        h = self.between(self.first(graph, start).flatten(1))
        return normalize(self.second(graph, h).flatten(1), dim=1)
