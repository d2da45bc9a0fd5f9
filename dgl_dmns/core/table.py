"""The candidate table: ready negatives per query node, read by a look-up.

A row holds groups of K candidates, as many groups as its query is drawn from between two refreshes;
the K of a group were drawn together, without replacement, from one pool. The upper 4 of the 32 bits
of a candidate are the hardness level it came from. Rows of different length lie one after the
other; a group is named by its **place** among all groups of the table.

Readers may run in other threads and processes: all tensors live in shared memory, a table has two
buffers, and the version (a counter) says which one is live: ``version % 2``. A writer fills the
other buffer and then raises the version; a look-up during which the version has moved is repeated,
so each one reads a single version. Between the first row of a new version and its publication the
hidden buffer is marked as unfinished, and nothing is read from it.

A table takes ``8 * K`` bytes a group: two buffers of 4 bytes; and 8 bytes a query. It
may lie in a mapped file, of which the system keeps those pages in memory that are in use.

A table never holds an empty slot or a known edge while an admissible node exists: slots that no
proposal could fill get uniform admissible nodes, distinct within a group as long as there are
enough, with repeats if a query has fewer than K (`fill_open_slots`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.openslots import fill_open_slots
from dgl_dmns.core.sharing import Folder, Shareable, check_shared_room, share

__all__ = [
    "BYTES_PER_CANDIDATE",
    "MOST_LEVELS",
    "MOST_NODES",
    "NO_LEVEL",
    "CandidateTable",
    "Candidates",
    "carry_over",
]

BYTES_PER_CANDIDATE = 8
"""Of a table: two buffers with an id and a level in 4 bytes."""

MOST_NODES = 1 << 28
"""Nodes whose ids fit a table."""

MOST_LEVELS = 15
"""Hardness levels that fit a table."""

NO_LEVEL = 255
"""Level tag of a candidate that no hardness level claims."""

_BLOCK = 4096  # rows at a time


class Candidates(NamedTuple):
    """Candidates for B queries.

    Attributes:
        ids: destination ids, shape [B, K] or [B, G, K], int32 from the table, int64 when drawn.
        level: index of the hardness level, same shape, uint8; `NO_LEVEL` for none.
    """

    ids: Tensor
    level: Tensor


def _packed(candidates: Candidates) -> Tensor:
    """Candidates as a table holds them, int32 of their shape: the level in the upper 4 bits."""
    return candidates.ids.int() | (candidates.level.int() << 28)


def _unpacked(cells: Tensor) -> Candidates:
    """Candidates that are held in cells of any shape, ids as int32."""
    level = (cells >> 28).bitwise_and_(MOST_LEVELS)
    level = level.masked_fill_(level == MOST_LEVELS, NO_LEVEL)
    return Candidates(cells & (MOST_NODES - 1), level.byte())


class CandidateTable(Shareable):
    """A double-buffered table of candidates in shared memory, or in a file mapped into memory.

    Args:
        sizes: groups in the row of every query, at least 1, shape [N], int64.
        k: candidates K in a group.
        folder: where the table lies in a new file, see `Shareable`; defaults to shared memory.

    Raises:
        ValueError: if there is no row, or a size is below 1.
        MemoryError: if shared memory has no room for the table.
        OSError: if the folder is missing, cannot be written, or has no room for the file.
    """

    start: Tensor
    cells: Tensor
    counter: Tensor
    unfinished: Tensor
    drawn: Tensor

    def __init__(self, sizes: Tensor, k: int, *, folder: Folder | None = None) -> None:
        super().__init__()
        if not sizes.numel() or int(sizes.min()) < 1 or k < 1:
            raise ValueError(
                f"sizes, k: expected at least one row, one group in each and one candidate, got "
                f"{sizes.numel()} rows, the smallest of {sizes.tolist()[:8]}, and k = {k}"
            )
        groups = int(sizes.sum())
        shape = (2, groups, k)
        if folder is None:
            check_shared_room(
                BYTES_PER_CANDIDATE * groups * k,
                f"a table of {groups} groups takes",
                "lower groups or k, set a budget with Resources(table_bytes=...), or keep the "
                "table in a file with Resources(table_folder=...)",
            )
            self.register_buffer("cells", torch.zeros(shape, dtype=torch.int32).share_memory_())
        else:
            self._lie_in(folder, {"cells": (torch.int32, shape)}, "dgl-dmns-table-")
        start = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        self.register_buffer("start", share(start, "the rows of a table take"))
        # Two tensors of their own: some torch versions do not send two views of one memory.
        for name in ("counter", "unfinished"):
            counter = torch.zeros(1, dtype=torch.int64)
            self.register_buffer(name, share(counter, "the version of a table takes"))
        # Groups handed out of either buffer, in all processes; no part of a state.
        drawn = share(torch.zeros(2, dtype=torch.int64), "the counts of a table take")
        self.register_buffer("drawn", drawn, persistent=False)

    @property
    def version(self) -> int:
        """How often a table was published; 0 means there is none yet.

        Raises:
            RuntimeError: in a process that has an empty table which another has replaced since.
        """
        version = int(self.counter)
        if version < 0:
            raise RuntimeError(
                "this worker was started before attach(every=...) or load_state_dict() made rows "
                "of another size; start the loader's workers after that"
            )
        return version

    def retire(self) -> None:
        """Tell whoever else holds this empty table that another one has taken its place."""
        self.counter.fill_(-1)

    @property
    def queries(self) -> int:
        """Number of rows N."""
        return self.start.numel() - 1

    @property
    def groups(self) -> int:
        """Number of groups of all rows together."""
        return self.cells.shape[1]

    @property
    def k(self) -> int:
        """Candidates in a group."""
        return self.cells.shape[2]

    def sizes(self, rows: Tensor | None = None) -> Tensor:
        """Groups in some rows, or in all; int64, of the shape of ``rows``, or [N]."""
        if rows is None:
            return self.start[1:] - self.start[:-1]
        return self.start[rows + 1] - self.start[rows]

    def write(self, rows: Tensor, candidates: Candidates, first: Tensor | None = None) -> None:
        """Write rows [B] of the hidden buffer: of groups [B, G, K], as many as a row has room for.

        From its group ``first`` [B] on, or from the start.
        """
        within = torch.arange(candidates.ids.shape[1])
        first = torch.zeros_like(rows) if first is None else first
        place = ((self.start[rows] + first).unsqueeze(1) + within).flatten()
        fields = [field.flatten(0, 1) for field in candidates]
        size = self.sizes(rows) - first
        if int(size.min()) < within.numel():
            inside = (within < size.unsqueeze(1)).flatten().nonzero().squeeze(1)
            place, *fields = (field.index_select(0, inside) for field in (place, *fields))
        self.write_at(place, Candidates(*fields))

    def write_at(self, place: Tensor, candidates: Candidates) -> None:
        """Write groups of the hidden buffer: [P, K], at places [P]."""
        self.unfinished.fill_(1)
        self.cells[(self.version + 1) % 2].index_copy_(0, place, _packed(candidates))

    def overwrite(self, place: Tensor, candidates: Candidates) -> None:
        """Replace groups of the live version, [P, K] at places [P], under its readers."""
        self.cells[self.version % 2].index_copy_(0, place, _packed(candidates))

    def keep(self) -> None:
        """Copy the live buffer to the hidden one, for a version that differs in some rows only."""
        self.unfinished.fill_(1)
        self.cells[(self.version + 1) % 2].copy_(self.cells[self.version % 2])

    def publish(self) -> None:
        """Make the hidden buffer the live one."""
        self.drawn[(self.version + 1) % 2] = 0
        self.counter += 1
        self.unfinished.fill_(0)

    def withdraw(self, version: int) -> None:
        """Go back to a version, if there was another since, whose buffer counts as unfinished."""
        if self.version != version:
            self.unfinished.fill_(1)
            self.counter.fill_(version)

    def random_places(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        """The place of a random group of each row; shape and dtype of ``rows``, int64."""
        size = self.sizes(rows)
        share = torch.rand(size.shape, generator=generator, dtype=torch.float64, device=size.device)
        return self.start[rows] + (share * size).long().minimum(size - 1)

    def look_up(self, place: Tensor, *, count: bool = True) -> Candidates:
        """Groups at places [B] of the live version: [B, K], ids as int64, all of one version."""
        ids, level = _unpacked(self._cells_at(place, count))
        return Candidates(ids.long(), level)

    def ids_at(self, place: Tensor) -> Tensor:
        """The ids that `look_up` would return, at a lower price: what a call needs."""
        return self._cells_at(place).bitwise_and_(MOST_NODES - 1).long()

    def _cells_at(self, place: Tensor, count: bool = True) -> Tensor:
        while True:
            version = self.version
            cells = self.cells[version % 2].index_select(0, place)
            # After a publication the buffer just read may be overwritten already: look again.
            if self.version == version:
                if count:
                    self.drawn[version % 2] += place.numel()
                return cells

    def current(self, place: Tensor | None = None) -> Candidates:
        """The live version: a copy of all S groups [S, K], or of those at places [..]: [.., K]."""
        return self._of_buffer(self.version % 2, place)

    def hidden(self, place: Tensor | None = None) -> Candidates:
        """As `current`, of what `write` fills and `publish` makes live."""
        return self._of_buffer((self.version + 1) % 2, place)

    def _of_buffer(self, which: int, place: Tensor | None) -> Candidates:
        return _unpacked(self.cells[which] if place is None else self.cells[which, place])

    def fields(self) -> dict[str, Tensor]:
        """A copy of all that is saved: ids and levels, [2, S, K], beside starts and version."""
        fields = {name: field.clone() for name, field in self.state_dict().items()}
        return {**_unpacked(fields.pop("cells"))._asdict(), **fields}

    def restore(self, fields: Mapping[str, Tensor]) -> None:
        """Take over what `fields` of a table with such rows gave, in place."""
        self.unfinished.fill_(1)
        for cells, ids, level in zip(self.cells, fields["ids"], fields["level"]):
            cells.copy_(_packed(Candidates(ids, level)))
        for name in ("start", "counter", "unfinished"):  # the mark of the hidden buffer comes last
            getattr(self, name).copy_(fields[name])

    def spread(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All P groups of some rows [B]: the position of its row and its place, int64 [P] each."""
        size = self.sizes(rows)
        owner = torch.repeat_interleave(torch.arange(rows.numel()), size)
        first = self.start[rows] - (size.cumsum(0) - size)
        return owner, torch.arange(owner.numel()) + first[owner]

    def handed_out(self, version: int) -> float:
        """How many times each candidate of a version, live or before, was handed out on average.

        By all processes together; of those that draw at the same moment one may be counted only.
        """
        return int(self.drawn[version % 2]) / self.groups

    def holds(self, src: Tensor, dst: Tensor) -> Tensor:
        """Which pairs [P] stand in the live version or, as far as it is whole, the one before."""
        owner, place = self.spread(src)
        found = torch.zeros(src.shape, dtype=torch.bool)
        whole = (self.current,) if self.unfinished else (self.current, self.hidden)
        for groups in whole:
            hit = (groups(place).ids == dst[owner].unsqueeze(1)).any(1)
            found[owner[hit]] = True
        return found

    def extra_repr(self) -> str:  # noqa: D102
        return f"queries={self.queries}, groups={self.groups}, k={self.k}, version={self.version}"


