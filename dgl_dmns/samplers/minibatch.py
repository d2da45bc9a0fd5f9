"""What loaders return, as pairs of node ids and as rows of embeddings.

Loaders of DGL return graphs over the batch's nodes, whose ids in the whole graph stand in
``ndata[dgl.NID]``; GraphBolt returns ids and compacted ids side by side, in either protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgl_dmns.checks import check_ids
from dgl_dmns.core import CPU, EdgeType, KnownEdges, canonical_edge_type
from dgl_dmns.samplers.graphs import Pair, is_homogeneous

if TYPE_CHECKING:
    from dgl_dmns.samplers.base import NegativeSampler
    from dgl_dmns.shared_softmax import Comparison

__all__ = [
    "PairBatch",
    "checked_pairs",
    "edge_type_of_key",
    "is_minibatch",
    "known_by_row",
    "negative_pairs",
    "pair_batches",
    "weighed",
]

_COMPACTED = ("compacted_negative_dsts", "compacted_negative_srcs", "compacted_seeds")
_FEW = 16  # negatives that say nothing


def is_minibatch(value: Any) -> bool:
    """Whether something is a minibatch of GraphBolt, in either protocol."""
    return hasattr(value, "seeds") or hasattr(value, "node_pairs")


def negative_pairs(
    negatives: Any, held: Sequence[EdgeType]
) -> Pair | dict[Any, tuple[EdgeType, Pair]]:
    """The negative edges in a loader's output, or the edges in another graph.

    Args:
        negatives: see `Tables.log_ratio`.
        held: the edge types that are looked for. Those of a graph that are not held and have no
            edges are left out.

    Returns:
        The pair of the only edge type, or the edge types and pairs by key: the canonical edge type,
        for a minibatch the key that it uses. They are in the order of the edges, and of a minibatch
        on the device of its compacted ids, where it has any.
    """
    if isinstance(negatives, tuple):
        return negatives
    if isinstance(negatives, Mapping):
        types = {key: canonical_edge_type(key, held, "negatives") for key in negatives}
        return {types[key]: (types[key], pair) for key, pair in negatives.items()}
    if hasattr(negatives, "canonical_etypes"):
        etypes = negatives.canonical_etypes
        if is_homogeneous(negatives):
            return _pair_of(negatives, etypes[0])
        wanted = [e for e in etypes if e in held or negatives.num_edges(e)]
        return {etype: (etype, _pair_of(negatives, etype)) for etype in wanted}
    if is_minibatch(negatives):
        keys = _keys(negatives)
        pairs = {key: _where_compacted(negatives, key) for key in keys}
        if None in pairs:
            return pairs[None]
        return {key: (edge_type_of_key(key, held, "negatives"), pairs[key]) for key in keys}
    raise TypeError(
        "negatives: expected a negative graph, a GraphBolt minibatch, a pair (src, dst) or a dict "
        f"of pairs, got {type(negatives).__name__}; pass what the loader returned"
    )


def _pair_of(graph: Any, etype: EdgeType) -> Pair:
    """Ids in the whole graph of the ends of a loader's edges."""
    src, dst = graph.edges(etype=etype)
    of_src, of_dst = (graph.nodes[ntype].data.get("_ID") for ntype in etype[::2])
    src = src if of_src is None else of_src[src.long()]
    return src, dst if of_dst is None else of_dst[dst.long()]


def edge_type_of_key(key: Any, held: Sequence[EdgeType], argument: str) -> EdgeType:
    """The held edge type of GraphBolt's key for it, ``"source:relation:destination"``."""
    name: Any = tuple(key.split(":")) if isinstance(key, str) and key.count(":") == 2 else key
    return canonical_edge_type(name, held, argument)


def _keys(minibatch: Any) -> list[Any]:
    """The edge types of a minibatch, as it names them; None for the only one."""
    whole = getattr(minibatch, "node_pairs", None)
    whole = getattr(minibatch, "seeds", None) if whole is None else whole
    return list(whole) if isinstance(whole, Mapping) else [None]


def _field(minibatch: Any, name: str, key: Any) -> Any:
    value = getattr(minibatch, name, None)
    return value.get(key) if isinstance(value, Mapping) else value


def _ends(minibatch: Any, key: Any, argument: str, prefix: str = "") -> tuple[Pair, Pair]:
    """Positive and negative edges of one edge type, from the fields of a prefix."""
    pairs, seeds, src, dst = (
        _field(minibatch, f"{prefix}{name}", key)
        for name in ("node_pairs", "seeds", "negative_srcs", "negative_dsts")
    )
    labels = _field(minibatch, "labels", key)
    if pairs is not None and (src is not None or dst is not None):
        count = (dst if src is None else src).shape[1]
        src = pairs[0].repeat_interleave(count) if src is None else src.flatten()
        dst = pairs[1].repeat_interleave(count) if dst is None else dst.flatten()
        return (pairs[0], pairs[1]), (src, dst)
    if seeds is not None and labels is not None:
        positive = (labels != 0).to(seeds.device)
        return seeds[positive].unbind(1), seeds[~positive].unbind(1)
    raise ValueError(
        f"{argument}: the minibatch has no {'compacted ' if prefix else ''}negatives; put the "
        "stage that samples them into the pipeline, and after it the one that samples the subgraph"
    )


