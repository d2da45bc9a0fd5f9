"""The groups that rows of a table can have, by the budget and by the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from dgl_dmns.core import BYTES_PER_CANDIDATE, SHARED, amount, free_in, free_memory
from dgl_dmns.samplers.settings import Resources

__all__ = ["Rows", "groups_with_room"]


class Rows(NamedTuple):
    """What the table of an edge type asks for.

    Attributes:
        queries: number of source nodes.
        hard: candidates in a group.
        groups: groups that rows have on average, at most.
    """

    queries: int
    hard: int
    groups: int


def groups_with_room(
    resources: Resources, rows: Mapping[tuple[str, str, str], Rows]
) -> dict[tuple[str, str, str], int]:
    """The groups that rows can have, at most as many as each table asks for.

    Args:
        resources: with the budget, and where the tables go.
        rows: what the table of each edge type asks for.

    Raises:
        ValueError: if not even one group of each row fits the budget.
        MemoryError: if the machine has no room for the tables; nothing is allocated then.
    """

    def candidates(most: int) -> int:
        return sum(one.hard * min(most, one.groups) * one.queries for one in rows.values())

    most = max(one.groups for one in rows.values())
    if resources.table_bytes is not None:
        most = _affordable(resources.table_bytes // BYTES_PER_CANDIDATE, candidates, most)
    _check_room(resources, candidates(most))
    return {etype: min(most, one.groups) for etype, one in rows.items()}


def _affordable(budget: int, candidates: Callable[[int], int], most: int) -> int:
    """The largest number of groups, up to ``most``, with which the candidates fit a budget."""
    if candidates(most) <= budget:
        return most
    if candidates(1) > budget:
        raise ValueError(
            "table_bytes: tables with one group for each source node take "
            f"{amount(BYTES_PER_CANDIDATE * candidates(1))}, got a budget of "
            f"{amount(BYTES_PER_CANDIDATE * budget)}; raise it, lower k, or hold fewer edge types "
            "with etypes=..."
        )
    fits = 1
    while most - fits > 1:
        middle = (fits + most) // 2
        fits, most = (middle, most) if candidates(middle) <= budget else (fits, middle)
    return fits


def _check_room(resources: Resources, candidates: int) -> None:
    """Refuse tables that the machine has no room for, before anything is allocated."""
    needed = BYTES_PER_CANDIDATE * candidates
    if resources.table_folder is not None:
        folder = Path(resources.table_folder)
        room, where, instead = free_in(folder), f"on the disk of {folder}", "name another folder"
    else:
        room, where = min(
            (free_in(SHARED), f"in shared memory ({SHARED}; in a container, raise its --shm-size)"),
            (free_memory(), "of memory"),
        )
        instead = "keep it in a file with Resources(table_folder=...)"
    if needed > room:
        raise MemoryError(
            f"tables of {candidates} candidates take {amount(needed)}, and there are "
            f"{amount(int(room))} free {where}; lower groups or k, set a budget with "
            f"Resources(table_bytes=...), {instead}, or hold fewer edge types with etypes=..."
        )
