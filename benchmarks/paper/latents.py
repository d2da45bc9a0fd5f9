r"""DMNS with latent negatives: points of the embedding space, drawn from the diffusion model.

Per epoch: fit the diffusion model a little further on the detached embeddings, take the Gaussians
of all levels in closed form, draw latents per level and training edge, and add real uniform
negatives.  The score of a latent is its inner product with the query's embedding; gradients reach
the query alone.

Sub-linear positivity is measured in two readings of Psi, `dgl_dmns.diagnostics.psi_distance` and
`psi_density`. Shares of Psi >= 0 are over the negatives of one epoch, per level.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.paper.config import Latent
from benchmarks.paper.negatives import Terms, real_scores
from benchmarks.paper.problem import Problem
from dgl_dmns.core import (
    DiffusionGenerator,
    FiLMPredictor,
    LevelGaussians,
    Levels,
    NoiseSchedule,
    level_gaussians,
    noise_to,
    sample_chain,
    sample_neighbours,
)
from dgl_dmns.diagnostics import psi_distance

__all__ = ["LatentSource", "psi_density", "slot_levels"]


def slot_levels(levels: int, curriculum: str, stage: int, epoch: int) -> list[int]:
    """The level that each of L slots is filled from at an epoch; see `Latent.curriculum`.

    >>> slot_levels(4, "easy-first", 10, 15)
    [2, 2, 2, 3]
    """
    let_in = min(epoch // stage, levels - 1)
    if curriculum == "easy-first":
        return [max(slot, levels - 1 - let_in) for slot in range(levels)]
    if curriculum == "hard-first":
        return [min(slot, let_in) for slot in range(levels)]
    return list(range(levels))


class LatentSource:
    """Latent negatives of all levels beside real uniform ones.

    ``seed`` is that of the diffusion model, its fitting, and the draws.
    """

    def __init__(self, problem: Problem, method: Latent, seed: int) -> None:
        self.problem = problem
        self.method = method
        self.random = torch.Generator().manual_seed(seed)
        self.seed = seed
        self.levels = Levels(method.fractions, method.weights)
        kind = NoiseSchedule.cosine if method.schedule == "cosine" else NoiseSchedule.linear
        self.schedule = kind(method.steps)
        self.model: DiffusionGenerator | None = None
        # What the shares of Psi are taken from, when they are asked for.
        self.drawn: tuple[Tensor, list[int], Tensor] | None = None
        self.weight = torch.tensor(self.levels.loss_weights * method.copies)

    def terms(self, h: Tensor, epoch: int) -> Terms:
        """Negatives for embeddings [N, D], which carry gradients."""
        query, method = self.problem.query, self.method
        if method.source == "reverse" and epoch % method.refresh_every == 0:
            self._fit(h.detach())
        slots = slot_levels(len(self.levels), method.curriculum, method.stage, epoch)
        slots = slots * method.copies
        latents, keep = self._draw(h.detach(), slots)
        if method.unit_norm:
            latents = normalize(latents, dim=-1)
        h_query = h.index_select(0, query)
        score = torch.stack([(h_query * latent).sum(-1) for latent in latents], dim=1)
        weight = self.weight.expand_as(score)
        if keep is not None:
            weight = weight * keep.t()
        if method.uniform:
            real = self.problem.known.uniform(query, method.uniform, generator=self.random)
            score = torch.cat([score, real_scores(h, query, real)], dim=1)
            weight = torch.cat([weight, torch.ones(real.shape)], dim=1)
        return Terms(score, weight)

    def statistics(self) -> dict[str, float]:
        """Shares of Psi >= 0 per level, in the last epoch."""
        if self.drawn is None:
            return {}
        own = len(self.levels)  # further copies repeat the levels
        z, slots, latents = self.drawn
        return {
            f"psi {kind} T*{fraction:g}": share
            for kind, held in self._held(z, slots[:own], latents[:own]).items()
            for fraction, share in zip(self.levels.fractions, held.float().mean(1).tolist())
        }

    def _fit(self, h: Tensor) -> None:
        settings = self.method
        steps = settings.fit_steps
        if self.model is None:
            steps = settings.warmup_steps
            self.model = DiffusionGenerator(
                h.shape[1],
                levels=self.levels,
                schedule=self.schedule,
                space=settings.space,
                compact_width=settings.compact_width,
                learning_rate=settings.learning_rate,
                batch_pairs=settings.batch_pairs,
                predictor=self._predictor(h.shape[1]),
                seed=self.seed,
            )
        self.model.space.update(h)
        z = self.model.space.encode(h)
        self.model.fit(z, z, self.problem.known, steps, generator=self.random)

    def _predictor(self, width: int) -> FiLMPredictor | None:
        settings = self.method
        if settings.conditional:
            return None
        width = width if settings.space == "raw" else min(width, settings.compact_width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return FiLMPredictor(width, conditional=False)

    @torch.no_grad()
    def _draw(self, h: Tensor, slots: list[int]) -> tuple[Tensor, Tensor | None]:
        """Latents [L, E, D] in the space of the embeddings, and which to keep (None: all)."""
        query = self.problem.query
        if self.method.source == "forward":
            return self._noised_neighbours(h, slots), None
        assert self.model is not None
        z = self.model.space.encode(h)
        if self.method.sampling == "chain":
            states = sample_chain(
                self.model.predictor,
                self.schedule,
                z[query],
                self.model.steps,
                generator=self.random,
            )
            return self.model.space.decode(states[slots]), None
        assert isinstance(self.model.predictor, FiLMPredictor)
        every = level_gaussians(self.model.predictor, self.schedule, z, self.model.steps)
        latents = torch.empty(len(slots), query.numel(), z.shape[1])
        for latent, slot in zip(latents, slots):
            latent.normal_(generator=self.random)
            latent.mul_(every.std[slot].index_select(0, query))
            latent.add_(every.mean[slot].index_select(0, query))
        self.drawn = (z, slots, latents)
        keep = None
        if self.method.drop != "none":
            keep = self._held(*self.drawn)[self.method.drop]
        return self.model.space.decode(latents), keep

    @torch.no_grad()
    def _held(self, z: Tensor, slots: list[int], latents: Tensor) -> dict[str, Tensor]:
        """Where Psi is not negative, by kind, [L, E]; the model must be the one of the draw."""
        assert self.model is not None
        assert isinstance(self.model.predictor, FiLMPredictor)
        query = self.problem.query
        # Step 0 is the model of the positives.
        every = level_gaussians(self.model.predictor, self.schedule, z, (0, *self.model.steps))
        chosen = [1 + slot for slot in slots]
        drawn = LevelGaussians(every.mean[chosen][:, query], every.std[chosen][:, query])
        first = LevelGaussians(every.mean[:1, query], every.std[:1, query])
        positive = z[self.problem.positive]
        alpha_bar = self.schedule.alpha_bar[[self.model.steps[slot] for slot in slots]]
        return {
            "distance": psi_distance(latents, positive, first.mean[0], alpha_bar) >= 0,
            "density": psi_density(latents, positive, drawn, first) >= 0,
        }

    def _noised_neighbours(self, h: Tensor, slots: list[int]) -> Tensor:
        """A random training neighbour of each edge's query, noised to each level; [L, E, D]."""
        query, known = self.problem.query, self.problem.known
        drawn = []
        steps = self.levels.steps(self.schedule.steps)
        for slot in slots:
            neighbour = sample_neighbours(known, query, generator=self.random)
            t = torch.full(query.shape, steps[slot], dtype=torch.int64)
            noise = torch.randn(len(query), h.shape[1], generator=self.random)
            drawn.append(noise_to(self.schedule, h[neighbour], t, noise))
        return torch.stack(drawn)


def psi_density(
    x: Tensor, u: Tensor, negatives: LevelGaussians, positives: LevelGaussians
) -> Tensor:
    """``Psi`` as a difference of log densities, up to normalising constants.

    With ``d^2 = sum ((x - m) / s)^2``, ``p_t(x) = p_0(u)^lambda`` where ``lambda = d_t^2(x) /
    d_0^2(u)``, which is in (0, 1) exactly where ``Psi = d_0^2(u) - d_t^2(x) > 0``.

    Args:
        x: negatives, shape [L, B, D].
        u: positives of the same queries, shape [B, D].
        negatives: Gaussians of the levels, [L, B, D].
        positives: Gaussians of the chain's end, [1, B, D].

    Returns:
        ``d_0^2(u) - d_t^2(x)``, shape [L, B].
    """
    near = ((u - positives.mean) / positives.std).square().sum(-1)
    return near - ((x - negatives.mean) / negatives.std).square().sum(-1)
