"""The negative edges in whatever a loader returned, as pairs of node ids of the whole graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Union

from torch import Tensor

from dgl_dmns.checks import check_ids
from dgl_dmns.core import KnownEdges
from dgl_dmns.samplers.etypes import EdgeType, canonical_edge_type
from dgl_dmns.samplers.graphs import is_homogeneous

__all__ = ["NegativePairs", "checked_pairs", "edge_type_of_key", "negative_pairs", "pairs_of"]

Pair = tuple[Tensor, Tensor]
NegativePairs = Union[Pair, dict[Any, tuple[EdgeType, Pair]]]
"""Source and destination ids, each of shape [P]; or edge types and such pairs by a key."""


def negative_pairs(negatives: Any, held: Sequence[EdgeType]) -> NegativePairs:
    """The negative edges in a loader's output.

    Args:
        negatives: a negative graph of ``dgl.dataloading``; a GraphBolt minibatch; a pair of node id
            tensors of the whole graph, shape [P]; or a dict of such pairs by edge type.
        held: the edge types that are looked for. Those of a graph that are not held and have no
            edges are left out.

    Returns:
        The pair of the only edge type, or the edge types and pairs by key: the canonical edge type,
        for a minibatch the key that it uses. They are in the order of the edges, and of a minibatch
        on the device of its compacted ids, where it has any.

    Raises:
        ValueError: for an edge type that is not held, or a minibatch without negatives.
        TypeError: if ``negatives`` is none of these.
    """
    if isinstance(negatives, tuple):
        return negatives
    if isinstance(negatives, Mapping):
        types = {key: canonical_edge_type(key, held, "negatives") for key in negatives}
        return {types[key]: (types[key], pair) for key, pair in negatives.items()}
    if hasattr(negatives, "canonical_etypes"):
        etypes = negatives.canonical_etypes
        if is_homogeneous(negatives):
            return pairs_of(negatives, etypes[0])
        wanted = [e for e in etypes if e in held or negatives.num_edges(e)]
        return {etype: (etype, pairs_of(negatives, etype)) for etype in wanted}
    if hasattr(negatives, "seeds") or hasattr(negatives, "node_pairs"):
        return _pairs_of_minibatch(negatives, held)
    raise TypeError(
        "negatives: expected a negative graph, a GraphBolt minibatch, a pair (src, dst) or a dict "
        f"of pairs, got {type(negatives).__name__}; pass what the loader returned"
    )


def pairs_of(graph: Any, etype: EdgeType) -> Pair:
    """Ids in the whole graph of the ends of a loader's negative edges, each of shape [P]."""
    ends = []
    for ids, ntype in zip(graph.edges(etype=etype), (etype[0], etype[2])):
        nodes = graph.nodes[ntype].data.get("_ID")
        ends.append(ids if nodes is None else nodes[ids.long()])
    return ends[0], ends[1]


def edge_type_of_key(key: Any, held: Sequence[EdgeType], argument: str) -> EdgeType:
    """The edge type of GraphBolt's key for it, ``"source:relation:destination"``.

    Raises:
        ValueError: if it is not held.
    """
    name: Any = tuple(key.split(":")) if isinstance(key, str) and key.count(":") == 2 else key
    return canonical_edge_type(name, held, argument)


def _pairs_of_minibatch(minibatch: Any, held: Sequence[EdgeType]) -> NegativePairs:
    pairs = getattr(minibatch, "node_pairs", None)
    whole = getattr(minibatch, "seeds", None) if pairs is None else pairs
    if isinstance(whole, Mapping):
        return {
            key: (edge_type_of_key(key, held, "negatives"), _pair_of_minibatch(minibatch, key))
            for key in whole
        }
    return _pair_of_minibatch(minibatch, None)


def _pair_of_minibatch(minibatch: Any, key: Any) -> Pair:
    """The negative edges of one edge type, in either protocol of GraphBolt."""

    def read(name: str) -> Any:
        value = getattr(minibatch, name, None)
        return value.get(key) if isinstance(value, Mapping) else value

    positive, seeds, labels = read("node_pairs"), read("seeds"), read("labels")
    src, dst = read("negative_srcs"), read("negative_dsts")
    compacted = next((read(n) for n in _COMPACTED if read(n) is not None), None)
    if positive is not None and (src is not None or dst is not None):
        count = (dst if src is None else src).shape[1]
        src = positive[0].repeat_interleave(count) if src is None else src.flatten()
        dst = positive[1].repeat_interleave(count) if dst is None else dst.flatten()
    elif seeds is not None and labels is not None:
        src, dst = seeds[(labels == 0).to(seeds.device)].unbind(1)
    else:
        raise ValueError(
            "negatives: the minibatch has no negatives; put the stage that samples them into the "
            "pipeline, before the stage that samples the subgraph"
        )
    return (src, dst) if compacted is None else (src.to(compacted.device), dst.to(compacted.device))


_COMPACTED = ("compacted_negative_dsts", "compacted_negative_srcs", "compacted_seeds")


def checked_pairs(
    name: str, pairs: tuple[Tensor, Tensor], known: KnownEdges, etype: tuple[str, str, str]
) -> tuple[Tensor, Tensor]:
    """Pairs of node ids of the whole graph, int64 on the CPU, each of shape [P].

    Raises:
        TypeError: if ids are no integers.
        ValueError: if one is out of range, or the ends differ in number.
    """
    for ids, count, ntype in zip(pairs, (known.num_src, known.num_dst), (etype[0], etype[2])):
        what = f"ids of nodes of type {ntype!r}"
        check_ids(name, ids, count, what, advice="pass ids of the whole graph (dgl.NID)")
    src, dst = pairs
    if src.shape != dst.shape:
        raise ValueError(
            f"{name}: expected two tensors of one shape [P], got {tuple(src.shape)} and "
            f"{tuple(dst.shape)}; pass a source and a destination for each pair"
        )
    return src.cpu().long(), dst.cpu().long()
