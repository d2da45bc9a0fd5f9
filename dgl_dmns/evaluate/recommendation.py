"""Recommendation, with several relevant items a query (R of them).

The candidates of another node type are ranked, the known items of the query left out.  Recall@n =
relevant items in the first n / R, NDCG@n = DCG / (its largest value, reached with min(n, R)
relevant items in front), where DCG adds 1 / log2(1 + place) for each relevant item in the first n.
Ties count as the mean over the orders of the tied items.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgl_dmns.checks import as_integer
from dgl_dmns.evaluate.checks import (
    Score,
    check_ids,
    check_known,
    check_shape,
    check_tensors,
    known_of,
)

__all__ = ["recommendation_metrics"]


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
    check_tensors(h_query=h_query, h_candidate=h_candidate, pairs=pairs)
    n, batch = as_integer("n", n), as_integer("batch", batch)
    check_shape("h_query", h_query, "[Nq, D]", h_query.dim() == 2)
    check_shape("h_candidate", h_candidate, "[Nc, D]", h_candidate.dim() == 2)
    fits = pairs.dim() == 2 and pairs.shape[0] == 2 and pairs.shape[1] > 0
    check_shape("pairs", pairs, "[2, P] with P >= 1", fits)
    if n < 1 or batch < 1:
        raise ValueError(f"n, batch: expected at least 1, got {n} and {batch}; raise them")
    nodes, device = len(h_candidate), h_query.device
    check_ids("pairs", pairs[0], len(h_query))
    check_ids("pairs", pairs[1], nodes)
    check_known(*known, len(h_query), nodes, "the training edges, for example with KnownEdges")
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
            check_shape("score", values, str(list(expected)), values.shape == expected)
        if not bool(values.isfinite().all()):
            raise ValueError(
                "score: expected finite numbers; the encoder or the scorer has diverged, lower the "
                "learning rate or clip gradients"
            )
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
