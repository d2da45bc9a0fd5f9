"""`DynamicSampler` and `SelfAdversarialSampler`: choice by the encoder's own score alone.

Both are the rivals that a generator has to beat at an equal number of negatives. They share the
table, the refreshes and the filter of `RefreshingSampler`; only the rule differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dgl_dmns.core import Hardest, PoolSettings, SelfAdversarial
from dgl_dmns.samplers.base import EdgeName
from dgl_dmns.samplers.refreshing import Encoder, RefreshingSampler, Source
from dgl_dmns.samplers.relation import NegativesPerEdge, Scorers
from dgl_dmns.samplers.resources import Resources

__all__ = ["DynamicSampler", "SelfAdversarialSampler"]


class DynamicSampler(RefreshingSampler):
    """Dynamic negative sampling (DNS): the best-scored ``k`` of a uniform pool.

    Source: Zhang et al., "Optimizing Top-N Collaborative Filtering via Dynamic Negative Item
    Sampling", SIGIR 2013. There, each negative is the best of a pool of its own, scored
    by the model of that very step. Here the ``k`` of a group are the best of one pool, so they are
    distinct, and scores are those of the last refresh. A larger pool makes harder negatives;
    ``pool = N`` returns the very hardest, the same at each draw.

    Args:
        g: the training graph; its edges are the known positives. Several node and edge types:
            see `StatefulSampler`.
        encoder: an ``nn.Module`` called as ``encoder(g, g.ndata[feat])`` (heterogeneous graph: with
            a dict of features by node type), or a callable that returns embeddings [N, D]
            (heterogeneous graph: a dict of those).
        k: negatives per edge; a dict by edge type where they differ.
        pool: uniform candidates in a pool, at least ``k``.
        groups: groups of k candidates that rows have on average, at most, see `DMNSSampler`.
        scorer: scores of broadcastable embeddings [.., D], or a dict of such functions by edge
            type; the inner product where not given.
        source: ``"edge"`` or ``"uniform"``, see `StatefulSampler`.
        etypes: edge types to hold tables for; all that have edges where not given.
        feat: name of the node features, for an ``nn.Module`` encoder.
        seed: seed of table building.
        generator: source of the draws in the main process; torch's global one where not given.
        resources: limits of memory, and refreshes in the background; see `Resources`.

    Raises:
        ValueError: for a value out of range, an unsuitable graph, or a missing feature.
        TypeError: for ``k`` or ``encoder`` of a wrong type.
    """

    def __init__(
        self,
        g: Any,
        encoder: Encoder,
        k: NegativesPerEdge = 1,
        *,
        pool: int = 32,
        groups: int | None = None,
        scorer: Scorers | None = None,
        source: Source = "edge",
        etypes: Sequence[EdgeName] | None = None,
        feat: str = "feat",
        seed: int = 0,
        generator: torch.Generator | None = None,
        resources: Resources | None = None,
    ) -> None:
        super().__init__(
            g,
            encoder,
            k,
            rule=Hardest(),
            settings=PoolSettings(pool=pool, groups=groups),
            feat=feat,
            scorer=scorer,
            source=source,
            etypes=etypes,
            seed=seed,
            generator=generator,
            resources=resources,
        )


class SelfAdversarialSampler(RefreshingSampler):
    """Self-adversarial sampling: a uniform pool's softmax of the current score.

    Source: Sun et al., "RotatE", ICLR 2019. There, the softmax weighs the loss terms of uniform
    negatives; here it is the distribution that negatives are drawn from, without
    replacement within a group; its log ratio is known, for a calibrated `bce_loss` (`log_ratio`).
    Do not calibrate `softmax_loss` by it: the ratio is the score itself, but for a constant of the
    query, so that nothing is left to push down, and training diverges.

    Args:
        g: the training graph; its edges are the known positives. Several node and edge types:
            see `StatefulSampler`.
        encoder: an ``nn.Module`` called as ``encoder(g, g.ndata[feat])`` (heterogeneous graph: with
            a dict of features by node type), or a callable that returns embeddings [N, D]
            (heterogeneous graph: a dict of those).
        k: negatives per edge; a dict by edge type where they differ.
        temperature: positive divisor of the scores; larger is nearer to uniform.
        edge_ratio: measure the divisor instead, at each refresh, see
            `dgl_dmns.core.SelfAdversarial`.
        uniform_share: share of the negatives that are plain uniform ones, drawn in the call, in
            [0, 1]; at least a half for `loss` with negatives that the batch shares.
        pool: uniform candidates in a pool, at least ``k``.
        groups: groups of k candidates that rows have on average, at most, see `DMNSSampler`.
        scorer: scores of broadcastable embeddings [.., D], or a dict of such functions by edge
            type; the inner product where not given.
        source: ``"edge"`` or ``"uniform"``, see `StatefulSampler`.
        etypes: edge types to hold tables for; all that have edges where not given.
        feat: name of the node features, for an ``nn.Module`` encoder.
        seed: seed of table building.
        generator: source of the draws in the main process; torch's global one where not given.
        resources: limits of memory, and refreshes in the background; see `Resources`.

    Raises:
        ValueError: for a value out of range, an unsuitable graph, or a missing feature.
        TypeError: for ``k`` or ``encoder`` of a wrong type.
    """

    def __init__(
        self,
        g: Any,
        encoder: Encoder,
        k: NegativesPerEdge = 1,
        *,
        temperature: float = 1.0,
        edge_ratio: float | None = None,
        uniform_share: float = 0.0,
        pool: int = 32,
        groups: int | None = None,
        scorer: Scorers | None = None,
        source: Source = "edge",
        etypes: Sequence[EdgeName] | None = None,
        feat: str = "feat",
        seed: int = 0,
        generator: torch.Generator | None = None,
        resources: Resources | None = None,
    ) -> None:
        super().__init__(
            g,
            encoder,
            k,
            rule=SelfAdversarial(temperature, edge_ratio),
            settings=PoolSettings(pool=pool, uniform_share=uniform_share, groups=groups),
            feat=feat,
            scorer=scorer,
            source=source,
            etypes=etypes,
            seed=seed,
            generator=generator,
            resources=resources,
        )
