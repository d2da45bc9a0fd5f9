"""Places and nodes drawn without replacement, for many rows at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["distinct_pools", "draw_distinct", "first_above"]

_ATTEMPTS = 4  # new draws of a slot before its group is finished by Gumbel noise


def draw_distinct(weight: Tensor, groups: int, k: int, generator: torch.Generator | None) -> Tensor:
    """Places drawn in proportion to weights, without replacement within a group.

    Slots are filled one after the other by inverting the cumulative weights, and drawn again while
    they repeat an earlier slot of their group. Where one weight rules a row that takes long: there
    the open slots get the largest of logits plus Gumbel noise, which has the same distribution.

    Args:
        weight: not negative, shape [R, M].
        groups: groups G in a row.
        k: places in a group, at most M.
        generator: source of randomness.

    Returns:
        Places in ``0 .. M - 1``, shape [R, G, k]; of weight zero only where a row has fewer than k
        positive weights.
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

    As `torch.searchsorted`, but for some rows only, none of which is copied.

    Args:
        total: cumulative weights, shape [R, M].
        row: rows to look in, shape [P], int64.
        value: shape [P].

    Returns:
        Places, shape [P], int64.
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

    Members are drawn independently and collisions redrawn where those are rare; where M is not
    small beside sqrt(N), the largest M of N random keys are taken.
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
