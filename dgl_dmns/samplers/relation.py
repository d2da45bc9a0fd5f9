"""What a sampler that follows an encoder holds for each edge type."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Union

import torch
from torch import Tensor, nn

from dgl_dmns.checks import check_ids, check_object
from dgl_dmns.core import (
    MOST_PASSES,
    CandidateTable,
    DiffusionGenerator,
    KnownEdges,
    NodeDistribution,
    PoolSettings,
    RowDraws,
    Scorer,
    Turns,
    carry_over,
    dot_score,
    row_sizes,
)
from dgl_dmns.samplers.base import (
    EdgeName,
    EdgeType,
    canonical_edge_type,
    check_k,
    known_edges,
)
from dgl_dmns.samplers.encoder import unwrapped
from dgl_dmns.samplers.graphs import check_has_edges
from dgl_dmns.samplers.held_modules import eval_mode, modules_behind
from dgl_dmns.samplers.observed import NodeIds

__all__ = [
    "NegativesPerEdge",
    "Relation",
    "Scorers",
    "held_edge_types",
    "rows_by_type",
    "scorers_by_type",
]

_GROUPS = 1 << 16  # that are looked through at a time
_REFRESHED = (
    "model",
    "adversary",
    "walked",
    "norms",
    "distribution",
    "sharpness",
)  # beside the table

NegativesPerEdge = Union[int, Mapping[Any, int]]
"""Negatives per edge: one number, or one for each edge type (canonical, or the relation alone)."""

Scorers = Union[Scorer, Mapping[Any, Scorer], nn.ModuleDict]
"""One scorer, or one for each edge type (canonical, or the relation alone)."""


class Relation:
    """One edge type: its known edges, candidate table, generator, scorer and random state.

    A row of the table has a group for each edge of its query in the passes between two refreshes,
    evenly fewer where that is more than it may take; the uniform share of the negatives is drawn in
    the call, and never twice.

    Args:
        g: the training graph.
        etype: canonical edge type, with at least one edge.
        k: negatives per edge.
        settings: with the share of uniform negatives.
        groups: groups that rows have on average, at most.
        seed: seed of fitting and table building.
        scorer: scores of broadcastable embeddings, the inner product where None.
        alike: whether all rows have ``groups`` groups, for queries that are drawn alike.
        folder: where the table lies in a file, see `CandidateTable`, and known edges for which
            shared memory has no room; None: in shared memory.
    """

    def __init__(
        self,
        g: Any,
        etype: EdgeType,
        k: int,
        settings: PoolSettings,
        groups: int,
        seed: int,
        scorer: Scorer | None,
        *,
        alike: bool = False,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.etype = etype
        self.folder = folder
        self.known = known_edges(g, etype, folder)
        self.groups = groups
        self.alike = alike
        sizes = self._sizes(self.known, groups, passes=1)
        table = CandidateTable(sizes, settings.hard(k), folder=folder)
        turns = self._turns(self.known, passes=1)
        self.rows = RowDraws(self.known, table, turns, k, settings.uniform_share)
        self.model: DiffusionGenerator | None = None
        self.adversary: nn.Module | None = None  # of `AdversarialSampler`
        self.walked: Tensor | None = None  # embeddings that the chains of `MCNSSampler` read
        self.norms: Tensor | None = None  # of the distribution that the table was drawn from
        self.distribution: NodeDistribution | None = None  # that, in this process
        self.scorer_weights: dict[str, Tensor] | None = None  # of a module, that a state brought
        self.sharpness = 1.0  # that the table was drawn with
        self.scorer = scorer
        self.seed = seed
        self.random = torch.Generator().manual_seed(seed)

    @property
    def table(self) -> CandidateTable:
        """The candidates that are not uniform."""
        return self.rows.table

    @property
    def k(self) -> int:
        """Negatives per edge."""
        return self.rows.k

    def _sizes(self, known: KnownEdges, groups: int, passes: int) -> Tensor:
        """Groups of every row for so many passes over the known edges, shape [N], int64."""
        if self.alike:
            return torch.full((known.num_src,), groups)
        return row_sizes(known.degrees() * passes, groups * known.num_src)

    def _turns(self, known: KnownEdges, passes: int) -> Turns | None:
        if self.alike:
            return None
        turns = Turns(known, passes)
        turns.share("the turns of edges take", self.folder)
        return turns

    @property
    def passes(self) -> int:
        """Passes over the known edges that rows are made for."""
        return 1 if self.rows.turns is None else self.rows.turns.passes

    def make_last(self, passes: int) -> None:
        """Make rows that last for so many passes, where nothing is in the table yet."""
        passes = min(passes, MOST_PASSES)
        if passes != self.passes and not self.alike:
            sizes = self._sizes(self.known, self.groups, passes)
            table = CandidateTable(sizes, self.table.k, folder=self.folder)
            before = self.table
            self.rows = replace(self.rows, table=table, turns=self._turns(self.known, passes))
            before.retire()

    # ---- copies and state -------------------------------------------------------------------

    @property
    def nodes(self) -> int | tuple[int, int]:
        """Number of nodes, or of source and destination nodes where those are of two types."""
        if self.known.exclude_self:
            return self.known.num_src
        return self.known.num_src, self.known.num_dst

    def frozen(self) -> Relation:
        """The same with the scorer as it is now: a module as a copy on the CPU, in eval mode.

        All else is shared. Dropout or running statistics have no part in a refresh, and the weights
        stay those of the refresh while the training goes on. Of a function, the modules that it
        refers to are in eval mode in each call; their weights are the live ones.
        """
        return self._with(scorer=_in_eval_mode(_frozen(self.scorer)))

    def apart(self, *, reseeded: bool) -> Relation:
        """The same with what a refresh changes as copies, until `take` takes them over.

        Known edges and table are shared, whose hidden buffer a refresh fills; the scorer is
        `frozen`.

        Args:
            reseeded: whether random numbers come from a source of its own, seeded by one draw from
                the one held, for a refresh in the background; else from the one held.
        """
        random = self.random
        if reseeded:
            seed = int(torch.randint(1 << 62, (), generator=random))
            random = torch.Generator().manual_seed(seed)
        return self._with(
            model=copy.deepcopy(self.model),
            adversary=copy.deepcopy(self.adversary),
            # From a thread, the modes of live modules are left alone: the training uses them.
            scorer=_frozen(self.scorer) if reseeded else _in_eval_mode(_frozen(self.scorer)),
            random=random,
        )

    def take(self, refreshed: Relation) -> None:
        """Take over what a refresh has made, in one step; its table is published beside."""
        vars(self).update({name: vars(refreshed)[name] for name in _REFRESHED})

    def on(self, g: Any, groups: int) -> Relation:
        """The same for a graph that has changed; this one stays as it is, for who reads it.

        Generator, scorer and random state are shared. The table is of the same version, see
        `dgl_dmns.core.carry_over`.

        Args:
            g: the new graph, checked by `check_growth`.
            groups: groups that rows of its table have on average, at most.
        """
        known = known_edges(g, self.etype, self.folder)
        sizes = self._sizes(known, groups, self.passes)
        table = carry_over(self.table, known, sizes, self.random)
        turns = self._turns(known, self.passes)
        rows = replace(self.rows, known=known, table=table, turns=turns)
        return self._with(known=known, rows=rows, groups=groups, norms=None, distribution=None)

    def _with(self, **changes: Any) -> Relation:
        """The same with other parts in place of some."""
        new = Relation.__new__(Relation)
        vars(new).update(vars(self), **changes)
        return new

    def check_call(self, g: Any, src: Tensor) -> None:
        """Refuse a request that does not fit the graph that the sampler has.

        Args:
            g: the graph of the request.
            src: source ids, shape [B], int64, on the CPU.

        Raises:
            ValueError: for sources the sampler does not know, or a graph that lacks candidates.
        """
        source, _, destination = self.etype
        strange = bool(src.numel()) and int(src.max()) >= self.known.num_src
        lacking = int(g.num_nodes(destination)) < self.known.num_dst
        if strange or lacking:
            ntype, held = (
                (source, self.known.num_src) if strange else (destination, self.known.num_dst)
            )
            raise ValueError(
                f"g: the sampler was made for {held} nodes of type {ntype!r}, the graph has "
                f"{g.num_nodes(ntype)}; hand a graph that has grown to update_graph(g), and make a "
                "new loader for it"
            )

    def check_growth(self, g: Any) -> None:
        """Refuse a graph that this edge type cannot be carried over to.

        Raises:
            ValueError: if it has no edge of this type, or fewer nodes of its ends.
        """
        if self.etype not in g.canonical_etypes or not g.num_edges(self.etype):
            raise ValueError(
                f"g: the sampler holds edge type {self.etype}, the graph has no edge of it; pass a "
                f"graph of the same types, or make a new sampler (edge types with edges: "
                f"{[e for e in g.canonical_etypes if g.num_edges(e)]})"
            )
        for ntype, held in zip(self.etype[::2], (self.known.num_src, self.known.num_dst)):
            count = int(g.num_nodes(ntype))
            if count < held:
                raise ValueError(
                    f"g: expected at least the {held} nodes of type {ntype!r} that the sampler "
                    f"knows, with the same ids, got {count}; keep nodes that are gone, without "
                    "edges, or make a new sampler"
                )

    def state(self) -> dict[str, Any]:
        """Table, turns, random state and sharpness, by reference; and whose they are."""
        return {
            "nodes": self.nodes,
            "edges": self.known.fingerprint(),
            "passes": self.passes,
            "table": self.table.state_dict(),
            "asked": None if self.rows.turns is None else self.rows.turns.asked,
            "random": self.random.get_state(),
            "sharpness": self.sharpness,
            "norms": self.norms,
            "scorer": self._frozen_weights(),
        }

    def _frozen_weights(self) -> dict[str, Tensor] | None:
        """The weights of a module as scorer at the last refresh."""
        if self.distribution is None:
            return self.scorer_weights
        scorer = self.distribution.snapshot.scorer
        return dict(scorer.state_dict()) if isinstance(scorer, nn.Module) else None

    def as_refreshed(self) -> Relation:
        """The same with the scorer as it was at the refresh that a loaded state comes from.

        Raises:
            RuntimeError: if the scorer has other weights than that one.
        """
        made = self.frozen()
        if self.scorer_weights is not None and isinstance(made.scorer, nn.Module):
            made.scorer.load_state_dict(self.scorer_weights)
        return made

    def check_state(self, state: dict[str, Any]) -> None:
        """Refuse a state that does not fit.

        Raises:
            ValueError: if it is of another node count, table shape or set of edges, or its table
                holds what may not be a negative here.
        """
        if state["nodes"] != self.nodes:
            raise ValueError(
                f"state: made for {state['nodes']} nodes, this sampler has {self.nodes}; load it "
                f"into a sampler of the same graph (edge type {self.etype[1]!r})"
            )
        if state.get("edges") != self.known.fingerprint():
            raise ValueError(
                f"state: made for other known edges (fingerprint {state.get('edges')}, this "
                f"sampler's is {self.known.fingerprint()}; edge type {self.etype[1]!r}); load it "
                "into a sampler of the graph that it was made for, and call update_graph then"
            )
        passes, sharpness = state["passes"], state["sharpness"]
        if not (isinstance(passes, int) and 1 <= passes <= MOST_PASSES):
            raise ValueError(
                f"state: expected a number of passes from 1 to {MOST_PASSES}, got {passes!r} (edge "
                f"type {self.etype[1]!r}); load a state that a sampler has given"
            )
        if not (isinstance(sharpness, float) and 1.0 <= sharpness < math.inf):
            raise ValueError(
                f"state: expected a sharpness of at least 1, got {sharpness!r} (edge type "
                f"{self.etype[1]!r}); load a state that a sampler has given"
            )
        sizes = self._sizes(self.known, self.groups, passes)
        hard, groups = self.table.k, int(sizes.sum())
        found = tuple(state["table"]["ids"].shape[1:])
        start = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        if found != (groups, hard) or not torch.equal(state["table"]["start"], start):
            raise ValueError(
                f"state: table of {found[0]} groups of {found[1]}, this sampler has {groups} of "
                f"{hard}; use the same k, groups, uniform_share and resources (edge type "
                f"{self.etype[1]!r})"
            )
        norms = state["norms"]
        if norms is not None and (norms.dim() != 2 or len(norms) != self.known.num_src):
            raise ValueError(
                f"state: expected norms of {self.known.num_src} queries, got shape "
                f"{tuple(norms.shape)} (edge type {self.etype[1]!r}); load a state that a sampler "
                "has given"
            )
        asked = state["asked"]
        counted = self.known.indices.numel() if passes > 1 else 0
        if (asked is None) != self.alike or (
            asked is not None and (asked.dtype != torch.uint8 or asked.shape != (counted,))
        ):
            raise ValueError(
                f"state: expected the turns of {counted} edges (edge type {self.etype[1]!r}); load "
                "a state that a sampler has given"
            )
        self._check_table(state["table"], sizes)

    def _check_table(self, table: dict[str, Tensor], sizes: Tensor) -> None:
        own = self.table.state_dict()
        shapes = {"ids": (2, int(sizes.sum()), self.table.k)}
        shapes["level"] = shapes["ids"]
        if table.keys() != own.keys() or any(
            table[name].dtype != field.dtype
            or table[name].shape != shapes.get(name, tuple(field.shape))
            for name, field in own.items()
        ):
            raise ValueError(
                f"state: expected a table of {', '.join(own)} of the types and shapes of this "
                f"sampler's (edge type {self.etype[1]!r}); load a state that a sampler has given"
            )
        version, known = int(table["counter"]), self.known
        inside = (table["ids"] >= 0) & (table["ids"] < known.num_dst)
        if version < 0 or not bool(inside.all()):
            raise ValueError(
                f"state: expected a version of at least 0 and ids in 0 .. {known.num_dst - 1}, got "
                f"others (edge type {self.etype[1]!r}); load a state that a sampler has given"
            )
        if not version:
            return
        owner = torch.repeat_interleave(torch.arange(known.num_src), sizes)
        true = ~torch.isin(owner, known.saturated())  # others have no true negatives
        for place in true.nonzero().squeeze(1).split(_GROUPS):
            ids = table["ids"][version % 2][place]
            if bool(known.contains(owner[place].unsqueeze(1), ids).any()):
                raise ValueError(
                    f"state: its negatives are edges of this graph (edge type {self.etype[1]!r}); "
                    "load it into a sampler of the graph that it was made for, and call "
                    "update_graph then"
                )

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave, in place: workers see it."""
        self.make_last(state["passes"])
        if self.rows.turns is not None:
            self.rows.turns.asked.copy_(state["asked"])
        self.table.unfinished.fill_(1)
        for name, value in state["table"].items():  # the mark of the hidden buffer comes last
            getattr(self.table, name).copy_(value)
        self.random.set_state(state["random"])
        self.sharpness = state["sharpness"]
        self.norms = None if state["norms"] is None else state["norms"].clone()
        self.scorer_weights = copy.deepcopy(state["scorer"])
        self.distribution = None  # it is of the table before

    def __getstate__(self) -> dict[str, Any]:
        """What workers and spawned processes get: what a look-up needs."""
        dropped = dict.fromkeys(
            ("model", "adversary", "norms", "distribution", "scorer_weights", "scorer", "random")
        )
        return {**self.__dict__, **dropped}