def _where_compacted(minibatch: Any, key: Any) -> Pair:
    """The negative edges of one edge type, on the device of their compacted ids."""
    _, (src, dst) = _ends(minibatch, key, "negatives")
    found = (_field(minibatch, name, key) for name in _COMPACTED)
    compacted = next((one for one in found if one is not None), src)
    return src.to(compacted.device), dst.to(compacted.device)


def checked_pairs(name: str, pairs: Pair, counts: tuple[int, int], etype: EdgeType) -> Pair:
    """Pairs of node ids of the whole graph, of so many nodes, int64 on the CPU, if they are."""
    for ids, count, ntype in zip(pairs, counts, etype[::2]):
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
    """B positives of one edge type with K candidates each."""

    etype: EdgeType
    h: Pair  # embeddings of the sources' type and of the destinations', [n, D]
    ids: Pair  # node ids of those rows, int64 [n], where known edges are looked up
    src: Tensor  # rows of the positives' sources, int64 [B]
    dst: Tensor  # rows of their destinations, int64 [B]
    candidates: Tensor  # rows of the negatives, int64 [B, K]
    places: Tensor  # of the positives in the call that drew them, int64 [B]


def pair_batches(
    h: Any,
    positives: Any,
    negatives: Any,
    held: Sequence[EdgeType],
    place: torch.device = CPU,
) -> dict[Any, PairBatch]:
    """What a loader returned, by canonical edge type; for a minibatch, by the keys that it uses.

    Args:
        h: embeddings of the batch's nodes, shape [n, D]; a dict by node type for several.
        positives: a positive graph of ``dgl.dataloading``; or a GraphBolt minibatch.
        negatives: the negative graph; None beside a minibatch, which has both.
        held: the edge types that the sampler holds. Those without positives are left out, unless
            there is one type only.
        place: where known edges are looked up.
    """
    if hasattr(positives, "canonical_etypes"):
        if not hasattr(negatives, "canonical_etypes"):
            raise TypeError(
                "neg_graph: expected the negative graph that the loader returned beside pos_graph, "
                f"got {type(negatives).__name__}"
            )
        return _of_graphs(h, positives, negatives, held, place)
    if is_minibatch(positives):
        return _of_minibatch(h, positives, held, place)
    raise TypeError(
        f"pos_graph: expected a positive graph or a GraphBolt minibatch, got "
        f"{type(positives).__name__}; pass what the loader returned"
    )


def _of_graphs(
    h: Any, pos: Any, neg: Any, held: Sequence[EdgeType], place: torch.device
) -> dict[Any, PairBatch]:
    single = is_homogeneous(pos)
    found = {}
    for given in pos.canonical_etypes:
        if not single and not pos.num_edges(given):
            continue
        etype = held[0] if single and len(held) == 1 else given
        if etype not in held:
            canonical_edge_type(etype, held, "pos_graph")
        ids = []
        for ntype in given[::2]:
            count = int(pos.num_nodes(ntype))
            if int(neg.num_nodes(ntype)) != count:
                raise ValueError(
                    f"neg_graph: expected the {count} nodes of pos_graph, got "
                    f"{int(neg.num_nodes(ntype))}; pass the two graphs of one batch"
                )
            of_type = pos.nodes[ntype].data.get("_ID")
            none = of_type is None
            ids.append(torch.arange(count, device=place) if none else of_type.to(place).long())
        edges = pos.edges(etype=given), neg.edges(etype=given)
        part = neg.edges[given].data.get("_ID")  # of a part of a batch, cut out of it
        found[etype] = _made(etype, h, given, (ids[0], ids[1]), *edges, part)
    return found


def _of_minibatch(
    h: Any, minibatch: Any, held: Sequence[EdgeType], place: torch.device
) -> dict[Any, PairBatch]:
    ends, etypes = {}, {}
    rows: dict[str, list[Pair]] = {}  # and node ids of these, by node type
    for key in _keys(minibatch):
        etypes[key] = held[0] if key is None else edge_type_of_key(key, held, "pos_graph")
        whole = _ends(minibatch, key, "pos_graph")
        ends[key] = _ends(minibatch, key, "pos_graph", "compacted_")
        for at, ntype in enumerate(etypes[key][::2]):
            rows.setdefault(ntype, []).extend((c[at], w[at]) for c, w in zip(ends[key], whole))
    ids = {}
    for ntype, parts in rows.items():
        row, node = (torch.cat([one.to(place).long() for one in part]) for part in zip(*parts))
        count = int(row.max()) + 1 if row.numel() else 0
        ids[ntype] = torch.zeros(count, dtype=torch.int64, device=place)
        ids[ntype][row] = node
    found = {}
    for key, (positive, negative) in ends.items():
        etype = etypes[key]
        if key is None or len(positive[0]):
            of = (ids[etype[0]], ids[etype[2]])
            made = _made(etype, h, etype, of, positive, negative)
            found[etype if key is None else key] = made
    return found


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


