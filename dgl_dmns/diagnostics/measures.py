r"""Numbers that say how hard and how varied negatives are; plain tensors.

Symbols: Q queries, C negatives a query, R random nodes a query, N nodes.

- **Percentile** of a negative: the share of random nodes of the same query that score lower, ties
  counted by half. 0.5 is what a random node has; 1 beats all of them.
- **Gini index** of how often nodes are drawn: 0 if all are drawn alike, near 1 if a few take all.
  Few draws from many nodes are uneven by chance, so it is read beside that of uniform draws.
- **Entropy** of the same counts over the largest possible one, ``log min(draws, N)``.
- **Psi**: the paper (DMNS, section 4.4) shows that negatives have the density ``p_pos^lambda`` with
  ``lambda`` in (0, 1), sub-linear positivity, wherever a quantity ``Psi`` is not negative. The end
  of the chain, t = 0, models the positives, ``N(m_0, s_0^2)``. For a negative x, the embedding u of
  a positive, ``a = sqrt(abar_t) (u - m_0)`` and ``Delta = x - sqrt(abar_t) u``,

      ``Psi = 2 Delta . a + Delta . Delta = |x - sqrt(abar_t) m_0|^2 - |a|^2``:

  the negative is at least as far from the positives' mean as the positive is, both at the scale of
  step t. This is a reconstruction, and need not be the paper's quantity to the letter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["entropy", "gini", "percentiles", "psi_distance", "top_share"]


def percentiles(score: Tensor, random_score: Tensor) -> Tensor:
    """The percentile of each score among the random ones of its row.

    >>> percentiles(torch.tensor([[2.5, 0.0]]), torch.tensor([[3.0, 1.0, 2.0, 0.0]])).tolist()
    [[0.75, 0.125]]

    Args:
        score: shape [Q, C].
        random_score: shape [Q, R] with R of at least 1.

    Returns:
        Shares in [0, 1], shape [Q, C], float32.

    Raises:
        ValueError: if the rows differ in number, or there is no random score.
    """
    if score.shape[0] != random_score.shape[0] or random_score.shape[1] < 1:
        raise ValueError(
            f"random_score: expected shape [{score.shape[0]}, R] with R >= 1, got "
            f"{tuple(random_score.shape)}"
        )
    ordered = random_score.sort(dim=1).values.contiguous()
    score = score.contiguous()
    below = torch.searchsorted(ordered, score, right=False)
    up_to = torch.searchsorted(ordered, score, right=True)
    return (below + up_to).float() / (2 * random_score.shape[1])


def gini(counts: Tensor) -> float:
    """The Gini index of counts [N], zeros included; NaN if all are zero.

    >>> gini(torch.tensor([5, 5, 5, 5])), gini(torch.tensor([0, 0, 0, 8]))
    (0.0, 0.75)
    """
    total = float(counts.sum())
    if total == 0:
        return math.nan
    ordered = counts.double().sort().values
    count = len(ordered)
    place = torch.arange(1, count + 1, dtype=torch.float64)
    return (2 * float((place * ordered).sum()) / total - (count + 1)) / count


def entropy(counts: Tensor) -> float:
    """Entropy of counts [N] over the largest that so many draws can have, in [0, 1].

    NaN with less than two draws or nodes.

    >>> entropy(torch.tensor([3, 3, 0, 0])) == 0.5
    True
    """
    draws = int(counts.sum())
    most = min(draws, len(counts))
    if most < 2:
        return math.nan
    share = counts[counts > 0].double() / draws
    return float(-(share * share.log()).sum()) / math.log(most)


def top_share(counts: Tensor, part: float = 0.01) -> float:
    """Share of the draws that the most drawn nodes take; NaN without draws.

    Args:
        counts: how often each of N nodes was drawn, shape [N], not negative.
        part: the nodes counted as most drawn, as a share of N; at least one node.
    """
    total = float(counts.sum())
    most = max(1, round(part * len(counts)))
    return float(counts.topk(most).values.sum()) / total if total else math.nan


def psi_distance(x: Tensor, u: Tensor, mean: Tensor, alpha_bar: Tensor) -> Tensor:
    """``Psi`` of negatives; see the module's text.

    Args:
        x: negatives, shape [L, B, D].
        u: positives of the same queries, shape [B, D].
        mean: means of the chain's end, shape [B, D].
        alpha_bar: ``abar`` of the levels, shape [L].

    Returns:
        ``|x - sqrt(abar) m_0|^2 - abar |u - m_0|^2``, shape [L, B].
    """
    abar = alpha_bar.view(-1, 1)
    negative = (x - abar.sqrt().unsqueeze(-1) * mean).square().sum(-1)
    return negative - abar * (u - mean).square().sum(-1)
