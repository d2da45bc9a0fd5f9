r"""Drawing candidates from shared pools of uniform nodes, by a rule's weights.

A chunk of ``queries_per_pool`` queries shares a pool of M uniform candidates, so that all densities
of a level are two matrix products and all scores a third. The generator's log ratio, with shares
``p_l`` of the levels, is

    w(u|v) = log(sum_l p_l d_l(u|v) / D_l(v)),
    d_l(u|v) = N(z_u; m_l(v), s_l(v)^2)^lambda, D_l(v) the mean of d_l over the pool,

and a rule's parts, with weights ``g_c`` and shares ``a_c``, are mixed as

    sum_c a_c g_c(u|v) / G_c(v), G_c(v) the mean of g_c over the pool.

The k candidates of a group are drawn without replacement in proportion to that. The **norms**, logs
of ``D_l`` and ``G_c``, are kept for each query: with them, the log ratio of any pair follows in
closed form, see `dgl_dmns.core.distribution`.

How much a pool distorts. Within a pool the ratios sum to M, so a pool of few nodes lifts its best
one to a share it would not have among all N: the smaller the pool, the harder the negatives. As M
grows the draws tend to the rule's distribution over all nodes. Groups of a row can share a pool
(``draws_per_pool``), so that a large one costs no more than many small ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from dgl_dmns.checks import as_integer, as_number
from dgl_dmns.core.choice import draw_distinct
from dgl_dmns.core.diffusion import PoolDensities
from dgl_dmns.core.rules import Rule
from dgl_dmns.core.snapshot import Snapshot, rows_of
from dgl_dmns.core.table import BYTES_PER_CANDIDATE, NO_LEVEL, Candidates

__all__ = ["CELLS", "PoolDraw", "PoolSettings", "harmonic_means"]

CELLS = 1 << 17
"""(query, pool member) cells that are weighed at a time: what is in between fits a cache."""

_LOWEST = -60.0
_BYTES = 90  # of a table, for each query and negative of an edge


@dataclass(frozen=True)
class PoolSettings:
    """How candidates are proposed.

    Args:
        pool: uniform candidates M in a pool.
        queries_per_pool: queries that share a pool.
        uniform_share: share ``pi`` of the negatives that are plain uniform ones, drawn in the call,
            in [0, 1]; the table holds the others.
        lam: exponent ``lambda`` on the density, positive.
        groups: groups that rows have on average, at most; defaults to as many as fit 90 bytes a
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
        self.densities: PoolDensities | None = None
        self.unstable: Tensor | None = None  # queries without usable Gaussians, [C, Q, 1]
        if rule.uses_generator:
            assert snapshot.model is not None
            z = rows_of(snapshot.z_query, rows)
            gaussians = snapshot.model.gaussians(z)
            stable = snapshot.model.stable(gaussians, z)
            if not bool(stable.all()):
                self.unstable = ~stable.view(-1, chunk, 1)
            self.densities = gaussians.over_pools(self.queries.shape[0], settings.lam)
        # Known edges of the queries, as (query, node); None of queries that know more nodes than
        # a pool has members: these are looked up instead.
        known = snapshot.known
        pairs = int((known.indptr[rows + 1] - known.indptr[rows]).sum())
        few = pairs <= 4 * rows.numel() * min(settings.pool, known.num_dst)
        self.known_pairs = known.barred_of(rows) if few else None
        self.filtered = 0
        self.seen = 0
        self._norms: Tensor | None = None

    @property
    def norms(self) -> Tensor:
        """Norms of the levels and of the parts of each query, float32 [B, L + P].

        Infinity of the levels for queries whose Gaussians could not be computed with, and where
        nobody was admissible.
        """
        assert self._norms is not None
        return self._norms

    def measure(self) -> None:
        """Weigh a pool for its norms alone."""
        pool = self._pools()
        for _ in self._weighed(pool, self.barred(pool)):
            pass

    def draw(self, k: int, groups: int) -> Candidates:
        """Groups of k candidates [B, G, k] from a pool; -1 where that has none left."""
        pool = self._pools()
        barred = self.barred(pool)
        self.seen += self.queries.numel() * pool.shape[1]
        self.filtered += barred.numel()
        members = min(k, pool.shape[1])
        ids, levels = [], []
        for some, weighed in self._weighed(pool, barred):
            weight = weighed.weight
            if self.rule.takes_largest:
                best = weight.topk(members, dim=-1).indices
                place = best.unsqueeze(2).expand(-1, -1, groups, -1)
            else:
                place = draw_distinct(weight.flatten(0, 1), groups, members, self.generator)
            place = place.reshape(*weight.shape[:2], groups * members)
            chosen = pool[some].unsqueeze(1).expand_as(weight).gather(2, place)
            level = self._levels(weighed, place, some)
            if weighed.barred.numel():
                none = torch.zeros_like(weight, dtype=torch.bool)
                none.view(-1)[weighed.barred] = True
                none = none.gather(2, place)
                chosen.masked_fill_(none, -1)
                level.masked_fill_(none, NO_LEVEL)
            ids.append(chosen)
            levels.append(level)
        missing = k - members  # a graph with fewer nodes than k
        shape = (-1, groups, members)
        return Candidates(
            pad(torch.cat(ids).view(shape), (0, missing), value=-1),
            pad(torch.cat(levels).view(shape), (0, missing)),
        )

    def barred(self, pool: Tensor) -> Tensor:
        """Which members of pools [C, M] are known edges: ascending places of C Q M cells, int64.

        If they are few, the block's known edges are looked up in its sorted pools.
        """
        chunks, size = pool.shape
        if self.known_pairs is None:
            known = self.snapshot.known.contains(self.queries.unsqueeze(2), pool.unsqueeze(1))
            return known.flatten().nonzero().squeeze(1)
        nodes = self.snapshot.known.num_dst
        base = torch.arange(chunks, device=pool.device).unsqueeze(1) * nodes
        members, order = (pool + base).flatten().sort()
        owner, node = self.known_pairs
        wanted = torch.div(owner, self.queries.shape[1], rounding_mode="floor") * nodes + node
        place = torch.searchsorted(members, wanted).clamp(max=members.numel() - 1)
        hit = (members[place] == wanted).nonzero().squeeze(1)
        cells: Tensor = (owner[hit] * size + order[place[hit]] % size).unique()
        return cells

    def _pools(self) -> Tensor:
        """A pool for each chunk, [C, M], int64."""
        return self.snapshot.pools(len(self.queries), self.settings.pool, self.generator)

    def _weighed(self, pool: Tensor, barred: Tensor) -> Iterator[tuple[slice, _Weighed]]:
        """Some chunks after the other, with the weights of their pools' members."""
        chunks, members = pool.shape
        cells = self.queries.shape[1] * members  # of a chunk
        step = max(1, CELLS // cells)
        lost = torch.div(barred, members, rounding_mode="floor").bincount(
            minlength=self.queries.numel()
        )
        count = (members - lost).float().clamp_(min=1).view(*self.queries.shape, 1)
        starts = torch.arange(0, chunks, step, device=barred.device) * cells
        ends = [*torch.searchsorted(barred, starts).tolist(), barred.numel()]
        norms: list[Tensor] = []
        for lo, begin, end in zip(range(0, chunks, step), ends, ends[1:]):
            some = slice(lo, lo + step)
            weighed = self._weigh(pool[some], some, barred[begin:end] - lo * cells, count[some])
            norms.append(weighed.norms.flatten(0, 1))
            yield some, weighed
        made = torch.cat(norms)
        self._norms = made.masked_fill_(made == -math.inf, math.inf)  # nobody was admissible

    def _weigh(self, pool: Tensor, chunks: slice, barred: Tensor, count: Tensor) -> _Weighed:
        """The rule's weights over the pools of some chunks.

        ``barred`` are places among their cells, ``count`` [C, Q, 1] the other members of a query's
        pool, at least 1. For queries whose Gaussians cannot be computed with, the diffusion model
        is uniform.

        Raises:
            ValueError: for scores that are not finite.
        """
        queries = self.queries[chunks]
        shape = (*queries.shape, pool.shape[1])
        norms: list[Tensor] = []
        ratio = mixture = score = None
        if self.densities is not None:
            assert self.snapshot.model is not None
            members = rows_of(self.snapshot.z_candidate, pool)
            density = self.densities.up_to_constants(members, chunks)
            if self.unstable is not None:
                density.masked_fill_(self.unstable[chunks].unsqueeze(1), 0.0)
            # The same cells at each level.
            cells = shape[1] * shape[2]
            base = torch.div(barred, cells, rounding_mode="floor") * cells
            levels = torch.arange(density.shape[1], device=pool.device).unsqueeze(1)
            at = barred + (density.shape[1] - 1) * base + levels * cells
            ratio, norm = _over_mean(density, at.flatten(), count.unsqueeze(1))
            norm += self.densities.constant[chunks]
            if self.unstable is not None:
                norm.masked_fill_(self.unstable[chunks].unsqueeze(1), math.inf)
            norms.extend(norm.squeeze(-1).unbind(1))
            shares = self.snapshot.model.levels.mixture_shares
            ratio *= ratio.new_tensor(shares).view(-1, 1, 1)
            mixture = ratio.sum(1)
        if self.rule.uses_scores:
            score = self.snapshot.scores(queries, pool).contiguous()
            if barred.numel():
                score = score.clone()  # it may be a view of something else
                score.view(-1)[barred] = -math.inf
        weights: list[Tensor] = []
        levelled: list[Tensor] = []
        for part in self.rule.parts(score, None if mixture is None else mixture.log()):
            logits = part.logits.expand(shape).clone()  # which may be the rule's own
            weight, norm = _over_mean(logits, barred, count)
            if not bool((norm < math.inf).all()):  # nor NaN
                raise ValueError(
                    "scorer: scores of some pairs are NaN or infinite; embeddings of extreme size "
                    "do that to inner products: normalise them, or give the sampler the scorer "
                    "that your loss uses (the last table stays in use)"
                )
            norms.append(norm.squeeze(-1))
            weights.append(logits if self.rule.takes_largest else weight.mul_(part.share))
            if part.levelled:
                levelled.append(weights[-1])
        total = _sum(weights)
        assert total is not None
        return _Weighed(total, torch.stack(norms, -1), barred, ratio, mixture, _sum(levelled))

    def _levels(self, weighed: _Weighed, place: Tensor, chunks: slice) -> Tensor:
        """The level that each chosen place [C, Q, P] came from, drawn by its share in it, uint8."""
        level = torch.zeros(place.shape, dtype=torch.uint8, device=place.device)
        ratio, mixture, levelled = weighed.ratio, weighed.mixture, weighed.levelled
        if ratio is None or mixture is None or levelled is None:
            return level.fill_(NO_LEVEL)
        # A point in the weight of the candidate, which levels and the rest divide among them.
        point = torch.rand(
            place.shape, generator=self.generator, dtype=torch.float32, device=place.device
        )
        point *= weighed.weight.gather(2, place)
        none = None
        if levelled is not weighed.weight:
            none = point >= levelled.gather(2, place)
        point *= (mixture / levelled).gather(2, place)
        for harder in ratio[:, :-1].unbind(1):
            point -= harder.gather(2, place)
            level += (point >= 0).view(torch.uint8)
        if none is not None:
            level.masked_fill_(none, NO_LEVEL)
        if self.unstable is not None:
            level.masked_fill_(self.unstable[chunks], NO_LEVEL)
        return level


class _Weighed(NamedTuple):
    """How the members of the pools of C chunks are weighed for their Q queries.

    Attributes:
        weight: shape [C, Q, M]; the logits where the largest are taken.
        norms: shape [C, Q, L + P], of L levels and P parts of the rule.
        barred: places of the known edges among the C Q M cells, int64; they weigh nothing.
        ratio: what each level has of the mixture of levels, [C, L, Q, M]; None without.
        mixture: their sum, as ``weight``.
        levelled: what of the weight is the levels', as ``weight``; None if nothing is.
    """

    weight: Tensor
    norms: Tensor
    barred: Tensor
    ratio: Tensor | None
    mixture: Tensor | None
    levelled: Tensor | None


def _over_mean(logits: Tensor, barred: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [.., M] as ratios to their mean over admissible members, and its log [.., 1].

    ``barred`` are places of the others among all cells, -inf in the logits from then on, and
    ``count`` [.., 1] is how many are left; the log is -inf where none is.
    """
    logits.view(-1)[barred] = -math.inf
    top = logits.amax(-1, keepdim=True)
    # e^-60 counts nothing beside 1, and smaller ones are slow, as denormal numbers.
    weight = (logits - top).clamp_(min=_LOWEST)
    weight.view(-1)[barred] = -math.inf
    weight = weight.softmax(-1)
    norm = top - (weight.amax(-1, keepdim=True) * count).log_()
    nobody = top == -math.inf
    if bool(nobody.any()):
        norm.masked_fill_(nobody, -math.inf)
        weight.masked_fill_(nobody, 0.0)
    return weight.mul_(count), norm


def _sum(parts: list[Tensor]) -> Tensor | None:
    """The sum of tensors of one shape, itself if there is one; None if there is none."""
    total = parts[0] if parts else None
    for part in parts[1:]:
        total = total + part
    return total


def harmonic_means(inverse: list[tuple[Tensor, Tensor]], queries: int) -> Tensor:
    """Norms [N, L + P] from logs of inverses [B, L + P] of some queries [B] each, NaN for others.

    Ratios are means of what is divided by norms, over all pools of a query.
    """
    like = inverse[0][1]
    most = like.new_full((queries, like.shape[1]), -math.inf)
    times, total = like.new_zeros(queries), torch.zeros_like(most)
    for row, value in inverse:
        times.index_add_(0, row, torch.ones_like(value[:, 0]))
        most.scatter_reduce_(0, row.unsqueeze(1).expand_as(value), value, "amax")
    most.masked_fill_(most.isneginf(), 0.0)
    for row, value in inverse:
        total.index_add_(0, row, (value - most[row]).exp_())
    norms: Tensor = most.neg_().add_(times.log_().unsqueeze(1)).sub_(total.log_())
    return norms
