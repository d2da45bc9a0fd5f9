r"""Filling a table of negatives from the embeddings of one refresh, in plain torch.

The data flow, for source nodes (queries) and destination nodes (candidates):

    embeddings -> space of the diffusion model -> fit -> level Gaussians of a block of queries
        -> log ratio of every pool member -> known edges filtered -> rule
        -> draw without replacement -> candidate table, and the norms of each query

`LatentDraw` takes the nearest real nodes to drawn latents instead (the paper's method, made real).

Blocks of queries bound the working set; within a block, chunks share pools
(`dgl_dmns.core.pools`), and rows are of about the same size; long ones are taken apart. Beside it,
filling a table takes 24 bytes a query, and 12 for each norm.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dgl_dmns.core.choice import takes_keys
from dgl_dmns.core.fetched import FetchedRows
from dgl_dmns.core.nearest import LatentDraw
from dgl_dmns.core.openslots import fill_open_slots
from dgl_dmns.core.pools import CELLS, PoolDraw, PoolSettings, harmonic_means
from dgl_dmns.core.reports import LevelScores, TableReport
from dgl_dmns.core.rules import Rule
from dgl_dmns.core.snapshot import Snapshot
from dgl_dmns.core.table import NO_LEVEL, Candidates, CandidateTable
from dgl_dmns.messages import warn

__all__ = ["CHUNK_BYTES", "Portion", "fill_table", "queries_at_a_time"]

CHUNK_BYTES = 1 << 28
"""Default working set of filling a table, in bytes (256 MiB)."""

_WINDOW = 1 << 16  # rows that are taken apart at a time: a bounded working set
_BLOCK = 2048  # queries at a time at most: more would cost memory and save no time
_FEW = 512  # queries: to draw more for some of them costs less than another block
_WORKERS = 16  # blocks at a time at most: more would wait for the interpreter
_SCORED = 4096  # queries whose negatives are scored for the report, about


@dataclass(frozen=True)
class Portion:
    """Which blocks of a table in one file one of several processes fills.

    Attributes:
        rank: of this process.
        count: how many there are; each fills every ``count``-th block.
        each: does a piece of work in all of them, and returns what came of it, by rank.
    """

    rank: int
    count: int
    each: Callable[[Callable[[], Any]], list[Any]]


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
    part: Portion | None = None,
) -> tuple[TableReport, Tensor | None]:
    """Fill the hidden buffer of a table from a snapshot; its `publish` is left to the caller.

    In the main thread, and without a scorer of the user, as many blocks are filled at a time as
    torch has threads; what comes out does not depend on their number.

    Args:
        table: the table to fill, of groups and rows of its own sizes, on the CPU.
        rule: the selection rule, with what it has measured (`Rule.measured`).
        settings: pools and mixture.
        snapshot: embeddings, diffusion model, scorer and known edges, where the work is done.
        nodes: distinct query ids, shape [B], int64, whose rows are drawn anew while the others stay
            as they are; defaults to all.
        chunk_bytes: bound of the working set of a thread, see `queries_at_a_time`.
        on_rows: called with the number of rows written, block by block; an exception from it ends
            the work, and what is live stays live.
        generator: source of randomness, on the CPU.
        part: which blocks this process fills, where others fill the rest of the same file, from
            equal arguments; what comes out is that of one process. Defaults to all.

    Returns:
        What it came to; and the norms of every query, float32 [N, L + P] of L levels and P parts of
        the rule, NaN for rows that were not drawn anew; None for a rule without a distribution.
        Both are on the CPU.

    Raises:
        ValueError: if the rule needs a diffusion model and the snapshot has none.
        RuntimeError: on all processes, if they have not the same blocks.
    """
    if rule.uses_generator:
        if snapshot.model is None:
            raise ValueError(f"rule: {type(rule).__name__} needs a generator, got none")
        _ = snapshot.encoded  # once, before several threads ask for it
    queries, k = table.queries, table.k
    if nodes is not None:
        if part is None:
            table.keep()
        else:  # before anyone writes
            part.each(table.keep if part.rank == 0 else int)
        queries = nodes.numel()
    if part is not None:
        table.unfinished.fill_(1)  # by others, too
    searched = rule.nearest_among(snapshot.known.num_candidates)
    device = snapshot.h_query.device
    order = torch.randperm(queries, generator=generator)
    if nodes is not None:
        order = nodes[order]
    step = max(1, settings.draws_per_pool // k)
    order = order[table.sizes(order).argsort(descending=True, stable=True)]
    if searched is not None and queries:
        step = int(table.sizes(order[:1]))  # the groups of a query are searched one by one
    scored = max(1, queries // _SCORED)

    @torch.no_grad()
    def fill(block: _Block) -> _Filled:
        random = torch.Generator(device).manual_seed(block.seed)
        rows = block.rows.to(device)
        draw: PoolDraw | LatentDraw
        if searched is None:
            draw = PoolDraw(rule, settings, snapshot, rows, block.shared, random)
        else:
            draw = LatentDraw(searched, snapshot, rows, chunk_bytes, random)
        own = rows[: block.real]
        ids, levels = (part[: block.real] for part in draw.draw(k, block.groups))
        empty = ids < 0
        ids = fill_open_slots(ids, empty, snapshot.known, own, random)
        levels = levels.masked_fill(empty, NO_LEVEL)
        written = Candidates(ids.cpu(), levels.cpu())
        table.write(block.rows[: block.real], written, block.first)
        # One group stands for all in the statistics, and some queries do: they were drawn alike.
        level, asked, shown = levels[::scored, 0], own[::scored], ids[::scored, 0]
        if isinstance(snapshot.h_candidate, FetchedRows):  # nothing is fetched here
            inside = ~empty[::scored, 0].any(dim=1)
            level, asked, shown = level[inside], asked[inside], shown[inside]
        score = snapshot.scores(asked.unsqueeze(1), shown).squeeze(1)
        unstable = None if draw.unstable is None else draw.unstable.flatten()[: block.real]
        inverse = -draw.norms[: block.real] if rule.tractable else None
        fallback = empty.flatten(1).any(dim=1)
        made = (fallback, unstable, inverse, level, score)
        kept: Any = (one if one is None else one.cpu() for one in made)
        return _Filled(block, draw.filtered, draw.seen, *kept)

    # A scorer may keep a state. Beside the training, which a count of threads would hold up, too.
    alone = snapshot.scorer is not None or searched is not None or device.type != "cpu"
    alone = alone or threading.current_thread() is not threading.main_thread()
    threads = 1 if alone else torch.get_num_threads()

    def work(blocks: Iterator[_Block]) -> Iterator[_Filled]:
        for done in _each(fill, blocks, threads):
            if on_rows is not None:
                on_rows(int((done.block.first == 0).sum()))
            yield done

    blocks = _blocks(table, order, step, settings, snapshot, chunk_bytes, generator)
    scores = LevelScores(len(snapshot.model.levels) if snapshot.model is not None else 0)
    filtered = seen = 0
    fallback, unstable = torch.zeros(2, table.queries, dtype=torch.bool)
    inverse: list[tuple[Tensor, Tensor]] = []  # of norms
    for done in work(blocks) if part is None else _in_parts(work, blocks, part):
        own = done.block.rows[: done.block.real]
        filtered += done.filtered
        seen += done.seen
        fallback[own] |= done.fallback
        if done.unstable is not None:
            unstable[own] |= done.unstable
        if done.inverse is not None:
            inverse.append((own, done.inverse))
        scores.add(done.level, done.score)
    lost = int(unstable.sum())
    if lost:
        warn(
            f"the diffusion model has come apart for {lost} of {queries} queries: they get "
            "negatives without it, until a later fit holds; lower the sampler's learning_rate, or "
            "look at the embeddings for rows of extreme size"
        )
    share = filtered / max(1, seen)
    report = TableReport(share, int(fallback.sum()), scores.means(), lost, rule.measures())
    return report, harmonic_means(inverse, table.queries) if inverse else None


class _Block(NamedTuple):
    """Parts of rows that are filled together.

    Attributes:
        rows: queries, shape [B], int64; those behind the first ``real`` only fill up the last ones
            that share a pool.
        real: how many are written.
        first: the first group of each of these, shape [real], int64.
        groups: how many groups are drawn.
        shared: queries that share a pool; divides B.
        seed: of all that is random.
    """

    rows: Tensor
    real: int
    first: Tensor
    groups: int
    shared: int
    seed: int


class _Filled(NamedTuple):
    """What became of a block of B rows.

    Attributes:
        block: the block.
        filtered: pool members that were known edges.
        seen: all pool members.
        fallback: which rows took the fallback, bool [B].
        unstable: which had no usable Gaussians, bool [B]; None if all had, or needed none.
        inverse: logs of inverse norms, shape [B, L + P]; None for a rule without a distribution.
        level: levels of a group of some rows, shape [b, K].
        score: their scores, shape [b, K].
    """

    block: _Block
    filtered: int
    seen: int
    fallback: Tensor
    unstable: Tensor | None
    inverse: Tensor | None
    level: Tensor
    score: Tensor


def _each(
    fill: Callable[[_Block], _Filled], blocks: Iterator[_Block], threads: int
) -> Iterator[_Filled]:
    """What becomes of the blocks, in order; several are worked on at a time, each on one core."""
    ahead = list(islice(blocks, 2))
    if threads == 1 or len(ahead) < 2:
        yield from map(fill, chain(ahead, blocks))
        return
    workers = min(threads, _WORKERS)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[_Filled]] = deque()
    try:
        for block in chain(ahead, blocks):
            waiting.append(pool.submit(fill, block))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the workers' setting is that of the process


def _in_parts(
    work: Callable[[Iterator[_Block]], Iterator[_Filled]], blocks: Iterator[_Block], part: Portion
) -> Iterator[_Filled]:
    """What becomes of the blocks, in order, of which each process fills every ``count``-th one."""
    passed = hashlib.sha256()

    def own() -> Iterator[_Block]:
        for number, block in enumerate(blocks):  # all: their seeds are drawn one after the other
            passed.update(repr((*block[3:], block.real)).encode())
            passed.update(block.rows.cpu().numpy().tobytes())
            if number % part.count == part.rank:
                yield block

    found = part.each(lambda: ([_apart(done) for done in work(own())], passed.hexdigest()))
    if len({seen for _, seen in found}) > 1:
        raise RuntimeError(
            "refresh: ranks that share a table would fill different rows; make their samplers with "
            "the same arguments, and refresh the same nodes"
        )
    for number in range(sum(len(some) for some, _ in found)):
        yield found[number % part.count][0][number // part.count]


def _apart(done: _Filled) -> _Filled:
    """The same to be sent: a view would bring all along that it is a view of."""
    block = done.block
    block = block._replace(rows=block.rows[: block.real].clone(), first=block.first[:0].clone())
    fields: Any = (one.clone() if isinstance(one, Tensor) else one for one in done[1:])
    return _Filled(block, *fields)


def _blocks(
    table: CandidateTable,
    order: Tensor,
    step: int,
    settings: PoolSettings,
    snapshot: Snapshot,
    chunk_bytes: int,
    generator: torch.Generator | None,
) -> Iterator[_Block]:
    """Rows in ``order``, the longest first, in blocks of parts of at most ``step`` groups."""
    for rows, first, sizes, shared in _parts(table, order, step, settings.queries_per_pool):
        real, start = len(sizes), 0
        alone = replace(settings, queries_per_pool=shared)
        while start < real:
            # As many are drawn for all of a block: its rows are about as long, or few.
            longest = int(sizes[start])
            other = ((sizes[start:] > longest) | (2 * sizes[start:] < longest)).nonzero()
            alike = real - start
            if other.numel():  # whole pools, so that no longer row is among them
                alike = max(int(other[0]) // shared, -(-_FEW // shared)) * shared
            most = int(sizes[start : start + alike].max())
            at_a_time = queries_at_a_time(alone, snapshot, table.k, chunk_bytes, most)
            at_a_time = max(1, min(at_a_time // shared, -(-alike // shared))) * shared
            end, count = start + at_a_time, min(at_a_time, real - start)
            groups = int(sizes[start : start + count].max())  # of these very rows
            seed = int(torch.randint(1 << 62, (), generator=generator))
            yield _Block(rows[start:end], count, first[start : start + count], groups, shared, seed)
            start = end


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
        row = torch.repeat_interleave(torch.arange(len(rows)), count)
        part = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
        part, place = part.sort(stable=True)
        row = row[place]
        per_pool = max(1, min(shared, len(rows)))
        alike = torch.bincount(part)
        cut = int(alike[alike >= per_pool].sum())
        for some, together in ((slice(0, cut), per_pool), (slice(cut, None), 1)):
            at, first = row[some], part[some] * step
            left = (sizes[at] - first).clamp(max=step)
            full = torch.arange(-(-len(at) // together) * together) % max(1, len(at))
            yield rows[at[full]], first[full], left, together


def queries_at_a_time(
    settings: PoolSettings,
    snapshot: Snapshot,
    k: int,
    chunk_bytes: int = CHUNK_BYTES,
    groups: int = 1,
) -> int:
    """Queries whose candidates are drawn together within ``chunk_bytes``, 2048 at most.

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
    if takes_keys(settings.pool, known.num_candidates):
        each += 4 * known.num_candidates // settings.queries_per_pool
    left = max(0, chunk_bytes - 12 * (levels + 3) * CELLS)
    return max(1, min(_BLOCK, left // max(1, each)))
