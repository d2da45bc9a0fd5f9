"""What a sampler may take of the machine: working set, memory of its tables, and a thread."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgl_dmns.checks import as_integer, type_name
from dgl_dmns.core import BYTES_PER_CANDIDATE, CHUNK_BYTES, SHARED, amount, free_in, free_memory

__all__ = ["Resources", "Rows", "affordable_groups", "check_room", "groups_with_room"]


@dataclass(frozen=True)
class Resources:
    """Limits of memory, and where and when the work of a refresh is done.

    Args:
        chunk_bytes: working set of filling a table, in bytes; it sets how many queries are handled
            at a time, 4096 at most, and one chunk of 64 at least (see
            `dgl_dmns.core.fill.queries_at_a_time`). What a refresh needs beside it is linear in
            the number of nodes, see the page on scaling.
        table_bytes: budget of the tables of all edge types together, in bytes: ``groups`` is
            lowered until they fit. Fewer groups mean that the same negatives come back sooner. No
            budget where None.
        table_folder: a folder for tables in files that are mapped into memory, for tables larger
            than it; shared memory where None. The files are removed when the sampler is, or when
            its process ends; a process that is killed leaves them (``dgl-dmns-*``). Known edges and
            lists for which shared memory has no room lie there, too.
        background: refreshes after the first are done in a thread beside the training, from the
            embeddings at the time of the call; the new table is used as soon as it is whole. At
            most one is under way: the next refresh waits for it, so that negatives are at most one
            refresh behind (see `RefreshingSampler.staleness`). When the table changes then depends
            on time, and so do draws; each table by itself does not.

    Raises:
        TypeError: for a number of bytes that is no integer, a ``background`` that is neither True
            nor False, or a folder that is no path.
        ValueError: if a number of bytes is below 1, or the folder does not exist.
    """

    chunk_bytes: int = CHUNK_BYTES
    table_bytes: int | None = None
    table_folder: str | os.PathLike[str] | None = None
    background: bool = False

    def __post_init__(self) -> None:
        for name in ("chunk_bytes", "table_bytes"):
            value = getattr(self, name)
            if value is not None or name == "chunk_bytes":
                object.__setattr__(self, name, as_integer(name, value, 1, "bytes"))
        if not isinstance(self.background, (bool, np.bool_)):
            raise TypeError(
                f"background: expected True or False, got {self.background!r}; write "
                "Resources(background=True)"
            )
        if self.table_folder is not None and not isinstance(self.table_folder, (str, os.PathLike)):
            raise TypeError(
                f"table_folder: expected the path of a folder, got {type_name(self.table_folder)}; "
                "write Resources(table_folder='/a/folder')"
            )
        if self.table_folder is not None and not Path(self.table_folder).is_dir():
            raise ValueError(f"table_folder: there is no folder {self.table_folder}; make it first")


@dataclass(frozen=True)
class Rows:
    """What the table of an edge type asks for.

    Args:
        queries: number of source nodes.
        hard: candidates in a group.
        groups: groups that rows have on average, at most.
    """

    queries: int
    hard: int
    groups: int

    def candidates(self, groups: int) -> int:
        """Candidates of the table at most, with so many groups of a row on average."""
        return self.hard * groups * self.queries


def groups_with_room(
    resources: Resources, rows: Mapping[tuple[str, str, str], Rows]
) -> dict[tuple[str, str, str], int]:
    """The groups that rows can have, by the budget and by the machine.

    Args:
        resources: with the budget, and where the tables go.
        rows: what the table of each edge type asks for.

    Returns:
        At most as many as each asks for.

    Raises:
        ValueError, MemoryError: as `affordable_groups` and `check_room` say.
    """
    most = affordable_groups(resources, list(rows.values()))
    groups = {etype: min(most, one.groups) for etype, one in rows.items()}
    check_room(resources, sum(one.candidates(groups[e]) for e, one in rows.items()))
    return groups


def affordable_groups(resources: Resources, rows: Sequence[Rows]) -> int:
    """The groups of a row that fit the budget.

    Args:
        resources: with the budget.
        rows: what the tables ask for.

    Returns:
        A number that none of the tables has to go beyond.

    Raises:
        ValueError: if not even one group fits.
    """
    most = max(one.groups for one in rows)

    def size(groups: int) -> int:
        return BYTES_PER_CANDIDATE * sum(one.candidates(min(groups, one.groups)) for one in rows)

    if resources.table_bytes is None or size(most) <= resources.table_bytes:
        return most
    if size(1) > resources.table_bytes:
        raise ValueError(
            f"table_bytes: tables with one group for each source node take {amount(size(1))}, got "
            f"a budget of {amount(resources.table_bytes)}; raise it, lower k, or hold fewer edge "
            "types with etypes=..."
        )
    fits = 1
    while most - fits > 1:
        middle = (fits + most) // 2
        fits, most = (middle, most) if size(middle) <= resources.table_bytes else (fits, middle)
    return fits


def check_room(resources: Resources, candidates: int) -> None:
    """Refuse tables that the machine has no room for, before anything is allocated.

    Args:
        resources: says where the tables go.
        candidates: of all tables together.

    Raises:
        MemoryError: if they do not fit.
    """
    needed = BYTES_PER_CANDIDATE * candidates
    if resources.table_folder is not None:
        room, where = (
            free_in(Path(resources.table_folder)),
            f"on the disk of {resources.table_folder}",
        )
        instead = "name another table_folder"
    else:
        room, where = min(
            (free_in(SHARED), f"in shared memory ({SHARED}; in a container, raise its --shm-size)"),
            (free_memory(), "of memory"),
        )
        instead = "keep it in a file with Resources(table_folder=...)"
    if needed > room:
        raise MemoryError(
            f"tables of {candidates} candidates take {amount(needed)}, and there are "
            f"{amount(int(room))} free {where}; "
            f"lower groups or k, set a budget with Resources(table_bytes=...), {instead}, or hold "
            "fewer edge types with etypes=..."
        )
