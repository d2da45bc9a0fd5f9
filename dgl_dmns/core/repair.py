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
from dgl_dmns.core.table import NO_LEVEL, CandidateTable

__all__ = ["carry_over", "fill_open_slots"]

_BLOCK = 4096  # rows that are looked through at a time
_CELLS = 1 << 20  # (group, admissible node) cells at a time


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

    Twins in a group are redrawn for some rounds, or once for rows of at most 4 K admissible
    nodes, then replaced by other admissible nodes; those that are left have no other node to take.
    """
    ids, hole = ids.clone(), hole.clone()
    count = known.admissible_count(rows)
    scarce = count <= 4 * ids.shape[-1]
    for attempt in range(rounds):
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

    Args:
        ids: what the slots hold, shape [R, G, K], int64; of the open ones copies of others.
        hole: which slots are open, shape [R, G, K], bool.
        known: the known edges.
        rows: query ids, shape [R], int64.
        width: the largest number A of admissible nodes of these queries, at least 1.
        generator: source of randomness.
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


def carry_over(
    table: CandidateTable, known: KnownEdges, sizes: Tensor, generator: torch.Generator | None
) -> CandidateTable:
    """A table for a graph that has changed, with the rows of another one.

    Args:
        table: the table so far, of the first queries of the new graph.
        known: the known edges of the new graph, which may have more queries.
        sizes: groups of the rows of the new table, shape [N], int64.
        generator: source of the uniform nodes.

    Returns:
        A table of the same version. Rows that have grown repeat their groups, those that have
        shrunk keep the first ones. What is live in it holds no known edge, as far as there are
        admissible nodes: such slots, and the rows of new queries, have uniform nodes.
    """
    folder = None if table.path is None else table.path.parent
    new = CandidateTable(sizes, table.k, folder=folder)
    if not table.version:
        return new
    new.counter.copy_(table.counter)
    new.unfinished.copy_(table.unfinished)
    old = min(table.queries, known.num_src)
    before = table.sizes()
    for rows in torch.arange(known.num_src).split(_BLOCK):
        owner, place = new.spread(rows)
        here = rows[owner]
        kept = here < old
        mine = here[kept]
        source = table.start[mine] + (place[kept] - new.start[mine]) % before[mine]
        for name in ("ids", "level"):
            getattr(new, name)[:, place[kept]] = getattr(table, name)[:, source]
        ids, level = new.current()
        drawn = ids[place].long().unsqueeze(1)
        hole = known.contains(here.view(-1, 1, 1), drawn)
        hole[~kept] = True
        ids[place] = fill_open_slots(drawn, hole, known, here, generator).squeeze(1).int()
        level[place] = level[place].masked_fill(hole.squeeze(1), NO_LEVEL)
    return new
