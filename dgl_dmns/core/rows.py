"""Drawing from rows: the hard negatives of a table, and uniform ones drawn in the call.

A share ``pi`` of the negatives of a query is uniform over its admissible nodes. These need no
table: they are drawn fresh in every call. The others, which were chosen for the query, stand in its
row, a group for each edge, which are handed out in turn. Which negatives of edges are which depends
on the places of the edges in their call alone, so that it is known afterwards.

An edge has its **rank** among the known edges of its source. In the p-th pass since a table was
made it is given the group ``(rank + p * degree) mod size`` of the row: in each pass a different one
for each edge of the source, and in the passes that the row was made for, each group once before any
is given twice. What is counted is how often each edge has asked, a byte for each, in shared
memory: only the process that has the edge in its batch writes there, so no lock is needed, and
what is drawn does not depend on how many workers draw, or in which order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.sharing import Shareable
from dgl_dmns.core.table import NO_LEVEL, Candidates, CandidateTable

__all__ = ["MOST_PASSES", "RowDraws", "Turns", "row_sizes"]

MOST_PASSES = 255
"""Passes that rows can be made for: what a byte can count."""

_LOOKED_AT = 8  # groups of a row
_GOLDEN = (5**0.5 - 1) / 2  # whose multiples are spread evenly over [0, 1), without a period


def row_sizes(need: Tensor, most: int) -> Tensor:
    """Groups of every row: what it needs, or evenly less if that is more than there may be.

    Args:
        need: groups that each query is drawn from between two refreshes, shape [N], int64.
        most: groups of all rows together, at least N.

    Returns:
        Numbers of groups of at least 1, shape [N], int64.
    """
    extra = (need - 1).clamp(min=0)
    wanted, room = int(extra.sum()), max(0, most - need.numel())
    if wanted <= room:
        return extra + 1
    return (extra.double() * (room / wanted)).long() + 1


class Turns(Shareable):
    """Counts how often each known edge has asked for negatives.

    Args:
        known: the known edges.
        passes: passes over them that rows are made for, up to `MOST_PASSES`.

    Attributes:
        asked: uint8 [E + 1], passes that each edge has asked in, modulo ``passes``, and at the end
            a place for pairs that are no edges; empty for 1.
    """

    asked: Tensor

    def __init__(self, known: KnownEdges, passes: int = 1) -> None:
        super().__init__()
        self.known = known
        self.passes = max(1, min(passes, MOST_PASSES))
        counted = known.indices.numel() + 1 if self.passes > 1 else 0
        asked = torch.zeros(counted, dtype=torch.uint8, device=known.indices.device)
        self.register_buffer("asked", asked)

    def take(self, src: Tensor, dst: Tensor, number: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The next turn of each pair of query and destination [B], counted as taken.

        ``number`` is what `KnownEdges.find` takes.

        Returns:
            Turns from 0 on, int64 [B], to be taken modulo the size of the row; and which pairs are
            known edges, bool [B]: the others have no turn.
        """
        place, found = self.known.find(src, dst, number)
        start = self.known.indptr.index_select(0, src)
        turn = place - start
        if self.passes > 1:
            degree = self.known.indptr.index_select(0, src + 1) - start
            counted = torch.where(found, place, self.asked.numel() - 1)
            times = self.asked.index_select(0, counted)
            self.asked[counted] = torch.where(times + 1 < self.passes, times + 1, 0)
            turn += times.long() * degree
        return turn, found


class LiveTable(CandidateTable):
    """The live version of a table, copied to a device for look-ups there, when it is asked for.

    It takes ``4 * K`` bytes a group there, and 8 a query.
    """

    def __init__(self, table: CandidateTable, device: torch.device) -> None:
        Shareable.__init__(self)
        self.table = table
        self.register_buffer("start", table.start.to(device))
        self._held = -1

    @property
    def version(self) -> int:
        return self.table.version

    def _cells_at(self, place: Tensor, count: bool = True) -> Tensor:
        while self._held != (version := self.version):
            self.cells = self.table.cells[version % 2].to(self.start.device)
            if self.version == version:  # what was read was not written to meanwhile
                self._held = version
        if count:
            self.table.drawn[version % 2] += place.numel()
        return self.cells.index_select(0, place)


