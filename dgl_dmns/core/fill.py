r"""Filling a table of negatives from the embeddings of one refresh, in plain torch.

The data flow, for source nodes (queries) and destination nodes (candidates):

    embeddings -> space of the diffusion model -> fit -> level Gaussians of a block of queries
        -> log ratio of every pool member -> known edges filtered -> rule
        -> draw without replacement -> candidate table, and the norms of each query

`LatentDraw` takes the nearest real nodes to drawn latents instead (the paper's method, made real).
`draw_by_level` draws many nodes of a single level, without the distortion of a pool, for evaluation
and to look at the levels.

Blocks of queries bound the working set; within a block, chunks share pools
(`dgl_dmns.core.pools`), and rows are of about the same size; long ones are taken apart. Beside it,
filling a table takes 24 bytes a query, and 8 for each norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from dgl_dmns.core.choice import takes_keys
from dgl_dmns.core.generator import DiffusionGenerator
from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.pools import CELLS, PoolDraw, PoolSettings
from dgl_dmns.core.reports import LevelScores, TableReport
from dgl_dmns.core.rules import Rule
from dgl_dmns.core.snapshot import Snapshot
from dgl_dmns.core.table import NO_LEVEL, Candidates, CandidateTable, fill_open_slots
from dgl_dmns.messages import warn

__all__ = ["CHUNK_BYTES", "draw_by_level", "fill_table", "queries_at_a_time"]

CHUNK_BYTES = 1 << 28
"""Default working set of filling a table, in bytes (256 MiB)."""

_WINDOW = 1 << 16  # rows that are taken apart at a time: a bounded working set
_BLOCK = 4096  # queries at a time at most: more would cost memory and save no time
_FEW = 512  # queries: to draw more for some of them costs less than another block
_SCORED = 4096  # queries whose negatives are scored for the report, about
_LARGEST = 1e15  # coordinates of a latent beyond that have come apart; their squares are finite
_SIMILARITIES = 20_000_000  # similarities held at a time: a bounded working set
_CELLS = 1 << 20  # (query, node) cells of a level at a time, likewise


@torch.no_grad()
def fill_table(
    table: CandidateTable,
    rule: Rule,
    settings: PoolSettings,
    snapshot: Snapshot,
    *,
    nodes: Tensor | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    on_rows: Callable[[int], object] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[TableReport, Tensor | None]:
    """Fill the hidden buffer of a table from a snapshot; its `publish` is left to the caller.

    Args:
        table: the table to fill, of groups and rows of its own sizes.
        rule: the selection rule, with what it has measured (`Rule.measured`).
        settings: pools and mixture.
        snapshot: embeddings, diffusion model, scorer and known edges.
        nodes: distinct query ids, shape [B], int64, whose rows are drawn anew while the others stay
            as they are; defaults to all.
        chunk_bytes: bound of the working set, see `queries_at_a_time`.
        on_rows: called with the number of rows written, block by block; an exception from it ends
            the work, and what is live stays live.
        generator: source of randomness.

    Returns:
        What it came to; and the norms of every query, float32 [N, L + P] of L levels and P parts of
        the rule, NaN for rows that were not drawn anew; None for a rule without a distribution.

    Raises:
        ValueError: if the rule needs a diffusion model and the snapshot has none.
    """
    if rule.uses_generator and snapshot.model is None:
        raise ValueError(f"rule: {type(rule).__name__} needs a generator, got none")
    queries, k = table.queries, table.k
    if nodes is not None:
        table.keep()
        queries = nodes.numel()
    searched = rule.nearest_among(snapshot.known.num_dst)
    scores = LevelScores(len(snapshot.model.levels) if snapshot.model is not None else 0)
    filtered = seen = 0
    fallback = torch.zeros(table.queries, dtype=torch.bool)
    unstable = torch.zeros_like(fallback)
    inverse: list[tuple[Tensor, Tensor]] = []  # of norms
    order = torch.randperm(queries, generator=generator, device=snapshot.h_query.device)
    if nodes is not None:
        order = nodes[order]
    order = order[table.sizes(order).argsort(descending=True, stable=True)]
    step = max(1, settings.draws_per_pool // k)
    if searched is not None:
        step = int(table.sizes(order[:1]))  # the groups of a query are searched one by one
    for rows, first, sizes, shared in _parts(table, order, step, settings.queries_per_pool):
        real = len(sizes)
        alone = replace(settings, queries_per_pool=shared)
        start = 0
        while start < real:
            # As many are drawn for all of a block: its rows are about as long, or few.
            longest = int(sizes[start])
            other = ((sizes[start:] > longest) | (2 * sizes[start:] < longest)).nonzero()
            alike = max(int(other[0]), _FEW) if other.numel() else real - start
            groups = int(sizes[start : start + alike].max())
            at_a_time = queries_at_a_time(alone, snapshot, k, chunk_bytes, groups)
            at_a_time = max(1, min(at_a_time // shared, -(-alike // shared))) * shared
            block = slice(start, start + at_a_time)
            own, begin = rows[block][: real - start], first[block][: real - start]
            draw: PoolDraw | LatentDraw
            if searched is None:
                draw = PoolDraw(rule, settings, snapshot, rows[block], shared, generator)
            else:
                draw = LatentDraw(searched, snapshot, rows[block], chunk_bytes, generator)
            ids, levels = (part[: own.numel()] for part in draw.draw(k, groups))
            filtered += draw.filtered
            seen += draw.seen
            if draw.unstable is not None:
                unstable[own] |= draw.unstable.flatten()[: own.numel()].cpu()
            if rule.tractable:
                inverse.append((own, -draw.norms[: own.numel()]))
            empty = ids < 0
            fallback[own] |= empty.flatten(1).any(dim=1).cpu()
            ids = fill_open_slots(ids, empty, snapshot.known, own, generator)
            levels = levels.masked_fill(empty, NO_LEVEL)
            table.write(own, Candidates(ids, levels), begin)
            # One group stands for all in the statistics, and some queries do: drawn alike.
            some = slice(0, None, max(1, queries // _SCORED))
            score = snapshot.scores(own[some].unsqueeze(1), ids[some, 0]).squeeze(1)
            scores.add(levels[some, 0], score)
            start += at_a_time
            if on_rows is not None:
                on_rows(int((begin == 0).sum()))
    lost = int(unstable.sum())
    if lost:
        warn(
            f"the diffusion model has come apart for {lost} of {queries} queries: they get "
            "negatives without it, until a later fit holds; lower the sampler's learning_rate, or "
            "look at the embeddings for rows of extreme size"
        )
    share = filtered / max(1, seen)
    report = TableReport(share, int(fallback.sum()), scores.means(), lost, rule.measures())
    return report, _harmonic_means(inverse, table.queries) if inverse else None


def _parts(
    table: CandidateTable, order: Tensor, step: int, shared: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    """Rows in parts of at most ``step`` groups, for each of which one pool is enough.

    No two parts of a row are near each other, so that they never share a pool: where few rows are
    as long, each part has a pool of its own.

    Yields:
        Queries [B] and the first group of each part, int64; how many groups each part has, of the
        first ones only: others fill up the last queries that share a pool; and how many share one.
    """
    for rows in order.split(_WINDOW):
        sizes = table.sizes(rows)
        count = torch.div(sizes + step - 1, step, rounding_mode="floor")
        row = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), count)
        part = torch.arange(len(row), device=rows.device) - (count.cumsum(0) - count)[row]
        part, place = part.sort(stable=True)
        row = row[place]
        per_pool = min(shared, len(rows))
        alike = torch.bincount(part)
        cut = int(alike[alike >= per_pool].sum())
        for some, together in ((slice(0, cut), per_pool), (slice(cut, None), 1)):
            at, first = row[some], part[some] * step
            left = (sizes[at] - first).clamp(max=step)
            full = torch.arange(-(-len(at) // together) * together, device=rows.device)
            full %= max(1, len(at))
            yield rows[at[full]], first[full], left, together


def _harmonic_means(inverse: list[tuple[Tensor, Tensor]], queries: int) -> Tensor:
    """Norms [N, L + P] from logs of inverses [B, L + P] of some queries [B] each, NaN for others.

    Ratios are means of what is divided by norms, over all pools of a query.
    """
    row, value = (torch.cat(part) for part in zip(*inverse))
    times = torch.bincount(row, minlength=queries)
    most = value.new_full((queries, value.shape[1]), -math.inf)
    most.scatter_reduce_(0, row.unsqueeze(1).expand_as(value), value, "amax")
    most.masked_fill_(most.isneginf(), 0.0)
    total = torch.zeros_like(most).index_add_(0, row, (value - most[row]).exp_())
    norms: Tensor = times.unsqueeze(1).log() - most - total.log()
    return norms


def queries_at_a_time(
    settings: PoolSettings,
    snapshot: Snapshot,
    k: int,
    chunk_bytes: int = CHUNK_BYTES,
    groups: int = 1,
) -> int:
    """Queries whose candidates are drawn together within ``chunk_bytes``, 4096 at most.

    A query takes about ``16 L W + 80 G k + 80 d`` bytes: Gaussians of L levels of width W, its k
    candidates in each of G groups, and its d known edges (the mean counts). If a pool has more than
    a quarter of the N nodes, random keys of all of them for each pool come to it.
    The densities that are weighed at a time take ``12 (L + 3)`` bytes for each of 131,072 cells, 11
    MB with four levels, however many queries.
    """
    known, model = snapshot.known, snapshot.model
    levels, width = (0, 0) if model is None else (len(model.levels), model.space.width)
    each = 16 * levels * width + 80 * groups * k
    each += 80 * known.indices.numel() // max(1, known.num_src)
    if takes_keys(settings.pool, known.num_dst):
        each += 4 * known.num_dst // settings.queries_per_pool
    left = max(0, chunk_bytes - 12 * (levels + 3) * CELLS)
    return max(1, min(_BLOCK, left // max(1, each)))


class LatentDraw:
    """Draws groups for one block of queries: the nearest real nodes to drawn latents.

    Args:
        searched: number of uniform nodes among which the nearest is searched; from N on, all are.
        snapshot: embeddings and model.
        rows: query ids of the block, shape [B], int64.
        chunk_bytes: bound of the similarities held at a time, in bytes.
        generator: source of randomness.

    Attributes:
        unstable: whether a query had a latent that could not be computed with (uniform nodes stand
            in), shape [B].
    """

    filtered = seen = 0  # no pool member is rejected
    norms: Tensor  # of tractable rules only, which this is not for

    def __init__(
        self,
        searched: int,
        snapshot: Snapshot,
        rows: Tensor,
        chunk_bytes: int,
        generator: torch.Generator | None,
    ) -> None:
        assert snapshot.model is not None
        assert snapshot.z_query is not None
        assert snapshot.z_candidate is not None
        self.known, self.z_candidate = snapshot.known, snapshot.z_candidate
        self.rows, self.generator = rows, generator
        self.shares = self.z_candidate.new_tensor(snapshot.model.levels.mixture_shares)
        self.latents = snapshot.model.latent_draws(snapshot.z_query[rows])
        self.searched = searched
        everyone = searched >= self.known.num_dst
        self.every = normalize(self.z_candidate, dim=1) if everyone else None
        self.step = max(1, min(_SIMILARITIES, chunk_bytes // 8) // max(1, searched))
        self.unstable = torch.zeros(rows.numel(), dtype=torch.bool, device=rows.device)

    def draw(self, k: int, groups: int) -> Candidates:
        """Candidates of shape [B, G, k]; -1 if no admissible node was found."""
        parts = [self._group(k) for _ in range(groups)]
        return Candidates(*(torch.stack(part, dim=1) for part in zip(*parts)))

    def _group(self, k: int) -> Candidates:
        known, rows, generator = self.known, self.rows, self.generator
        shape, device = (rows.numel(), k), rows.device
        component = torch.multinomial(
            self.shares, rows.numel() * k, replacement=True, generator=generator
        ).view(shape)
        uniform = torch.zeros(shape, dtype=torch.bool, device=device)  # in place of lost latents
        ids = torch.full(shape, -1, dtype=torch.int64, device=device)
        for slot in range(k):
            latents = self.latents(generator)
            latent = latents[component[:, slot], torch.arange(rows.numel(), device=device)]
            uniform[:, slot] = ~(latent.abs().amax(dim=1) < _LARGEST)
            pool, unit = None, self.every
            if unit is None:
                size = (self.searched,)
                pool = torch.randint(0, known.num_dst, size, generator=generator, device=device)
                unit = normalize(self.z_candidate[pool], dim=1)
            for lo in range(0, rows.numel(), self.step):
                part = slice(lo, lo + self.step)
                cosine = latent[part] @ unit.T
                if pool is None and known.crowded:
                    cosine[known.barred_of(rows[part])] = -math.inf
                nearest = _best_admissible(cosine, rows[part], pool, known, ids[part, :slot])
                ids[part, slot] = nearest.masked_fill(uniform[part, slot], -1)
        self.unstable |= uniform.any(dim=1)
        ids = fill_open_slots(ids.unsqueeze(1), uniform.unsqueeze(1), known, rows, generator)
        level = torch.where(uniform, NO_LEVEL, component).to(torch.uint8)
        return Candidates(ids.squeeze(1), level)


def _best_admissible(
    similarity: Tensor, rows: Tensor, pool: Tensor | None, known: KnownEdges, taken: Tensor
) -> Tensor:
    """The most similar candidate that is neither known nor taken; -1 if none is; [B]."""
    result = torch.full((rows.numel(),), -1, dtype=torch.int64, device=rows.device)
    open_rows = (similarity > -math.inf).any(dim=1).nonzero().squeeze(1)
    remaining = similarity[open_rows]
    # Mostly the best one will do, and a maximum is much cheaper than a few of the best.
    width = 1
    while open_rows.numel():
        width = min(width, similarity.shape[1])
        if width == 1:
            place = remaining.argmax(dim=1, keepdim=True)
        else:
            place = remaining.topk(width, dim=1).indices
        ids = place if pool is None else pool[place]
        barred = known.contains(rows[open_rows].unsqueeze(1), ids)
        barred |= (ids.unsqueeze(2) == taken[open_rows].unsqueeze(1)).any(-1)
        found = ~barred.all(dim=1)
        first = (~barred).int().argmax(dim=1, keepdim=True)
        result[open_rows[found]] = ids.gather(1, first).squeeze(1)[found]
        if width == similarity.shape[1]:
            break
        open_rows = open_rows[~found]
        remaining = similarity[open_rows]
        width *= 8
    return result


@torch.no_grad()
def draw_by_level(
    model: DiffusionGenerator,
    z_query: Tensor,
    z_candidate: Tensor,
    known: KnownEdges,
    rows: Tensor,
    n: int,
    *,
    lam: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Nodes of every level over all nodes, without replacement within a level.

    For query ``v`` and level ``t`` in proportion to ``N(z_u; m_t(v), s_t(v)^2)^lambda``, by Gumbel
    noise and the n largest: one pass over the nodes a query.

    Args:
        model: the diffusion model.
        z_query: embeddings of the source nodes in its space, shape [Nq, W].
        z_candidate: embeddings of the destination nodes in its space, shape [Nc, W].
        known: edges that are not drawn.
        rows: query ids, shape [B], int64.
        n: nodes per query and level.
        lam: exponent on the density.
        generator: source of the noise.

    Returns:
        Destination ids, shape [B, L, n], int64, hardest level first. If a query has fewer than n
        admissible nodes, they repeat; one without any gets what `KnownEdges.uniform` gives it.

    Raises:
        TypeError: if the noise predictor is not affine.
    """
    taken = min(n, known.num_dst)
    parts = []
    for part in rows.split(max(1, _CELLS // known.num_dst)):
        gaussians = model.gaussians(z_query[part])
        logits = gaussians.pool_log_prob(z_candidate.unsqueeze(0)).squeeze(1)
        logits *= lam
        logits -= torch.empty_like(logits).exponential_(generator=generator).log()
        owner, node = known.barred_of(part)
        logits[:, owner, node] = -math.inf
        best = logits.topk(taken, dim=-1)
        ids = best.indices.masked_fill(best.values.isneginf(), -1)
        ids = pad(ids, (0, n - taken), value=-1).transpose(0, 1)
        parts.append(fill_open_slots(ids, ids < 0, known, part, generator))
    return torch.cat(parts) if parts else rows.new_empty(0, len(model.levels), n)
