r"""Drawing candidates from shared pools of uniform nodes, by a rule's weights.

A chunk of ``queries_per_pool`` queries shares a pool of M uniform candidates, so that all densities
of a level are two matrix products and all scores a third. The generator's log ratio, with shares
``p_l`` of the levels, is

    ``w(u|v) = log(sum_l p_l d_l(u|v) / D_l(v))``,
    ``d_l(u|v) = N(z_u; m_l(v), s_l(v)^2)^lambda``, ``D_l(v)`` the mean of ``d_l`` over the pool,

and a rule's parts, with weights ``g_c`` and shares ``a_c``, are mixed as

    ``sum_c a_c g_c(u|v) / G_c(v)``, ``G_c(v)`` the mean of ``g_c`` over the pool.

The k candidates of a group are drawn without replacement in proportion to that: by inverting the
cumulative weights, a slot that repeats an earlier one being drawn again. The **norms**, logs of
``D_l`` and ``G_c``, are kept for each query: with them, the log ratio of any pair follows in closed
form, see `dgl_dmns.core.distribution`.

How much a pool distorts. Within a pool the ratios sum to M, so a pool of few nodes lifts its best
one to a share it would not have among all N: the smaller the pool, the harder the negatives. As M
grows the draws tend to the rule's distribution over all nodes. Groups of a row can share a pool
(``draws_per_pool``), so that a large one costs no more than many small ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from dgl_dmns.checks import as_integer, as_number
from dgl_dmns.core.choice import distinct_pools, draw_distinct
from dgl_dmns.core.diffusion import LevelGaussians
from dgl_dmns.core.rules import Part, Rule
from dgl_dmns.core.snapshot import Snapshot, rows_of
from dgl_dmns.core.table import BYTES_PER_CANDIDATE, NO_LEVEL, Candidates

__all__ = ["CELLS", "PoolDraw", "PoolSettings"]

CELLS = 1 << 16
"""(query, pool member) cells that are weighed at a time: what is in between fits a cache."""

_BYTES = 112  # of a table, for each query and negative of an edge


@dataclass(frozen=True)
class PoolSettings:
    """How candidates are proposed.

    Args:
        pool: uniform candidates M in a pool.
        queries_per_pool: queries that share a pool.
        uniform_share: share ``pi`` of the negatives that are plain uniform ones, drawn in the call,
            in [0, 1]; the table holds the others.
        lam: exponent ``lambda`` on the density, positive.
        groups: groups that rows have on average, at most; defaults to as many as fit 112 bytes a
            query for each of the k negatives of an edge.
        draws_per_pool: candidates of a row that are drawn from one pool, one group at least.

    Raises:
        ValueError: for a value out of range.
        TypeError: for what is no number.
    """

    pool: int = 32
    queries_per_pool: int = 64
    uniform_share: float = 0.0
    lam: float = 1.0
    groups: int | None = None
    draws_per_pool: int = 1

    def __post_init__(self) -> None:
        for name in ("pool", "queries_per_pool", "groups", "draws_per_pool"):
            if name != "groups" or self.groups is not None:
                object.__setattr__(self, name, as_integer(name, getattr(self, name), 1))
        if not 0.0 <= as_number("uniform_share", self.uniform_share) <= 1.0:
            raise ValueError(f"uniform_share: expected a value in [0, 1], got {self.uniform_share}")
        if not as_number("lam", self.lam) > 0.0:
            raise ValueError(f"lam: expected a positive exponent, got {self.lam}")

    def hard(self, k: int) -> int:
        """Candidates in a group of the table: those of k negatives that are not uniform."""
        return max(1, math.ceil(round((1 - self.uniform_share) * k, 9)))

    def groups_for(self, k: int) -> int:
        """Groups that rows have on average, at most, for k negatives per edge."""
        if self.groups is not None:
            return self.groups
        return max(1, _BYTES * k // (BYTES_PER_CANDIDATE * self.hard(k)))


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
        rule: Rule,
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
        self._norms: Tensor | None = None  # of inverses, log sums over pools, [B, L + P]
        self._pools_seen = 0

    @property
    def norms(self) -> Tensor:
        """Norms of the levels and of the parts of each query, float32 [B, L + P].

        Harmonic means over several pools, since ratios are means of what is divided by them;
        infinity of the levels for queries whose Gaussians could not be computed with.
        """
        assert self._norms is not None
        return -(self._norms - math.log(self._pools_seen))

    def draw(self, k: int, groups: int) -> Candidates:
        """Groups of k candidates [B, G, k] for the queries; -1 if a pool has none left."""
        step = max(1, self.settings.draws_per_pool // k)
        parts = [self._from_one_pool(k, min(step, groups - lo)) for lo in range(0, groups, step)]
        return Candidates(*(torch.cat(field, dim=1) for field in zip(*parts)))

    def measure(self) -> None:
        """Weigh one pool for its norms alone."""
        pool = self._pools()
        self._weighed(pool, self._barred(pool))

    def _from_one_pool(self, k: int, groups: int) -> Candidates:
        pool = self._pools()
        self.seen += self.queries.numel() * pool.shape[1]
        barred = self._barred(pool)
        self.filtered += int(barred.sum())
        weight, tags = self._weighed(pool, barred)
        members = min(k, pool.shape[1])
        if self.rule.takes_largest:
            best = weight.topk(members, dim=-1).indices
            place = best.unsqueeze(2).expand(-1, -1, groups, -1).flatten(0, 1)
        else:
            place = draw_distinct(weight.flatten(0, 1), groups, members, self.generator)
        # From here on, places of [B, G, k] candidates in pools of [B, M].
        place = place.reshape(*weight.shape[:2], groups * members)
        chosen = pool.unsqueeze(1).expand_as(barred).gather(2, place)
        chosen = chosen.masked_fill(barred.gather(2, place), -1)
        level = _draw_levels(tags, place, self.generator)
        missing = k - members  # a graph with fewer nodes than k
        shape = (-1, groups, members)
        return Candidates(
            pad(chosen.reshape(shape), (0, missing), value=-1),
            pad(level.reshape(shape), (0, missing)),
        )

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

        If they are few, the block's known edges are looked up in its sorted pools.
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

    def _weighed(self, pool: Tensor, barred: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """The rule's weights, [C, Q, M], and of some chunks each, what levels are drawn by."""
        chunks, per_chunk, members = barred.shape
        step = max(1, CELLS // (per_chunk * members))
        count = (~barred).sum(-1, keepdim=True).clamp(min=1).float().log()
        weights: list[Tensor] = []
        tags: list[Tensor | None] = []
        norms: list[Tensor] = []
        for lo in range(0, chunks, step):
            some = slice(lo, lo + step)
            score = None
            if self.rule.uses_scores:
                score = self.snapshot.scores(self.queries[some], pool[some])
            density = self._densities(pool[some], slice(lo * per_chunk, (lo + step) * per_chunk))
            weighed = self._weigh(score, density, barred[some], count[some], some)
            weights.append(weighed[0])
            tags.append(weighed[1])
            norms.append(weighed[2].flatten(0, 1))
        inverse = -torch.cat(norms)
        inverse.masked_fill_(inverse == math.inf, -math.inf)  # nobody was admissible
        both = inverse if self._norms is None else torch.logaddexp(self._norms, inverse)
        self._norms = both
        self._pools_seen += 1
        return torch.cat(weights), tags

    def _densities(self, pool: Tensor, queries: slice) -> Tensor | None:
        """Log densities of the levels of some queries over their pools, [L, C, Q, M], or None."""
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
        count: Tensor,
        chunks: slice,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The rule's weights, what levels are drawn by, and the norms.

        Densities are written over. For queries whose Gaussians cannot be computed with, the
        diffusion model is uniform.

        Returns:
            Weights [C, Q, M], ratios to their mean (logits if the largest are taken); weights of
            the levels in them, [L + 1, C, Q, M], the last for draws of no level, None without
            levels; and norms [C, Q, L + P].

        Raises:
            ValueError: for scores that are not finite.
        """
        ratio = mixture = None
        norms: list[Tensor] = []
        if density is not None:
            assert self.snapshot.model is not None
            density.mul_(self.settings.lam).masked_fill_(barred, -math.inf)
            norm = density.logsumexp(-1, keepdim=True) - count
            if self.unstable is not None:
                norm.masked_fill_(self.unstable[chunks], math.inf)
            norms.extend(norm.squeeze(-1))
            ratio = density.sub_(norm).exp_().nan_to_num_(nan=0.0)
            for level, share in zip(ratio, self.snapshot.model.levels.mixture_shares):
                level.mul_(share)
            mixture = ratio.sum(0).log_()
            if self.unstable is not None:
                mixture.masked_fill_(self.unstable[chunks], 0.0)
        if score is not None:
            score = score.masked_fill(barred, -math.inf)  # it may be a view of something else
        parts = []
        for part in self.rule.parts(score, mixture):
            logits = part.logits.masked_fill(barred, -math.inf)
            if not bool((logits.amax(-1) < math.inf).all()):  # nor NaN
                raise ValueError(
                    "scorer: scores of some pairs are NaN or infinite; embeddings of extreme size "
                    "do that to inner products: normalise them, or give the sampler the scorer "
                    "that your loss uses (the last table stays in use)"
                )
            norm = logits.logsumexp(-1, keepdim=True) - count
            norms.append(norm.squeeze(-1))
            if self.rule.takes_largest:
                return logits, None, torch.stack(norms, -1)
            weight = (logits - norm).exp_().nan_to_num_(nan=0.0).mul_(part.share)
            parts.append(part._replace(logits=weight))
        tags = None if ratio is None else self._tags(ratio, mixture, parts)
        weight = parts[0].logits
        for part in parts[1:]:
            weight = weight + part.logits
        return weight, tags, torch.stack(norms, -1)

    def _tags(self, ratio: Tensor, mixture: Tensor | None, parts: list[Part]) -> Tensor:
        """What each level has of the weight of every pool member, then what no level has.

        From the parts of the mixture of levels [L, C, Q, M], the log of their sum, and the rule's
        parts with weights in place of logits.
        """
        assert mixture is not None
        tags = ratio.new_zeros(len(ratio) + 1, *ratio.shape[1:])
        for part in parts:
            if part.levelled:
                torch.mul(ratio, part.logits / mixture.exp(), out=tags[:-1])
                tags[:-1].nan_to_num_(nan=0.0)
            else:
                tags[-1] = part.logits
        if self.unstable is not None:  # no level claims anything
            tags[-1].masked_fill_(~(tags > 0).any(0), 1.0)
        return tags


def _draw_levels(
    tags: list[Tensor | None], chosen: Tensor, generator: torch.Generator | None
) -> Tensor:
    """The level that each chosen place [C, Q, P] came from, drawn by its responsibilities, uint8.

    ``tags`` are weights of each level and of none, [L + 1, c, Q, M] for some chunks each.
    """
    level = torch.full(chosen.shape, NO_LEVEL, dtype=torch.uint8, device=chosen.device)
    if tags[0] is None:
        return level
    components = len(tags[0])
    noise = torch.empty(components, *chosen.shape, dtype=torch.float32, device=chosen.device)
    noise.exponential_(generator=generator)
    start = 0
    for some in tags:
        assert some is not None
        here = slice(start, start + some.shape[1])
        start += some.shape[1]
        # The largest of weight over exponential noise; one by one reads memory in order.
        best = noise.new_zeros(chosen[here].shape)
        for component in range(components):
            value = some[component].gather(2, chosen[here]).div_(noise[component, here])
            name = NO_LEVEL if component == components - 1 else component
            level[here].masked_fill_(value > best, name)
            torch.maximum(best, value, out=best)
    return level
