"""Rerun the paper's tables (protocol A).

Cora, five seeds, with the published splits:

    python -m benchmarks.paper --datasets cora --data-dir ~/.dgl --official-splits splits --jobs 2

Before that, to choose the setting of each row on validation edges, six settings a row:

    python -m benchmarks.paper --tune --datasets cora --data-dir ~/.dgl --official-splits splits

The choices go to ``choices.json`` beside the code (``--choices``), and every later run with GCN
takes them from there; without the file all rows have their defaults.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import (
    CellStore,
    add_run_options,
    environment_record,
    public_command,
    record_run,
    report_failures,
    run_missing,
)
from benchmarks.paper.ablations import ABLATIONS, ablation_rows
from benchmarks.paper.config import Cell, Row, Training
from benchmarks.paper.problem import Folders
from benchmarks.paper.report import Section, write_report
from benchmarks.paper.rows import ROW_NAMES, chosen_settings, default_rows, main_rows
from benchmarks.paper.train import run_cell
from benchmarks.paper.tuning import (
    CHOICES,
    SHARED_NAMES,
    Choices,
    choose,
    read_choices,
    trials_of,
    why_unequal,
    write_choices,
    write_tuning,
)

__all__ = ["main"]

DATASETS = ("cora", "citeseer", "coauthor-cs", "actor")
PLACEHOLDERS = {
    "--data-dir": "CACHE",
    "--official-splits": "SPLITS",
    "--choices": "CHOICES",
    "--out": "OUT",
}
"""What stands in reports for the folders and files of the machine."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper",
        description="Rerun the tables of the DMNS paper, or choose the rows' settings (--tune).",
        allow_abbrev=False,  # so that placeholders find their options
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
    parser.add_argument(
        "--tune",
        action="store_true",
        help="run the same number of settings for each row (GCN, seed 0), write tuning.md and "
        "tuning.csv, and keep the best by validation MAP in the file of choices",
    )
    parser.add_argument(
        "--tune-settings",
        nargs="+",
        choices=SHARED_NAMES,
        help="with --tune: only these settings, for all rows alike (default: these and two of each "
        "row's own)",
    )
    parser.add_argument(
        "--choices",
        type=Path,
        default=CHOICES,
        help="JSON file of chosen settings: written by --tune, read by other runs; where it is "
        "absent, rows have their defaults (default: choices.json beside the code)",
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to SEEDS - 1")
    parser.add_argument("--epochs", type=int, default=Training.epochs)
    parser.add_argument("--patience", type=int, default=Training.patience)
    add_run_options(parser, "results/paper")
    return parser


def _training(arguments: argparse.Namespace) -> Training:
    return Training(encoder=arguments.encoder, epochs=arguments.epochs, patience=arguments.patience)


def _note(dataset: str, names: Sequence[str], training: Training, choices: Choices) -> str:
    """Which setting each row has, where any was chosen."""
    chosen = chosen_settings(dataset, training, choices)
    if not any(name in chosen for name in names):
        return ""
    parts = (f"{name}: {chosen.get(name, 'default')}" for name in names)
    return f"Settings, chosen on validation MAP of seed 0: {'; '.join(parts)}."


def _sections(arguments: argparse.Namespace, folders: Folders) -> list[Section]:
    training, choices = _training(arguments), read_choices(arguments.choices)

    def section(
        title: str, dataset: str, names: Sequence[str], rows: list[Row], reference: str
    ) -> Section:
        official = folders.has_split(dataset)
        seeds = range(arguments.seeds)
        cells = tuple(
            (row, tuple(Cell(dataset, row, seed, official) for seed in seeds)) for row in rows
        )
        note = _note(dataset, names, training, choices)
        return Section(title, dataset, cells, reference, note)

    sections = []
    for dataset in arguments.datasets if arguments.rows else ():
        known = main_rows(dataset, training, choices)
        names, rows = arguments.rows, [known[name] for name in arguments.rows]
        reference = known["uniform-5"].name
        sections.append(section("Negative samplers", dataset, names, rows, reference))
    groups = tuple(ABLATIONS) if "all" in arguments.ablations else arguments.ablations
    for group in groups:
        for dataset in arguments.datasets:
            rows = ablation_rows(group, dataset, training, choices)
            title = f"Ablation {group}"
            sections.append(section(title, dataset, ["dmns-latent"], rows, rows[0].name))
    return sections


def _heading(
    title: str, protocol: str, command: str, record: dict[str, str | int], folders: Folders
) -> str:
    lines = [
        f"# {title}",
        "",
        f"Command: `{command}`",
        "",
        f"Protocol A: a positive among 9 fixed uniform negatives, ties averaged; {protocol}",
        "Splits: "
        + ("the published ones of Cora, Citeseer and Actor" if folders.splits else "our own")
        + "; our own seeded split for Coauthor-CS.",
        "",
        "; ".join(f"{name} {value}" for name, value in record.items()),
    ]
    return "\n".join(lines) + "\n"


def _report(arguments: argparse.Namespace, folders: Folders, command: str) -> dict[str, str]:
    """Run the tables and write them; returns what failed."""
    sections = _sections(arguments, folders)
    if not sections:
        _parser().error("nothing to do: name rows (--rows) or ablations (--ablations)")
    store = CellStore(arguments.out / "cells")
    cells = [cell for section in sections for _, group in section.cells for cell in group]
    failures = run_missing(cells, run_cell, store, arguments, folders)
    record = record_run(arguments.out, command)
    protocol = (
        "mean ± standard error over the seeds; early stopping on validation MAP. Differences are "
        "paired by seed, with a 95 % interval."
    )
    heading = _heading("The paper's tables, rerun", protocol, command, record, folders)
    for file in write_report(sections, store, arguments.out, heading):
        print(file)
    return failures


def _tune(arguments: argparse.Namespace, folders: Folders, command: str) -> dict[str, str]:
    """Run the settings of the rows, write tables and choices; returns what failed."""
    defaults = default_rows(_training(arguments))
    rows = {name: defaults[name] for name in arguments.rows}
    trials = {
        dataset: trials_of(dataset, rows, folders.has_split(dataset), arguments.tune_settings)
        for dataset in arguments.datasets
    }
    every = [trial for group in trials.values() for trial in group]
    store = CellStore(arguments.out / "cells")
    cells = [trial.cell for trial in every]
    failures = run_missing(cells, run_cell, store, arguments, folders)
    choices: dict[str, dict[str, str]] = {}
    for dataset, group in trials.items():
        if reason := why_unequal(group, store):
            failures[f"choice for {dataset}"] = reason
        else:
            choices[dataset] = choose(group, store)
    protocol = (
        "early stopping on validation MAP; seed 0. The setting with the best validation MAP is "
        "chosen for its row; test MAP stands beside it and decides nothing."
    )
    heading = _heading("Settings of the rows", protocol, command, environment_record(), folders)
    for file in write_tuning(every, store, choices, arguments.out, heading):
        print(file)
    if choices:
        write_choices(arguments.choices, choices)
        print(arguments.choices)
    return failures


def _check(arguments: argparse.Namespace) -> None:
    if min(arguments.seeds, arguments.epochs, arguments.patience) < 1:
        _parser().error("--seeds, --epochs and --patience: expected at least 1")
    if arguments.tune_settings and not arguments.tune:
        _parser().error("--tune-settings: expected together with --tune")
    if arguments.tune and (arguments.ablations or arguments.encoder != "gcn"):
        _parser().error("--tune: chooses for the rows with GCN, not for --ablations or --encoder")
    if arguments.tune and not arguments.rows:
        _parser().error("--tune: expected at least one of --rows")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the report, or the tables and choices of ``--tune``.

    Returns:
        0, or 1 if a cell failed or nothing could be chosen for a data set.
    """
    words = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(words)
    _check(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    folders = Folders(arguments.data_dir, arguments.official_splits)
    work = _tune if arguments.tune else _report
    command = public_command(["python", "-m", "benchmarks.paper", *words], PLACEHOLDERS)
    failures = work(arguments, folders, command)
    return report_failures(failures)


if __name__ == "__main__":
    sys.exit(main())
