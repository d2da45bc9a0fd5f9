"""Samplers that follow the encoder: embeddings, refreshes, and the table they fill.

A refresh runs in the main process, outside the loader: called from the training loop or from an
optimizer post-step hook (`RefreshingSampler.attach`). What loaders, their workers and prefetch
threads read is the candidate table alone, in shared memory.
"""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from dgl_dmns.checkpoint import read_state, write_state
from dgl_dmns.core.distribution import NodeDistribution
from dgl_dmns.core.engine import RefreshReport, Stopwatch, TableReport, TypeReport, fill_table
from dgl_dmns.core.generator import FitReport
from dgl_dmns.core.pools import PoolSettings
from dgl_dmns.core.rules import Rule
from dgl_dmns.core.snapshot import Snapshot
from dgl_dmns.samplers.background import Staleness, Task
from dgl_dmns.samplers.base import (
    EdgeName,
    EdgeType,
    shared_memory_for,
)
from dgl_dmns.samplers.cadence import Cadence
from dgl_dmns.samplers.encoder import (
    Embeddings,
    Encoder,
    check_embeddings,
    check_encoder,
    embed,
    is_homogeneous,
)
from dgl_dmns.samplers.lookup import Source, TableSampler
from dgl_dmns.samplers.negative_pairs import negative_pairs
from dgl_dmns.samplers.observed import NodeIds, ObservedEmbeddings
from dgl_dmns.samplers.relation import (
    NegativesPerEdge,
    Relation,
    Scorers,
    held_edge_types,
    scorers_by_type,
)
from dgl_dmns.samplers.resources import Resources, affordable_groups, check_room

__all__ = ["Encoder", "RefreshCallback", "RefreshingSampler", "Source"]

RefreshCallback = Callable[[RefreshReport, dict[str, Tensor]], Any]
"""Takes the report of a refresh and the embeddings, float32 [N, D] by node type."""

_PATIENCE = 10.0  # seconds after which a refresh shows its progress, on a terminal


