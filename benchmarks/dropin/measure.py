"""What is measured on embeddings: ranking metrics, and how many negatives are held-out edges.

Symbols: N nodes, E training edges, K negatives an edge, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.dropin.model import DotScorer
from benchmarks.dropin.problem import Problem
from dgl_dmns.evaluate import candidate_ranking, full_ranking, heart_ranking, ranking_metrics

__all__ = ["HEART_METRICS", "METRICS", "false_negatives", "mrr", "ranking"]

METRICS = ("MRR", "Hits@10", "Hits@50", "MAP")
"""Over all nodes, known edges left out; MAP among nine fixed uniform negatives."""

HEART_METRICS = ("HeaRT MRR", "HeaRT Hits@10")
"""Of the test edges among HeaRT's negatives, where the recipe asks for them."""

DRAWS = 4
"""Held-out edges are rare: one draw on Cora finds about 25 among its 45,000 uniform negatives."""

_ENTRIES = 2**24  # products [b, N, D] that a scorer forms at once


def _full(problem: Problem, h: Tensor, scorer: nn.Module, part: str) -> dict[str, float]:
    pairs, known = getattr(problem.split, part), problem.data.csr()
    if isinstance(scorer, DotScorer):
        return ranking_metrics(full_ranking(h, pairs, known), hits=(10, 50))
    batch = max(1, _ENTRIES // h.numel())
    return ranking_metrics(full_ranking(h, pairs, known, scorer, batch), hits=(10, 50))


def mrr(problem: Problem, h: Tensor, scorer: nn.Module) -> float:
    """Validation MRR of embeddings [N, D], the figure that training stops by."""
    return _full(problem, h, scorer, "val")["MRR"]


def ranking(problem: Problem, h: Tensor, scorer: nn.Module, part: str) -> dict[str, float]:
    """All `METRICS` of embeddings [N, D] on ``val`` or ``test``; there `HEART_METRICS` too."""
    full = _full(problem, h, scorer, part)
    query, positive = getattr(problem.split, part)
    candidates = torch.cat([positive.unsqueeze(1), problem.nine[part]], dim=1)
    among = ranking_metrics(candidate_ranking(h, query, candidates, scorer))
    found = {name: full[name] for name in METRICS[:-1]} | {METRICS[-1]: among["MRR"]}
    if part == "test" and problem.heart is not None:
        way = None if isinstance(scorer, DotScorer) else scorer
        hard = ranking_metrics(heart_ranking(h, problem.split.test, problem.heart, way), hits=(10,))
        found |= dict(zip(HEART_METRICS, (hard["MRR"], hard["Hits@10"])))
    return found


@torch.no_grad()
def false_negatives(
    problem: Problem, h: Tensor, scorer: nn.Module, sampler: Any, calibrated: bool
) -> dict[str, float | None]:
    """Draw `DRAWS` times for all training edges, and look for held-out edges among the negatives.

    Logits lose the log ratio where ``calibrated``, as in the loss.

    Returns:
        ``false share`` of the negatives; ``uniform false share``, what filtered uniform negatives
        would have on average; and ``weight`` and ``false weight``, the mean gradient
        ``sigmoid(logit)`` that BCE gives to a negative, to any and to a false one (None if there is
        none).
    """
    graph, held = problem.graph, problem.held
    src, dst = sampler(graph, torch.arange(graph.num_edges()).repeat(DRAWS))
    logit = torch.cat([scorer(h[s], h[d]) for s, d in zip(src.split(65536), dst.split(65536))])
    if calibrated:
        logit = logit - sampler.log_ratio((src, dst))
    weight = torch.sigmoid(logit)
    false = held.contains(src, dst)
    degree = graph.out_degrees()
    chance = held.degrees() / (problem.data.num_nodes - 1 - degree).clamp(min=1)
    return {
        "false share": float(false.double().mean()),
        "uniform false share": float(chance[graph.edges()[0]].double().mean()),
        "weight": float(weight.mean()),
        "false weight": float(weight[false].mean()) if bool(false.any()) else None,
    }
