"""Sources of negatives by method.

Sources of real nodes hold one of the package's samplers and ask it as any DGL loader does,
``sampler(g, eids)``; gradients then reach both ends of a negative. Latent negatives are in
`benchmarks.paper.latents`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.paper.config import (
    Adversarial,
    Dynamic,
    FixedUniform,
    InBatch,
    Latent,
    MarkovChain,
    Method,
    Popularity,
    RealNodes,
    SelfAdversarial,
    Uniform,
)
from benchmarks.paper.latents import LatentSource
from benchmarks.paper.problem import Problem
from benchmarks.paper.terms import Source, Terms, levels_of, real_scores, schedule_of
from dgl_dmns import samplers
from dgl_dmns.core import NO_LEVEL, Density, Gate, Nearest, Rule

__all__ = ["RealNodesSource", "SampledSource", "make_source"]


class SampledSource:
    """Real nodes from a sampler of the package.

    Args:
        problem: the data.
        sampler: the sampler; one that follows the encoder is refreshed first.
        refresh_every: epochs between refreshes.
        fixed: whether the negatives of the first epoch are kept.
    """

    def __init__(
        self, problem: Problem, sampler: Any, *, refresh_every: int = 1, fixed: bool = False
    ) -> None:
        self.problem = problem
        self.sampler = sampler
        self.refresh_every = refresh_every
        self.fixed = fixed
        self.kept: Tensor | None = None

    def terms(self, h: Tensor, epoch: int) -> Terms:
        if hasattr(self.sampler, "refresh") and epoch % self.refresh_every == 0:
            self.sampler.refresh(embeddings=h.detach())
        negatives = self.kept
        if negatives is None:
            _, dst = self.sampler(self.problem.graph, self.problem.eids)
            negatives = dst.view(-1, self.sampler.k)
            self.kept = negatives if self.fixed else None
        return Terms(real_scores(h, self.problem.query, negatives), None)

    def statistics(self) -> dict[str, float]:
        return {}


class _Scaled:
    """Inner products times a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, h_query: Tensor, h_candidate: Tensor) -> Tensor:
        return self.factor * (h_query * h_candidate).sum(-1)


class RealNodesSource:
    """DMNS with real nodes, in the paper's loss: each negative has the weight of its level.

    Args:
        problem: the data.
        method: the settings.
        seed: of the diffusion model and of the draws.
    """

    def __init__(self, problem: Problem, method: RealNodes, seed: int) -> None:
        settings = method.diffusion
        if not settings.conditional:
            raise ValueError(
                "diffusion: rows of real nodes have a conditional model, got one without"
            )
        nodes = problem.graph.num_nodes()
        rules: dict[str, Rule] = {
            "nearest": Nearest(method.pool or None),
            "density": Density(),
            "gate": Gate(),
        }
        self.problem = problem
        self.refresh_every = settings.refresh_every
        self.sampler = samplers.DMNSSampler(
            problem.graph,
            _never_called,
            method.k,
            levels=levels_of(settings),
            rule=rules[method.rule],
            scorer=_Scaled(method.score_scale) if method.rule == "gate" else None,
            uniform_share=method.uniform_share,
            pool=max(method.k, min(method.pool or 32, nodes)),
            lam=method.lam,
            groups=method.groups,
            fit_steps=settings.fit_steps,
            warmup_steps=settings.warmup_steps,
            batch_pairs=settings.batch_pairs,
            learning_rate=settings.learning_rate,
            space=settings.space,
            compact_width=settings.compact_width,
            schedule=schedule_of(settings),
            seed=seed,
        )
        by_level = torch.ones(NO_LEVEL + 1)
        weights = self.sampler.levels.loss_weights
        by_level[: len(weights)] = torch.tensor(weights)
        self.by_level = by_level

    def terms(self, h: Tensor, epoch: int) -> Terms:
        if epoch % self.refresh_every == 0:
            self.sampler.refresh(embeddings=h.detach())
        drawn = self.sampler.draw(self.problem.query)
        score = real_scores(h, self.problem.query, drawn.ids)
        return Terms(score, self.by_level[drawn.level.long()])

    def statistics(self) -> dict[str, float]:
        report = self.sampler.report
        if report is None:
            return {}
        return {f"score of level {name}": value for name, value in report.table.level_score.items()}


def _never_called() -> Tensor:
    raise RuntimeError("encoder: the benchmark hands embeddings to refresh(); this is a mistake")


def make_source(problem: Problem, method: Method, seed: int) -> Source:
    """The source of a method.

    Args:
        problem: the data.
        method: the method's settings.
        seed: of everything random in it that has a generator of its own.

    Raises:
        TypeError: for a method that has no source.
    """
    g, encoder = problem.graph, _never_called
    sampler: Any
    if isinstance(method, Latent):
        return LatentSource(problem, method, seed)
    if isinstance(method, RealNodes):
        return RealNodesSource(problem, method, seed)
    if isinstance(method, (FixedUniform, Uniform)):
        sampler = samplers.UniformSampler(g, method.k)
        return SampledSource(problem, sampler, fixed=isinstance(method, FixedUniform))
    if isinstance(method, Popularity):
        sampler = samplers.PopularitySampler(g, method.k, method.exponent)
    elif isinstance(method, InBatch):
        sampler = samplers.InBatchSampler(g, method.k)
    elif isinstance(method, Dynamic):
        sampler = samplers.DynamicSampler(
            g, encoder, method.k, pool=method.pool, groups=method.groups, seed=seed
        )
    elif isinstance(method, SelfAdversarial):
        sampler = samplers.SelfAdversarialSampler(
            g,
            encoder,
            method.k,
            pool=method.pool,
            groups=method.groups,
            temperature=method.temperature,
            seed=seed,
        )
    elif isinstance(method, MarkovChain):
        sampler = samplers.MCNSSampler(
            g,
            encoder,
            method.k,
            alpha=method.alpha,
            steps=method.steps,
            groups=method.groups,
            seed=seed,
        )
    elif isinstance(method, Adversarial):
        sampler = samplers.AdversarialSampler(
            g,
            encoder,
            method.k,
            pool=method.pool,
            learning_rate=method.learning_rate,
            seed=seed,
        )
    else:
        raise TypeError(f"method: expected a method of benchmarks.paper.config, got {method!r}")
    return SampledSource(problem, sampler)
