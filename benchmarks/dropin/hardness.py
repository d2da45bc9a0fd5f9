"""How hard a sampler's negatives are over a training, refresh by refresh (protocol B).

    python -m benchmarks.dropin.hardness --datasets cora --data-dir ~/.dgl --seeds 3

Each row is trained to convergence as in `benchmarks.dropin`, with a `Monitor` beside it. Written: a
line for each refresh of each run, a table of the course, and a plot. The rows by default are the
score alone, the gate alone, both in the default rule, and the density alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import (
    CellStore,
    add_run_options,
    finished,
    markdown_table,
    measured,
    parse_run,
    public_command,
    pyplot,
    record_run,
    report_failures,
    run_missing,
    spread,
    write_csv,
    write_text,
)
from benchmarks.dropin.config import DMNS, Cell, Dynamic, MarkovChain, Recipe, Row, SelfAdversarial
from benchmarks.dropin.problem import Problem, load_problem
from benchmarks.dropin.rows import main_rows
from benchmarks.dropin.train import train
from dgl_dmns.data import DATASET_NAMES
from dgl_dmns.diagnostics import Monitor

__all__ = ["WatchedCell", "course", "main", "run_cell"]

FOLLOWS = (Dynamic, SelfAdversarial, MarkovChain, DMNS)
"""The methods whose samplers follow the encoder, and so change over the training."""
ROWS = ("self-adversarial", "gate", "dmns", "density")
COLUMNS = {
    "percentile": "percentile among random nodes",
    "above_positive": "share that scores above a positive",
    "false_negative_lift": "held-out edges, times those of uniform draws",
}
"""What is kept of all negatives of a refresh, and what it is called."""
POINTS = (1, 2, 5, 10, 20, 50)
SMOOTH = {"false_negative_lift": 10}
"""Refreshes that a point of the plot is the mean of, up to its own, where events are rare."""


@dataclass(frozen=True)
class WatchedCell(Cell):
    """A run with a `Monitor` beside it, stored under a name of its own."""


def course(problem: Problem, cell: Cell) -> dict[str, Any]:
    """Train, and watch the negatives of every refresh.

    Args:
        problem: the data.
        cell: what to train; its method is one of `FOLLOWS`.

    Returns:
        A list for each of `COLUMNS` with an entry for each refresh, the one before the training
        first; ``auc``, the percentile of the positives, likewise, and the ``best epoch``.
    """
    monitors: list[Monitor] = []
    result = train(
        problem,
        cell,
        watch=lambda sampler: monitors.append(
            Monitor(sampler, held_out=problem.split.val, seed=cell.seed)
        ),
    )
    records = monitors[0].frame()
    drawn, positive = (records[records["level"] == name] for name in ("all", "positive"))
    kept = {column: drawn[column].tolist() for column in COLUMNS}
    auc = positive["percentile"].tolist()
    return {**kept, "auc": auc, "best epoch": result["best epoch"]}


def run_cell(cell: Cell, folder: str | None, threads: int = 1) -> dict[str, Any]:
    """`course` from a cell's configuration; arguments as of `benchmarks.dropin.train.run_cell`."""
    return measured(
        lambda: load_problem(cell.dataset, cell.recipe, cell.seed, folder),
        lambda problem: course(problem, cell),
        threads,
    )


Found = dict[Row, dict[int, dict[str, Any]]]
"""Runs by row and seed."""


def _table(found: Found) -> str:
    header = ["negatives", "runs", "refresh", "percentile of positives", *COLUMNS.values()]
    lines = []
    for row, runs in found.items():
        last = min((len(run["auc"]) for run in runs.values()), default=0)
        for point in (*(p for p in POINTS if p < last), last):
            if point:
                values = [[run[c][point - 1] for run in runs.values()] for c in ("auc", *COLUMNS)]
                lines.append([row.title, str(len(runs)), str(point), *map(spread, values)])
    return markdown_table(header, lines)


