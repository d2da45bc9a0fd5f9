r"""From embeddings to a table of negatives: one refresh, in plain torch.

The data flow of a refresh, for source nodes (queries) and destination nodes (candidates):

    embeddings -> generator space -> fitting -> level Gaussians of a block of queries
        -> log ratio of every pool member -> known edges filtered -> rule
        -> draw without replacement -> candidate table, and the norms of each query

Blocks of queries bound the working set (`chunk_bytes`); within a block, chunks share pools
(`dgl_dmns.core.pools`), and rows are of about the same size. Beside it, filling a table takes 16
bytes a query for their order, and 4 bytes for each norm.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dgl_dmns.core.generator import FitReport
from dgl_dmns.core.nearest import nearest_group
from dgl_dmns.core.pools import CELLS, PoolDraw, PoolSettings
from dgl_dmns.core.repair import fill_open_slots
from dgl_dmns.core.rules import Rule
from dgl_dmns.core.snapshot import Snapshot
from dgl_dmns.core.table import NO_LEVEL, Candidates, CandidateTable
from dgl_dmns.messages import warn

__all__ = [
    "CHUNK_BYTES",
    "RefreshReport",
    "Stopwatch",
    "TableReport",
    "TypeReport",
    "fill_table",
    "queries_at_a_time",
]

CHUNK_BYTES = 1 << 28
"""Working set of filling a table where nothing else is asked for, in bytes (256 MiB)."""

_BLOCK = 4096  # queries at a time at most: more would cost memory and save no time


@dataclass(frozen=True)
class TableReport:
    """What building a table came to.

    Args:
        filtered: share of pool members that were rejected as known edges.
        fallback: number of query rows that took the fallback (fewer admissible nodes than k in
            reach of a pool).
        level_score: mean score ``s(v, u)`` of the chosen negatives per hardness level, and under
            the key ``"no level"`` that of those which no level claims.
        unstable: number of queries whose level Gaussians could not be computed with; the generator
            was taken as uniform for them, and a warning said so.
        measures: what the rule has measured, see `Rule.measures`.
    """

    filtered: float
    fallback: int
    level_score: dict[str, float]
    unstable: int = 0
    measures: dict[str, float] = field(default_factory=dict)

    @property
    def sharpness(self) -> float:
        """Factor on the scores in the rule's softmax, see `dgl_dmns.core.sharpness`."""
        return self.measures.get("sharpness", 1.0)


@dataclass(frozen=True)
class TypeReport:
    """What one refresh did for one edge type.

    Args:
        fit: the generator's fitting report, None for rules without a generator.
        table: what building the table came to.
    """

    fit: FitReport | None
    table: TableReport


