"""Refreshes: now, after optimizer steps, or in a thread; each changes everything, or nothing.

A refresh works on copies of the methods and in the hidden buffers of the tables; a swap makes all
of it live at its end. The little that changes before, random states, is put back where it fails.
What the user's own functions have changed is beyond that: it stays changed.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from tqdm import tqdm

from dgl_dmns.core import (
    EdgeType,
    Embeddings,
    FitReport,
    RankReport,
    RefreshReport,
    Stopwatch,
    TableReport,
    TypeReport,
    callers_device,
    held_bytes,
    in_float32,
    outside_inference_mode,
    shielded,
)
from dgl_dmns.messages import about
from dgl_dmns.samplers.embedder import Embedder
from dgl_dmns.samplers.method import Ends, Method, OnRows
from dgl_dmns.samplers.misuse import ScoringCheck
from dgl_dmns.samplers.observed import NodeIds, ObservedEmbeddings, ids_by_type
from dgl_dmns.samplers.pacing import Cadence, Task, check_optimizer, passes_of, steps_of_a_pass
from dgl_dmns.samplers.relation import Relation, version_of
from dgl_dmns.samplers.stored import StoredRows
from dgl_dmns.samplers.trainers import RanksOfMachine, Trainers, agreed

__all__ = ["RefreshCallback", "Refresher", "Staleness"]

RefreshCallback = Callable[[RefreshReport, dict[str, Tensor]], Any]
"""Takes the report of a refresh and the embeddings, float32 [N, D] by node type.

