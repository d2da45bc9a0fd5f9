"""Shops and knowledge graphs as one bipartite DGL graph: queries, items, and the edges between.

The predicted edges have the type ``("query", "to", "item")``. In a shop, queries are users. In a
knowledge graph with N entities and R relations a query is a pair of an entity and a relation:
(head, r) asks for tails, and (tail, r + R) for heads, where r + R is the inverse of r. Items are
the entities. The known edges of a query are then what the "filtered" setting leaves out (Bordes et
al., "Translating Embeddings for Modeling Multi-relational Data", NIPS 2013, section 4.2), and one
sampler serves all relations.

Messages of a model need edges to queries, too. In a shop these are the purchases reversed,
``("item", "from", "query")``; in a knowledge graph each query has one edge from its own entity,
``("item", "of", "query")``, and inverse relations lead the other way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgl_dmns._compat import require_dgl
from dgl_dmns.checks import as_integer, check_ids

__all__ = ["QueryGraph", "exclusion", "shop_graph"]

_TO = ("query", "to", "item")


@dataclass(frozen=True, eq=False)
class QueryGraph:
    """The queries of a knowledge graph, numbered; make one with `from_triples`.

    Attributes:
        entity: the entity of each query, int64 [Q].
        relation: its relation, int64 [Q], 0 .. 2 R - 1, where r + R is the inverse of r.
        num_entities: N.
        num_relations: R.
    """

    entity: Tensor
    relation: Tensor
    num_entities: int
    num_relations: int

    @classmethod
    def from_triples(
        cls,
        heads: Tensor,
        relations: Tensor,
        tails: Tensor,
        num_entities: int,
        num_relations: int,
    ) -> QueryGraph:
        """Number the distinct queries of triples, two of each, by entity and relation.

        Args:
            heads: int64 [P], 0 .. N - 1. Give all triples, held-out ones included, so that these
                can be ranked; those have no edges in a graph of training pairs.
            relations: int64 [P], 0 .. R - 1.
            tails: int64 [P], 0 .. N - 1.
            num_entities: N.
            num_relations: R.

        Raises:
            TypeError: if ids are no integers.
            ValueError: if ids are out of range, or not as many of each.
        """
        count = as_integer("num_entities", num_entities, 1)
        kinds = as_integer("num_relations", num_relations, 1)
        _check_triples(heads, relations, tails, count, kinds)
        key = torch.cat(_keys(heads, relations, tails, kinds)).unique()
        entity = torch.div(key, 2 * kinds, rounding_mode="floor")
        return cls(entity, key - entity * 2 * kinds, count, kinds)

    @property
    def num_queries(self) -> int:
        """Q."""
        return len(self.entity)

    def pairs(self, heads: Tensor, relations: Tensor, tails: Tensor) -> Tensor:
        """The pairs (query, item) of triples, both sides.

        Args:
            heads: int64 [P].
            relations: int64 [P], 0 .. R - 1.
            tails: int64 [P].

        Returns:
            int64 [2, 2 P]: ((head, r), tail) of all triples, then ((tail, r + R), head) of all.

        Raises:
            TypeError, ValueError: as in `from_triples`; ValueError also for a query that is none of
                those numbered.
        """
        _check_triples(heads, relations, tails, self.num_entities, self.num_relations)
        own = self.entity * 2 * self.num_relations + self.relation
        key = torch.cat(_keys(heads, relations, tails, self.num_relations))
        query = torch.searchsorted(own, key).clamp(max=max(0, len(own) - 1))
        unknown = int((own[query] != key).sum()) if len(own) else len(key)
        if unknown:
            raise ValueError(
                f"heads, relations, tails: {unknown} of {len(key)} queries have no number; give "
                "from_triples() all triples, those of validation and test included"
            )
        return torch.stack([query, torch.cat([tails, heads]).long()])

    def graph(self, pairs: Tensor) -> Any:
        """The DGL graph of training pairs, for samplers, loaders and models.

        Args:
            pairs: int64 [2, 2 P], of `pairs`.

        Returns:
            A graph with node types ``query`` and ``item`` and their ids as ``feat``; edges ``to``
            in the order of ``pairs``, and ``of``, from the entity of each query to the query.

        Raises:
            ValueError: if ids are out of range.
        """
        for ids, count, what in zip(pairs, (self.num_queries, self.num_entities), _TO[::2]):
            check_ids("pairs", ids, count, f"ids of type {what!r}")
        edges = {
            _TO: (pairs[0], pairs[1]),
            ("item", "of", "query"): (self.entity, torch.arange(self.num_queries)),
        }
        return _made(edges, self.num_queries, self.num_entities)


def shop_graph(users: Tensor, items: Tensor, num_users: int, num_items: int) -> Any:
    """The DGL graph of a shop, whose queries are users.

    Args:
        users: int64 [P], who bought.
        items: int64 [P], what.
        num_users: number of users.
        num_items: number of items.

    Returns:
        A graph with node types ``query`` and ``item`` and their ids as ``feat``; edges ``to`` in
        the order given and, with the same ids, ``from``.

    Raises:
        TypeError: if ids are no integers.
        ValueError: if ids are out of range, or not as many of each.
    """
    check_ids("users", users, as_integer("num_users", num_users, 1), "users")
    check_ids("items", items, as_integer("num_items", num_items, 1), "items")
    if len(users) != len(items):
        raise ValueError(
            f"users, items: expected as many of each, got {len(users)} and {len(items)}; pass both "
            "ends of each purchase"
        )
    edges = {_TO: (users, items), ("item", "from", "query"): (items, users)}
    return _made(edges, num_users, num_items)


def exclusion(g: Any) -> dict[str, Any]:
    """What takes the edges of a batch, and their twins, out of its messages.

    ``as_edge_prediction_sampler(..., **exclusion(g))``: in a shop the purchase reversed, in a
    knowledge graph the same triple from its other end.

    Args:
        g: a graph of `shop_graph` or `QueryGraph.graph`.
    """
    if "from" in g.etypes:
        return {"exclude": "reverse_types", "reverse_etypes": {"to": "from", "from": "to"}}
    edges = g.num_edges("to")
    twin = (torch.arange(edges) + edges // 2) % max(1, edges)
    return {"exclude": "reverse_id", "reverse_eids": {_TO: twin.to(g.idtype)}}


def _made(edges: dict[Any, Any], queries: int, items: int) -> Any:
    g = require_dgl().heterograph(edges, num_nodes_dict={"query": queries, "item": items})
    for ntype in g.ntypes:
        g.nodes[ntype].data["feat"] = g.nodes(ntype)
    return g


def _keys(heads: Tensor, relations: Tensor, tails: Tensor, kinds: int) -> tuple[Tensor, Tensor]:
    """Numbers of the queries for tails and for heads, in order of entity and relation."""
    heads, relations, tails = heads.long(), relations.long(), tails.long()
    return heads * 2 * kinds + relations, tails * 2 * kinds + relations + kinds


def _check_triples(
    heads: Tensor, relations: Tensor, tails: Tensor, entities: int, kinds: int
) -> None:
    check_ids("heads", heads, entities, "entities", advice="check num_entities")
    check_ids("relations", relations, kinds, "relations", advice="check num_relations")
    check_ids("tails", tails, entities, "entities", advice="check num_entities")
    if not len(heads) == len(relations) == len(tails):
        raise ValueError(
            f"heads, relations, tails: expected as many of each, got {len(heads)}, "
            f"{len(relations)} and {len(tails)}; pass one of each for every triple"
        )