@dataclass(frozen=True)
class RefreshReport:
    """What one refresh did.

    Args:
        version: version of the tables that it published.
        seconds: wall-clock seconds of the whole refresh.
        seconds_by_part: the same by part (embed, fit, table).
        by_type: the reports of the edge types, by canonical edge type.
    """

    version: int
    seconds: float
    seconds_by_part: dict[str, float]
    by_type: dict[tuple[str, str, str], TypeReport]

    @property
    def fit(self) -> FitReport | None:
        """The generator's fitting report, where there is one edge type.

        Raises:
            ValueError: if there are several.
        """
        return self._only().fit

    @property
    def table(self) -> TableReport:
        """What building the table came to, where there is one edge type.

        Raises:
            ValueError: if there are several.
        """
        return self._only().table

    def _only(self) -> TypeReport:
        if len(self.by_type) != 1:
            raise ValueError(
                f"report: there is one for each edge type, {list(self.by_type)}; read "
                "report.by_type[etype].table and .fit"
            )
        return next(iter(self.by_type.values()))


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
        names = [str(i) for i in range(self.total.numel() - 1)] + ["no level"]
        mean = self.total / self.count
        return {n: float(m) for n, m, c in zip(names, mean, self.count) if c > 0}


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
        rule: the selection rule, `Rule.measured` where that applies.
        settings: pools and mixture.
        snapshot: embeddings, generator, scorer and known edges.
        nodes: distinct query ids, shape [B], int64, whose rows are drawn anew while the others stay
            as they are; all where None.
        chunk_bytes: bound of the working set, see `queries_at_a_time`.
        on_rows: called with the number of rows written, block by block; an exception from it ends
            the work, and what is live stays live.
        generator: source of randomness.

    Returns:
        What it came to; and the norms of every query, float32 [N, L + P] of L levels and P parts of
        the rule, NaN for rows that were not drawn anew; None for a rule without a distribution.

    Raises:
        ValueError: if the rule needs a generator and the snapshot has none.
    """
    if rule.uses_generator and snapshot.model is None:
        raise ValueError(f"rule: {type(rule).__name__} needs a generator, got none")
    queries, k = table.queries, table.k
    if nodes is not None:
        table.keep()
        queries = nodes.numel()
    known = snapshot.known
    searched = rule.nearest_among(known.num_dst)
    statistics = _LevelScores(len(snapshot.model.levels) if snapshot.model is not None else 0)
    filtered = fallback = seen = unstable = 0
    norms: Tensor | None = None
    chunk = max(1, min(settings.queries_per_pool, queries))
    order = torch.randperm(queries, generator=generator, device=snapshot.h_query.device)
    if nodes is not None:
        order = nodes[order]
    sizes, place = table.sizes(order).sort(descending=True, stable=True)
    order = order[place]  # rows of a block are about as long
    # Whole chunks only: the last one is filled up with queries from the start of the order.
    order = torch.cat([order, order[: (-queries) % chunk]])
    start = 0
    while start < order.numel():
        groups = int(sizes[start])
        at_a_time = queries_at_a_time(settings, snapshot, k, chunk_bytes, groups)
        alike = int((2 * sizes[start:] >= groups).sum())  # as many groups are drawn for all rows
        at_a_time = max(chunk, min(at_a_time // chunk, -(-alike // chunk)) * chunk)
        rows = order[start : start + at_a_time]
        own = rows[: queries - start]  # without those that only fill up the last chunk
        if searched is not None:
            assert snapshot.model is not None
            assert snapshot.z_query is not None
            latents = snapshot.model.latent_draws(snapshot.z_query[rows])
            parts, wild = zip(
                *(
                    nearest_group(searched, snapshot, rows, k, latents, chunk_bytes, generator)
                    for _ in range(groups)
                )
            )
            drawn = Candidates(*(torch.stack(field, dim=1) for field in zip(*parts)))
            unstable += int(torch.stack(wild).any(dim=0)[: own.numel()].sum())
        else:
            draw = PoolDraw(rule, settings, snapshot, rows, chunk, generator)
            drawn = draw.draw(k, groups)
            filtered += draw.filtered
            seen += draw.seen
            if draw.unstable is not None:
                unstable += int(draw.unstable.flatten()[: own.numel()].sum())
            if rule.tractable:
                if norms is None:
                    norms = draw.norms.new_full((table.queries, draw.norms.shape[1]), math.nan)
                norms[own] = draw.norms[: own.numel()]
        ids, levels = (field[: own.numel()] for field in drawn)
        empty = ids < 0
        fallback += int(empty.flatten(1).any(dim=1).sum())
        ids = fill_open_slots(ids, empty, known, own, generator)
        levels = levels.masked_fill(empty, NO_LEVEL)
        table.write(own, Candidates(ids, levels))
        # One group stands for all in the statistics: they were drawn alike.
        statistics.add(levels[:, 0], snapshot.scores(own.unsqueeze(1), ids[:, 0]).squeeze(1))
        start += rows.numel()
        if on_rows is not None:
            on_rows(own.numel())
    if unstable:
        warn(
            f"the diffusion model has come apart for {unstable} of {queries} queries: they get "
            "negatives without it, until a later fit holds; lower the sampler's learning_rate, or "
            "look at the embeddings for rows of extreme size",
        )
    report = TableReport(
        filtered / max(1, seen), fallback, statistics.means(), unstable, rule.measures()
    )
    return report, norms


def queries_at_a_time(
    settings: PoolSettings,
    snapshot: Snapshot,
    k: int,
    chunk_bytes: int = CHUNK_BYTES,
    groups: int = 1,
) -> int:
    """Queries whose candidates are drawn together, so that what is in between stays in bounds.

    A query takes about ``4 M (L + 7) + 8 L W + G k (4 L + 64) + 80 d`` bytes: weights over a pool
    of M, Gaussians of L levels of width W, its candidates, and its d known edges (the mean
    counts). Where the pool is not small beside ``sqrt(N)`` (``M^2 >= N``), random keys of all N
    nodes for each pool come to it. The densities that are weighed at a time take ``12 (L + 1)``
    bytes for each of 65,536 cells, 4 MB with four levels, whatever the number of queries.

    Args:
        settings: pools and mixture.
        snapshot: embeddings, generator and known edges.
        k: candidates in a group.
        chunk_bytes: the bound; that of one chunk of queries that share a pool where it is less.
        groups: groups of the longest row.

    Returns:
        A number of queries, 4096 at most.
    """
    known, model = snapshot.known, snapshot.model
    levels, width = (0, 0) if model is None else (len(model.levels), model.space.width)
    pool = min(settings.pool, known.num_dst)
    each = 4 * pool * (levels + 7) + 8 * levels * width
    each += groups * k * (4 * levels + 64)
    each += 80 * known.indices.numel() // max(1, known.num_src)
    if settings.pool**2 >= known.num_dst:
        each += 4 * known.num_dst // settings.queries_per_pool
    left = max(0, chunk_bytes - 12 * (levels + 1) * CELLS)
    return max(1, min(_BLOCK, left // each))


class Stopwatch:
    """Wall-clock seconds by part of a refresh; another clock can take the place of ``clock``."""

    clock: ClassVar[Callable[[], float]] = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.started = self.last = type(self).clock()
        self.parts: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """Book the time since the last mark under a name."""
        now = type(self).clock()
        self.parts[part] = self.parts.get(part, 0.0) + now - self.last
        self.last = now

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return type(self).clock() - self.started
