"""Ranking metrics, full and candidate ranking, recommendation, and the spread of repeated runs.

Symbols: B queries, C candidates a query, N nodes, D width, E edges.

1. Rank.  ``rank = 1 + #{candidates above the positive} + #{candidates equal to it} / 2``: ties
   count as average rank, so that a constant score is worth what chance is worth, not a first
   place.  Ranks are therefore multiples of one half.
2. Metrics, with one relevant item a query: MRR = mean 1 / rank (which is MAP then),
   Hits@n = share of ranks <= n, NDCG = mean 1 / log2(1 + rank).
3. Filter.  The full ranking leaves out the query and its known neighbours, the positive excepted:
   another true neighbour above the positive is no mistake.  "Known" has to be *all* edges, the
   held-out ones included.
4. Spread.  Standard error of a mean = sample deviation / sqrt(runs).  Two methods run with the
   same seeds are compared by the mean of their paired differences and Student's t interval.

5. Recommendation, with several relevant items a query (R of them): the candidates of another node
   type are ranked, the known items of the query left out.  Recall@n = relevant items in the first
   n / R, NDCG@n = DCG / (its largest value, reached with min(n, R) relevant items in front), where
   DCG adds 1 / log2(1 + place) for each relevant item in the first n.  Ties count as the mean over
   the orders of the tied items.

Scores that are not a number are refused: each comparison with one is false, and a diverged encoder
would take the first rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Callable, Union

import torch
from torch import Tensor

__all__ = [
    "candidate_ranking",
    "full_ranking",
    "mean_and_stderr",
    "paired_difference",
    "ranking_metrics",
    "ranks",
    "recommendation_metrics",
    "student_t_quantile",
]

Score = Callable[[Tensor, Tensor], Tensor]
Values = Union[Sequence[float], Tensor]


def _check_shape(name: str, value: Tensor, expected: str, fits: bool) -> None:
    if not fits:
        raise ValueError(
            f"{name}: expected shape {expected}, got {list(value.shape)}; reshape or transpose it"
        )


def _check_ids(name: str, ids: Tensor, num_nodes: int) -> None:
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f"{name}: expected node ids as int64 or int32, got {ids.dtype}; convert with .long()"
        )
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= num_nodes):
        raise ValueError(
            f"{name}: expected node ids in 0 .. {num_nodes - 1} (one for each row of h), got "
            f"{int(ids.min())} .. {int(ids.max())}; pass ids of the graph that h was computed on"
        )


def _check_numbers(name: str, score: Tensor) -> None:
    if bool(torch.isnan(score).any()):
        raise ValueError(
            f"{name}: expected numbers, got {int(torch.isnan(score).sum())} NaN among "
            f"{score.numel()}; the encoder or the scorer has diverged, lower the learning rate or "
            "clip gradients"
        )


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
    _check_shape("positive", positive, "[B]", positive.dim() == 1)
    _check_shape(
        "candidates",
        candidates,
        f"[{len(positive)}, C]",
        candidates.dim() == 2 and len(candidates) == len(positive),
    )
    _check_numbers("positive", positive)
    _check_numbers("candidates", candidates)
    above = candidates > positive[:, None]
    equal = candidates == positive[:, None]
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"mask: expected bool, got {mask.dtype}; convert with .bool()")
        _check_shape("mask", mask, str(list(candidates.shape)), mask.shape == candidates.shape)
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
    _check_shape("rank", rank, "[B] with B >= 1", rank.dim() == 1 and len(rank) > 0)
    rank = rank.to(torch.float64)
    if not bool((rank >= 1.0).all()):
        raise ValueError(
            f"rank: expected ranks of at least 1, got {float(rank.min())}; ranks count from 1"
        )
    metrics = {
        "MRR": float((1.0 / rank).mean()),
        "NDCG": float((1.0 / torch.log2(1.0 + rank)).mean()),
    }
    for n in hits:
        if n < 1:
            raise ValueError(f"hits: expected numbers of at least 1, got {n}; remove it")
        metrics[f"Hits@{n}"] = float((rank <= n).to(torch.float64).mean())
    return metrics


def _check_known(
    indptr: Tensor, indices: Tensor, num_nodes: int, num_candidates: int, build: str
) -> None:
    fits = indptr.dim() == 1 and indices.dim() == 1 and len(indptr) == num_nodes + 1
    if not fits or int(indptr[0]) != 0 or int(indptr[-1]) != len(indices):
        raise ValueError(
            f"known: expected CSR arrays (indptr [{num_nodes + 1}], indices [E]) with indptr from "
            f"0 to E, got shapes {list(indptr.shape)} and {list(indices.shape)}; build them from "
            f"{build}"
        )
    _check_ids("known", indices, num_candidates)


def _known_of(indptr: Tensor, indices: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Row in ``query`` and id of each known neighbour, int64 [P] each."""
    count = indptr[query + 1] - indptr[query]
    owner = torch.repeat_interleave(torch.arange(len(query), device=query.device), count)
    within = torch.arange(len(owner), device=query.device)
    within -= (torch.cumsum(count, 0) - count)[owner]
    return owner, indices[indptr[query][owner] + within]


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
    _check_shape("h", h, "[N, D]", h.dim() == 2)
    _check_shape("pairs", pairs, "[2, B]", pairs.dim() == 2 and pairs.shape[0] == 2)
    if batch < 1:
        raise ValueError(f"batch: expected at least 1, got {batch}; raise it")
    num_nodes, device = len(h), h.device
    _check_ids("pairs", pairs, num_nodes)
    build = "all edges in both directions, for example with GraphData.csr()"
    _check_known(*known, num_nodes, num_nodes, build)
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
            _check_shape("score", values, f"{list(expected)}", values.shape == expected)
        row = torch.arange(len(query), device=device)
        mask = torch.ones(len(query), num_nodes, dtype=torch.bool, device=device)
        mask[_known_of(indptr, indices, query)] = False
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
    _check_shape("h", h, "[N, D]", h.dim() == 2)
    _check_shape("query", query, "[B]", query.dim() == 1)
    _check_shape(
        "candidates",
        candidates,
        f"[{len(query)}, 1 + C] with C >= 1",
        candidates.dim() == 2 and len(candidates) == len(query) and candidates.shape[1] > 1,
    )
    _check_ids("query", query, len(h))
    _check_ids("candidates", candidates, len(h))
    h_q, h_c = h[query.to(h.device).long()][:, None, :], h[candidates.to(h.device).long()]
    values = (h_q * h_c).sum(-1) if score is None else score(h_q, h_c)
    _check_shape("score", values, str(list(candidates.shape)), values.shape == candidates.shape)
    return ranks(values[:, 0], values[:, 1:])


