"""What a sampler that follows an encoder holds: embeddings, relations, and their state.

One `Relation` for each edge type has the known edges, the table and the generator. Here they are
made, and carried on to a graph that has grown; `dgl_dmns.samplers.saved` saves and loads them, and
`dgl_dmns.samplers.refreshing` fills them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from torch import Tensor

from dgl_dmns.checks import check_object
from dgl_dmns.core import PoolSettings, Rule, check_rule, fit_seed, shielded
from dgl_dmns.samplers.asked import Asked
from dgl_dmns.samplers.base import EdgeName, EdgeType, shared_memory_for
from dgl_dmns.samplers.encoder import (
    Embeddings,
    Encoder,
    check_embeddings,
    check_encoder,
    embed,
    is_homogeneous,
)
from dgl_dmns.samplers.graphs import check_graph
from dgl_dmns.samplers.identity import GraphIdentity
from dgl_dmns.samplers.lookup import Source
from dgl_dmns.samplers.observed import NodeIds, ObservedEmbeddings
from dgl_dmns.samplers.relation import (
    NegativesPerEdge,
    Relation,
    Scorers,
    held_edge_types,
    scorers_by_type,
)
from dgl_dmns.samplers.resources import Resources, Rows, groups_with_room
from dgl_dmns.samplers.saved import SavedSampler

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["StatefulSampler"]


class StatefulSampler(SavedSampler):
    """Base of `RefreshingSampler`: what it is made of, and how that is kept.

    Before the first refresh every negative is filtered uniform.

    On a graph with several node or edge types, each edge type that is held (see ``k`` and
    ``etypes``) has known edges, a table, a generator and a random state of its own, `relation`. Its
    negatives are nodes of its destination type. Edge types without edges are not held; a request
    for none of their edges is answered with no negatives.

    A `dgl.distributed.DistGraph` will do as well: every trainer reads its edges from the servers,
    once, and shares its table with its sampler processes. The encoder then is a callable.

    Args:
        g: the training graph; its edges are the known positives.
        encoder: called in eval mode without gradient, all modules of it that are found (modes are
            restored): an ``nn.Module``, as ``encoder(g, g.ndata[feat])``, or with a dict of
            features by node type on a heterogeneous graph; or a callable without arguments (or
            taking the graph), see `dgl_dmns.samplers.held_modules`. It returns embeddings [N, D],
            a tensor or a ``DistTensor``, on a heterogeneous graph a dict of those by node type,
            with one D. An error of the first call says how it was called.
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
        TypeError: for what is no graph, an encoder or scorer that cannot be called, or a class in
            place of an object.
        MemoryError: if there is no room for the tables; nothing is allocated then.
    """

    takes_several_types: ClassVar[bool] = True

    @shielded
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
        seed = fit_seed(seed)
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
        check_rule(rule)
        scorer_of = scorers_by_type(scorer, list(held), g.canonical_etypes)
        if source not in get_args(Source):
            raise ValueError(f"source: expected 'edge' or 'uniform', got {source!r}")
        self.source: Source = source
        self._g = g
        self._encoder = encoder
        self._feat = feat
        self.rule = rule
        resources = Resources() if resources is None else resources
        check_object("resources", resources, Resources, "Resources(background=True)")
        self.resources = resources
        self.settings = settings
        groups = groups_with_room(resources, self._rows_of(g, held))
        # Seeds go by place in the graph: a type's negatives do not depend on what else is held.
        places = {etype: place for place, etype in enumerate(g.canonical_etypes)}
        with shared_memory_for(list(held)):
            self.relations = {
                e: Relation(
                    g,
                    e,
                    number,
                    settings,
                    groups[e],
                    fit_seed(seed + places[e]),
                    scorer_of(e),
                    alike=self._rows_alike,
                    folder=resources.table_folder,
                )
                for e, number in held.items()
            }
        self.known_by_type = {etype: one.known for etype, one in self.relations.items()}
        self._identity.made_for(g, held)
        self.seed = seed
        self._last: dict[str, Tensor] | None = None  # embeddings of the last refresh
        self._observed: ObservedEmbeddings | None = None
        self._has_embedded = False
        self.asked = Asked()
        self._set_up()

    @property
    def _rows_alike(self) -> bool:
        """Whether queries are drawn alike, in place of as often as they have edges."""
        return self.source == "uniform"

    def _rows_of(self, g: Any, numbers: Mapping[EdgeType, int]) -> dict[EdgeType, Rows]:
        """What the table of each edge type asks for, by its number of negatives."""
        return {
            etype: Rows(
                int(g.num_nodes(etype[0])),
                self.settings.hard(k),
                self.settings.groups_for(k),
            )
            for etype, k in numbers.items()
        }

    def stats(self, **arguments: Any) -> pd.DataFrame:  # noqa: D102
        if arguments.get("embeddings") is None:
            self._check_original("stats")
        return super().stats(**arguments)

    def _set_up(self) -> None:
        """Set up what a subclass keeps besides, as the end of the construction."""

    # ---- embeddings -------------------------------------------------------------------------

    @shielded
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
            RuntimeError: before the first refresh, or if this is a copy.
            TypeError: for ids that are no integers, such as a mask.
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

    @shielded
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

    def _embeddings(
        self, given: Embeddings | None = None, observed: bool = True, *, copy: bool = False
    ) -> dict[str, Tensor]:
        """Checked embeddings by node type, in memory of their own where they are to be kept.

        Where none are given, those that were observed, and without such, those of the encoder.
        """
        if given is None and observed and self._observed is not None:
            seen = self._observed.h
            output: Any = next(iter(seen.values())) if self.homogeneous else seen
        else:
            output = self._embed() if given is None else given
        return check_embeddings(output, self._counts(), homogeneous=self.homogeneous, copy=copy)

    def _embed(self) -> Any:
        """What the encoder returns now."""
        output = embed(self._encoder, self._g, self._feat, first=not self._has_embedded)
        self._has_embedded = True
        return output

    def _counts(self) -> dict[str, int]:
        """Number of nodes of every node type that is needed."""
        counts: dict[str, int] = {}
        for (source, _, destination), relation in self.relations.items():
            counts[source] = relation.known.num_src
            counts[destination] = relation.known.num_dst
        return counts

    @shielded
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
                than before, the encoder's feature is missing, or the tables do not fit
                ``Resources(table_bytes=...)``; this sampler then stays as it was.
            MemoryError: if the machine has no room for the tables; likewise.
            RuntimeError: if this is a copy, which has no encoder.
            TypeError: for what is no graph.
        """
        self._check_original("update_graph")
        check_graph(g)
        self._settle()
        if is_homogeneous(g) != self.homogeneous:
            raise ValueError(
                f"g: expected node and edge types as before, {list(self.relations)}, got "
                f"{g.canonical_etypes}; make a new sampler for another kind of graph"
            )
        for relation in self.relations.values():
            relation.check_growth(g)
        check_encoder(self._encoder, g, self._feat)
        numbers = {etype: one.k for etype, one in self.relations.items()}
        groups = groups_with_room(self.resources, self._rows_of(g, numbers))
        with shared_memory_for(list(self.relations)):
            relations = {etype: one.on(g, groups[etype]) for etype, one in self.relations.items()}
        self._g = g
        self.relations = relations
        self._last = self._observed = None  # new nodes have no embedding yet
        self.known_by_type = {etype: one.known for etype, one in relations.items()}
        self._identity = GraphIdentity(type(self).__name__)
        self._identity.made_for(g, relations)

    def __repr__(self) -> str:
        numbers = sorted({relation.k for relation in self.relations.values()})
        k = "..".join(str(number) for number in dict.fromkeys((numbers[0], numbers[-1])))
        types = "" if self.homogeneous else f", types={len(self.relations)}"
        return f"{type(self).__name__}(k={k}{types}, rule={self.rule}, version={self.version})"
