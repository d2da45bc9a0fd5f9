"""Run the cells that have no result yet, one process each, with a progress bar.

Each cell gets a fresh process: its peak memory is its own, and one that dies takes no other with
it.  The result travels through the store, so that whatever was finished stays finished.
"""

from __future__ import annotations

import multiprocessing
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Callable

from tqdm import tqdm

from benchmarks.common.cells import CellStore

__all__ = ["RunCell", "run_cells"]

RunCell = Callable[[Any, Any, int], dict[str, Any]]
"""``run(cell, context, threads)``, a module-level function that returns the cell's result."""


def _child(run: RunCell, cell: Any, context: Any, threads: int, store: CellStore) -> None:
    store.save(cell, run(cell, context, threads))


def _in_process(run: RunCell, cell: Any, context: Any, threads: int, store: CellStore) -> str:
    """Run one cell in a process of its own; returns what went wrong, or nothing."""
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_child, args=(run, cell, context, threads, store))
    process.start()
    process.join()
    if process.exitcode == 0:
        return ""
    return f"its process ended with exit status {process.exitcode} (messages are above)"


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
    missing = store.missing(cells)
    failures: dict[str, str] = {}
    with tqdm(total=len(cells), initial=len(cells) - len(missing), disable=not progress) as bar:
        if jobs == 0:
            for cell in missing:
                bar.set_postfix_str(str(cell))
                try:
                    _child(run, cell, context, threads, store)
                except Exception:
                    failures[str(cell)] = traceback.format_exc()
                bar.update()
            return failures
        with ThreadPoolExecutor(jobs) as pool:
            waiting = {
                pool.submit(_in_process, run, cell, context, threads, store): cell
                for cell in missing
            }
            for done in as_completed(waiting):
                bar.set_postfix_str(str(waiting[done]))
                if reason := done.result():
                    failures[str(waiting[done])] = reason
                bar.update()
    return failures
