r"""Sub-linear positivity: is the generated density the positives' density to a power below 1?

The paper (DMNS, section 4.4) shows that negatives have the density ``p_pos^lambda`` with ``lambda``
in (0, 1) wherever a quantity ``Psi`` is not negative. With a closed form both densities are there:
the chain's end, t = 0, models the positives, ``N(m_0, s_0^2)``, and level t its negatives,
``N(m_t, s_t^2)``. Two readings of ``Psi``, for a negative x and the embedding u of a positive:

- ``distance``: with ``a = sqrt(abar_t) (u - m_0)`` and ``Delta = x - sqrt(abar_t) u``,

      ``Psi = 2 Delta . a + Delta . Delta = |x - sqrt(abar_t) m_0|^2 - |a|^2``:

  the negative is at least as far from the positives' mean as the positive is, both at the scale of
  step t.
- ``density``: up to normalising constants, which "proportional" leaves open, the log densities are
  ``-d_t^2(x) / 2`` and ``-d_0^2(u) / 2`` with ``d^2 = sum ((x - m) / s)^2``, so that
  ``p_t(x) = p_0(u)^lambda`` with ``lambda = d_t^2(x) / d_0^2(u)``, in (0, 1) exactly where

      ``Psi = d_0^2(u) - d_t^2(x) > 0``.

Both are reconstructions, and neither need be the paper's quantity to the letter.
"""

from __future__ import annotations

from torch import Tensor

from dgl_dmns.core.gaussians import LevelGaussians

__all__ = ["psi_density", "psi_distance"]


def _squared_distance(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return ((x - mean) / std).square().sum(-1)


def psi_density(
    x: Tensor, u: Tensor, negatives: LevelGaussians, positives: LevelGaussians
) -> Tensor:
    """``Psi`` as a difference of log densities; see the module's text.

    Args:
        x: negatives, shape [L, B, D].
        u: positives of the same queries, shape [B, D].
        negatives: Gaussians of the levels, [L, B, D].
        positives: Gaussians of the chain's end, [1, B, D].

    Returns:
        ``d_0^2(u) - d_t^2(x)``, shape [L, B].
    """
    return _squared_distance(u, positives.mean, positives.std) - _squared_distance(
        x, negatives.mean, negatives.std
    )


def psi_distance(x: Tensor, u: Tensor, mean: Tensor, alpha_bar: Tensor) -> Tensor:
    """``Psi`` as a difference of squared distances; see the module's text.

    Args:
        x: negatives, shape [L, B, D].
        u: positives of the same queries, shape [B, D].
        mean: means of the chain's end, shape [B, D].
        alpha_bar: ``abar`` of the levels, shape [L].

    Returns:
        ``|x - sqrt(abar) m_0|^2 - abar |u - m_0|^2``, shape [L, B].
    """
    abar = alpha_bar.view(-1, 1)
    negative = (x - abar.sqrt().unsqueeze(-1) * mean).square().sum(-1)
    return negative - abar * (u - mean).square().sum(-1)
