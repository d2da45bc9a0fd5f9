"""Embeddings of some nodes of many: those of a sample are held, others fetched when asked for.

Where a graph lies on several machines no process has room for the embeddings of all nodes. A
refresh holds those of a uniform sample of the destinations, which its pools are drawn from; pairs
that are asked for later name other nodes as well, whose rows come from a function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FetchedRows"]


@dataclass(frozen=True, eq=False)
class FetchedRows:
    """Rows of embeddings by node id.

    Args:
        ids: nodes whose rows are held, distinct and ascending, shape [S], int64, S at least 1.
        h: their rows, shape [S, D], float32.
        fetch: from other distinct, ascending ids [P] to their rows [P, D].
    """

    ids: Tensor
    h: Tensor
    fetch: Callable[[Tensor], Tensor]

    @property
    def width(self) -> int:
        """Width D of the rows."""
        return self.h.shape[1]

    def rows(self, ids: Tensor) -> Tensor:
        """Rows [.., D] for ids [..], int64; each of those that are not held is fetched once."""
        flat = ids.flatten()
        place = torch.searchsorted(self.ids, flat).clamp(max=self.ids.numel() - 1)
        found = self.h.index_select(0, place)
        other = (self.ids[place] != flat).nonzero().squeeze(1)
        if other.numel():
            nodes, back = flat[other].unique(return_inverse=True)
            found[other] = self.fetch(nodes)[back]
        return found.view(*ids.shape, self.width)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> FetchedRows:
        """The same of what a function makes of rows: [P, D] to [P, W]."""
        return FetchedRows(self.ids, function(self.h), lambda ids: function(self.fetch(ids)))
