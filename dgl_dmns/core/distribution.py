r"""The distribution that negatives are drawn from, as an object: it samples, and it has densities.

For a query ``v`` a rule puts weights ``g(u|v)`` on candidates; a table draws in proportion to them
within pools of M uniform nodes. For a pool that holds a given candidate ``u``, the log ratio to the
uniform distribution over the N admissible nodes is

    ``w(u|v) = log g(u|v) - log(mean of g(.|v) over u and M - 1 uniform nodes)``,

and ``log q(u|v) = w(u|v) - log N``. With a pool of all nodes (``pool >= N``) this is exact; with a
smaller one it belongs to one pool, and the mean of ``e^w`` over pools is the exact ratio of what is
drawn first from a pool of M. Weights of `Gate` and `Blend` contain the mixture of levels, whose own
log ratios come from the same pool.

Known edges are left out of pools, but may be asked for: ``w`` of a positive is what the rule would
have given it as a candidate, which a loss calibrated on both sides needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dgl_dmns.core.modes import in_float32, shielded
from dgl_dmns.core.pools import PoolDraw, PoolSettings
from dgl_dmns.core.rules import Nearest, Rule
from dgl_dmns.core.snapshot import Snapshot
from dgl_dmns.core.table import Candidates

__all__ = ["NodeDistribution", "check_tractable"]

_PAIRS = 4096  # pairs whose pools are weighed at a time: a bounded working set


def check_tractable(rule: Rule) -> None:
    """Refuse a rule (or a chain's target) whose draws have no known probability."""
    if not rule.tractable:
        raise ValueError(
            f"rule: {type(rule).__name__} has no tractable distribution; use Density(), Gate(), "
            "Blend() or SelfAdversarial()"
        )


@dataclass(frozen=True, eq=False)
class NodeDistribution:
    """Negatives of every query at one refresh, as a distribution over real nodes.

    Args:
        rule: a selection rule with a tractable distribution.
        settings: pools, exponent lambda and uniform share; ``groups`` has no meaning here.
        snapshot: embeddings, generator, scorer and known edges.

    Raises:
        ValueError: if the rule has no tractable distribution.
    """

    rule: Rule
    settings: PoolSettings
    snapshot: Snapshot

    def __post_init__(self) -> None:
        check_tractable(self.rule)

    @in_float32
    @torch.no_grad()
    @shielded
    def log_ratio(
        self, src: Tensor, dst: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Log ratio ``log q(u|v) - log uniform(u)`` of any pairs, known edges included.

        Args:
            src: query ids, shape [P], int64.
            dst: candidate ids, shape [P], int64.
            generator: source of the pools.

        Returns:
            Natural log ratios, shape [P], float32.

        Raises:
            ValueError: if the shapes differ or an id is out of range.
        """
        known = self.snapshot.known
        if src.dim() != 1 or src.shape != dst.shape:
            raise ValueError(
                f"src, dst: expected two tensors of one shape [P], got {tuple(src.shape)} and "
                f"{tuple(dst.shape)}"
            )
        for name, ids, count in (("src", src, known.num_src), ("dst", dst, known.num_dst)):
            if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < count):
                raise ValueError(
                    f"{name}: expected ids in 0 .. {count - 1}, got {int(ids.min())} .. "
                    f"{int(ids.max())}"
                )
        if not src.numel():
            return torch.zeros(0, dtype=torch.float32, device=src.device)
        chunk = min(self.settings.queries_per_pool, src.numel())
        block = max(1, _PAIRS // chunk) * chunk
        parts = []
        for rows, nodes in zip(src.split(block), dst.split(block)):
            fill = (-rows.numel()) % chunk  # whole chunks only
            padded = torch.cat([rows, rows.new_zeros(fill)])
            draw = self._draw(padded, chunk, generator)
            ratio = draw.log_ratio(torch.cat([nodes, nodes.new_zeros(fill)]))
            parts.append(ratio[: rows.numel()])
        return torch.cat(parts)

    @shielded
    def log_prob(
        self, src: Tensor, dst: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Log probability ``log q(u|v)`` of any pairs; arguments and errors as in `log_ratio`.

        Returns:
            Natural log probabilities, shape [P], float32.
        """
        ratio = self.log_ratio(src, dst, generator=generator)
        return ratio - math.log(self.snapshot.known.num_dst)

    @in_float32
    @torch.no_grad()
    @shielded
    def sample(
        self, src: Tensor, k: int, *, generator: torch.Generator | None = None
    ) -> Candidates:
        """K candidates for each query, without replacement, from a pool of its own.

        Args:
            src: query ids, shape [B], int64.
            k: candidates, at most the pool.
            generator: source of randomness.

        Returns:
            Candidates of shape [B, K]; -1 where a pool has no admissible node left.
        """
        draw = self._draw(src, 1, generator)
        return Candidates(*(field.squeeze(1) for field in draw.draw(k, 1)))

    def _draw(self, rows: Tensor, chunk: int, generator: torch.Generator | None) -> PoolDraw:
        assert not isinstance(self.rule, Nearest)
        return PoolDraw(self.rule, self.settings, self.snapshot, rows, chunk, generator)
