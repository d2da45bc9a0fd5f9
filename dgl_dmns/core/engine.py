r"""From embeddings to a table of negatives: one refresh, in plain torch.

The data flow of a refresh, for source nodes (queries) and destination nodes (candidates):

    embeddings -> generator space -> fitting -> level Gaussians of a block of queries
        -> log ratio of every pool member -> rule -> draw without replacement -> known edges filtered
        -> candidate table

Queries that follow each other in a random order share pools: a chunk of ``queries_per_pool`` queries
and its pool of M uniform candidates need two matrix products per level and one for the scores. The
mixture over levels (shares ``p_l``) and the uniform share ``pi`` is

    ``w(u|v) = log(pi + (1 - pi) * sum_l p_l * q_l(u|v) / uniform(u))``,
    ``q_l(u|v)`` proportional to ``N(z_u; m_l(v), s_l(v)^2)^lambda`` over the pool,

and the distribution a rule finally draws from has log ratio ``log_softmax(rule logits) + log M``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from dgl_dmns.core.generator import DiffusionGenerator, FitReport
from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.rules import Hardest, Nearest, Rule
from dgl_dmns.core.table import UNIFORM_LEVEL, Candidates, CandidateTable

__all__ = ["PoolSettings", "RefreshReport", "Scorer", "build_table", "dot_score"]

Scorer = Callable[[Tensor, Tensor], Tensor]
"""Scores of broadcastable embeddings: ([.., D], [.., D]) to [..]."""

_BLOCK = 4096  # queries whose Gaussians are held at a time: a bounded working set


@dataclass(frozen=True)
class PoolSettings:
    """How candidates are proposed.

    Args:
        pool: uniform candidates M in a pool.
        queries_per_pool: queries that share a pool.
        uniform_share: share ``pi`` of plain uniform negatives in the mixture, in [0, 1].
        lam: exponent ``lambda`` on the density, positive.
        groups: groups of k candidates kept for each query.

    Raises:
        ValueError: for a value out of range.
    """

    pool: int = 32
    queries_per_pool: int = 64
    uniform_share: float = 0.5
    lam: float = 1.0
    groups: int = 8

    def __post_init__(self) -> None:
        for name in ("pool", "queries_per_pool", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.uniform_share <= 1.0:
            raise ValueError(f"uniform_share: expected a value in [0, 1], got {self.uniform_share}")
        if not self.lam > 0.0:
            raise ValueError(f"lam: expected a positive exponent, got {self.lam}")


@dataclass(frozen=True)
class RefreshReport:
    """What one refresh did.

    Args:
        version: version of the table that it published.
        fit: the generator's fitting report, None for rules without a generator.
        seconds: wall-clock seconds of the whole refresh.
        seconds_by_part: the same by part (embed, fit, table).
        filtered: share of pool members that were rejected as known edges.
        fallback: number of query rows that took the fallback (fewer admissible nodes than k in
            reach of a pool).
        level_score: mean score ``s(v, u)`` of the chosen negatives per hardness level, and under
            the key ``"uniform"`` that of the uniform share.
    """

    version: int
    fit: FitReport | None
    seconds: float
    seconds_by_part: dict[str, float] = field(default_factory=dict)
    filtered: float = 0.0
    fallback: int = 0
    level_score: dict[str, float] = field(default_factory=dict)


def dot_score(h_query: Tensor, h_candidate: Tensor) -> Tensor:
    """Inner products of broadcastable embeddings, the default scorer."""
    return (h_query * h_candidate).sum(-1)


def _pool_scores(scorer: Scorer | None, h_query: Tensor, h_pool: Tensor) -> Tensor:
    """Scores of [C, Q, D] queries and [C, M, D] pool members, shape [C, Q, M]."""
    if scorer is None or scorer is dot_score:
        return h_query @ h_pool.transpose(1, 2)
    return scorer(h_query.unsqueeze(2), h_pool.unsqueeze(1)).float()


class _LevelScores:
    """Running mean score of the chosen negatives by level tag."""

    def __init__(self, levels: int) -> None:
        self.total = torch.zeros(levels + 1, dtype=torch.float64)
        self.count = torch.zeros(levels + 1, dtype=torch.float64)

    def add(self, level: Tensor, score: Tensor) -> None:
        slot = level.long().clamp(max=self.total.numel() - 1).flatten().cpu()
        self.total.index_add_(0, slot, score.flatten().double().cpu())
        self.count += torch.bincount(slot, minlength=self.count.numel()).double()

    def means(self) -> dict[str, float]:
        names = [str(i) for i in range(self.total.numel() - 1)] + ["uniform"]
        mean = self.total / self.count
        return {n: float(m) for n, m, c in zip(names, mean, self.count) if c > 0}


@torch.no_grad()
def build_table(
    table: CandidateTable,
    rule: Rule,
    settings: PoolSettings,
    known: KnownEdges,
    h_query: Tensor,
    h_candidate: Tensor,
    *,
    model: DiffusionGenerator | None = None,
    scorer: Scorer | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, float | int | dict[str, float]]:
    """Fill and publish a table from embeddings.

    Args:
        table: the table to fill; its K and G are taken.
        rule: the selection rule.
        settings: pools and mixture.
        known: known edges, never proposed while an admissible node exists.
        h_query: source embeddings, shape [Nq, D].
        h_candidate: destination embeddings, shape [Nc, D].
        model: the generator, for rules that use it.
        scorer: scores of broadcastable embeddings, the inner product where None.
        generator: source of randomness.

    Returns:
        ``filtered``, ``fallback`` and ``level_score`` as in `RefreshReport`.

    Raises:
        ValueError: if the rule needs a generator and none is given.
    """
    if rule.uses_generator and model is None:
        raise ValueError(f"rule: {type(rule).__name__} needs a generator, got none")
    queries, groups, k = table.shape
    device = h_query.device
    z_query = z_candidate = None
    if model is not None and rule.uses_generator:
        z_query = model.space.encode(h_query)
        z_candidate = z_query if h_candidate is h_query else model.space.encode(h_candidate)
    statistics = _LevelScores(len(model.levels) if model is not None else 0)
    filtered = fallback = 0
    chunk = min(settings.queries_per_pool, queries)
    order = torch.randperm(queries, generator=generator, device=device)
    # Whole chunks only: the last one is filled up with queries from the start of the order.
    order = torch.cat([order, order[: (-queries) % chunk]])
    block = max(1, _BLOCK // chunk) * chunk
    for start in range(0, order.numel(), block):
        rows = order[start : start + block]
        if isinstance(rule, Nearest):
            assert model is not None and z_query is not None and z_candidate is not None
            parts = [
                _nearest_group(
                    rule, settings, known, model, rows, z_query, z_candidate, k, generator
                )
                for _ in range(groups)
            ]
        else:
            draw = _PoolDraw(rule, settings, known, model, scorer, rows, chunk, k, generator)
            parts = [draw.group(h_query, h_candidate, z_query, z_candidate) for _ in range(groups)]
            filtered += draw.filtered
        rows = rows[: queries - start]  # without those that only fill up the last chunk
        ids = torch.stack([p.ids for p in parts], dim=1)[: rows.numel()]
        levels = torch.stack([p.level for p in parts], dim=1)[: rows.numel()]
        ratios = torch.stack([p.log_ratio for p in parts], dim=1)[: rows.numel()]
        fallback += _repair(ids, levels, ratios, known, rows, generator)
        table.write(rows, Candidates(ids, ratios, levels))
        # One group stands for all in the statistics: they were drawn alike.
        first = ids[:, 0].long()
        scores = _pool_scores(scorer, h_query[rows].unsqueeze(1), h_candidate[first])
        statistics.add(levels[:, 0], scores.squeeze(1))
    table.publish()
    seen = order.numel() * groups * min(settings.pool, known.num_dst)
    return {
        "filtered": filtered / seen,
        "fallback": fallback,
        "level_score": statistics.means(),
    }


class _PoolDraw:
    """Draws groups for one block of queries, whose level Gaussians are computed once."""

    def __init__(
        self,
        rule: Rule,
        settings: PoolSettings,
        known: KnownEdges,
        model: DiffusionGenerator | None,
        scorer: Scorer | None,
        rows: Tensor,
        chunk: int,
        k: int,
        generator: torch.Generator | None,
    ) -> None:
        assert not isinstance(rule, Nearest)
        self.rule = rule
        self.settings = settings
        self.known = known
        self.model = model
        self.scorer = scorer
        self.rows = rows
        self.chunk = chunk
        self.k = k
        self.generator = generator
        self.gaussians = None
        self.filtered = 0

    def group(
        self,
        h_query: Tensor,
        h_candidate: Tensor,
        z_query: Tensor | None,
        z_candidate: Tensor | None,
    ) -> Candidates:
        """One group of k candidates for every query of the block, shape [B, K]."""
        rows, settings = self.rows, self.settings
        chunks = rows.numel() // self.chunk
        device = rows.device
        pool = _distinct_pools(chunks, settings.pool, self.known.num_dst, self.generator, device)
        queries = rows.view(chunks, self.chunk)
        barred = self.known.contains(queries.unsqueeze(2), pool.unsqueeze(1))
        self.filtered += int(barred.sum())
        size = (~barred).sum(-1, keepdim=True).clamp(min=1).log()

        score = parts = mixture = None
        if self.rule.uses_scores:
            score = _pool_scores(self.scorer, h_query[queries], h_candidate[pool])
        if self.rule.uses_generator:
            assert self.model is not None and z_query is not None and z_candidate is not None
            if self.gaussians is None:
                self.gaussians = self.model.gaussians(z_query[rows])
            density = settings.lam * self.gaussians.pool_log_prob(z_candidate[pool])
            ratio = density.masked_fill(barred, -math.inf).log_softmax(-1).nan_to_num(nan=-math.inf)
            parts = _mixture_parts(ratio + size, self.model, settings.uniform_share)
            mixture = torch.logsumexp(parts, dim=0)
        logits = self.rule.logits(score, mixture).masked_fill(barred, -math.inf)
        if isinstance(self.rule, Hardest):
            noisy = logits
        else:
            noise = torch.empty_like(logits).exponential_(generator=self.generator)
            noisy = logits - noise.log()
        best = noisy.topk(min(self.k, pool.shape[1]), dim=-1)
        chosen = pool.unsqueeze(1).expand_as(barred).gather(2, best.indices)
        chosen = chosen.masked_fill(barred.gather(2, best.indices), -1)
        if self.rule.tractable:
            log_ratio = (logits.log_softmax(-1) + size).gather(2, best.indices)
            log_ratio = log_ratio.nan_to_num(nan=0.0, neginf=0.0)
        else:
            log_ratio = torch.full(chosen.shape, math.nan, device=device)
        level = _draw_levels(parts, best.indices, self.generator)
        missing = self.k - best.indices.shape[2]  # a graph with fewer nodes than k
        return Candidates(
            pad(chosen.flatten(0, 1), (0, missing), value=-1),
            pad(log_ratio.flatten(0, 1), (0, missing)),
            pad(level.flatten(0, 1), (0, missing)),
        )


def _distinct_pools(
    chunks: int, size: int, nodes: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Uniform pools [C, min(M, N)] of distinct members, so that draws from one cannot repeat.

    Members are drawn independently and collisions redrawn where those are rare; where M is not
    small beside sqrt(N), the largest M of N random keys are taken.
    """
    if size * size >= nodes:
        keys = torch.rand((chunks, nodes), generator=generator, device=device)
        return keys.topk(min(size, nodes), dim=1).indices
    pool = torch.randint(0, nodes, (chunks, size), generator=generator, device=device)
    while True:
        ordered, where = pool.sort(dim=1)
        twin = torch.zeros_like(pool, dtype=torch.bool)
        twin.scatter_(1, where[:, 1:], ordered[:, 1:] == ordered[:, :-1])
        count = int(twin.sum())
        if not count:
            return pool
        pool[twin] = torch.randint(0, nodes, (count,), generator=generator, device=device)