@dataclass(frozen=True, eq=False)
class RowDraws:
    """Draws k negatives for queries, from their rows and uniformly.

    Args:
        known: the known edges.
        table: the rows, of groups of as many as may be hard of the k negatives.
        turns: whose turn it is; None for random groups of a row.
        k: negatives of an edge.
        uniform_share: share ``pi`` of uniform negatives, in [0, 1].
    """

    known: KnownEdges
    table: CandidateTable
    turns: Turns | None
    k: int
    uniform_share: float

    def draw(
        self,
        src: Tensor,
        dst: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Candidates:
        """The k negatives of edges, those of the table first.

        Args:
            src: query ids, shape [B], int64.
            dst: the edges' destinations, shape [B], int64. A known edge gets the group whose turn
                it is; every other pair, and each query without ``dst``, a random one.
            generator: source of the choice and of the uniform negatives.

        Returns:
            Candidates of shape [B, k], ids as int64.
        """
        ids, level = self.table.look_up(self._places(src, dst, generator))
        return self._mixed(src, ids, level, generator, _numbers(src, dst, generator))

    def draw_ids(
        self,
        src: Tensor,
        dst: Tensor | None = None,
        number: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The ids that `draw` would return, shape [B, k], at a lower price.

        Edges are found faster by their ``number`` [B], see `KnownEdges.find`.
        """
        ids = self.table.ids_at(self._places(src, dst, generator, number))
        return self._mixed(src, ids, None, generator, _numbers(src, dst, generator)).ids

    def draw_one(self, src: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One negative of each query, uniform with probability ``pi``; shape [B], int64."""
        hard = self.table.ids_at(self._places(src, None, generator))[:, 0]
        if not self.uniform_share:
            return hard
        coin = torch.rand(src.shape, generator=generator, dtype=torch.float32, device=src.device)
        fresh = self.known.uniform(src, 1, generator=generator).squeeze(1)
        return torch.where(coin < self.uniform_share, fresh, hard)

    def on(self, device: torch.device) -> RowDraws:
        """The same for queries that are on a device, where nothing waits for it."""
        known, turns = self.known.on(device), None
        if self.turns is not None:
            turns = Turns(known, self.turns.passes)
            turns.asked.copy_(self.turns.asked)
        return replace(self, known=known, table=LiveTable(self.table, device), turns=turns)

    def chosen(self, places: Tensor) -> Tensor:
        """Which negatives were chosen for their queries, and are not uniform; bool [B, k].

        Args:
            places: of edges in their call, shape [B], int64.
        """
        whole, more = self._chosen(places)
        slot = torch.arange(self.k, device=places.device)
        return (slot < whole) | ((slot == whole) & more.unsqueeze(1))

    def _chosen(self, places: Tensor) -> tuple[int, Tensor]:
        """How many of each edge are, and for which edges [B] one more.

        ``(1 - pi) k`` on average, evenly along a call.
        """
        wanted = round((1 - self.uniform_share) * self.k, 9)
        whole = int(wanted)
        return whole, ((places + 1).double() * _GOLDEN).frac() < wanted - whole

    def look(self, query: Tensor, generator: torch.Generator) -> Candidates:
        """What eight calls hand out for queries [Q], without taking any turn: [Q, 8 k]."""
        parts = []
        for at, place in enumerate(self.first_places(query).unbind(1)):
            ids, level = self.table.look_up(place, count=False)
            numbers = torch.arange(query.numel()) * _LOOKED_AT + at
            parts.append(self._mixed(query, ids, level, generator, numbers))
        return Candidates(*(torch.cat(field, dim=1) for field in zip(*parts)))

    def first_turns(self, src: Tensor, dst: Tensor, generator: torch.Generator) -> Candidates:
        """What edges [B] are given in the first pass over them, without taking any turn: [B, k]."""
        rows = self if self.turns is None else replace(self, turns=Turns(self.known))
        ids, level = self.table.look_up(rows._places(src, dst, generator), count=False)
        return self._mixed(src, ids, level, generator, _numbers(src, dst, generator))

    def first_places(self, query: Tensor) -> Tensor:
        """Places of the first eight groups of some rows, shorter ones over again; shape [Q, 8]."""
        within = torch.arange(_LOOKED_AT) % self.table.sizes(query).unsqueeze(1)
        return self.table.start[query].unsqueeze(1) + within

    def _places(
        self,
        src: Tensor,
        dst: Tensor | None,
        generator: torch.Generator | None,
        number: Tensor | None = None,
    ) -> Tensor:
        if dst is None or self.turns is None:
            return self.table.random_places(src, generator)
        turn, known = self.turns.take(src, dst, number)
        start = self.table.start.index_select(0, src)
        size = self.table.start.index_select(0, src + 1) - start
        place = start + turn % size
        if place.device.type != "cpu":
            return torch.where(known, place, self.table.random_places(src, generator))
        if not bool(known.all()):
            other = (~known).nonzero().squeeze(1)
            place[other] = self.table.random_places(src[other], generator)
        return place

    def _mixed(
        self,
        src: Tensor,
        ids: Tensor,
        level: Tensor | None,
        generator: torch.Generator | None,
        places: Tensor,  # in the call [B]
    ) -> Candidates:
        """K negatives [B, k] from groups [B, H] of the table and fresh uniform ones.

        Without levels, what is returned in their place has no meaning.
        """
        if not self.uniform_share:
            return Candidates(ids, ids if level is None else level)
        whole, more = self._chosen(places)
        fresh = self.known.uniform(src, self.k - whole, generator=generator)
        if ids.shape[1] > whole:
            fresh[:, 0] = torch.where(more, ids[:, whole], fresh[:, 0])
        mixed = torch.cat([ids[:, :whole], fresh], dim=1)
        if level is None:
            return Candidates(mixed, mixed)
        tags = torch.full_like(mixed, NO_LEVEL, dtype=torch.uint8)
        tags[:, :whole] = level[:, :whole]
        if ids.shape[1] > whole:
            tags[:, whole] = torch.where(more, level[:, whole], NO_LEVEL)
        return Candidates(mixed, tags)


def _numbers(src: Tensor, dst: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Places of edges in their call [B]; random ones for queries alone."""
    if dst is None:
        return torch.randint(1 << 30, src.shape, generator=generator, device=src.device)
    return torch.arange(src.numel(), device=src.device)
