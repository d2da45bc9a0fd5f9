"""Models of knowledge graphs, whose queries are composed of an entity and a relation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dgl_dmns.checks import as_integer
from dgl_dmns.data import QueryGraph
from dgl_dmns.models.base import Ids, Model, blocks_of, neighbour_mean, table_of

__all__ = ["RGCN", "ComplEx", "DistMult", "KnowledgeModel", "TransE"]


class KnowledgeModel(Model):
    """Vectors of entities and relations, of which queries are composed; inverses have their own."""

    entity_of: Tensor
    relation_of: Tensor

    def __init__(
        self,
        queries: QueryGraph,
        width: int = 128,
        *,
        temperature: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(temperature, dropout)
        self.register_buffer("entity_of", queries.entity)
        self.register_buffer("relation_of", queries.relation)
        self.entity = table_of("num_entities", queries.num_entities, width)
        self.relation = table_of("num_relations", 2 * queries.num_relations, width)

    def forward(self, graph: Any, ids: Ids) -> dict[str, Tensor]:
        """Embeddings [n, D] of ids [n] by node type; the graph does not count."""
        query = ids["query"]
        e = self.dropped(self.entity(self.entity_of[query]))
        r = self.dropped(self.relation(self.relation_of[query]))
        return self.finished(self.composed(e, r), self.dropped(self.entity(ids["item"])))

    @staticmethod
    def composed(e: Tensor, r: Tensor) -> Tensor:
        """Queries [n, D] of vectors of their entities and relations [n, D]."""
        raise NotImplementedError


class DistMult(KnowledgeModel):
    """The score ``sum_i e_i r_i u_i`` (Yang et al., ICLR 2015), where ``q = e * r``.

    Args:
        queries: the queries of the knowledge graph.
        width: D.
        temperature: see the top of this module; None for plain scores.
        dropout: share of the entries of vectors of entities and relations that training sets to 0.
    """

    @staticmethod
    def composed(e: Tensor, r: Tensor) -> Tensor:  # noqa: D102
        return e * r


class ComplEx(KnowledgeModel):
    """The score ``Re(sum_i e_i r_i conj(u_i))`` of complex vectors (Trouillon et al., ICML 2016).

    Real parts stand before imaginary ones in D = 2 * width real numbers, and ``q = e * r``: the
    score is the inner product of these.

    Args:
        queries: as in `DistMult`, like ``temperature`` and ``dropout``.
        width: complex numbers of a vector.
    """

    def __init__(
        self,
        queries: QueryGraph,
        width: int = 64,
        *,
        temperature: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        double = 2 * as_integer("width", width, 1)
        super().__init__(queries, double, temperature=temperature, dropout=dropout)

    @staticmethod
    def composed(e: Tensor, r: Tensor) -> Tensor:  # noqa: D102
        (e_re, e_im), (r_re, r_im) = e.chunk(2, dim=1), r.chunk(2, dim=1)
        return torch.cat([e_re * r_re - e_im * r_im, e_re * r_im + e_im * r_re], dim=1)


def _L1(h_query: Tensor, h_candidate: Tensor) -> Tensor:  # noqa: N802
    distance: Tensor = (h_query - h_candidate).abs().sum(-1)
    return -distance


def _L2(h_query: Tensor, h_candidate: Tensor) -> Tensor:  # noqa: N802
    distance: Tensor = torch.linalg.vector_norm(h_query - h_candidate, dim=-1)
    return -distance


class TransE(KnowledgeModel):
    """The score ``-|e + r - u|``, a negative distance (Bordes et al., NIPS 2013).

    Hand ``scorer=model.score`` to the sampler and to the loss. A distance is at least 0, so a loss
    of single scores, such as binary cross-entropy, needs a margin; those that compare scores do
    not.

    Args:
        queries: as in `DistMult`, like ``width`` and ``dropout``.
        norm: 1 or 2, of the distance.
        temperature: positive; scores are divided by it; None for 1.
    """

    score = staticmethod(_L2)

    def __init__(
        self,
        queries: QueryGraph,
        width: int = 128,
        *,
        norm: int = 2,
        temperature: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(queries, width, temperature=temperature, dropout=dropout)
        if norm not in (1, 2):
            raise ValueError(f"norm: expected 1 or 2, got {norm!r}")
        if norm == 1:
            self.score = _L1

    def scaled(self, h: Tensor) -> Tensor:  # noqa: D102
        # A distance scales as its ends do.
        return h if self.temperature is None else h / self.temperature

    @staticmethod
    def composed(e: Tensor, r: Tensor) -> Tensor:  # noqa: D102
        return e + r


class RGCN(KnowledgeModel):
    """An R-GCN over entities, DistMult on top (Schlichtkrull et al., ESWC 2018).

    A layer is ``W h_u + mean over (e, r) to u of W_r h_e``, with ``W_r`` a sum of a few shared
    matrices (equation 3), and a ReLU before the next. Each takes two hops of a graph of
    `QueryGraph.graph`: by ``to`` edges to entities, and by ``of`` edges from these to queries.

    Args:
        queries: as in `DistMult`, like ``width`` and ``temperature``.
        layers: number of layers; ``num_layers`` is twice as many hops.
        bases: matrices that relations share.
        dropout: of vectors of entities before each layer.
    """

    def __init__(
        self,
        queries: QueryGraph,
        width: int = 128,
        layers: int = 1,
        *,
        bases: int = 4,
        temperature: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(queries, width, temperature=temperature, dropout=dropout)
        self.num_layers = 2 * as_integer("layers", layers, 1)
        bases = as_integer("bases", bases, 1)
        self.layers = nn.ModuleList(
            _Relational(width, 2 * queries.num_relations, bases) for _ in range(layers)
        )

    def fanouts(self, fanout: int) -> list[Any]:  # noqa: D102
        return [{"to": fanout, "of": 0}, {"to": 0, "of": 1}] * len(self.layers)

    @staticmethod
    def composed(e: Tensor, r: Tensor) -> Tensor:  # noqa: D102
        return e * r

    def forward(self, graph: Any, ids: Ids) -> dict[str, Tensor]:
        """Embeddings [n, D] by node type: of the output nodes of blocks, or of all of a graph."""
        blocks = blocks_of(graph, self.num_layers)
        relation = self.relation_of[ids["query"]]
        item = self.entity(ids["item"])
        query = self.entity(self.entity_of[ids["query"]])  # vectors of their entities
        for layer, to, of in zip(self.layers, blocks[::2], blocks[1::2]):
            query, item = self.dropped(query), self.dropped(item)
            item = layer(to, query, relation[: len(query)], item)
            if layer is not self.layers[-1]:
                item = torch.relu(item)
            query, item = neighbour_mean(of, "of", item), item[: of.num_dst_nodes("item")]
        r = self.relation(relation[: len(query)])
        return self.finished(self.composed(query, r), item)


class _Relational(nn.Module):
    """A layer of `RGCN`: what entities get of queries that lead to them, and of themselves."""

    def __init__(self, width: int, relations: int, bases: int) -> None:
        super().__init__()
        self.own = nn.Linear(width, width, bias=False)
        self.basis = nn.Parameter(torch.empty(bases, width, width))
        self.share = nn.Parameter(torch.empty(relations, bases))
        for weight in (self.basis, self.share):
            nn.init.xavier_uniform_(weight)

    def forward(self, block: Any, query: Tensor, relation: Tensor, item: Tensor) -> Tensor:
        share = self.share[relation]
        message = torch.stack(
            [share[:, b : b + 1] * (query @ matrix) for b, matrix in enumerate(self.basis)]
        ).sum(0)
        own: Tensor = self.own(item[: block.num_dst_nodes("item")])
        return own + neighbour_mean(block, "to", message)
