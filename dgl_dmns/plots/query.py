"""One query with its positives, its level Gaussians and its negatives, in two dimensions or one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dgl_dmns.diagnostics.query import QueryView
from dgl_dmns.plots.style import axes_or_new, colours, label_of, legend_beside, plain_ticks

__all__ = ["plot_query"]

_MARKERS = ("D", "s", "^", "v", "P", "X")
_OTHERS = "#bdbdbd"


def plot_query(view: QueryView, *, ax: Any = None) -> Any:
    """A query's positives (its known neighbours), level Gaussians and negatives.

    The plane is that of the two leading principal directions of all nodes in the generator's space.
    A Gaussian is drawn as the ellipse at two standard deviations; the legend has the number of
    candidates that come from it. A space of width 1 has one direction: there each kind of node has
    a row, and a Gaussian is a bar over two standard deviations to either side.

    Args:
        view: from `dgl_dmns.diagnostics.view_query`.
        ax: matplotlib axes; those of a new figure where not given.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is missing.
    """
    ax = axes_or_new(ax)
    plain_ticks(ax)
    if len(view.point) == 1:
        _draw_rows(view, ax)
    else:
        _draw_plane(view, ax)
    return ax


def _groups(view: QueryView) -> Iterator[tuple[str, str, str, Any]]:
    """Label, colour, marker and negatives of each level, and of what no level claims."""
    names = [*view.levels, "no level"]
    colour = colours(names)
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
            values, vectors = np.linalg.eigh(view.covariance[index])
            width, height = 4 * np.sqrt(np.maximum(values, 0))
            angle = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
            mean, line = view.mean[index], "-"
            ax.add_patch(
                Ellipse(mean, width, height, angle=angle, fill=False, lw=1.4, color=colour)
            )
        shape: dict[str, Any] = {"marker": marker, "color": colour}
        ax.scatter(*chosen.T, **shape, s=32, edgecolors="white", linewidths=0.5, zorder=3)
        keys.append(Line2D([], [], **shape, linestyle=line, markersize=5, label=label))
    positive = colours(())["positive"]
    ax.scatter(*view.neighbours.T, s=30, color=positive, label="positives", zorder=4)
    ax.scatter(*view.point, s=140, marker="*", color="black", label=f"query {view.query}", zorder=5)
    others, *nearby = ax.get_legend_handles_labels()[0]
    ax.set(xlabel="first principal direction", ylabel="second principal direction")
    ax.set_aspect("equal", adjustable="datalim")
    legend_beside(ax, [*nearby[::-1], *keys, others])


def _draw_rows(view: QueryView, ax: Any) -> None:
    positive = colours(())["positive"]
    rows = [
        (f"query {view.query}", "black", "*", view.point[None]),
        ("positives", positive, "o", view.neighbours),
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
