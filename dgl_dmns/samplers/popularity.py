"""`PopularitySampler`: negatives in proportion to a power of the in-degree (PNS).

Source: Mikolov et al., "Distributed Representations of Words and Phrases and their
Compositionality", NeurIPS 2013, section 2.2: the unigram distribution to the power 3/4 beat both
the plain one and the uniform. A node's in-degree takes the place of a word's frequency.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dgl_dmns.checks import as_number
from dgl_dmns.core import FilteredDraws, WeightedFallback, share, shielded
from dgl_dmns.samplers.base import EdgeType, FilteredSampler
from dgl_dmns.samplers.graphs import edges_of

__all__ = ["PopularitySampler"]


class PopularitySampler(FilteredSampler):
    """Destinations with probability proportional to ``in-degree ^ exponent`` (PNS).

    Parallel edges count each, as in ``g.in_degrees()``; a node without incoming edges has weight 0,
    whatever the exponent. Known edges and the source itself are rejected and redrawn. Where that
    keeps failing, the draw is weighted among the admissible nodes of the source, and uniform among
    them if all of their weights are 0. A draw costs ``O(log N)``. A process that meets such a
    source keeps 8 bytes for each edge and node of the type from then on.

    Args:
        g: the training graph, of any number of types; its edges are the known positives.
        k: negatives per edge.
        exponent: finite and at least 0; 0 is uniform over the nodes that have incoming edges.

    Raises:
        ValueError: if ``exponent`` or ``k`` is out of range or the graph has no edge.
        TypeError: if ``g`` is no graph, ``k`` not an integer, or ``exponent`` no number.
    """

    @shielded
    def __init__(self, g: Any, k: int = 1, exponent: float = 0.75) -> None:
        exponent = as_number("exponent", exponent)
        if not (math.isfinite(exponent) and exponent >= 0):
            raise ValueError(
                f"exponent: expected a finite number of at least 0, got {exponent}; 0 is uniform "
                "over the nodes with incoming edges, 1 proportional to the in-degree"
            )
        super().__init__(g, k)
        self.exponent = exponent
        self._cumulative: dict[EdgeType, Tensor] = {}
        self._fallback: dict[EdgeType, WeightedFallback] = {}  # made where one is needed
        self._positive: dict[EdgeType, int] = {}
        for etype in g.canonical_etypes:
            destinations = edges_of(g, etype)[1]
            degree = torch.bincount(destinations, minlength=int(g.num_nodes(etype[2]))).double()
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

        def propose(count: int) -> Tensor:
            return _draw(cumulative, count, generator)

        def exact(left: Tensor) -> Tensor:
            if etype not in self._fallback:
                self._fallback[etype] = WeightedFallback(known, cumulative)
            return self._fallback[etype].draw(left, generator=generator)

        return known.draw(src, self.k, propose, exact)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_fallback": {}}

    def _draws(self, etype: EdgeType, dst: Tensor) -> FilteredDraws:
        cumulative = self._cumulative[etype]

        def weight(nodes: Tensor) -> Tensor:
            return cumulative[nodes] - cumulative[(nodes - 1).clamp(min=0)] * (nodes > 0)

        total = float(cumulative[-1:].sum())
        return FilteredDraws(self.known_by_type[etype], weight, total, self._positive[etype])

    def __repr__(self) -> str:
        return f"PopularitySampler(k={self.k}, exponent={self.exponent})"


def _draw(cumulative: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Positions drawn by their cumulative weights [N], float64; those of weight 0 never come."""
    total = cumulative[-1]
    point = torch.rand(count, dtype=torch.float64, generator=generator) * total
    # "right": the first position whose cumulative weight exceeds the point, so one with a weight.
    # Rounding may lift a point to the total itself; the last position with a weight takes it.
    last = torch.searchsorted(cumulative, total)
    return torch.searchsorted(cumulative, point, right=True).clamp(max=last)