class RefreshingSampler(TableSampler):
    """Base of the samplers whose negatives depend on the encoder.

    Before the first refresh every negative is filtered uniform.

    On a graph with several node or edge types, each edge type that is held (see ``k`` and
    ``etypes``) has known edges, a table, a generator and a random state of its own, `relation`. Its
    negatives are nodes of its destination type. Edge types without edges are not held; a request
    for none of their edges is answered with no negatives.

    A `dgl.distributed.DistGraph` will do as well: every trainer reads its edges from the servers,
    once, and shares its table with its sampler processes. The encoder then is a callable.

    Args:
        g: the training graph; its edges are the known positives.
        encoder: an ``nn.Module``, called in eval mode without gradient (its training mode is
            restored) as ``encoder(g, g.ndata[feat])``, or with a dict of features by node type on
            a heterogeneous graph; or a callable without arguments (or taking the graph). It returns
            embeddings [N, D], a tensor or a ``DistTensor``, on a heterogeneous graph a dict of
            those by node type, with one D.
        k: negatives per edge, or a dict of such numbers by edge type (canonical, or the relation
            alone); edge types that a dict leaves out are not held.
        rule: the selection rule.
        settings: pools and mixture.
        feat: name of the node features for an ``nn.Module``.
        scorer: scores of broadcastable embeddings, or a dict with one for each edge type held; the
            inner product where not given.
        source: ``"edge"``: a negative keeps the source of its positive, for a ranking of
            candidates per query. ``"uniform"``: each negative has a source of its own, uniform over
            the nodes, and a destination from that node's row, for one ranking of all pairs, as
            metrics with one set of negatives for all positives want it (OGB's Hits@K; DGL's
            ``GlobalUniform`` is its easy form).
        etypes: edge types to hold; all that have edges where not given.
        seed: seed of fitting and table building.
        generator: source of the draws from the table, see `NegativeSampler`.
        resources: limits of memory, and refreshes in the background; see `Resources`.

    Raises:
        ValueError: for a graph without edges, an unknown edge type, a missing feature, or a pool
            smaller than k; for a graph with several types if the class takes none.
        TypeError: for an encoder or scorer that cannot be called.
        MemoryError: if there is no room for the tables; nothing is allocated then.
    """

    takes_several_types: ClassVar[bool] = True
    rebuilds_rows: ClassVar[bool] = True

    def __init__(
        self,
        g: Any,
        encoder: Encoder,
        k: NegativesPerEdge = 1,
        *,
        rule: Rule,
        settings: PoolSettings,
        feat: str = "feat",
        scorer: Scorers | None = None,
        source: Source = "edge",
        etypes: Sequence[EdgeName] | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        resources: Resources | None = None,
    ) -> None:
        held = held_edge_types(g, k, etypes)
        super().__init__(max(held.values()), generator)
        self.homogeneous = is_homogeneous(g)
        if not (self.homogeneous or self.takes_several_types):
            raise ValueError(
                f"g: expected one node type and one edge type, got edge types {g.canonical_etypes};"
                f" {type(self).__name__} takes homogeneous graphs only: pass one relation (see "
                "dgl.edge_type_subgraph), or use DMNSSampler, DynamicSampler or "
                "SelfAdversarialSampler"
            )
        check_encoder(encoder, g, feat)
        if settings.pool < self.k:
            raise ValueError(
                f"pool: expected at least k = {self.k} candidates, got {settings.pool}; raise pool"
            )
        scorer_of = scorers_by_type(scorer, list(held), g.canonical_etypes)
        if source not in get_args(Source):
            raise ValueError(f"source: expected 'edge' or 'uniform', got {source!r}")
        self.source: Source = source
        self._g = g
        self._encoder = encoder
        self._feat = feat
        self.rule = rule
        self.resources = resources = resources or Resources()
        candidates = sum(int(g.num_nodes(etype[0])) * number for etype, number in held.items())
        groups = affordable_groups(resources, settings.groups, candidates)
        check_room(resources, groups, candidates)
        self.settings = settings = replace(settings, groups=groups)
        # Seeds go by place in the graph: a type's negatives do not depend on what else is held.
        places = {etype: place for place, etype in enumerate(g.canonical_etypes)}
        with shared_memory_for(list(held)):
            self.relations = {
                e: Relation(
                    g,
                    e,
                    number,
                    groups,
                    seed + places[e],
                    scorer_of(e),
                    folder=resources.table_folder,
                )
                for e, number in held.items()
            }
        self.known_by_type = {etype: one.known for etype, one in self.relations.items()}
        self.seed = seed
        self.report: RefreshReport | None = None
        self._snapshots: dict[EdgeType, Snapshot] = {}  # what the live tables were filled from
        self._filled_from: dict[EdgeType, Snapshot] = {}  # likewise, those being filled
        self._on_refresh: OrderedDict[int, RefreshCallback] = OrderedDict()
        self._task: Task[tuple[RefreshReport, dict[str, Tensor]]] | None = None
        self._last: dict[str, Tensor] | None = None  # embeddings of the last refresh
        self._observed: ObservedEmbeddings | None = None
        self._steps: int | None = None  # of attached optimizers
        self._begun = 0  # refreshes
        self._in_use = (0, 0)  # the refresh whose table is live, and the step of its embeddings

    def distribution(self, etype: EdgeName | None = None) -> NodeDistribution:
        """The distribution that the last refresh drew from: it samples, and it has densities.

        Args:
            etype: edge type; may be left out where one is held.

        Returns:
            The distribution, whose embeddings are those of the last refresh.

        Raises:
            RuntimeError: before the first refresh of this process (a loaded state has a table, but
                no embeddings), or if this is a copy.
            ValueError: if the rule's distribution is not tractable, or the edge type has to be
                named.
        """
        self._check_original("distribution")
        relation = self.relation(etype)
        snapshot = self._snapshots.get(relation.etype)
        if snapshot is None:
            raise RuntimeError(
                "distribution: there was no refresh in this process yet; call refresh() or attach()"
            )
        return NodeDistribution(self.rule, self.settings, snapshot)

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
            ValueError: if the rule's distribution is not tractable, or no table is held for an edge
                type that has edges.
            TypeError: if ``positives`` is none of these.
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
        ratio = self.distribution(etype).log_ratio(
            src.cpu().long(), dst.cpu().long(), generator=self._call_generator()
        )
        return ratio.to(src.device)

    # ---- refresh ----------------------------------------------------------------------------

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
        h = self._embeddings(embeddings, observed)
        if self._observed is not None and (embeddings is not None or not observed):
            self._observed = ObservedEmbeddings(h)
        elif background or self._observed is not None:
            h = {ntype: part.clone() for ntype, part in h.items()}  # training writes on
        watch.mark("embed")
        self._begun += 1
        at = (self._begun, self._steps or 0)
        if background:
            apart = [relation.apart() for relation in self.relations.values()]
            self._task = Task(lambda check: (self._build(apart, h, rows, at, watch, check), h))
            assert self.report is not None
            return self.report
        self._last, self._snapshots = h, {}  # those of the last refresh make room
        total = sum(
            self.relations[etype].known.num_src if some is None else some.numel()
            for etype, some in rows.items()
        )
        with tqdm(
            total=total, desc="refresh", unit="row", delay=_PATIENCE, disable=None, leave=False
        ) as bar:
            report = self._build(list(self.relations.values()), h, rows, at, watch, bar.update)
        return self._take(report, h)

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
            self.relations[relation.etype].model = relation.model
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

    def _rows(self, nodes: NodeIds | None) -> dict[EdgeType, Tensor | None]:
        """The rows to draw anew by edge type, sorted and distinct; None for all."""
        if nodes is None:
            return dict.fromkeys(self.relations)
        if not self.rebuilds_rows:
            raise ValueError(
                f"nodes: {type(self).__name__} keeps chains that go on by themselves, and no rows "
                "that a refresh draws; call refresh() without nodes"
            )
        if not self.version:
            raise RuntimeError("nodes: the first refresh fills the whole table; call refresh()")
        sources = {etype[0]: r.known.num_src for etype, r in self.relations.items()}
        if not isinstance(nodes, Mapping) and len(sources) == 1:
            nodes = dict.fromkeys(sources, nodes)
        if not isinstance(nodes, Mapping) or not nodes.keys() <= sources.keys():
            given = list(nodes) if isinstance(nodes, Mapping) else type(nodes).__name__
            raise ValueError(
                f"nodes: expected a dict of ids by source node type, of {sorted(sources)}, got "
                f"{given}"
            )
        found = {}
        for ntype, ids in nodes.items():
            if ids.dim() != 1 or ids.dtype not in (torch.int32, torch.int64):
                raise ValueError(
                    f"nodes: expected integer ids of shape [B], got {tuple(ids.shape)} of "
                    f"{ids.dtype}; for a mask, pass mask.nonzero().squeeze(1)"
                )
            found[ntype] = torch.unique(ids.cpu().long())
            ends = found[ntype][[0, -1]].tolist() if ids.numel() else [0, 0]
            if ends[0] < 0 or ends[1] >= sources[ntype]:
                raise ValueError(
                    f"nodes: expected ids of type {ntype!r} in 0 .. {sources[ntype] - 1}, got "
                    f"{ends[0]} .. {ends[1]}"
                )
        none = torch.empty(0, dtype=torch.int64)
        return {etype: found.get(etype[0], none) for etype in self.relations}

    def observe(self, node_ids: NodeIds, embeddings: Embeddings) -> None:
        """Keep embeddings that a minibatch has computed anyway, for the next refreshes.

        Once called, refreshes read the last embedding seen of every node instead of calling the
        encoder; a node that was not seen has that of the first refresh, or of the last one with
        ``observed=False`` or with embeddings. In a loop of DGL's blocks::

            h = model(blocks, x)
            sampler.observe(blocks[-1].dstdata[dgl.NID], h)

        It takes ``4 * D + 4`` bytes a node, and as much as the embeddings again in a refresh.

        Args:
            node_ids: ids in the whole graph, shape [B], integer; of a node that stands there twice
                either row may be kept. A dict by node type for a heterogeneous graph.
            embeddings: shape [B, D], floating point, with or without gradient; a dict likewise.

        Raises:
            RuntimeError: before the first refresh of this process, or if this is a copy.
            ValueError: if they do not fit one another or the nodes. Rows that are not finite are
                refused by the next refresh.
        """
        self._check_original("observe")
        if self._observed is None:
            if self._last is None:
                raise RuntimeError(
                    "observe: call refresh() or attach() first; nodes that are never seen keep the "
                    "embeddings of that refresh"
                )
            self._observed = ObservedEmbeddings(self._last)
        self._observed.observe(self._observed.checked_rows(node_ids, embeddings))

    def embedding_age(self, ntype: str | None = None) -> Tensor:
        """How many observations ago each node was seen last, for negatives from `observe`.

        Args:
            ntype: node type; may be left out where the sampler needs one.

        Returns:
            Shape [N], int64; nodes not seen yet count from the refresh that they started from.

        Raises:
            RuntimeError: if nothing was observed.
            ValueError: if the node type has to be named.
        """
        if self._observed is None:
            raise RuntimeError("embedding_age: nothing was observed; call observe() in the loop")
        held = sorted(self._observed.h)
        if ntype is None and len(held) == 1:
            ntype = held[0]
        if ntype not in held:
            raise ValueError(f"ntype: expected one of {held}, got {ntype!r}")
        return self._observed.age(ntype)

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

    def _embeddings(
        self, given: Embeddings | None = None, observed: bool = True
    ) -> dict[str, Tensor]:
        """Checked embeddings by node type.

        Where none are given, those that were observed, and without such, those of the encoder.
        """
        if given is None and observed and self._observed is not None:
            seen = self._observed.h
            output: Any = next(iter(seen.values())) if self.homogeneous else seen
        else:
            output = embed(self._encoder, self._g, self._feat) if given is None else given
        return check_embeddings(output, self._counts(), homogeneous=self.homogeneous)

    def _counts(self) -> dict[str, int]:
        """Number of nodes of every node type that is needed."""
        counts: dict[str, int] = {}
        for (source, _, destination), relation in self.relations.items():
            counts[source] = relation.known.num_src
            counts[destination] = relation.known.num_dst
        return counts

    def update_graph(self, g: Any) -> None:
        """Go on with a graph that has grown: with new nodes, new edges, or without old ones.

        Known edges and tables are made anew; generators, random states and the version stay, and
        the next `refresh` learns from the new graph. Until then, negatives that are edges by now
        are replaced by uniform ones, and new query nodes have filtered uniform negatives
        (`DMNSSampler.for_embeddings` serves them from an embedding). The edge types that are held
        stay the same.

        Call it outside of an epoch, on every rank alike, and make a new loader: a loader of DGL or
        of GraphBolt keeps the graph that it was made with. Workers that still run keep the tables
        that go with that graph.

        Args:
            g: the new graph; old nodes keep their ids, new ones come after them.

        Raises:
            ValueError: if an edge type that is held has no edges in it, a node type has fewer nodes
                than before, or the encoder's feature is missing; this sampler then stays as it was.
            RuntimeError: if this is a copy, which has no encoder.
        """
        self._check_original("update_graph")
        self._settle()
        if is_homogeneous(g) != self.homogeneous:
            raise ValueError(
                f"g: expected node and edge types as before, {list(self.relations)}, got "
                f"{g.canonical_etypes}; make a new sampler for another kind of graph"
            )
        for relation in self.relations.values():
            relation.check_growth(g)
        check_encoder(self._encoder, g, self._feat)
        with shared_memory_for(list(self.relations)):
            relations = {etype: relation.on(g) for etype, relation in self.relations.items()}
        self._g = g
        self.relations = relations
        self._snapshots = {}
        self._last = self._observed = None  # new nodes have no embedding yet
        self.known_by_type = {etype: one.known for etype, one in relations.items()}

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
            every: optimizer steps between refreshes; the batches of an epoch are a good choice. 100
                where neither it nor ``share`` is given.
            share: share of the time that refreshes may take, between 0 and 1, in place of
                ``every``: one follows a step as soon as the last one's seconds are at most this
                share of those since it began. Runs then depend on the clock, and ranks refresh
                after different steps.

        Returns:
            The hook's handle; its ``remove()`` ends the refreshes.

        Raises:
            ValueError: if ``every`` is below 1, ``share`` is out of range, or both are given.
        """
        cadence = Cadence(every, share)
        cadence.done(self.refresh().seconds)
        self._steps = self._steps or 0

        def hook(*_: Any) -> None:
            assert self._steps is not None
            self._steps += 1
            if cadence.due():
                cadence.done(self.refresh().seconds)
            elif self._task is not None and self._task.done:
                self._settle()

        return optimizer.register_step_post_hook(hook)

    # ---- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on as if nothing had happened.

        Returns:
            A copy of the state, which later refreshes leave as it is.

        Raises:
            RuntimeError: if this is a copy, which has no generator.
        """
        self._check_original("state_dict")
        self._settle()
        parts = {e: {**r.state(), **self._own_state(r)} for e, r in self.relations.items()}
        state = next(iter(parts.values())) if self.homogeneous else {"by_type": parts}
        if self._observed is not None:
            state = {**state, "observed": self._observed.state_dict()}
        return copy.deepcopy({"sampler": type(self).__name__, **state})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state made by `state_dict` of a sampler with the same arguments.

        Raises:
            ValueError: if the state belongs to another class of samplers, other edge types, another
                node count, table shape or width; this sampler then stays as it was.
            RuntimeError: if this is a copy, which has no encoder.
        """
        self._check_original("load_state_dict")
        if state["sampler"] != type(self).__name__:
            raise ValueError(
                f"state: made by {state['sampler']}, this is a {type(self).__name__}; load it into "
                "a sampler of the class that made it"
            )
        flat = dict.fromkeys(self.relations, state) if self.homogeneous else {}
        parts: dict[EdgeType, dict[str, Any]] = state.get("by_type", flat)
        if parts.keys() != self.relations.keys():
            raise ValueError(
                f"state: made for {list(parts) or 'a homogeneous graph'}, this sampler holds "
                f"{list(self.relations)}; load it into a sampler of the same graph, etypes and k"
            )
        own = [(relation, parts[etype]) for etype, relation in self.relations.items()]
        for relation, part in own:
            relation.check_state(part)
        observed = state.get("observed")
        if observed is not None:
            observed = ObservedEmbeddings.restored(observed, self._counts())
        self._settle()
        self._load_own_state(own)
        for relation, part in own:
            relation.load_state(part)
        self._task = None  # what has failed before counts no more
        self._observed = observed
        self._in_use = (self._begun, self._steps or 0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file, whole or not at all; see `dgl_dmns.checkpoint`.

        Args:
            path: the file; its folder has to exist.

        Raises:
            OSError: if it cannot be written; a file that was there stays.
            RuntimeError: if this is a copy.
        """
        write_state(path, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Restore the state in a file of `save`, without executing code from it.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged, or not the state of such a sampler (see
                `load_state_dict`); this sampler then stays as it was.
            RuntimeError: if this is a copy.
        """
        state, before = read_state(path), self.state_dict()
        try:
            self.load_state_dict(state)
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            self.load_state_dict(before)
            raise ValueError(
                f"path: not the state of a {type(self).__name__} ({type(error).__name__}: {error});"
                " load a file that such a sampler has saved"
            ) from error

    def _own_state(self, relation: Relation) -> dict[str, Any]:
        """What a subclass has to keep besides the table; `state_dict` copies it."""
        return {}

    def _load_own_state(self, states: list[tuple[Relation, dict[str, Any]]]) -> None:
        """Restore what `_own_state` gave, or raise and leave everything as it was."""

    def __getstate__(self) -> dict[str, Any]:
        """What workers and spawned processes get: look-up state, neither encoder nor graph."""
        dropped: dict[str, Any] = {"_g": None, "_encoder": None, "_task": None, "_last": None}
        dropped.update(_snapshots={}, _filled_from={}, _observed=None, _on_refresh=OrderedDict())
        return {**super().__getstate__(), **dropped}

    def _check_original(self, call: str) -> None:
        if self._encoder is None:
            raise RuntimeError(
                f"{call}: this is a copy of a sampler (pickled, or from copy.copy or deepcopy); a "
                "copy looks up negatives, and has no encoder, graph or generator; use the sampler "
                "it was made from, or make a new one"
            )

    def __repr__(self) -> str:
        numbers = sorted({relation.table.shape[2] for relation in self.relations.values()})
        k = "..".join(str(number) for number in dict.fromkeys((numbers[0], numbers[-1])))
        types = "" if self.homogeneous else f", types={len(self.relations)}"
        return f"{type(self).__name__}(k={k}{types}, rule={self.rule}, version={self.version})"
