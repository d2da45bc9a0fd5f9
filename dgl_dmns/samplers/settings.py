"""Families of settings as frozen values, which edge types to hold, and what there is room for."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Union

import torch
from torch import nn

from dgl_dmns.checks import as_flag, as_integer, as_number, check_object, type_name
from dgl_dmns.core import (
    BYTES_PER_CANDIDATE,
    CHUNK_BYTES,
    SHARED,
    DiffusionGenerator,
    EdgeName,
    EdgeType,
    Levels,
    NoisePredictor,
    NoiseSchedule,
    PoolSettings,
    SpaceKind,
    amount,
    canonical_edge_type,
    free_in,
    free_memory,
    shielded,
)
from dgl_dmns.messages import first_line
from dgl_dmns.samplers.candidates import Allowed
from dgl_dmns.samplers.graphs import check_has_edges

__all__ = [
    "Diffusion",
    "NegativesPerEdge",
    "Pools",
    "Resources",
    "Rows",
    "check_k",
    "groups_with_room",
    "held_edge_types",
]

NegativesPerEdge = Union[int, Mapping[Any, int]]
"""Negatives per edge: one number, or one for each edge type (canonical, or the relation alone)."""


@dataclass(frozen=True)
class Pools:
    """How candidates are proposed, and what share of the negatives is uniform.

    Fields that are None default to the sampler's own values: `DMNSSampler` has pools of 128 and
    draws half of its negatives uniformly, the others have pools of 32 and no uniform share.

    Args:
        pool: uniform candidates in a pool, at least ``k``. A larger pool makes harder negatives.
        uniform_share: share of the negatives that are plain uniform ones, drawn in the call, in
            [0, 1]; above 0 for ``negatives.loss``, whose batch shares them. Where that is no whole
            number per edge, the place of an edge in its batch decides: shuffle the edges.
        candidates: ids of the destinations that may be drawn at all, int64 [C]; a dict of such by
            edge type or destination node type where there are several. Defaults to all nodes.
        groups: upper bound on the average number of groups in a row of the table. A row has a group
            for each time an edge of its source is asked for between two refreshes; longer rows are
            shortened evenly. Defaults to what fits in 90 bytes per node and negative.
        lam: exponent on the density of the diffusion model, positive.
    """

    pool: int | None = None
    uniform_share: float | None = None
    groups: int | None = None
    lam: float | None = None
    candidates: Allowed | None = field(default=None, compare=False)

    def over(self, defaults: PoolSettings) -> PoolSettings:
        """A sampler's defaults with what is set here."""
        given = {one: value for one, value in vars(self).items() if value is not None}
        given.pop("candidates", None)
        return replace(defaults, **given)


@dataclass(frozen=True)
class Diffusion:
    """The diffusion model of an edge type, and how it is fitted.

    Args:
        fit_steps: fitting steps in a refresh at most; it ends earlier once the loss is flat, see
            `dgl_dmns.core.DiffusionGenerator.fit`.
        warmup_steps: fitting steps of the first refresh.
        batch_pairs: (query, neighbour) pairs in a fitting step.
        learning_rate: of its Adam, positive.
        space: ``"compact"`` (standardised leading directions) or ``"raw"`` (the paper's).
        compact_width: width of the compact space.
        schedule: noise schedule; defaults to the linear one with T = 50.
        predictor: noise predictor; defaults to the paper's FiLM layers. Each edge type has a copy
            of it, in float32.

    Raises:
        ValueError, TypeError: for a value out of range, or of a wrong type.
    """

    fit_steps: int = 40
    warmup_steps: int = 200
    batch_pairs: int = 1024
    learning_rate: float = 1e-2
    space: SpaceKind = "compact"
    compact_width: int = 16
    schedule: NoiseSchedule | None = None
    predictor: NoisePredictor | None = None

    @shielded
    def __post_init__(self) -> None:
        least = {"fit_steps": 0, "warmup_steps": 0, "batch_pairs": 1, "compact_width": 1}
        for name, smallest in least.items():
            object.__setattr__(self, name, as_integer(name, getattr(self, name), smallest))
        rate = as_number("learning_rate", self.learning_rate)
        if not rate > 0:
            raise ValueError(
                f"learning_rate: expected a positive rate of the diffusion model, got {rate}; 0.01 "
                "and 0.003 are good starts"
            )
        object.__setattr__(self, "learning_rate", rate)
        if self.predictor is not None:
            check_object("predictor", self.predictor, nn.Module, "FiLMPredictor(16)")
        schedule = NoiseSchedule.linear() if self.schedule is None else self.schedule
        check_object("schedule", schedule, NoiseSchedule, "NoiseSchedule.linear()")
        object.__setattr__(self, "schedule", schedule)

    def make(self, width: int, levels: Levels, seed: int) -> DiffusionGenerator:
        """A model for embeddings of a width, not fitted yet."""
        return DiffusionGenerator(
            width,
            levels=levels,
            schedule=self.schedule,
            predictor=copy.deepcopy(self.predictor),  # no edge types share weights
            space=self.space,
            compact_width=self.compact_width,
            batch_pairs=self.batch_pairs,
            learning_rate=self.learning_rate,
            seed=seed,
        )


