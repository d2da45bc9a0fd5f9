"""The documented fallback for slots that no proposal could fill.

A table never holds an empty slot or a known edge while an admissible node exists: open slots get
uniform admissible nodes, distinct within a group as long as there are enough, with repeats where a
query has fewer than k. Where a graph has changed, slots are open that hold an edge by now, and the
rows of new queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.table import UNIFORM_LEVEL, CandidateTable

__all__ = ["carry_over", "fill_open_slots"]

_BLOCK = 4096  # rows that are looked through at a time


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


def carry_over(
    table: CandidateTable, known: KnownEdges, groups: int, generator: torch.Generator | None
) -> CandidateTable:
    """A table for a graph that has changed, with the rows of another one.

    Args:
        table: the table so far, of the first queries of the new graph.
        known: the known edges of the new graph, which may have more queries.
        groups: groups of the new table, the first ones of the other, at most as many as it has.
        generator: source of the uniform nodes.

    Returns:
        A table of the same version. What is live in it holds no known edge, as far as there are
        admissible nodes: such slots, and the rows of new queries, have uniform nodes.
    """
    old, _, k = table.shape
    folder = None if table.path is None else table.path.parent
    new = CandidateTable(known.num_src, groups, k, folder=folder)
    if not table.version:
        return new
    new.counter.copy_(table.counter)
    new.unfinished.copy_(table.unfinished)
    for name in ("ids", "log_ratio", "level"):
        getattr(new, name)[:, :old] = getattr(table, name)[:, :, :groups]
    ids, log_ratio, level = new.current()
    for rows in torch.arange(known.num_src).split(_BLOCK):
        here = slice(int(rows[0]), int(rows[-1]) + 1)
        hole = known.contains(rows.view(-1, 1, 1), ids[here])
        hole[rows >= old] = True
        ids[here] = fill_open_slots(ids[here].long(), hole, known, rows, generator).int()
        log_ratio[here].masked_fill_(hole, 0.0)
        level[here].masked_fill_(hole, UNIFORM_LEVEL)
    return new
