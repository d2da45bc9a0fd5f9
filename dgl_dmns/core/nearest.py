"""The nearest rule: real nodes that stand in for drawn latents (method of the paper, made real)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.repair import fill_open_slots
from dgl_dmns.core.snapshot import Snapshot
from dgl_dmns.core.table import NO_LEVEL, Candidates

__all__ = ["nearest_group"]

_LARGEST = 1e15  # coordinates of a latent beyond that have come apart; their squares are finite
_SIMILARITIES = 20_000_000  # similarities held at a time: a bounded working set


def nearest_group(
    searched: int,
    snapshot: Snapshot,
    rows: Tensor,
    k: int,
    draw_latents: Callable[[torch.Generator | None], Tensor],
    chunk_bytes: int,
    generator: torch.Generator | None,
) -> tuple[Candidates, Tensor]:
    """One group of k candidates for every query: the nearest nodes to latents.

    Args:
        searched: number of uniform nodes to search; all are searched from N on.
        snapshot: embeddings and model.
        rows: query ids, shape [B], int64.
        k: candidates per query.
        draw_latents: draws latents of these queries, shape [L, B, W].
        chunk_bytes: bound of the similarities held at a time, in bytes.
        generator: source of randomness.

    Returns:
        Candidates of shape [B, k], -1 where no admissible node was found; and whether a query had
        a latent that could not be computed with (uniform nodes stand in), shape [B].
    """
    model, known = snapshot.model, snapshot.known
    assert model is not None
    assert snapshot.z_candidate is not None
    z_candidate = snapshot.z_candidate
    device = rows.device
    count = rows.numel()
    shares = z_candidate.new_tensor(model.levels.mixture_shares)
    component = torch.multinomial(shares, count * k, replacement=True, generator=generator)
    component = component.view(count, k)
    uniform = torch.zeros(count, k, dtype=torch.bool, device=device)  # in place of lost latents
    ids = torch.full((count, k), -1, dtype=torch.int64, device=device)
    wild = torch.zeros(count, dtype=torch.bool, device=device)
    every = normalize(z_candidate, dim=1) if searched >= known.num_dst else None
    step = max(1, min(_SIMILARITIES, chunk_bytes // 8) // max(1, searched))
    for slot in range(k):
        latents = draw_latents(generator)
        latent = latents[component[:, slot], torch.arange(count, device=device)]
        uniform[:, slot] = ~(latent.abs().amax(dim=1) < _LARGEST)
        wild |= uniform[:, slot]
        pool, unit = None, every
        if every is None:
            pool = torch.randint(0, known.num_dst, (searched,), generator=generator, device=device)
            unit = normalize(z_candidate[pool], dim=1)
        assert unit is not None
        for lo in range(0, count, step):
            part = slice(lo, lo + step)
            cosine = latent[part] @ unit.T
            if pool is None and known.crowded:
                cosine[known.barred_of(rows[part])] = -math.inf
            nearest = _best_admissible(cosine, rows[part], pool, known, ids[part, :slot])
            ids[part, slot] = nearest.masked_fill(uniform[part, slot], -1)
    ids = fill_open_slots(ids.unsqueeze(1), uniform.unsqueeze(1), known, rows, generator).squeeze(1)
    level = torch.where(uniform, NO_LEVEL, component).to(torch.uint8)
    return Candidates(ids, level), wild


def _best_admissible(
    similarity: Tensor, rows: Tensor, pool: Tensor | None, known: KnownEdges, taken: Tensor
) -> Tensor:
    """The most similar candidate that is neither known nor taken; -1 where none is; [B]."""
    result = torch.full((rows.numel(),), -1, dtype=torch.int64, device=rows.device)
    open_rows = (similarity > -math.inf).any(dim=1).nonzero().squeeze(1)
    remaining = similarity[open_rows]
    # Mostly the best one will do, and a maximum is much cheaper than a few of the best.
    width = 1
    while open_rows.numel():
        width = min(width, similarity.shape[1])
        if width == 1:
            place = remaining.argmax(dim=1, keepdim=True)
        else:
            place = remaining.topk(width, dim=1).indices
        ids = place if pool is None else pool[place]
        barred = known.contains(rows[open_rows].unsqueeze(1), ids)
        barred |= (ids.unsqueeze(2) == taken[open_rows].unsqueeze(1)).any(-1)
        found = ~barred.all(dim=1)
        first = (~barred).int().argmax(dim=1, keepdim=True)
        result[open_rows[found]] = ids.gather(1, first).squeeze(1)[found]
        if width == similarity.shape[1]:
            break
        open_rows = open_rows[~found]
        remaining = similarity[open_rows]
        width *= 8
    return result
