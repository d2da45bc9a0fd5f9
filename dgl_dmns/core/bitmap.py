"""A bitmap that rules most pairs out: asked before an exact search in a large set of pairs.

Nearly all pairs that a sampler asks about are not in the set, and for those one look into a hashed
bitmap replaces a binary search. What it does not rule out has to be looked up exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgl_dmns.core.sharing import Shareable

__all__ = ["PairBitmap"]

# Odd 64-bit multipliers (multiply-shift hashing; overflow wraps around): the golden ratio's, and
# one of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
_FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47
_SLOTS = 1 << 24  # at most, one byte each


class PairBitmap(Shareable):
    """A set of pairs of ids, hashed: no false negatives, 6 to 12 % false positives.

    It takes 8 to 16 bytes per pair, 16 MiB at most. With more than 2 million pairs, false positives
    grow; with more than 8 million (39 %) it stays empty, see `useful`.

    Args:
        first: ids, shape [P], int64.
        second: ids, shape [P], int64.
    """

    taken: Tensor

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        pairs = first.numel()
        self.useful = pairs <= _SLOTS // 2
        slots = min(_SLOTS, 1 << max(6, (8 * pairs - 1).bit_length())) if self.useful else 1
        self.shift = 64 - (slots.bit_length() - 1)
        taken = torch.zeros(slots, dtype=torch.bool, device=first.device)
        self.register_buffer("taken", taken, persistent=False)
        if self.useful:
            taken[self._slots(first, second)] = True

    def _slots(self, first: Tensor, second: Tensor) -> Tensor:
        mixed = first * _FIRST + second * _SECOND
        slots: Tensor = (mixed >> self.shift).bitwise_and_(self.taken.numel() - 1)
        return slots

    def may_contain(self, first: Tensor, second: Tensor) -> Tensor:
        """Whether pairs may be in the set; False is certain.

        Args:
            first: ids, any shape, int64.
            second: ids, a shape that broadcasts with ``first``, int64.

        Returns:
            Booleans of the broadcast shape.
        """
        slots = self._slots(first, second)
        return self.taken.index_select(0, slots.flatten()).view(slots.shape)
