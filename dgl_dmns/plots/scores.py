"""Scores of positives, of each level's negatives, and of random nodes, as densities."""

from __future__ import annotations

from typing import Any

import numpy as np

from dgl_dmns.diagnostics.observation import Observation
from dgl_dmns.plots.style import axes_or_new, colours, label_of, legend_beside, plain_ticks

__all__ = ["plot_scores"]


def plot_scores(seen: Observation, *, bins: int = 40, ax: Any = None) -> Any:
    """Score distributions of positives, levels and random nodes.

    Negatives teach where they overlap with positives; those among the random nodes do not.

    Args:
        seen: from `dgl_dmns.diagnostics.observe`.
        bins: number of bins over the range of all scores.
        ax: matplotlib axes; those of a new figure where not given.

    Returns:
        The axes.

    Raises:
        ValueError: if ``bins`` is below 2.
        ImportError: if matplotlib is missing.
    """
    if bins < 2:
        raise ValueError(f"bins: expected at least 2, got {bins}")
    groups = seen.groups()
    shown = {name: seen.score[mask] for name, mask in groups.items() if name != "all"}
    if not seen.levels:
        shown = {"all": seen.score.flatten()}
    shown = {"random": seen.random_score.flatten(), **shown}
    shown["positive"] = seen.positive_score.flatten()
    values = {name: score.double().numpy() for name, score in shown.items() if score.numel()}
    every = np.concatenate(list(values.values()))
    low, high = np.quantile(every, [0.001, 0.999])
    edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    ax = axes_or_new(ax)
    colour = colours(list(shown))
    for name, score in values.items():
        height, _ = np.histogram(score, edges)
        density = height / (len(score) * (edges[1] - edges[0]))
        filled = name in ("random", "positive")
        if filled:
            ax.fill_between(
                edges, np.append(density, 0), step="post", alpha=0.25, color=colour[name]
            )
        ax.step(
            edges, np.append(density, 0), where="post", color=colour[name], label=label_of(name)
        )
    plain_ticks(ax)
    ax.set(xlabel="score", ylabel="density of the scores", ylim=(0, None))
    legend_beside(ax)
    return ax
