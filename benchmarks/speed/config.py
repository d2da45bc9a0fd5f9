"""What a cell is made of: a graph, a recipe of training and a source of negatives, all frozen.

Anything that changes a result stands here, so that the hash of a `Cell` changes with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

__all__ = ["CLOCKS", "ROWS", "Cell", "Row", "Setting"]

RESULT_VERSION = 3  # raise it when a change of the code changes results

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Setting:
    """The graph and the minibatch recipe around the sampler.

    Args:
        nodes: nodes N of the graph.
        degree: mean number of neighbours of a node.
        features: width F of the features.
        width: hidden width D of a two-layer GraphSAGE, and so of the embeddings.
        k: negatives per edge.
        workers: of the loader.
        batch_size: positives in a batch.
        fanout: neighbours drawn per node and layer.
        batches: batches of a timed pass; an epoch is that many times longer as it has batches.
        rounds: passes of each kind and source of negatives, in turn.
        refreshes: timed refreshes after the first.
        int32: whether the graph has int32 ids.
        clock: ``wall``, or ``cpu`` for the seconds of the process on its cores, which other work on
            the machine prolongs little; without workers and the background only.

    Raises:
        ValueError: for a number below 1 (workers: below 0), an unknown clock, or one that does not
            see workers.
    """

    nodes: int
    degree: int = 10
    features: int = 32
    width: int = 64
    k: int = 5
    workers: int = 0
    batch_size: int = 1024
    fanout: int = 10
    batches: int = 20
    rounds: int = 3
    refreshes: int = 2
    int32: bool = False
    clock: str = "wall"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "workers" else 1
            if field.name not in ("int32", "clock") and value < least:
                raise ValueError(f"{field.name}: expected at least {least}, got {value}")
        if self.clock not in CLOCKS:
            raise ValueError(f"clock: expected one of {', '.join(CLOCKS)}, got {self.clock!r}")
        if self.clock == "cpu" and self.workers:
            raise ValueError(f"clock: cpu does not count the {self.workers} workers; use wall")


@dataclass(frozen=True)
class Row:
    """One line of a table: a sampler of this package, with what departs from its defaults.

    Args:
        title: name of the line.
        sampler: ``filtered`` (uniform without known edges), ``self-adversarial`` or ``dmns``.
        arguments: of its constructor, as (name, value) pairs.
        pools: fields of `dgl_dmns.core.PoolSettings` that the constructor does not offer.
        resources: fields of `dgl_dmns.Resources`.
        without: an optimisation that is taken out, a key of `benchmarks.speed.without.WITHOUT`.
    """

    title: str
    sampler: str
    arguments: tuple[tuple[str, int | float | str], ...] = ()
    pools: tuple[tuple[str, int], ...] = ()
    resources: tuple[tuple[str, int | str], ...] = ()
    without: str = ""


@dataclass(frozen=True)
class Cell:
    """One run: a source of negatives and DGL's uniform in turn.

    Args:
        setting: graph and recipe.
        row: the source of negatives.
        seed: of the graph, the weights, the batches and the negatives.
        version: of the results.
    """

    setting: Setting
    row: Row
    seed: int = 0
    version: int = RESULT_VERSION

    def __str__(self) -> str:
        s = self.setting
        return f"{self.row.title}, N {s.nodes}, D {s.width}, K {s.k}, workers {s.workers}"


_MAIN = (Row("dmns", "dmns"),)
_OTHERS = (
    Row("filtered uniform", "filtered"),
    Row("self-adversarial", "self-adversarial"),
)
_ABLATIONS = (
    Row("calls that read levels", "dmns", without="ids alone"),
    Row("no parts for the cache", "dmns", without="cache parts"),
    Row("a pool for each group", "dmns", pools=(("draws_per_pool", 1),)),
    Row("a pool for each query", "dmns", pools=(("queries_per_pool", 1),)),
    Row("raw space", "dmns", (("space", "raw"),)),
    Row("pool of 32", "dmns", (("pool", 32),)),
)
_RESOURCES = (
    Row("two groups", "dmns", (("groups", 2),)),
    Row("working set of 16 MiB", "dmns", resources=(("chunk_bytes", 1 << 24),)),
    Row("table in a file", "dmns", resources=(("table_folder", "."),)),
    Row("in the background", "dmns", resources=(("background", True),)),
)


def _named(rows: Sequence[Row]) -> dict[str, Row]:
    return {row.title: row for row in rows}


ROWS = {
    "main": _named(_MAIN),
    "others": _named(_MAIN + _OTHERS),
    "ablations": _named(_MAIN + _ABLATIONS),
    "resources": _named(_MAIN + _RESOURCES),
}
"""Rows by group."""
