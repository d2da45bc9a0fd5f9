"""What the command lines of all benchmarks do alike: options, running, and the record of a run."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.common.cells import CellStore
from benchmarks.common.environment import environment_record, peak_memory_mb, reset_peak_memory
from benchmarks.common.jobs import RunCell, run_cells
from benchmarks.common.tables import write_text

__all__ = [
    "add_run_options",
    "measured",
    "parse_run",
    "record_run",
    "report_failures",
    "run_missing",
]

Loaded = TypeVar("Loaded")


def add_run_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Options that say how cells are run, not what they are.

    Args:
        parser: of the command.
        out: default folder of the results.
    """
    parser.add_argument("--jobs", type=int, default=1, help="processes; 0: run in this one")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def parse_run(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    describe: Callable[[argparse.Namespace], Loaded],
) -> tuple[argparse.Namespace, Loaded]:
    """Read the words of a command, and bound the threads of what it starts.

    Args:
        parser: with ``--seeds`` and the options of `add_run_options`.
        argv: the words; those of the process where None.
        describe: makes what is to be run of the options; a `ValueError` from it is one of the
            command line.

    Returns:
        The options, and what ``describe`` made of them.
    """
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1:
        parser.error(f"--seeds: expected at least 1, got {arguments.seeds}")
    try:
        made = describe(arguments)
    except ValueError as error:
        parser.error(str(error))
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    return arguments, made


def run_missing(
    cells: list[Any], run: RunCell, store: CellStore, arguments: argparse.Namespace, context: Any
) -> dict[str, str]:
    """Run the cells without a result as `add_run_options` says; returns what failed."""
    return run_cells(
        cells,
        run,
        store,
        context=context,
        jobs=arguments.jobs,
        threads=arguments.threads,
        progress=not arguments.quiet,
    )


def record_run(out: Path, command: str) -> dict[str, str | int]:
    """Write ``environment.json``: the command and what a run depends on; returns the latter."""
    record = environment_record()
    text = json.dumps({"command": command, **record}, indent=1) + "\n"
    write_text(out / "environment.json", text)
    return record


def report_failures(failures: Mapping[str, str]) -> int:
    """Say what failed; returns the exit status, 1 if anything did."""
    for label, reason in failures.items():
        print(f"failed: {label}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def measured(
    load: Callable[[], Loaded], work: Callable[[Loaded], dict[str, Any]], threads: int
) -> dict[str, Any]:
    """Run the two halves of a cell, with their cost.

    Args:
        load: makes what the work needs.
        work: returns the cell's result.
        threads: torch's threads.

    Returns:
        The result of ``work`` with ``seconds to load``, ``seconds`` and ``peak MB``.
    """
    torch.set_num_threads(threads)
    gc.collect()
    reset_peak_memory()
    started = time.perf_counter()
    loaded = load()
    ready = time.perf_counter()
    result = work(loaded)
    return {
        **result,
        "seconds to load": ready - started,
        "seconds": time.perf_counter() - ready,
        "peak MB": peak_memory_mb(),
    }
