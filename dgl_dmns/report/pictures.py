"""The pictures of a report, with what they show, as PNG files in memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from dgl_dmns.plots import plot_hardness, plot_positivity, plot_query, plot_scores
from dgl_dmns.plots.style import pyplot
from dgl_dmns.report.run import Run

__all__ = ["Picture", "pictures_of"]

_PARTS = 7  # rare events are averaged over this part of a run


@dataclass(frozen=True)
class Picture:
    """A picture of a report.

    Args:
        title: its heading.
        text: how to read it.
        png: the file.
    """

    title: str
    text: str
    png: bytes


def pictures_of(run: Run) -> list[Picture]:
    """All pictures that the files of a run allow.

    Raises:
        ImportError: if matplotlib is missing.
    """
    plt = pyplot()
    found = []
    for title, text, draw in _drawings(run):
        # Names come from the run's files: they are words, not formulas.
        with plt.rc_context({"text.parse_math": False, "text.usetex": False}):
            figure, ax = plt.subplots(figsize=(5.6, 4.4), layout="constrained")
            try:
                draw(ax=ax)
                _legend_below(figure, ax)
                file = io.BytesIO()
                figure.savefig(file, format="png", dpi=160)
            finally:
                plt.close(figure)
        found.append(Picture(title, text, file.getvalue()))
    return found


def _legend_below(figure: Any, ax: Any) -> None:
    """Move the legend below the axes: a phone has no room beside them."""
    legend = ax.get_legend()
    words = [text.get_text() for text in legend.get_texts()]
    figure.legend(
        legend.legend_handles,
        words,
        loc="outside lower center",
        ncols=3 if max(map(len, words)) < 20 else 2,
        fontsize="small",
        frameon=False,
    )
    legend.remove()


Drawing = tuple[str, str, Callable[..., Any]]
"""A heading, how to read it, and what draws it on ``ax``."""


def _drawings(run: Run) -> Iterator[Drawing]:
    if run.metrics is not None and _lines(run.metrics):
        yield (
            "Training",
            "The values of each epoch, each on a scale of its own from its least to its largest.",
            partial(_plot_metrics, run.metrics),
        )
    if run.negatives is not None:
        etypes = run.negatives["etype"].unique().tolist()
        for etype in etypes:
            suffix = f", {etype}" if len(etypes) > 1 else ""
            yield from _records(run.negatives, etype, suffix)
    if run.seen is not None:
        yield (
            "Scores at the end",
            "Negatives teach where they overlap with the positives; those among the random nodes "
            "are told apart already.",
            partial(plot_scores, run.seen),
        )
    if run.query is not None:
        yield (
            "One query",
            "A query node in the plane of the two leading directions of the generator's space, its "
            "known neighbours, the candidates that it draws negatives from (the legend counts them "
            "by level), and the Gaussian of each level as an ellipse at two standard deviations.",
            partial(plot_query, run.query),
        )
    if run.seen is not None and run.seen.log_density.numel():
        yield (
            "Sub-linear positivity",
            "The negatives' density against that of the positives, both as logs: a slope between 0 "
            "and 1 says that negatives follow the positives, with a lower power.",
            partial(plot_positivity, run.seen),
        )


def _records(negatives: pd.DataFrame, etype: str, suffix: str) -> Iterator[Drawing]:
    def draw(value: str) -> Callable[..., Any]:
        return partial(plot_hardness, negatives, value, etype=etype)

    yield (
        f"Hardness{suffix}",
        "Mean score of each level's negatives, beside true neighbours (positives) and random "
        "nodes. Levels far below the positives teach little; levels above them push down what is "
        "likely to be true.",
        draw("score"),
    )
    yield (
        f"Hardness as a rank{suffix}",
        "Share of random nodes of the same query that score lower than a negative: 0.5 is a random "
        "node, 1 beats them all. Unlike the score it does not depend on the scale.",
        draw("percentile"),
    )
    if negatives["false_negative_lift"].notna().any():
        smooth = max(1, negatives["refresh"].nunique() // _PARTS)
        mean = f", the mean of {smooth} refreshes," if smooth > 1 else ""
        yield (
            f"False negatives{suffix}",
            f"How many times as often as by uniform draws{mean} a held-out edge was drawn as a "
            "negative; a log scale above 1. Some lift is the price of hardness; more of it with no "
            "gain in the metric is a loss.",
            partial(_plot_lift, negatives, etype, smooth),
        )


def _plot_lift(negatives: pd.DataFrame, etype: str, smooth: int, ax: Any) -> None:
    plot_hardness(negatives, "false_negative_lift", etype=etype, smooth=smooth, ax=ax)
    ax.set_yscale("symlog", linthresh=1)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.axhline(1, color="black", lw=0.8, ls=":")
    ax.set_ylim(bottom=0)


def _lines(metrics: pd.DataFrame) -> list[str]:
    numbers = metrics.select_dtypes("number").columns
    left_out = ("refresh", "epoch", "seconds")
    return [str(n) for n in numbers if n not in left_out and metrics[n].nunique() > 1]


def _plot_metrics(metrics: pd.DataFrame, ax: Any) -> None:
    x = metrics["epoch"] if "epoch" in metrics.columns else pd.Series(range(len(metrics)))
    for name in _lines(metrics):
        values = metrics[name]
        low, high = values.min(), values.max()
        label = f"{name}, {low:.3g} to {high:.3g}"
        ax.plot(x, (values - low) / (high - low), label=label)
    ax.set(xlabel="epoch", yticks=[0, 1], yticklabels=["least", "largest"])
    ax.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
