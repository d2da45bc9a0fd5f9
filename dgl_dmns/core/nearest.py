"""Real nodes that are nearest to drawn latents, and those of a single level over all nodes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from dgl_dmns.core.generator import DiffusionGenerator
from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.openslots import fill_open_slots
from dgl_dmns.core.snapshot import Snapshot
from dgl_dmns.core.table import NO_LEVEL, Candidates

__all__ = ["LatentDraw", "draw_by_level"]

_LARGEST = 1e15  # coordinates of a latent beyond that have come apart; their squares are finite
_SIMILARITIES = 20_000_000  # similarities held at a time: a bounded working set
_CELLS = 1 << 20  # (query, node) cells of a level at a time, likewise


class LatentDraw:
    """Draws groups for one block of queries: the nearest real nodes to drawn latents.

    Args:
        searched: number of uniform nodes among which the nearest is searched; from N on, all are.
        snapshot: embeddings and model.
        rows: query ids of the block, shape [B], int64.
        chunk_bytes: bound of the similarities held at a time, in bytes.
        generator: source of randomness.

    Attributes:
        unstable: whether a query had a latent that could not be computed with (uniform nodes stand
            in), shape [B].
    """

    filtered = seen = 0  # no pool member is rejected
    norms: Tensor  # of tractable rules only, which this is not for

    def __init__(
        self,
        searched: int,
        snapshot: Snapshot,
        rows: Tensor,
        chunk_bytes: int,
        generator: torch.Generator | None,
    ) -> None:
        assert snapshot.model is not None
        assert isinstance(snapshot.z_candidate, Tensor)
        self.known, self.z_candidate = snapshot.known, snapshot.z_candidate
        self.rows, self.generator = rows, generator
        self.shares = self.z_candidate.new_tensor(snapshot.model.levels.mixture_shares)
        self.latents = snapshot.model.latent_draws(snapshot.z_query[rows])
        self.searched = searched
        self.every: Tensor | None = None
        if searched >= self.known.num_candidates:
            some = self.known.candidates
            every = self.z_candidate if some is None else self.z_candidate[some]
            self.every = normalize(every, dim=1)
        self.step = max(1, min(_SIMILARITIES, chunk_bytes // 8) // max(1, searched))
        self.unstable = torch.zeros(rows.numel(), dtype=torch.bool, device=rows.device)

    def draw(self, k: int, groups: int) -> Candidates:
        """Candidates of shape [B, G, k]; -1 if no admissible node was found."""
        parts = [self._group(k) for _ in range(groups)]
        return Candidates(*(torch.stack(part, dim=1) for part in zip(*parts)))

    def _group(self, k: int) -> Candidates:
        known, rows, generator = self.known, self.rows, self.generator
        shape, device = (rows.numel(), k), rows.device
        component = torch.multinomial(
            self.shares, rows.numel() * k, replacement=True, generator=generator
        ).view(shape)
        uniform = torch.zeros(shape, dtype=torch.bool, device=device)  # in place of lost latents
        ids = torch.full(shape, -1, dtype=torch.int64, device=device)
        for slot in range(k):
            latents = self.latents(generator)
            latent = latents[component[:, slot], torch.arange(rows.numel(), device=device)]
            uniform[:, slot] = ~(latent.abs().amax(dim=1) < _LARGEST)
            pool, unit = known.candidates, self.every
            if unit is None:
                size, nodes = (self.searched,), known.num_candidates
                place = torch.randint(0, nodes, size, generator=generator, device=device)
                pool = place if pool is None else pool[place]
                unit = normalize(self.z_candidate[pool], dim=1)
            for lo in range(0, rows.numel(), self.step):
                part = slice(lo, lo + self.step)
                cosine = latent[part] @ unit.T
                if pool is None and known.crowded:
                    cosine[known.barred_of(rows[part])] = -math.inf
                nearest = _best_admissible(cosine, rows[part], pool, known, ids[part, :slot])
                ids[part, slot] = nearest.masked_fill(uniform[part, slot], -1)
        self.unstable |= uniform.any(dim=1)
        ids = fill_open_slots(ids.unsqueeze(1), uniform.unsqueeze(1), known, rows, generator)
        level = torch.where(uniform, NO_LEVEL, component).to(torch.uint8)
        return Candidates(ids.squeeze(1), level)


def _best_admissible(
    similarity: Tensor, rows: Tensor, pool: Tensor | None, known: KnownEdges, taken: Tensor
) -> Tensor:
    """The most similar candidate that is neither known nor taken; -1 if none is; [B]."""
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


@torch.no_grad()
def draw_by_level(
    model: DiffusionGenerator,
    z_query: Tensor,
    z_candidate: Tensor,
    known: KnownEdges,
    rows: Tensor,
    n: int,
    *,
    lam: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Nodes of every level over all nodes, without replacement within a level.

    For query ``v`` and level ``t`` in proportion to ``N(z_u; m_t(v), s_t(v)^2)^lambda``, by Gumbel
    noise and the n largest: one pass over the nodes a query.

    Args:
        model: the diffusion model.
        z_query: embeddings of the source nodes in its space, shape [Nq, W].
        z_candidate: embeddings of the destination nodes in its space, shape [Nc, W].
        known: edges that are not drawn.
        rows: query ids, shape [B], int64.
        n: nodes per query and level.
        lam: exponent on the density.
        generator: source of the noise.

    Returns:
        Destination ids, shape [B, L, n], int64, hardest level first. If a query has fewer than n
        admissible nodes, they repeat; one without any gets what `KnownEdges.uniform` gives it.

    Raises:
        TypeError: if the noise predictor is not affine.
    """
    taken = min(n, known.num_dst)
    parts = []
    for part in rows.split(max(1, _CELLS // known.num_dst)):
        gaussians = model.gaussians(z_query[part])
        logits = gaussians.pool_log_prob(z_candidate.unsqueeze(0)).squeeze(1)
        logits *= lam
        logits -= torch.empty_like(logits).exponential_(generator=generator).log()
        owner, node = known.barred_of(part)
        logits[:, owner, node] = -math.inf
        if known.candidates is not None:
            every = torch.arange(known.num_dst, device=rows.device)
            logits[..., ~known.is_candidate(every)] = -math.inf
        best = logits.topk(taken, dim=-1)
        ids = best.indices.masked_fill(best.values.isneginf(), -1)
        ids = pad(ids, (0, n - taken), value=-1).transpose(0, 1)
        parts.append(fill_open_slots(ids, ids < 0, known, part, generator))
    return torch.cat(parts) if parts else rows.new_empty(0, len(model.levels), n)
