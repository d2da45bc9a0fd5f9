"""Noise predictors ``eps(x_t, t, h_v)`` of the conditional diffusion model.

The paper's predictor (DMNS, section 4.2, equations 6 and 7) is a stack of FiLM layers. The
condition ``c = MLP(sinusoidal(t)) + h_v`` gives a scale and a shift per dimension,
``(gamma, eta) = Linear(SiLU(c))``, and a layer maps ``x`` to ``(gamma + 1) * x + eta``. No layer
mixes dimensions and none is non-linear in ``x``, so the whole predictor is affine and elementwise:
``eps = A_t(h_v) * x + B_t(h_v)``. `AffineNoisePredictor` names this property, on which the closed
form in `dgl_dmns.core.diffusion` rests. `MLPPredictor` has no such form and is sampled by the
chain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

__all__ = ["AffineNoisePredictor", "FiLMPredictor", "MLPPredictor", "NoisePredictor"]


class NoisePredictor(nn.Module):
    """Interface: an estimate of the noise in ``x_t`` given the step and the query."""

    width: int

    def forward(self, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """Estimate the noise, shape [B, D].

        Args:
            x: noisy states, shape [B, D].
            t: steps in ``1 .. T``, shape [B], int64.
            h: query embeddings in the diffusion model's space, shape [B, D].
        """
        raise NotImplementedError


class AffineNoisePredictor(NoisePredictor):
    """A predictor of the form ``eps = A_t(h) * x + B_t(h)``, elementwise in ``x``."""

    def coefficients(self, t: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The scale ``A_t(h)`` and shift ``B_t(h)``, two tensors of shape [B, D].

        Args:
            t: steps, shape [B] or scalar (one step for all queries), int64.
            h: query embeddings, shape [B, D].
        """
        raise NotImplementedError

    def coefficients_of_steps(
        self, steps: Sequence[int], h: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`coefficients` of one step after the other, transposed: two tensors [D, B] for each.

        They are overwritten when the next step is asked for.
        """
        for t in steps:
            made = self.coefficients(torch.tensor(t, device=h.device), h)
            scale, shift = (part.expand(h.shape) for part in made)
            yield scale.t(), shift.t()

    def forward(self, x: Tensor, t: Tensor, h: Tensor) -> Tensor:  # noqa: D102
        scale, shift = self.coefficients(t, h)
        return scale * x + shift


def _linear(width: int, out: int) -> nn.Linear:
    """A linear map in float32, whatever the default dtype of the process."""
    return nn.Linear(width, out, dtype=torch.float32)


class _TimeEmbedding(nn.Module):
    """``MLP(sinusoidal(t))``: linear, GELU, linear; shape [B] to [B, D]."""

    frequencies: Tensor

    def __init__(self, width: int, base: float = 10_000.0) -> None:
        super().__init__()
        half = max(1, (width + 1) // 2)
        exponent = torch.arange(half, dtype=torch.float32) / max(1, half - 1)
        self.register_buffer("frequencies", torch.exp(-math.log(base) * exponent))
        first, second = _linear(2 * half, width), _linear(width, width)
        self.mlp = nn.Sequential(first, nn.GELU(), second)

    def forward(self, t: Tensor) -> Tensor:
        angle = t.to(self.frequencies.dtype).unsqueeze(-1) * self.frequencies
        output: Tensor = self.mlp(torch.cat([angle.sin(), angle.cos()], dim=-1))
        return output


class FiLMPredictor(AffineNoisePredictor):
    """The paper's predictor: FiLM layers without mixing across dimensions.

    Args:
        width: width D of the generator's space.
        layers: number of FiLM layers; 2 in the paper.
        conditional: False leaves the query out of the condition (an ablation: the model then
            learns one distribution for all queries).

    Raises:
        ValueError: if ``width`` or ``layers`` is below 1.
    """

    def __init__(self, width: int, layers: int = 2, conditional: bool = True) -> None:
        super().__init__()
        if width < 1 or layers < 1:
            raise ValueError(f"width, layers: expected at least 1, got {width} and {layers}")
        self.width = width
        self.conditional = conditional
        self.time = _TimeEmbedding(width)
        # One matrix for all layers: [gamma_1 | eta_1 | gamma_2 | eta_2 | ...].
        self.film = _linear(width, 2 * width * layers)
        self.layers = layers

    def coefficients(self, t: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        condition = self.time(t)
        if self.conditional:
            condition = condition + h
        elif condition.dim() < h.dim():
            condition = condition.expand(h.shape)
        parts = self.film(nn.functional.silu(condition)).chunk(2 * self.layers, dim=-1)
        scale = parts[0] + 1
        shift = parts[1]
        for gamma, eta in zip(parts[2::2], parts[3::2]):
            gain = gamma + 1
            scale = gain * scale
            shift = gain * shift + eta
        return scale, shift

    def coefficients_of_steps(  # noqa: D102
        self, steps: Sequence[int], h: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if type(self).coefficients is not FiLMPredictor.coefficients:  # those of a subclass
            yield from super().coefficients_of_steps(steps, h)
            return
        times = self.time(torch.tensor(steps, device=h.device)).unsqueeze(2)
        query = h.t().contiguous() if self.conditional else h.new_zeros(h.shape[::-1])
        # The bias is one more input; the gains are gamma + 1.
        one = self.film.bias.new_zeros(self.layers, 2, self.width)
        one[:, 0] = 1
        weight = torch.cat([self.film.weight, (self.film.bias + one.flatten()).unsqueeze(1)], 1)
        condition = query.new_ones(self.width + 1, query.shape[1])
        inner = condition[: self.width]
        made = query.new_empty(2 * self.layers * self.width, query.shape[1])
        scale, shift, *rest = made.view(2 * self.layers, *query.shape)
        for time in times:
            torch.add(query, time, out=inner)
            nn.functional.silu(inner, inplace=True)
            torch.mm(weight, condition, out=made)
            for gain, eta in zip(rest[::2], rest[1::2]):
                scale.mul_(gain)
                torch.addcmul(eta, gain, shift, out=shift)
            yield scale, shift

    def extra_repr(self) -> str:  # noqa: D102
        return f"width={self.width}, layers={self.layers}, conditional={self.conditional}"


class MLPPredictor(NoisePredictor):
    """A non-affine predictor that mixes dimensions: FiLM, then an MLP with a GELU.

    For users who want a richer conditional distribution and accept the sampling chain.

    Args:
        width: width D of the generator's space.
        hidden: hidden width of the MLP; defaults to ``4 * width``.

    Raises:
        ValueError: if ``width`` is below 1.
    """

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width: expected at least 1, got {width}")
        hidden = hidden or 4 * width
        self.width = width
        self.film = FiLMPredictor(width, layers=1)
        first, second = _linear(width, hidden), _linear(hidden, width)
        self.mlp = nn.Sequential(first, nn.GELU(), second)

    def forward(self, x: Tensor, t: Tensor, h: Tensor) -> Tensor:  # noqa: D102
        modulated = self.film(x, t, h)
        output: Tensor = modulated + self.mlp(modulated)
        return output
