r"""Real nodes of one hardness level each, drawn over all nodes at once.

A table serves training: small pools, levels mixed, a few candidates a query. Evaluation and a look
at the levels want many nodes of a single level, without the distortion of a pool: for query ``v``
and level ``t``, n distinct nodes in proportion to ``N(z_u; m_t(v), s_t(v)^2)^lambda`` over all
admissible nodes, by Gumbel noise and the n largest. That costs one pass over the nodes a query.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from dgl_dmns.core.generator import DiffusionGenerator
from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.repair import fill_open_slots

__all__ = ["draw_by_level"]

_CELLS = 1 << 20  # (query, node) cells of a level at a time: a bounded working set


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
    """Nodes of every level, without replacement within a level.

    Args:
        model: the generator.
        z_query: embeddings of the source nodes in the generator's space, shape [Nq, W].
        z_candidate: embeddings of the destination nodes in that space, shape [Nc, W].
        known: edges that are not drawn.
        rows: query ids, shape [B], int64.
        n: nodes per query and level.
        lam: exponent on the density.
        generator: source of the noise.

    Returns:
        Destination ids, shape [B, L, n], int64, hardest level first. Where a query has fewer than n
        admissible nodes, they repeat; one without any gets what `KnownEdges.uniform` gives it.

    Raises:
        TypeError: if the generator's noise predictor is not affine.
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
        best = logits.topk(taken, dim=-1)
        ids = best.indices.masked_fill(best.values.isneginf(), -1)
        ids = pad(ids, (0, n - taken), value=-1).transpose(0, 1)
        parts.append(fill_open_slots(ids, ids < 0, known, part, generator))
    return torch.cat(parts) if parts else rows.new_empty(0, len(model.levels), n)
