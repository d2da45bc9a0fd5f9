r"""Exact weighted draws for many rows at once: without replacement, and among admissible nodes.

`WeightedFallback` serves sources whose proposals keep being rejected. Let ``w`` be weights of the N
nodes, ``C(x)`` the weight of all nodes below ``x``, and ``x_0 < x_1 < ...`` the known destinations
of a source. Of the admissible weight, ``f(j) = C(x_j) - sum_{i < j} w(x_i)`` lies below ``x_j``. A
point in the admissible weight is turned into a node by two binary searches: for the j with
``f(j - 1) <= point < f(j)``, and for the node among all weights. Weights are taken as integers of
``2^-52`` of their sum, so that sums and differences are exact; running sums over all known edges
may overflow, differences within a row do not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgl_dmns.core.known import KnownEdges

__all__ = ["WeightedFallback", "distinct_pools", "draw_distinct", "first_above"]

_ATTEMPTS = 4  # new draws of a slot before its group is finished by Gumbel noise
_UNITS = float(1 << 52)  # of all weights together: a float64 counts them one by one


def draw_distinct(weight: Tensor, groups: int, k: int, generator: torch.Generator | None) -> Tensor:
    """Places drawn in proportion to weights, without replacement within a group.

    Slots are filled one after the other by inverting the cumulative weights, and drawn again while
    they repeat an earlier slot of their group. If one weight rules a row that takes long: then the
    open slots get the largest of logits plus Gumbel noise, which has the same distribution.

    From weights [R, M] of at least 0 to places [R, G, k] in ``0 .. M - 1``, k at most M; a place of
    weight zero is only taken if a row has fewer than k positive weights.
    """
    rows, size = weight.shape
    total = weight.cumsum(-1)
    share = torch.rand(
        rows, groups * k, generator=generator, dtype=torch.float32, device=weight.device
    )
    place = torch.searchsorted(total, share.mul_(total[:, -1:]), right=True)
    # Rounding, or a row of zeros, may have led past the end.
    place = place.clamp_(max=size - 1).view(rows, groups, k)
    done = torch.zeros(rows, groups, dtype=torch.bool, device=weight.device)
    empty = weight.gather(1, place.flatten(1)).view_as(place) <= 0
    group_of = place.view(rows * groups, k)
    for slot in range(k):
        again = (place[..., :slot] == place[..., slot : slot + 1]).any(-1) | empty[..., slot]
        again = (again & ~done).flatten()
        for _ in range(_ATTEMPTS):
            left = again.nonzero().squeeze(1)
            if not left.numel():
                break
            row = torch.div(left, groups, rounding_mode="floor")
            share = torch.rand(
                len(row), generator=generator, dtype=torch.float32, device=weight.device
            )
            fresh = first_above(total, row, share * total[row, -1])
            earlier = group_of.index_select(0, left)[:, :slot]
            group_of[left, slot] = fresh
            again[left] = (earlier == fresh.unsqueeze(1)).any(-1) | (weight[row, fresh] <= 0)
        left = again.nonzero().squeeze(1)
        if left.numel():
            logits = weight[torch.div(left, groups, rounding_mode="floor")].log()
            noise = torch.empty_like(logits).exponential_(generator=generator)
            # Places of no weight come last, but before those that are taken.
            noisy = (logits - noise.log()).clamp(min=torch.finfo(logits.dtype).min)
            noisy.scatter_(1, group_of[left, :slot], -math.inf)
            group_of[left, slot:] = noisy.topk(k - slot, dim=-1).indices
            done |= again.view_as(done)
    return place


def first_above(total: Tensor, row: Tensor, value: Tensor) -> Tensor:
    """The first place of a row whose cumulative weight exceeds a value, else the last place.

    As `torch.searchsorted` of cumulative weights [R, M], but in some rows [P] only, for values [P],
    and without a copy of those rows; places are of shape [P], int64.
    """
    size = total.shape[1]
    start = row * size
    low = torch.zeros_like(row)
    high = torch.full_like(row, size - 1)
    for _ in range((size - 1).bit_length()):
        middle = (low + high) >> 1
        above = total.view(-1).index_select(0, start + middle) > value
        high = torch.where(above, middle, high)
        low = torch.where(above, low, middle + 1).minimum(high)
    return low


def distinct_pools(
    chunks: int, size: int, nodes: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Uniform pools [C, min(M, N)] of distinct members, so that draws from one cannot repeat.

    Members are drawn independently and collisions redrawn; if M is not small beside sqrt(N), the
    largest M of N random keys are taken.
    """
    if size * size >= nodes:
        keys = torch.rand((chunks, nodes), generator=generator, dtype=torch.float32, device=device)
        return keys.topk(min(size, nodes), dim=1).indices
    pool = torch.randint(0, nodes, (chunks, size), generator=generator, device=device)
    while True:
        ordered, where = pool.sort(dim=1)
        twin = torch.zeros_like(pool, dtype=torch.bool)
        twin.scatter_(1, where[:, 1:], ordered[:, 1:] == ordered[:, :-1])
        count = int(twin.sum())
        if not count:
            return pool
        pool[twin] = torch.randint(0, nodes, (count,), generator=generator, device=device)


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
        """One admissible destination for each source [P], int64; uniform if all weights are 0."""
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
