"""`UniformSampler`: uniform negatives without false ones, the baseline of every comparison."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dgl_dmns.core import FilteredDraws
from dgl_dmns.samplers.base import EdgeType, FilteredSampler

__all__ = ["UniformSampler"]


class UniformSampler(FilteredSampler):
    """Uniform destinations that are neither a known edge of the source nor the source itself.

    `dgl.dataloading.negative_sampler.Uniform` keeps the source as well but filters nothing;
    ``GlobalUniform`` filters, but replaces the source and may return fewer than ``k``. Draws are
    independent, so a destination may repeat. A node that is linked to all others has no true
    negative: the sampler warns of it at construction and returns the node itself.

    Args:
        g: the training graph, of any number of types; its edges are the known positives.
        k: negatives per edge.

    Raises:
        ValueError: if ``k`` is below 1 or the graph has no edge.
        TypeError: if ``k`` is not an integer.

    Example:
        >>> import dgl, torch
        >>> g = dgl.graph(([0, 1, 2], [1, 2, 0]))
        >>> UniformSampler(g, k=2)(g, torch.tensor([0, 1]))
        (tensor([0, 0, 1, 1]), tensor([2, 2, 0, 0]))
    """

    _uniform = True

    def negatives(self, g: Any, src: Tensor, etype: EdgeType) -> Tensor:  # noqa: D102
        return self.known_of(g, etype).uniform(src, self.k, generator=self._call_generator())

    def _draws(self, etype: EdgeType, dst: Tensor) -> FilteredDraws:
        return FilteredDraws(self.known_by_type[etype])
