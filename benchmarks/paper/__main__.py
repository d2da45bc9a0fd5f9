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
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.command import Command, benchmark_parser
from benchmarks.common.report import Section, cells_of, write_report
from benchmarks.common.rows import Cell
from benchmarks.paper.ablations import ABLATIONS, ablation_lines
from benchmarks.paper.config import ROWS, Training
from benchmarks.paper.problem import Folders
from benchmarks.paper.report import draw, psi_table, tables
from benchmarks.paper.train import run_cell
from benchmarks.paper.tuning import (
    CHOICES,
    SHARED_NAMES,
    Trials,
    choose,
    chosen_lines,
    chosen_settings,
    read_choices,
    trials_of,
    tuning_section,
    tuning_table,
    write_choices,
)

__all__ = ["main"]

_DATASETS = ("cora", "citeseer", "coauthor-cs", "actor")


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(
        "paper",
        "Rerun the tables of the DMNS paper, or choose the rows' settings (--tune).",
        datasets=_DATASETS,
        recipe=Training,
        seeds=5,
    )
    parser.add_argument(
        "--official-splits",
        help="folder with cora.npz, citeseer.npz and actor.npz; without it, and for Coauthor-CS, a "
        "split of our own by the same rule, drawn anew for each seed",
    )
    parser.add_argument("--encoder", default="gcn", choices=("gcn", "gat", "sage"))
    parser.add_argument(
        "--rows", nargs="*", default=tuple(ROWS), choices=ROWS, help="rows of the main table"
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
    return parser


def _check(arguments: argparse.Namespace) -> Folders:
    if arguments.tune_settings and not arguments.tune:
        raise ValueError("--tune-settings: expected together with --tune")
    if arguments.tune and (arguments.ablations or arguments.encoder != "gcn"):
        raise ValueError("--tune: chooses for the rows with GCN, not for --ablations or --encoder")
    if arguments.tune and not arguments.rows:
        raise ValueError("--tune: expected at least one of --rows")
    if not arguments.rows and not arguments.ablations:
        raise ValueError("nothing to do: name rows (--rows) or ablations (--ablations)")
    return Folders(arguments.data_dir, arguments.official_splits)


def _training(arguments: argparse.Namespace, dataset: str, folders: Folders) -> Training:
    return Training(
        encoder=arguments.encoder,
        epochs=arguments.epochs,
        patience=arguments.patience,
        official=folders.has_split(dataset),
    )


def _sections(arguments: argparse.Namespace, folders: Folders) -> list[Section]:
    choices = read_choices(arguments.choices)
    groups = ABLATIONS if "all" in arguments.ablations else arguments.ablations
    sections = []
    for group in (*["samplers"] * bool(arguments.rows), *groups):
        for dataset in arguments.datasets:
            training = _training(arguments, dataset, folders)
            known = chosen_lines(dataset, training, choices)
            names, reference = list(arguments.rows), known["uniform-5"]
            lines = [known[name] for name in names]
            if group in ABLATIONS:
                names, reference = ["dmns-latent"], known["dmns-latent"]
                lines = ablation_lines(group, reference)
            cells = {
                row.title: [Cell(dataset, own, row, seed) for seed in range(arguments.seeds)]
                for row, own in lines
            }
            chosen = chosen_settings(dataset, training, choices)
            note = ""
            if any(name in chosen for name in names):
                settings = "; ".join(f"{name}: {chosen.get(name, 'default')}" for name in names)
                note = f"Settings, chosen on validation MAP of seed 0: {settings}."
            sections.append(Section(group, dataset, cells, reference.row.title, note))
    return sections


def _protocol(words: str, folders: Folders) -> str:
    splits = "the published ones of Cora, Citeseer and Actor" if folders.splits else "our own"
    return (
        f"Protocol A: a positive among 9 fixed uniform negatives, ties averaged; {words}\n"
        f"Splits: {splits}; our own seeded split for Coauthor-CS."
    )


def _report(command: Command, folders: Folders) -> list[Path]:
    """Run the tables and write them."""
    sections = command.made(lambda arguments: _sections(arguments, folders))
    command.run(cells_of(sections), run_cell, folders)
    protocol = (
        "mean ± standard error over the seeds; early stopping on validation MAP. Differences are "
        "paired by seed, with a 95 % interval."
    )
    heading = command.heading("The paper's tables, rerun", _protocol(protocol, folders))
    return write_report(
        sections, command.store, command.out, heading, tables, end=psi_table, draw=draw
    )


def _chosen(command: Command, dataset: str, trials: Trials) -> dict[str, str]:
    """The settings of a data set's rows; none where there is no fair choice, which is a failure."""
    try:
        return choose(trials, command.store)
    except ValueError as error:
        command.failures[f"choice for {dataset}"] = str(error)
        return {}


def _tune(command: Command, folders: Folders) -> list[Path]:
    """Run the settings of the rows, write tables and choices."""
    options, store = command.arguments, command.store
    trials = {
        dataset: trials_of(
            dataset, options.rows, _training(options, dataset, folders), options.tune_settings
        )
        for dataset in options.datasets
    }
    command.run(
        [cell for rows in trials.values() for row in rows.values() for cell in row.values()],
        run_cell,
        folders,
    )
    choices = {
        name: made for name, rows in trials.items() if (made := _chosen(command, name, rows))
    }
    protocol = (
        "early stopping on validation MAP; seed 0. The setting with the best validation MAP is "
        "chosen for its row; test MAP stands beside it and decides nothing."
    )
    heading = command.heading("Settings of the rows", _protocol(protocol, folders))
    sections = [tuning_section(name, rows, choices.get(name, {})) for name, rows in trials.items()]
    files = write_report(sections, store, command.out, heading, tuning_table, name="tuning")
    if choices:
        write_choices(options.choices, choices)
        files.append(options.choices)
    return files


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the report, or the tables and choices of ``--tune``.

    Returns:
        0, or 1 if a cell failed or nothing could be chosen for a data set.
    """
    command = Command(_parser(), argv)
    folders = command.made(_check)
    work = _tune if command.arguments.tune else _report
    return command.end(work(command, folders))


if __name__ == "__main__":
    sys.exit(main())
