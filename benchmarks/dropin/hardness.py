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
from functools import partial
from typing import Any

from benchmarks.common.cells import write_text
from benchmarks.common.command import Command, benchmark_parser
from benchmarks.common.report import (
    Found,
    cells_of,
    markdown_table,
    save_plot,
    sections_of,
    spread,
    write_csv,
)
from benchmarks.common.rows import Cell
from benchmarks.common.run import Runner
from benchmarks.dropin.config import Recipe
from benchmarks.dropin.problem import Problem, load_problem
from benchmarks.dropin.rows import main_rows
from benchmarks.dropin.train import train
from dgl_dmns.data import DATASET_NAMES
from dgl_dmns.diagnostics import Monitor

__all__ = ["WatchedCell", "course", "main", "run_cell"]

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
    """Train, and watch the negatives of every refresh, the one before the training first.

    Returns:
        A list for each of `COLUMNS` and for ``auc``, the percentile of the positives, with an entry
        for each refresh; and the ``best epoch``.
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


run_cell = Runner(load_problem, course)


def _table(found: Found) -> str:
    """The course of each row at some refreshes, and at the last one that all seeds reached."""
    header = ["negatives", "runs", "refresh", "percentile of positives", *COLUMNS.values()]
    lines = []
    for title, runs in found.items():
        last = min((len(run["auc"]) for run in runs.values()), default=0)
        for point in (*(p for p in POINTS if p < last), last):
            if point:
                values = [[run[c][point - 1] for run in runs.values()] for c in ("auc", *COLUMNS)]
                lines.append([title, str(len(runs)), str(point), *map(spread, values)])
    return markdown_table(header, lines)


def _draw(plt: Any, found: Found, dataset: str) -> Any:
    """A panel for each column, with the mean over seeds while all of them train."""
    figure, axes = plt.subplots(1, len(COLUMNS), figsize=(5 * len(COLUMNS), 4.2))
    for (column, words), axis in zip(COLUMNS.items(), axes):
        for title, runs in found.items():
            both = zip(*(run[column] for run in runs.values()))
            mean = [sum(values) / len(values) for values in both]
            width = SMOOTH.get(column, 1)
            parts = [mean[max(0, end - width) : end] for end in range(1, len(mean) + 1)]
            axis.plot(range(1, len(mean) + 1), [sum(p) / len(p) for p in parts], label=title)
        axis.set(xlabel="refresh", ylabel=words)
        axis.grid(alpha=0.3)
    axes[0].set_title(f"{dataset}: negatives over the training")
    axes[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(
        "dropin.hardness",
        "How hard the negatives are over a training.",
        datasets=DATASET_NAMES,
        chosen=["cora"],
        recipe=Recipe,
        seeds=3,
    )
    known = [name for name, row in main_rows(Recipe.k).items() if row.follows]
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=known, metavar="ROW")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the report.

    Returns:
        0, or 1 if a cell failed.
    """
    command = Command(_parser(), argv)
    options = command.arguments
    recipe = Recipe(epochs=options.epochs, patience=options.patience)
    sections = sections_of(
        "over the training",
        options.datasets,
        [main_rows(recipe.k)[name] for name in dict.fromkeys(options.rows)],
        range(options.seeds),
        lambda dataset, row, seed: WatchedCell(dataset, recipe, row, seed),
    )
    command.run(cells_of(sections), run_cell, options.data_dir)
    text = command.heading(
        "Hardness over the training",
        "Mean ± standard error over the seeds, at some refreshes and at the last one that all "
        "seeds reached; refresh 1 comes before the first step. Held-out edges are those of "
        "validation. The percentile of positives is the AUC of the model.",
    )
    names = ["auc", *COLUMNS]
    lines: list[list[Any]] = []
    files = [command.out / "results.csv", command.out / "results.md"]
    for section in sections:
        found, dataset = section.found(command.store), section.dataset
        text += f"\n## {dataset}\n\n{_table(found)}"
        for title, runs in found.items():
            for seed, run in runs.items():
                course = enumerate(zip(*(run[name] for name in names)), start=1)
                lines += [[dataset, title, seed, refresh, *values] for refresh, values in course]
        draw = partial(_draw, found=found, dataset=dataset)
        files += save_plot(command.out / f"{dataset}.png", draw)
    write_csv(files[0], ["dataset", "row", "seed", "refresh", *names], lines)
    write_text(files[1], text)
    return command.end(files)


if __name__ == "__main__":
    sys.exit(main())
