r"""Drawing candidates from shared pools of uniform nodes, by a rule's weights.

A chunk of ``queries_per_pool`` queries shares a pool of M uniform candidates, so that all densities
of a level are two matrix products and all scores a third. The mixture over levels (shares ``p_l``)
and the uniform share ``pi`` is

    ``w(u|v) = log(pi + (1 - pi) * sum_l p_l * q_l(u|v) / uniform(u))``,
    ``q_l(u|v)`` proportional to ``N(z_u; m_l(v), s_l(v)^2)^lambda`` over the pool.

The k candidates of a group are drawn without replacement in proportion to the rule's weights: by
inverting the cumulative weights, a slot that repeats an earlier one being drawn again. The first
has log ratio ``log_softmax(logits) + log M``.

How much a pool distorts. Within a pool the ratios sum to M, so a pool of few nodes lifts its best
one to a share it would not have among all N: the smaller the pool, the harder the negatives. As M
grows the draws tend to the rule's distribution over all nodes. Groups of a row can share a pool
(``groups_per_pool``), so that a large one costs no more than many small ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from dgl_dmns.checks import as_integer, as_number
from dgl_dmns.core.choice import distinct_pools, draw_distinct
from dgl_dmns.core.gaussians import LevelGaussians
from dgl_dmns.core.generator import DiffusionGenerator
from dgl_dmns.core.rules import Hardest, PoolRule
from dgl_dmns.core.snapshot import Snapshot, rows_of
from dgl_dmns.core.table import NO_LEVEL, Candidates

__all__ = ["CELLS", "PoolDraw", "PoolSettings"]

CELLS = 1 << 16
"""(query, pool member) cells that are weighed at a time: what is in between fits a cache."""


@dataclass(frozen=True)
class PoolSettings:
    """How candidates are proposed.

    Args:
        pool: uniform candidates M in a pool.
        queries_per_pool: queries that share a pool.
        uniform_share: share ``pi`` of plain uniform negatives in the mixture, in [0, 1].
        lam: exponent ``lambda`` on the density, positive.
        groups: groups of k candidates kept for each query.
        groups_per_pool: groups that are drawn from one pool.

    Raises:
        ValueError: for a value out of range.
        TypeError: for what is no number.
    """

    pool: int = 32
    queries_per_pool: int = 64
    uniform_share: float = 0.5
    lam: float = 1.0
    groups: int = 8
    groups_per_pool: int = 1

    def __post_init__(self) -> None:
        for name in ("pool", "queries_per_pool", "groups", "groups_per_pool"):
            object.__setattr__(self, name, as_integer(name, getattr(self, name), 1))
        if not 0.0 <= as_number("uniform_share", self.uniform_share) <= 1.0:
            raise ValueError(f"uniform_share: expected a value in [0, 1], got {self.uniform_share}")
        if not as_number("lam", self.lam) > 0.0:
            raise ValueError(f"lam: expected a positive exponent, got {self.lam}")


class PoolDraw:
    """Draws groups for one block of queries, whose level Gaussians are computed once.

    Args:
        rule: the selection rule.
        settings: pools and mixture.
        snapshot: embeddings, model and scorer.
        rows: query ids of the block, shape [B], a multiple of ``chunk``.
        chunk: queries that share a pool.
        generator: source of randomness.
    """

    def __init__(
        self,
        rule: PoolRule,
        settings: PoolSettings,
        snapshot: Snapshot,
        rows: Tensor,
        chunk: int,
        generator: torch.Generator | None,
    ) -> None:
        self.rule = rule
        self.settings = settings
        self.snapshot = snapshot
        self.queries = rows.view(-1, chunk)
        self.generator = generator
        self.gaussians: LevelGaussians | None = None
        self.unstable: Tensor | None = None  # queries without usable Gaussians, [C, Q, 1]
        if rule.uses_generator:
            assert snapshot.model is not None
            assert snapshot.z_query is not None
            z = snapshot.z_query[rows]
            self.gaussians = snapshot.model.gaussians(z)
            stable = snapshot.model.stable(self.gaussians, z)
            if not bool(stable.all()):
                self.unstable = ~stable.view(-1, chunk, 1)
        known = snapshot.known
        pairs = int((known.indptr[rows + 1] - known.indptr[rows]).sum())
        # Queries that know more nodes than a pool has members: these are looked up instead.
        few = pairs <= 4 * rows.numel() * min(settings.pool, known.num_dst)
        self.barred_pairs = known.barred_of(rows) if few else None
        self.filtered = 0
        self.seen = 0

    def draw(self, k: int, groups: int) -> Candidates:
        """Groups of k candidates for every query of the block.

        Args:
            k: candidates in a group.
            groups: number of groups G.

        Returns:
            Candidates of shape [B, G, k]; -1 where a pool has no admissible node left.
        """
        step = self.settings.groups_per_pool
        parts = [self._from_one_pool(k, min(step, groups - lo)) for lo in range(0, groups, step)]
        return Candidates(*(torch.cat(field, dim=1) for field in zip(*parts)))

    def _from_one_pool(self, k: int, groups: int) -> Candidates:
        pool = self._pools()
        self.seen += self.queries.numel() * pool.shape[1]
        barred = self._barred(pool)
        self.filtered += int(barred.sum())
        size = (~barred).sum(-1, keepdim=True).clamp(min=1).float().log()
        logits, parts = self._weighed(pool, barred, size)
        members = min(k, pool.shape[1])
        if isinstance(self.rule, Hardest):
            best = logits.topk(members, dim=-1).indices
            place = best.unsqueeze(2).expand(-1, -1, groups, -1).flatten(0, 1)
        else:
            weight = (logits - logits.amax(-1, keepdim=True)).exp_().nan_to_num_(nan=0.0)
            place = draw_distinct(weight.flatten(0, 1), groups, members, self.generator)
        # From here on, places of [B, G, k] candidates in pools of [B, M].
        place = place.reshape(*logits.shape[:2], groups * members)
        chosen = pool.unsqueeze(1).expand_as(barred).gather(2, place)
        chosen = chosen.masked_fill(barred.gather(2, place), -1)
        if self.rule.tractable:
            log_ratio = logits.log_softmax(-1).gather(2, place).add_(size)
            log_ratio = log_ratio.nan_to_num_(nan=0.0, neginf=0.0)
        else:
            log_ratio = torch.full(chosen.shape, math.nan, dtype=torch.float32, device=pool.device)
        level = _draw_levels(parts, place, self.generator)
        missing = k - members  # a graph with fewer nodes than k
        shape = (-1, groups, members)
        return Candidates(
            pad(chosen.reshape(shape), (0, missing), value=-1),
            pad(log_ratio.reshape(shape), (0, missing)),
            pad(level.reshape(shape), (0, missing)),
        )

    def log_ratio(self, nodes: Tensor) -> Tensor:
        """Log ratio of one candidate per query, as a member of the pool of its chunk.

        Args:
            nodes: destination ids, shape [B], int64; known edges may be among them.

        Returns:
            Log ratios, shape [B], float32.
        """
        pool = self._pools()
        own = nodes.view_as(self.queries).unsqueeze(-1)  # [C, Q, 1]
        same = pool.unsqueeze(1) == own
        barred = self._barred(pool) | same  # it stands behind the pool, not in it
        if pool.shape[1] < self.snapshot.known.num_dst:
            barred[..., -1] |= ~same.any(-1)  # and makes M - 1 others of M
        barred = pad(barred, (0, 1), value=False)
        size = (~barred).sum(-1, keepdim=True).float().log()
        score = density = None
        if self.rule.uses_scores:
            mine = self.snapshot.scores(self.queries.view(-1, 1), own.view(-1, 1)).view_as(own)
            score = torch.cat([self.snapshot.scores(self.queries, pool), mine], dim=-1)
        if self.gaussians is not None:
            assert self.snapshot.z_candidate is not None
            others = self._densities(pool, slice(None))
            assert others is not None
            mine = self.gaussians.log_prob(self.snapshot.z_candidate[nodes])
            density = torch.cat([others, mine.view(len(others), *own.shape)], dim=-1)
        logits, _ = self._weigh(score, density, barred, size, slice(None))
        return (logits.log_softmax(-1) + size)[..., -1].flatten()

    def _pools(self) -> Tensor:
        """A pool for each chunk, shape [C, M]."""
        return distinct_pools(
            self.queries.shape[0],
            self.settings.pool,
            self.snapshot.known.num_dst,
            self.generator,
            self.queries.device,
        )

    def _barred(self, pool: Tensor) -> Tensor:
        """Which pool members are known edges of which query of their chunk; [C, Q, M], bool.

        The few known edges of the block are looked up in its sorted pools, rather than all pairs of
        a query and a pool member among the known edges.
        """
        if self.barred_pairs is None:
            return self.snapshot.known.contains(self.queries.unsqueeze(2), pool.unsqueeze(1))
        chunks, size = pool.shape
        per_chunk = self.queries.shape[1]
        nodes = self.snapshot.known.num_dst
        base = torch.arange(chunks, device=pool.device).unsqueeze(1) * nodes
        members, order = (pool + base).flatten().sort()
        owner, node = self.barred_pairs
        wanted = torch.div(owner, per_chunk, rounding_mode="floor") * nodes + node
        place = torch.searchsorted(members, wanted).clamp(max=members.numel() - 1)
        hit = members[place] == wanted
        barred = torch.zeros(chunks * per_chunk, size, dtype=torch.bool, device=pool.device)
        barred[owner[hit], order[place[hit]] % size] = True
        return barred.view(chunks, per_chunk, size)

    def _weighed(
        self, pool: Tensor, barred: Tensor, size: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The rule's weights in logs, [C, Q, M], and the parts of the mixture of some chunks each.

        A few chunks at a time: what is computed in between fits a processor's cache.
        """
        chunks, per_chunk, members = barred.shape
        step = max(1, CELLS // (per_chunk * members))
        logits, parts = [], []
        for lo in range(0, chunks, step):
            some = slice(lo, lo + step)
            score = None
            if self.rule.uses_scores:
                score = self.snapshot.scores(self.queries[some], pool[some])
            density = self._densities(pool[some], slice(lo * per_chunk, (lo + step) * per_chunk))
            weighed, mixed = self._weigh(score, density, barred[some], size[some], some)
            logits.append(weighed)
            parts.append(mixed)
        return torch.cat(logits), parts

    def _densities(self, pool: Tensor, queries: slice) -> Tensor | None:
        """Log densities of the levels of some queries over their pools, [L, C, Q, M].

        None without a generator.
        """
        if self.gaussians is None:
            return None
        assert self.snapshot.z_candidate is not None
        mine = LevelGaussians(self.gaussians.mean[:, queries], self.gaussians.std[:, queries])
        return mine.pool_log_prob(rows_of(self.snapshot.z_candidate, pool))

    def _weigh(
        self,
        score: Tensor | None,
        density: Tensor | None,
        barred: Tensor,
        size: Tensor,
        chunks: slice,
    ) -> tuple[Tensor, Tensor | None]:
        """The rule's weights in logs, [C, Q, M], and the parts of the mixture, [L + 1, C, Q, M].

        Densities are written over. Queries whose Gaussians cannot be computed with have none of
        the levels' parts: for them the generator is uniform.

        Raises:
            ValueError: for scores that are not finite.
        """
        parts = mixture = None
        if density is not None:
            assert self.snapshot.model is not None
            lam = self.settings.lam * self.snapshot.model.tempering
            density = density.mul_(lam).masked_fill_(barred, -math.inf)
            ratio = density.log_softmax(-1).nan_to_num_(nan=-math.inf).add_(size)
            if self.unstable is not None:
                ratio.masked_fill_(self.unstable[chunks], -math.inf)
            parts = _mixture_parts(ratio, self.snapshot.model, self.settings.uniform_share)
            mixture = torch.logsumexp(parts, dim=0)
            if self.unstable is not None:
                mixture.masked_fill_(self.unstable[chunks], 0.0)
        if score is not None:
            score = score.masked_fill(barred, -math.inf)  # it may be a view of something else
        logits = self.rule.logits(score, mixture, self.snapshot.sharpness)
        logits = logits.masked_fill(barred, -math.inf)
        if not bool((logits.amax(-1) < math.inf).all()):  # nor NaN
            raise ValueError(
                "scorer: scores of some pairs are NaN or infinite; embeddings of extreme size do "
                "that to inner products: normalise them, or give the sampler the scorer that your "
                "loss uses (the last table stays in use)"
            )
        return logits, parts


def _mixture_parts(ratio: Tensor, model: DiffusionGenerator, uniform_share: float) -> Tensor:
    """Logits of each component's part of the mixture: L levels, then uniform; [L + 1, C, Q, M]."""
    share = ratio.new_tensor(model.levels.mixture_shares) * (1 - uniform_share)
    parts = ratio.new_empty(len(ratio) + 1, *ratio.shape[1:])
    torch.add(ratio, share.log().view(-1, 1, 1, 1), out=parts[:-1])
    parts[-1] = math.log(uniform_share) if uniform_share else -math.inf
    return parts


def _draw_levels(
    parts: list[Tensor | None], chosen: Tensor, generator: torch.Generator | None
) -> Tensor:
    """The component each chosen candidate came from, drawn by its responsibilities, uint8.

    Args:
        parts: parts of the mixture, [L + 1, c, Q, M] for some chunks each; None without levels.
        chosen: places in the pools, shape [C, Q, P].
        generator: source of randomness.
    """
    level = torch.full(chosen.shape, NO_LEVEL, dtype=torch.uint8, device=chosen.device)
    if parts[0] is None:
        return level
    components = len(parts[0])
    noise = torch.empty(components, *chosen.shape, dtype=torch.float32, device=chosen.device)
    noise.exponential_(generator=generator)
    start = 0
    for some in parts:
        assert some is not None
        here = slice(start, start + some.shape[1])
        start += some.shape[1]
        # The largest of logit plus Gumbel noise; component by component reads memory in order.
        best = noise.new_full(chosen[here].shape, -math.inf)
        for component in range(components):
            value = some[component].gather(2, chosen[here]).sub_(noise[component, here].log_())
            name = NO_LEVEL if component == components - 1 else component
            level[here].masked_fill_(value > best, name)
            torch.maximum(best, value, out=best)
    return level
