"""The candidate table: ready negatives per query node, read by a look-up.

A row holds G groups of K candidates; the K of a group were drawn together, without replacement,
from one pool. A draw for an edge picks one group of its source's row. Beside each candidate stand
the log ratio of the distribution it was drawn from and the hardness level it came from.

Readers may run in other threads and processes: all tensors live in shared memory, a table has two
buffers, and the version (a counter) says which one is live: ``version % 2``. A writer fills the
other buffer and then raises the version; a look-up during which the version has moved is repeated,
so each one reads a single version.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["UNIFORM_LEVEL", "CandidateTable", "Candidates"]

UNIFORM_LEVEL = 255
"""Level tag of a candidate that no hardness level claims: the uniform share."""

_HALF = torch.finfo(torch.float16).max


class Candidates(NamedTuple):
    """Candidates for B queries.

    Attributes:
        ids: destination ids, shape [B, K] or [B, G, K], int32 in the table, int64 when drawn.
        log_ratio: natural log of drawn over uniform probability, same shape, float16; NaN where the
            rule has no tractable distribution.
        level: index of the hardness level, same shape, uint8; `UNIFORM_LEVEL` for none.
    """

    ids: Tensor
    log_ratio: Tensor
    level: Tensor


class CandidateTable(nn.Module):
    """A double-buffered table of candidates in shared memory.

    Args:
        queries: number of query nodes N.
        groups: groups G in a row.
        k: candidates K in a group.

    Raises:
        ValueError: if a size is below 1.
    """

    ids: Tensor
    log_ratio: Tensor
    level: Tensor
    counter: Tensor

    def __init__(self, queries: int, groups: int, k: int) -> None:
        super().__init__()
        if min(queries, groups, k) < 1:
            raise ValueError(
                f"queries, groups, k: expected at least 1, got {queries}, {groups}, {k}"
            )
        shape = (2, queries, groups, k)
        self.register_buffer("ids", torch.zeros(shape, dtype=torch.int32).share_memory_())
        self.register_buffer("log_ratio", torch.zeros(shape, dtype=torch.float16).share_memory_())
        self.register_buffer("level", torch.zeros(shape, dtype=torch.uint8).share_memory_())
        self.register_buffer("counter", torch.zeros(1, dtype=torch.int64).share_memory_())

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
        hidden = (self.version + 1) % 2
        self.ids[hidden, rows] = candidates.ids.to(torch.int32)
        # Beyond the range of half precision a ratio stays finite.
        self.log_ratio[hidden, rows] = candidates.log_ratio.clamp(-_HALF, _HALF).to(torch.float16)
        self.level[hidden, rows] = candidates.level.to(torch.uint8)

    def publish(self) -> None:
        """Make the hidden buffer the live one."""
        self.counter += 1

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

    def find_log_ratio(self, src: Tensor, dst: Tensor) -> Tensor:
        """Log ratio of drawn pairs, from the live version, else from the one before.

        Loaders draw ahead, so a pair may stem from the version before the live one, whose buffer is
        kept until the next refresh starts to write. Where a pair stands in several groups of a row,
        the first one's ratio is returned: each group has estimated it over its own pool.

        Args:
            src: query ids, shape [P], int64.
            dst: candidate ids, shape [P], int64.

        Returns:
            Log ratios, shape [P], float32; 0 (uniform) for pairs that stand in neither version.
        """
        live = self.version % 2
        result = torch.zeros(src.shape, dtype=torch.float32, device=self.ids.device)
        for buffer in (1 - live, live):
            match = self.ids[buffer][src].flatten(1) == dst.unsqueeze(1)
            hit = match.any(dim=1)
            column = match.int().argmax(dim=1, keepdim=True)
            value = self.log_ratio[buffer][src].flatten(1).gather(1, column).squeeze(1).float()
            result = torch.where(hit, value, result)
        return result

    def extra_repr(self) -> str:  # noqa: D102
        queries, groups, k = self.shape
        return f"queries={queries}, groups={groups}, k={k}, version={self.version}"
