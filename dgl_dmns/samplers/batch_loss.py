"""The loss that fits a sampler's negatives, for a batch as its loader returned it.

What a sampler has to know is one thing: the ratio of what a batch's queries draw to uniform draws.
`NegativeSampler.mixture_log_ratio` and `NegativeSampler.own_log_ratio` answer for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgl_dmns.core import EdgeType, KnownEdges, Scorer
from dgl_dmns.samplers.callables import Scorers, scorers_by_type
from dgl_dmns.samplers.minibatch import PairBatch, pair_batches
from dgl_dmns.shared_softmax import Share, shared_softmax_loss

if TYPE_CHECKING:
    from dgl_dmns.samplers.base import NegativeSampler

__all__ = ["batch_loss", "log_ratio_of"]

_FEW = 16  # negatives that say nothing


def batch_loss(
    sampler: NegativeSampler,
    h: Any,
    pos_graph: Any,
    neg_graph: Any,
    scorer: Scorers | None,
    temperature: float,
    share: Share,
    pool: int | None,
    generator: torch.Generator | None,
) -> dict[Any, Tensor]:
    """Losses by edge type, by the keys of a minibatch; see `NegativeSampler.loss`."""
    held = list(sampler.known_by_type)
    batches = pair_batches(h, pos_graph, neg_graph, held)
    scorer_of: Callable[[EdgeType], Scorer | None] = sampler.scorer_of
    if scorer is not None:
        scorer_of = scorers_by_type(scorer, [batch.etype for batch in batches.values()], held)
    losses = {}
    for key, batch in batches.items():
        known = sampler.known_by_type[batch.etype]
        losses[key] = shared_softmax_loss(
            batch.h,
            batch.src,
            batch.dst,
            batch.candidates,
            num_nodes=known.num_dst,
            known=known,
            ids=batch.ids,
            log_ratio=log_ratio_of(sampler, batch, share) if len(batch.src) else None,
            scorer=scorer_of(batch.etype),
            temperature=temperature,
            share=share,
            pool=pool,
            generator=generator,
        )
    return losses


def log_ratio_of(sampler: NegativeSampler, batch: PairBatch, share: Share) -> Tensor:
    """Log ratios of the candidates [B, K], float64, on the CPU."""
    src, dst = batch.ids[0][batch.src.cpu()], batch.ids[1][batch.dst.cpu()]
    candidates = batch.ids[1][batch.candidates.cpu()]
    _check_negatives(sampler.known_by_type[batch.etype], src, candidates)
    ratio_of = sampler.own_log_ratio if share == "edge" else sampler.mixture_log_ratio
    ratio = ratio_of(batch.etype, src, dst, candidates)
    impossible = int((ratio == -torch.inf).sum())
    if impossible:
        raise ValueError(
            f"neg_graph: {impossible} negatives are none that {type(sampler).__name__} draws for "
            "these positives; pass a batch whose negatives this sampler drew"
        )
    return ratio


def _check_negatives(known: KnownEdges, src: Tensor, candidates: Tensor) -> None:
    """Refuse positives in the place of negatives, which known edges are masked among.

    Raises:
        ValueError: if most of the candidates are known edges of their own queries.
    """
    free = known.admissible_count(src) > 0
    own = known.contains(src[free].unsqueeze(1), candidates[free])
    if own.numel() >= _FEW and 2 * int(own.sum()) > own.numel():
        raise ValueError(
            f"neg_graph: {int(own.sum())} of {own.numel()} negatives are known edges of their "
            "sources; pass the positive graph first, and the negative graph that this sampler "
            "drew for it"
        )
