"""`InBatchSampler`: the other edges' destinations as negatives.

Source: Chen et al., "On Sampling Strategies for Neural Network-based Collaborative Filtering", KDD
2017 ("negative sharing"). Destinations of positive edges come in proportion to their
in-degree, so these are popularity-weighted negatives whose embeddings the batch computes anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.mixture import FilteredDraws
from dgl_dmns.samplers.base import EdgeType, FilteredSampler, edges_of

__all__ = ["InBatchSampler"]


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
            etype: torch.bincount(
                edges_of(g, etype)[1], minlength=int(g.num_nodes(etype[2]))
            ).share_memory_()
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

        def listed(node: int, count: int) -> Tensor:
            source = torch.tensor([node])
            pool = offered[~known.contains(source, offered)]
            if not pool.numel():
                return known.uniform(source, count, generator=generator).squeeze(0)
            return pool[torch.randint(0, pool.numel(), (count,), generator=generator)]

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


def _times(offered: Tensor, count: Tensor, nodes: Tensor) -> Tensor:
    """How often nodes are on offer, given the distinct ones in ascending order: float64."""
    place = torch.searchsorted(offered, nodes).clamp(max=offered.numel() - 1)
    times: Tensor = count[place] * (offered[place] == nodes)
    return times.double()
