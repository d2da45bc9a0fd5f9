r"""How many candidates a density spreads over, and the exponent that spreads it further.

In a wide space densities are peaked: one member of a pool takes all the weight, and negatives are
that one node again and again. The effective sample size of the weights
``p(u) proportional to N(z_u; m, s^2)^lambda`` over a pool of M,

    ``1 / sum_u p(u)^2``,   between 1 and M,

(Kish's, for weighted samples) says so, and it falls as ``lambda`` grows: the derivative of
``log sum_u p(u)^2`` by ``lambda`` is twice the difference between the mean log density under
``p^2`` (normalised) and that under ``p``, which is never negative. So bisection finds the exponent
for a wanted size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgl_dmns.core.bisection import bisect

__all__ = ["effective_size", "exponent_for"]

_HALVINGS = 24  # of the interval that holds the exponent: to a relative 1e-7


def effective_size(log_density: Tensor, lam: float = 1.0) -> Tensor:
    """Effective sample size of the weights ``density^lam`` over a pool.

    Args:
        log_density: natural log densities of pool members, shape [.., M].
        lam: exponent on the density, not negative.

    Returns:
        Sizes between 1 and M, shape [..].
    """
    log_weight = (lam * log_density).log_softmax(-1)
    return (-torch.logsumexp(2 * log_weight, dim=-1)).exp()


def exponent_for(log_density: Tensor, shares: Tensor, lam: float, size: float) -> float:
    """The largest exponent up to ``lam`` under which densities spread over a number of candidates.

    Args:
        log_density: log densities of the members of pools, for L levels and B queries, shape
            [L, B, M], finite.
        shares: weights of the levels in the mean, shape [L], adding to 1.
        lam: exponent to start from.
        size: effective sample size wanted, of the mean over queries and levels; less than M.

    Returns:
        ``lam`` where it is spread as far already, else less.
    """

    def reached(exponent: float) -> bool:
        return float(shares @ effective_size(log_density, exponent).mean(dim=1)) >= size

    if reached(lam):
        return lam
    low, high = bisect(reached, 0.0, lam, _HALVINGS)
    return low or high
