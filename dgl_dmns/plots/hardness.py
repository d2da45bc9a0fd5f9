"""How hard the negatives of each level are, over time."""

from __future__ import annotations

from typing import Any

import pandas as pd

from dgl_dmns.plots.style import axes_or_new, colours, label_of, legend_beside, plain_ticks

__all__ = ["plot_hardness"]

_WORDS = {
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
        ax: matplotlib axes; those of a new figure where not given.

    Returns:
        The axes.

    Raises:
        ValueError: if there are no records, no such column or no value in it, the edge type has to
            be named, or ``smooth`` is below 1.
        ImportError: if matplotlib is missing.
    """
    if not len(frame):
        raise ValueError("frame: expected records, got none; refresh the sampler first")
    if value not in frame.columns or not pd.api.types.is_numeric_dtype(frame[value]):
        names = sorted(frame.select_dtypes("number").columns)
        raise ValueError(f"value: expected one of {names}, got {value!r}")
    if smooth < 1:
        raise ValueError(f"smooth: expected at least 1 refresh, got {smooth}")
    etypes = frame["etype"].unique().tolist()
    if etype is None and len(etypes) != 1:
        raise ValueError(f"etype: expected one of {etypes}; name it")
    if etype is not None and etype not in etypes:
        raise ValueError(f"etype: expected one of {etypes}, got {etype!r}")
    rows = frame[frame["etype"] == (etypes[0] if etype is None else etype)]
    if not rows[value].notna().any():
        raise ValueError(
            f"value: {value!r} is NaN in all records{_REMEDY if value in _HELD_OUT else ''}"
        )
    ax = axes_or_new(ax)
    names = [str(name) for name in rows["level"].unique()]
    colour = colours(names)
    for name in names:
        line = rows[rows["level"] == name].dropna(subset=[value])
        if len(line):
            values = line[value]
            if smooth > 1:
                values = values.rolling(smooth, min_periods=1).mean()
            style = "--" if name in ("positive", "random") else "-"
            marker = "o" if len(line) == 1 else None
            ax.plot(
                line["refresh"],
                values,
                style,
                marker=marker,
                color=colour[name],
                label=label_of(name),
            )
    plain_ticks(ax, whole_x=True)
    ax.set(xlabel="refresh", ylabel=_WORDS.get(value, value.replace("_", " ")))
    legend_beside(ax)
    return ax
