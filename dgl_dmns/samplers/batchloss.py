"""The loss of a batch by edge type: of this process alone, or with the candidates of all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgl_dmns.checks import as_flag
from dgl_dmns.core import CPU, EdgeType, Scorer, SharedPool
from dgl_dmns.gathered import gathered, part_of_pool, ranks
from dgl_dmns.samplers.callables import Scorers, scorers_by_type
from dgl_dmns.samplers.minibatch import PairBatch, known_by_row, pair_batches, weighed
from dgl_dmns.shared_softmax import Comparison, checked_ends, shared_places, shared_softmax_loss

if TYPE_CHECKING:
    from dgl_dmns.samplers.base import NegativeSampler

__all__ = ["loss_of_batch"]

_Weighed = tuple[Any, Any]
"""Log ratios and which are chosen, see `weighed`; None for an empty batch."""


def loss_of_batch(
    sampler: NegativeSampler,
    given: tuple[Any, Any, Any],
    *,
    scorer: Scorers | None,
    temperature: float,
    share: Comparison,
    pool: int | None,
    filtered: bool,
    discount: float,
    reduce: str,
    gather: bool,
    generator: torch.Generator | None,
) -> Any:
    """See `NegativeSampler.loss`; ``given`` are its embeddings and its two graphs."""
    if reduce not in ("sum", "none"):
        raise ValueError(f"reduce: expected 'sum' or 'none', got {reduce!r}")
    for name, flag in (("filtered", filtered), ("gather", gather)):
        as_flag(name, flag, f"loss(..., {name}=True)")
    if gather:
        _check_gather(share, reduce)
    h, everyone, held = given[0], None, sampler.known_by_type
    scorer_of: Callable[[EdgeType], Scorer | None] = sampler.scorer_of
    batches: dict[Any, PairBatch] = {}
    weights: dict[Any, _Weighed] = {}

    def read() -> None:
        nonlocal scorer_of
        place = sampler.place_of(_tensors(h)[0]) if _tensors(h) else CPU
        batches.update(pair_batches(*given, list(held), place))
        if scorer is not None:
            scorer_of = scorers_by_type(scorer, [b.etype for b in batches.values()], list(held))
        for key, batch in batches.items():
            weights[key] = weighed(sampler, batch, share) if len(batch.src) else (None, None)

    def offer() -> dict[EdgeType, SharedPool]:
        read()
        most = None if pool is None else part_of_pool(pool)
        return {
            batch.etype: _offered(sampler, batch, weights[key], most, generator)
            for key, batch in batches.items()
            if len(batch.src)
        }

    if gather:
        everyone = gathered(offer, {e: held[e].num_candidates for e in sorted(held)}, _tensors(h))
    else:
        read()
    losses: dict[Any, Tensor] = {}
    for key, batch in batches.items():
        shared = None if everyone is None else everyone.pools.get(batch.etype)
        known, ids = known_by_row(sampler, batch, None if shared is None else shared.nodes)
        ratio, chosen = weights[key]
        losses[key] = shared_softmax_loss(
            batch.h,
            batch.src,
            batch.dst,
            batch.candidates,
            num_nodes=known.num_candidates,
            known=known if filtered or share == "edge" else None,
            ids=ids,
            log_ratio=ratio,
            chosen=chosen,
            scorer=scorer_of(batch.etype),
            temperature=temperature,
            share=share,
            pool=pool if everyone is None else None,
            discount=discount,
            generator=generator,
            shared=shared,
        )
    if reduce == "none":
        return losses
    some = list(losses.values()) or [part[:0].float().sum() for part in _tensors(h)]
    total = torch.stack(some).sum()
    return total if everyone is None else total + everyone.zero.to(total)


def _check_gather(share: str, reduce: str) -> None:
    ranks()
    if share != "batch":
        raise ValueError(
            f"gather: shares the negatives of all ranks, and share={share!r} compares each "
            "positive with its own; leave out one of the two"
        )
    if reduce != "sum":
        raise ValueError(
            "reduce: with gather=True the losses of all edge types are one sum, since a rank whose "
            "batch lacks a type takes part in it; leave reduce='none' out"
        )


def _tensors(h: Any) -> list[Tensor]:
    return list(h.values()) if isinstance(h, Mapping) else [h]


def _offered(
    sampler: NegativeSampler,
    batch: PairBatch,
    weights: _Weighed,
    most: int | None,
    generator: torch.Generator | None,
) -> SharedPool:
    """The shared candidates of a batch, ``most`` at most, for the positives of all ranks."""
    h = checked_ends(batch.h)[1]
    drawn, (ratio, chosen) = batch.candidates.to(h.device), weights
    chosen = None if chosen is None else chosen.to(h.device)
    places = shared_places(drawn.flatten(), len(drawn), chosen, "batch", most, generator)
    num_nodes = sampler.known_by_type[batch.etype].num_candidates
    log_weight = math.log(num_nodes) - ratio.to(h.device).flatten()[places]
    return SharedPool.of(h, batch.ids[1].to(h.device), drawn.flatten()[places], log_weight)
