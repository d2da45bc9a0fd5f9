"""Sub-linear positivity: a level's density against that of the positives."""

from __future__ import annotations

from typing import Any

import numpy as np

from dgl_dmns.diagnostics.observation import Observation
from dgl_dmns.plots.style import axes_or_new, colours, label_of, legend_beside, plain_ticks

__all__ = ["plot_positivity"]


def plot_positivity(seen: Observation, *, bins: int = 25, ax: Any = None) -> Any:
    """Log density of each level over that of the positives, at random nodes.

    Densities count up to a factor for each query, so both logs are less their mean over the query's
    nodes. Where the negatives' density is the positives' to the power lambda, the curve is a line
    of slope lambda; sub-linear means a slope between 0 and 1. The legend has the slope of least
    squares, the grey line has slope 1.

    Args:
        seen: from `dgl_dmns.diagnostics.observe`.
        bins: points of a curve: medians over equal parts of the nodes.
        ax: matplotlib axes; those of a new figure where not given.

    Returns:
        The axes.

    Raises:
        ValueError: if there are no densities (no generator, or one without a closed form), or
            ``bins`` is below 2.
        ImportError: if matplotlib is missing.
    """
    if not seen.log_density.numel():
        raise ValueError(
            "seen: it has no densities; they need a DMNSSampler with a predictor in closed form"
        )
    if bins < 2:
        raise ValueError(f"bins: expected at least 2, got {bins}")
    density = seen.log_density.double()
    centred = (density - density.mean(-1, keepdim=True)).flatten(1).numpy()
    positive, levels = centred[0], centred[1:]
    order = np.array_split(np.argsort(positive), bins)
    x = [np.median(positive[part]) for part in order]
    ax = axes_or_new(ax)
    colour = colours(seen.levels)
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
    legend_beside(ax)
    return ax