@torch.no_grad()
def recommendation_metrics(
    h_query: Tensor,
    h_candidate: Tensor,
    pairs: Tensor,
    known: tuple[Tensor, Tensor],
    n: int = 20,
    score: Score | None = None,
    batch: int = 1024,
) -> dict[str, float]:
    """Recall@n and NDCG@n of held-out items, the query's known items left out of the ranking.

    Args:
        h_query: float [Nq, D], embeddings of the queries (users).
        h_candidate: float [Nc, D], embeddings of the candidates (items).
        pairs: int64 [2, P], (query, relevant item) columns, without duplicates.
        known: (indptr, indices), int64 [Nq + 1] and [E]: the items to leave out, those of training,
            as CSR; ``indptr`` and ``indices`` of `dgl_dmns.core.KnownEdges` will do.
        n: places that count.
        score: maps h_q [b, 1, D] and h_c [1, Nc, D] to scores [b, Nc]; None: dot product.
        batch: b, queries scored at once.

    Returns:
        ``Recall@n`` and ``NDCG@n``, means over the queries that have a relevant item.

    Raises:
        ValueError: a shape does not fit, an id is out of range, there is no pair, a pair stands
            twice or among the known ones, ``n`` or ``batch`` is below 1, or a score is not finite.
        TypeError: ids are not integers.
    """
    _check_shape("h_query", h_query, "[Nq, D]", h_query.dim() == 2)
    _check_shape("h_candidate", h_candidate, "[Nc, D]", h_candidate.dim() == 2)
    fits = pairs.dim() == 2 and pairs.shape[0] == 2 and pairs.shape[1] > 0
    _check_shape("pairs", pairs, "[2, P] with P >= 1", fits)
    if n < 1 or batch < 1:
        raise ValueError(f"n, batch: expected at least 1, got {n} and {batch}; raise them")
    nodes, device = len(h_candidate), h_query.device
    _check_ids("pairs", pairs[0], len(h_query))
    _check_ids("pairs", pairs[1], nodes)
    _check_known(*known, len(h_query), nodes, "the training edges, for example with KnownEdges")
    indptr, indices = (part.to(device=device, dtype=torch.int64) for part in known)
    key = (pairs[0].long() * nodes + pairs[1].long()).to(device).sort().values
    query, item = torch.div(key, nodes, rounding_mode="floor"), key % nodes
    if bool((key.diff() == 0).any()):
        raise ValueError("pairs: expected distinct pairs, got duplicates; call torch.unique first")
    users, count = torch.unique_consecutive(query, return_counts=True)
    # gain[p] is the sum of the discounts of the first p places.
    place = torch.arange(1, nodes + 1, dtype=torch.float64, device=device)
    discount = (1.0 / torch.log2(1.0 + place)) * (place <= n)
    gain = torch.cat([discount.new_zeros(1), discount.cumsum(0)])
    recall, ndcg, done = [], [], 0
    for part, relevant in zip(users.split(batch), count.split(batch)):
        if score is None:
            values = h_query[part] @ h_candidate.t()
        else:
            values = score(h_query[part][:, None, :], h_candidate[None, :, :])
            expected = (len(part), nodes)
            _check_shape("score", values, str(list(expected)), values.shape == expected)
        if not bool(values.isfinite().all()):
            raise ValueError(
                "score: expected finite numbers; the encoder or the scorer has diverged, lower the "
                "learning rate or clip gradients"
            )
        values = values.index_put(_known_of(indptr, indices, part), values.new_tensor(-math.inf))
        owner = torch.repeat_interleave(torch.arange(len(part), device=device), relevant)
        mine = values[owner, item[done : done + len(owner)]]
        done += len(owner)
        if bool(mine.isinf().any()):
            raise ValueError(
                f"pairs: {int(mine.isinf().sum())} of them are known too, so they are left out of "
                "the ranking; hold them out of known"
            )
        # A row of relevant scores for each query, to look them all up in its sorted scores.
        slot = torch.arange(len(owner), device=device) - (relevant.cumsum(0) - relevant)[owner]
        wanted = values.new_full((len(part), int(relevant.max())), math.inf)
        wanted[owner, slot] = mine
        ordered = (-values).sort(dim=1).values
        above = torch.searchsorted(ordered, -wanted)[owner, slot]
        until = torch.searchsorted(ordered, -wanted, right=True)[owner, slot]
        # Places above + 1 .. until are the item's in turn: mean over them.
        tied = (until - above).double()
        share = (until.clamp(max=n) - above).clamp(min=0) / tied
        reached = (gain[until] - gain[above]) / tied
        total = share.new_zeros(2, len(part))
        total.index_add_(1, owner, torch.stack([share, reached]))
        recall.append(total[0] / relevant)
        ndcg.append(total[1] / gain[relevant.clamp(max=n)])
    return {
        f"Recall@{n}": float(torch.cat(recall).mean()),
        f"NDCG@{n}": float(torch.cat(ndcg).mean()),
    }


