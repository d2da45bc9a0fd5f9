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
from typing import Any, get_args, get_type_hints

from benchmarks.common.command import Command, benchmark_parser, chosen, with_settings
from benchmarks.common.report import (
    Column,
    Done,
    Found,
    Runs,
    Section,
    cells_of,
    difference,
    mean,
    plot_runs,
    ratio,
    sections_of,
    table,
    write_report,
)
from benchmarks.common.rows import Cell, Row
from benchmarks.dropin.config import Recipe
from benchmarks.dropin.measure import DRAWS, HEART_METRICS, METRICS
from benchmarks.dropin.rows import GROUPS
from benchmarks.dropin.train import run_cell
from dgl_dmns.data import DATASET_NAMES

__all__ = ["main"]

_HEART = (
    "HeaRT (protocol C): test edges among negatives that heuristics find hard, the same for all "
    "rows; no part of training or of early stopping. "
)
_OPTIONS = ("encoder", "scorer", "loss", "k", "epochs", "patience")


def _false_share(runs: Runs, base: Runs) -> str:
    own = mean("", "false share", times=100).text(runs, base)
    return f"{own} ({mean('', 'uniform false share', times=100).text(runs, base)})"


_COSTS = (
    mean("s / epoch", "seconds per epoch"),
    mean("refresh share", "refresh share", 2),
    mean("epochs", "epochs", 0),
    mean("best epoch", "best epoch", 0),
    mean("input nodes / batch", "input nodes", 0),
    mean("peak MB", "peak MB", 0),
    mean("score of positives", "positive score", 2),
    mean("score of negatives", "negative score", 2),
    Column("false negatives, % (uniform)", _false_share),
    mean("weight of a negative", "weight"),
    mean("weight of a false one", "false weight"),
)


def _tables(section: Section, found: Found) -> str:
    """Rankings beside the reference, and what they cost."""
    hard = HEART_METRICS if any(c.recipe.heart for cs in section.cells.values() for c in cs) else ()
    ranking = (
        mean("MRR (val)", "val MRR"),
        *(mean(metric, f"test {metric}") for metric in (*METRICS, *hard)),
        difference(f"MRR, difference to {section.reference}", "test MRR"),
        ratio("MRR, ratio", "test MRR"),
        *(difference(f"{metric}, difference", f"test {metric}") for metric in ("MAP", *hard)),
    )
    parts = (table(found, section.reference, columns) for columns in (ranking, _COSTS))
    return "\n".join(parts)


def _draw(plt: Any, done: Done) -> Any:
    """Test MRR of every run, above the learning curves."""
    height = 4.5 + 0.3 * max(len(found) for _, found in done)
    figure, axes = plt.subplots(2, len(done), figsize=(5.5 * len(done), height), squeeze=False)
    for top, bottom, (section, found) in zip(*axes, done):
        plot_runs(top, found, "test MRR", {})
        top.set_title(section.dataset)
        for place, (title, runs) in enumerate((t, r) for t, r in found.items() if r):
            line = "-" if place < 10 else "--"  # there are ten colours
            bottom.plot(runs[min(runs)]["curve"], line, label=title, alpha=0.8)
        bottom.set(xlabel="epoch", ylabel="validation MRR, first seed")
        bottom.grid(alpha=0.3)
        if bottom.lines:
            bottom.legend(fontsize="x-small")
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(
        "dropin",
        "Train DGL's usual link predictor with every sampler in turn.",
        datasets=DATASET_NAMES,
        recipe=Recipe,
        seeds=5,
    )
    parser.add_argument("--group", default="main", choices=GROUPS, help="group of rows")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="rows of the group (default: all)")
    kinds = get_type_hints(Recipe)
    for name in ("encoder", "scorer", "loss"):
        default = getattr(Recipe, name)
        parser.add_argument(f"--{name}", default=default, choices=get_args(kinds[name]))
    parser.add_argument("--k", type=int, default=Recipe.k, help="negatives per edge")
    parser.add_argument(
        "--first-seed",
        type=int,
        default=0,
        help="the first of them, so that several machines can share them out; a report takes in "
        "the runs of its own seeds that lie in OUT",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="another field of the recipe (benchmarks/dropin/config.py), such as dropout=0.2; may "
        "be given more than once",
    )
    return parser


def _described(arguments: argparse.Namespace) -> tuple[Recipe, list[Section]]:
    if arguments.first_seed < 0:
        raise ValueError(f"first seed: expected at least 0, got {arguments.first_seed}")
    recipe = Recipe(**{name: getattr(arguments, name) for name in _OPTIONS})
    recipe = with_settings(recipe, arguments.set)
    known = GROUPS[arguments.group](recipe.k)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    reference = next(iter(known.values())).title

    def cell(dataset: str, row: Row, seed: int) -> Cell:
        return Cell(dataset, recipe, row, seed)

    rows = list(chosen(arguments.rows, known, arguments.group).values())
    return recipe, sections_of(arguments.group, arguments.datasets, rows, seeds, cell, reference)


def _protocol(recipe: Recipe) -> str:
    return (
        "Protocol B: test edges ranked among all nodes with known edges left out (MRR, Hits), and "
        "among 9 fixed uniform negatives (MAP); ties averaged; mean ± standard error over the "
        "seeds; early stopping on validation MRR. "
        + _HEART
        * (recipe.heart > 0)
        + "Differences and ratios (geometric) are paired by seed, with a 95 % interval. Seconds "
        "are of training and refreshes, on a machine that may have run other work at the same "
        "time. False negatives are validation or test edges among "
        f"{DRAWS} draws for all training edges at the best epoch; a weight is sigmoid(logit), the "
        "gradient that BCE gives to a negative (the log ratio taken off where calibrated)."
        + (" MCNS draws by inner products, not by the scorer." if recipe.scorer == "mlp" else "")
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the report.

    Returns:
        0, or 1 if a cell failed.
    """
    command = Command(_parser(), argv)
    recipe, sections = command.made(_described)
    command.run(cells_of(sections), run_cell, command.arguments.data_dir)
    heading = command.heading(
        "What a DGL user runs, with every sampler in turn",
        _protocol(recipe),
        "Recipe: " + ", ".join(f"{name} {value}" for name, value in asdict(recipe).items()),
    )
    store, out = command.store, command.out
    return command.end(write_report(sections, store, out, heading, _tables, draw=_draw))


if __name__ == "__main__":
    sys.exit(main())
