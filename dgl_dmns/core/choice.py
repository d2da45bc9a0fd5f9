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
from torch.nn.functional import pad

from dgl_dmns.core.known import KnownEdges

__all__ = ["WeightedFallback", "distinct_pools", "draw_distinct", "first_above"]

_THIN = 1e-2  # share of a row's weight below which rounding would tell
_STEPS = 8  # of the first pass of a search, a comparison each; halves follow
_UNITS = float(1 << 52)  # of all weights together: a float64 counts them one by one


def draw_distinct(weight: Tensor, groups: int, k: int, generator: torch.Generator | None) -> Tensor:
    """Places drawn in proportion to weights, without replacement within a group.

    Slots are filled one after the other by inverting the cumulative weights: a point in the weight
    that is left is moved past the intervals of the places that are taken. Where so little is left
    that rounding would tell, the open slots of a group get the least of exponential noise over the
    weight, which has the same distribution.

    From weights [R, M] of at least 0 to places [R, G, k] in ``0 .. M - 1``, k at most M; a place of
    weight zero is only taken if a row has fewer than k positive weights.
    """
    rows, size = weight.shape
    shape, device = (k, rows, groups), weight.device
    total = weight.cumsum(-1)
    point = torch.rand(shape, generator=generator, dtype=torch.float32, device=device)
    place = torch.empty(shape, dtype=torch.int64, device=device)
    settled = torch.full(shape[1:], k, dtype=torch.int64, device=device)  # slots of each group
    left = total[:, -1:].expand(shape[1:])
    thin = _THIN * total[:, -1:]
    taken: list[tuple[Tensor, Tensor]] = []  # intervals in order: where they begin, their lengths
    for slot in range(k):
        at = point[slot].mul_(left)
        for begin, length in taken:
            at.addcmul_((at >= begin).to(at.dtype), length)
        place[slot] = here = _search(total, at)
        length = weight.gather(1, here)
        fails = (length <= 0) | ~(left > thin)
        for earlier in place[:slot]:
            fails |= earlier == here
        settled.masked_fill_(fails & (settled > slot), slot)
        if slot < k - 1:
            left = left - length
            _insert(taken, total.gather(1, here).sub_(length), length)
    place = place.permute(1, 2, 0).contiguous()
    short = (settled < k).flatten().nonzero().squeeze(1)
    if short.numel():
        count = settled.flatten()[short].unsqueeze(1)
        slots = torch.arange(k, device=device)
        kept = place.view(-1, k)[short].masked_fill_(slots >= count, size)
        weights = weight.index_select(0, torch.div(short, groups, rounding_mode="floor"))
        noise = torch.empty_like(weights).exponential_(generator=generator).div_(weights)
        # Places of no weight come last, but before those that are taken.
        noise.clamp_(max=torch.finfo(noise.dtype).max)
        noise = pad(noise, (0, 1)).scatter_(1, kept, math.inf)[:, :size]
        fresh = noise.topk(k, dim=1, largest=False).indices
        fresh = fresh.gather(1, (slots - count).clamp_(min=0))
        place.view(-1, k)[short] = torch.where(slots < count, kept, fresh)
    return place


def _search(total: Tensor, value: Tensor) -> Tensor:
    """The first place of each row of cumulative weights [R, M] that exceeds values [R, P], int64.

    The last place if none does. As `torch.searchsorted`, three times as fast for pools.
    """
    size = total.shape[1]
    step = size // _STEPS
    if size % _STEPS or step & (step - 1):
        return torch.searchsorted(total, value, right=True).clamp_(max=size - 1)
    place = torch.zeros(value.shape, dtype=torch.uint8, device=value.device)
    for end in range(step - 1, size - 1, step):
        place += (total[:, end : end + 1] <= value).view(torch.uint8)
    place = place.long().mul_(step)
    while step > 1:
        step //= 2
        place.add_(total.gather(1, place + (step - 1)) <= value, alpha=step)
    return place


def _insert(intervals: list[tuple[Tensor, Tensor]], begin: Tensor, length: Tensor) -> None:
    """Add disjoint intervals to others, elementwise, so that they stay in order."""
    for i, (other, size) in enumerate(intervals):
        before = begin < other
        intervals[i] = torch.minimum(begin, other), torch.where(before, length, size)
        begin, length = torch.maximum(begin, other), torch.where(before, size, length)
    intervals.append((begin, length))


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

    Members are drawn independently and collisions redrawn; of pools of more than a quarter of all
    nodes (`takes_keys`), the largest M of N random keys are taken.
    """
    if takes_keys(size, nodes):
        keys = torch.rand((chunks, nodes), generator=generator, dtype=torch.float32, device=device)
        return keys.topk(min(size, nodes), dim=1).indices
    pool = torch.randint(0, nodes, (chunks, size), generator=generator, device=device)
    left = torch.arange(chunks, device=device)
    while left.numel():
        ordered, where = pool[left].sort(dim=1)
        twin = torch.zeros_like(ordered, dtype=torch.bool)
        twin.scatter_(1, where[:, 1:], ordered[:, 1:] == ordered[:, :-1])
        again = twin.any(dim=1).nonzero().squeeze(1)
        left, twin = left[again], twin[again]
        mine = pool[left]
        fresh = (int(twin.sum()),)
        mine[twin] = torch.randint(0, nodes, fresh, generator=generator, device=device)
        pool[left] = mine
    return pool


def takes_keys(size: int, nodes: int) -> bool:
    """Whether `distinct_pools` draws a number for each node and pool."""
    return 4 * size > nodes


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
