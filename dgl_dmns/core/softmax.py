r"""The softmax over a pool that all queries share, without a matrix of all scores.

Symbols: Q queries with embeddings ``q_j``, C nodes of the pool with embeddings ``p_c`` and log
weights ``w_c``; ``d_jc``, corrections of few pairs (-inf: left out); B positives b of queries
``j(b)``; ``o_b``, the log of what else stands in the denominator of a positive, itself at least.
Computed is what the pool adds,

    sum over b of log(e^{o_b} + Z_{j(b)}) - o_b,
    Z_j = sum over c of e^{s(q_j, p_c) + w_c + d_jc},

and its terms. A query with many positives is scored once. The queries are taken in chunks. For the
inner product the gradients are sums of the same exponentials, so they are made in the forward pass,
and nothing of size Q C is kept. Other scorers go through autograd, and each chunk is computed again
in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dgl_dmns.core.snapshot import Scorer, checked_scores, dot_score

__all__ = ["Corrections", "PairScores", "pool_softmax"]

_CHUNK = 128  # queries at a time
_ENTRIES = 1 << 22  # scores of a chunk, or products of embeddings before another scorer: at most
_LOWEST = -60.0  # e^-60 counts nothing beside 1; smaller ones are slow, as denormal numbers


@dataclass(frozen=True, eq=False)
class Corrections:
    """What is added to the logits of single pairs.

    Args:
        row: queries, shape [P], int64.
        column: nodes of the pool, shape [P], int64; a pair that stands there twice gets both.
        value: what is added, shape [P], floating point; -inf leaves the pair out.
    """

    row: Tensor
    column: Tensor
    value: Tensor

    def in_order(self, like: Tensor) -> Corrections:
        """Ordered by row, with values of the dtype of another tensor and all on its device."""
        row, order = self.row.to(like.device).sort()
        column, value = self.column.to(like.device)[order], self.value.to(like)[order]
        return Corrections(row, column, value)

    def add_to(self, logits: Tensor, start: int) -> Tensor:
        """Corrects the logits [b, C] of a chunk that begins at row ``start``, in place."""
        ends = torch.tensor([start, start + logits.shape[0]], device=self.row.device)
        low, high = torch.searchsorted(self.row, ends).tolist()
        at = (self.row[low:high] - start, self.column[low:high])
        return logits.index_put_(at, self.value[low:high], accumulate=True)


@dataclass(frozen=True, eq=False)
class PairScores:
    """How pairs are scored: scores over the temperature, in float32 at least."""

    scorer: Scorer | None
    temperature: float

    def pairs(self, query: Tensor, candidate: Tensor) -> Tensor:
        """Scores [..] of embeddings [.., D]."""
        dtype = torch.promote_types(query.dtype, torch.float32)
        if self.scorer is None:
            with torch.autocast(query.device.type, enabled=False):
                score = dot_score(query.to(dtype), candidate.to(dtype))
        else:
            shape = torch.broadcast_shapes(query.shape, candidate.shape)[:-1]
            score = checked_scores(self.scorer(query, candidate), shape)
        return score.to(dtype) / self.temperature

    def beside(
        self,
        positive: Tensor,
        query: Tensor,
        h: Tensor,
        rows: Tensor,
        out: Tensor,
        log_weight: Tensor | None = None,
    ) -> Tensor:
        """Log of the sum of positives [B] and candidates, rows [B, H] of ``h``, but for some."""
        candidate = h.index_select(0, rows.flatten()).view(*rows.shape, h.shape[1])
        score = self.pairs(query.unsqueeze(1), candidate)
        if log_weight is not None:
            score = score + log_weight.to(score)
        score = score.masked_fill(out.to(score.device), -math.inf)
        return torch.cat([positive.unsqueeze(1), score], dim=1).logsumexp(1)


def pool_softmax(
    query: Tensor,
    pool: Tensor,
    log_weight: Tensor,
    other: Tensor,
    corrections: Corrections,
    scorer: Scorer | None = None,
    temperature: float = 1.0,
    query_of: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What the pool adds to the log denominators of all positives; see the top of this module.

    Args:
        query: embeddings of the queries, shape [Q, D].
        pool: embeddings of the pool, shape [C, D].
        log_weight: shape [C], without gradient; -inf leaves a node out.
        other: finite, shape [B], float32 or float64, with gradient.
        corrections: of single pairs of a query and a node, without gradient.
        scorer: scores of broadcastable embeddings; the inner product where None.
        temperature: what scores are divided by.
        query_of: the query of each positive, shape [B], int64; defaults to one after the other.

    Returns:
        The sum, a scalar of the dtype of ``other``, and its terms, shape [B], without gradient.
    """
    corrections = corrections.in_order(other)
    log_weight = log_weight.to(other)
    if query_of is None:
        query_of = torch.arange(len(other), device=other.device)
    query_of, order = query_of.sort()
    other, terms = other[order], torch.empty_like(other)
    if scorer is None:
        query, pool = query.to(other.dtype) / temperature, pool.to(other.dtype)
        with torch.autocast(other.device.type, enabled=False):
            apply: Any = _InnerProducts.apply
            total, terms[order] = apply(query, pool, log_weight, other, query_of, corrections)
        return total, terms

    def chunk_of(query: Tensor, pool: Tensor, other: Tensor, of: Tensor, start: int) -> Tensor:
        score = scorer(query.unsqueeze(1), pool.unsqueeze(0))
        score = checked_scores(score, (query.shape[0], pool.shape[0]))
        logits = corrections.add_to(score.to(other.dtype) / temperature + log_weight, start)
        logits = torch.cat([logits[of], other.unsqueeze(1)], dim=1)
        return logits.logsumexp(1) - other

    step = max(1, min(_CHUNK, _ENTRIES // max(1, pool.numel())))
    parts = [
        checkpoint(chunk_of, query[some], pool, other[mine], of, some.start, use_reentrant=False)
        for some, mine, of in _chunks(query, query_of, step)
    ]
    added = torch.cat(parts)
    terms[order] = added.detach()
    return added.sum(), terms


def _chunks(query: Tensor, query_of: Tensor, step: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Some queries after the other, their positives, and which of these queries each is of."""
    starts = range(0, query.shape[0], step)
    ends = [*starts[1:], query.shape[0]]
    bounds = torch.searchsorted(query_of, torch.tensor([0, *ends], device=query_of.device)).tolist()
    for start, end, first, last in zip(starts, ends, bounds, bounds[1:]):
        mine = slice(first, last)
        yield slice(start, end), mine, query_of[mine] - start


class _InnerProducts(torch.autograd.Function):
    """`pool_softmax` of inner products, its gradients made along the way."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        pool: Tensor,
        log_weight: Tensor,
        other: Tensor,
        query_of: Tensor,
        add: Corrections,
    ) -> tuple[Tensor, Tensor]:
        needed = any(ctx.needs_input_grad)
        by_query, by_pool, by_other = (torch.zeros_like(x) for x in (query, pool, other))
        step = max(1, min(_CHUNK, _ENTRIES // max(1, pool.shape[0])))
        terms = torch.empty_like(other)
        columns = pool.t()
        least = torch.finfo(other.dtype).min  # in place of -inf, where all are left out
        for some, mine, of in _chunks(query, query_of, step):
            logits = add.add_to(torch.addmm(log_weight, query[some], columns), some.start)
            largest = logits.amax(1, keepdim=True).clamp_(min=least)
            weight = logits.sub_(largest).clamp_(min=_LOWEST).exp_()
            sum_ = weight.sum(1, keepdim=True)
            above = (sum_.log() + largest).squeeze(1)[of] - other[mine]
            terms[mine] = torch.logaddexp(above, torch.zeros_like(above))
            if needed:
                share = above.sigmoid()  # of the pool in the denominator
                by_other[mine] = -share
                times = torch.zeros_like(sum_[:, 0]).index_add_(0, of, share).unsqueeze(1) / sum_
                by_query[some] = (weight @ pool) * times
                by_pool.addmm_(weight.t(), query[some] * times)
        if needed:
            ctx.save_for_backward(by_query, by_pool, by_other, query, pool, other)
        ctx.mark_non_differentiable(terms)
        return terms.sum(), terms

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        *made, query, pool, other = ctx.saved_tensors
        found = [slope * gradients[0] for slope in made]
        if torch.is_grad_enabled():  # create_graph=True: the slopes carry no graph of their own
            once: Any = _Once.apply
            found = [once(slope, of) for slope, of in zip(found, (query, pool, other))]
        return found[0], found[1], None, found[2], None, None


class _Once(torch.autograd.Function):
    """A gradient that cannot be differentiated again, and says so."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, of: Tensor) -> Tensor:
        return slope.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(
            "shared_softmax_loss: gradients of the inner product are made by hand and cannot be "
            "differentiated again; pass scorer=lambda a, b: (a * b).sum(-1) for second derivatives"
        )
