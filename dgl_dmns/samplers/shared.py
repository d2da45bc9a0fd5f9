"""`InBatchSampler`: the other edges' destinations as negatives.

Source: Chen et al., "On Sampling Strategies for Neural Network-based Collaborative Filtering", KDD
2017 ("negative sharing"). Destinations of positive edges come in proportion to their
in-degree, so these are popularity-weighted negatives whose embeddings the batch computes anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgl_dmns.core import FilteredDraws, KnownEdges, first_above, share
from dgl_dmns.samplers.base import EdgeType, FilteredSampler
from dgl_dmns.samplers.graphs import edges_of

__all__ = ["InBatchSampler"]

_CELLS = 1 << 20  # (source, destination) pairs that are looked up at a time


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

    Args:
        g: the training graph, of any number of types; its edges are the known positives.
        k: negatives per edge.

    Raises:
        ValueError: if ``k`` is below 1 or the graph has no edge.
        TypeError: if ``k`` is not an integer.
    """

    def __init__(self, g: Any, k: int = 1) -> None:
        super().__init__(g, k)
        self._in_degree = {
            etype: share(
                torch.bincount(edges_of(g, etype)[1], minlength=int(g.num_nodes(etype[2]))),
                "in-degrees of nodes take",
            )
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

        def propose(count: int) -> Tensor:
            if not count:
                return offered.new_empty(0)
            return offered[torch.randint(0, offered.numel(), (count,), generator=generator)]

        def listed(left: Tensor) -> Tensor:
            return _draw_offered(known, left, offered, generator)

        return known.draw(src, self.k, propose, listed)

    def _draws(self, etype: EdgeType, dst: Tensor) -> FilteredDraws:
        known = self.known_by_type[etype]
        if dst.numel() == 1:
            return FilteredDraws(known)
        offered, count = dst.unique(return_counts=True)

        def weight(nodes: Tensor) -> Tensor:
            return _times(offered, count, nodes)

        return FilteredDraws(known, weight, float(dst.numel()), offered.numel())

    def _mixture_log_ratio(
        self, etype: EdgeType, src: Tensor, dst: Tensor, nodes: Tensor
    ) -> Tensor:
        ratio = super()._mixture_log_ratio(etype, src, dst, nodes)
        return ratio + self._log_rarity(etype, dst, nodes)

    def _own_log_ratio(
        self, etype: EdgeType, src: Tensor, dst: Tensor, candidates: Tensor
    ) -> Tensor:
        ratio = super()._own_log_ratio(etype, src, dst, candidates)
        return ratio + self._log_rarity(etype, dst, candidates)

    def _log_rarity(self, etype: EdgeType, dst: Tensor, nodes: Tensor) -> Tensor:
        """What makes a sum over the batch's destinations one over all nodes with incoming edges.

        The log of how often a node is expected among the other edges' destinations, over how often
        it stands in the batch; inf for nodes that are no destination of the batch.
        """
        if dst.numel() == 1:
            return torch.zeros(nodes.shape, dtype=torch.float64)
        offered, count = dst.unique(return_counts=True)
        degree = self._in_degree[etype]
        expected = (dst.numel() - 1) * degree[nodes].clamp(min=1).double() / degree.sum()
        log: Tensor = (expected / _times(offered, count, nodes)).log()
        return log


def _draw_offered(
    known: KnownEdges, src: Tensor, offered: Tensor, generator: torch.Generator | None
) -> Tensor:
    """One of the admissible destinations on offer for each source; else a uniform one.

    Args:
        known: the known edges.
        src: source ids, shape [P], int64, which repeat.
        offered: destination ids, shape [B], int64; one that stands there twice counts twice.
        generator: source of randomness.

    Returns:
        Destination ids, shape [P], int64.
    """
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
