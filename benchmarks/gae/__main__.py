"""Train a tuned graph autoencoder with its own sampler and with ours (protocol D).

Cora and Citeseer, five seeds:

    python -m benchmarks.gae --datasets cora citeseer --data-dir ~/.dgl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.common.command import Command, benchmark_parser
from benchmarks.common.report import (
    Found,
    Section,
    cells_of,
    difference,
    mean,
    sections_of,
    table,
    write_report,
)
from benchmarks.common.rows import Cell
from benchmarks.gae.problem import ROWS, Recipe
from benchmarks.gae.train import HITS, run_cell
from dgl_dmns.data import DATASET_NAMES

__all__ = ["main"]

_COLUMNS = (
    *(mean(metric, f"test {metric}") for metric in (*(f"Hits@{k}" for k in HITS), "MRR")),
    difference("Hits@100, difference", "test Hits@100"),
    difference("MRR, difference", "test MRR"),
)
_COSTS = tuple(mean(cost, cost, 2) for cost in ("best epoch", "epochs", "seconds per epoch"))
_PROTOCOL = (
    "Protocol D: the recipe of Ma et al. (arXiv 2411.03845) in a smaller size. Hits@K: test pairs "
    "against one shared set of as many uniform non-edges; MRR: each end's partner ranked among all "
    "nodes, known edges left out, ties averaged. Early stopping on validation Hits@100. Mean ± "
    "standard error; differences to the first row, paired by seed, with a 95 % interval. Seconds "
    "are of training and refreshes, on a machine that may have run other work at the same time."
)


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(
        "gae",
        "Train a tuned graph autoencoder with its own sampler and with ours.",
        datasets=[name for name in DATASET_NAMES if name != "dense"],  # it has no features
        recipe=Recipe,
        seeds=5,
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--hidden", type=int, default=Recipe.hidden)
    return parser


def _tables(section: Section, found: Found) -> str:
    """Metrics beside the first row's, and costs."""
    return "\n".join(table(found, section.reference, columns) for columns in (_COLUMNS, _COSTS))


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the report.

    Returns:
        0, or 1 if a cell failed.
    """
    command = Command(_parser(), argv)
    options = command.arguments
    recipe = Recipe(hidden=options.hidden, epochs=options.epochs, patience=options.patience)
    sections = sections_of(
        "autoencoder",
        options.datasets,
        [ROWS[name] for name in dict.fromkeys(options.rows)],
        range(options.seeds),
        lambda dataset, row, seed: Cell(dataset, recipe, row, seed),
    )
    command.run(cells_of(sections), run_cell, options.data_dir)
    heading = command.heading(
        "A tuned graph autoencoder, with its sampler swapped",
        _PROTOCOL,
        "Recipe: " + ", ".join(f"{name} {value}" for name, value in asdict(recipe).items()),
    )
    return command.end(write_report(sections, command.store, command.out, heading, _tables))


if __name__ == "__main__":
    sys.exit(main())
