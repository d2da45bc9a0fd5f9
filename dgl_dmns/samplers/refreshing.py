"""Samplers that follow the encoder: embeddings, refreshes, and the table they fill.

A refresh runs in the main process, outside the loader: called from the training loop or from an
optimizer post-step hook (`RefreshingSampler.attach`). What loaders, their workers and prefetch
threads read is the candidate table alone, in shared memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from dgl_dmns.core.distribution import NodeDistribution, check_tractable
from dgl_dmns.core.engine import RefreshReport, Stopwatch, TableReport, TypeReport, fill_table
from dgl_dmns.core.generator import FitReport
from dgl_dmns.core.modes import callers_device, in_float32, outside_inference_mode, shielded
from dgl_dmns.core.sharpness import sharpened
from dgl_dmns.core.snapshot import Snapshot
from dgl_dmns.messages import about
from dgl_dmns.samplers.background import Staleness, Task
from dgl_dmns.samplers.base import EdgeName, EdgeType
from dgl_dmns.samplers.cadence import Cadence, check_optimizer, steps_of_a_pass
from dgl_dmns.samplers.encoder import Embeddings, Encoder
from dgl_dmns.samplers.lookup import Source
from dgl_dmns.samplers.negative_pairs import negative_pairs
from dgl_dmns.samplers.observed import NodeIds, ObservedEmbeddings
from dgl_dmns.samplers.relation import Relation, rows_by_type
from dgl_dmns.samplers.stateful import StatefulSampler

__all__ = ["Encoder", "RefreshCallback", "RefreshingSampler", "Source"]

RefreshCallback = Callable[[RefreshReport, dict[str, Tensor]], Any]
"""Takes the report of a refresh and the embeddings, float32 [N, D] by node type."""

_PATIENCE = 10.0  # seconds after which a refresh shows its progress, on a terminal


class RefreshingSampler(StatefulSampler):
    """Base of the samplers whose negatives depend on the encoder, and follow it by refreshes.

    Arguments and errors are those of `StatefulSampler`. Before the first refresh every negative is
    filtered uniform.
    """

    rebuilds_rows: ClassVar[bool] = True

    def _set_up(self) -> None:
        self.report: RefreshReport | None = None
        self._snapshots: dict[EdgeType, Snapshot] = {}  # what the live tables were filled from
        self._filled_from: dict[EdgeType, Snapshot] = {}  # likewise, those being filled
        self._on_refresh: OrderedDict[int, RefreshCallback] = OrderedDict()
        self._task: Task[tuple[RefreshReport, dict[str, Tensor]]] | None = None
        self._steps: int | None = None  # of attached optimizers
        self._attached: WeakKeyDictionary[torch.optim.Optimizer, Any] = WeakKeyDictionary()
        self._begun = 0  # refreshes
        self._in_use = (0, 0)  # the refresh whose table is live, and the step of its embeddings

    def distribution(self, etype: EdgeName | None = None) -> NodeDistribution:
        """The distribution that the last refresh drew from: it samples, and it has densities.

        Args:
            etype: edge type; may be left out where one is held.

        Returns:
            The distribution, whose embeddings are those of the last refresh.

        Raises:
            RuntimeError: before the first refresh of this process, and after a state was loaded
                (it has a table, but no embeddings) or a refresh has failed, until the next one; or
                if this is a copy.
            ValueError: if the rule's distribution is not tractable, or the edge type has to be
                named.
        """
        self._check_original("distribution")
        check_tractable(self.rule)
        relation = self.relation(etype)
        snapshot = self._snapshots.get(relation.etype)
        if snapshot is None:
            raise RuntimeError(
                "distribution: there was no refresh in this process yet, or none since one that "
                "failed, or since a state was loaded; call refresh() or attach()"
            )
        return NodeDistribution(self.rule, self.settings, snapshot)

    @shielded
    def positive_log_ratio(self, positives: Any) -> Any:
        """Log ratio that positive edges have under the distribution of the negatives.

        For ``pos_log_ratio=`` of `dgl_dmns.losses`, beside ``log_ratio=`` for the negatives. It is
        estimated over a pool of the sampler's size, by the embeddings of the last refresh, in the
        process that refreshes (not in loader workers).

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
        ratio = self.distribution(etype).log_ratio(
            src.cpu().long(), dst.cpu().long(), generator=self._call_generator()
        )
        return ratio.to(src.device)

    # ---- refresh ----------------------------------------------------------------------------

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
        terminal.

        Args:
            embeddings: shape [N, D], floating point, to use instead of calling the encoder; a dict
                of those by node type for a heterogeneous graph.
            nodes: ids of source nodes, whose rows alone are drawn anew; a dict of those by source
                node type where there are several, and edge types of other sources stay as they are.
                The other rows keep their candidates and the log ratios that they were drawn with.
                The generators are fitted all the same, on pairs of all nodes.
            observed: whether the rows that `observe` was given stand in for the encoder, if there
                are any; False calls it, and later observations start from what it returns.

        Returns:
            The report of this refresh; in the background, that of the refresh that is in use.

        Raises:
            ValueError: if embeddings are not [N, D] floating point and finite, or those of a node
                type are missing, or ``nodes`` are no source nodes, or the sampler has no rows to
                draw anew; the last tables stay in use.
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
        else:
            self._last, self._snapshots = None, {}  # those of the last refresh make room
        h = self._embeddings(embeddings, observed, copy=True)  # training writes on
        if self._observed is not None and (embeddings is not None or not observed):
            self._observed = ObservedEmbeddings(h)
        watch.mark("embed")
        self._begun += 1
        at = (self._begun, self._steps or 0)
        relations = [
            # A refresh beside the training has random numbers of its own, and one in its place too.
            relation.apart() if self.resources.background and self.version else relation.frozen()
            for relation in self.relations.values()
        ]
        if background:
            self._task = Task(lambda check: (self._build(relations, h, rows, at, watch, check), h))
            assert self.report is not None
            return self.report
        total = sum(
            self.relations[etype].known.num_src if some is None else some.numel()
            for etype, some in rows.items()
        )
        with tqdm(
            total=total, desc="refresh", unit="row", delay=_PATIENCE, disable=None, leave=False
        ) as bar:
            report = self._build(relations, h, rows, at, watch, bar.update)
        return self._take(report, h)

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
        at: tuple[int, int],
        watch: Stopwatch,
        on_rows: Callable[[int], object],
    ) -> RefreshReport:
        """Fit and rebuild from embeddings; in the background, with relations that are `apart`.

        Tables are published together, when all are filled: a refresh that fails leaves all alone.
        """
        self._filled_from = {}
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
        for relation in relations:
            relation.table.publish()
            held = self.relations[relation.etype]
            held.model, held.sharpness = relation.model, relation.sharpness
        self._snapshots, self._filled_from = self._filled_from, {}
        watch.mark("table")
        self._in_use = at
        return RefreshReport(
            version=self.version,
            seconds=watch.total,
            seconds_by_part=watch.parts,
            by_type=dict(zip(self.relations, map(TypeReport, fits, tables))),
        )

    def _take(self, report: RefreshReport, h: dict[str, Tensor]) -> RefreshReport:
        """Make a refresh that has ended known, in the thread of the training."""
        self.report, self._last = report, h
        for callback in list(self._on_refresh.values()):
            with callers_device():
                callback(report, h)
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
        if self._task is not None:
            error, self._task = self._task.error, None
            raise RuntimeError(
                f"refresh: the one in the background failed ({type(error).__name__}: {error}); "
                f"negatives are those of version {self.version}, the last good one; refresh again, "
                "or make a sampler without Resources(background=True)"
            ) from error
        return self.report

    def _settle(self) -> None:
        """Wait for the background; keep its error, if any, for the next refresh."""
        if self._task is not None and self._task.error is None:
            task, self._task = self._task, None
            self._take(*task.result)

    @property
    def staleness(self) -> Staleness:
        """How far the negatives that are drawn now lie behind the training."""
        begun, step = self._in_use
        return Staleness(
            refreshes=self._begun - begun,
            steps=None if self._steps is None else self._steps - step,
            age=None if self._observed is None else self._observed.mean_age(),
        )

    def on_refresh(self, callback: RefreshCallback) -> RemovableHandle:
        """Call a function after every refresh, with its report and the embeddings by node type.

        It runs in the process of the refresh; copies of the sampler do not have it.

        Returns:
            A handle; its ``remove()`` ends the calls.
        """
        handle = RemovableHandle(self._on_refresh)
        self._on_refresh[handle.id] = callback
        return handle

    def _fit(self, relation: Relation, h_query: Tensor, h_candidate: Tensor) -> FitReport | None:
        """Fit what the sampler learns, if anything; rules without a generator learn nothing.

        The embeddings [N, D] of both ends are one tensor where both ends have one type.
        """
        return None

    def _rebuild(
        self,
        relation: Relation,
        h_query: Tensor,
        h_candidate: Tensor,
        nodes: Tensor | None,
        on_rows: Callable[[int], object],
    ) -> TableReport:
        model = relation.model if self.rule.uses_generator else None
        snapshot = Snapshot.take(h_query, h_candidate, relation.known, relation.scorer, model)
        snapshot = sharpened(snapshot, self.rule, refreshes=self.version, generator=relation.random)
        relation.sharpness = snapshot.sharpness
        return self._fill(relation, snapshot, nodes, on_rows)

    def _fill(
        self,
        relation: Relation,
        snapshot: Snapshot,
        nodes: Tensor | None,
        on_rows: Callable[[int], object],
    ) -> TableReport:
        """Fill the hidden table of an edge type, and keep what it was filled from."""
        report = fill_table(
            relation.table,
            self.rule,
            self.settings,
            snapshot,
            nodes=nodes,
            chunk_bytes=self.resources.chunk_bytes,
            on_rows=on_rows,
            generator=relation.random,
        )
        self._filled_from[relation.etype] = snapshot
        return report

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
            every: optimizer steps between refreshes; the batches of an epoch are a good choice.
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
        cadence.done(self.refresh().seconds)
        self._steps = steps = self._steps or 0
        if optimizer in self._attached:
            self._attached[optimizer].remove()

        def hook(*_: Any) -> None:
            nonlocal steps
            steps += 1  # of this optimizer; the sampler counts those of the busiest
            self._steps = max(self._steps or 0, steps)
            if cadence.due():
                cadence.done(self.refresh().seconds)
            elif self._task is not None and self._task.done:
                self._settle()

        handle = optimizer.register_step_post_hook(hook)
        self._attached[optimizer] = handle
        return handle

    # ---- state ------------------------------------------------------------------------------

    def update_graph(self, g: Any) -> None:  # noqa: D102
        super().update_graph(g)
        self._snapshots = {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        self._task = None  # what has failed before counts no more
        self._snapshots = {}  # nor what the table before was drawn from
        self._in_use = (self._begun, self._steps or 0)

    def __getstate__(self) -> dict[str, Any]:
        dropped = dict.fromkeys(("_task", "_attached"))
        emptied: dict[str, Any] = {
            "_snapshots": {},
            "_filled_from": {},
            "_on_refresh": OrderedDict(),
        }
        return {**super().__getstate__(), **dropped, **emptied}
