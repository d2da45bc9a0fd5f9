"""Rerun the paper's tables (protocol A).

Cora, five seeds, with the published splits:

    python -m benchmarks.paper --datasets cora --data-dir ~/.dgl --official-splits splits --jobs 2
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import CellStore, environment_record, run_cells, write_text
from benchmarks.paper.ablations import ABLATIONS, ablation_rows
from benchmarks.paper.config import Cell, Row, Training
from benchmarks.paper.problem import Folders
from benchmarks.paper.report import Section, write_report
from benchmarks.paper.rows import ROW_NAMES, main_rows
from benchmarks.paper.train import run_cell

__all__ = ["main"]

DATASETS = ("cora", "citeseer", "coauthor-cs", "actor")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description="Rerun the tables of the DMNS paper."
    )
    parser.add_argument("--datasets", nargs="+", default=DATASETS, choices=(*DATASETS, "tiny"))
    parser.add_argument("--data-dir", help="DGL's cache directory (default: DGL's own)")
    parser.add_argument(
        "--official-splits",
        help="folder with cora.npz, citeseer.npz and actor.npz; without it, and for Coauthor-CS, a "
        "split of our own by the same rule, drawn anew for each seed",
    )
    parser.add_argument("--encoder", default="gcn", choices=("gcn", "gat", "sage"))
    parser.add_argument(
        "--rows", nargs="*", default=ROW_NAMES, choices=ROW_NAMES, help="rows of the main table"
    )
    parser.add_argument(
        "--ablations",
        nargs="*",
        default=(),
        choices=(*ABLATIONS, "all"),
        help="groups of ablations, each a table of its own",
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to SEEDS - 1")
    parser.add_argument("--epochs", type=int, default=Training.epochs)
    parser.add_argument("--patience", type=int, default=Training.patience)
    parser.add_argument("--jobs", type=int, default=1, help="processes; 0: run in this one")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--out", type=Path, default=Path("results/paper"))
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _sections(arguments: argparse.Namespace, folders: Folders) -> list[Section]:
    training = Training(
        encoder=arguments.encoder, epochs=arguments.epochs, patience=arguments.patience
    )

    def section(title: str, dataset: str, rows: list[Row], reference: str) -> Section:
        official = folders.has_split(dataset)
        seeds = range(arguments.seeds)
        cells = tuple(
            (row, tuple(Cell(dataset, row, seed, official) for seed in seeds)) for row in rows
        )
        return Section(title, dataset, cells, reference)

    sections = []
    for dataset in arguments.datasets if arguments.rows else ():
        known = main_rows(dataset, training)
        rows = [known[name] for name in arguments.rows]
        sections.append(section("Negative samplers", dataset, rows, known["uniform-5"].name))
    groups = tuple(ABLATIONS) if "all" in arguments.ablations else arguments.ablations
    for group in groups:
        for dataset in arguments.datasets:
            rows = ablation_rows(group, dataset, training)
            sections.append(section(f"Ablation {group}", dataset, rows, rows[0].name))
    return sections


def _heading(command: str, record: dict[str, str | int], folders: Folders) -> str:
    lines = [
        "# The paper's tables, rerun",
        "",
        f"Command: `{command}`",
        "",
        "Protocol A: a positive among 9 fixed uniform negatives, ties averaged; mean ± standard "
        "error over the seeds; early stopping on validation MAP. Differences are paired by seed, "
        "with a 95 % interval.",
        "Splits: "
        + ("the published ones of Cora, Citeseer and Actor" if folders.splits else "our own")
        + "; our own seeded split for Coauthor-CS.",
        "",
        "; ".join(f"{name} {value}" for name, value in record.items()),
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the report.

    Returns:
        0, or 1 if a cell failed.
    """
    arguments = _parser().parse_args(argv)
    if min(arguments.seeds, arguments.epochs, arguments.patience) < 1:
        _parser().error("--seeds, --epochs and --patience: expected at least 1")
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    folders = Folders(arguments.data_dir, arguments.official_splits)
    sections = _sections(arguments, folders)
    if not sections:
        _parser().error("nothing to do: name rows (--rows) or ablations (--ablations)")
    store = CellStore(arguments.out / "cells")
    cells = [cell for section in sections for _, group in section.cells for cell in group]
    failures = run_cells(
        cells,
        run_cell,
        store,
        context=folders,
        jobs=arguments.jobs,
        threads=arguments.threads,
        progress=not arguments.quiet,
    )
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "-m", "benchmarks.paper", *words])
    record = environment_record()
    write_text(
        arguments.out / "environment.json",
        json.dumps({"command": command, **record}, indent=1) + "\n",
    )
    for file in write_report(sections, store, arguments.out, _heading(command, record, folders)):
        print(file)
    for label, reason in failures.items():
        print(f"failed: {label}: {reason}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
