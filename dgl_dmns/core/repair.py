"""The documented fallback for slots that no proposal could fill.

A table never holds an empty slot or a known edge while an admissible node exists: open slots get
uniform admissible nodes, distinct within a group as long as there are enough, with repeats where a
query has fewer than k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgl_dmns.core.known import KnownEdges

__all__ = ["fill_open_slots"]


def fill_open_slots(
    ids: Tensor,
    hole: Tensor,
    known: KnownEdges,
    rows: Tensor,
    generator: torch.Generator | None,
    *,
    rounds: int = 8,
) -> Tensor:
    """Uniform admissible nodes for the slots marked ``hole``, distinct in a group; [B, G, K].

    Twins in a group are redrawn for some rounds, then replaced from the listed admissible nodes;
    those that are left have no other node to take.
    """
    ids, hole = ids.clone(), hole.clone()
    for _ in range(rounds):
        short = hole.flatten(1).any(dim=1).nonzero().squeeze(1)
        if not short.numel():
            return ids
        mine, open_slots = ids[short], hole[short]
        fresh = known.uniform(rows[short], mine[0].numel(), generator=generator).view_as(mine)
        mine = torch.where(open_slots, fresh, mine)
        # Sorting puts equal ids side by side, settled ones before open ones.
        keys, where = (2 * mine + open_slots).sort(dim=-1)
        twin = torch.zeros_like(open_slots)
        twin.scatter_(-1, where[..., 1:], keys[..., 1:] >> 1 == keys[..., :-1] >> 1)
        ids[short], hole[short] = mine, open_slots & twin
    for row in hole.flatten(1).any(dim=1).nonzero().flatten().tolist():
        listed = known.admissible(int(rows[row]))
        for group, open_slots in zip(ids[row], hole[row]):
            rest = listed[~torch.isin(listed, group)]
            order = torch.randperm(rest.numel(), generator=generator, device=rest.device)
            slots = open_slots.nonzero().squeeze(1)[: rest.numel()]
            group[slots] = rest[order[: slots.numel()]]
    return ids
