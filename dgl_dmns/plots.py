"""Pictures of the negatives, one function each.

Each draws on the matplotlib axes ``ax``, which default to those of a new figure, and returns them.
Matplotlib (the extra ``plot``) is imported when a function is called; without it, that raises an
ImportError.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dgl_dmns.checks import as_integer
from dgl_dmns.diagnostics import Observation, QueryView

__all__ = ["plot_hardness", "plot_positivity", "plot_query", "plot_scores"]

_COLOURS = {"positive": "#00795a", "random": "#8a8a8a", "no level": "#56b4e9", "all": "#222222"}
_LEVELS = ("#8b0a50", "#c1443c", "#e07b39", "#f0b04c", "#c8b560", "#9aa36b")  # hard to easy
_OTHERS = "#bdbdbd"
_MARKERS = ("D", "s", "^", "v", "P", "X")

_LABELS = {"positive": "positives", "random": "random nodes", "all": "all negatives"}
_VALUES = {
    "score": "mean score",
    "percentile": "percentile among random nodes",
    "above_positive": "share that scores above a positive",
    "false_negative_lift": "false negatives, times uniform draws",
    "false_negatives": "false negatives, share",
    "gini": "Gini index of how often nodes are drawn",
    "density_auc": "AUC of the level's density",
    "psi_share": "share of latents with Psi ≥ 0",
    "share": "share of the negatives",
}
_HELD_OUT = ("false_negatives", "false_negative_lift")
_REMEDY = "; it needs held-out pairs: Monitor(sampler, held_out=...)"


def plot_hardness(
    frame: pd.DataFrame,
    value: str = "score",
    *,
    etype: str | None = None,
    smooth: int = 1,
    ax: Any = None,
) -> Any:
    """A column of a `Monitor`'s records over refreshes, a line for each level.

    Args:
        frame: `Monitor.frame`, or a file that `Monitor.save` wrote.
        value: the column, for example ``"score"``, ``"percentile"`` or ``"false_negative_lift"``.
        etype: the edge type, as in the column of that name; needed where there are several.
        smooth: refreshes that a point is the mean of, up to its own; more than 1 suits rare events,
            as false negatives of a small level are.
        ax: matplotlib axes.

    Raises:
        ValueError: if there are no records, no such column or no value in it, the edge type has to
            be named, or ``smooth`` is below 1.
    """
    rows = _rows(frame, value, etype)
    smooth = as_integer("smooth", smooth, 1)
    ax = _axes_or_new(ax)
    names = [str(name) for name in rows["level"].unique()]
    colour = _colours(names)
    for name in names:
        line = rows[rows["level"] == name].dropna(subset=[value])
        if len(line):
            ax.plot(
                line["refresh"],
                line[value].rolling(smooth, min_periods=1).mean() if smooth > 1 else line[value],
                "--" if name in ("positive", "random") else "-",
                marker="o" if len(line) == 1 else None,
                color=colour[name],
                label=label_of(name),
            )
    plain_ticks(ax, whole_x=True)
    ax.set(xlabel="refresh", ylabel=_VALUES.get(value, value.replace("_", " ")))
    return _with_legend(ax)


def _rows(frame: pd.DataFrame, value: str, etype: str | None) -> pd.DataFrame:
    """The records of an edge type that have a value to draw."""
    if not len(frame):
        raise ValueError("frame: expected records, got none; refresh the sampler first")
    numbers = sorted(frame.select_dtypes("number").columns)
    if value not in numbers:
        raise ValueError(f"value: expected one of {numbers}, got {value!r}")
    etypes = frame["etype"].unique().tolist()
    etype = etypes[0] if etype is None and len(etypes) == 1 else etype
    if etype not in etypes:
        raise ValueError(f"etype: expected one of {etypes}, got {etype!r}; name it")
    rows = frame[frame["etype"] == etype]
    if not rows[value].notna().any():
        raise ValueError(
            f"value: {value!r} is NaN in all records{_REMEDY if value in _HELD_OUT else ''}"
        )
    return rows


def plot_scores(seen: Observation, *, bins: int = 40, ax: Any = None) -> Any:
    """Score distributions of positives, levels and random nodes.

    Negatives teach where they overlap with positives; those among the random nodes do not.

    Args:
        seen: from `dgl_dmns.diagnostics.observe`.
        bins: number of bins over the range of all scores.
        ax: matplotlib axes.

    Raises:
        ValueError: if ``bins`` is below 2.
    """
    bins = as_integer("bins", bins, 2)
    groups = seen.groups()
    shown = {name: seen.score[mask] for name, mask in groups.items() if name != "all"}
    if not seen.levels:
        shown = {"all": seen.score.flatten()}
    shown = {"random": seen.random_score.flatten(), **shown}
    shown["positive"] = seen.positive_score.flatten()
    values = {name: score.double().numpy() for name, score in shown.items() if score.numel()}
    low, high = np.quantile(np.concatenate(list(values.values())), [0.001, 0.999])
    edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    ax = _axes_or_new(ax)
    colour = _colours(list(shown))
    for name, score in values.items():
        height, _ = np.histogram(score, edges)
        density = np.append(height / (len(score) * (edges[1] - edges[0])), 0)
        if name in ("random", "positive"):
            ax.fill_between(edges, density, step="post", alpha=0.25, color=colour[name])
        ax.step(edges, density, where="post", color=colour[name], label=label_of(name))
    plain_ticks(ax)
    ax.set(xlabel="score", ylabel="density of the scores", ylim=(0, None))
    return _with_legend(ax)


def plot_positivity(seen: Observation, *, bins: int = 25, ax: Any = None) -> Any:
    """Log density of each level over that of the positives, at random nodes.

    Densities count up to a factor for each query, so both logs are less their mean over the query's
    nodes. Where the negatives' density is the positives' to the power lambda, the curve is a line
    of slope lambda; sub-linear means a slope between 0 and 1. The legend has the slope of least
    squares, the grey line has slope 1.

    Args:
        seen: from `dgl_dmns.diagnostics.observe`.
        bins: points of a curve: medians over equal parts of the nodes.
        ax: matplotlib axes.

    Raises:
        ValueError: if there are no densities (no generator, or one without a closed form), or
            ``bins`` is below 2.
    """
    if not seen.log_density.numel():
        raise ValueError(
            "seen: it has no densities; they need a DMNSSampler with a predictor in closed form"
        )
    bins = as_integer("bins", bins, 2)
    density = seen.log_density.double()
    centred = (density - density.mean(-1, keepdim=True)).flatten(1).numpy()
    positive, levels = centred[0], centred[1:]
    order = np.array_split(np.argsort(positive), bins)
    x = [np.median(positive[part]) for part in order]
    ax = _axes_or_new(ax)
    colour = _colours(seen.levels)
    ax.plot(x, x, color="#8a8a8a", lw=1, ls=":", label="slope 1, the positives'")
    for name, level in zip(seen.levels, levels):
        slope = float((positive * level).mean() / (positive * positive).mean())
        curve = [np.median(level[part]) for part in order]
        ax.plot(x, curve, color=colour[name], label=f"{label_of(name)}: slope {slope:.2f}")
    plain_ticks(ax)
    ax.set(
        xlabel="log density of the positives, less its mean",
        ylabel="log density of the level, less its mean",
    )
    return _with_legend(ax)


def plot_query(view: QueryView, *, ax: Any = None) -> Any:
    """A query's positives (its known neighbours), level Gaussians and negatives.

    The plane is that of the two leading principal directions of all nodes in the generator's space.
    A Gaussian is drawn as the ellipse at two standard deviations; the legend has the number of
    candidates that come from it. A space of width 1 has one direction: there each kind of node has
    a row, and a Gaussian is a bar over two standard deviations to either side.

    Args:
        view: from `dgl_dmns.diagnostics.view_query`.
        ax: matplotlib axes.
    """
    ax = _axes_or_new(ax)
    plain_ticks(ax)
    if len(view.point) == 1:
        _draw_rows(view, ax)
    else:
        _draw_plane(view, ax)
    return ax


def _groups(view: QueryView) -> Iterator[tuple[str, str, str, Any]]:
    """Label, colour, marker and negatives of each level, and of what no level claims."""
    names = [*view.levels, "no level"]
    colour = _colours(names)
    for index, name in enumerate(names):
        tag = index if index < len(view.levels) else 255
        chosen = view.negatives[view.negative_level == tag]
        label = f"{label_of(name)}, negatives: {len(chosen)}"
        yield label, colour[name], _MARKERS[index % len(_MARKERS)], chosen


def _draw_plane(view: QueryView, ax: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Ellipse

    ax.scatter(*view.background.T, s=4, color=_OTHERS, linewidths=0, label="other nodes")
    keys = []
    for index, (label, colour, marker, chosen) in enumerate(_groups(view)):
        line = "none"
        if index < len(view.levels):
            line = "-"
            values, vectors = np.linalg.eigh(view.covariance[index])
            size = 4 * np.sqrt(np.maximum(values, 0))
            angle = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
            shape = Ellipse(view.mean[index], *size, angle=angle, fill=False, lw=1.4, color=colour)
            ax.add_patch(shape)
        drawn: dict[str, Any] = {"marker": marker, "color": colour}
        ax.scatter(*chosen.T, **drawn, s=32, edgecolors="white", linewidths=0.5, zorder=3)
        keys.append(Line2D([], [], **drawn, linestyle=line, markersize=5, label=label))
    positive = _COLOURS["positive"]
    ax.scatter(*view.neighbours.T, s=30, color=positive, label="positives", zorder=4)
    ax.scatter(*view.point, s=140, marker="*", color="black", label=f"query {view.query}", zorder=5)
    others, *nearby = ax.get_legend_handles_labels()[0]
    ax.set(xlabel="first principal direction", ylabel="second principal direction")
    ax.set_aspect("equal", adjustable="datalim")
    _with_legend(ax, handles=[*nearby[::-1], *keys, others])


def _draw_rows(view: QueryView, ax: Any) -> None:
    rows = [
        (f"query {view.query}", "black", "*", view.point[None]),
        ("positives", _COLOURS["positive"], "o", view.neighbours),
        *_groups(view),
        ("other nodes", _OTHERS, "|", view.background),
    ]
    for row, (_, colour, marker, points) in enumerate(rows):
        size = 140 if row == 0 else 30
        ax.scatter(points[:, 0], np.full(len(points), row), s=size, marker=marker, color=colour)
    for level, (mean, covariance) in enumerate(zip(view.mean[:, 0], view.covariance[:, 0, 0])):
        reach, colour = 2 * np.sqrt(max(covariance, 0)), rows[2 + level][1]
        ax.plot([mean - reach, mean + reach], [2 + level] * 2, color=colour, lw=8, alpha=0.3)
    ax.set(xlabel="the only direction of the space", ylabel="kind of node")
    ax.set_yticks(range(len(rows)), [label for label, *_ in rows])
    ax.invert_yaxis()


# ---- what the pictures share, with those of a report -------------------------------------------


def pyplot() -> Any:
    """``matplotlib.pyplot``.

    Raises:
        ImportError: if matplotlib is missing.
    """
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ImportError("pictures need matplotlib: python -m pip install matplotlib") from error
    return plt


def plain_ticks(ax: Any, *, whole_x: bool = False) -> None:
    """Ticks that read as they stand: no offset beside the axis; whole numbers on x if wanted."""
    ax.ticklabel_format(useOffset=False)
    if whole_x:
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def label_of(name: str) -> str:
    """The row of a table of statistics as legends call it."""
    return name if name == "no level" else _LABELS.get(name, f"level {name}")


def _axes_or_new(ax: Any) -> Any:
    return pyplot().subplots(figsize=(6.4, 4.2), layout="constrained")[1] if ax is None else ax


def _with_legend(ax: Any, **given: Any) -> Any:
    """The axes, with a legend to the right, where it covers nothing."""
    where = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    ax.legend(**given, **where, fontsize="small", frameon=False)
    return ax


def _colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name; hardness levels go from dark (hard) to light (easy)."""
    levels = [name for name in names if name not in _COLOURS]
    return {**_COLOURS, **{name: _LEVELS[i % len(_LEVELS)] for i, name in enumerate(levels)}}
