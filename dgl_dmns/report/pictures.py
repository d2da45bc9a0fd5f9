"""The pictures of a report, with what they show: PNG files in memory.

Each is drawn by itself: one that cannot be drawn is left out with the reason, and costs no other.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from dgl_dmns.messages import one_line
from dgl_dmns.plots import (
    plain_ticks,
    plot_hardness,
    plot_positivity,
    plot_query,
    plot_scores,
    pyplot,
)
from dgl_dmns.report.run import Run, compared, metrics_of

__all__ = ["PAPER", "Picture", "bench_chart", "pictures_of"]

PAPER = "The paper's conditions"
"""The section of what only a reader of the paper asks for."""

_END = "Negatives at the end"
_LOOKS = {"scores.npz": "Scores", "query.npz": "One query"}
_PARTS = 7  # rare events are averaged over this part of a run
_NAMES = {
    "loss": ("Training loss", "training loss"),
    "mrr": ("Validation MRR", "validation MRR"),
    "ndcg": ("Validation NDCG@20", "validation NDCG@20"),
}
_MOST_SERIES = 12  # of a training that are drawn
_SIZE, _LOW = (4.8, 4.1), (4.8, 2.9)  # inches


@dataclass(frozen=True)
class Picture:
    """A picture of a report.

    Args:
        section: heading of the section that it stands in.
        title: its heading.
        text: how to read it; may be empty.
        png: the file; empty where it could not be drawn.
        reason: why it could not be drawn, in one line.
    """

    section: str
    title: str
    text: str = ""
    png: bytes = b""
    reason: str = ""


def pictures_of(run: Run) -> list[Picture]:
    """All pictures that the files of a run allow; one that fails says why in place of its file.

    Raises:
        ImportError: if matplotlib is missing.
    """
    pyplot()
    found = [*_drawings(run)]
    missing = [
        Picture(_END, _LOOKS.get(file, file), reason=str(reason))
        for file, reason in run.left_out.items()
    ]
    place = sum(picture.section != PAPER for picture in found)
    return [*found[:place], *missing, *found[place:]]


def _drawn(
    section: str,
    title: str,
    text: str,
    draw: Callable[..., Any],
    size: tuple[float, float] = _SIZE,
) -> Picture:
    """A picture of what ``draw`` puts on the axes ``ax``; width and height are in inches."""
    try:
        return Picture(section, title, text, _png(draw, size))
    except Exception as error:  # whatever values of the run's files may lead to
        return Picture(section, title, text, reason=one_line(error))


def _png(draw: Callable[..., Any], size: tuple[float, float]) -> bytes:
    plt = pyplot()
    # Names come from the run's files: they are words, not formulas.
    with plt.rc_context({"text.parse_math": False, "text.usetex": False}):
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        try:
            draw(ax=ax)
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(alpha=0.25)
            ax.set_axisbelow(True)
            _legend_below(figure, ax)
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=160)
        finally:
            plt.close(figure)
    return file.getvalue()


def _legend_below(figure: Any, ax: Any) -> None:
    """Move the legend below the axes: a phone has no room beside them."""
    legend = ax.get_legend()
    if legend is None:
        return
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


def _drawings(run: Run) -> Iterator[Picture]:
    if run.metrics is not None:
        for name in _series(run.metrics):
            title, words = _NAMES.get(name, (name, name))
            draw = partial(_plot_series, run.metrics, name, words)
            yield _drawn("Training", title, "", draw, _LOW)
    if run.negatives is not None:
        etypes = run.negatives["etype"].unique().tolist()
        for etype in etypes:
            suffix = f", {etype}" if len(etypes) > 1 else ""
            yield from _records(run.negatives, etype, f"Negatives by refresh{suffix}")
    if run.seen is not None:
        etype = run.seen.etype
        of = "" if etype[1] == "_E" else f" Of the edge type {':'.join(etype)}."
        yield _drawn(
            _END,
            "Scores",
            "Negatives teach where they overlap with the positives; those among the random nodes "
            f"are told apart already.{of}",
            partial(plot_scores, run.seen),
        )
    if run.query is not None:
        yield _drawn(
            _END,
            "One query",
            "A query node, its known neighbours (positives) and the candidates that it draws "
            "negatives from, in the leading directions of the generator's space; an ellipse (or "
            "bar) is a level's Gaussian, to two standard deviations.",
            partial(plot_query, run.query),
        )
    if run.seen is not None and run.seen.log_density.numel():
        yield _drawn(
            PAPER,
            "Sub-linear positivity",
            "The density of a level's negatives over that of the positives, both as logs: a slope "
            "between 0 and 1 says that negatives follow the positives, with a lower power.",
            partial(plot_positivity, run.seen),
        )


_BY_REFRESH = {
    "score": (
        "Mean score",
        "That of each level's negatives, beside known neighbours (positives) and random "
        "nodes. Levels far below the positives teach little; levels above them push down what is "
        "likely to be true.",
    ),
    "percentile": (
        "Percentile",
        "Share of random nodes of the same query that score lower than a negative: 0.5 is a random "
        "node, 1 beats them all. Unlike the score it does not depend on the scale.",
    ),
    "above_positive": (
        "Above a positive",
        "Share of negatives that score above a positive of their query: what the model has wrong, "
        "or a missing edge. Too hard is a share that stays far up while the metric stands still.",
    ),
}


def _records(negatives: pd.DataFrame, etype: str, section: str) -> Iterator[Picture]:
    for value, (title, text) in _BY_REFRESH.items():
        draw = partial(plot_hardness, negatives, value, etype=etype)
        yield _drawn(section, title, text, draw)
    lift = negatives.get("false_negative_lift")
    if lift is not None and lift.notna().any():
        smooth = max(1, negatives["refresh"].nunique() // _PARTS)
        mean = f" (the mean of {smooth} refreshes)" if smooth > 1 else ""
        yield _drawn(
            section,
            "False negatives",
            f"How many times as often as by uniform draws{mean} a held-out edge was drawn as a "
            "negative; a log scale above 1. Some lift is the price of hardness; more of it with no "
            "gain in the metric is a loss.",
            partial(_plot_lift, negatives, etype, smooth),
        )


def _plot_lift(negatives: pd.DataFrame, etype: str, smooth: int, ax: Any) -> None:
    plot_hardness(negatives, "false_negative_lift", etype=etype, smooth=smooth, ax=ax)
    ax.set_yscale("symlog", linthresh=1, subs=(2, 5))
    ax.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.axhline(1, color="black", lw=0.8, ls=":")
    ax.set_ylim(bottom=0)


def _series(metrics: pd.DataFrame) -> list[str]:
    numbers = metrics.select_dtypes("number").columns
    names = [str(name) for name in numbers if name not in ("refresh", "epoch", "seconds")]
    return names[:_MOST_SERIES]


def _plot_series(metrics: pd.DataFrame, name: str, words: str, ax: Any) -> None:
    """One series of the training over its epochs.

    Raises:
        ValueError: if none of its values is a finite number.
    """
    x, over = pd.Series(range(1, len(metrics) + 1)), "record"
    if "epoch" in metrics.columns and pd.api.types.is_numeric_dtype(metrics["epoch"]):
        x, over = metrics["epoch"], "epoch"
    kept = np.isfinite(metrics[name]) & np.isfinite(x)
    if not kept.any():
        raise ValueError(f"{name} has no finite value")
    marker = "o" if kept.sum() < 10 else None
    ax.plot(x[kept], metrics[name][kept], marker=marker, markersize=4, color="#1f5fa8")
    plain_ticks(ax, whole_x=True)
    ax.set(xlabel=over, ylabel=words)


def bench_chart(runs: pd.DataFrame) -> Picture:
    """A dot for each run and a bar at the mean, a row for each sampler; the axis starts at 0."""
    text = "A dot for each seed; the bar is the sampler's mean."
    metric = compared(metrics_of(runs))
    draw = partial(_plot_bench, runs, metric)
    return _drawn("Runs", f"Test {metric} of every run", text, draw, _LOW)


def _plot_bench(runs: pd.DataFrame, metric: str, ax: Any) -> None:
    names = []
    for row, (name, values) in enumerate(runs.groupby("sampler", sort=False)[metric]):
        names.append(str(name))
        ax.plot(values, [row] * len(values), "o", color="#00795a", alpha=0.5)
        ax.plot(values.mean(), row, "|", color="#1d2129", markersize=20)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlim=(0, None), ylim=(len(names) - 0.5, -0.5), xlabel=metric)
