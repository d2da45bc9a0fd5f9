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
from dgl_dmns.samplers.base import EdgeType, FilteredSampler

__all__ = ["InBatchSampler"]


class InBatchSampler(FilteredSampler):
    """Destinations of the batch's own positive edges, shared as negatives of one another.

    Each negative is the destination of a random edge of the batch, so a destination that stands in
    the batch twice is twice as likely. Known edges (the edge's own destination among them) and the
    source itself are rejected and redrawn; where that keeps failing, the draw is among the listed
    admissible destinations of the batch, and where the batch offers none, uniform among all nodes
    that are admissible. A batch of one edge therefore gets uniform negatives.

    `for_queries` takes nodes and has no positives to share: the destinations of as many random
    known edges as there are queries take their place.

    Args:
        g: the training graph, of any number of types; its edges are the known positives.
        k: negatives per edge.

    Raises:
        ValueError: if ``k`` is below 1 or the graph has no edge.
        TypeError: if ``k`` is not an integer.
    """

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
