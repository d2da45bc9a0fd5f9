"""The table of costs, and cost against the number of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.common.report import Column, Done, Found, Runs, Section, markdown_table, mean, table

__all__ = ["draw", "exponents", "scaling_exponent", "tables"]

_PARTS = ("embed", "fit", "table")


def _parts(runs: Runs, base: Runs) -> str:
    return ", ".join(mean("", f"refresh {part}", 2).text(runs, base) for part in _PARTS)


_COLUMNS = (
    mean("edges", "edges", 0),
    mean("call, uniform (ms)", "call uniform", 2, 1e3),
    mean("call", "call ratio", 2),
    mean("loader", "loader ratio", 2),
    mean("training step", "training ratio", 2),
    mean("epoch, uniform (s)", "epoch uniform", 1),
    mean("epoch", "epoch ratio", 2),
    mean("refresh (s)", "refresh later", 2),
    mean("its share, %", "refresh share", 1, 100),
    Column("embed, fit, table (s)", _parts),
    mean("peak MB, uniform", "memory uniform", 0),
    mean("peak MB", "memory own", 0),
    mean("table MB", "table MB", 0),
)


def tables(section: Section, found: Found) -> str:
    """A line for each row and setting."""
    return table(found, section.reference, _COLUMNS)


def scaling_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent ``a`` of ``value = c * size^a``, by least squares in logs.

    Args:
        sizes: at least two different positive sizes.
        values: positive, as many.

    >>> round(scaling_exponent([10, 100, 1000], [3, 30, 300]), 6)
    1.0
    """
    x = np.log(np.asarray(sizes, dtype=float))
    y = np.log(np.asarray(values, dtype=float))
    return float(np.polyfit(x, y, 1)[0])


def _series(done: Done) -> dict[str, list[dict[str, Any]]]:
    """Runs that differ in the number of nodes only, by name, where there are two sizes or more."""
    series: dict[str, list[dict[str, Any]]] = {}
    for _, found in done:
        for title, runs in found.items():
            row, _, setting = title.partition(", N ")
            rest = setting.partition(", D ")[2]
            for seed, run in runs.items():
                series.setdefault(f"{row}, D {rest}, seed {seed}", []).append(run)
    return {
        name: sorted(group, key=lambda run: int(run["nodes"]))
        for name, group in series.items()
        if len({run["nodes"] for run in group}) > 1
        and all(run["refresh later"] > 0 for run in group)
    }


def exponents(done: Done) -> str:
    """How the cost of a refresh, its parts, and memory grow with N."""
    figures = ("refresh later", *(f"refresh {part}" for part in _PARTS), "memory own")
    lines = [
        [name, *(f"{_exponent(group, figure):.2f}" for figure in figures)]
        for name, group in _series(done).items()
    ]
    if not lines:
        return ""
    return "\n" + markdown_table(("exponent in N of", "refresh", *_PARTS, "peak memory"), lines)


def _exponent(group: list[dict[str, Any]], figure: str) -> float:
    return scaling_exponent([run["nodes"] for run in group], [run[figure] for run in group])


def draw(plt: Any, done: Done) -> Any:
    """Refresh time and peak memory against N; None without two sizes."""
    series = _series(done)
    if not series:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    read = {"refresh later": "refresh (s)", "memory own": "peak memory (MB)"}
    for axis, (what, title) in zip(axes, read.items()):
        for name, group in series.items():
            label = f"{name}: N^{_exponent(group, what):.2f}"
            axis.loglog([r["nodes"] for r in group], [r[what] for r in group], "o-", label=label)
        axis.set(xlabel="nodes N", ylabel=title)
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize="x-small")
    return figure
