"""What a refresh reports, and the clock that it is measured by."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from dgl_dmns.core.generator import FitReport

__all__ = [
    "LevelScores",
    "RankReport",
    "RefreshReport",
    "Stopwatch",
    "TableReport",
    "TypeReport",
    "held_bytes",
]


@dataclass(frozen=True)
class TableReport:
    """What filling a table came to.

    Args:
        filtered: share of pool members that were rejected as known edges.
        fallback: number of query rows that took the fallback (fewer admissible nodes than k in
            reach of a pool).
        level_score: mean score ``s(v, u)`` of the chosen negatives per hardness level, and of those
            which no level claims under the key ``"no level"``.
        unstable: number of queries whose level Gaussians could not be computed with; the diffusion
            model was taken as uniform for them, and a warning said so.
        measures: what the rule has measured, see `Rule.measures`.
    """

    filtered: float
    fallback: int
    level_score: dict[str, float]
    unstable: int = 0
    measures: dict[str, float] = field(default_factory=dict)

    @property
    def sharpness(self) -> float:
        """Factor on the scores in the rule's softmax, see `dgl_dmns.core.sharpness`."""
        return self.measures.get("sharpness", 1.0)


@dataclass(frozen=True)
class TypeReport:
    """What one refresh did for one edge type.

    Args:
        fit: of the diffusion model, None for rules without one.
        table: of the table.
    """

    fit: FitReport | None
    table: TableReport


@dataclass(frozen=True)
class RankReport:
    """What one refresh was for one of several trainers of a distributed graph, or of a table.

    Args:
        seconds_by_part: its seconds by part (embed, fit, table), until it had filled its tables;
            those of the first two end when all trainers are done with them.
        sources: how many source nodes it holds, those of each edge type for themselves.
        held_bytes: what its known edges, tables, models and embeddings take in memory.
        rows: how many rows of the tables it has filled.
    """

    seconds_by_part: dict[str, float]
    sources: int
    held_bytes: int
    rows: int


@dataclass(frozen=True)
class RefreshReport:
    """What one refresh did.

    Args:
        version: version of the tables that it published.
        seconds: wall-clock seconds of the whole refresh.
        seconds_by_part: the same by part (embed, fit, table).
        by_type: the reports of the edge types, by canonical edge type, of this process.
        by_rank: where trainers hold shares of a distributed graph, or share a table, what it was
            for each of them, in order of rank; the rest is of this one alone, but for a table that
            is shared. Empty for one process, and where each holds all. All refresh after the same
            step, so that staleness is that of all of them.
    """

    version: int
    seconds: float
    seconds_by_part: dict[str, float]
    by_type: dict[tuple[str, str, str], TypeReport]
    by_rank: tuple[RankReport, ...] = ()

    @property
    def fit(self) -> FitReport | None:
        """The only edge type's fit; a ValueError if there are several."""
        return self._only().fit

    @property
    def table(self) -> TableReport:
        """The only edge type's table; a ValueError if there are several."""
        return self._only().table

    def _only(self) -> TypeReport:
        if len(self.by_type) != 1:
            raise ValueError(
                f"report: there is one for each edge type, {list(self.by_type)}; read "
                "report.by_type[etype].table and .fit"
            )
        return next(iter(self.by_type.values()))


class LevelScores:
    """Running mean score of the chosen negatives by level tag, and of those without a level."""

    def __init__(self, levels: int) -> None:
        self.total = torch.zeros(levels + 1, dtype=torch.float64)
        self.count = torch.zeros(levels + 1, dtype=torch.float64)

    def add(self, level: Tensor, score: Tensor) -> None:
        """Book scores under level tags of the same shape."""
        slot = level.long().clamp(max=self.total.numel() - 1).flatten().cpu()
        self.total.index_add_(0, slot, score.flatten().double().cpu())
        self.count += torch.bincount(slot, minlength=self.count.numel()).double()

    def means(self) -> dict[str, float]:
        """The means of those that were seen, by name."""
        names = [str(i) for i in range(self.total.numel() - 1)] + ["no level"]
        mean = self.total / self.count
        return {n: float(m) for n, m, c in zip(names, mean, self.count) if c > 0}


class Stopwatch:
    """Wall-clock seconds by part of a refresh; another clock can take the place of ``clock``."""

    clock: ClassVar[Callable[[], float]] = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.started = self.last = type(self).clock()
        self.parts: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """Book the time since the last mark under a name."""
        now = type(self).clock()
        self.parts[part] = self.parts.get(part, 0.0) + now - self.last
        self.last = now

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return type(self).clock() - self.started


def held_bytes(value: Any, seen: set[int] | None = None) -> int:
    """Bytes of all tensors that objects of this package lead to, each memory counted once."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor):
        memory = value.untyped_storage()
        new = memory.data_ptr() not in seen
        seen.add(memory.data_ptr())
        return memory.nbytes() if new else 0
    if isinstance(value, dict):
        return sum(held_bytes(one, seen) for one in value.values())
    if isinstance(value, (list, tuple)):
        return sum(held_bytes(one, seen) for one in value)
    ours = type(value).__module__.startswith("dgl_dmns")
    return held_bytes(vars(value), seen) if ours and hasattr(value, "__dict__") else 0