def _made(
    etype: EdgeType,
    h: Any,
    given: EdgeType,
    ids: Pair,
    positive: Pair,
    negative: Pair,
    part: Tensor | None = None,
) -> PairBatch:
    """A batch, if each positive's negatives stand K in a row; ``h`` may name types as ``given``.

    ``part`` says which of the negatives of a call these are; defaults to all.
    """
    (src, dst), (neg_src, drawn) = ([end.long() for end in ends] for ends in (positive, negative))
    count = len(src)
    k = len(neg_src) // count if count else 1
    places, whole = torch.arange(count, device=ids[0].device), True
    if part is not None:
        part = part.to(places.device).long()
        places = part[:: max(1, k)] // max(1, k)
        slot = torch.arange(k, device=places.device)
        whole = torch.equal(part, (places.unsqueeze(1) * k + slot).flatten())
    if len(neg_src) != count * k or not whole or not torch.equal(neg_src, src.repeat_interleave(k)):
        raise ValueError(
            f"neg_graph: expected K negatives for each of the {count} positives, in their order "
            f"and with their sources, got {len(neg_src)}; pass the two graphs of one batch, and "
            "make the sampler with source='edge'"
        )
    both = _rows_of(h, given[0], len(ids[0])), _rows_of(h, given[2], len(ids[1]))
    return PairBatch(etype, both, ids, src, dst, drawn.view(count, k), places)


def known_by_row(
    sampler: NegativeSampler, batch: PairBatch, more: Tensor | None = None
) -> tuple[KnownEdges, Pair]:
    """Known edges of a batch, and the ids that rows of its embeddings have in them.

    Destinations that are looked up are those of the batch, and ``more`` of other batches, ids [S].
    """
    sources, nodes = batch.ids
    at = batch.src.to(nodes.device)
    asked = nodes if more is None else torch.cat([nodes, more.to(nodes.device)])
    known, row = sampler.known_of_batch(batch.etype, sources[at], asked)
    if known is sampler.known_by_type[batch.etype].on(nodes.device):
        return known, batch.ids
    numbered = torch.zeros_like(sources)  # others are no queries
    numbered[at] = row
    return known, (numbered, nodes)


def weighed(
    sampler: NegativeSampler, batch: PairBatch, share: Comparison
) -> tuple[Tensor, Tensor | None]:
    """How a batch's candidates count in the loss, if all can be the sampler's.

    Returns:
        Log ratios of the candidates, float64 [B, K]; and which of them were chosen for their edges,
        bool [B, K], None for a sampler that chooses none. Both where known edges are looked up.
    """
    place = batch.ids[0].device
    src, dst = batch.ids[0][batch.src.to(place)], batch.ids[1][batch.dst.to(place)]
    candidates = batch.ids[1][batch.candidates.to(place)]
    known, row = sampler.known_of_batch(batch.etype, src, candidates)
    free = known.admissible_count(row) > 0
    own = known.contains(row[free].unsqueeze(1), candidates[free])
    if own.numel() >= _FEW and 2 * int(own.sum()) > own.numel():
        what = "known edges of their sources"
        what += "" if known.candidates is None else ", or no candidates"
        raise ValueError(
            f"neg_graph: {int(own.sum())} of {own.numel()} negatives are {what}; pass the positive "
            "graph first, and the negative graph that this sampler drew for it"
        )
    chosen = sampler.chosen(batch.etype, batch.places) if share == "batch" else None
    if chosen is None:
        ratio = sampler.batch_log_ratio(batch.etype, src, dst, candidates, share)
    elif chosen.shape != candidates.shape:
        raise ValueError(
            f"neg_graph: expected {chosen.shape[1]} negatives for each positive, got "
            f"{candidates.shape[1]}; pass a batch whose negatives this sampler drew"
        )
    else:
        row, slot = (~chosen).nonzero(as_tuple=True)
        ratio = torch.zeros(candidates.shape, dtype=torch.float64, device=place)
        if row.numel():
            ends = src[row], dst[row], candidates[row, slot].unsqueeze(1)
            ratio[row, slot] = sampler.batch_log_ratio(batch.etype, *ends).squeeze(1)
    impossible = int((ratio == -torch.inf).sum())
    if impossible:
        raise ValueError(
            f"neg_graph: {impossible} negatives are none that {type(sampler).__name__} draws for "
            "these positives; pass a batch whose negatives this sampler drew"
        )
    return ratio, chosen