@dataclass(frozen=True)
class Resources:
    """Limits of memory, and where and when the work of a refresh is done.

    Args:
        chunk_bytes: bytes that filling a table may use at a time, for each thread. What a refresh
            needs beside it is linear in the number of nodes.
        table_bytes: budget of the tables of all edge types together, in bytes: groups of rows are
            lowered until they fit. Fewer groups mean that the same negatives come back sooner.
            Defaults to no budget.
        table_folder: a folder for tables in files that are mapped into memory, for tables larger
            than it; defaults to shared memory. The files are removed when the sampler is, or when
            its process ends; a process that is killed leaves them (``dgl-dmns-*``). Known edges and
            lists for which shared memory has no room lie there, too.
        background: if True, refreshes after the first run in a thread beside the training, from the
            embeddings at the time of the call. Negatives are at most one refresh behind. Two runs
            draw differently, since the table changes at another moment; the tables are the same.
        one_table: if True, the ranks of ``torch.distributed`` on one machine share one table, and
            each fills its part of the rows. All of them make the sampler, attach, refresh and load
            alike, from equal embeddings. It lies in ``table_folder``, or in shared memory.
        device: where models are fitted and rows are drawn in a refresh, such as ``"cuda"``, and
            where calls with edge ids on that device look negatives up, without waiting for it. It
            holds the known edges, the live table, and in a refresh the embeddings. Defaults to the
            CPU, where tables are kept in any case, for workers and calls with ids there.

    Raises:
        ValueError, TypeError: for a value out of range, of a wrong type, or no such folder.
    """

    chunk_bytes: int = CHUNK_BYTES
    table_bytes: int | None = None
    table_folder: str | os.PathLike[str] | None = None
    background: bool = False
    one_table: bool = False
    device: str | torch.device = "cpu"

    @property
    def place(self) -> torch.device:
        """The device, as torch has it."""
        return torch.device(self.device)

    def __post_init__(self) -> None:
        for name in ("chunk_bytes", "table_bytes"):
            value = getattr(self, name)
            if value is not None or name == "chunk_bytes":
                object.__setattr__(self, name, as_integer(name, value, 1, "bytes"))
        for name in ("background", "one_table"):
            as_flag(name, getattr(self, name), f"Resources({name}=True)")
        if self.one_table and self.background:
            raise ValueError(
                "one_table: ranks that share a table refresh in place; leave out background=True"
            )
        object.__setattr__(self, "device", str(checked_device(self.device)))
        if self.one_table and self.place.type != "cpu":
            raise ValueError("one_table: ranks share a table that the CPU fills; leave out device")
        if self.table_folder is not None and not isinstance(self.table_folder, (str, os.PathLike)):
            raise TypeError(
                f"table_folder: expected the path of a folder, got {type_name(self.table_folder)}; "
                "write Resources(table_folder='/a/folder')"
            )
        if self.table_folder is not None and not Path(self.table_folder).is_dir():
            raise ValueError(f"table_folder: there is no folder {self.table_folder}; make it first")


def checked_device(device: Any, of_share: bool = False) -> torch.device:
    """A device that tensors can be made on; the CPU alone for a share of a distributed graph."""
    advice = 'write device="cuda", or leave it out for the CPU'
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device: expected a device of torch, got {type_name(device)}; {advice}")
    try:
        found = torch.empty(0, device=device).device  # with its number
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device: {device} cannot be used ({first_line(error)}); {advice}"
        ) from error
    if of_share and found.type != "cpu":
        raise ValueError("device: a share of a distributed graph is kept on the CPU; leave it out")
    return found


def check_k(k: int) -> int:
    """Return ``k``, of NumPy or torch as well, as an integer of at least 1."""
    k = as_integer("k", k, what="negatives per edge")
    if k < 1:
        raise ValueError(f"k: expected at least 1 negative per edge, got {k}")
    return k


def held_edge_types(
    g: Any, k: NegativesPerEdge, etypes: Sequence[EdgeName] | None
) -> dict[EdgeType, int]:
    """The edge types to hold tables for, in the order of the graph, and the k of each.

    They are those of ``etypes``, or of ``k`` if it is a dict, or all that have edges.
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


class Rows(NamedTuple):
    """What the table of an edge type asks for."""

    queries: int  # source nodes
    hard: int  # candidates in a group
    groups: int  # on average, at most


def groups_with_room(resources: Resources, rows: Mapping[EdgeType, Rows]) -> dict[EdgeType, int]:
    """The groups that rows can have in the budget, at most as many as each table asks for.

    Raises:
        ValueError: if not even one group of each row fits the budget.
        MemoryError: if the machine has no room for the tables; nothing is allocated then.
    """

    def candidates(most: int) -> int:
        return sum(one.hard * min(most, one.groups) * one.queries for one in rows.values())

    most = max(one.groups for one in rows.values())
    if resources.table_bytes is not None:
        most = _affordable(resources.table_bytes, candidates, most)
    _check_room(resources, candidates(most))
    return {etype: min(most, one.groups) for etype, one in rows.items()}


def _affordable(budget: int, candidates: Callable[[int], int], most: int) -> int:
    """The largest number of groups, up to ``most``, whose candidates fit a budget in bytes."""
    fit = budget // BYTES_PER_CANDIDATE
    if candidates(most) <= fit:
        return most
    if candidates(1) > fit:
        raise ValueError(
            "table_bytes: tables with one group for each source node take "
            f"{amount(BYTES_PER_CANDIDATE * candidates(1))}, got a budget of {amount(budget)}; "
            "raise it, lower k, or hold fewer edge types with etypes=..."
        )
    fits = 1
    while most - fits > 1:
        middle = (fits + most) // 2
        fits, most = (middle, most) if candidates(middle) <= fit else (fits, middle)
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
