r"""Noise schedules of the diffusion process, and the points at which negatives are taken.

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

A hardness **level** is a fraction ``f`` of the ``T`` steps; its state is ``x_t`` with
``t = max(1, floor(f T))``. Small fractions lie close to the clean neighbours of the query and are
hard; large ones are noisy and easy (DMNS, section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dgl_dmns.checks import as_number, check_object
from dgl_dmns.core.table import MOST_LEVELS

__all__ = ["Levels", "NoiseSchedule"]


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
        constants = {"beta": beta, "alpha": alpha, "alpha_bar": alpha_bar}
        for name, value in {**constants, "sigma": variance.sqrt()}.items():
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


@dataclass(frozen=True)
class Levels:
    """Fractions of ``T``, hardest first, with the paper's values as the default.

    Args:
        fractions: L increasing numbers in (0, 1], at most 15.
        weights: L positive weights in the multi-level loss; the paper's are 1, 0.9, 0.8, 0.7.
        shares: L non-negative mixture shares of real nodes, of any positive scale; default equal.

    Raises:
        ValueError: for an empty or non-increasing list, lengths that differ, or a number out of
            range.
    """

    fractions: tuple[float, ...] = (1 / 10, 1 / 8, 1 / 4, 1 / 2)
    weights: tuple[float, ...] | None = None
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        fractions = tuple(float(f) for f in self.fractions)
        if not fractions or not all(0.0 < f <= 1.0 for f in fractions):
            raise ValueError(
                f"levels: expected one or more fractions in (0, 1], got {self.fractions}; "
                "a level is a fraction of the T diffusion steps, for example (0.1, 0.25, 0.5)"
            )
        if len(fractions) > MOST_LEVELS:
            raise ValueError(
                f"levels: expected at most {MOST_LEVELS} fractions, whose numbers fit a table, got "
                f"{len(fractions)}; leave some out"
            )
        if any(b <= a for a, b in zip(fractions, fractions[1:])):
            raise ValueError(
                f"levels: expected strictly increasing fractions, got {self.fractions}; "
                "list the hardest (smallest) level first"
            )
        count = len(fractions)
        usual = tuple(max(1.0 - 0.1 * i, 0.1) for i in range(count))
        weights = usual if self.weights is None else self.weights
        shares = (1.0,) * count if self.shares is None else self.shares
        for name, values in (("weights", weights), ("shares", shares)):
            if len(values) != count:
                raise ValueError(f"levels: expected {count} {name}, got {len(values)}")
        if not all(0 < w < math.inf for w in weights):
            raise ValueError(f"levels: expected positive weights, got {weights}")
        if not all(0 <= s < math.inf for s in shares) or sum(shares) <= 0:
            raise ValueError(f"levels: expected non-negative shares, not all zero, got {shares}")
        total = float(sum(shares))
        object.__setattr__(self, "fractions", fractions)
        object.__setattr__(self, "weights", tuple(float(w) for w in weights))
        object.__setattr__(self, "shares", tuple(float(s) / total for s in shares))

    @classmethod
    def of(cls, levels: Levels | Iterable[float] | None) -> Levels:
        """Levels, their fractions alone, or the paper's where None.

        Raises:
            TypeError: for anything else, such as the class or a name.
        """
        if levels is None:
            return cls()
        if isinstance(levels, cls):
            return levels
        if isinstance(levels, Iterable) and not isinstance(levels, (type, str)):
            return cls(tuple(as_number("levels", one) for one in levels))
        check_object("levels", levels, cls, "Levels((0.1, 0.25, 0.5))")
        raise AssertionError  # the check has raised

    def __len__(self) -> int:
        return len(self.fractions)

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """The L loss weights, hardest level first."""
        assert self.weights is not None
        return self.weights

    @property
    def mixture_shares(self) -> tuple[float, ...]:
        """The L mixture shares, summing to 1, hardest level first."""
        assert self.shares is not None
        return self.shares

    def steps(self, total: int) -> tuple[int, ...]:
        """The step ``t`` of each level for a chain of ``total`` steps, hardest first.

        >>> Levels().steps(50)
        (5, 6, 12, 25)

        Raises:
            ValueError: if two levels fall on one step, so that they cannot be told apart.
        """
        steps = tuple(max(1, int(f * total + 1e-9)) for f in self.fractions)
        if len(set(steps)) != len(steps):
            raise ValueError(
                f"levels: fractions {self.fractions} of T = {total} fall on steps {steps}; "
                "choose fractions further apart or more diffusion steps"
            )
        return steps
