"""Measure what negatives cost beside DGL's uniform: calls, loader, epochs, refreshes, memory.

The default takes minutes; larger graphs, widths and workers by option:

    python -m benchmarks.speed
    python -m benchmarks.speed --nodes 10000 100000 1000000 --widths 32 128 --k 1 5 --workers 0 2
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.common import (
    CellStore,
    add_run_options,
    parse_run,
    public_command,
    record_run,
    report_failures,
    run_missing,
)
from benchmarks.speed.config import CLOCKS, ROWS, Cell, Setting
from benchmarks.speed.measure import CALLS, run_cell
from benchmarks.speed.report import write_report

__all__ = ["main"]

CLOCK_NAMES = {"wall": "that on the wall", "cpu": "that of the process on its core"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description="Measure what negatives cost in time and memory, beside DGL's uniform.",
        allow_abbrev=False,  # so that placeholders find their options
    )
    several: dict[str, Any] = {"nargs": "+", "type": int}
    parser.add_argument("--nodes", default=[2_000, 20_000], help="numbers of nodes", **several)
    parser.add_argument("--widths", default=[Setting.width], help="embedding widths", **several)
    parser.add_argument("--k", default=[Setting.k], help="negatives per edge", **several)
    parser.add_argument("--workers", default=[Setting.workers], help="of the loader", **several)
    parser.add_argument("--group", default="main", choices=ROWS, help="group of rows")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="rows of the group (default: all)")
    parser.add_argument("--degree", type=int, default=Setting.degree, help="mean degree")
    parser.add_argument("--batch-size", type=int, default=Setting.batch_size)
    parser.add_argument("--batches", type=int, default=Setting.batches, help="of a timed pass")
    parser.add_argument("--rounds", type=int, default=Setting.rounds, help="passes of each kind")
    parser.add_argument("--refreshes", type=int, default=Setting.refreshes, help="after the first")
    parser.add_argument("--int32", action="store_true", help="graphs with int32 ids")
    parser.add_argument("--clock", choices=CLOCKS, default=Setting.clock, help="what is timed")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to SEEDS - 1")
    add_run_options(parser, "results/speed")
    return parser


def _cells(arguments: argparse.Namespace) -> list[Cell]:
    known = ROWS[arguments.group]
    names = arguments.rows or list(known)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"rows: expected some of {', '.join(known)} (group {arguments.group}), got "
            f"{', '.join(unknown)}"
        )
    grid = itertools.product(
        arguments.nodes,
        arguments.widths,
        arguments.k,
        arguments.workers,
        dict.fromkeys(names),
        range(arguments.seeds),
    )
    return [
        Cell(
            Setting(
                nodes=nodes,
                degree=arguments.degree,
                width=width,
                k=k,
                workers=workers,
                batch_size=arguments.batch_size,
                batches=arguments.batches,
                rounds=arguments.rounds,
                refreshes=arguments.refreshes,
                int32=arguments.int32,
                clock=arguments.clock,
            ),
            known[name],
            seed,
        )
        for nodes, width, k, workers, name, seed in grid
    ]


def _heading(command: str, arguments: argparse.Namespace, record: dict[str, str | int]) -> str:
    lines = [
        "# What negatives cost beside DGL's uniform",
        "",
        f"Command: `{command}`",
        "",
        "Generated graphs: half of the pairs near on a ring, half to hubs with a power law. "
        f"Two-layer GraphSAGE, fanout {Setting.fanout} and {Setting.fanout}, batches of "
        f"{arguments.batch_size} positives. Call, loader, training step and epoch are ratios of "
        "medians taken in turn with DGL's `Uniform` in the same process, on a machine that may "
        f"have run other work at the same time: {CALLS} calls, and {arguments.rounds} passes of "
        f"{arguments.batches} batches. An epoch is its batches at the median time of one, and one "
        f"refresh (the fastest of {arguments.refreshes} after the first; in the background, what "
        f"one adds to a pass). The clock is {CLOCK_NAMES[arguments.clock]}. Peak memory is that of "
        "the main process with graph and features; each line is a process of its own.",
        "",
        "; ".join(f"{name} {value}" for name, value in record.items()),
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the report.

    Returns:
        0, or 1 if a cell failed.
    """
    arguments, cells = parse_run(_parser(), argv, _cells)
    store = CellStore(arguments.out / "cells")
    failures = run_missing(cells, run_cell, store, arguments, None)
    words = sys.argv[1:] if argv is None else argv
    command = public_command(["python", "-m", "benchmarks.speed", *words], {"--out": "OUT"})
    record = record_run(arguments.out, command)
    for file in write_report(cells, store, arguments.out, _heading(command, arguments, record)):
        print(file)
    return report_failures(failures)


if __name__ == "__main__":
    sys.exit(main())
