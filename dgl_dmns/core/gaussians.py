r"""Diagonal Gaussians per query and level, and what can be read off them.

The generated negatives of query ``v`` at level ``t`` follow ``N(m_t(v), diag(s_t(v)^2))``. Their
density at real nodes needs no loop over pairs:

    ``-1/2 sum_d (u_d - m_d)^2 / s_d^2 = u . (m / s^2) - 1/2 u^2 . (1 / s^2) + const(v)``,

two matrix products for a set of queries and a set of candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LevelGaussians"]


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
        """Log density of one point per query under each level.

        Args:
            x: points, shape [B, D] or [L, B, D].

        Returns:
            Natural log densities, shape [L, B].
        """
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
        levels, queries, width = self.mean.shape
        chunks = pool.shape[0]
        if chunks == 0 or queries % chunks or pool.shape[-1] != width:
            raise ValueError(
                f"pool: expected [C, M, {width}] with C dividing the {queries} queries, got "
                f"{tuple(pool.shape)}"
            )
        precision = self.std.pow(-2).view(levels, chunks, queries // chunks, width)
        mean = self.mean.view_as(precision)
        weighted = mean * precision
        constant = -0.5 * (mean * weighted).sum(-1) - self.std.log().sum(-1).view(
            levels, chunks, -1
        )
        columns = pool.transpose(1, 2)
        log_prob = weighted @ columns - 0.5 * (precision @ columns.square())
        return log_prob + constant.unsqueeze(-1) - 0.5 * width * math.log(2 * math.pi)

    def expected_score(self, h: Tensor) -> Tensor:
        """Expected hardness ``h_v . m_t(v)`` of a level's negatives.

        Args:
            h: query embeddings in the same space, shape [B, D].

        Returns:
            Expected inner products, shape [L, B].
        """
        return (self.mean * h).sum(-1)
