"""Train a tuned graph autoencoder with its own sampler and with ours (protocol D).

Cora and Citeseer, five seeds:

    python -m benchmarks.gae --datasets cora citeseer --data-dir ~/.dgl
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.common import (
    CellStore,
    add_run_options,
    finished,
    interval,
    markdown_table,
    public_command,
    record_run,
    report_failures,
    run_missing,
    spread,
    write_csv,
    write_text,
)
from benchmarks.gae.config import ROWS, Cell, Recipe
from benchmarks.gae.train import HITS, run_cell
from dgl_dmns.data import DATASET_NAMES

__all__ = ["main", "write_report"]

METRICS = (*(f"Hits@{k}" for k in HITS), "MRR")

_COSTS = ("best epoch", "epochs", "seconds per epoch")


_WITH_FEATURES = tuple(name for name in DATASET_NAMES if name != "dense")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gae",
        description="Train a tuned graph autoencoder with its own sampler and with ours.",
        allow_abbrev=False,  # so that placeholders find their options
    )
    parser.add_argument(
        "--datasets", nargs="+", default=_WITH_FEATURES, choices=(*_WITH_FEATURES, "tiny")
    )
    parser.add_argument("--data-dir", help="DGL's cache directory (default: DGL's own)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to SEEDS - 1")
    parser.add_argument("--hidden", type=int, default=Recipe.hidden)
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--patience", type=int, default=Recipe.patience)
    add_run_options(parser, "results/gae")
    return parser


def _table(rows: dict[str, list[Cell]], store: CellStore) -> str:
    found = {title: finished(cells, store) for title, cells in rows.items()}
    base = next(iter(found.values()))
    header = ("negatives", "runs", *METRICS, "Hits@100, difference", "MRR, difference")
    lines = []
    for title, runs in found.items():
        both = sorted(set(runs) & set(base))
        differences = [
            interval(
                [runs[seed]["test"][metric] for seed in both],
                [base[seed]["test"][metric] for seed in both],
            )
            if len(both) > 1 and runs is not base
            else "-"
            for metric in ("Hits@100", "MRR")
        ]
        figures = [spread([run["test"][metric] for run in runs.values()]) for metric in METRICS]
        lines.append([title, str(len(runs)), *figures, *differences])
    costs = [
        [title, *(spread([run[cost] for run in runs.values()], 2) for cost in _COSTS)]
        for title, runs in found.items()
    ]
    return markdown_table(header, lines) + "\n" + markdown_table(("negatives", *_COSTS), costs)


def write_report(
    tables: dict[str, dict[str, list[Cell]]], store: CellStore, out: Path, heading: str
) -> list[Path]:
    """Write ``results.csv`` and ``results.md``.

    Args:
        tables: cells in order of seeds, by data set and title of the row; differences are taken to
            the first row.
        store: the finished cells; absent ones show as "-".
        out: the folder.
        heading: Markdown above the first table.

    Returns:
        The files written.
    """
    lines: list[list[Any]] = []
    text = [heading]
    for dataset, rows in tables.items():
        text.append(f"\n## {dataset}\n\n{_table(rows, store)}")
        for title, cells in rows.items():
            for seed, run in finished(cells, store).items():
                figures = [run["test"][metric] for metric in METRICS]
                rest = [run[name] for name in (*_COSTS, "peak MB", "seconds")]
                lines.append([dataset, title, seed, *figures, *rest])
    files = [out / "results.csv", out / "results.md"]
    header = ["dataset", "row", "seed", *(f"test {m}" for m in METRICS)]
    write_csv(files[0], [*header, *_COSTS, "peak MB", "seconds"], lines)
    write_text(files[1], "".join(text))
    return files


def _heading(command: str, recipe: Recipe, record: dict[str, str | int]) -> str:
    return "\n".join(
        [
            "# A tuned graph autoencoder, with its sampler swapped",
            "",
            f"Command: `{command}`",
            "",
            "Protocol D: the recipe of Ma et al. (arXiv 2411.03845) in a smaller size. Hits@K: "
            "test pairs against one shared set of as many uniform non-edges; MRR: each end's "
            "partner ranked among all nodes, known edges left out, ties averaged. Early stopping "
            "on validation Hits@100. Mean ± standard error; differences to the first row, paired "
            "by seed, with a 95 % interval. Seconds are of training and refreshes, on a machine "
            "that may have run other work at the same time.",
            "",
            "Recipe: " + ", ".join(f"{name} {value}" for name, value in asdict(recipe).items()),
            "",
            "; ".join(f"{name} {value}" for name, value in record.items()),
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the report.

    Returns:
        0, or 1 if a cell failed.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    for name in ("seeds", "hidden", "epochs", "patience"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
    recipe = replace(
        Recipe(), hidden=arguments.hidden, epochs=arguments.epochs, patience=arguments.patience
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    tables = {
        dataset: {
            ROWS[name][0]: [
                Cell(dataset, recipe, *ROWS[name], seed) for seed in range(arguments.seeds)
            ]
            for name in dict.fromkeys(arguments.rows)
        }
        for dataset in arguments.datasets
    }
    store = CellStore(arguments.out / "cells")
    cells = [cell for rows in tables.values() for group in rows.values() for cell in group]
    failures = run_missing(cells, run_cell, store, arguments, arguments.data_dir)
    words = sys.argv[1:] if argv is None else argv
    command = public_command(
        ["python", "-m", "benchmarks.gae", *words], {"--data-dir": "CACHE", "--out": "OUT"}
    )
    record = record_run(arguments.out, command)
    for file in write_report(tables, store, arguments.out, _heading(command, recipe, record)):
        print(file)
    return report_failures(failures)


if __name__ == "__main__":
    sys.exit(main())
