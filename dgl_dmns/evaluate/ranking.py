"""Ranks, ranking metrics, full and candidate ranking, and recommendation.

Symbols: B queries, C candidates a query, N nodes, D width, E edges.

1. Rank.  ``rank = 1 + #{candidates above the positive} + #{candidates equal to it} / 2``: ties
   count as average rank, so that a constant score is worth what chance is worth, not a first
   place.  Ranks are therefore multiples of one half.
2. Metrics, with one relevant item a query: MRR = mean 1 / rank (which is MAP then),
   Hits@n = share of ranks <= n, NDCG = mean 1 / log2(1 + rank).
3. Filter.  The full ranking leaves out the query and its known neighbours, the positive excepted:
   another true neighbour above the positive is no mistake.  "Known" has to be *all* edges, the
   held-out ones included.  The filtered ranking does so where queries are no candidates.
4. Recommendation, with R relevant items a query: the candidates of another node type are ranked,
   the known items of the query left out.  Recall@n = relevant items in the first n / R, NDCG@n =
   DCG / (its largest value, reached with min(n, R) relevant items in front), where DCG adds
   1 / log2(1 + place) for each relevant item in the first n.  Ties count as the mean over the
   orders of the tied items.

Scores that are not a number are refused: each comparison with one is false, and a diverged encoder
would take the first rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Callable, Union

import torch
from torch import Tensor

from dgl_dmns import checks
from dgl_dmns.checks import as_integer
from dgl_dmns.core import KnownEdges

__all__ = [
    "Score",
    "candidate_ranking",
    "filtered_ranking",
    "full_ranking",
    "ranking_metrics",
    "ranks",
    "recommendation_metrics",
]

Score = Callable[[Tensor, Tensor], Tensor]
"""Scores of broadcastable embeddings of queries and candidates, larger for likelier."""
Known = Union[KnownEdges, tuple[Tensor, Tensor]]
"""What a ranking leaves out: known edges, or their (indptr, indices) as CSR, int64."""

_DIVERGED = "the encoder or the scorer has diverged, lower the learning rate or clip gradients"


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
    check_shape("positive", positive, (None,), "[B]")
    check_shape("candidates", candidates, (len(positive), None), f"[{len(positive)}, C]")
    check_numbers("positive", positive)
    check_numbers("candidates", candidates)
    above = candidates > positive[:, None]
    equal = candidates == positive[:, None]
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"mask: expected bool, got {mask.dtype}; convert with .bool()")
        check_shape("mask", mask, candidates.shape)
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
    check_shape("rank", rank, (None,), "[B] with B >= 1", least=1)
    rank = rank.to(torch.float64)
    if not bool((rank >= 1.0).all()):
        raise ValueError(
            f"rank: expected ranks of at least 1, got {float(rank.min())}; ranks count from 1"
        )
    metrics = {
        "MRR": float((1.0 / rank).mean()),
        "NDCG": float((1.0 / torch.log2(1.0 + rank)).mean()),
    }
    for n in (as_integer("hits", one, 1) for one in hits):
        metrics[f"Hits@{n}"] = float((rank <= n).to(torch.float64).mean())
    return metrics


@torch.no_grad()
def full_ranking(
    h: Tensor,
    pairs: Tensor,
    known: Known,
    score: Score | None = None,
    batch: int = 1024,
) -> Tensor:
    """Rank each positive among all N nodes, the query and its other known neighbours left out.

    Args:
        h: float [N, D], embeddings.
        pairs: int64 [2, B], (query, positive) columns.
        known: `KnownEdges`, or (indptr, indices), int64 [N + 1] and [E]: all known edges in both
            directions, held-out ones included (`GraphData.csr`).
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
    check_shape("h", h, (None, None), "[N, D]")
    check_shape("pairs", pairs, (2, None), "[2, B]")
    batch = as_integer("batch", batch, 1)
    check_ids("pairs", pairs, len(h))
    build = "all edges in both directions, for example with GraphData.csr()"
    known = checked_known(known, len(h), len(h), build, h.device)
    if bool((pairs[0] == pairs[1]).any()):
        raise ValueError(
            "pairs: expected a positive that differs from its query, got self loops; remove them"
        )
    return _among_unknown(h, h, pairs, known, score, batch, itself=True)


