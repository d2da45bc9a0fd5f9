"""What a sampler may take of the machine: working set, memory of its tables, and a thread."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dgl_dmns.checks import as_integer, type_name
from dgl_dmns.core.engine import CHUNK_BYTES
from dgl_dmns.core.sharing import SHARED, amount, free_in, free_memory
from dgl_dmns.core.table import BYTES_PER_CANDIDATE

__all__ = ["Resources", "affordable_groups", "check_room", "groups_with_room"]


@dataclass(frozen=True)
class Resources:
    """Limits of memory, and where and when the work of a refresh is done.

    Args:
        chunk_bytes: working set of filling a table, in bytes; it sets how many queries are handled
            at a time, 4096 at most, and one chunk of 64 at least (see
            `dgl_dmns.core.engine.queries_at_a_time`). What a refresh needs beside it is linear in
            the number of nodes, see the page on scaling.
        table_bytes: budget of the tables of all edge types together, in bytes: ``groups`` is
            lowered until ``14 * groups * k`` bytes for each source node fit. Fewer groups mean that
            the same negatives come back sooner. No budget where None.
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


def groups_with_room(
    resources: Resources, groups: int, g: Any, numbers: Mapping[tuple[str, str, str], int]
) -> int:
    """The groups that the tables of a graph can have, by the budget and by the machine.

    Args:
        resources: with the budget, and where the tables go.
        groups: as many as are wanted.
        g: the graph.
        numbers: k of each edge type that has a table.

    Returns:
        At most ``groups``.

    Raises:
        ValueError, MemoryError: as `affordable_groups` and `check_room` say.
    """
    candidates = sum(int(g.num_nodes(etype[0])) * k for etype, k in numbers.items())
    groups = affordable_groups(resources, groups, candidates)
    check_room(resources, groups, candidates)
    return groups


def affordable_groups(resources: Resources, groups: int, candidates: int) -> int:
    """The groups of a table that fit the budget.

    Args:
        resources: with the budget.
        groups: as many as are wanted.
        candidates: k times the source nodes, the sum over edge types: a group of every row.

    Returns:
        At most ``groups``.

    Raises:
        ValueError: if not even one group fits.
    """
    if resources.table_bytes is None:
        return groups
    one = BYTES_PER_CANDIDATE * candidates
    if one > resources.table_bytes:
        raise ValueError(
            f"table_bytes: a table of one group takes {amount(one)} ({candidates} candidates of "
            f"{BYTES_PER_CANDIDATE} bytes), got a budget of {amount(resources.table_bytes)}; "
            "raise it, lower k, or hold fewer edge types with etypes=..."
        )
    return min(groups, resources.table_bytes // one)


def check_room(resources: Resources, groups: int, candidates: int) -> None:
    """Refuse tables that the machine has no room for, before anything is allocated.

    Args:
        resources: says where the tables go.
        groups: groups of the tables.
        candidates: as in `affordable_groups`.

    Raises:
        MemoryError: if they do not fit.
    """
    needed = BYTES_PER_CANDIDATE * groups * candidates
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
            f"a table of {groups} groups takes {amount(needed)} ({BYTES_PER_CANDIDATE} * groups "
            f"* k bytes for each source node), and there are {amount(int(room))} free {where}; "
            f"lower groups or k, set a budget with Resources(table_bytes=...), {instead}, or hold "
            "fewer edge types with etypes=..."
        )
