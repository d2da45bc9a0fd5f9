"""What a sampler that follows an encoder holds: embeddings, relations, and their state.

One `Relation` for each edge type has the known edges, the table and the generator. Here they are
made, saved, loaded, and carried on to a graph that has grown; `dgl_dmns.samplers.refreshing` fills
them.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from torch import Tensor

from dgl_dmns.checkpoint import read_state, write_state
from dgl_dmns.core.modes import shielded
from dgl_dmns.core.pools import PoolSettings
from dgl_dmns.core.rules import Rule
from dgl_dmns.core.seeds import check_seed
from dgl_dmns.samplers.base import EdgeName, EdgeType, shared_memory_for
from dgl_dmns.samplers.encoder import (
    Embeddings,
    Encoder,
    check_embeddings,
    check_encoder,
    embed,
    is_homogeneous,
)
from dgl_dmns.samplers.lookup import Source, TableSampler
from dgl_dmns.samplers.observed import NodeIds, ObservedEmbeddings
from dgl_dmns.samplers.relation import (
    NegativesPerEdge,
    Relation,
    Scorers,
    held_edge_types,
    scorers_by_type,
)
from dgl_dmns.samplers.resources import Resources, groups_with_room

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["StatefulSampler"]


class StatefulSampler(TableSampler):
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
        seed = check_seed(seed)
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
        groups = groups_with_room(resources, settings.groups, g, held)
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
        self._last: dict[str, Tensor] | None = None  # embeddings of the last refresh
        self._observed: ObservedEmbeddings | None = None
        self._set_up()

    def stats(self, **arguments: Any) -> pd.DataFrame:  # noqa: D102
        if arguments.get("embeddings") is None:
            self._check_original("stats")
        return super().stats(**arguments)

    def _set_up(self) -> None:
        """Set up what a subclass keeps besides, as the end of the construction."""

    def _settle(self) -> None:
        """Wait for what changes tables and generators in the background, if anything does."""

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
            output = embed(self._encoder, self._g, self._feat) if given is None else given
        return check_embeddings(output, self._counts(), homogeneous=self.homogeneous, copy=copy)

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
        numbers = {etype: one.table.shape[2] for etype, one in self.relations.items()}
        groups = groups_with_room(self.resources, self.settings.groups, g, numbers)
        with shared_memory_for(list(self.relations)):
            relations = {etype: one.on(g, groups) for etype, one in self.relations.items()}
        self._g = g
        self.settings = replace(self.settings, groups=groups)
        self.relations = relations
        self._last = self._observed = None  # new nodes have no embedding yet
        self.known_by_type = {etype: one.known for etype, one in relations.items()}

    # ---- state ------------------------------------------------------------------------------

    @shielded
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

    @shielded
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
            self._check_width(next(iter(observed.h.values())).shape[1])
        self._settle()
        self._load_own_state(own)
        for relation, part in own:
            relation.load_state(part)
        self._observed = observed
        self._last = None  # of another training, if any

    def _check_width(self, width: int) -> None:
        """Refuse a state that was made for embeddings of another width than the encoder's."""
        h = self._last or self._embeddings(observed=False)
        own = next(iter(h.values())).shape[1]
        if own != width:
            raise ValueError(
                f"state: made for embeddings of width {width}, this sampler's encoder gives {own}; "
                "load it beside the encoder it was trained with"
            )

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
        dropped = dict.fromkeys(("_g", "_encoder", "_last", "_observed"))
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