Where trainers share a distributed graph these are what the encoder returned, as a ``DistTensor``.
"""

_Rows = dict[EdgeType, Optional[Tensor]]
Made = TypeVar("Made")
_DIFFERENT = (
    "refresh: ranks that share a table have other embeddings, models or settings than each other; "
    "give them equal seeds, arguments and weights, or broadcast embeddings for refresh(h): those "
    "of observe(), and of BatchNorm's own statistics, differ"
)
_PATIENCE = 10.0  # seconds after which a refresh shows its progress, on a terminal


@dataclass(frozen=True)
class Staleness:
    """How far the negatives that are drawn now lie behind the training.

    Attributes:
        refreshes: refreshes that were begun since the one whose table is in use: 1 while one is
            under way in the background, and after one that has failed; otherwise 0.
        steps: optimizer steps since the embeddings behind the table were taken; None without
            `RefreshingSampler.attach`.
        age: mean over nodes of how many observations ago a row was seen last; None where nothing
            was observed.
    """

    refreshes: int
    steps: int | None
    age: float | None


class _Part(NamedTuple):
    """What a refresh does for one edge type: all rows, or some [B], by a copy of the method."""

    held: Relation
    method: Method
    ends: Ends
    rows: Tensor | None


class _Work(NamedTuple):
    """A refresh that was begun."""

    parts: list[_Part]  # of the edge types
    h: dict[str, Any]  # by node type, tensors or `StoredRows`
    step: int  # optimizer steps before it
    watch: Stopwatch
    clock: int | None  # of the observed embeddings that start anew from h; None where they go on


@dataclass(eq=False, repr=False)
class Refresher:
    """Makes the tables of a sampler anew from its encoder."""

    subject: str  # name of the sampler, for warnings
    embedder: Embedder
    relations: dict[EdgeType, Relation]
    background: bool  # whether refreshes after the first run in a thread
    scoring: ScoringCheck
    trainers: Trainers | None = None  # who refresh together, each its share of rows, or of a table
    report: RefreshReport | None = None  # of the refresh that is in use
    callbacks: OrderedDict[int, RefreshCallback] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._task: Task[tuple[RefreshReport, _Work]] | None = None
        self._random: dict[EdgeType, Tensor] = {}  # states before it
        self._failed: BaseException | None = None  # what a task has raised, until it is told
        self._steps: int | None = None  # of attached optimizers
        self._attached: WeakKeyDictionary[torch.optim.Optimizer, Any] = WeakKeyDictionary()
        self._behind = 0  # refreshes that were begun since the one whose table is live
        self._in_use = 0  # the step of the embeddings behind that table
        self._builders = self.trainers  # in the thread, where one builds
        if self.trainers is not None and self.background:
            self._builders = Trainers(apart=True)
        self._ranks = self.trainers if isinstance(self.trainers, RanksOfMachine) else None
        self._together: dict[str, Any] = {"trainers": self._builders}  # in `Ends`
        if self._ranks is not None:  # each fits for itself
            self._together = {"part": self._ranks.part}
        if self.trainers is not None and self._ranks is None:  # who would repeat others' pools
            for relation in self.relations.values():
                seed = repr((relation.random.initial_seed(), self.trainers.rank))
                relation.random.manual_seed(random.Random(seed).getrandbits(62))

    @property
    def version(self) -> int:
        """See `Tables.version`."""
        return version_of(self.relations)

    @property
    def staleness(self) -> Staleness:
        """See `RefreshingSampler.staleness`."""
        seen = self.embedder.observed
        return Staleness(
            refreshes=self._behind,
            steps=None if self._steps is None else self._steps - self._in_use,
            age=None if seen is None else seen.mean_age(),
        )

    def _rows(self, nodes: NodeIds | None) -> _Rows:
        """The rows of each edge type that ids of source nodes stand for; None for all."""
        if nodes is None:
            return dict.fromkeys(self.relations)
        if not all(relation.method.rebuilds_rows for relation in self.relations.values()):
            raise ValueError(
                f"nodes: {self.subject} keeps chains that go on by themselves, and no rows that a "
                "refresh draws; call refresh() without nodes"
            )
        if not self.version:
            raise RuntimeError("nodes: the first refresh fills the whole table; call refresh()")
        sources = {etype[0]: one.counts[0] for etype, one in self.relations.items()}
        found, none = ids_by_type(nodes, sources), torch.empty(0, dtype=torch.int64)
        return {e: one.rows_of(found.get(e[0], none)) for e, one in self.relations.items()}

    @about
    @outside_inference_mode
    @shielded
    def refresh(
        self, embeddings: Embeddings | None, nodes: NodeIds | None, observed: bool
    ) -> RefreshReport:
        """See `RefreshingSampler.refresh`."""
        watch, background = Stopwatch(), self.background and self.report is not None

        found: list[_Rows] = []

        def ready() -> int:
            if background:
                self.wait()  # where trainers fail alike
                watch.mark("wait")
            found.append(self._rows(nodes))
            return self.version

        versions = [ready()] if self.trainers is None else self.trainers.each(ready)
        if len(set(versions)) > 1:
            raise RuntimeError(
                f"refresh: trainers have tables of different versions, {versions}, by rank; load "
                "states of one checkpoint on all of them, or make the samplers anew"
            )
        with self.scoring.watching(self.embedder.encoder, list(self._attached)):
            h = agreed(  # as a copy, since training writes on
                self.trainers, lambda: self.embedder.embeddings(embeddings, observed, copy=True)
            )
        watch.mark("embed")
        self._random = {e: one.random.get_state() for e, one in self.relations.items()}
        version = self.version
        try:
            anew = embeddings is not None or not observed
            work = agreed(self.trainers, lambda: self._begin(h, found[0], watch, anew=anew))
            if background:
                self._behind = 1
                self._task = Task(lambda check: (self._build(work, check), work))
                assert self.report is not None
                return self.report
            with _progress(work) as bar:
                report = self._build(work, bar.update)
        except BaseException:
            if self.version == version and self._task is None:
                self._put_back()
                self._behind = 0
            raise
        return self._tell(report, work)

    def _begin(self, h: dict[str, Any], rows: _Rows, watch: Stopwatch, *, anew: bool) -> _Work:
        """What a refresh works on: copies of the methods, and scorers as they are now."""
        beside = self.background and self.version > 0  # and one in the place of such a refresh
        parts = []
        for etype, held in self.relations.items():
            method = held.method.copy()
            ends = held.ends(h, beside=beside)._replace(**self._together)
            parts.append(_Part(held, method, method.prepared(ends), rows[etype]))
        seen = self.embedder.observed
        return _Work(parts, h, self._steps or 0, watch, seen.clock if seen and anew else None)

    def _skips(self, rows: Tensor | None) -> bool:
        """Whether no model is fitted; trainers that refresh together all fit, or none."""
        return self.trainers is self._ranks and rows is not None and not rows.numel()

    @about
    @in_float32
    @shielded
    def _build(self, work: _Work, on_rows: OnRows) -> RefreshReport:
        """Fit and fill, and swap in what that came to."""
        fits: list[FitReport | None] = []
        tables: list[TableReport] = []
        filled: list[int] = []  # rows

        def fit() -> list[Any]:
            for _, method, ends, some in work.parts:
                fits.append(None if self._skips(some) else method.fit(ends))
            return [] if self._ranks is None else [m.made_from(e) for _, m, e, _ in work.parts]

        fit() if self._ranks is None else self._ranks.alike(fit, _DIFFERENT)
        work.watch.mark("fit")

        def count(rows: int) -> None:
            filled.append(rows)
            on_rows(rows)

        def fill() -> RankReport | None:
            for _, method, ends, some in work.parts:
                tables.append(method.fill(ends, some, count))
            work.watch.mark("table")
            return None if self._builders is None else _of_rank(work, sum(filled))

        by_rank = [fill()] if self._builders is None else self._builders.each(fill)
        work.watch.mark("table")
        report = RefreshReport(
            version=self.version + 1,
            seconds=work.watch.total,
            seconds_by_part=work.watch.parts,
            by_type=dict(zip(self.relations, map(TypeReport, fits, tables))),
            by_rank=tuple(filter(None, by_rank)) if len(by_rank) > 1 else (),
        )
        self._swap(work, report)
        return report

    def _swap(self, work: _Work, report: RefreshReport) -> None:
        """Make what a refresh has made live, or leave all as it was if that is interrupted."""
        own = self.report, self.embedder.last, self._behind, self._in_use
        before = [(held, held.method, held.table.version) for held, *_ in work.parts]
        try:
            for held, fitted, *_ in work.parts:
                held.table.publish()
                held.method = fitted
            self.report, self.embedder.last = report, work.h
            self._behind, self._in_use = 0, work.step
        except BaseException:
            for held, method, version in before:
                held.table.withdraw(version)
                held.method = method
            self.report, self.embedder.last, self._behind, self._in_use = own
            raise

    def _put_back(self) -> None:
        """Set random states back to what they were before a refresh that has failed."""
        for etype, state in self._random.items():
            self.relations[etype].random.set_state(state)

    def _tell(self, report: RefreshReport, work: _Work) -> RefreshReport:
        """Make a refresh that has ended known to all functions, in the thread of the training."""
        if work.clock is not None and self.embedder.observed is not None:
            self.embedder.observed = ObservedEmbeddings(work.h).since(
                self.embedder.observed, work.clock
            )
        self.scoring.look(report.version, self.relations.values(), work.h)
        with callers_device(), ExitStack() as calls:
            h = {n: one.h if isinstance(one, StoredRows) else one for n, one in work.h.items()}
            for callback in reversed(self.callbacks.values()):
                calls.callback(callback, report, h)
        return report

    def wait(self) -> RefreshReport | None:
        """See `RefreshingSampler.wait`."""
        self.settle()
        if self._failed is not None:
            error, self._failed, self._behind = self._failed, None, 0
            raise RuntimeError(
                f"refresh: the one in the background failed ({type(error).__name__}: {error}); "
                f"negatives are those of version {self.version}, the last good one; refresh again, "
                "or make a sampler without Resources(background=True)"
            ) from error
        return self.report

    def settle(self) -> None:
        """Wait for the background; keep its error, if any, for the next refresh."""
        if self._task is None:
            return
        ended = self._task.ended
        self._failed = ended.exception()
        self._task = None
        if self._failed is None:
            self._tell(*ended.result())
        else:
            self._put_back()

    def restarted(self) -> None:
        """Forget what has failed before, since a state was loaded."""
        self._failed, self._behind = None, 0
        self._in_use = self._steps or 0

    def attach(
        self,
        refresh: Callable[[], RefreshReport],
        optimizer: torch.optim.Optimizer,
        every: int | None,
        share: float | None,
    ) -> Any:
        """See `RefreshingSampler.attach`."""
        check_optimizer(optimizer)
        edges = sum(relation.known.indices.numel() for relation in self.relations.values())
        if self.trainers is not None and share is not None:
            raise ValueError(
                f"share: got {share}, and trainers that share a distributed graph or a table "
                "refresh after the same step, whatever the clock says; pass every=..."
            )
        if self.trainers is not None and self._ranks is None:  # the same on all of them
            edges = sum(int(self.embedder.g.num_edges(etype)) for etype in self.relations)
        cadence = Cadence(every, share, steps_of_a_pass(edges))
        if self._ranks is not None:
            self._ranks.alike(lambda: every, f"every: got {every}, and other ranks another number")
        if every is not None and not self.version:
            for relation in self.relations.values():
                relation.make_last(passes_of(every, edges))
        cadence.done(refresh().seconds)
        self._steps = steps = self._steps or 0
        if optimizer in self._attached:
            self._attached[optimizer].remove()

        def hook(*_: Any) -> None:
            nonlocal steps
            steps += 1  # of this optimizer; the sampler counts those of the busiest
            self._steps = max(self._steps or 0, steps)
            if cadence.due():
                version = self.version
                try:
                    cadence.done(refresh().seconds)
                except Exception:
                    if self.report is not None and self.version != version:  # a callback's error
                        cadence.done(self.report.seconds)
                    raise
            elif self._task is not None and self._task.ended.done():
                self.settle()

        self._attached[optimizer] = handle = optimizer.register_step_post_hook(hook)
        return handle


def _rows_of(work: _Work) -> int:
    """How many rows a refresh fills."""
    rows = (held.known.num_src if some is None else some.numel() for held, *_, some in work.parts)
    return sum(rows)


def _of_rank(work: _Work, rows: int) -> RankReport:
    """What a refresh was for this process."""
    return RankReport(
        dict(work.watch.parts),
        sources=sum(held.known.num_src for held, *_ in work.parts),
        held_bytes=held_bytes(
            [(held.rows, held.share, m, e._replace(pairs=None)) for held, m, e, _ in work.parts]
        ),
        rows=rows,
    )


def _progress(work: _Work) -> Any:
    """A bar of the rows that a refresh fills, which shows itself where that takes long."""
    return tqdm(
        total=_rows_of(work), desc="refresh", unit="row", delay=_PATIENCE, disable=None, leave=False
    )
