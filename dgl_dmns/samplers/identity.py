"""Whose graph is it: does a graph number its nodes as the one that a sampler was made for?

A sampler knows edges as pairs of node ids. A graph whose nodes were renumbered on the way, as
``dgl.edge_subgraph`` and ``dgl.reorder_graph`` do, has other nodes under these ids, and its edges
would come as negatives. The edges of both tell: where a sample of the graph's edges are all known
(the graph is a part), or a sample of the known edges are all edges of the graph (it is larger), the
ids are the same. Otherwise the edges that are asked for decide: as long as all of them are known
there is nothing to say.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dgl_dmns.core import KnownEdges
from dgl_dmns.messages import warn
from dgl_dmns.samplers.graphs import ends_of

__all__ = ["GraphIdentity"]

_SAMPLE = 1000  # edges of either side that are looked up in the other
_LIKELY = 0.5  # share of edges in common above which ids are probably the same

EdgeType = tuple[str, str, str]


class GraphIdentity:
    """What a sampler has found out about the graphs it is called with; a copy starts anew.

    Args:
        name: of the sampler, for its messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: dict[EdgeType, tuple[Any, int, float | None]] = {}
        self._trusted: set[EdgeType] = set()  # by pairs alone
        self._warned = False

    def made_for(self, g: Any, etypes: Iterable[EdgeType]) -> None:
        """Note the graph that the known edges come from."""
        self._seen = {etype: (weakref.ref(g), int(g.num_edges(etype)), 1.0) for etype in etypes}

    def check(
        self,
        known: KnownEdges,
        g: Any,
        etype: EdgeType,
        pairs: tuple[Tensor, Tensor] | None,
    ) -> None:
        """Warn, once, where edges that are asked for are not among the known ones, and why.

        The first call with a graph looks at a sample of edges; later ones cost nothing where ids
        are the same, and a look-up of the pairs where that is open.

        Args:
            known: the sampler's known edges.
            g: the graph of the call.
            etype: canonical edge type.
            pairs: ends of the edges that are asked for, int64 [B] each, on the CPU; None for
                queries.

        Raises:
            ValueError: if the graph also has other node counts, so that there is no doubt.
        """
        if self._warned or (pairs is not None and not pairs[0].numel()):
            return
        shared = self._shared(known, g, etype)
        if shared is None:  # the pairs are all that there is to look at
            if pairs is not None:
                self.check_pairs(known, pairs, etype)
            return
        if shared == 1.0 or (pairs is None and shared > _LIKELY):
            return
        asked = ""
        if pairs is not None:
            strange = _unknown(known, pairs)
            if not strange:
                return
            asked = f"{strange} of the {pairs[0].numel()} edges asked for are unknown to it, and "
        counts = (int(g.num_nodes(etype[0])), int(g.num_nodes(etype[2])))
        own = (known.num_src, known.num_dst)
        found = (
            f"{asked}no more than {shared:.0%} of its known edges are edges of this graph, or the "
            f"other way round (edge type {etype[1]!r}"
        )
        advice = (
            "cut training graphs out with relabel_nodes=False, make the sampler on the loader's "
            "graph, or call update_graph(g), where it has that, for a graph that has grown"
        )
        if counts != own and shared < _LIKELY:
            raise ValueError(
                f"g: {found}; {counts[0]} and {counts[1]} nodes, the sampler was made for {own[0]} "
                f"and {own[1]}): this graph seems to number its nodes otherwise, so that known "
                f"edges would come as negatives; {advice}"
            )
        self._warned = True
        worker = get_worker_info()
        if worker is None or worker.id == 0:  # one word is enough
            warn(
                f"{self._name}: {found}): this graph seems to number its nodes otherwise than the "
                "one that the sampler was made for, or to have other edges, and known edges may "
                f"come as negatives; {advice}; nothing is wrong with held-out edges under the same "
                "ids"
            )

    def check_pairs(self, known: KnownEdges, pairs: tuple[Tensor, Tensor], etype: EdgeType) -> None:
        """The same where there is no graph: warn, once, if the first pairs are mostly unknown."""
        if etype in self._trusted or self._warned or not pairs[0].numel():
            return
        strange = _unknown(known, pairs)
        if 2 * strange <= pairs[0].numel():
            self._trusted.add(etype)
            return
        self._warned = True
        worker = get_worker_info()
        if worker is None or worker.id == 0:
            warn(
                f"{self._name}: {strange} of the {pairs[0].numel()} pairs asked for are unknown to "
                f"it (edge type {etype[1]!r}): if these are no held-out pairs, the item set has "
                "other node numbers than the graph that the sampler was made on, and known edges "
                "may come as negatives; make both from one graph"
            )

    def _shared(self, known: KnownEdges, g: Any, etype: EdgeType) -> float | None:
        """The share of edges in common, 1 where one side holds the other; kept for each graph.

        None for a graph that is pinned for a GPU, which answers no questions here.
        """
        edges = int(g.num_edges(etype))
        seen = self._seen.get(etype)
        if seen is None or seen[0]() is not g or seen[1] != edges:
            pinned = callable(getattr(g, "is_pinned", None)) and g.is_pinned()
            shared = None if pinned else _common(known, g, etype, edges)
            self._seen[etype] = seen = (weakref.ref(g), edges, shared)
        return seen[2]

    def __reduce__(self) -> tuple[type[GraphIdentity], tuple[str]]:
        return GraphIdentity, (self._name,)


def _common(known: KnownEdges, g: Any, etype: EdgeType, edges: int) -> float:
    """The larger of two shares: of the graph's edges that are known, of known ones in the graph."""
    source = torch.Generator().manual_seed(0)  # the draws of the training stay what they are
    shares = [0.0]
    if edges:
        eids = torch.arange(edges) if edges <= _SAMPLE else _some(edges, source)
        src, dst = (ends.cpu().long() for ends in ends_of(g, eids.to(g.device, g.idtype), etype))
        shares.append(1 - _unknown(known, (src, dst)) / len(eids))
    total = known.indices.numel()
    if shares[-1] < 1.0 and total and callable(getattr(g, "has_edges_between", None)):
        pick = torch.arange(total) if total <= _SAMPLE else _some(total, source)
        src = torch.searchsorted(known.indptr, pick, right=True) - 1
        dst = known.indices[pick].long()
        inside = (src < g.num_nodes(etype[0])) & (dst < g.num_nodes(etype[2]))
        ends = (ends[inside].to(g.device, g.idtype) for ends in (src, dst))
        shares.append(float(g.has_edges_between(*ends, etype=etype).sum()) / len(pick))
    return max(shares)


def _unknown(known: KnownEdges, pairs: tuple[Tensor, Tensor]) -> int:
    """How many pairs are no known edges, nodes that are unknown included."""
    src, dst = pairs
    inside = (src < known.num_src) & (dst < known.num_dst)
    return src.numel() - int(known.contains(src[inside], dst[inside]).sum())


def _some(count: int, source: torch.Generator) -> Tensor:
    return torch.randint(0, count, (_SAMPLE,), generator=source)
