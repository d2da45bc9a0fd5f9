r"""Hard negatives for evaluation, chosen by heuristics that know no model (HeaRT).

Source: Li et al., "Evaluating Graph Neural Networks for Link Prediction: Current Pitfalls and New
Benchmarking", NeurIPS 2023, arXiv 2306.10453, section 4. Each end of a positive is replaced in
turn. Replacements of one end are ranked, for the end that stays, by three heuristics on the
training graph (symbols: A its adjacency matrix, d degrees, N nodes):

- resource allocation, ``RA(v, u) = sum_w A_vw A_wu / d_w``,
- personalised PageRank from v, with restart probability ``alpha``,
- the cosine of the features of v and u;

a node counts with the best (smallest) of its three ranks, ties ranked by their average, and the
best nodes become negatives. Where best ranks are equal, the smaller node id goes first. Known
positives are left out. All of a model's competitors see the same negatives.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dgl_dmns.checks import as_integer, as_number
from dgl_dmns.core import shielded
from dgl_dmns.evaluate.ranking import (
    Score,
    candidate_ranking,
    check_ids,
    check_shape,
    checked_known,
    known_of,
)

__all__ = ["heart_negatives", "heart_ranking"]

_CELLS = 1 << 24  # (node, candidate) cells at a time: a bounded working set
_PUSHES = 60  # steps of PageRank: what is left moves by less than 0.85 ** 60, below 1e-4


@torch.no_grad()
@shielded
def heart_negatives(
    pairs: Tensor,
    observed: tuple[Tensor, Tensor],
    known: tuple[Tensor, Tensor],
    features: Tensor,
    n: int = 500,
    *,
    alpha: float = 0.15,
) -> Tensor:
    """The hardest replacements of either end of held-out pairs, by heuristics.

    Args:
        pairs: int64 [2, B], positive pairs.
        observed: (indptr, indices), int64 [N + 1] and [E]: the training edges in both directions
            as CSR, which the heuristics see.
        known: the same of all known edges, held-out ones included (`GraphData.csr`), which are no
            negatives.
        features: float [N, F], of the nodes.
        n: negatives per pair, an even number; half of them replace each end.
        alpha: restart probability of PageRank, in (0, 1).

    Returns:
        int64 [2, B, n / 2]: replacements of the second end, and of the first, hardest first.

    Raises:
        ValueError: a shape does not fit, an id is out of range, ``n`` is odd or below 2, ``alpha``
            is out of range, or a node has fewer than n / 2 admissible nodes.
        TypeError: ids are not integers.
    """
    check_shape("pairs", pairs, (2, None), "[2, B]")
    check_shape("features", features, (None, None), "[N, F]")
    n, alpha = as_integer("n", n), as_number("alpha", alpha)
    num_nodes = len(features)
    check_ids("pairs", pairs, num_nodes)
    observed, known = (
        checked_known(csr, num_nodes, num_nodes, f"{name}: edges in both directions")
        for name, csr in (("observed", observed), ("known", known))
    )
    if n < 2 or n % 2:
        raise ValueError(f"n: expected an even number of at least 2, got {n}")
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha: expected a probability between 0 and 1, got {alpha}")
    nodes, place = pairs.long().flatten().unique(return_inverse=True)
    admissible = num_nodes - 1 - (known[0][nodes + 1] - known[0][nodes])
    fewest = int(admissible.min()) if nodes.numel() else n
    if fewest < n // 2:
        raise ValueError(
            f"n: expected at most {2 * fewest}, twice the number of admissible nodes of the node "
            f"with fewest, got {n}"
        )
    chosen = [
        _hardest(part, rank, known, n // 2)
        for part, rank in _best_ranks(nodes, observed, features, alpha)
    ]
    table = torch.cat(chosen) if chosen else nodes.new_empty(0, n // 2)
    first, second = place.view(2, -1)
    return torch.stack([table[first], table[second]])


def heart_ranking(
    h: Tensor, pairs: Tensor, negatives: Tensor, score: Score | None = None
) -> Tensor:
    """Rank positives among the negatives of `heart_negatives`.

    Args:
        h: float [N, D], embeddings.
        pairs: int64 [2, B], positive pairs.
        negatives: int64 [2, B, n / 2].
        score: as in `candidate_ranking`, called with the first ends of pairs as queries; None: the
            inner product.

    Returns:
        float64 [B], ranks from 1 to n + 1, ties as their average.

    Raises:
        ValueError: a shape does not fit, an id is out of range, or a score is NaN.
        TypeError: ids are not integers.
    """
    check_shape("pairs", pairs, (2, None), "[2, B]")
    count = pairs.shape[1]
    check_shape("negatives", negatives, (2, count, None), f"[2, {count}, n / 2]")
    swapped = None if score is None else lambda query, candidate: score(candidate, query)
    total = torch.ones(count, dtype=torch.float64, device=h.device)
    for end, way in ((0, score), (1, swapped)):
        candidates = torch.cat([pairs[1 - end].unsqueeze(1), negatives[end].to(pairs)], dim=1)
        total += candidate_ranking(h, pairs[end], candidates, way) - 1
    return total


def _best_ranks(
    nodes: Tensor, observed: tuple[Tensor, Tensor], features: Tensor, alpha: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts [b] of the nodes, and the best rank [b, N] of every node for each of them."""
    indptr, indices = observed
    count = len(features)
    degree = (indptr[1:] - indptr[:-1]).float()
    inverse = degree.clamp(min=1).reciprocal()
    row = torch.arange(count).repeat_interleave(indptr[1:] - indptr[:-1])
    # Columns of `step` sum to one: step[u, w] = A_uw / d_w.
    step = torch.sparse_coo_tensor(
        torch.stack([row, indices]), inverse[indices], (count, count), check_invariants=False
    ).coalesce()
    unit = normalize(features.float(), dim=1)
    for part in nodes.split(max(1, _CELLS // count)):
        here = torch.arange(len(part))
        start = torch.zeros(count, len(part), dtype=torch.float32)
        start[part, here] = 1
        neighbours = torch.zeros(count, len(part), dtype=torch.float32)
        owner = here.repeat_interleave(indptr[part + 1] - indptr[part])
        neighbours[known_of(indptr, indices, part)[1], owner] = 1
        rank = start
        for _ in range(_PUSHES):
            rank = alpha * start + (1 - alpha) * torch.sparse.mm(step, rank)
        heuristics = (torch.sparse.mm(step, neighbours).T, rank.T, unit[part] @ unit.T)
        yield part, torch.stack([_ranks(value.contiguous()) for value in heuristics]).amin(0)


def _ranks(value: Tensor) -> Tensor:
    """Ranks in each row [b, N] from 1 for the largest, ties as their average, float32."""
    ordered = value.sort(dim=1).values
    below = torch.searchsorted(ordered, value)
    up_to = torch.searchsorted(ordered, value, right=True)
    rank: Tensor = value.shape[1] - (below + up_to - 1) / 2
    return rank


def _hardest(nodes: Tensor, rank: Tensor, known: tuple[Tensor, Tensor], n: int) -> Tensor:
    """The n admissible nodes of smallest rank for each node, shape [b, n]."""
    indptr, indices = known
    rank[known_of(indptr, indices, nodes)] = float("inf")
    rank[torch.arange(len(nodes)), nodes] = float("inf")
    return rank.sort(dim=1, stable=True).indices[:, :n]
