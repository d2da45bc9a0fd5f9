"""Slots of a group that no proposal could fill."""

from __future__ import annotations

import torch
from torch import Tensor

from dgl_dmns.core.known import KnownEdges

__all__ = ["fill_open_slots"]

_CELLS = 1 << 20  # (group, admissible node) cells at a time
_ROUNDS = 8  # of redraws for twins in a group


def fill_open_slots(
    ids: Tensor,
    hole: Tensor,
    known: KnownEdges,
    rows: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Uniform admissible nodes for the slots marked ``hole``, distinct in a group.

    Twins in a group are redrawn for some rounds, or once for rows of at most 4 K admissible
    nodes, then replaced by other admissible nodes; those that are left have no other node to take.

    From candidates [B, G, K], int64, of queries ``rows`` [B] to such ones without open slots.
    """
    if not bool(hole.any()):
        return ids
    ids, hole = ids.clone(), hole.clone()
    count = known.admissible_count(rows)
    scarce = count <= 4 * ids.shape[-1]
    for attempt in range(_ROUNDS):
        unsettled = hole.flatten(1).any(dim=1)
        short = (unsettled & ~scarce if attempt else unsettled).nonzero().squeeze(1)
        if not short.numel():
            break
        mine, open_slots = ids[short], hole[short]
        fresh = known.uniform(rows[short], mine[0].numel(), generator=generator).view_as(mine)
        mine = torch.where(open_slots, fresh, mine)
        # Sorting puts equal ids side by side, settled ones before open ones.
        keys, where = (2 * mine + open_slots).sort(dim=-1)
        twin = torch.zeros_like(open_slots)
        twin.scatter_(-1, where[..., 1:], keys[..., 1:] >> 1 == keys[..., :-1] >> 1)
        ids[short], hole[short] = mine, open_slots & twin
    left = (hole.flatten(1).any(dim=1) & (count > 0)).nonzero().squeeze(1)
    # Rows with about as many admissible nodes together: at most 31 sizes.
    size = torch.log2(count[left].double()).long()
    for some in size.unique().tolist():
        alike = left[size == some]
        width = int(count[alike].max())
        for part in alike.split(max(1, _CELLS // (width * ids.shape[1]))):
            ids[part] = _from_the_rest(ids[part], hole[part], known, rows[part], width, generator)
    return ids


def _from_the_rest(
    ids: Tensor,
    hole: Tensor,
    known: KnownEdges,
    rows: Tensor,
    width: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Open slots filled from the admissible nodes that their group does not hold; [R, G, K].

    Open slots hold copies of others; no query [R] has more than ``width`` admissible nodes.
    """
    row = rows.view(-1, 1, 1)
    rank = torch.arange(width, device=rows.device).expand(*ids.shape[:2], width)
    last = known.admissible_count(row) - 1
    held = known.admissible_rank(row, ids).clamp(min=0).minimum(last)
    held = torch.where(known.nth_admissible(row, held) == ids, held, width)
    key = torch.rand(
        *rank.shape[:2], width + 1, generator=generator, dtype=torch.float32, device=rows.device
    )
    key.scatter_(-1, held, 2.0)[..., :-1].masked_fill_(rank > last, 2.0)  # taken, or no node
    best = key[..., :-1].topk(min(width, ids.shape[-1]), dim=-1, largest=False)
    place = hole.cumsum(-1) - 1  # the open slots take the first ones, in order
    here = place.clamp(min=0, max=best.indices.shape[-1] - 1)
    free = hole & (place == here) & (best.values.gather(-1, here) < 1.0)
    fresh = known.nth_admissible(row, best.indices.gather(-1, here).minimum(last))
    return torch.where(free, fresh, ids)
