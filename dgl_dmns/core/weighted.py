r"""Weighted draws among the admissible nodes of a source, exact and without listing them.

For sources whose proposals keep being rejected. Let ``w`` be weights of the N nodes, ``C(x)`` the
weight of all nodes below ``x``, and ``x_0 < x_1 < ...`` the known destinations of a source. Of the
admissible weight, ``f(j) = C(x_j) - sum_{i < j} w(x_i)`` lies below ``x_j``. A point in the
admissible weight is turned into a node by two binary searches: for the j with ``f(j - 1) <= point <
f(j)``, and for the node among all weights.

Weights are taken as integers of ``2^-52`` of their sum, so that sums and differences are exact;
running sums over all known edges may overflow, differences within a row do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgl_dmns.core.known import KnownEdges

__all__ = ["WeightedFallback"]

_UNITS = float(1 << 52)  # of all weights together: a float64 counts them one by one


class WeightedFallback:
    """Draws in proportion to weights among the admissible nodes of sources.

    It takes 8 bytes for each known edge and node.

    Args:
        known: the known edges.
        cumulative: running sum of the weights, shape [N], float64, its last one positive.
    """

    def __init__(self, known: KnownEdges, cumulative: Tensor) -> None:
        self.known = known
        self.up_to = (cumulative * (_UNITS / float(cumulative[-1]))).long()
        indices = known.indices.long()
        self.below = torch.zeros(indices.numel() + 1, dtype=torch.int64)
        torch.cumsum(self._weight(indices), 0, out=self.below[1:])

    def _weight(self, nodes: Tensor) -> Tensor:
        return self.up_to[nodes] - self._before(nodes)

    def _before(self, nodes: Tensor) -> Tensor:
        """``C(x)``: the weight of all nodes below some nodes."""
        return self.up_to[(nodes - 1).clamp(min=0)].masked_fill(nodes == 0, 0)

    def draw(self, src: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One admissible destination for each source.

        Args:
            src: source ids, shape [P], int64, repeated as often as needed.
            generator: source of randomness.

        Returns:
            Destination ids, shape [P], int64; uniform ones where all weights are 0.
        """
        known = self.known
        start, end = known.indptr[src], known.indptr[src + 1]
        total = self.up_to[-1] - (self.below[end] - self.below[start])
        own = None
        if known.exclude_self:
            own = self._weight(src).masked_fill(known.contains_edges(src, src), 0)
            total = total - own
        share = torch.rand(src.shape, generator=generator, dtype=torch.float64)
        point = (share * total).long().minimum(total - 1)
        if own is not None:
            place = known.places(src, lambda at: known.indices[at] < src)
            below_own = self._before(src) - (self.below[place] - self.below[start])
            point = point + own * (point >= below_own)
        place = known.places(
            src,
            lambda at: (
                self._before(known.indices[at].long()) - (self.below[at] - self.below[start])
                <= point
            ),
        )
        drawn = torch.searchsorted(
            self.up_to, point + (self.below[place] - self.below[start]), right=True
        )
        none = (total <= 0).nonzero().squeeze(1)
        drawn[none] = known.uniform_by_rank(src[none], generator=generator)
        return drawn
