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
    A Gaussian is drawn as the ellipse at two standard deviations.

    Args:
        view: from `dgl_dmns.diagnostics.view_query`.
        ax: matplotlib axes; those of a new figure where not given.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is missing.
    """
    ax = axes_or_new(ax)
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
    for index, name in enumerate((*view.levels, "uniform share")):
        tag = index if index < len(view.levels) else 255
        chosen = view.negatives[view.negative_level == tag]
        if len(chosen):
            ax.scatter(
                *chosen.T,
                s=26,
                marker=_MARKERS[index % len(_MARKERS)],
                color=colour[name],
                edgecolors="white",
                linewidths=0.5,
                label=f"negatives, {label_of(name)}",
                zorder=3,
            )
    ax.scatter(*view.neighbours.T, s=30, color=colour["positive"], label="neighbours", zorder=4)
    ax.scatter(*view.point, s=140, marker="*", color="black", label=f"query {view.query}", zorder=5)
    ax.set(xlabel="first principal direction", ylabel="second principal direction")
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax
