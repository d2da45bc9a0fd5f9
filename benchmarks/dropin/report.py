"""The tables and the plot of protocol B."""

from __future__ import annotations

from typing import Any

from benchmarks.common.report import (
    Column,
    Done,
    Found,
    Runs,
    Section,
    difference,
    mean,
    plot_runs,
    ratio,
)
from benchmarks.common.report import table as markdown
from benchmarks.dropin.measure import HEART_METRICS, METRICS

__all__ = ["draw", "tables"]


def _false_share(runs: Runs, base: Runs) -> str:
    own = mean("", "false share", times=100).text(runs, base)
    return f"{own} ({mean('', 'uniform false share', times=100).text(runs, base)})"


_COSTS = (
    mean("s / epoch", "seconds per epoch"),
    mean("refresh share", "refresh share", 2),
    mean("epochs", "epochs", 0),
    mean("best epoch", "best epoch", 0),
    mean("input nodes / batch", "input nodes", 0),
    mean("peak MB", "peak MB", 0),
    mean("score of positives", "positive score", 2),
    mean("score of negatives", "negative score", 2),
    Column("false negatives, % (uniform)", _false_share),
    mean("weight of a negative", "weight"),
    mean("weight of a false one", "false weight"),
)


def tables(section: Section, found: Found) -> str:
    """Rankings beside the reference, and what they cost."""
    hard = HEART_METRICS if any(c.recipe.heart for cs in section.cells.values() for c in cs) else ()
    ranking = (
        mean("MRR (val)", "val MRR"),
        *(mean(metric, f"test {metric}") for metric in (*METRICS, *hard)),
        difference(f"MRR, difference to {section.reference}", "test MRR"),
        ratio("MRR, ratio", "test MRR"),
        *(difference(f"{metric}, difference", f"test {metric}") for metric in ("MAP", *hard)),
    )
    parts = (markdown(found, section.reference, columns) for columns in (ranking, _COSTS))
    return "\n".join(parts)


def draw(plt: Any, done: Done) -> Any:
    """Test MRR of every run, above the learning curves."""
    height = 4.5 + 0.3 * max(len(found) for _, found in done)
    figure, axes = plt.subplots(2, len(done), figsize=(5.5 * len(done), height), squeeze=False)
    for top, bottom, (section, found) in zip(*axes, done):
        plot_runs(top, found, "test MRR", {})
        top.set_title(section.dataset)
        for place, (title, runs) in enumerate((t, r) for t, r in found.items() if r):
            line = "-" if place < 10 else "--"  # there are ten colours
            bottom.plot(runs[min(runs)]["curve"], line, label=title, alpha=0.8)
        bottom.set(xlabel="epoch", ylabel="validation MRR, first seed")
        bottom.grid(alpha=0.3)
        if bottom.lines:
            bottom.legend(fontsize="x-small")
    return figure
