"""One query in two dimensions: its neighbours, its level Gaussians, and the chosen nodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from dgl_dmns.diagnostics.query import QueryView
from dgl_dmns.plots.style import axes_or_new, colours, label_of

__all__ = ["plot_query"]

_MARKERS = ("D", "s", "^", "v", "P", "X")


def plot_query(view: QueryView, *, ax: Any = None) -> Any:
    """A query's neighbours, level Gaussians and negatives in the plane.

    The plane is that of the two leading principal directions of all nodes in the generator's space.
    A Gaussian is drawn as the ellipse at two standard deviations; the legend has the number of
    candidates that come from it.

    Args:
        view: from `dgl_dmns.diagnostics.view_query`.
        ax: matplotlib axes; those of a new figure where not given.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is missing.
    """
    ax = axes_or_new(ax)
    from matplotlib.lines import Line2D
    from matplotlib.patches import Ellipse

    colour = colours([*view.levels, "uniform share"])
    ax.scatter(*view.background.T, s=4, color="#cfcfcf", linewidths=0, label="other nodes")
    for name, mean, covariance in zip(view.levels, view.mean, view.covariance):
        values, vectors = np.linalg.eigh(covariance)
        width, height = 4 * np.sqrt(np.maximum(values, 0))
        angle = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
        ax.add_patch(
            Ellipse(mean, width, height, angle=angle, fill=False, lw=1.4, color=colour[name])
        )
    keys = []
    for index, name in enumerate((*view.levels, "uniform share")):
        is_level = index < len(view.levels)
        chosen = view.negatives[view.negative_level == (index if is_level else 255)]
        marker = _MARKERS[index % len(_MARKERS)]
        ax.scatter(
            *chosen.T,
            s=32,
            marker=marker,
            color=colour[name],
            edgecolors="white",
            linewidths=0.5,
            zorder=3,
        )
        keys.append(
            Line2D(
                [],
                [],
                color=colour[name],
                linestyle="-" if is_level else "none",
                marker=marker,
                markersize=5,
                label=f"{label_of(name)}, negatives: {len(chosen)}",
            )
        )
    ax.scatter(*view.neighbours.T, s=30, color=colour["positive"], label="neighbours", zorder=4)
    ax.scatter(*view.point, s=140, marker="*", color="black", label=f"query {view.query}", zorder=5)
    others, *nearby = ax.get_legend_handles_labels()[0]
    ax.set(xlabel="first principal direction", ylabel="second principal direction")
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(
        handles=[*nearby[::-1], *keys, others],
        fontsize="small",
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )
    return ax