def held_edge_types(
    g: Any, k: NegativesPerEdge, etypes: Sequence[EdgeName] | None
) -> dict[EdgeType, int]:
    """The edge types to hold tables for, in the order of the graph, and the k of each.

    Args:
        g: the training graph.
        k: negatives per edge; a dict also says which edge types to hold.
        etypes: edge types to hold; those of ``k``, or all that have edges, where None.

    Raises:
        TypeError: if a number is no integer, or ``etypes`` is a single name.
        ValueError: if a number is below 1, an edge type is unknown or has no edges, none is left,
            or ``k`` and ``etypes`` name different ones.
    """
    check_has_edges(g)
    every = g.canonical_etypes
    named = isinstance(k, Mapping)
    if isinstance(k, Mapping):
        numbers = {canonical_edge_type(e, every, "k"): check_k(one) for e, one in k.items()}
    else:
        numbers = dict.fromkeys(every, check_k(k))
    wanted = {e for e in numbers if named or g.num_edges(e)}
    if isinstance(etypes, str):
        raise TypeError(f"etypes: expected a list of edge types, got {etypes!r}; put it in a list")
    if etypes is not None:
        wanted = {canonical_edge_type(e, every, "etypes") for e in etypes}
        if named and wanted != set(numbers):
            raise ValueError(
                f"etypes: {sorted(wanted)} are not the edge types of k, {sorted(numbers)}; give "
                "one of the two (a dict k holds tables for the edge types that it names)"
            )
    if not wanted:
        raise ValueError(
            "etypes, k: expected at least one edge type, got none; leave etypes out for all"
        )
    without = sorted(e for e in wanted if not g.num_edges(e))
    if without:
        raise ValueError(
            f"etypes, k: expected edge types with edges, the known positives, got {without} "
            "without any; leave them out"
        )
    return {e: numbers[e] for e in every if e in wanted}


