"""What a cell is made of: a graph and a recipe of training, and the rows that can be run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields

from benchmarks.common.rows import Cell, Row
from benchmarks.speed.without import WITHOUT
from dgl_dmns.samplers import Resources

__all__ = ["CLOCKS", "ROWS", "Setting", "cell_of"]

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Setting:
    """The graph and the minibatch recipe around the sampler.

    Raises:
        ValueError: for a number below 1 (workers: below 0), an unknown clock, or one that does not
            see workers.
    """

    nodes: int  # nodes N of the graph
    degree: int = 10  # mean number of neighbours of a node
    features: int = 32  # width F of the features
    width: int = 64  # hidden width D of a two-layer GraphSAGE, and so of the embeddings
    k: int = 5  # negatives per edge
    workers: int = 0  # of the loader
    batch_size: int = 1024  # positives in a batch
    fanout: int = 10  # neighbours drawn per node and layer
    # batches of a timed pass; an epoch is that many times longer as it has batches
    batches: int = 20
    rounds: int = 3  # passes of each kind and source of negatives, in turn
    refreshes: int = 2  # timed refreshes after the first
    int32: bool = False  # whether the graph has int32 ids
    layerwise: bool = False  # whether a refresh computes embeddings layer by layer, for less memory
    # ``wall``, or ``cpu`` for the seconds of the process on its cores, which other work on the
    # machine prolongs little; without workers and the background only
    clock: str = "wall"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "workers" else 1
            if field.name not in ("int32", "layerwise", "clock") and value < least:
                raise ValueError(f"{field.name}: expected at least {least}, got {value}")
        if self.clock not in CLOCKS:
            raise ValueError(f"clock: expected one of {', '.join(CLOCKS)}, got {self.clock!r}")
        if self.clock == "cpu" and self.workers:
            raise ValueError(f"clock: cpu does not count the {self.workers} workers; use wall")


def cell_of(setting: Setting, row: Row, seed: int = 0) -> Cell:
    """One run: a source of negatives and DGL's uniform in turn, on a generated graph."""
    s = setting
    return Cell(f"N {s.nodes:,}, D {s.width}, K {s.k}, workers {s.workers}", s, row, seed)


def _named(*rows: Row) -> dict[str, Row]:
    return {row.title: row for row in rows}


_MAIN = Row("dmns", "dmns")

ROWS = {
    "main": _named(_MAIN),
    "others": _named(
        _MAIN,
        Row("filtered uniform", "uniform"),
        Row("self-adversarial", "self-adversarial"),
    ),
    "ablations": _named(
        _MAIN,
        *(Row(title, "dmns") for title in WITHOUT),
        Row("raw space", "dmns", {"space": "raw"}),
        Row("pool of 32", "dmns", {"pool": 32}),
    ),
    "resources": _named(
        _MAIN,
        Row("two groups", "dmns", {"groups": 2}),
        Row("working set of 16 MiB", "dmns", {"resources": Resources(chunk_bytes=1 << 24)}),
        Row("table in a file", "dmns", {"resources": Resources(table_folder=".")}),
        Row("in the background", "dmns", {"resources": Resources(background=True)}),
    ),
}
"""Rows by group."""
