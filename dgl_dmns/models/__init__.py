r"""Small models of users and items, of knowledge graphs, and of graphs of one type.

All but the homogeneous `GraphSAGE` embed the two node types of `dgl_dmns.data.queries`, and are
called alike, in the training loop and by samplers:

    h = model(blocks, input_nodes)  # of a batch, as a loader returns both
    h = model(g, {"query": query_ids, "item": item_ids})  # of the whole graph, all ids in order

Symbols: ``q`` the embedding of a query, ``u`` of an item, D their width; ``e``, ``r`` those of an
entity and a relation. ``model.score(q, u)`` is what the model means by a score: for all but
`TransE` the inner product, since queries are composed of entity and relation beforehand.

Hand ``scorer=model.scorer`` to samplers and losses.

With ``temperature=t``, embeddings are normalised and divided by ``sqrt(t)``: the inner product is
then the cosine over t, in the loss and for samplers that draw by the softmax of scores.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch

from dgl_dmns._compat import require_dgl
from dgl_dmns.checks import type_name
from dgl_dmns.data import QueryGraph, exclusion
from dgl_dmns.models.base import SIDES, Model
from dgl_dmns.models.knowledge import RGCN, ComplEx, DistMult, KnowledgeModel, TransE
from dgl_dmns.models.shops import GraphSAGE, LightGCN, MatrixFactorization

__all__ = [
    "MODELS",
    "RGCN",
    "ComplEx",
    "DistMult",
    "GraphSAGE",
    "LightGCN",
    "MatrixFactorization",
    "Model",
    "TransE",
    "block_sampler",
    "edge_loader",
    "make_model",
]

_dgl: Any = require_dgl()

MODELS: dict[str, Callable[..., Any]] = {
    "mf": MatrixFactorization,
    "lightgcn": LightGCN,
    "sage": GraphSAGE,
    "distmult": DistMult,
    "complex": ComplEx,
    "transe": TransE,
    "rgcn": RGCN,
}
"""Models by the names that the command line and the benchmarks have for them."""


def make_model(name: str, g: Any, queries: QueryGraph | None = None, **options: Any) -> Any:
    """A model by its name in `MODELS`.

    Args:
        name: which one.
        g: the training graph: of `shop_graph`, of `QueryGraph.graph`, or of one node type (sage).
        queries: of a knowledge graph; the models of one need them, the others leave them.
        **options: keyword arguments of the model's class, such as ``width`` and ``temperature``.

    Raises:
        ValueError: for another name, or a model that does not fit the graph.
        TypeError: for an option that the model does not take.
    """
    if name not in MODELS:
        raise ValueError(f"name: expected one of {', '.join(MODELS)}, got {name!r}")
    made = MODELS[name]
    if issubclass(made, KnowledgeModel):  # type: ignore[arg-type]
        if queries is None:
            raise ValueError(
                f"queries: model {name!r} is for a knowledge graph; pass the QueryGraph that the "
                "graph was made with, or take mf, lightgcn or sage"
            )
        return made(queries, **options)
    single = len(g.ntypes) == 1
    if (single and name != "sage") or (not single and name != "mf" and "from" not in g.etypes):
        raise ValueError(
            f"name: model {name!r} does not fit a graph with edge types {g.canonical_etypes}; "
            "lightgcn and sage are for shop_graph(...), sage also for a graph of one type, and mf "
            "for queries and items of any kind"
        )
    if name == "sage":
        return made(g.num_nodes() if single else {n: g.num_nodes(n) for n in SIDES}, **options)
    if name == "lightgcn":
        return made(g, **options)
    return made(g.num_nodes("query"), g.num_nodes("item"), **options)


class _SeedsAlone(_dgl.dataloading.BlockSampler):  # type: ignore[misc]
    """No neighbours: the nodes of a batch, and no blocks."""

    def sample_blocks(self, g: Any, seed_nodes: Any, exclude_eids: Any = None) -> Any:
        return seed_nodes, seed_nodes, []

    def assign_lazy_features(self, result: Any) -> Any:
        return result


def block_sampler(model: Any, fanout: int = -1, **options: Any) -> Any:
    """DGL's sampler of the neighbours that a model reads, for ``as_edge_prediction_sampler``.

    ``NeighborSampler([])`` fails in an edge loader, so a model without hops has one that returns
    ``blocks == []``.

    Args:
        model: a model of this module.
        fanout: neighbours for each node and edge type; -1 for all.
        **options: keyword arguments of ``dgl.dataloading.NeighborSampler``.

    Raises:
        TypeError: for another model, also one that ``DistributedDataParallel`` has wrapped.
    """
    if not (isinstance(model, torch.nn.Module) and hasattr(model, "num_layers")):
        raise TypeError(
            f"model: expected one of dgl_dmns.models, got {type_name(model)}; pass model.module "
            "where it is wrapped"
        )
    if not model.num_layers:
        return _SeedsAlone()
    made, fanouts = _dgl.dataloading.NeighborSampler, model.fanouts(fanout)
    if any(isinstance(one, dict) for one in fanouts) and "fused" in signature(made).parameters:
        options = {**options, "fused": False}  # DGL's fused sampling drops nodes where some are 0
    return made(fanouts, **options)


def edge_loader(model: Any, g: Any, negatives: Any, fanout: int = -1, **options: Any) -> Any:
    """DGL's loader of all training pairs of queries and items, in another order each epoch.

    It samples the neighbours that the model reads, see `block_sampler`, and takes the edges of a
    batch out of its messages, see `dgl_dmns.data.exclusion`.

    Args:
        model: a model of this module.
        g: the training graph, of `shop_graph` or `QueryGraph.graph`.
        negatives: a sampler.
        fanout: neighbours for each node and edge type; -1 for all.
        **options: keyword arguments of ``dgl.dataloading.DataLoader``, such as ``batch_size``.

    Raises:
        TypeError: for another model, see `block_sampler`.
        ValueError: for another graph.
    """
    if "to" not in g.etypes:
        raise ValueError(
            f"g: expected a graph of shop_graph(...) or QueryGraph.graph(...), got edge types "
            f"{g.canonical_etypes}; for others use dgl.dataloading.as_edge_prediction_sampler"
        )
    flow = _dgl.dataloading.as_edge_prediction_sampler(
        block_sampler(model, fanout),
        negative_sampler=negatives,
        **(exclusion(g) if model.num_layers else {}),
    )
    eids = {"to": torch.arange(g.num_edges("to"), dtype=g.idtype)}
    return _dgl.dataloading.DataLoader(g, eids, flow, **{"shuffle": True, **options})