def scorers_by_type(
    scorer: Scorers | None, held: Sequence[EdgeType], etypes: Sequence[EdgeType]
) -> Callable[[EdgeType], Scorer | None]:
    """The scorer of each held edge type.

    Args:
        scorer: one for all, a dict that has one for each of ``held``, or None.
        held: edge types that need one.
        etypes: all edge types of the graph, which a dict may name.

    Raises:
        TypeError: if a scorer cannot be called.
        ValueError: if a dict names unknown edge types or lacks one.
    """
    if isinstance(scorer, nn.ModuleDict):
        scorer = dict(scorer.items())
    if not isinstance(scorer, Mapping):
        _check_scorer(scorer, "scorer")
        return lambda etype: scorer
    by_type = {canonical_edge_type(e, etypes, "scorer"): one for e, one in scorer.items()}
    missing = [etype for etype in held if etype not in by_type]
    if missing:
        raise ValueError(
            f"scorer: expected one for each edge type, got none for {missing}; add them, or leave "
            "these edge types out with etypes=..."
        )
    for etype, one in by_type.items():
        _check_scorer(one, f"scorer of {etype[1]!r}")
    return by_type.__getitem__


def _check_scorer(scorer: Any, name: str) -> None:
    if isinstance(scorer, type):
        check_object(name, scorer, nn.Module, "model.scorer")
    if scorer is not None and not callable(scorer):
        raise TypeError(
            f"{name}: expected a callable of two tensors of embeddings, or a dict of those by edge "
            f"type, got {type(scorer).__name__}"
        )