@torch.no_grad()
def filtered_ranking(
    h_query: Tensor,
    h_candidate: Tensor,
    pairs: Tensor,
    known: Known,
    score: Score | None = None,
    batch: int = 256,
) -> Tensor:
    """Rank each positive among all candidates, the query's other known ones left out.

    For queries that are no candidates: users and items, or a knowledge graph as
    `dgl_dmns.data.QueryGraph`, where this is the filtered setting.

    Args:
        h_query: float [Q, D], embeddings of the queries.
        h_candidate: float [N, D], embeddings of the candidates.
        pairs: int64 [2, B], (query, positive) columns.
        known: `KnownEdges`, or (indptr, indices), int64 [Q + 1] and [E]: all known candidates of
            each query, held-out ones included.
        score: maps h_q [b, 1, D] and h_c [1, N, D] to scores [b, N]; None: dot product.
        batch: b, queries scored at once.

    Returns:
        float64 [B], ranks, on the device of h_query.

    Raises:
        ValueError: a shape does not fit, an id is out of range, or a score is NaN.
        TypeError: ids are not integers.
    """
    batch = as_integer("batch", batch, 1)
    csr = _checked(h_query, h_candidate, pairs, known)
    return _among_unknown(h_query, h_candidate, pairs, csr, score, batch)


def _checked(h_query: Tensor, h_candidate: Tensor, pairs: Tensor, known: Known) -> Any:
    """The known candidates of queries, see `checked_known`, once all arguments fit."""
    check_shape("h_query", h_query, (None, None), "[Nq, D]")
    check_shape("h_candidate", h_candidate, (None, None), "[Nc, D]")
    check_shape("pairs", pairs, (2, None), "[2, P]")
    check_ids("pairs", pairs[0], len(h_query))
    check_ids("pairs", pairs[1], len(h_candidate))
    counts, build = (len(h_query), len(h_candidate)), "the edges, for example with KnownEdges"
    return checked_known(known, *counts, build, h_query.device)


def _among_unknown(
    h_query: Tensor,
    h_candidate: Tensor,
    pairs: Tensor,
    known: tuple[Tensor, Tensor],
    score: Score | None,
    batch: int,
    itself: bool = False,
) -> Tensor:
    """Ranks of positives among candidates that are not known; ``itself``: nor the query."""
    parts, device = [], h_query.device
    for query, positive in zip(*(end.to(device).long().split(batch) for end in pairs)):
        values = _scores(h_query[query], h_candidate, score)
        row = torch.arange(len(query), device=device)
        mask = torch.ones_like(values, dtype=torch.bool)
        mask[known_of(*known, query)] = False
        if itself:
            mask[row, query] = False
        mask[row, positive] = False
        parts.append(ranks(values[row, positive], values, mask))
    return torch.cat(parts)


def _scores(h_query: Tensor, h_candidate: Tensor, score: Score | None) -> Tensor:
    """Scores [b, N] of queries [b, D] with all candidates [N, D]."""
    if score is None:
        return h_query @ h_candidate.t()
    values = score(h_query[:, None, :], h_candidate[None, :, :])
    check_shape("score", values, (len(h_query), len(h_candidate)))
    return values


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
    check_shape("h", h, (None, None), "[N, D]")
    check_shape("query", query, (None,), "[B]")
    words = f"[{len(query)}, 1 + C] with C >= 1"
    check_shape("candidates", candidates, (len(query), None), words, least=2)
    check_ids("query", query, len(h))
    check_ids("candidates", candidates, len(h))
    h_q, h_c = h[query.to(h.device).long()][:, None, :], h[candidates.to(h.device).long()]
    values = (h_q * h_c).sum(-1) if score is None else score(h_q, h_c)
    check_shape("score", values, candidates.shape)
    return ranks(values[:, 0], values[:, 1:])


