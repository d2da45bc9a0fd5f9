"""`Relation`: what a sampler that follows an encoder holds for one edge type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dgl_dmns.core import (
    CPU,
    MOST_PASSES,
    CandidateTable,
    DiffusionGenerator,
    EdgeType,
    Folder,
    KnownEdges,
    PoolSettings,
    RowDraws,
    Scorer,
    Turns,
    carry_over,
    row_sizes,
)
from dgl_dmns.samplers.callables import called_on, frozen, in_eval_mode
from dgl_dmns.samplers.graphs import known_edges
from dgl_dmns.samplers.method import Ends, Method
from dgl_dmns.samplers.settings import checked_device
from dgl_dmns.samplers.shares import Share
from dgl_dmns.samplers.trainers import RanksOfMachine, Trainers

__all__ = ["Relation", "version_of"]

_SENT = ("etype", "folder", "groups", "alike", "rows", "share")  # to workers, beside the method's


class Relation:
    """One edge type: its known edges, candidate table, method, scorer and random state.

    A row of the table has a group for each edge of its query in the passes between two refreshes,
    evenly fewer where that is more than it may take; the uniform share of the negatives is drawn in
    the call, and never twice.
    """

    def __init__(
        self,
        g: Any,
        etype: EdgeType,
        k: int,
        settings: PoolSettings,
        groups: int,  # that rows have on average, at most
        seed: int,
        scorer: Scorer | None,
        method: Callable[[KnownEdges, int], Method],  # made for known edges and a seed
        *,
        alike: bool = False,  # whether all rows have so many, for queries that are drawn alike
        folder: Folder | None = None,  # for files; None is shared memory
        share: Share | None = None,  # of the sources; None is all
        candidates: Tensor | None = None,  # ids of destinations, ascending; None is all
        trainers: Trainers | None = None,  # who refresh together
        device: torch.device = CPU,  # of queries that are looked up there
    ) -> None:
        self.etype = etype
        self.folder = folder
        self.groups = groups
        self.share = share
        self.pool, self.device = settings.pool, device
        self.ranks = trainers if isinstance(trainers, RanksOfMachine) else None
        if share is None:
            known = known_edges(g, etype, folder, candidates=candidates)
        else:
            known = share.known_edges(g, folder)
        self.method = method(known, seed)
        self.alike = alike or not self.method.rebuilds_rows  # chains are carried on alike
        if self.ranks is not None and not self.method.rebuilds_rows:
            raise ValueError(
                "one_table: the table of this sampler holds chains, which each rank carries on for "
                "itself; leave it out"
            )
        checked_device(device, share is not None)
        if device != CPU and not self.method.rebuilds_rows:
            raise ValueError("device: chains are kept on the CPU; leave it out")
        table = self._table(known, self.sizes(known, 1), settings.hard(k))
        self.rows = RowDraws(known, table, self._turns(known, 1), k, settings.uniform_share)
        self._there: tuple[RowDraws, RowDraws] | None = None  # the rows, and those on a device
        self.scorer = scorer
        self.random = torch.Generator().manual_seed(seed)

    @property
    def known(self) -> KnownEdges:
        """The known edges."""
        return self.rows.known

    @property
    def table(self) -> CandidateTable:
        """The candidates that are not uniform."""
        return self.rows.table

    @property
    def k(self) -> int:
        """Negatives per edge."""
        return self.rows.k

    @property
    def model(self) -> DiffusionGenerator | None:
        """The diffusion model; None before a refresh, and where the rule needs none."""
        method: Method | None = self.method  # none in copies
        return None if method is None else method.model

    @property
    def nodes(self) -> int | tuple[int, int]:
        """Number of nodes, or of source and destination nodes where those are of two types."""
        if self.known.exclude_self:
            return self.known.num_src
        return self.known.num_src, self.known.num_dst

    @property
    def counts(self) -> tuple[int, int]:
        """Number of source and of destination nodes in the graph."""
        if self.share is not None:
            return self.share.counts
        return self.known.num_src, self.known.num_dst

    @property
    def passes(self) -> int:
        """Passes over the known edges that rows are made for."""
        return 1 if self.rows.turns is None else self.rows.turns.passes

    def sizes(self, known: KnownEdges, passes: int) -> Tensor:
        """Groups of every row for so many passes over the known edges, shape [N], int64."""
        if self.alike:
            return torch.full((known.num_src,), self.groups)
        return row_sizes(known.degrees() * passes, self.groups * known.num_src)

    def _table(self, known: KnownEdges, sizes: Tensor, k: int) -> CandidateTable:
        if self.ranks is None:
            return CandidateTable(sizes, k, folder=self.folder)
        return self.ranks.table(known, sizes, k, self.folder)

    def _turns(self, known: KnownEdges, passes: int) -> Turns | None:
        if self.alike:
            return None
        turns = Turns(known, passes)
        turns.share("the turns of edges take", self.folder)
        return turns

    def make_last(self, passes: int) -> None:
        """Make empty rows that last for so many passes, unless they do."""
        passes = min(passes, MOST_PASSES)
        if passes == self.passes or self.alike:
            return
        before, sizes = self.table, self.sizes(self.known, passes)
        table = self._table(self.known, sizes, before.k)
        self.rows = replace(self.rows, table=table, turns=self._turns(self.known, passes))
        before.retire()

    def rows_on(self, device: torch.device) -> RowDraws:
        """The rows, for queries on a device."""
        if device.type == "cpu":
            return self.rows
        if self._there is None or self._there[0] is not self.rows:
            self._there = self.rows, self.rows.on(device)
        return self._there[1]

    def taken_over(self) -> None:
        """Forget copies on a device, since a state was loaded into what they are copies of."""
        self._there = None

    def turns(self) -> Tensor | None:
        """A copy of the counts of turns, on the CPU, of where they are counted."""
        here, there = self._there or (None, self.rows)
        rows = there if here is self.rows else self.rows
        return None if rows.turns is None else rows.turns.asked.to("cpu", copy=True)

    def over(self, function: Callable[..., Tensor], src: Tensor, *others: Tensor) -> Tensor:
        """What a function makes of the rows of sources [P], see `Share.over`."""
        if self.share is None:
            return function(src, *others)
        return self.share.over(function, src, *others)

    def rows_of(self, src: Tensor) -> Tensor:
        """The rows of those sources [B] that are held."""
        if self.share is None:
            return src
        row, held = self.share.rows(src)
        return row[held]

    def ends(self, h: Mapping[str, Any], *, beside: bool = False) -> Ends:
        """What a refresh from embeddings by node type has, with the scorer as it is now.

        In a refresh ``beside`` the training the modules that a function as scorer calls keep their
        modes, and random numbers come from a source of its own, seeded by one draw from that held.
        """
        source, _, destination = self.etype
        scorer, random = frozen(self.scorer), self.random
        if beside:
            seed = int(torch.randint(1 << 62, (), generator=random))
            random = torch.Generator().manual_seed(seed)
        else:
            scorer = in_eval_mode(scorer)
        scorer = called_on(self.device, scorer)
        ends = h[source], h[destination]
        if self.share is not None:
            ends = self.share.embeddings(*ends, self.pool, random)
        return Ends(self.known, self.table, *ends, scorer, random)

    def on(self, g: Any, groups: int) -> Relation:
        """The same for a graph that has changed; this one stays as it is, for who reads it.

        Scorer and random state are shared. The table is of the same version, with what has become
        an edge replaced, in ``groups`` groups a row on average, at most.
        """
        known = known_edges(g, self.etype, self.folder, candidates=self.known.candidates)
        made = Relation.__new__(Relation)
        vars(made).update(vars(self), groups=groups, method=self.method.on(known))
        table = carry_over(self.table, known, made.sizes(known, self.passes), self.random)
        turns = self._turns(known, self.passes)
        made.rows = replace(self.rows, known=known, table=table, turns=turns)
        return made

    def __getstate__(self) -> dict[str, Any]:
        """What workers and spawned processes get: what a look-up needs."""
        method: Method | None = self.method
        method = None if method is None else method.sent()
        held = {name: vars(self)[name] for name in _SENT}
        return {**held, "method": method, "scorer": None, "random": None, "_there": None}

    def check_call(self, g: Any, src: Tensor) -> None:
        """Refuse sources [B] that the sampler does not know, and a graph that lacks candidates."""
        source, _, destination = self.etype
        sources = self.counts[0]
        grown = int(g.num_nodes(source)) > sources  # others have no such ids
        strange = grown and bool(src.numel()) and int(src.max()) >= sources
        if strange or int(g.num_nodes(destination)) < self.known.num_dst:
            ntype = source if strange else destination
            held = sources if strange else self.known.num_dst
            raise ValueError(
                f"g: the sampler was made for {held} nodes of type {ntype!r}, the graph has "
                f"{g.num_nodes(ntype)}; hand a graph that has grown to update_graph(g), and make a "
                "new loader for it"
            )

    def check_growth(self, g: Any) -> None:
        """Refuse a graph without an edge of this type, or with fewer nodes of its ends."""
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


def version_of(relations: Mapping[EdgeType, Relation]) -> int:
    """How many refreshes the negatives of all of them have seen; readable in workers."""
    return min(relation.table.version for relation in relations.values())