def _frozen(scorer: Scorer | None) -> Scorer | None:
    scorer = unwrapped(scorer)
    if not isinstance(scorer, nn.Module):
        return scorer
    copied: nn.Module = copy.deepcopy(scorer).eval()
    return copied.cpu().requires_grad_(False)  # where the embeddings of a refresh are


def _in_eval_mode(scorer: Scorer | None) -> Scorer | None:
    """A function whose modules are in eval mode in each call; others as they are."""
    if scorer is None or scorer is dot_score or isinstance(scorer, nn.Module):
        return scorer
    function, modules = scorer, modules_behind(scorer)

    def called(h_query: Tensor, h_candidate: Tensor) -> Tensor:
        with eval_mode(modules):
            return function(h_query, h_candidate)

    return called


def rows_by_type(
    nodes: NodeIds, relations: Mapping[EdgeType, Relation]
) -> dict[EdgeType, Tensor | None]:
    """The rows of each edge type that are meant by ids of source nodes.

    Args:
        nodes: integer ids, shape [B], or a dict of those by source node type where there are
            several.
        relations: the edge types that are held.

    Returns:
        Sorted and distinct ids, int64, none for edge types of other sources.

    Raises:
        ValueError: if they are no source nodes.
    """
    sources = {etype[0]: relation.known.num_src for etype, relation in relations.items()}
    if not isinstance(nodes, Mapping) and len(sources) == 1:
        nodes = dict.fromkeys(sources, nodes)
    if not isinstance(nodes, Mapping) or not nodes.keys() <= sources.keys():
        given = list(nodes) if isinstance(nodes, Mapping) else type(nodes).__name__
        raise ValueError(
            f"nodes: expected a dict of ids by source node type, of {sorted(sources)}, got {given}"
        )
    found = {}
    for ntype, ids in nodes.items():
        try:
            check_ids("nodes", ids, sources[ntype], f"integer ids of type {ntype!r}")
        except TypeError as error:
            raise ValueError(str(error)) from None
        found[ntype] = torch.unique(ids.cpu().long())
    none = torch.empty(0, dtype=torch.int64)
    return {etype: found.get(etype[0], none) for etype in relations}
