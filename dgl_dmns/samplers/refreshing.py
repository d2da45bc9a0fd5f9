"""Samplers that follow the encoder: what they hold, and what a pipeline asks of them.

A refresh runs in the main process, outside the loader; loaders, their workers and prefetch threads
read the candidate table alone, in shared memory. A sampler *has* an embedder, a relation for each
edge type with a method that fits and fills, and a refresher: see the modules of these names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from dgl_dmns.checks import as_flag, check_object
from dgl_dmns.core import (
    EdgeName,
    EdgeType,
    Embeddings,
    KnownEdges,
    PoolSettings,
    RefreshReport,
    Rule,
    check_rule,
    fit_seed,
    shielded,
)
from dgl_dmns.samplers.base import NegativeSampler
from dgl_dmns.samplers.batches import Batches
from dgl_dmns.samplers.callables import Scorers, scorers_by_type
from dgl_dmns.samplers.candidates import candidates_by_type
from dgl_dmns.samplers.embedder import Embedder, Encoder
from dgl_dmns.samplers.graphs import (
    GraphIdentity,
    check_graph,
    check_ids_fit,
    is_homogeneous,
    shared_memory_for,
)
from dgl_dmns.samplers.method import Method, TableMethod
from dgl_dmns.samplers.misuse import Asked, ScoringCheck
from dgl_dmns.samplers.observed import NodeIds
from dgl_dmns.samplers.refresher import RefreshCallback, Refresher, Staleness
from dgl_dmns.samplers.relation import Relation
from dgl_dmns.samplers.settings import (
    NegativesPerEdge,
    Pools,
    Resources,
    Rows,
    groups_with_room,
    held_edge_types,
)
from dgl_dmns.samplers.shares import Share
from dgl_dmns.samplers.states import Saved
from dgl_dmns.samplers.tables import Source
from dgl_dmns.samplers.trainers import agreed, trainers_of

__all__ = ["Encoder", "RefreshingSampler", "Source"]

_KEPT_BACK = ("refresher", "resources", "diffusion", "_last")  # from workers: of no use there


class RefreshingSampler(Batches, Saved, NegativeSampler):
    """Base of the samplers whose negatives depend on the encoder, and follow it by refreshes.

    Before the first refresh, all negatives are uniform, without known edges. Each edge type that is
    held (see ``k`` and ``etypes``) has known edges, a table, a method and a random state of its
    own, `relation`. One without edges has no table, and no negatives.

    Of a `dgl.distributed.DistGraph` with several partitions each trainer holds its share, see
    `dgl_dmns.samplers.shares`; the encoder is a callable, and all refresh after the same step.

    Args:
        g: the training graph; its edges are the known positives.
        encoder: an ``nn.Module``, called as ``encoder(g, g.ndata[feat])`` (a dict of features by
            node type where there are several), or a callable that takes the graph or nothing. It
            runs in eval mode without gradients; modes are restored. It returns embeddings [N, D], a
            tensor or a ``DistTensor``, or a dict of those by node type.
        k: negatives per edge, or a dict of such numbers by edge type (canonical, or the relation
            alone); edge types that a dict leaves out are not held.
        rule: the selection rule.
        pools: how candidates are proposed, and the share of uniform negatives; see `Pools`.
        scorer: scores of broadcastable embeddings [.., D], the model's logit before any sigmoid,
            or a dict with one for each edge type held; defaults to the inner product. Of an
            ``nn.Module`` each refresh takes a copy, in eval mode.
        source: ``"edge"`` (default) keeps the source of the positive, for a ranking of candidates
            per query. ``"uniform"`` draws the source, too, for one ranking of all pairs (OGB's
            Hits@K; DGL's ``GlobalUniform`` is its easy form).
        etypes: edge types to hold; defaults to all that have edges.
        feat: name of the node features for an ``nn.Module``.
        seed: seed of fitting and table building.
        generator: source of the draws from the table, see `NegativeSampler`.
        resources: limits of memory, and refreshes in the background; see `Resources`.

    Raises:
        ValueError: for a value out of range, a graph without edges, an unknown edge type, a missing
            feature; for a graph with several types if the class takes none.
        TypeError: for an argument of a wrong type, or a class in place of an object.
        MemoryError: if there is no room for the tables; nothing is allocated then.
    """

    shares: ClassVar[bool] = True  # whether a share of the sources is enough
    takes: ClassVar[tuple[str, ...]] = (  # of these arguments, by name
        *("pools", "scorer", "source", "etypes", "feat", "seed", "generator", "resources"),
    )
    defaults: ClassVar[PoolSettings] = PoolSettings()

    @shielded
    def __init__(
        self,
        g: Any,
        encoder: Encoder,
        k: NegativesPerEdge = 1,
        *,
        rule: Rule,
        pools: Pools | None = None,
        scorer: Scorers | None = None,
        source: Source = "edge",
        etypes: Sequence[EdgeName] | None = None,
        feat: str = "feat",
        seed: int = 0,
        generator: torch.Generator | None = None,
        resources: Resources | None = None,
    ) -> None:
        seed = fit_seed(seed)
        held = held_edge_types(g, k, etypes)
        super().__init__(max(held.values()), generator)
        self.homogeneous = is_homogeneous(g)
        if not (self.homogeneous or "etypes" in self.takes):
            raise ValueError(
                f"g: expected one node type and one edge type, got edge types {g.canonical_etypes};"
                f" {type(self).__name__} takes homogeneous graphs only: pass one relation (see "
                "dgl.edge_type_subgraph), or use DMNSSampler, DynamicSampler or "
                "SelfAdversarialSampler"
            )
        counts = {n: int(g.num_nodes(n)) for etype in held for n in (etype[0], etype[2])}
        embedder = Embedder(g, encoder, feat, counts)
        pools = Pools() if pools is None else pools
        check_object("pools", pools, Pools, "Pools(pool=128)")
        settings = pools.over(self.defaults)
        if settings.pool < self.k:
            raise ValueError(
                f"pool: expected at least k = {self.k} candidates, got {settings.pool}; raise pool"
            )
        candidates = candidates_by_type(pools.candidates, g, list(held))
        check_rule(rule)
        scorer_of = scorers_by_type(scorer, list(held), g.canonical_etypes)
        if source not in get_args(Source):
            raise ValueError(f"source: expected 'edge' or 'uniform', got {source!r}")
        resources = Resources() if resources is None else resources
        check_object("resources", resources, Resources, "Resources(background=True)")
        self.source: Source = source
        self.rule, self.settings, self.resources, self.seed = rule, settings, resources, seed
        shares = {etype: self._share(g, etype) for etype in held}
        sources = {e: len(s.ids) if s else int(g.num_nodes(e[0])) for e, s in shares.items()}
        embedder.stored = any(shares.values())
        trainers = trainers_of(embedder.stored, resources.one_table, rule)
        rows = self._rows(g, sources, held)
        groups = agreed(trainers, lambda: groups_with_room(resources, rows))  # before any is taken
        # Seeds go by place in the graph: a type's negatives do not depend on what else is held.
        places = {etype: place for place, etype in enumerate(g.canonical_etypes)}
        with shared_memory_for(list(held)):
            self.relations = {
                etype: Relation(
                    g,
                    etype,
                    number,
                    settings,
                    groups[etype],
                    fit_seed(seed + places[etype]),
                    scorer_of(etype),
                    self._method,
                    alike=source == "uniform",
                    folder=resources.table_folder,
                    share=shares[etype],
                    candidates=candidates.get(etype),
                    trainers=trainers,
                    device=resources.place,
                )
                for etype, number in held.items()
            }
        name = type(self).__name__
        self._identity = GraphIdentity(name, g, held)
        self.asked, self.device = Asked(name), resources.place
        scoring = ScoringCheck("scorer" in self.takes, rule.uses_scores, scorer is not None)
        self.refresher = Refresher(
            name, embedder, self.relations, bool(resources.background), scoring, trainers
        )

    def _check_taken(self, options: Mapping[str, Any]) -> None:
        """Refuse arguments of this base that a subclass does without."""
        for name in options.keys() - set(self.takes):
            raise TypeError(f"{name}: {type(self).__name__} takes no such argument; leave it out")

    def _method(self, known: KnownEdges, seed: int) -> Method:
        """The method of an edge type; subclasses have their own."""
        return TableMethod(self.rule, self.settings, self.resources, seed)

    def _share(self, g: Any, etype: EdgeType) -> Share | None:
        """The sources that this process holds, of a distributed graph; None for all."""
        if not self.shares or self.rule.nearest_among(1) is not None:
            return None
        return Share.of(g, etype, self.source == "uniform")

    def _rows(
        self, g: Any, sources: Mapping[EdgeType, int], numbers: Mapping[EdgeType, int]
    ) -> dict[EdgeType, Rows]:
        """What each table asks for, by its sources and number of negatives."""
        check_ids_fit(g, numbers)
        own = self.settings
        return {e: Rows(sources[e], own.hard(k), own.groups_for(k)) for e, k in numbers.items()}

    @property
    def report(self) -> RefreshReport | None:
        """The report of the refresh that is in use; None before the first, and in copies."""
        return None if self.refresher is None else self.refresher.report

    @property
    def staleness(self) -> Staleness:
        """How far the negatives that are drawn now lie behind the training."""
        return self._original("staleness").staleness

    def refresh(
        self,
        embeddings: Embeddings | None = None,
        *,
        nodes: NodeIds | None = None,
        observed: bool = True,
    ) -> RefreshReport:
        """Recompute embeddings, fit the models a little further, and rebuild the tables.

        A refresh that fails or is interrupted changes nothing. With ``Resources(background=True)``,
        every refresh after the first only takes the embeddings and returns; a thread does the rest.
        It first waits for the refresh before.

        Args:
            embeddings: shape [N, D], floating point, to use instead of calling the encoder; a dict
                of those by node type for a heterogeneous graph.
            nodes: ids of source nodes whose rows are drawn again, the others keep theirs; a dict by
                source node type where there are several. Models are fitted on pairs of all nodes.
            observed: whether embeddings given to `observe` are used instead of calling the encoder,
                if there are any. With False the encoder is called.

        Returns:
            The report of this refresh; in the background, that of the refresh that is in use.

        Raises:
            ValueError: if embeddings or ``nodes`` do not fit, or the sampler draws no rows.
            RuntimeError: if this is a copy; if ``nodes`` is given before the first refresh; if the
                last background refresh failed (its error is the cause). The last good tables stay
                in use.
        """
        as_flag("observed", observed, "refresh(observed=False)")
        return self._original("refresh").refresh(embeddings, nodes, observed)

    def wait(self) -> RefreshReport | None:
        """Wait for a refresh in the background, if any, and return the `report`.

        Raises:
            RuntimeError: if it has failed, or if this is a copy.
        """
        return self._original("wait").wait()

    def on_refresh(self, callback: RefreshCallback) -> RemovableHandle:
        """Call a function after every refresh, with its report and the embeddings by node type.

        It runs in the process of the refresh. Where it raises, the refresh stands, the other
        functions are called, and an error comes after them. ``remove()`` of the handle ends it.
        """
        callbacks = self._original("on_refresh").callbacks
        handle = RemovableHandle(callbacks)
        callbacks[handle.id] = callback
        return handle

    def attach(
        self,
        optimizer: torch.optim.Optimizer,
        every: int | None = None,
        *,
        share: float | None = None,
    ) -> Any:
        """Refresh now, and then every ``every`` optimizer steps, or as often as ``share`` allows.

        It runs in the thread of the optimizer step; workers and prefetch threads read the new table
        from the next batch on. A refresh that fails is tried again after the next step. On several
        ranks, call it on each, after the model is wrapped in DistributedDataParallel: refreshes
        talk to no other rank, and equal seeds and embeddings give equal models and tables, to the
        last bit.

        Args:
            optimizer: the encoder's optimizer.
            every: optimizer steps between refreshes; ``len(loader)`` is an epoch. Defaults, without
                ``share``, to a pass over the known edges in batches of 1024 on each rank. The first
                call sizes the tables for that many steps.
            share: share of the time that refreshes may take, between 0 and 1, in place of
                ``every``. Runs then depend on the clock, and ranks refresh after different steps.

        Returns:
            The hook's handle; its ``remove()`` ends the refreshes. A second call for the same
            optimizer takes the place of the first.

        Raises:
            ValueError: if ``every`` is below 1, ``share`` is out of range, or both are given.
            TypeError: if ``optimizer`` is not a torch optimizer with step hooks; nothing is
                refreshed then.
        """
        return self._original("attach").attach(self.refresh, optimizer, every, share)

    @shielded
    def observe(self, node_ids: NodeIds, embeddings: Embeddings) -> None:
        """Keep embeddings that a minibatch has computed anyway, for the next refreshes.

        After the first call, refreshes read the last embedding seen of every node and do not call
        the encoder. Nodes not seen keep that of the last refresh. It takes ``4 * D + 4`` bytes a
        node. In a loop of DGL's blocks:

            h = model(blocks, x)
            sampler.observe(blocks[-1].dstdata[dgl.NID], h)

        Args:
            node_ids: ids in the whole graph, shape [B], integer; a dict by node type for several.
            embeddings: shape [B, D], floating point, with or without gradient; a dict likewise.

        Raises:
            RuntimeError: before the first refresh, or if this is a copy.
            TypeError: for ids that are no integers, such as a mask.
            ValueError: if they do not fit; rows that are not finite are refused by a refresh.
        """
        self._original("observe").embedder.observe(node_ids, embeddings)

    @shielded
    def embedding_age(self, ntype: str | None = None) -> Tensor:
        """How many observations ago each node was seen last, int64 [N], for `observe`.

        Nodes not seen yet count from the refresh that they started from. The node type may be left
        out where the sampler needs one.

        Raises:
            RuntimeError: if nothing was observed.
            ValueError: if the node type has to be named.
        """
        return self._original("embedding_age").embedder.age(ntype)

    @shielded
    def update_graph(self, g: Any) -> None:
        """Go on with a graph that has grown: with new nodes, new edges, or without old ones.

        Known edges and tables are made anew; the next `refresh` learns from the new graph. Until
        then, negatives that are edges by now are replaced by uniform ones, and new query nodes have
        filtered uniform negatives (`DMNSSampler.for_embeddings` serves them from an embedding).
        Candidates (`Pools`) stay what they were, so that new nodes are none.
        Call it outside of an epoch, on every rank alike, and make a new loader.

        Args:
            g: the new graph; old nodes keep their ids, new ones come after them.

        Raises:
            ValueError: if an edge type that is held has no edges in it, a node type has fewer nodes
                than before, the encoder's feature is missing, or the tables do not fit
                ``Resources(table_bytes=...)``; this sampler then stays as it was.
            MemoryError: if the machine has no room for the tables; likewise.
            RuntimeError: if this is a copy.
            TypeError: for what is no graph.
        """
        refresher, held = self._original("update_graph"), self.relations
        check_graph(g)
        if refresher.trainers is not None:
            raise ValueError(
                "g: trainers that refresh together hold tables of the graph as it was; make new "
                "samplers on all of them"
            )
        refresher.settle()
        if is_homogeneous(g) != self.homogeneous:
            raise ValueError(
                f"g: expected node and edge types as before, {list(held)}, got "
                f"{g.canonical_etypes}; make a new sampler for another kind of graph"
            )
        for relation in held.values():
            relation.check_growth(g)
        embedder = refresher.embedder.on(g)
        sources = {etype: int(g.num_nodes(etype[0])) for etype in held}
        numbers = {etype: relation.k for etype, relation in held.items()}
        groups = groups_with_room(self.resources, self._rows(g, sources, numbers))
        with shared_memory_for(list(held)):
            relations = {etype: relation.on(g, groups[etype]) for etype, relation in held.items()}
        refresher.embedder, refresher.relations = embedder, relations
        self.relations, self._identity = relations, GraphIdentity(type(self).__name__, g, relations)

    def __getstate__(self) -> dict[str, Any]:
        """What workers and spawned processes get: all but what a refresh alone needs."""
        held = super().__getstate__()
        return {name: None if name in _KEPT_BACK else value for name, value in held.items()}

    def __repr__(self) -> str:
        numbers = [relation.k for relation in self.relations.values()]
        k = "..".join(map(str, dict.fromkeys((min(numbers), max(numbers)))))
        types = "" if self.homogeneous else f", types={len(self.relations)}"
        return f"{type(self).__name__}(k={k}{types}, rule={self.rule}, version={self.version})"
