"""Whose turn it is: which group of its row an edge is given.

An edge has its **rank** among the known edges of its source. In the p-th pass since a table was
made it is given the group ``(rank + p * degree) mod size`` of the row: in each pass a different one
for each edge of the source, and in the passes that the row was made for, each group once before any
is given twice. What is counted is how often each edge has asked, a byte for each, in shared
memory: only the process that has the edge in its batch writes there, so that it needs no lock, and
what is drawn does not depend on how many workers draw, or in which order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.sharing import Shareable

__all__ = ["MOST_PASSES", "Turns"]

MOST_PASSES = 255
"""Passes that rows can be made for: what a byte can count."""


class Turns(Shareable):
    """Counts how often each known edge has asked for negatives.

    Args:
        known: the known edges.
        passes: passes over them that rows are made for, up to `MOST_PASSES`.

    Attributes:
        asked: uint8 [E], passes that each edge has asked in, modulo ``passes``; empty where that
            is 1 and there is nothing to count.
    """

    asked: Tensor

    def __init__(self, known: KnownEdges, passes: int = 1) -> None:
        super().__init__()
        self.known = known
        self.passes = max(1, min(passes, MOST_PASSES))
        counted = known.indices.numel() if self.passes > 1 else 0
        self.register_buffer("asked", torch.zeros(counted, dtype=torch.uint8))

    def take(self, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor]:
        """The next turn of each pair, counted as taken.

        Args:
            src: query ids, shape [B], int64.
            dst: destination ids, shape [B], int64.

        Returns:
            Turns from 0 on, int64 [B], to be taken modulo the size of the row; and which pairs are
            known edges, bool [B]: the others have no turn.
        """
        place, found = self.known.find(src, dst)
        start = self.known.indptr[src]
        if self.passes == 1:
            return place - start, found
        degree = self.known.indptr[src + 1] - start
        place = place.clamp(max=max(0, self.asked.numel() - 1))
        times = self.asked[place]
        after = times + 1
        after[after >= self.passes] = 0
        self.asked[place[found]] = after[found]
        return place - start + times.long() * degree, found
