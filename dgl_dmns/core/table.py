"""The candidate table: ready negatives per query node, read by a look-up.

A row holds groups of K candidates, as many groups as its query is drawn from between two refreshes;
the K of a group were drawn together, without replacement, from one pool. Beside each candidate
stands the hardness level it came from. Rows of different length lie one after the other, so that a
group is named by its **place** among all groups of the table.

Readers may run in other threads and processes: all tensors live in shared memory, a table has two
buffers, and the version (a counter) says which one is live: ``version % 2``. A writer fills the
other buffer and then raises the version; a look-up during which the version has moved is repeated,
so each one reads a single version. Between the first row of a new version and its publication the
hidden buffer is marked as unfinished, and nothing is read from it.

A table takes ``10 * K`` bytes a group: two buffers of 4 (id) and 1 (level); and 8 bytes a query.
Where that is more than the memory, it may lie in a file that is mapped into memory, of which the
system keeps those pages in memory that are in use.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dgl_dmns.core.sharing import Folder, Shareable, check_shared_room, share

__all__ = ["BYTES_PER_CANDIDATE", "NO_LEVEL", "CandidateTable", "Candidates"]

BYTES_PER_CANDIDATE = 10
"""Of a table: two buffers with an id (4) and a level (1)."""

NO_LEVEL = 255
"""Level tag of a candidate that no hardness level claims."""


class Candidates(NamedTuple):
    """Candidates for B queries.

    Attributes:
        ids: destination ids, shape [B, K] or [B, G, K], int32 in the table, int64 when drawn.
        level: index of the hardness level, same shape, uint8; `NO_LEVEL` for none.
    """

    ids: Tensor
    level: Tensor


_FIELDS = {"ids": torch.int32, "level": torch.uint8}


class CandidateTable(Shareable):
    """A double-buffered table of candidates in shared memory, or in a file mapped into memory.

    Args:
        sizes: groups in the row of every query, at least 1, shape [N], int64.
        k: candidates K in a group.
        folder: where not None, the table lies in a new file there. It is removed with the table,
            or when its process ends; a killed one leaves it.

    Raises:
        ValueError: if there is no row, or a size is below 1.
        MemoryError: if shared memory has no room for the table.
        OSError: if the folder is missing, cannot be written, or has no room for the file.
    """

    start: Tensor
    ids: Tensor
    level: Tensor
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
            for name, dtype in _FIELDS.items():
                self.register_buffer(name, torch.zeros(shape, dtype=dtype).share_memory_())
        else:
            layout = {name: (dtype, shape) for name, dtype in _FIELDS.items()}
            self._lie_in(folder, layout, "dgl-dmns-table-")
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
        """Say to whoever else holds this empty table that another one has taken its place."""
        self.counter.fill_(-1)

    @property
    def queries(self) -> int:
        """Number of rows N."""
        return self.start.numel() - 1

    @property
    def groups(self) -> int:
        """Number of groups of all rows together."""
        return self.ids.shape[1]

    @property
    def k(self) -> int:
        """Candidates in a group."""
        return self.ids.shape[2]

    def sizes(self, rows: Tensor | None = None) -> Tensor:
        """Groups in some rows, or in all; int64, of the shape of ``rows``, or [N]."""
        if rows is None:
            return self.start[1:] - self.start[:-1]
        return self.start[rows + 1] - self.start[rows]

    def write(self, rows: Tensor, candidates: Candidates) -> None:
        """Write rows of the hidden buffer.

        Args:
            rows: query ids, shape [B], int64.
            candidates: tensors of shape [B, G, K], G at least the size of the largest of the rows;
                each row takes its first ones.
        """
        within = torch.arange(candidates.ids.shape[1])
        place = self.start[rows].unsqueeze(1) + within
        inside = within < self.sizes(rows).unsqueeze(1)
        self.write_at(place[inside], Candidates(*(field[inside] for field in candidates)))

    def write_at(self, place: Tensor, candidates: Candidates) -> None:
        """Write groups of the hidden buffer: [P, K], at places [P]."""
        self.unfinished.fill_(1)
        for hidden, field in zip(self.hidden(), candidates):
            hidden[place] = field.to(hidden.dtype)

    def keep(self) -> None:
        """Copy the live buffer to the hidden one, for a version that differs in some rows only."""
        self.unfinished.fill_(1)
        for hidden, live in zip(self.hidden(), self.current()):
            hidden.copy_(live)

    def publish(self) -> None:
        """Make the hidden buffer the live one."""
        self.drawn[(self.version + 1) % 2] = 0
        self.counter += 1
        self.unfinished.fill_(0)

    def withdraw(self, version: int) -> None:
        """Go back to the version before the last publication, if there was one since.

        Args:
            version: the one to go back to; what was written since counts as unfinished.
        """
        if self.version != version:
            self.unfinished.fill_(1)
            self.counter.fill_(version)

    def random_places(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        """The place of a random group of each row; shape and dtype of ``rows``, int64."""
        size = self.sizes(rows)
        share = torch.rand(size.shape, generator=generator, dtype=torch.float64)
        return self.start[rows] + (share * size).long().minimum(size - 1)

    def look_up(self, place: Tensor, *, count: bool = True) -> Candidates:
        """Groups of the live version, ids as int64.

        Args:
            place: their places, shape [B], int64.
            count: whether they count as handed out.

        Returns:
            Candidates of shape [B, K], all of one version.
        """
        while True:
            version = self.version
            ids, level = (field[version % 2].index_select(0, place) for field in self._fields())
            # After a publication the buffer just read may be overwritten already: look again.
            if self.version == version:
                if count:
                    self.drawn[version % 2] += place.numel()
                return Candidates(ids.long(), level)

    def ids_at(self, place: Tensor) -> Tensor:
        """The ids that `look_up` would return, at a lower price: what a call needs."""
        while True:
            version = self.version
            ids = self.ids[version % 2].index_select(0, place)
            if self.version == version:
                self.drawn[version % 2] += place.numel()
                return ids.long()

    def _fields(self) -> tuple[Tensor, Tensor]:
        return self.ids, self.level

    def current(self) -> Candidates:
        """The live buffers, shape [S, K] for S groups; views, not copies."""
        return Candidates(*(field[self.version % 2] for field in self._fields()))

    def hidden(self) -> Candidates:
        """The buffers that `write` fills and `publish` makes live, shape [S, K]; views."""
        return Candidates(*(field[(self.version + 1) % 2] for field in self._fields()))

    def spread(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All groups of some rows.

        Args:
            rows: query ids, shape [B], int64.

        Returns:
            Of each group, the position of its row in ``rows``, and its place; int64, shape [P]
            each.
        """
        size = self.sizes(rows)
        owner = torch.repeat_interleave(torch.arange(rows.numel()), size)
        first = self.start[rows] - (size.cumsum(0) - size)
        return owner, torch.arange(owner.numel()) + first[owner]

    def handed_out(self, version: int) -> float:
        """How many times each candidate was handed out on average, by all processes together.

        Processes that draw at the same moment may count one of them only.

        Args:
            version: the live one, or the one before.
        """
        return int(self.drawn[version % 2]) / self.groups

    def holds(self, src: Tensor, dst: Tensor) -> Tensor:
        """Which pairs stand in the live version, or in the one before, as far as that is whole.

        Loaders draw ahead, so that a pair may stem from the version before the live one.

        Args:
            src: query ids, shape [P], int64.
            dst: candidate ids, shape [P], int64.

        Returns:
            Booleans, shape [P].
        """
        owner, place = self.spread(src)
        found = torch.zeros(src.shape, dtype=torch.bool)
        whole = (self.current(),) if self.unfinished else (self.current(), self.hidden())
        for buffer in whole:
            hit = (buffer.ids[place] == dst[owner].unsqueeze(1)).any(1)
            found[owner[hit]] = True
        return found

    def extra_repr(self) -> str:  # noqa: D102
        return f"queries={self.queries}, groups={self.groups}, k={self.k}, version={self.version}"