def _as_values(name: str, values: Values, least: int) -> Tensor:
    result = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if result.dim() != 1 or len(result) < least:
        raise ValueError(
            f"{name}: expected at least {least} value(s) in one dimension, one for each run, got "
            f"shape {list(result.shape)}; pass one number for each run"
        )
    _check_numbers(name, result)
    return result


def mean_and_stderr(values: Values) -> tuple[float, float]:
    """Mean and standard error of repeated runs.

    Args:
        values: float [R], one for each run.

    Returns:
        The mean, and the sample deviation (R - 1) over sqrt(R); NaN for one run, which has no
        spread.

    Raises:
        ValueError: no value, not one dimension, or a NaN.
    """
    data = _as_values("values", values, 1)
    if len(data) == 1:
        return float(data[0]), math.nan
    return float(data.mean()), float(data.std(unbiased=True)) / math.sqrt(len(data))


def _central_mass(t: float, freedom: int) -> float:
    """P(|T| <= t) of Student's T for whole degrees of freedom: a finite sum in an angle."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= (k - 1) / k * cosine * cosine
        total += term
    return 2.0 / math.pi * (angle + sine * total) if odd else sine * total


def student_t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution.

    Args:
        probability: in (0, 1), mass below the quantile.
        freedom: degrees of freedom, an integer of at least 1.

    Returns:
        The t with P(T <= t) = probability, to about 1e-10 of its size.

    Raises:
        ValueError: an argument is outside its range.
    """
    if not 0.0 < probability < 1.0:
        raise ValueError(f"probability: expected a number in (0, 1), got {probability}; scale it")
    if freedom < 1:
        raise ValueError(f"freedom: expected at least 1, got {freedom}; use two runs or more")
    if probability < 0.5:
        return -student_t_quantile(1.0 - probability, freedom)
    central, low, high = 2.0 * probability - 1.0, 0.0, 1.0
    while _central_mass(high, freedom) < central and high < 1e15:
        low, high = high, 2.0 * high
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if _central_mass(middle, freedom) < central:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def paired_difference(a: Values, b: Values, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of a - b over runs with the same seeds, and its Student t interval.

    Args:
        a: float [R], one method's results, R >= 2.
        b: float [R], the other's, run i of both with the same seed and split.
        confidence: mass of the interval, in (0, 1).

    Returns:
        mean, low, high.  The interval assumes that the differences are roughly normal.

    Raises:
        ValueError: lengths differ, fewer than two runs, a NaN, or confidence outside (0, 1).
    """
    first, second = _as_values("a", a, 2), _as_values("b", b, 2)
    if len(first) != len(second):
        raise ValueError(
            f"a and b: expected equal lengths, got {len(first)} and {len(second)}; pair the runs "
            "by seed"
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(
            f"confidence: expected a number in (0, 1), got {confidence}; pass for example 0.95"
        )
    mean, error = mean_and_stderr(first - second)
    half = student_t_quantile(0.5 + confidence / 2.0, len(first) - 1) * error
    return mean, mean - half, mean + half
