"""Samplers that follow no encoder: by popularity, and out of the batch.

Sources. Popularity (PNS): Mikolov et al., "Distributed Representations of Words and Phrases and
their Compositionality", NeurIPS 2013, section 2.2: the unigram distribution to the power 3/4 beat
both the plain one and the uniform; a node's in-degree takes the place of a word's frequency.
In-batch negatives: Chen et al., "On Sampling Strategies for Neural Network-based Collaborative
Filtering", KDD 2017 ("negative sharing"): destinations of positive edges come in proportion to
their in-degree, and the batch computes their embeddings anyway.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dgl_dmns.checks import as_number
from dgl_dmns.core import (
    EdgeType,
    FilteredDraws,
    KnownEdges,
    WeightedFallback,
    first_above,
    share,
    shielded,
)
from dgl_dmns.samplers.candidates import Allowed
from dgl_dmns.samplers.filtered import FilteredSampler
from dgl_dmns.samplers.graphs import (
    edges_of,
)
from dgl_dmns.shared_softmax import Comparison

__all__ = ["InBatchSampler", "PopularitySampler"]

_CELLS = 1 << 20  # (source, destination) pairs that are looked up at a time


class PopularitySampler(FilteredSampler):
    """Destinations with probability proportional to ``in-degree ^ exponent`` (PNS).

    Parallel edges count each, as in ``g.in_degrees()``; a node without incoming edges has weight 0.
    Known edges and the source itself are redrawn. Where that keeps failing, the draw is weighted
    among the admissible nodes of the source, and uniform among them if all of their weights are 0;
    the process then keeps 8 bytes for each edge and node of the type. A draw costs ``O(log N)``.

    Args:
        g: as for `FilteredSampler`.
        k: negatives per edge.
        exponent: finite and at least 0; 0 is uniform over the nodes that have incoming edges.
        candidates: as for `FilteredSampler`.

    Raises:
        ValueError, TypeError: for such an ``exponent``; and as for `FilteredSampler`.
    """

    @shielded
    def __init__(
        self, g: Any, k: int = 1, exponent: float = 0.75, *, candidates: Allowed | None = None
    ) -> None:
        exponent = as_number("exponent", exponent)
        if not (math.isfinite(exponent) and exponent >= 0):
            raise ValueError(
                f"exponent: expected a finite number of at least 0, got {exponent}; 0 is uniform "
                "over the nodes with incoming edges, 1 proportional to the in-degree"
            )
        super().__init__(g, k, candidates=candidates)
        self.exponent = exponent
        self._cumulative: dict[EdgeType, Tensor] = {}
        self._fallback: dict[EdgeType, WeightedFallback] = {}  # made where one is needed
        self._positive: dict[EdgeType, int] = {}
        for etype in g.canonical_etypes:
            degree = _in_degree(g, etype).double()
            some = self._known[etype].candidates
            if some is not None:
                degree = torch.zeros_like(degree).index_copy_(0, some, degree[some])
            # Degrees relative to the largest: no power of them overflows.
            largest = float(degree.max()) if degree.numel() else 1.0
            weight = (degree / max(1.0, largest)).pow(self.exponent)
            weight[degree == 0] = 0.0
            cumulative = weight.cumsum(0)
            self._cumulative[etype] = share(cumulative, "weights of nodes take")
            self._positive[etype] = int(
                (cumulative.diff(prepend=weight[:0].new_zeros(1)) > 0).sum()
            )

    def negatives(self, g: Any, src: Tensor, etype: EdgeType) -> Tensor:  # noqa: D102
        known = self.known_of(g, etype)
        cumulative = self._cumulative[etype]
        generator = self._call_generator()
        if not float(cumulative[-1:].sum()):  # a type without edges, asked for query nodes
            return known.uniform(src, self.k, generator=generator)

        def exact(left: Tensor) -> Tensor:
            if etype not in self._fallback:
                self._fallback[etype] = WeightedFallback(known, cumulative)
            return self._fallback[etype].draw(left, generator=generator)

        return known.draw(src, self.k, lambda count: _draw(cumulative, count, generator), exact)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_fallback": {}}

    def _draws(self, etype: EdgeType, dst: Tensor) -> FilteredDraws:
        cumulative = self._cumulative[etype]

        def weight(nodes: Tensor) -> Tensor:
            return cumulative[nodes] - cumulative[(nodes - 1).clamp(min=0)] * (nodes > 0)

        total = float(cumulative[-1:].sum())
        return FilteredDraws(self._known[etype], weight, total, self._positive[etype])

    def __repr__(self) -> str:
        return f"PopularitySampler(k={self.k}, exponent={self.exponent})"


def _in_degree(g: Any, etype: EdgeType) -> Tensor:
    return torch.bincount(edges_of(g, etype)[1], minlength=int(g.num_nodes(etype[2])))


def _draw(cumulative: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Positions drawn by their cumulative weights [N], float64; those of weight 0 never come."""
    total = cumulative[-1]
    point = torch.rand(count, dtype=torch.float64, generator=generator) * total
    # "right": the first position whose cumulative weight exceeds the point, so one with a weight.
    # Rounding may lift a point to the total itself; the last position with a weight takes it.
    last = torch.searchsorted(cumulative, total)
    return torch.searchsorted(cumulative, point, right=True).clamp(max=last)


