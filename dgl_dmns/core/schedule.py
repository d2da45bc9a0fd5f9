r"""Noise schedules of the diffusion process.

Symbols (DMNS, section 4.1; Ho et al. 2020):

- ``T``: number of diffusion steps; a step index ``t`` runs from 1 to ``T``, ``t = 0`` is clean
  data.
- ``beta_t``: variance added at step ``t``; ``alpha_t = 1 - beta_t``.
- ``abar_t``: product of ``alpha_1 .. alpha_t``; ``abar_0 = 1``.

Forward noising in closed form: ``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps``.

One reverse step with a noise estimate ``eps``:
``x_{t-1} = (x_t - beta_t / sqrt(1 - abar_t) * eps) / sqrt(alpha_t) + sigma_t z``, ``z ~ N(0, I)``,
where ``sigma_t^2`` is the posterior variance ``beta_t (1 - abar_{t-1}) / (1 - abar_t)``, so that
the last step (``t = 1``) adds no noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["NoiseSchedule"]


class NoiseSchedule(nn.Module):
    """The per-step constants of a diffusion process, as buffers indexed by ``t`` in ``0 .. T``.

    Index 0 stands for clean data: ``beta_0 = 0``, ``alpha_0 = abar_0 = 1``, ``sigma_0 = 0``.

    Args:
        betas: shape [T], floating point, each strictly between 0 and 1; ``betas[0]`` is step 1.

    Raises:
        ValueError: if ``betas`` is not one-dimensional, is empty, leaves (0, 1), or starts so small
            that ``1 - abar_t`` is 0 in single precision.
    """

    beta: Tensor
    alpha: Tensor
    alpha_bar: Tensor
    sigma: Tensor

    def __init__(self, betas: Tensor) -> None:
        super().__init__()
        if betas.dim() != 1 or betas.numel() == 0:
            raise ValueError(f"betas: expected shape [T] with T >= 1, got {tuple(betas.shape)}")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("betas: every value has to lie strictly between 0 and 1")
        beta = torch.cat([betas.new_zeros(1), betas]).double()
        alpha = 1.0 - beta
        alpha_bar = torch.cumprod(alpha, dim=0)
        previous = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        variance = torch.zeros_like(beta)
        variance[1:] = beta[1:] * (1.0 - previous[1:]) / (1.0 - alpha_bar[1:])
        for name, value in (
            ("beta", beta),
            ("alpha", alpha),
            ("alpha_bar", alpha_bar),
            ("sigma", variance.sqrt()),
        ):
            self.register_buffer(name, value.float())
        # A reverse step divides by sqrt(1 - abar_t).
        if not bool((self.alpha_bar[1:] < 1).all()):
            raise ValueError(
                f"betas: the first ({float(betas[0]):g}) is lost in single precision, where "
                "1 - abar_t would be 0; use betas of at least 1e-7"
            )

    @classmethod
    def linear(cls, steps: int = 50, start: float = 1e-4, end: float = 0.02) -> NoiseSchedule:
        """Betas equally spaced from ``start`` to ``end``, the paper's choice (T = 50).

        Raises:
            ValueError: if ``steps < 1``.
        """
        _check_steps(steps)
        return cls(torch.linspace(start, end, steps, dtype=torch.float64))

    @classmethod
    def cosine(cls, steps: int = 50, offset: float = 0.008) -> NoiseSchedule:
        """``abar_t`` follows a squared cosine (Nichol and Dhariwal 2021, equation 17).

        Betas are clipped to at most 0.999, as there.

        Raises:
            ValueError: if ``steps < 1``.
        """
        _check_steps(steps)
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        curve = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
        return cls((1 - curve[1:] / curve[:-1]).clamp(1e-8, 0.999))

    @property
    def steps(self) -> int:
        """The number of steps ``T``."""
        return self.beta.numel() - 1

    def extra_repr(self) -> str:  # noqa: D102
        return f"steps={self.steps}, abar_T={float(self.alpha_bar[-1]):.4f}"


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
