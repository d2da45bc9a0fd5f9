"""What loaders return, as pairs of node ids and as rows of embeddings.

Loaders of DGL return graphs over the batch's nodes, whose ids in the whole graph stand in
``ndata[dgl.NID]``; GraphBolt returns ids and compacted ids side by side, in either protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch
from torch import Tensor

from dgl_dmns.checks import check_ids
from dgl_dmns.core import EdgeType, KnownEdges, canonical_edge_type
from dgl_dmns.samplers.graphs import is_homogeneous

__all__ = [
    "NegativePairs",
    "PairBatch",
    "checked_pairs",
    "edge_type_of_key",
    "negative_pairs",
    "pair_batches",
    "pairs_of",
]

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


@dataclass(frozen=True, eq=False)
class PairBatch:
    """B positives of one edge type with K candidates each.

    Attributes:
        etype: canonical edge type.
        h: embeddings of the sources' type and of the destinations', shapes [n, D].
        ids: node ids of those rows, shapes [n], int64, on the CPU.
        src: rows of the positives' sources, shape [B], int64.
        dst: rows of their destinations, shape [B], int64.
        candidates: rows of the negatives, shape [B, K], int64.
    """

    etype: EdgeType
    h: tuple[Tensor, Tensor]
    ids: tuple[Tensor, Tensor]
    src: Tensor
    dst: Tensor
    candidates: Tensor


def pair_batches(
    h: Any, positives: Any, negatives: Any, held: Sequence[EdgeType]
) -> dict[Any, PairBatch]:
    """What a loader returned, by edge type.

    Args:
        h: embeddings of the batch's nodes, shape [n, D]; a dict by node type for several.
        positives: a positive graph of ``dgl.dataloading``; or a GraphBolt minibatch.
        negatives: the negative graph; None beside a minibatch, which has both.
        held: the edge types that the sampler holds.

    Returns:
        Batches by canonical edge type, for a minibatch by the keys that it uses; edge types without
        positives are left out, unless there is one type only.

    Raises:
        ValueError: for graphs, embeddings or edge types that do not fit one another.
        TypeError: if ``positives`` or ``negatives`` is something else.
    """
    if hasattr(positives, "canonical_etypes"):
        if not hasattr(negatives, "canonical_etypes"):
            raise TypeError(
                "neg_graph: expected the negative graph that the loader returned beside pos_graph, "
                f"got {type(negatives).__name__}"
            )
        return _of_graphs(h, positives, negatives, held)
    if hasattr(positives, "seeds") or hasattr(positives, "node_pairs"):
        return _of_minibatch(h, positives, held)
    raise TypeError(
        f"pos_graph: expected a positive graph or a GraphBolt minibatch, got "
        f"{type(positives).__name__}; pass what the loader returned"
    )


def _of_graphs(h: Any, pos: Any, neg: Any, held: Sequence[EdgeType]) -> dict[Any, PairBatch]:
    single = is_homogeneous(pos)
    found = {}
    for given in pos.canonical_etypes:
        if not single and not pos.num_edges(given):
            continue
        etype = held[0] if single and len(held) == 1 else given
        if etype not in held:
            canonical_edge_type(etype, held, "pos_graph")
        if given not in neg.canonical_etypes:
            raise ValueError(
                f"neg_graph: expected edges of type {given}, as in pos_graph, got none"
            )
        ids, rows = [], []
        for ntype in (given[0], given[2]):
            count = int(pos.num_nodes(ntype))
            if int(neg.num_nodes(ntype)) != count:
                raise ValueError(
                    f"neg_graph: expected the {count} nodes of pos_graph, got "
                    f"{int(neg.num_nodes(ntype))}; pass the two graphs of one batch"
                )
            of_type = pos.nodes[ntype].data.get("_ID")
            ids.append(torch.arange(count) if of_type is None else of_type.cpu().long())
            rows.append(_rows_of(h, ntype, count))
        found[etype] = _made(
            etype,
            (rows[0], rows[1]),
            (ids[0], ids[1]),
            pos.edges(etype=given),
            neg.edges(etype=given),
        )
    return found


def _of_minibatch(h: Any, minibatch: Any, held: Sequence[EdgeType]) -> dict[Any, PairBatch]:
    whole = getattr(minibatch, "node_pairs", None)
    whole = getattr(minibatch, "seeds", None) if whole is None else whole
    keys = list(whole) if isinstance(whole, Mapping) else [None]
    ends = {key: (_ends(minibatch, key, ""), _ends(minibatch, key, "compacted_")) for key in keys}
    etypes = {
        key: held[0] if key is None else edge_type_of_key(key, held, "pos_graph") for key in keys
    }
    ids: dict[str, Tensor] = {}
    for key, (raw, compacted) in ends.items():  # the ids of all rows of a node type
        for at, ntype in enumerate((etypes[key][0], etypes[key][2])):
            rows = torch.cat([pair[at].cpu().long() for pair in compacted])
            nodes = torch.cat([pair[at].cpu().long() for pair in raw])
            old = ids.get(ntype, rows[:0])
            count = max(len(old), int(rows.max()) + 1 if rows.numel() else 0)
            table = torch.zeros(count, dtype=torch.int64)
            table[: len(old)] = old
            table[rows] = nodes
            ids[ntype] = table
    found = {}
    for key, (_, (positive, negative)) in ends.items():
        etype = etypes[key]
        if key is not None and not len(positive[0]):
            continue
        of = (ids[etype[0]], ids[etype[2]])
        both = (_rows_of(h, etype[0], len(of[0])), _rows_of(h, etype[2], len(of[1])))
        found[key if key is not None else etype] = _made(etype, both, of, positive, negative)
    return found


def _ends(minibatch: Any, key: Any, prefix: str) -> tuple[Any, Any]:
    """Ends of positives and of negatives, two pairs of tensors, from fields of a prefix."""

    def read(name: str) -> Any:
        value = getattr(minibatch, name, None)
        return value.get(key) if isinstance(value, Mapping) else value

    pairs, seeds, labels = read(f"{prefix}node_pairs"), read(f"{prefix}seeds"), read("labels")
    drawn = read(f"{prefix}negative_dsts")
    if pairs is not None and drawn is not None:
        src = pairs[0].repeat_interleave(drawn.shape[1])
        return (pairs[0], pairs[1]), (src, drawn.flatten())
    if seeds is not None and labels is not None:
        positive = (labels != 0).to(seeds.device)
        return seeds[positive].unbind(1), seeds[~positive].unbind(1)
    raise ValueError(
        "pos_graph: the minibatch has no negatives, or no compacted ids; put the stage that draws "
        "negatives, and after it the one that samples the subgraph, into the pipeline"
    )


def _rows_of(h: Any, ntype: str, count: int) -> Tensor:
    """Embeddings of a node type of the batch, one row for each of its nodes."""
    part = h.get(ntype) if isinstance(h, Mapping) else h
    if not isinstance(part, Tensor):
        raise TypeError(
            f"h: expected embeddings of nodes of type {ntype!r}, a tensor [{count}, D], got "
            f"{type(part).__name__}"
        )
    if part.dim() != 2 or len(part) != count:
        raise ValueError(
            f"h: expected one row for each of the {count} nodes of the batch, got shape "
            f"{tuple(part.shape)}; pass what the model returned for the batch's blocks"
        )
    return part


def _made(etype: EdgeType, h: Any, ids: Any, positive: Any, negative: Any) -> PairBatch:
    """A batch, if each positive's negatives stand K in a row."""
    (src, dst), (neg_src, drawn) = ([end.long() for end in ends] for ends in (positive, negative))
    count = len(src)
    k = len(neg_src) // count if count else 1
    if len(neg_src) != count * k or not torch.equal(neg_src, src.repeat_interleave(k)):
        raise ValueError(
            f"neg_graph: expected K negatives for each of the {count} positives, in their order "
            f"and with their sources, got {len(neg_src)}; pass the two graphs of one batch, and "
            "make the sampler with source='edge'"
        )
    return PairBatch(etype, h, ids, src, dst, drawn.view(count, k))
