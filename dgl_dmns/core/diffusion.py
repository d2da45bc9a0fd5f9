r"""The conditional diffusion process: noising, loss, one reverse step, chain, closed form.

With an affine predictor ``eps = A_t x + B_t`` a reverse step is affine with Gaussian noise,

    x_{t-1} = a_t x_t + b_t + sigma_t z,
    a_t = (1 - c_t A_t) / sqrt(alpha_t),  b_t = -c_t B_t / sqrt(alpha_t),
    c_t = beta_t / sqrt(1 - abar_t),

so from ``x_T ~ N(0, I)`` every state is exactly a diagonal Gaussian ``N(m_t, diag(s_t^2))`` with

    m_{t-1} = a_t m_t + b_t,  s_{t-1}^2 = a_t^2 s_t^2 + sigma_t^2,
    m_T = 0,  s_T = 1.

One pass of T cheap steps per query thus replaces all sampling chains (DMNS, algorithm 1, lines 6 to
9, draws one chain per negative). `sample_chain` stays for predictors that are not affine, and as
the reference for the closed form.

The negatives of query ``v`` at level ``t`` follow ``N(m_t(v), s_t(v)^2)``. Their density at real
nodes needs no loop over pairs, but two matrix products:

    -1/2 sum_d (u_d - m_d)^2 / s_d^2 = u . (m / s^2) - 1/2 u^2 . (1 / s^2) + const(v).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dgl_dmns.core.predictor import AffineNoisePredictor, NoisePredictor
from dgl_dmns.core.schedule import NoiseSchedule

__all__ = [
    "LevelGaussians",
    "PoolDensities",
    "diffusion_loss",
    "level_gaussians",
    "noise_to",
    "reverse_step",
    "sample_chain",
]

_BLOCK = 2048  # queries whose closed form is computed together: a working set for the cache


@dataclass(frozen=True)
class LevelGaussians:
    """L diagonal Gaussians for each of B queries.

    Args:
        mean: shape [L, B, D].
        std: shape [L, B, D], positive.
    """

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw per level and query, shape [L, B, D]."""
        return self.mean + self.std * torch.empty_like(self.mean).normal_(generator=generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """Natural log density of points [B, D] or [L, B, D] of the queries: shape [L, B]."""
        z = (x - self.mean) / self.std
        return -(0.5 * z.square() + self.std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    def pool_log_prob(self, pool: Tensor) -> Tensor:
        """Log density of every pool member for the queries of its chunk, by matrix products.

        The B queries form C chunks of Q that share a pool of M candidates.

        Args:
            pool: candidate embeddings, shape [C, M, D], with ``B = C * Q``.

        Returns:
            Natural log densities, shape [L, C, Q, M].

        Raises:
            ValueError: if B is no multiple of C, or the widths differ.
        """
        queries, width = self.mean.shape[1:]
        chunks = pool.shape[0]
        if chunks == 0 or queries % chunks or pool.shape[-1] != width:
            raise ValueError(
                f"pool: expected [C, M, {width}] with C dividing the {queries} queries, got "
                f"{tuple(pool.shape)}"
            )
        densities = self.over_pools(chunks)
        return (densities.up_to_constants(pool) + densities.constant).transpose(0, 1).contiguous()

    def over_pools(self, chunks: int, lam: float = 1.0) -> PoolDensities:
        """Densities to the power of ``lam``, ready for pools that C chunks of queries share."""
        levels, queries, width = self.mean.shape
        precision = self.std.pow(-2).mul_(lam)
        weighted = self.mean * precision
        constant = -0.5 * (self.mean * weighted).sum(-1)
        constant -= lam * (self.std.log().sum(-1) + 0.5 * width * math.log(2 * math.pi))
        both = torch.cat([weighted, precision.mul_(-0.5)], -1)
        shape = (levels, chunks, queries // max(1, chunks))
        return PoolDensities(
            both.view(*shape, 2 * width).transpose(0, 1).contiguous(),
            constant.view(*shape, 1).transpose(0, 1),
        )


@dataclass(frozen=True)
class PoolDensities:
    """Log densities of the L levels of the queries of C chunks, as products with pool members.

    Args:
        coefficients: of a member's coordinates and of their squares, shape [C, L, Q, 2 D].
        constant: what comes to it, shape [C, L, Q, 1].
    """

    coefficients: Tensor
    constant: Tensor

    def up_to_constants(self, pool: Tensor, chunks: slice | None = None) -> Tensor:
        """Natural log densities, less `constant`, for pools [c, M, D] of some chunks or all.

        Returns:
            A new tensor of shape [c, L, Q, M].
        """
        these = self.coefficients if chunks is None else self.coefficients[chunks]
        product = these.flatten(1, 2) @ torch.cat([pool, pool.square()], -1).transpose(1, 2)
        return product.view(*these.shape[:3], pool.shape[1])


def noise_to(schedule: NoiseSchedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Forward noising ``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps`` (DMNS, equation 4).

    Of clean data ``x0`` and standard normal noise ``eps``, both of shape [B, D], at steps ``t`` in
    ``0 .. T``, shape [B], int64.
    """
    abar = schedule.alpha_bar[t].unsqueeze(-1)
    noisy: Tensor = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
    return noisy


def diffusion_loss(
    predictor: NoisePredictor,
    schedule: NoiseSchedule,
    x0: Tensor,
    h: Tensor,
    *,
    kind: Literal["l1", "l2"] = "l1",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The noise-prediction loss on one batch of (neighbour, query) pairs (DMNS, equation 9).

    Args:
        predictor: the noise predictor.
        schedule: the noise schedule.
        x0: neighbour embeddings, shape [B, D].
        h: query embeddings, shape [B, D].
        kind: ``"l1"`` (the authors' choice) or ``"l2"``.
        generator: source of the steps and the noise.

    Returns:
        The mean loss, a scalar.

    Raises:
        ValueError: for another ``kind``.
    """
    if kind not in ("l1", "l2"):
        raise ValueError(f"kind: expected 'l1' or 'l2', got {kind!r}")
    t = torch.randint(1, schedule.steps + 1, (x0.shape[0],), generator=generator, device=x0.device)
    eps = torch.empty_like(x0).normal_(generator=generator)
    error: Tensor = predictor(noise_to(schedule, x0, t, eps), t, h) - eps
    return error.abs().mean() if kind == "l1" else error.square().mean()


def reverse_step(schedule: NoiseSchedule, x: Tensor, eps: Tensor, z: Tensor, t: int) -> Tensor:
    """One reverse step from ``x_t`` to ``x_{t-1}``, ``t`` in ``1 .. T`` (DMNS, equation 5).

    Of states ``x``, the predictor's noise estimate ``eps`` and standard normal noise ``z``, all of
    shape [B, D].
    """
    scale = schedule.beta[t] / (1 - schedule.alpha_bar[t]).sqrt()
    previous: Tensor = (x - scale * eps) / schedule.alpha[t].sqrt() + schedule.sigma[t] * z
    return previous


@torch.no_grad()
def sample_chain(
    predictor: NoisePredictor,
    schedule: NoiseSchedule,
    h: Tensor,
    steps: Sequence[int],
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Run the reverse chain from ``x_T ~ N(0, I)`` and keep the states at the given steps.

    Args:
        predictor: any noise predictor.
        schedule: the noise schedule.
        h: query embeddings, shape [B, D].
        steps: L increasing steps in ``0 .. T`` (hardest first).
        generator: source of the noise.

    Returns:
        States, shape [L, B, D], in the order of ``steps``.

    Raises:
        ValueError: if ``steps`` is empty or leaves ``0 .. T``.
    """
    wanted = _wanted(schedule, steps)
    x = torch.empty_like(h).normal_(generator=generator)
    kept = {schedule.steps: x} if schedule.steps in wanted else {}
    for t in range(schedule.steps, min(wanted), -1):
        batch_t = torch.full((h.shape[0],), t, dtype=torch.int64, device=h.device)
        z = torch.empty_like(h).normal_(generator=generator)
        x = reverse_step(schedule, x, predictor(x, batch_t, h), z, t)
        if t - 1 in wanted:
            kept[t - 1] = x
    return torch.stack([kept[t] for t in steps])


@torch.no_grad()
def level_gaussians(
    predictor: AffineNoisePredictor,
    schedule: NoiseSchedule,
    h: Tensor,
    steps: Sequence[int],
) -> LevelGaussians:
    """The exact distribution of the reverse chain's states at the given steps.

    Args:
        predictor: an affine predictor.
        schedule: the noise schedule.
        h: query embeddings, shape [B, D].
        steps: L increasing steps in ``0 .. T`` (hardest first).

    Returns:
        Diagonal Gaussians with means and deviations of shape [L, B, D].

    Raises:
        TypeError: if the predictor is not affine; use `sample_chain` then.
        ValueError: if ``steps`` is empty or leaves ``0 .. T``.
    """
    if not isinstance(predictor, AffineNoisePredictor):
        raise TypeError(
            f"predictor: the closed form needs an AffineNoisePredictor, got "
            f"{type(predictor).__name__}; use sample_chain for other predictors"
        )
    wanted = _wanted(schedule, steps)
    scale_of_noise = schedule.beta / (1 - schedule.alpha_bar).sqrt()
    made_of = [scale_of_noise, schedule.alpha.sqrt(), schedule.sigma.square()]
    c, root, noise = torch.stack(made_of).cpu().tolist()
    means, variances = (h.new_empty(len(steps), *h.shape) for _ in range(2))
    last = min(wanted)
    for start in range(0, h.shape[0], _BLOCK):
        part = slice(start, start + _BLOCK)
        query = h[part]
        mean = query.new_zeros(query.shape[::-1])  # transposed, as the coefficients
        variance = torch.ones_like(mean)
        made = predictor.coefficients_of_steps(range(schedule.steps, last, -1), query)
        for t in range(schedule.steps, last - 1, -1):
            for level, step in enumerate(steps):
                if step == t:
                    means[level, part] = mean.t()
                    variances[level, part] = variance.t()
            if t > last:
                scale, shift = next(made)
                a = (scale * (-c[t] / root[t])).add_(1 / root[t])
                mean.mul_(a).sub_(shift, alpha=c[t] / root[t])
                variance.mul_(a.square_()).add_(noise[t])
    return LevelGaussians(mean=means, std=variances.sqrt_())


def _wanted(schedule: NoiseSchedule, steps: Sequence[int]) -> set[int]:
    if not steps or not all(0 <= t <= schedule.steps for t in steps):
        raise ValueError(
            f"steps: expected one or more steps in 0 .. T = {schedule.steps}, got {list(steps)}"
        )
    return set(steps)
