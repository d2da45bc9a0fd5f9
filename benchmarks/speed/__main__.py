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

from benchmarks.common.command import Command, benchmark_parser, chosen
from benchmarks.common.report import Section, cells_of, write_report
from benchmarks.speed.config import CLOCKS, ROWS, Setting, cell_of
from benchmarks.speed.measure import CALLS, run_cell
from benchmarks.speed.report import draw, exponents, tables

__all__ = ["main"]

_CLOCK_NAMES = {"wall": "that on the wall", "cpu": "that of the process on its core"}
_OPTIONS = ("degree", "batch_size", "batches", "rounds", "refreshes", "int32", "layerwise", "clock")


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(
        "speed", "Measure what negatives cost in time and memory, beside DGL's uniform.", seeds=1
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
    parser.add_argument("--layerwise", action="store_true", help="embeddings layer by layer")
    parser.add_argument("--clock", choices=CLOCKS, default=Setting.clock, help="what is timed")
    return parser


def _section(options: argparse.Namespace) -> Section:
    rows = chosen(options.rows, ROWS[options.group], options.group).values()
    grid = itertools.product(options.nodes, options.widths, options.k, options.workers)
    same = {name: getattr(options, name) for name in _OPTIONS}
    cells = {}
    for nodes, width, k, workers in grid:
        setting = Setting(nodes=nodes, width=width, k=k, workers=workers, **same)
        for row in rows:
            group = [cell_of(setting, row, seed) for seed in range(options.seeds)]
            cells[f"{row.title}, {group[0].dataset}"] = group
    return Section(options.group, "generated graphs", cells, "")


def _protocol(options: argparse.Namespace) -> str:
    return (
        "Half of the pairs near on a ring, half to hubs with a power law. "
        f"Two-layer GraphSAGE, fanout {Setting.fanout} and {Setting.fanout}, batches of "
        f"{options.batch_size} positives. Call, loader, training step and epoch are ratios of "
        "medians taken in turn with DGL's `Uniform` in the same process, on a machine that may "
        f"have run other work at the same time: {CALLS} calls, and {options.rounds} passes of "
        f"{options.batches} batches. An epoch is its batches at the median time of one, and one "
        f"refresh (the fastest of {options.refreshes} after the first; in the background, what "
        f"one adds to a pass). The clock is {_CLOCK_NAMES[options.clock]}. Peak memory is that of "
        "the main process with graph and features; each run is a process of its own."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the report.

    Returns:
        0, or 1 if a cell failed.
    """
    command = Command(_parser(), argv)
    sections = [command.made(_section)]
    command.run(cells_of(sections), run_cell)
    heading = command.heading(
        "What negatives cost beside DGL's uniform", _protocol(command.arguments)
    )
    files = write_report(
        sections, command.store, command.out, heading, tables, end=exponents, draw=draw
    )
    return command.end(files)


if __name__ == "__main__":
    sys.exit(main())