def _mixture_parts(ratio: Tensor, model: DiffusionGenerator, uniform_share: float) -> Tensor:
    """Logs of each component's part of the mixture: L levels, then uniform; [L + 1, C, Q, M]."""
    share = torch.tensor(model.levels.mixture_shares, device=ratio.device) * (1 - uniform_share)
    levels = ratio + share.log().view(-1, 1, 1, 1)
    uniform = torch.full_like(ratio[:1], math.log(uniform_share) if uniform_share else -math.inf)
    return torch.cat([levels, uniform])


def _draw_levels(parts: Tensor | None, chosen: Tensor, generator: torch.Generator | None) -> Tensor:
    """The component each chosen candidate came from, drawn by its responsibilities, uint8."""
    if parts is None:
        return torch.full(chosen.shape, UNIFORM_LEVEL, dtype=torch.uint8, device=chosen.device)
    mine = parts.gather(3, chosen.unsqueeze(0).expand(parts.shape[0], *chosen.shape))
    noise = torch.empty_like(mine).exponential_(generator=generator)
    level = (mine - noise.log()).argmax(dim=0)
    uniform = parts.shape[0] - 1
    return torch.where(level == uniform, UNIFORM_LEVEL, level).to(torch.uint8)


def _nearest_group(
    rule: Nearest,
    settings: PoolSettings,
    known: KnownEdges,
    model: DiffusionGenerator,
    rows: Tensor,
    z_query: Tensor,
    z_candidate: Tensor,
    k: int,
    generator: torch.Generator | None,
) -> Candidates:
    """K candidates per query of the block: nearest nodes to latents, a share uniform; [B, K]."""
    device = rows.device
    count = rows.numel()
    shares = torch.tensor(model.levels.mixture_shares, device=device)
    shares = torch.cat([shares * (1 - settings.uniform_share), shares.new_tensor([0.0])])
    shares[-1] = settings.uniform_share
    component = torch.multinomial(shares, count * k, replacement=True, generator=generator)
    component = component.view(count, k)
    uniform = component == len(model.levels)
    ids = torch.full((count, k), -1, dtype=torch.int64, device=device)
    unit = torch.nn.functional.normalize(z_candidate, dim=1)
    step = max(1, int(2e7) // max(1, known.num_dst if rule.pool is None else rule.pool))
    for slot in range(k):
        latents = model.latents(z_query[rows], generator=generator)
        pick = component[:, slot].clamp(max=len(model.levels) - 1)
        latent = latents[pick, torch.arange(count, device=device)]
        if rule.pool is None:
            pool = None
        else:
            pool = torch.randint(0, known.num_dst, (rule.pool,), generator=generator, device=device)
        for lo in range(0, count, step):
            part = slice(lo, lo + step)
            cosine = latent[part] @ (unit if pool is None else unit[pool]).T
            nearest = _best_admissible(cosine, rows[part], pool, known, ids[part, :slot])
            ids[part, slot] = nearest.masked_fill(uniform[part, slot], -1)
    ids = _fill(ids.unsqueeze(1), uniform.unsqueeze(1), known, rows, generator).squeeze(1)
    level = torch.where(uniform, UNIFORM_LEVEL, component).to(torch.uint8)
    return Candidates(ids, torch.full(ids.shape, math.nan, device=device), level)


def _best_admissible(
    similarity: Tensor, rows: Tensor, pool: Tensor | None, known: KnownEdges, taken: Tensor
) -> Tensor:
    """The most similar candidate that is neither known nor taken; -1 where none is; [B]."""
    remaining = similarity.clone()
    result = torch.full((rows.numel(),), -1, dtype=torch.int64, device=rows.device)
    open_rows = torch.arange(rows.numel(), device=rows.device)
    width = 8
    while open_rows.numel():
        width = min(width, remaining.shape[1])
        best = remaining[open_rows].topk(width, dim=1)
        ids = best.indices if pool is None else pool[best.indices]
        barred = known.contains(rows[open_rows].unsqueeze(1), ids)
        barred |= (ids.unsqueeze(2) == taken[open_rows].unsqueeze(1)).any(-1)
        found = ~barred.all(dim=1)
        first = (~barred).int().argmax(dim=1, keepdim=True)
        result[open_rows[found]] = ids.gather(1, first).squeeze(1)[found]
        if width == remaining.shape[1]:
            break
        open_rows = open_rows[~found]
        width *= 4
    return result


def _repair(
    ids: Tensor,
    levels: Tensor,
    ratios: Tensor,
    known: KnownEdges,
    rows: Tensor,
    generator: torch.Generator | None,
) -> int:
    """Replace the slots (-1) that no pool member could fill; returns the number of rows mended.

    The documented fallback: uniform admissible nodes, with repeats where there are fewer than k.
    """
    empty = ids < 0
    ids.copy_(_fill(ids, empty, known, rows, generator))
    levels[empty] = UNIFORM_LEVEL
    ratios[empty] = 0.0
    return int(empty.flatten(1).any(dim=1).sum())


def _fill(
    ids: Tensor,
    hole: Tensor,
    known: KnownEdges,
    rows: Tensor,
    generator: torch.Generator | None,
    *,
    rounds: int = 8,
) -> Tensor:
    """Uniform admissible nodes for the slots marked ``hole``, distinct in a group; [B, G, K].

    Twins in a group are redrawn for some rounds, then replaced from the listed admissible nodes;
    those that are left have no other node to take.
    """
    ids, hole = ids.clone(), hole.clone()
    for _ in range(rounds):
        short = hole.flatten(1).any(dim=1).nonzero().squeeze(1)
        if not short.numel():
            return ids
        mine, open_slots = ids[short], hole[short]
        fresh = known.uniform(rows[short], mine[0].numel(), generator=generator).view_as(mine)
        mine = torch.where(open_slots, fresh, mine)
        # Sorting puts equal ids side by side, settled ones before open ones.
        keys, where = (2 * mine + open_slots).sort(dim=-1)
        twin = torch.zeros_like(open_slots)
        twin.scatter_(-1, where[..., 1:], keys[..., 1:] >> 1 == keys[..., :-1] >> 1)
        ids[short], hole[short] = mine, open_slots & twin
    for row in hole.flatten(1).any(dim=1).nonzero().flatten().tolist():
        listed = known.admissible(int(rows[row]))
        for group, open_slots in zip(ids[row], hole[row]):
            rest = listed[~torch.isin(listed, group)]
            order = torch.randperm(rest.numel(), generator=generator, device=rest.device)
            slots = open_slots.nonzero().squeeze(1)[: rest.numel()]
            group[slots] = rest[order[: slots.numel()]]
    return ids


class Stopwatch:
    """Wall-clock seconds by part of a refresh."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.parts: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """Book the time since the last mark under a name."""
        now = time.perf_counter()
        self.parts[part] = self.parts.get(part, 0.0) + now - self.last
        self.last = now

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started
