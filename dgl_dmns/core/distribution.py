r"""The distribution that negatives are drawn from, as an object: it samples, and it has densities.

A share ``pi`` of the negatives of a query ``v`` is drawn uniformly, the others by a rule, so that
the ratio of a node ``u`` to the uniform distribution over the N nodes is

    r(u|v) = pi + (1 - pi) sum_c a_c g_c(u|v) / G_c(v),

with the rule's parts, and the norms that were measured while the table was filled
(`dgl_dmns.core.pools`): no pool is drawn for a pair. It is never below ``pi``. A pool of M nodes
bounds it, too: a node that was drawn had stood in the pool itself, beside M - 1 others, so that
each ratio ``x = g / G`` over a pool becomes ``M x / (M - 1 + x)``. If the pool is all nodes
(``M >= N``) the norms contain each admissible node already, and ratios are exact.

Known edges are left out of pools, but may be asked for: their ratio is what the rule would have
given them as candidates, beside the n nodes of the pool, ``x (n + 1) / (n + x)``, which a loss
calibrated on both sides needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dgl_dmns.checks import check_pairs
from dgl_dmns.core.diffusion import LevelGaussians
from dgl_dmns.core.generator import DiffusionGenerator
from dgl_dmns.core.modes import in_float32, shielded
from dgl_dmns.core.pools import PoolDraw, PoolSettings
from dgl_dmns.core.rules import Part, Rule, check_tractable
from dgl_dmns.core.snapshot import Snapshot, rows_of
from dgl_dmns.core.table import NO_LEVEL, Candidates

__all__ = ["NodeDistribution"]

_PAIRS = 1 << 15  # pairs that are weighed at a time: a bounded working set
_MEASURED = 1024  # queries likewise
_LARGEST = 80.0  # log ratios beyond that count as that: no pool is so large


@dataclass(frozen=True, eq=False)
class NodeDistribution:
    """Negatives of every query at one refresh, as a distribution over real nodes.

    Args:
        rule: a selection rule with a tractable distribution, and what it measured.
        settings: pools, exponent lambda and uniform share; ``groups`` has no meaning here.
        snapshot: embeddings, diffusion model, scorer and known edges.
        norms: norms of every query, float32 [N, L + P], see `dgl_dmns.core.fill_table`; those that
            are NaN, or all if None, are measured over one pool when they are needed.
        seed: of those pools.

    Raises:
        ValueError: if the rule has no tractable distribution.
    """

    rule: Rule
    settings: PoolSettings
    snapshot: Snapshot
    norms: Tensor | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_tractable(self.rule)

    @in_float32
    @torch.no_grad()
    @shielded
    def log_ratio(self, src: Tensor, dst: Tensor) -> Tensor:
        """Log ratio ``log q(u|v) - log uniform(u)`` of any pairs, known edges included.

        Args:
            src: query ids, shape [P], int64.
            dst: candidate ids, shape [P], int64.

        Returns:
            Natural log ratios, shape [P], float32.

        Raises:
            ValueError: if the shapes differ or an id is out of range.
        """
        hard = self.hard_log_ratio(src, dst)
        share = self.settings.uniform_share
        return torch.log(share + (1 - share) * hard.exp()) if share else hard

    @in_float32
    @torch.no_grad()
    @shielded
    def hard_log_ratio(self, src: Tensor, dst: Tensor) -> Tensor:
        """The same of what the rule draws, without the uniform share."""
        known = self.snapshot.known
        check_pairs(src, dst, known.num_src, known.num_dst)
        if not src.numel():
            return torch.zeros(0, dtype=torch.float32)
        parts = [self._of_pairs(*pair) for pair in zip(src.split(_PAIRS), dst.split(_PAIRS))]
        return torch.cat(parts)

    @shielded
    def log_prob(self, src: Tensor, dst: Tensor) -> Tensor:
        """Natural log probability ``log q(u|v)`` of any pairs, as `log_ratio`."""
        return self.log_ratio(src, dst) - math.log(self.snapshot.known.num_candidates)

    @in_float32
    @torch.no_grad()
    @shielded
    def sample(
        self, src: Tensor, k: int, *, generator: torch.Generator | None = None
    ) -> Candidates:
        """K candidates [B, K] for queries [B]: each uniform with probability ``pi``, else a rule's.

        Those of the rule are drawn without replacement, from a pool of at least K nodes for each
        query; -1 if a pool has no admissible node left.
        """
        ids, level = (field.squeeze(1) for field in self._draw(src, generator).draw(k, 1))
        coin = torch.rand(ids.shape, generator=generator, dtype=torch.float32)
        uniform = coin < self.settings.uniform_share
        fresh = self.snapshot.known.uniform(src, k, generator=generator)
        return Candidates(torch.where(uniform, fresh, ids), level.masked_fill(uniform, NO_LEVEL))

    def _of_pairs(self, src: Tensor, dst: Tensor) -> Tensor:
        """Log ratios of what the rule draws, of pairs [P]."""
        self._measure(src)
        snapshot = self.snapshot
        score = density = None
        if self.rule.uses_scores:
            score = snapshot.scores(src.view(-1, 1), dst.view(-1, 1)).flatten()
        if self.rule.uses_generator:
            rows, place = src.unique(return_inverse=True)  # Gaussians cost more than a gather
            made = self._gaussians(rows)
            mine = LevelGaussians(made.mean[:, place], made.std[:, place])
            density = mine.log_prob(rows_of(snapshot.z_candidate, dst))
        return self._closed(src, snapshot.known.contains(src, dst), score, density)

    def _gaussians(self, rows: Tensor) -> LevelGaussians:
        assert self.snapshot.model is not None
        return self.snapshot.model.gaussians(self.snapshot.z_query[rows])

    def _closed(
        self,
        rows: Tensor,
        known: Tensor,
        score: Tensor | None,
        density: Tensor | None,
    ) -> Tensor:
        """Log ratios of the rule from scores [..] and log densities [L, ..] of some pairs.

        ``rows`` are their query ids, of a shape that broadcasts, ``known`` [..] says which are
        known edges.
        """
        assert self.norms is not None
        norms = self.norms[rows].movedim(-1, 0)
        mixture, levels = None, 0
        if density is not None:
            assert self.snapshot.model is not None
            levels = len(density)
            norm = norms[:levels]
            ratio = (density * self.settings.lam - norm).nan_to_num_(nan=-math.inf)
            mixture = _mixture_of_levels(
                self._beside(ratio, rows, known), norm, self.snapshot.model
            )
        parts = []
        for part, norm in zip(self.rule.parts(score, mixture), norms[levels:]):
            ratio = part.logits - norm
            if self.rule.uses_scores:  # else it is the levels' mixture, of a node in the pool
                ratio = self._beside(ratio, rows, known)
            parts.append(part._replace(logits=ratio))
        return _mixture_of_parts(parts)

    def _beside(self, ratio: Tensor, rows: Tensor, known: Tensor) -> Tensor:
        """Log ratios over a pool, as of a node that stands in that pool."""
        nodes, size = self.snapshot.known.num_candidates, self.settings.pool
        ratio = ratio.clamp(max=_LARGEST)
        if size < nodes:
            beside: Tensor = math.log(size) - softplus(math.log(max(1, size - 1)) - ratio)
            return beside
        # It does, unless it is known: then it is taken as beside it.
        count = self.snapshot.known.admissible_count(rows).clamp(min=1).to(ratio).log()
        return torch.where(known, ratio + softplus(-count) - softplus(ratio - count), ratio)

    def _measure(self, src: Tensor) -> None:
        """Measure the norms of queries that have none yet, over a pool for each of them."""
        rows = src.unique()
        if self.norms is not None:
            rows = rows[self.norms[rows].isnan().any(1)]
        generator = torch.Generator().manual_seed(self.seed)
        for part in rows.split(_MEASURED) if rows.numel() else ():
            draw = self._draw(part, generator)
            draw.measure()
            if self.norms is None:
                shape = (self.snapshot.known.num_src, draw.norms.shape[1])
                object.__setattr__(self, "norms", draw.norms.new_full(shape, math.nan))
            assert self.norms is not None
            self.norms[part] = draw.norms

    def _draw(self, rows: Tensor, generator: torch.Generator | None) -> PoolDraw:
        return PoolDraw(self.rule, self.settings, self.snapshot, rows, 1, generator)


def _mixture_of_levels(ratio: Tensor, norm: Tensor, model: DiffusionGenerator) -> Tensor:
    """Log ratio of the mixture of levels from their log ratios [L, ..]; 0 if a norm is infinite."""
    share = ratio.new_tensor(model.levels.mixture_shares).log()
    mixture = (ratio + share.view(-1, *[1] * (ratio.dim() - 1))).logsumexp(0)
    return mixture.masked_fill_(norm[0] == math.inf, 0.0)


def _mixture_of_parts(parts: list[Part]) -> Tensor:
    """Log ratio of a rule's mixture, of parts whose logits are log ratios."""
    if len(parts) == 1:
        return parts[0].logits
    return torch.stack([part.logits + math.log(part.share) for part in parts]).logsumexp(0)
