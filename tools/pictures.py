"""The pictures of README and docs, made anew with the package as it is.

    python tools/pictures.py                # into docs/images; some minutes on one core
    python tools/pictures.py --quick --out FOLDER

``quickstart.png`` is the one of ``make demo``. ``diagnostics.png`` has the four pictures of the
first training of the notebook about diagnostics, whose cells are run. ``report.png`` has four
pictures of the page that ``dgl-dmns train`` writes. ``scale.png`` shows the tables of the scale
study, ``benchmarks/scale/results.csv``. The badges are no pictures of results: a test
compares them with the metadata.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from dgl_dmns.cli import main as run_command
from dgl_dmns.diagnostics import observe, view_query
from dgl_dmns.plots import plot_hardness, plot_positivity, plot_query, plot_scores
from dgl_dmns.report.pictures import pictures_of
from dgl_dmns.report.run import Run

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
from quickstart import main as run_quickstart

from benchmarks.scale.__main__ import draw_gains

SHOWN = ("Training loss", "Validation MRR", "Percentile", "Above a positive")


def quickstart(file: Path, work: Path, quick: bool) -> None:
    """Learning curves and hardness of the three runs of ``make demo``."""
    few = ["--seeds", "1", "--epochs", "2"] if quick else []
    run_quickstart([*few, "--out", str(work)])
    (work / "curves.png").replace(file)


def diagnostics(file: Path, work: Path, quick: bool) -> None:
    """All that `dgl_dmns.plots` draws, of the training that the notebook begins with."""
    cells = json.loads((ROOT / "docs" / "notebooks" / "diagnostics.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for cell in [cell for cell in cells if cell["cell_type"] == "code"][:2]:  # imports, train
        exec("".join(cell["source"]), names)
    train, make = names["train"], names["DMNSSampler"]
    sampler, monitor = train(lambda model: make(names["g"], model, k=5), steps=8 if quick else 80)
    figure, axes = plt.subplots(2, 2, figsize=(13, 8.8), layout="constrained")
    plot_hardness(monitor.frame(), "percentile", ax=axes[0, 0])
    plot_scores(observe(sampler), ax=axes[0, 1])
    plot_query(view_query(sampler), ax=axes[1, 0])
    plot_positivity(observe(sampler), ax=axes[1, 1])
    figure.savefig(file, dpi=100)
    plt.close(figure)


def report(file: Path, work: Path, quick: bool) -> None:
    """Pictures of the page of a run, with their headings."""
    few = ["--epochs", "2"] if quick else []
    options = ["--dataset", "embedded", "--no-baseline", "--quiet"]
    run_command(["train", *options, *few, "--out", str(work)])
    found = {picture.title: picture for picture in pictures_of(Run.load(work))}
    figure, axes = plt.subplots(
        2, 2, figsize=(9.6, 7.4), height_ratios=(3, 4), layout="constrained"
    )
    for ax, title in zip(axes.flat, SHOWN):
        ax.imshow(plt.imread(io.BytesIO(found[title].png)))
        ax.set_title(title, loc="left", weight="bold")
        ax.axis("off")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def scale(file: Path, work: Path, quick: bool) -> None:
    """How many times the MRR of uniform negatives hard ones have, by the shared pool's size.

    Of the tables with the default patience.
    """
    runs, tables = (
        pd.read_csv(ROOT / "benchmarks/scale" / name) for name in ("results.csv", "tables.csv")
    )
    cut_short = tables["command"].str.contains("--patience")  # see NOTES.md
    figure = draw_gains(plt, runs[runs["table"].isin(tables["table"][~cut_short])])
    figure.savefig(file, dpi=100)
    plt.close(figure)


PICTURES = {
    "scale.png": scale,
    "diagnostics.png": diagnostics,
    "report.png": report,
    "quickstart.png": quickstart,
}


def main(argv: list[str] | None = None) -> int:
    """Make all pictures, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--quick", action="store_true", help="tiny trainings, to try it")
    options = parser.parse_args(argv)
    if unknown := {*options.names} - {*PICTURES}:
        parser.error(f"NAME: expected some of {', '.join(PICTURES)}, got {', '.join(unknown)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or PICTURES:
        with tempfile.TemporaryDirectory() as work:
            PICTURES[name](options.out / name, Path(work) / "run", options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
