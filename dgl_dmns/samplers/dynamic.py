"""`DynamicSampler` and `SelfAdversarialSampler`: choice by the encoder's own score alone.

Both are the rivals that a diffusion model has to beat at an equal number of negatives. They share
the table, the refreshes and the filter of `RefreshingSampler`; only the rule differs.
"""

from __future__ import annotations

from typing import Any

from dgl_dmns.core import Hardest, SelfAdversarial
from dgl_dmns.samplers.embedder import Encoder
from dgl_dmns.samplers.refreshing import RefreshingSampler
from dgl_dmns.samplers.settings import NegativesPerEdge

__all__ = ["DynamicSampler", "SelfAdversarialSampler"]


class DynamicSampler(RefreshingSampler):
    """Dynamic negative sampling (DNS): the best-scored ``k`` of a uniform pool.

    Source: Zhang et al., "Optimizing Top-N Collaborative Filtering via Dynamic Negative Item
    Sampling", SIGIR 2013. There, each negative is the best of a pool of its own, scored
    by the model of that very step. Here the ``k`` of a group are the best of one pool, so they are
    distinct, and scores are those of the last refresh. A larger pool makes harder negatives; one of
    all nodes returns the very hardest, the same at each draw.

    Args:
        g: see `RefreshingSampler`, like ``encoder`` and ``k``.
        **options: ``pools``, ``scorer``, ``source``, ``etypes``, ``feat``, ``seed``, ``generator``,
            ``resources`` of `RefreshingSampler`; pools are of 32 by default.

    Raises:
        ValueError, TypeError, MemoryError: as `RefreshingSampler` says.
    """

    def __init__(self, g: Any, encoder: Encoder, k: NegativesPerEdge = 1, **options: Any) -> None:
        self._check_taken(options)
        super().__init__(g, encoder, k, rule=Hardest(), **options)


class SelfAdversarialSampler(RefreshingSampler):
    """Self-adversarial sampling: draws from a uniform pool by the softmax of the encoder's scores.

    Source: Sun et al., "RotatE", ICLR 2019. In the paper the softmax weighs the loss terms; here
    negatives are drawn by it, without replacement within a group. Its log ratio is known, so that
    `bce_loss` can be calibrated (`log_ratio`). `softmax_loss` cannot: the ratio equals the score up
    to a constant of the query, and training diverges.

    Args:
        g: see `RefreshingSampler`, like ``encoder`` and ``k``.
        temperature: positive divisor of the scores; larger is nearer to uniform.
        edge_ratio: if given, each refresh measures the factor on the scores instead, see
            `dgl_dmns.core.SelfAdversarial`.
        **options: ``pools``, ``scorer``, ``source``, ``etypes``, ``feat``, ``seed``, ``generator``,
            ``resources`` of `RefreshingSampler`; pools default to 32 candidates. `loss` needs
            ``pools=Pools(uniform_share=0.5)``.

    Raises:
        ValueError, TypeError, MemoryError: as `RefreshingSampler` says.
    """

    def __init__(
        self,
        g: Any,
        encoder: Encoder,
        k: NegativesPerEdge = 1,
        *,
        temperature: float = 1.0,
        edge_ratio: float | None = None,
        **options: Any,
    ) -> None:
        self._check_taken(options)
        rule = SelfAdversarial(temperature, edge_ratio)
        super().__init__(g, encoder, k, rule=rule, **options)