@torch.no_grad()
def recommendation_metrics(
    h_query: Tensor,
    h_candidate: Tensor,
    pairs: Tensor,
    known: Known,
    n: int = 20,
    score: Score | None = None,
    batch: int = 1024,
) -> dict[str, float]:
    """Recall@n and NDCG@n of held-out items, the query's known items left out of the ranking.

    Args:
        h_query: float [Nq, D], embeddings of the queries (users).
        h_candidate: float [Nc, D], embeddings of the candidates (items).
        pairs: int64 [2, P], (query, relevant item) columns, without duplicates.
        known: `KnownEdges`, or (indptr, indices), int64 [Nq + 1] and [E]: the items to leave out,
            those of training.
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
    n, batch = as_integer("n", n, 1), as_integer("batch", batch, 1)
    indptr, indices = _checked(h_query, h_candidate, pairs, known)
    check_shape("pairs", pairs, (2, None), "[2, P] with P >= 1", least=1)
    nodes, device = len(h_candidate), h_query.device
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
        values = _scores(h_query[part], h_candidate, score)
        if not bool(values.isfinite().all()):
            raise ValueError(f"score: expected finite numbers; {_DIVERGED}")
        values = values.index_put(known_of(indptr, indices, part), values.new_tensor(-math.inf))
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


# ---- checks that all of `dgl_dmns.evaluate` shares ----------------------------------------------


def check_shape(
    name: str, value: Any, shape: Sequence[int | None], words: str = "", *, least: int = 0
) -> None:
    """Refuse what is no tensor (TypeError), or has another shape (ValueError).

    None stands for any size of ``least`` or more; ``words`` are what an error calls the shape.
    """
    checks.check_tensor(name, value, "ids or numbers")
    fits = len(shape) == value.dim() and all(
        found >= least if wanted is None else found == wanted
        for found, wanted in zip(value.shape, shape)
    )
    if not fits:
        raise ValueError(
            f"{name}: expected shape {words or list(shape)}, got {list(value.shape)}; reshape or "
            "transpose it"
        )


def check_ids(name: str, ids: Tensor, num_nodes: int) -> None:
    """Refuse what are no ids of nodes ``0 .. num_nodes - 1``, see `dgl_dmns.checks.check_ids`."""
    checks.check_ids(name, ids, num_nodes, dim=None)


def check_numbers(name: str, score: Tensor) -> None:
    """Refuse scores with a NaN among them (ValueError)."""
    if bool(torch.isnan(score).any()):
        raise ValueError(
            f"{name}: expected numbers, got {int(torch.isnan(score).sum())} NaN among "
            f"{score.numel()}; {_DIVERGED}"
        )


def checked_known(
    known: Known,
    num_nodes: int,
    num_candidates: int,
    build: str,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """The CSR arrays of known edges, int64; the error says what to ``build`` them from."""
    indptr, indices = (known.indptr, known.indices) if isinstance(known, KnownEdges) else known
    fits = indptr.dim() == 1 and indices.dim() == 1 and len(indptr) == num_nodes + 1
    if not fits or int(indptr[0]) != 0 or int(indptr[-1]) != len(indices):
        raise ValueError(
            f"known: expected CSR arrays (indptr [{num_nodes + 1}], indices [E]) with indptr from "
            f"0 to E, got shapes {list(indptr.shape)} and {list(indices.shape)}; build them from "
            f"{build}"
        )
    check_ids("known", indices, num_candidates)
    return indptr.to(device=device, dtype=torch.int64), indices.to(device=device, dtype=torch.int64)


def known_of(indptr: Tensor, indices: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Row in ``query`` and id of each known neighbour, int64 [P] each."""
    count = indptr[query + 1] - indptr[query]
    owner = torch.repeat_interleave(torch.arange(len(query), device=query.device), count)
    within = torch.arange(len(owner), device=query.device)
    within -= (torch.cumsum(count, 0) - count)[owner]
    return owner, indices[indptr[query][owner] + within]
