"""Ranks, ranking metrics, and full and candidate ranking.

Symbols: B queries, C candidates a query, N nodes, D width, E edges.

1. Rank.  ``rank = 1 + #{candidates above the positive} + #{candidates equal to it} / 2``: ties
   count as average rank, so that a constant score is worth what chance is worth, not a first
   place.  Ranks are therefore multiples of one half.
2. Metrics, with one relevant item a query: MRR = mean 1 / rank (which is MAP then),
   Hits@n = share of ranks <= n, NDCG = mean 1 / log2(1 + rank).
3. Filter.  The full ranking leaves out the query and its known neighbours, the positive excepted:
   another true neighbour above the positive is no mistake.  "Known" has to be *all* edges, the
   held-out ones included.

Scores that are not a number are refused: each comparison with one is false, and a diverged encoder
would take the first rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgl_dmns.checks import as_integer
from dgl_dmns.evaluate.checks import (
    Score,
    check_ids,
    check_known,
    check_numbers,
    check_shape,
    check_tensors,
    known_of,
)

__all__ = ["candidate_ranking", "full_ranking", "ranking_metrics", "ranks"]


def ranks(positive: Tensor, candidates: Tensor, mask: Tensor | None = None) -> Tensor:
    """The rank of each positive among its candidates, ties counted as average rank.

    Args:
        positive: float [B], the positives' scores.
        candidates: float [B, C], the scores of the others; C may be 0.
        mask: bool [B, C], True where a candidate counts; None: all count.

    Returns:
        float64 [B], from 1 to C + 1, in steps of one half.

    Raises:
        ValueError: a shape does not fit, or a score is NaN (masked ones included).
        TypeError: the mask is not bool.
    """
    check_tensors(positive=positive, candidates=candidates)
    check_shape("positive", positive, "[B]", positive.dim() == 1)
    check_shape(
        "candidates",
        candidates,
        f"[{len(positive)}, C]",
        candidates.dim() == 2 and len(candidates) == len(positive),
    )
    check_numbers("positive", positive)
    check_numbers("candidates", candidates)
    above = candidates > positive[:, None]
    equal = candidates == positive[:, None]
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"mask: expected bool, got {mask.dtype}; convert with .bool()")
        check_shape("mask", mask, str(list(candidates.shape)), mask.shape == candidates.shape)
        above, equal = above & mask, equal & mask
    return 1.0 + above.sum(1, dtype=torch.float64) + 0.5 * equal.sum(1, dtype=torch.float64)


def ranking_metrics(rank: Tensor, hits: Sequence[int] = (1, 10, 50)) -> dict[str, float]:
    """Summarise ranks.

    Args:
        rank: float or integer [B], ranks from 1, at least one.
        hits: the n of Hits@n; a tied rank such as 10.5 misses Hits@10.

    Returns:
        ``MRR``, ``NDCG`` and ``Hits@n`` for each n, all in (0, 1] or, for Hits, [0, 1].

    Raises:
        ValueError: no rank, a rank below 1 or NaN, or an n below 1.
    """
    check_tensors(rank=rank)
    check_shape("rank", rank, "[B] with B >= 1", rank.dim() == 1 and len(rank) > 0)
    rank = rank.to(torch.float64)
    if not bool((rank >= 1.0).all()):
        raise ValueError(
            f"rank: expected ranks of at least 1, got {float(rank.min())}; ranks count from 1"
        )
    metrics = {
        "MRR": float((1.0 / rank).mean()),
        "NDCG": float((1.0 / torch.log2(1.0 + rank)).mean()),
    }
    for n in (as_integer("hits", one) for one in hits):
        if n < 1:
            raise ValueError(f"hits: expected numbers of at least 1, got {n}; remove it")
        metrics[f"Hits@{n}"] = float((rank <= n).to(torch.float64).mean())
    return metrics


@torch.no_grad()
def full_ranking(
    h: Tensor,
    pairs: Tensor,
    known: tuple[Tensor, Tensor],
    score: Score | None = None,
    batch: int = 1024,
) -> Tensor:
    """Rank each positive among all N nodes, the query and its other known neighbours left out.

    Args:
        h: float [N, D], embeddings.
        pairs: int64 [2, B], (query, positive) columns.
        known: (indptr, indices), int64 [N + 1] and [E]: all known edges in both directions as
            CSR, held-out ones included (`GraphData.csr`).
        score: maps h_q [b, 1, D] and h_c [1, N, D] to scores [b, N], larger for likelier; None:
            dot product, as one matrix product.  It is called without gradients.
        batch: b, queries scored at once; a scorer that forms [b, N, D] wants a small one.

    Returns:
        float64 [B], ranks, on the device of h.

    Raises:
        ValueError: a shape does not fit, an id is out of range, a pair is a self loop, or a
            score is NaN.
        TypeError: ids are not integers.
    """
    check_tensors(h=h, pairs=pairs)
    batch = as_integer("batch", batch)
    check_shape("h", h, "[N, D]", h.dim() == 2)
    check_shape("pairs", pairs, "[2, B]", pairs.dim() == 2 and pairs.shape[0] == 2)
    if batch < 1:
        raise ValueError(f"batch: expected at least 1, got {batch}; raise it")
    num_nodes, device = len(h), h.device
    check_ids("pairs", pairs, num_nodes)
    build = "all edges in both directions, for example with GraphData.csr()"
    check_known(*known, num_nodes, num_nodes, build)
    if bool((pairs[0] == pairs[1]).any()):
        raise ValueError(
            "pairs: expected a positive that differs from its query, got self loops; remove them"
        )
    pairs = pairs.to(device=device, dtype=torch.int64)
    indptr, indices = (part.to(device=device, dtype=torch.int64) for part in known)
    result = torch.empty(pairs.shape[1], dtype=torch.float64, device=device)
    for start in range(0, pairs.shape[1], batch):
        query, positive = pairs[:, start : start + batch]
        if score is None:
            values = h[query] @ h.t()
        else:
            values = score(h[query][:, None, :], h[None, :, :])
            expected = (len(query), num_nodes)
            check_shape("score", values, f"{list(expected)}", values.shape == expected)
        row = torch.arange(len(query), device=device)
        mask = torch.ones(len(query), num_nodes, dtype=torch.bool, device=device)
        mask[known_of(indptr, indices, query)] = False
        mask[row, query] = False
        mask[row, positive] = False
        result[start : start + batch] = ranks(values[row, positive], values, mask)
    return result


@torch.no_grad()
def candidate_ranking(
    h: Tensor, query: Tensor, candidates: Tensor, score: Score | None = None
) -> Tensor:
    """Rank the positive in column 0 among the fixed negatives in the other columns.

    Args:
        h: float [N, D], embeddings.
        query: int64 [B], query nodes.
        candidates: int64 [B, 1 + C], the positive and its C negatives.
        score: maps h_q [B, 1, D] and h_c [B, 1 + C, D] to scores [B, 1 + C]; None: dot product.

    Returns:
        float64 [B], ranks from 1 to 1 + C.

    Raises:
        ValueError: a shape does not fit, an id is out of range, or a score is NaN.
        TypeError: ids are not integers.
    """
    check_tensors(h=h, query=query, candidates=candidates)
    check_shape("h", h, "[N, D]", h.dim() == 2)
    check_shape("query", query, "[B]", query.dim() == 1)
    check_shape(
        "candidates",
        candidates,
        f"[{len(query)}, 1 + C] with C >= 1",
        candidates.dim() == 2 and len(candidates) == len(query) and candidates.shape[1] > 1,
    )
    check_ids("query", query, len(h))
    check_ids("candidates", candidates, len(h))
    h_q, h_c = h[query.to(h.device).long()][:, None, :], h[candidates.to(h.device).long()]
    values = (h_q * h_c).sum(-1) if score is None else score(h_q, h_c)
    check_shape("score", values, str(list(candidates.shape)), values.shape == candidates.shape)
    return ranks(values[:, 0], values[:, 1:])
