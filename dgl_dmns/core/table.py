"""The candidate table: ready negatives per query node, read by a look-up.

A row holds G groups of K candidates; the K of a group were drawn together, without replacement,
from one pool. A draw for an edge picks one group of its source's row. Beside each candidate stand
the log ratio of the distribution it was drawn from and the hardness level it came from.

Readers may run in other threads and processes: all tensors live in shared memory, a table has two
buffers, and the version (a counter) says which one is live: ``version % 2``. A writer fills the
other buffer and then raises the version; a look-up during which the version has moved is repeated,
so each one reads a single version. Between the first row of a new version and its publication the
hidden buffer is marked as unfinished, and nothing is read from it.

A table takes ``14 * G * K`` bytes a query: two buffers of 4 (id), 2 (log ratio) and 1 (level).
Where that is more than the memory, it may lie in a file that is mapped into memory, of which the
system keeps those pages in memory that are in use.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dgl_dmns.core.sharing import Folder, Shareable, check_shared_room, share

__all__ = ["BYTES_PER_CANDIDATE", "NO_LEVEL", "CandidateTable", "Candidates"]

BYTES_PER_CANDIDATE = 14
"""Of a table: two buffers with an id (4), a log ratio (2) and a level (1)."""

NO_LEVEL = 255
"""Level tag of a candidate that no hardness level claims."""

_HALF = torch.finfo(torch.float16).max


class Candidates(NamedTuple):
    """Candidates for B queries.

    Attributes:
        ids: destination ids, shape [B, K] or [B, G, K], int32 in the table, int64 when drawn.
        log_ratio: natural log of drawn over uniform probability, same shape, float16; NaN where the
            rule has no tractable distribution.
        level: index of the hardness level, same shape, uint8; `NO_LEVEL` for none.
    """

    ids: Tensor
    log_ratio: Tensor
    level: Tensor


_FIELDS = {"ids": torch.int32, "log_ratio": torch.float16, "level": torch.uint8}


class CandidateTable(Shareable):
    """A double-buffered table of candidates in shared memory, or in a file mapped into memory.

    Args:
        queries: number of query nodes N.
        groups: groups G in a row.
        k: candidates K in a group.
        folder: where not None, the table lies in a new file there, of ``14 * N * G * K`` bytes. It
            is removed with the table, or when its process ends; a killed one leaves it.

    Raises:
        ValueError: if a size is below 1.
        MemoryError: if shared memory has no room for the table.
        OSError: if the folder is missing, cannot be written, or has no room for the file.
    """

    ids: Tensor
    log_ratio: Tensor
    level: Tensor
    counter: Tensor
    unfinished: Tensor
    drawn: Tensor

    def __init__(self, queries: int, groups: int, k: int, *, folder: Folder | None = None) -> None:
        super().__init__()
        if min(queries, groups, k) < 1:
            raise ValueError(
                f"queries, groups, k: expected at least 1, got {queries}, {groups}, {k}"
            )
        shape = (2, queries, groups, k)
        if folder is None:
            check_shared_room(
                BYTES_PER_CANDIDATE * queries * groups * k,
                f"a table of {groups} groups takes",
                "lower groups or k, set a budget with Resources(table_bytes=...), or keep the "
                "table in a file with Resources(table_folder=...)",
            )
            for name, dtype in _FIELDS.items():
                self.register_buffer(name, torch.zeros(shape, dtype=dtype).share_memory_())
        else:
            layout = {name: (dtype, shape) for name, dtype in _FIELDS.items()}
            self._lie_in(folder, layout, "dgl-dmns-table-")
        # Two tensors of their own: some torch versions do not send two views of one memory.
        for name in ("counter", "unfinished"):
            counter = torch.zeros(1, dtype=torch.int64)
            self.register_buffer(name, share(counter, "the version of a table takes"))
        # Groups handed out of either buffer, in all processes; no part of a state.
        drawn = share(torch.zeros(2, dtype=torch.int64), "the counts of a table take")
        self.register_buffer("drawn", drawn, persistent=False)

    @property
    def version(self) -> int:
        """How often a table was published; 0 means there is none yet."""
        return int(self.counter)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Queries, groups and candidates in a group."""
        _, queries, groups, k = self.ids.shape
        return queries, groups, k

    def write(self, rows: Tensor, candidates: Candidates) -> None:
        """Write rows of the hidden buffer.

        Args:
            rows: query ids, shape [B], int64.
            candidates: tensors of shape [B, G, K].
        """
        ids, log_ratio, level = self.hidden()
        self.unfinished.fill_(1)
        ids[rows] = candidates.ids.to(torch.int32)
        # Beyond the range of half precision a ratio stays finite; torch 2.0 clamps no halves.
        ratio = candidates.log_ratio.float().clamp(-_HALF, _HALF)
        log_ratio[rows] = ratio.to(torch.float16)
        level[rows] = candidates.level.to(torch.uint8)

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

    def draw(self, rows: Tensor, *, generator: torch.Generator | None = None) -> Candidates:
        """One random group for every row, ids as int64.

        Args:
            rows: query ids, shape [B], int64, repeated as often as needed.
            generator: source of the choice of groups.

        Returns:
            Candidates of shape [B, K], all of one version.
        """
        place = self._places(rows, generator)
        while True:
            version = self.version
            fields = (self.ids, self.log_ratio, self.level)
            ids, log_ratio, level = (self._look_up(field, version, place) for field in fields)
            # After a publication the buffer just read may be overwritten already: look again.
            if self.version == version:
                self.drawn[version % 2] += rows.numel()
                return Candidates(ids.long(), log_ratio, level)

    def draw_ids(self, rows: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The ids that `draw` would return, at a third of its memory traffic: what a call needs.

        Args:
            rows: query ids, shape [B], int64, repeated as often as needed.
            generator: source of the choice of groups.

        Returns:
            Destination ids, shape [B, K], int64, all of one version.
        """
        place = self._places(rows, generator)
        while True:
            version = self.version
            ids = self._look_up(self.ids, version, place)
            if self.version == version:
                self.drawn[version % 2] += rows.numel()
                return ids.long()

    def _places(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        """A random group of every row, as a place among all N * G groups; shape [B]."""
        _, groups, _ = self.shape
        pick = torch.randint(0, groups, rows.shape, generator=generator, device=rows.device)
        return pick.add_(rows, alpha=groups)

    def _look_up(self, field: Tensor, version: int, place: Tensor) -> Tensor:
        """Groups [B, K] of one version of a field; one flat index costs less than two."""
        return field[version % 2].view(-1, field.shape[-1]).index_select(0, place)

    def current(self) -> Candidates:
        """The live buffers, shape [N, G, K]; views, not copies."""
        live = self.version % 2
        return Candidates(self.ids[live], self.log_ratio[live], self.level[live])

    def hidden(self) -> Candidates:
        """The buffers that `write` fills and `publish` makes live, shape [N, G, K]; views."""
        hidden = (self.version + 1) % 2
        return Candidates(self.ids[hidden], self.log_ratio[hidden], self.level[hidden])

    def handed_out(self, version: int) -> float:
        """How many times each candidate was handed out on average, by all processes together.

        Processes that draw at the same moment may count one of them only.

        Args:
            version: the live one, or the one before.
        """
        _, queries, groups, _ = self.ids.shape
        return int(self.drawn[version % 2]) / (queries * groups)

    def find_log_ratio(self, src: Tensor, dst: Tensor) -> Tensor:
        """Log ratio of drawn pairs, from the live version, else from the one before.

        Loaders draw ahead, so a pair may stem from the version before the live one, whose buffer is
        kept until the next refresh starts to write, and not read from then on. Where a pair stands
        in several groups of a row, the first one's ratio is returned: each group has estimated it
        over its own pool.

        Args:
            src: query ids, shape [P], int64.
            dst: candidate ids, shape [P], int64.

        Returns:
            Log ratios, shape [P], float32; 0 (uniform) for pairs that stand in neither version.
        """
        return self.look_for(src, dst)[0]

    def look_for(self, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor]:
        """Log ratios as `find_log_ratio` gives them, and which pairs stand in a table, bool [P]."""
        while True:
            version, unfinished = self.version, bool(self.unfinished)
            live = version % 2
            result = torch.zeros(src.shape, dtype=torch.float32, device=self.ids.device)
            found = torch.zeros(src.shape, dtype=torch.bool, device=self.ids.device)
            for buffer in (live,) if unfinished else (1 - live, live):
                match = self.ids[buffer][src].flatten(1) == dst.unsqueeze(1)
                hit = match.any(dim=1)
                column = match.int().argmax(dim=1, keepdim=True)
                value = self.log_ratio[buffer][src].flatten(1).gather(1, column).squeeze(1).float()
                result = torch.where(hit, value, result)
                found |= hit
            # A writer may have started on a buffer that was just read: look again.
            if self.version == version and (unfinished or not bool(self.unfinished)):
                return result, found

    def extra_repr(self) -> str:  # noqa: D102
        queries, groups, k = self.shape
        return f"queries={queries}, groups={groups}, k={k}, version={self.version}"
