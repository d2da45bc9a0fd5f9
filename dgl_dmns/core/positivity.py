r"""Sub-linear positivity: is the generated density the positives' density to a power below 1?

The paper (DMNS, section 4.4) shows that negatives have the density ``p_pos^lambda`` with ``lambda``
in (0, 1) wherever a quantity ``Psi`` is not negative. The chain's end, t = 0, models the positives,
``N(m_0, s_0^2)``. For a negative x of level t and the embedding u of a positive, with
``a = sqrt(abar_t) (u - m_0)`` and ``Delta = x - sqrt(abar_t) u``,

    ``Psi = 2 Delta . a + Delta . Delta = |x - sqrt(abar_t) m_0|^2 - |a|^2``:

the negative is at least as far from the positives' mean as the positive is, both at the scale of
step t. This is a reconstruction, and need not be the paper's quantity to the letter.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["psi_distance"]


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
