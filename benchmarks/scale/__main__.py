"""When hard negatives add to shared ones: by the shared pool's share of the nodes.

python -m benchmarks.scale --datasets nested-10k --shares 0.02 0.001 --seeds 3
python -m benchmarks.scale --datasets cora citeseer --shares 1 0.1 0.02 0.005
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.common.command import Command, benchmark_parser, chosen
from benchmarks.common.report import (
    Done,
    Found,
    Section,
    cells_of,
    mean,
    ratio,
    sections_of,
    table,
    write_report,
)
from benchmarks.common.rows import Cell, Row
from benchmarks.scale.problem import GENERATED
from benchmarks.scale.train import Recipe, run_cell
from dgl_dmns.data import DATASET_NAMES

__all__ = ["ROWS", "draw_gains", "main"]


def _row(title: str, sampler: str, **options: Any) -> Row:
    if sampler != "uniform":
        options.setdefault("uniform_share", 0.5)
    return Row(title, sampler, options, "shared")


ROWS = {
    "uniform": _row("uniform (1)", "uniform", k=1),
    "uniform-5": _row("uniform (5)", "uniform", k=5),
    "score": _row("self-adversarial (5)", "self-adversarial", k=5),
    "hardest": _row("DNS (5)", "dynamic", k=5),
    "gaussian": _row("Gaussian around the query (5)", "stand-in", k=5, centre="query"),
    "dmns-1": _row("DMNS (1)", "dmns", k=1),
    "dmns": _row("DMNS (5)", "dmns", k=5),
}
"""Rows by their command-line names; differences are to the first."""

_COLUMNS = (
    mean("pool", "pool", 0),
    mean("MRR (val)", "val MRR", 4),
    mean("MRR", "test MRR", 4),
    mean("Hits@10", "test Hits@10"),
    ratio("MRR, ratio", "test MRR"),
    mean("s / round", "seconds per round", 2),
    mean("refresh share", "refresh share", 2),
    mean("rounds", "rounds", 0),
    mean("held-out, share of the hard", "false share", 4),
    mean("of their weight", "false weight", 4),
)


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(
        "scale",
        "When hard negatives add to shared ones.",
        datasets=(*GENERATED, *DATASET_NAMES),
        chosen=["nested-10k"],
        recipe=Recipe,
        seeds=3,
    )
    text = "shared negatives that a positive is compared with, over all nodes"
    parser.add_argument("--shares", type=float, nargs="+", default=[0.02, 0.001], help=text)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="batches a round, at most")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"of {', '.join(ROWS)}")
    return parser


def _sections(options: argparse.Namespace) -> list[Section]:
    rows = list(chosen(options.rows, ROWS, "scale").values())
    recipe = Recipe(epochs=options.epochs, patience=options.patience, steps=options.steps)
    found = []
    for share in options.shares:
        own = replace(recipe, share=share)

        def cell(dataset: str, row: Row, seed: int, own: Recipe = own) -> Cell:
            return Cell(dataset, own, row, seed)

        first, seeds = ROWS["uniform"].title, range(options.seeds)
        for dataset in options.datasets:
            (section,) = sections_of("shared pools", [dataset], rows, seeds, cell, first)
            found.append(replace(section, dataset=f"{dataset}, pool {share:.1%} of the nodes"))
    return found


def _tables(section: Section, found: Found) -> str:
    return table(found, section.reference, _COLUMNS)


def _draw(plt: Any, done: Done) -> Any:
    lines = [
        (section.dataset, row, seed, run["pool"], run["test MRR"])
        for section, found in done
        for row, runs in found.items()
        for seed, run in runs.items()
    ]
    columns = ["dataset", "row", "seed", "pool", "test MRR"]
    return draw_gains(plt, pd.DataFrame(lines, columns=columns))


def draw_gains(plt: Any, runs: pd.DataFrame) -> Any:
    """How many times the MRR of uniform negatives the others have, by how many a batch shares.

    A line of ``runs`` is one of ``results.csv``, of a row that is run today; equal cells of several
    tables are averaged. A part of the figure is a graph.
    """
    base = ROWS["uniform"].title
    graph = runs["dataset"].str.extract(r"(?P<graph>.+), pool [\d.]+%")["graph"]
    runs = runs.assign(graph=graph)[runs["row"].isin([row.title for row in ROWS.values()])]
    mrr = runs.pivot_table("test MRR", ["graph", "pool", "seed"], "row")
    if base not in mrr:
        return plt.figure()
    ratio = mrr.div(mrr.pop(base), axis=0).apply(np.log)
    graphs = sorted(ratio.index.unique("graph"), key=lambda name: (len(name), name))
    across = min(2, len(graphs))
    down = -(-len(graphs) // across)
    size = {"figsize": (3.6 * across, 3 * down + 0.8), "squeeze": False}
    figure, axes = plt.subplots(
        down, across, layout="constrained", sharex=True, sharey=True, **size
    )
    for ax in axes.flat[len(graphs) :]:
        ax.remove()
    lines: dict[Any, Any] = {}  # by row, for one legend
    for ax, graph in zip(axes.flat, graphs):
        for color, (row, of_row) in enumerate(ratio.loc[graph].items()):
            by_pool = of_row.dropna().groupby("pool")
            mean, error = by_pool.mean(), by_pool.sem()
            if len(mean):
                bar = {"marker": "o", "color": f"C{color}"}
                lines[row] = ax.errorbar(mean.index, np.exp(mean), np.exp(mean) * error, **bar)
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set(xscale="log", title=graph)
        ax.xaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    for ax in axes[-1]:
        ax.set_xlabel("shared uniform negatives")
    figure.supylabel(f"MRR, times that of {base}", fontsize="medium")
    if lines:
        at = "outside lower center"
        figure.legend(lines.values(), lines.keys(), loc=at, ncols=2, fontsize="small")
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the report.

    Returns:
        0, or 1 if a cell failed.
    """
    command = Command(_parser(), argv)
    sections = command.made(_sections)
    command.run(cells_of(sections), run_cell, command.arguments.data_dir)
    recipe = cells_of(sections)[0].recipe
    heading = command.heading(
        "When hard negatives add to shared ones",
        "An encoder of features and their means over one and two steps, with `negatives.loss` and "
        "at most so many shared negatives for a positive. Test edges (at most 2000) ranked among "
        "all nodes, known edges left out; early stopping on validation MRR. Ratios to uniform "
        "negatives (geometric) are paired by seed, with a 95 % interval. Five negatives an edge "
        "are half uniform. A round is a pass, or a number of batches, and a refresh.",
        "Recipe: " + ", ".join(f"{k} {v}" for k, v in asdict(recipe).items()),
    )
    store, out = command.store, command.out
    return command.end(write_report(sections, store, out, heading, _tables, draw=_draw))


if __name__ == "__main__":
    sys.exit(main())
