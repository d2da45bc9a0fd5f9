"""Measure what a trainer of a distributed graph holds and waits for, by the number of partitions.

python -m benchmarks.distributed
python -m benchmarks.distributed --nodes 20000 --partitions 1 2 --steps 50
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields

from benchmarks.common.command import Command, benchmark_parser
from benchmarks.common.report import (
    Column,
    Found,
    Runs,
    Section,
    cells_of,
    difference,
    mean,
    ratio,
    table,
    write_report,
)
from benchmarks.common.rows import Cell, Row
from benchmarks.distributed.run import Setting, run_cell

__all__ = ["main"]

_ROW = Row("dmns", "dmns")


def _parts(runs: Runs, base: Runs) -> str:
    parts = ("embed seconds", "fit seconds", "table seconds")
    return ", ".join(mean("", part, 2).text(runs, base) for part in parts)


_COLUMNS = (
    mean("sources held", "held", 0),
    mean("of all trainers", "sources", 0),
    mean("held (MB)", "held MB", 1),
    ratio("of one partition", "held MB"),
    mean("refresh (CPU s)", "cpu", 2),
    ratio("of one partition", "cpu"),
    mean("refresh (s)", "wall", 2),
    Column("embed, fit, table (s)", _parts),
    mean("reads and writes", "messages", 0),
    mean("MRR", "MRR"),
    difference("to one partition", "MRR"),
)


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(
        "distributed", "Measure what a trainer of a distributed graph holds.", seeds=1
    )
    parser.add_argument("--partitions", type=int, nargs="+", default=[1, 2, 4])
    for field in fields(Setting):
        if field.name != "partitions":
            option = f"--{field.name}"
            parser.add_argument(option, type=type(field.default), default=field.default)
    return parser


def _section(options: argparse.Namespace) -> Section:
    same = {f.name: getattr(options, f.name) for f in fields(Setting) if f.name != "partitions"}
    cells = {
        f"{parts} partitions": [
            Cell("ring", Setting(partitions=parts, **same), _ROW, seed)
            for seed in range(options.seeds)
        ]
        for parts in options.partitions
    }
    return Section("partitions", f"a ring of {options.nodes:,} nodes", cells, "1 partitions")


def _tables(section: Section, found: Found) -> str:
    return table(found, section.reference, _COLUMNS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the report.

    Returns:
        0, or 1 if a cell failed.
    """
    command = Command(_parser(), argv)
    section = command.made(_section)
    command.run(cells_of([section]), run_cell)
    heading = command.heading(
        "A trainer's share of a distributed graph",
        "Pairs near on a ring, and a few strays, cut by METIS. Servers and one trainer for each "
        "partition are processes of one machine, each with one thread. Batches are of equal size "
        "over all trainers. Held are all tensors that the sampler adds to a trainer, after a "
        "refresh; of trainers the largest figure counts. A refresh is the faster of two after the "
        "training; each of its reads and writes is a message to every machine that has some of the "
        "rows, and trainers exchange results eight times. A positive is compared with as many "
        "negatives, whatever the number of trainers.",
    )
    files = write_report([section], command.store, command.out, heading, _tables)
    return command.end(files)


if __name__ == "__main__":
    sys.exit(main())
