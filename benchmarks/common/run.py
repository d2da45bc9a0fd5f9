"""Run the cells that have no result yet, one process each, with a progress bar.

Each cell gets a fresh process: its peak memory is its own, and one that dies takes no other with
it.  The result travels through the store, so that whatever was finished stays finished.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Callable

import torch
from tqdm import tqdm

from benchmarks.common.cells import CellStore
from benchmarks.common.machine import peak_memory_mb, reset_peak_memory
from benchmarks.common.rows import Cell

__all__ = ["RunCell", "Runner", "run_cells"]

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
    """Run what is missing.

    Args:
        cells: configurations; those with a stored result are skipped.
        run: does the work of one cell, see `RunCell`.
        store: where results go.
        context: passed on to ``run``: what does not change a result, such as folders.
        jobs: processes at a time; 0 runs the cells one by one in this process.
        threads: threads of each process.
        progress: whether to show a bar.

    Returns:
        What failed: the cell's label and the reason. The other cells are run all the same.

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
