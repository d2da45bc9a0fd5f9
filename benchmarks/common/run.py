"""Run the cells that have no result yet, one process each, with a progress bar.

Each cell gets a fresh process: its peak memory is its own, and one that dies takes no other with
it.  The result travels through the store, so that whatever was finished stays finished.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import torch
from tqdm import tqdm

from benchmarks.common.cells import CellStore
from benchmarks.common.rows import Cell
from dgl_dmns._compat import version_of

__all__ = [
    "RunCell",
    "Runner",
    "environment_record",
    "peak_memory_mb",
    "reset_peak_memory",
    "run_cells",
]

_PACKAGES = ("dgl-dmns", "dgl", "torch", "numpy")


def _line(path: str, start: str) -> str:
    """What follows the first such start of a line of a system file, or nothing."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            if line.startswith(start):
                return line.partition(":")[2].strip()
    return ""


def environment_record() -> dict[str, str | int]:
    """Versions, processor and cores, as plain values for a results file."""
    processor = _line("/proc/cpuinfo", "model name")
    return {
        "python": platform.python_version(),
        **{package: version_of(package) or "not installed" for package in _PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
    }


def reset_peak_memory() -> None:
    """Let `peak_memory_mb` count from now on, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb() -> float:
    """The largest resident size of this process in MB of 10^6 bytes; NaN on Windows.

    Counted since the last `reset_peak_memory`, or since the start where the system cannot reset it.
    """
    if peak := _line("/proc/self/status", "VmHWM"):
        return float(peak.split()[0]) * 1024 / 1e6
    if sys.platform == "win32":
        return float("nan")
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(usage) / 1e6 if sys.platform == "darwin" else float(usage) * 1024 / 1e6


RunCell = Callable[[Any, Any, int], dict[str, Any]]
"""``run(cell, context, threads)`` returns the cell's result; it travels to another process."""


@dataclass(frozen=True)
class Runner:
    """Runs a cell from its configuration, and measures what that costs."""

    # makes the problem of a data set, a recipe, a seed and the context, such as a folder
    load: Callable[[str, Any, int, Any], Any]
    # returns the result of a problem and a cell, as plain values
    work: Callable[[Any, Cell], dict[str, Any]]

    def __call__(self, cell: Cell, context: Any = None, threads: int = 1) -> dict[str, Any]:
        """The result, with ``seconds to load``, ``seconds`` and ``peak MB``."""
        torch.set_num_threads(threads)
        gc.collect()
        reset_peak_memory()
        started = time.perf_counter()
        problem = self.load(cell.dataset, cell.recipe, cell.seed, context)
        ready = time.perf_counter()
        result = self.work(problem, cell)
        return {
            **result,
            "seconds to load": ready - started,
            "seconds": time.perf_counter() - ready,
            "peak MB": peak_memory_mb(),
        }


_Work = tuple[RunCell, Any, Any, int, CellStore]  # run, cell, context, threads, store


def _finish(run: RunCell, cell: Any, context: Any, threads: int, store: CellStore) -> None:
    store.save(cell, run(cell, context, threads))


def _here(work: _Work) -> str:
    """Run one cell in this process; returns what went wrong, or nothing."""
    try:
        _finish(*work)
    except Exception:
        return traceback.format_exc()
    return ""


def _in_process(work: _Work) -> str:
    """Run one cell in a process of its own; returns what went wrong, or nothing."""
    process = multiprocessing.get_context("spawn").Process(target=_finish, args=work)
    process.start()
    process.join()
    if process.exitcode == 0:
        return ""
    return f"its process ended with exit status {process.exitcode} (messages are above)"


def _outcomes(works: list[_Work], jobs: int) -> Iterator[tuple[Any, str]]:
    """Each cell and what went wrong with it, as they end."""
    if jobs == 0:
        yield from ((work[1], _here(work)) for work in works)
        return
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_in_process, work): work[1] for work in works}
        yield from ((waiting[done], done.result()) for done in as_completed(waiting))


def run_cells(
    cells: list[Any],
    run: RunCell,
    store: CellStore,
    *,
    context: Any = None,
    jobs: int = 1,
    threads: int = 1,
    progress: bool = True,
) -> dict[str, str]:
    """Run the cells without a stored result, and go on where one fails.

    Args:
        cells: configurations.
        run: does the work of one cell.
        store: where results go.
        context: passed on to ``run``: what does not change a result, such as folders.
        jobs: processes at a time; 0 runs the cells one by one in this process.
        threads: threads of each process.
        progress: whether to show a bar.

    Returns:
        What failed: the cell's label and the reason.

    Raises:
        ValueError: for a negative ``jobs`` or fewer threads than one.
    """
    if jobs < 0 or threads < 1:
        raise ValueError(f"jobs, threads: expected at least 0 and 1, got {jobs} and {threads}")
    works = [(run, cell, context, threads, store) for cell in store.missing(cells)]
    failures: dict[str, str] = {}
    done = len(cells) - len(works)
    with tqdm(total=len(cells), initial=done, disable=not progress) as bar:
        for cell, reason in _outcomes(works, jobs):
            bar.set_postfix_str(str(cell))
            bar.update()
            if reason:
                failures[str(cell)] = reason
    return failures
