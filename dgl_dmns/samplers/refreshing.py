"""Samplers that follow the encoder: embeddings, refreshes, and the table they fill.

A refresh runs in the main process, outside the loader: called from the training loop or from an
optimizer post-step hook (`RefreshingSampler.attach`). What loaders, their workers and prefetch
threads read is the candidate table alone, in shared memory.

A refresh, in its place or in the background, changes everything or nothing, see
`dgl_dmns.samplers.transaction`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from dgl_dmns.core import (
    Look,
    NodeDistribution,
    RefreshReport,
    Snapshot,
    Stopwatch,
    TypeReport,
    callers_device,
    check_tractable,
    in_float32,
    outside_inference_mode,
    shielded,
)
from dgl_dmns.messages import about
from dgl_dmns.samplers.background import Staleness, Task
from dgl_dmns.samplers.base import EdgeName, EdgeType
from dgl_dmns.samplers.cadence import Cadence, check_optimizer, passes_of, steps_of_a_pass
from dgl_dmns.samplers.encoder import Embeddings, Encoder
from dgl_dmns.samplers.filling import FillingSampler
from dgl_dmns.samplers.lookup import Source
from dgl_dmns.samplers.negative_pairs import negative_pairs
from dgl_dmns.samplers.observed import NodeIds, ObservedEmbeddings
from dgl_dmns.samplers.relation import Relation, rows_by_type
from dgl_dmns.samplers.scoring import ScoringCheck
from dgl_dmns.samplers.transaction import Before, swap

__all__ = ["Encoder", "RefreshCallback", "RefreshingSampler", "Source"]

RefreshCallback = Callable[[RefreshReport, dict[str, Tensor]], Any]
"""Takes the report of a refresh and the embeddings, float32 [N, D] by node type."""

_PATIENCE = 10.0  # seconds after which a refresh shows its progress, on a terminal


class RefreshingSampler(FillingSampler):
    """Base of the samplers whose negatives depend on the encoder, and follow it by refreshes.

    Arguments and errors are those of `StatefulSampler`. Before the first refresh every negative is
    filtered uniform.
    """

    rebuilds_rows: ClassVar[bool] = True

    def _set_up(self) -> None:
        self.report: RefreshReport | None = None
        self._on_refresh: OrderedDict[int, RefreshCallback] = OrderedDict()
        self._task: Task[tuple[RefreshReport, dict[str, Tensor]]] | None = None
        self._before: Before | None = None  # that task
        self._failed: BaseException | None = None  # what a task has raised, until it is told
        self._steps: int | None = None  # of attached optimizers
        self._attached: WeakKeyDictionary[torch.optim.Optimizer, Any] = WeakKeyDictionary()
        self._behind = 0  # refreshes that were begun since the one whose table is live
        self._in_use = 0  # the step of the embeddings behind that table
        given = any(one.scorer is not None for one in self.relations.values())
        self._scoring = ScoringCheck(type(self), self.rule.uses_scores, given)

    def distribution(self, etype: EdgeName | None = None) -> NodeDistribution:
        """The distribution that the last refresh drew from: it samples, and it has densities.

        Args:
            etype: edge type; may be left out where one is held.

        Returns:
            The distribution, whose embeddings are those of the last refresh.

        Raises:
            RuntimeError: before the first refresh, and after the graph has changed, until the next
                one; or if this is a copy.
            ValueError: if the rule's distribution is not tractable, or the edge type has to be
                named.
        """
        self._check_original("distribution")
        check_tractable(self.rule)
        relation = self.relation(etype)
        found = relation.distribution
        if found is None and relation.norms is not None and self._last is not None:
            # A state was loaded.
            source, _, destination = relation.etype
            ends = self._last[source], self._last[destination]
            snapshot = replace(
                self._snapshot(relation.as_refreshed(), *ends), sharpness=relation.sharpness
            )
            found = relation.distribution = self._distribution(relation, snapshot)
        if found is None:
            raise RuntimeError(
                "distribution: there was no refresh yet, or none since the graph has changed; call "
                "refresh() or attach()"
            )
        return found

    @shielded
    def look(  # noqa: D102
        self, etype: EdgeName | None = None, embeddings: Embeddings | None = None
    ) -> Look:
        relation = self.relation(self._held(etype))
        if relation.table.version == 0:
            raise RuntimeError(
                "sampler: it has not been refreshed, so that its negatives are uniform; call "
                "refresh() or attach() first"
            )
        if isinstance(embeddings, Mapping) and self.homogeneous:
            (embeddings,) = embeddings.values()
        h = self._embeddings(embeddings)
        ends = h[relation.etype[0]], h[relation.etype[2]]
        behind = self.staleness
        return Look(
            name=type(self).__name__,
            etype=relation.etype,
            known=relation.known,
            version=relation.table.version,
            snapshot=Snapshot.take(*ends, relation.known, relation.frozen().scorer, relation.model),
            rows=relation.rows,
            uniform=False,
            lam=self.settings.lam,
            behind=(behind.refreshes, behind.steps, behind.age),
            chains=not self.rebuilds_rows,
            draw=lambda: self._drawing(relation.etype),
        )

    @shielded
    def positive_log_ratio(self, positives: Any) -> Any:
        """Log ratio that positive edges have under the distribution of the negatives.

        For ``pos_log_ratio=`` of `dgl_dmns.losses`, beside ``log_ratio=`` for the negatives: what
        the rule would have given them as candidates, see `dgl_dmns.core.distribution`.

        Args:
            positives: the positive graph a loader returned; or a pair ``(src, dst)`` of node id
                tensors of the whole graph, shape [P]; or a dict of such pairs by edge type.

        Returns:
            Log ratios in the form of `log_ratio`, shape [P], float32.

        Raises:
            RuntimeError: as for `distribution`.
            ValueError: if the rule's distribution is not tractable, no table is held for an edge
                type that has edges, or ids are out of range.
            TypeError: if ``positives`` is none of these, or ids are no integers.

        Pairs that are mostly no known edges, such as those of the negative graph, give a warning.
        """
        if hasattr(positives, "seeds") or hasattr(positives, "node_pairs"):
            raise TypeError(
                "positives: a GraphBolt minibatch holds positives and negatives; pass the ids of "
                "its positive pairs in the whole graph, (src, dst)"
            )
        pairs = negative_pairs(positives, list(self.relations))
        if isinstance(pairs, tuple):
            return self._positive_log_ratio(None, *pairs)
        return {key: self._positive_log_ratio(e, *pair) for key, (e, pair) in pairs.items()}

    def _positive_log_ratio(self, etype: EdgeType | None, src: Tensor, dst: Tensor) -> Tensor:
        self._check_positives(etype, src, dst)
        ratio = self.distribution(etype).log_ratio(src.cpu().long(), dst.cpu().long())
        return ratio.to(src.device)

    # ---- refresh ----------------------------------------------------------------------------

    @about
    @outside_inference_mode
    @shielded
    def refresh(
        self,
        embeddings: Embeddings | None = None,
        *,
        nodes: NodeIds | None = None,
        observed: bool = True,
    ) -> RefreshReport:
        """Recompute embeddings, fit the generators a little further, and rebuild the tables.

        With ``Resources(background=True)`` a refresh after the first takes the embeddings, and
        leaves the rest to a thread; the new table is used as soon as it is whole. If the refresh
        before is still under way, it is waited for.

        One that takes more than ten seconds shows its progress where the standard error is a
        terminal. One that fails or is interrupted leaves everything as it was before the call, so
        that the next one gives what it would have given alone. A function of `on_refresh` comes
        after that: where it raises, the refresh stands.

        Args:
            embeddings: shape [N, D], floating point, to use instead of calling the encoder; a dict
                of those by node type for a heterogeneous graph.
            nodes: ids of source nodes, whose rows alone are drawn anew; a dict of those by source
                node type where there are several, and edge types of other sources stay as they are.
                The other rows keep their candidates. The generators are fitted all the same, on
                pairs of all nodes.
            observed: whether the rows that `observe` was given stand in for the encoder, if there
                are any; False calls it, and later observations start from what it returns.

        Returns:
            The report of this refresh; in the background, that of the refresh that is in use.

        Raises:
            ValueError: if embeddings are not [N, D] floating point and finite, or those of a node
                type are missing, or ``nodes`` are no source nodes, or the sampler has no rows to
                draw anew.
            RuntimeError: if this is a copy, which has no encoder; for ``nodes`` before the first
                refresh; or if the last refresh has failed in the background, whose error is the
                cause. The last good tables stay in use, and the next call begins anew.
        """
        self._check_original("refresh")
        rows = self._rows(nodes)
        watch = Stopwatch()
        background = self.resources.background and self.report is not None
        if background:
            self.wait()
            watch.mark("wait")
        with self._scoring.watching(self._encoder, list(self._attached)):
            h = self._embeddings(embeddings, observed, copy=True)  # training writes on
        watch.mark("embed")
        anew = self._observed is not None and (embeddings is not None or not observed)
        before = Before(
            {etype: one.random.get_state() for etype, one in self.relations.items()},
            self._observed if anew else None,
        )
        version = self.version
        try:
            if anew:
                self._observed = ObservedEmbeddings(h)
            # A refresh beside the training has random numbers of its own, and one in its place too.
            reseeded = self.resources.background and version > 0
            relations = [one.apart(reseeded=reseeded) for one in self.relations.values()]
            step = self._steps or 0
            if background:
                self._before, self._behind = before, 1
                self._task = Task(lambda check: self._build(relations, h, rows, step, watch, check))
                assert self.report is not None
                return self.report
            total = sum(
                one.known.num_src if some is None else some.numel()
                for one, some in zip(relations, rows.values())
            )
            with tqdm(
                total=total, desc="refresh", unit="row", delay=_PATIENCE, disable=None, leave=False
            ) as bar:
                done = self._build(relations, h, rows, step, watch, bar.update)
        except BaseException:
            if self.version == version and self._task is None:
                self._observed = before.undo(self.relations, self._observed)
                self._behind = 0
            raise
        return self._tell(*done)

    def _rows(self, nodes: NodeIds | None) -> dict[EdgeType, Tensor | None]:
        """The rows that a refresh draws anew by edge type; None for all."""
        if nodes is None:
            return dict.fromkeys(self.relations)
        if not self.rebuilds_rows:
            raise ValueError(
                f"nodes: {type(self).__name__} keeps chains that go on by themselves, and no rows "
                "that a refresh draws; call refresh() without nodes"
            )
        if not self.version:
            raise RuntimeError("nodes: the first refresh fills the whole table; call refresh()")
        return rows_by_type(nodes, self.relations)

    @about
    @in_float32
    @shielded
    def _build(
        self,
        relations: list[Relation],
        h: dict[str, Tensor],
        rows: dict[EdgeType, Tensor | None],
        step: int,
        watch: Stopwatch,
        on_rows: Callable[[int], object],
    ) -> tuple[RefreshReport, dict[str, Tensor]]:
        """Fit and rebuild relations that are `apart` from embeddings, and swap them in."""
        ends = [(r, h[r.etype[0]], h[r.etype[2]]) for r in relations]
        wanted = [rows[relation.etype] for relation in relations]
        fits = [
            None if some is not None and not some.numel() else self._fit(*end)
            for end, some in zip(ends, wanted)
        ]
        watch.mark("fit")
        tables = []
        for end, some in zip(ends, wanted):
            tables.append(self._rebuild(*end, some, on_rows))
        watch.mark("table")
        report = RefreshReport(
            version=self.version + 1,
            seconds=watch.total,
            seconds_by_part=watch.parts,
            by_type=dict(zip(self.relations, map(TypeReport, fits, tables))),
        )
        changes = {"report": report, "_last": h, "_behind": 0, "_in_use": step}
        swap(zip(self.relations.values(), relations), self, changes)
        return report, h

    def _tell(self, report: RefreshReport, h: dict[str, Tensor]) -> RefreshReport:
        """Make a refresh that has ended known, in the thread of the training.

        All functions of `on_refresh` are called, also after one that has raised.
        """
        self._scoring.look(report.version, self.relations.values(), h)
        with callers_device(), ExitStack() as calls:
            for callback in reversed(self._on_refresh.values()):
                calls.callback(callback, report, h)
        return report

    def wait(self) -> RefreshReport | None:
        """Wait for a refresh in the background, if one is under way.

        Returns:
            The report of the refresh that is in use; None before the first.

        Raises:
            RuntimeError: if it has failed, or if this is a copy.
        """
        self._check_original("wait")
        self._settle()
        if self._failed is not None:
            error, self._failed, self._behind = self._failed, None, 0
            raise RuntimeError(
                f"refresh: the one in the background failed ({type(error).__name__}: {error}); "
                f"negatives are those of version {self.version}, the last good one; refresh again, "
                "or make a sampler without Resources(background=True)"
            ) from error
        return self.report

    def _settle(self) -> None:
        """Wait for the background; keep its error, if any, for the next refresh."""
        if self._task is None:
            return
        task, error = self._task, self._task.error
        if error is not None:
            assert self._before is not None
            self._observed = self._before.undo(self.relations, self._observed)
            self._failed = error
        self._task = self._before = None
        if error is None:
            self._tell(*task.result)

    @property
    def staleness(self) -> Staleness:
        """How far the negatives that are drawn now lie behind the training."""
        return Staleness(
            refreshes=self._behind,
            steps=None if self._steps is None else self._steps - self._in_use,
            age=None if self._observed is None else self._observed.mean_age(),
        )

    def on_refresh(self, callback: RefreshCallback) -> RemovableHandle:
        """Call a function after every refresh, with its report and the embeddings by node type.

        It runs in the process of the refresh; copies of the sampler do not have it. Where it
        raises, the refresh stands, the other functions are called, and an error comes after them.

        Returns:
            A handle; its ``remove()`` ends the calls.
        """
        handle = RemovableHandle(self._on_refresh)
        self._on_refresh[handle.id] = callback
        return handle

    def attach(
        self,
        optimizer: torch.optim.Optimizer,
        every: int | None = None,
        *,
        share: float | None = None,
    ) -> Any:
        """Refresh now, and after every ``every``-th step of an optimizer or as time allows.

        The refresh runs in the process and thread of the optimizer step, so loader workers and
        prefetch threads never wait in it, and they read the new table from the next batch on. One
        that fails, or is cut short by the error that torch raises anywhere when a worker has died,
        is tried again after the next step.

        On several ranks, call it on each, after the model is wrapped in DistributedDataParallel. A
        refresh talks to no other rank, so it cannot hang; equal seeds and embeddings give equal
        generators and tables, to the last bit. Ranks whose embeddings differ (running statistics
        of BatchNorm, uneven batches) train alike with slightly different tables; hand `refresh`
        embeddings that were broadcast where that matters.

        Args:
            optimizer: the encoder's optimizer.
            every: optimizer steps between refreshes; the batches of an epoch are a good choice. A
                first call makes tables that last for so many steps in batches of 1024.
                Where neither it nor ``share`` is given, the steps that a pass over the known edges
                takes in batches of 1024 (on several ranks, of 1024 on each).
            share: share of the time that refreshes may take, between 0 and 1, in place of
                ``every``: one follows a step as soon as the last one's seconds are at most this
                share of those since it began. Runs then depend on the clock, and ranks refresh
                after different steps.

        Returns:
            The hook's handle; its ``remove()`` ends the refreshes. A second call for the same
            optimizer takes the place of the first.

        Raises:
            ValueError: if ``every`` is below 1, ``share`` is out of range, or both are given.
            TypeError: for what is no optimizer of torch with hooks; nothing is refreshed then.
        """
        check_optimizer(optimizer)
        edges = sum(relation.known.indices.numel() for relation in self.relations.values())
        cadence = Cadence(every, share, steps_of_a_pass(edges))
        if every is not None and not self.version:
            for relation in self.relations.values():
                relation.make_last(passes_of(every, edges))
        cadence.done(self.refresh().seconds)
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
                    cadence.done(self.refresh().seconds)
                except Exception:
                    if self.report is not None and self.version != version:  # a callback's error
                        cadence.done(self.report.seconds)
                    raise
            elif self._task is not None and self._task.done:
                self._settle()

        handle = optimizer.register_step_post_hook(hook)
        self._attached[optimizer] = handle
        return handle

    # ---- state ------------------------------------------------------------------------------

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        self._failed, self._behind = None, 0  # what has failed before counts no more
        self._in_use = self._steps or 0

    def __getstate__(self) -> dict[str, Any]:
        dropped = dict.fromkeys(("_task", "_before", "_failed", "_attached", "_scoring"))
        return {**super().__getstate__(), **dropped, "_on_refresh": OrderedDict()}
