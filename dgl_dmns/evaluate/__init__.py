"""Ranking, recommendation, fixed negatives of known hardness, and the spread of repeated runs."""

from dgl_dmns.evaluate.fixed import FixedNegatives, fixed_negatives
from dgl_dmns.evaluate.heart import heart_negatives, heart_ranking
from dgl_dmns.evaluate.ranking import (
    candidate_ranking,
    filtered_ranking,
    full_ranking,
    ranking_metrics,
    ranks,
    recommendation_metrics,
)
from dgl_dmns.evaluate.statistics import mean_and_stderr, paired_difference

__all__ = [
    "FixedNegatives",
    "candidate_ranking",
    "filtered_ranking",
    "fixed_negatives",
    "full_ranking",
    "heart_negatives",
    "heart_ranking",
    "mean_and_stderr",
    "paired_difference",
    "ranking_metrics",
    "ranks",
    "recommendation_metrics",
]