def _plot(found: Found, dataset: str, path: Path) -> bool:
    """A panel for each column, with the mean over seeds while all of them train."""
    plt = pyplot()
    if plt is None:
        return False
    figure, axes = plt.subplots(1, len(COLUMNS), figsize=(5 * len(COLUMNS), 4.2))
    for (column, words), ax in zip(COLUMNS.items(), axes):
        for row, runs in found.items():
            if runs:
                both = zip(*(run[column] for run in runs.values()))
                mean = [sum(values) / len(values) for values in both]
                width = SMOOTH.get(column, 1)
                parts = [mean[max(0, end - width) : end] for end in range(1, len(mean) + 1)]
                smooth = [sum(part) / len(part) for part in parts]
                ax.plot(range(1, len(mean) + 1), smooth, label=row.title)
        ax.set(xlabel="refresh", ylabel=words)
        ax.grid(alpha=0.3)
    axes[0].set_title(f"{dataset}: negatives over the training")
    axes[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _report(found: dict[str, Found], out: Path, heading: str) -> list[Path]:
    files = [out / "results.csv", out / "results.md"]
    names = ["auc", *COLUMNS]
    lines = [
        [dataset, row.title, seed, refresh, *values]
        for dataset, rows in found.items()
        for row, runs in rows.items()
        for seed, run in runs.items()
        for refresh, values in enumerate(zip(*(run[name] for name in names)), start=1)
    ]
    write_csv(files[0], ["dataset", "row", "seed", "refresh", *names], lines)
    sections = [f"\n## {dataset}\n\n{_table(rows)}" for dataset, rows in found.items()]
    write_text(files[1], heading + "".join(sections))
    for dataset, rows in found.items():
        path = out / f"{dataset}.png"
        if _plot(rows, dataset, path):
            files.append(path)
    return files


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dropin.hardness",
        description="How hard the negatives are over a training.",
        allow_abbrev=False,
    )
    choices = (*DATASET_NAMES, "tiny")
    parser.add_argument("--datasets", nargs="+", default=["cora"], choices=choices)
    parser.add_argument("--data-dir", help="DGL's cache directory (default: DGL's own)")
    known = [n for n, row in main_rows(Recipe()).items() if isinstance(row.method, FOLLOWS)]
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=known, metavar="ROW")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to SEEDS - 1")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--patience", type=int, default=Recipe.patience)
    add_run_options(parser, "results/hardness")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the report.

    Returns:
        0, or 1 if a cell failed.
    """
    arguments, recipe = parse_run(
        _parser(), argv, lambda options: Recipe(epochs=options.epochs, patience=options.patience)
    )
    rows = [main_rows(recipe)[name] for name in dict.fromkeys(arguments.rows)]
    store = CellStore(arguments.out / "cells")
    cells = {
        dataset: {
            row: [WatchedCell(dataset, recipe, row, seed) for seed in range(arguments.seeds)]
            for row in rows
        }
        for dataset in arguments.datasets
    }
    every = [cell for by_row in cells.values() for group in by_row.values() for cell in group]
    failures = run_missing(every, run_cell, store, arguments, arguments.data_dir)
    found = {
        dataset: {row: finished(group, store) for row, group in by_row.items()}
        for dataset, by_row in cells.items()
    }
    words = sys.argv[1:] if argv is None else argv
    command = public_command(
        ["python", "-m", "benchmarks.dropin.hardness", *words],
        {"--data-dir": "CACHE", "--out": "OUT"},
    )
    record = record_run(arguments.out, command)
    heading = (
        "# Hardness over the training\n\n"
        f"Command: `{command}`\n\n"
        "Mean ± standard error over the seeds, at some refreshes and at the last one that all "
        "seeds reached; refresh 1 comes before the first step. Held-out edges are those of "
        "validation. The percentile of positives is the AUC of the model.\n\n"
        + "; ".join(f"{name} {value}" for name, value in record.items())
        + "\n"
    )
    for file in _report(found, arguments.out, heading):
        print(file)
    return report_failures(failures)


if __name__ == "__main__":
    sys.exit(main())
