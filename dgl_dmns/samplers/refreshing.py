"""Samplers that follow the encoder: embeddings, refreshes, and the table they fill.

A refresh runs in the main process, outside the loader: called from the training loop or from an
optimizer post-step hook (`RefreshingSampler.attach`). What loaders, their workers and prefetch
threads read is the candidate table alone, in shared memory.
"""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from dgl_dmns.checkpoint import read_state, write_state
from dgl_dmns.core.distribution import NodeDistribution
from dgl_dmns.core.engine import RefreshReport, Stopwatch, TableReport, TypeReport, fill_table
from dgl_dmns.core.generator import FitReport
from dgl_dmns.core.pools import PoolSettings
from dgl_dmns.core.rules import Rule
from dgl_dmns.core.snapshot import Snapshot
from dgl_dmns.samplers.base import (
    EdgeName,
    EdgeType,
    shared_memory_for,
)
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
from dgl_dmns.samplers.relation import (
    NegativesPerEdge,
    Relation,
    Scorers,
    held_edge_types,
    scorers_by_type,
)

__all__ = ["Encoder", "RefreshCallback", "RefreshingSampler", "Source"]

RefreshCallback = Callable[[RefreshReport, dict[str, Tensor]], Any]
"""Takes the report of a refresh and the embeddings, float32 [N, D] by node type."""


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

    Raises:
        ValueError: for a graph without edges, an unknown edge type, a missing feature, or a pool
            smaller than k; for a graph with several types if the class takes none.
        TypeError: for an encoder or scorer that cannot be called.
    """

    takes_several_types: ClassVar[bool] = True

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
        self.settings = settings
        # Seeds go by place in the graph: a type's negatives do not depend on what else is held.
        places = {etype: place for place, etype in enumerate(g.canonical_etypes)}
        with shared_memory_for(list(held)):
            self.relations = {
                e: Relation(g, e, number, settings.groups, seed + places[e], scorer_of(e))
                for e, number in held.items()
            }
        self.known_by_type = {etype: one.known for etype, one in self.relations.items()}
        self.seed = seed
        self.report: RefreshReport | None = None
        self._snapshots: dict[EdgeType, Snapshot] = {}
        self._on_refresh: OrderedDict[int, RefreshCallback] = OrderedDict()

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

    def refresh(self, embeddings: Embeddings | None = None) -> RefreshReport:
        """Recompute embeddings, fit the generators a little further, and rebuild the tables.

        Args:
            embeddings: shape [N, D], floating point, to use instead of calling the encoder; a dict
                of those by node type for a heterogeneous graph.

        Returns:
            The report of this refresh.

        Raises:
            ValueError: if embeddings are not [N, D] floating point and finite, or those of a node
                type are missing; the last tables stay in use.
            RuntimeError: if this is a copy, which has no encoder.
        """
        self._check_original("refresh")
        watch = Stopwatch()
        h = self._embeddings(embeddings)
        watch.mark("embed")
        ends = [(r, h[etype[0]], h[etype[2]]) for etype, r in self.relations.items()]
        fits = [self._fit(*end) for end in ends]
        watch.mark("fit")
        tables = [self._rebuild(*end) for end in ends]
        watch.mark("table")
        self.report = RefreshReport(
            version=self.version,
            seconds=watch.total,
            seconds_by_part=watch.parts,
            by_type=dict(zip(self.relations, map(TypeReport, fits, tables))),
        )
        for callback in list(self._on_refresh.values()):
            callback(self.report, h)
        return self.report

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

    def _rebuild(self, relation: Relation, h_query: Tensor, h_candidate: Tensor) -> TableReport:
        model = relation.model if self.rule.uses_generator else None
        return self._fill(
            relation,
            Snapshot.take(h_query, h_candidate, relation.known, relation.scorer, model),
        )

    def _fill(self, relation: Relation, snapshot: Snapshot) -> TableReport:
        """Fill the table of an edge type, and keep what it was filled from."""
        self._snapshots[relation.etype] = snapshot
        return fill_table(
            relation.table, self.rule, self.settings, snapshot, generator=relation.random
        )

    def _embeddings(self, given: Embeddings | None = None) -> dict[str, Tensor]:
        """Checked embeddings by node type, of the encoder where none are given."""
        output = embed(self._encoder, self._g, self._feat) if given is None else given
        counts: dict[str, int] = {}
        for (source, _, destination), relation in self.relations.items():
            counts[source] = relation.known.num_src
            counts[destination] = relation.known.num_dst
        return check_embeddings(output, counts, homogeneous=self.homogeneous)

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
        self.known_by_type = {etype: one.known for etype, one in relations.items()}

    def attach(self, optimizer: torch.optim.Optimizer, every: int = 100) -> Any:
        """Refresh after every ``every``-th step of an optimizer, and once now.

        The refresh runs in the process and thread of the optimizer step, so loader workers and
        prefetch threads never wait in it, and they read the new table from the next batch on.

        On several ranks, call it on each, after the model is wrapped in DistributedDataParallel. A
        refresh talks to no other rank, so it cannot hang; equal seeds and embeddings give equal
        generators and tables, to the last bit. Ranks whose embeddings differ (running statistics
        of BatchNorm, uneven batches) train alike with slightly different tables; hand `refresh`
        embeddings that were broadcast where that matters.

        Args:
            optimizer: the encoder's optimizer.
            every: optimizer steps between refreshes; the batches of an epoch are a good choice.

        Returns:
            The hook's handle; its ``remove()`` ends the refreshes.

        Raises:
            ValueError: if ``every`` is below 1.
        """
        if every < 1:
            raise ValueError(f"every: expected at least 1 optimizer step, got {every}")
        self.refresh()
        steps = 0

        def hook(*_: Any) -> None:
            nonlocal steps
            steps += 1
            if steps % every == 0:
                self.refresh()

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
        parts = {e: {**r.state(), **self._own_state(r)} for e, r in self.relations.items()}
        state = next(iter(parts.values())) if self.homogeneous else {"by_type": parts}
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
        self._load_own_state(own)
        for relation, part in own:
            relation.load_state(part)

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
        dropped: dict[str, Any] = {"_g": None, "_encoder": None, "_snapshots": {}}
        return {**super().__getstate__(), **dropped, "_on_refresh": OrderedDict()}

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