class InBatchSampler(FilteredSampler):
    """Destinations of the batch's own positive edges, shared as negatives of one another.

    Each negative is the destination of a random edge of the batch, so a destination that stands in
    the batch twice is twice as likely. Known edges (the edge's own destination among them) and the
    source itself are rejected and redrawn; where that keeps failing, the draw is among the listed
    admissible destinations of the batch, and where the batch offers none, uniform among all nodes
    that are admissible. A batch of one edge therefore gets uniform negatives.

    In `loss` a destination of the batch counts in inverse proportion to its in-degree, so that over
    random batches the sum over them is that over all nodes with incoming edges.

    `for_queries` takes nodes and has no positives to share: the destinations of as many random
    known edges as there are queries take their place.

    Arguments and errors are those of `FilteredSampler`.
    """

    def __init__(self, g: Any, k: int = 1, *, candidates: Allowed | None = None) -> None:
        super().__init__(g, k, candidates=candidates)
        self._in_degree = {
            etype: share(_in_degree(g, etype), "in-degrees of nodes take")
            for etype in g.canonical_etypes
        }

    def negatives(self, g: Any, src: Tensor, etype: EdgeType) -> Tensor:  # noqa: D102
        known = self.known_of(g, etype)
        edges = known.indices.numel()
        if not edges:
            return known.uniform(src, self.k, generator=self._call_generator())
        pick = torch.randint(0, edges, src.shape, generator=self._call_generator())
        offered = known.indices[pick].long()
        return self._share(known, src, offered)

    def negatives_for_edges(  # noqa: D102
        self, g: Any, src: Tensor, dst: Tensor, etype: EdgeType
    ) -> Tensor:
        return self._share(self.known_of(g, etype), src, dst)

    def _share(self, known: KnownEdges, src: Tensor, offered: Tensor) -> Tensor:
        """Negatives [B, k] for sources [B] among the destinations on offer, shape [B]."""
        generator = self._call_generator()
        offered = offered[known.is_candidate(offered)]
        if not offered.numel():
            return known.uniform(src, self.k, generator=generator)

        def propose(count: int) -> Tensor:
            return offered[torch.randint(0, offered.numel(), (count,), generator=generator)]

        def listed(left: Tensor) -> Tensor:
            return _draw_offered(known, left, offered, generator)

        return known.draw(src, self.k, propose, listed)

    def _draws(self, etype: EdgeType, dst: Tensor) -> FilteredDraws:
        known = self._known[etype]
        offered, count = dst[known.is_candidate(dst)].unique(return_counts=True)
        if dst.numel() == 1 or not offered.numel():
            return FilteredDraws(known)
        times = partial(_times, offered, count)
        return FilteredDraws(known, times, float(count.sum()), offered.numel())

    def batch_log_ratio(  # noqa: D102
        self,
        etype: EdgeType,
        src: Tensor,
        dst: Tensor,
        candidates: Tensor,
        share: Comparison = "batch",
    ) -> Tensor:
        ratio = super().batch_log_ratio(etype, src, dst, candidates, share)
        if dst.numel() == 1:
            return ratio
        # How often a node is expected among the other edges' destinations, and how often it stands
        # in the batch: a sum over these becomes one over all nodes with incoming edges.
        degree = self._in_degree[etype]
        expected = (dst.numel() - 1) * degree[candidates].clamp(min=1).double() / degree.sum()
        offered, count = dst.unique(return_counts=True)
        times = _times(offered, count, candidates)
        return ratio + (expected / times).log()


def _draw_offered(
    known: KnownEdges, src: Tensor, offered: Tensor, generator: torch.Generator | None
) -> Tensor:
    """One of the admissible destinations [B] on offer for each source [P]; else a uniform one."""
    times = torch.bincount(offered, minlength=known.num_dst)
    pool = times.nonzero().squeeze(1)
    drawn = torch.zeros_like(src)
    ordered, where = src.sort()
    step = max(1, _CELLS // pool.numel())
    for some, place in zip(ordered.split(step), where.split(step)):
        nodes, row = torch.unique_consecutive(some, return_inverse=True)
        count = known.admissible_count(nodes)
        rank = torch.arange(int(count.max()))
        if 4 * rank.numel() < pool.numel():  # fewer admissible nodes than nodes on offer
            last = (count - 1).clamp(min=0).unsqueeze(1)
            chosen = known.nth_admissible(nodes.unsqueeze(1), rank.minimum(last))
            chosen = chosen.clamp(max=known.num_dst - 1)  # of sources without any
            weight = times[chosen].masked_fill(rank >= count.unsqueeze(1), 0)
        else:
            chosen = pool.expand(nodes.numel(), -1)
            weight = times[chosen].masked_fill(known.contains(nodes.unsqueeze(1), chosen), 0)
        drawn[place] = known.uniform_by_rank(some, generator=generator)
        if not weight.shape[1]:  # no admissible node at all
            continue
        total = weight.cumsum(1)
        most = total[row, -1]
        share = torch.rand(some.shape, dtype=torch.float64, generator=generator)
        point = (share * most).long().minimum(most - 1)
        picked = chosen[row, first_above(total, row, point)]
        drawn[place] = torch.where(most > 0, picked, drawn[place])
    return drawn


def _times(offered: Tensor, count: Tensor, nodes: Tensor) -> Tensor:
    """How often nodes are on offer, given the distinct ones in ascending order: float64."""
    place = torch.searchsorted(offered, nodes).clamp(max=offered.numel() - 1)
    times: Tensor = count[place] * (offered[place] == nodes)
    return times.double()