def carry_over(
    table: CandidateTable, known: KnownEdges, sizes: Tensor, generator: torch.Generator | None
) -> CandidateTable:
    """A table for a graph that has changed, of the version and with the rows of another one.

    Rows that have grown repeat their groups, those that have shrunk keep the first ones. Slots that
    hold an edge by now, and the rows of new queries, get uniform admissible nodes.

    Args:
        table: the table so far, of the first queries of the new graph.
        known: the known edges of the new graph, which may have more queries.
        sizes: groups of the rows of the new table, shape [N], int64.
        generator: source of the uniform nodes.
    """
    folder = None if table.path is None else table.path.parent
    new = CandidateTable(sizes, table.k, folder=folder)
    if not table.version:
        return new
    new.counter.copy_(table.counter)
    new.unfinished.copy_(table.unfinished)
    old = min(table.queries, known.num_src)
    before = table.sizes()
    for rows in torch.arange(known.num_src).split(_BLOCK):
        owner, place = new.spread(rows)
        here = rows[owner]
        kept = here < old
        mine = here[kept]
        source = table.start[mine] + (place[kept] - new.start[mine]) % before[mine]
        new.cells[:, place[kept]] = table.cells[:, source]
        ids, level = new.current(place)
        drawn = ids.long().unsqueeze(1)
        hole = known.contains(here.view(-1, 1, 1), drawn)
        hole[~kept] = True
        ids = fill_open_slots(drawn, hole, known, here, generator).squeeze(1)
        level.masked_fill_(hole.squeeze(1), NO_LEVEL)
        new.overwrite(place, Candidates(ids, level))
    return new
