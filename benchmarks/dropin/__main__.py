"""Train the usual DGL link predictor with every sampler in turn (protocol B).

Cora, five seeds, the whole table; then three rows on two data sets with another loss and rate:

    python -m benchmarks.dropin --datasets cora --data-dir ~/.dgl
    python -m benchmarks.dropin --datasets cora actor --rows uniform self-adversarial gate \
        --loss cross-entropy --set learning_rate=0.01 --set features=pca-scaled
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import get_args, get_type_hints

from benchmarks.common import (
    CellStore,
    add_run_options,
    parse_run,
    public_command,
    record_run,
    report_failures,
    run_missing,
)
from benchmarks.dropin.config import Cell, Recipe, with_settings
from benchmarks.dropin.measure import DRAWS
from benchmarks.dropin.report import Section, write_report
from benchmarks.dropin.rows import GROUPS
from benchmarks.dropin.train import run_cell
from dgl_dmns.data import DATASET_NAMES

__all__ = ["main"]

_HEART = (
    "HeaRT (protocol C): test edges among negatives that heuristics find hard, the same for all "
    "rows; no part of training or of early stopping. "
)

PLACEHOLDERS = {"--data-dir": "CACHE", "--out": "OUT"}
"""What stands in reports for the folders of the machine."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dropin",
        description="Train DGL's usual link predictor with every sampler in turn.",
        allow_abbrev=False,  # so that placeholders find their options
    )
    parser.add_argument(
        "--datasets", nargs="+", default=DATASET_NAMES, choices=(*DATASET_NAMES, "tiny")
    )
    parser.add_argument("--data-dir", help="DGL's cache directory (default: DGL's own)")
    parser.add_argument("--group", default="main", choices=GROUPS, help="group of rows")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="rows of the group (default: all)")
    parser.add_argument("--encoder", default=Recipe.encoder, choices=("sage", "gcn", "gat"))
    parser.add_argument("--scorer", default=Recipe.scorer, choices=("dot", "mlp"))
    losses = get_args(get_type_hints(Recipe)["loss"])
    parser.add_argument("--loss", default=Recipe.loss, choices=losses)
    parser.add_argument("--k", type=int, default=Recipe.k, help="negatives per edge")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds")
    parser.add_argument(
        "--first-seed",
        type=int,
        default=0,
        help="the first of them, so that several machines can share them out; a report takes in "
        "the runs of its own seeds that lie in OUT",
    )
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--patience", type=int, default=Recipe.patience)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="another field of the recipe (benchmarks/dropin/config.py), such as dropout=0.2; may "
        "be given more than once",
    )
    add_run_options(parser, "results/dropin")
    return parser


def _recipe(arguments: argparse.Namespace) -> Recipe:
    recipe = Recipe(
        encoder=arguments.encoder,
        scorer=arguments.scorer,
        loss=arguments.loss,
        k=arguments.k,
        epochs=arguments.epochs,
        patience=arguments.patience,
    )
    return with_settings(recipe, arguments.set)


def _sections(arguments: argparse.Namespace, recipe: Recipe) -> list[Section]:
    known = GROUPS[arguments.group](recipe)
    names = arguments.rows or list(known)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"rows: expected some of {', '.join(known)} (group {arguments.group}), got "
            f"{', '.join(unknown)}"
        )
    rows = [known[name] for name in dict.fromkeys(names)]
    reference = next(iter(known.values()))
    if arguments.first_seed < 0:
        raise ValueError(f"first seed: expected at least 0, got {arguments.first_seed}")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    return [
        Section(
            dataset,
            tuple((row, tuple(Cell(dataset, recipe, row, seed) for seed in seeds)) for row in rows),
            reference,
        )
        for dataset in arguments.datasets
    ]


def _described(arguments: argparse.Namespace) -> tuple[Recipe, list[Section]]:
    recipe = _recipe(arguments)
    return recipe, _sections(arguments, recipe)


def _heading(command: str, recipe: Recipe, record: dict[str, str | int]) -> str:
    lines = [
        "# What a DGL user runs, with every sampler in turn",
        "",
        f"Command: `{command}`",
        "",
        "Protocol B: test edges ranked among all nodes with known edges left out (MRR, Hits), and "
        "among 9 fixed uniform negatives (MAP); ties averaged; mean ± standard error over the "
        "seeds; early stopping on validation MRR. "
        + _HEART
        * (recipe.heart > 0)
        + "Differences and ratios (geometric) are paired by "
        "seed, with a 95 % interval. Seconds are of training and refreshes, on a machine that may "
        "have run other work at the same time. False negatives are validation or test edges among "
        f"{DRAWS} draws for all training edges at the best epoch; a weight is sigmoid(logit), the "
        "gradient that BCE gives to a negative (the log ratio taken off where calibrated)."
        + (" MCNS draws by inner products, not by the scorer." if recipe.scorer == "mlp" else ""),
        "",
        "Recipe: " + ", ".join(f"{name} {value}" for name, value in asdict(recipe).items()),
        "",
        "; ".join(f"{name} {value}" for name, value in record.items()),
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the report.

    Returns:
        0, or 1 if a cell failed.
    """
    arguments, (recipe, sections) = parse_run(_parser(), argv, _described)
    store = CellStore(arguments.out / "cells")
    cells = [cell for section in sections for _, group in section.cells for cell in group]
    failures = run_missing(cells, run_cell, store, arguments, arguments.data_dir)
    words = sys.argv[1:] if argv is None else argv
    command = public_command(["python", "-m", "benchmarks.dropin", *words], PLACEHOLDERS)
    record = record_run(arguments.out, command)
    for file in write_report(sections, store, arguments.out, _heading(command, recipe, record)):
        print(file)
    return report_failures(failures)


if __name__ == "__main__":
    sys.exit(main())
