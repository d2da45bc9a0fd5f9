"""What the models share: temperature, dropout, learned vectors, means over neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize

from dgl_dmns._compat import require_dgl
from dgl_dmns.checks import as_integer, as_number
from dgl_dmns.core import dot_score

__all__ = ["SIDES", "Ids", "Model", "blocks_of", "neighbour_mean", "table_of"]

_dgl: Any = require_dgl()
SIDES = ("query", "item")
Ids = Mapping[str, Tensor]
"""Ids of queries and items, int64, by node type."""


class Model(nn.Module):
    """What the models of queries and items share: temperature, dropout, and the way of scoring."""

    num_layers = 0  # hops of neighbours that a loader has to sample
    score = staticmethod(dot_score)

    def __init__(self, temperature: float | None, dropout: float) -> None:
        super().__init__()
        if temperature is not None and not 0 < as_number("temperature", temperature) < math.inf:
            raise ValueError(
                f"temperature: expected a positive, finite number or None, got {temperature}"
            )
        if not 0 <= as_number("dropout", dropout) < 1:
            raise ValueError(f"dropout: expected a number in [0, 1), got {dropout}")
        self.temperature, self.dropout = temperature, dropout

    @property
    def scorer(self) -> Any:
        """What samplers and losses take as ``scorer``; None for the inner product."""
        return None if self.score is dot_score else self.score

    def ends(self, h: Any, graph: Any) -> tuple[Tensor, Tensor]:
        """Embeddings of both ends of the edges of a batch's positive or negative graph, [E, D]."""
        if isinstance(h, Tensor):
            src, dst = graph.edges()
            return h[src], h[dst]
        query, item = graph.edges(etype="to")
        return h["query"][query], h["item"][item]

    def scores(self, h: Any, graph: Any) -> Tensor:
        """Scores of these edges, [E]; ``h`` is what the model returned for the batch."""
        score: Tensor = self.score(*self.ends(h, graph))
        return score

    def squares(self, h: Any, graph: Any) -> Tensor:
        """The mean of ``|q|^2 + |u|^2`` over these edges, a scalar; times a weight, it is DURA.

        Source: Zhang et al., "Duality-Induced Regularizer for Tensor Factorization Based Knowledge
        Graph Completion", NeurIPS 2020.
        """
        return torch.cat(self.ends(h, graph), dim=1).square().sum(1).mean()

    def fanouts(self, fanout: int) -> list[Any]:
        """Neighbours to sample in each hop, as ``dgl.dataloading.NeighborSampler`` takes them."""
        return [fanout] * self.num_layers

    def dropped(self, x: Tensor) -> Tensor:
        """With dropout, in training."""
        return dropout(x, self.dropout, self.training) if self.dropout else x

    def scaled(self, h: Tensor) -> Tensor:
        """Embeddings [n, D] with the temperature folded in."""
        if self.temperature is None:
            return h
        return normalize(h, dim=1) / math.sqrt(self.temperature)

    def finished(self, query: Tensor, item: Tensor) -> dict[str, Tensor]:
        """What a model returns, of embeddings before the temperature."""
        return {"query": self.scaled(query), "item": self.scaled(item)}


def table_of(name: str, count: int, width: int) -> nn.Embedding:
    """Learned vectors [count, width] of length about 1."""
    table = nn.Embedding(as_integer(name, count, 1), as_integer("width", width, 1))
    nn.init.normal_(table.weight, std=width**-0.5)
    return table


def blocks_of(graph: Any, hops: int) -> list[Any]:
    """Blocks as they are; a whole graph in place of each.

    Raises:
        ValueError: if a block's source nodes do not begin with its destination nodes, as those of
            DGL's fused sampling in several threads, where the fanout of an edge type is 0.
    """
    if not isinstance(graph, list):
        return [graph] * hops
    for block in graph:
        for ntype in block.dsttypes:
            src, dst = (side[ntype].data.get("_ID") for side in (block.srcnodes, block.dstnodes))
            if src is not None and dst is not None and not torch.equal(src[: len(dst)], dst):
                raise ValueError(
                    f"blocks: the source nodes of type {ntype!r} do not begin with the destination "
                    "nodes; sample them with block_sampler(model), or NeighborSampler(fused=False)"
                )
    return graph


def neighbour_mean(block: Any, etype: str, x: Tensor) -> Tensor:
    """The mean over the neighbours by edges of a type, [n, D]; 0 without any."""
    mean: Tensor = _dgl.ops.copy_u_mean(block[etype], x)
    return mean
