"""Tables and a plot from the stored cells: CSV with every run, Markdown with means and errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import (
    CellStore,
    finished,
    interval,
    markdown_table,
    pyplot,
    spread,
    write_csv,
    write_text,
)
from benchmarks.dropin.config import Cell, Row
from benchmarks.dropin.measure import HEART_METRICS, METRICS
from dgl_dmns.evaluate import paired_difference

__all__ = ["Section", "write_report"]

Runs = dict[int, dict[str, Any]]
"""Results by seed."""

_COSTS = ("best epoch", "epochs", "seconds per epoch", "refresh share", "input nodes")
_SCORES = ("positive score", "negative score")
_NEGATIVES = ("false share", "uniform false share", "weight", "false weight")


@dataclass(frozen=True)
class Section:
    """The tables of one data set.

    Args:
        dataset: name of the data set.
        cells: the cells of each row, in order of seeds.
        reference: the row that the others are compared to; it need not be among the cells.
    """

    dataset: str
    cells: tuple[tuple[Row, tuple[Cell, ...]], ...]
    reference: Row

    @property
    def metrics(self) -> tuple[str, ...]:
        """The test metrics of its cells."""
        heart = any(cell.recipe.heart for _, cells in self.cells for cell in cells)
        return METRICS + HEART_METRICS if heart else METRICS

    def results(self, store: CellStore) -> dict[Row, Runs]:
        """Finished results by row and seed."""
        return {row: finished(cells, store) for row, cells in self.cells}


def _pairs(mine: Runs, other: Runs, metric: str) -> tuple[list[float], list[float]]:
    """Test figures of both rows for the seeds that both have."""
    seeds = sorted(set(mine) & set(other))
    a, b = ([runs[seed]["test"][metric] for seed in seeds] for runs in (mine, other))
    return a, b


def _difference(mine: Runs, other: Runs, metric: str) -> str:
    """Mean paired difference of a test metric with its 95 % interval."""
    a, b = _pairs(mine, other, metric)
    if not a or mine is other:
        return "-"
    if len(a) == 1:
        return f"{a[0] - b[0]:+.3f}"
    return interval(a, b)


def _ratio(mine: Runs, other: Runs, metric: str) -> str:
    """Geometric mean of the paired ratios of a test metric with its 95 % interval."""
    a, b = _pairs(mine, other, metric)
    if not a or mine is other or min(*a, *b) <= 0.0:
        return "-"
    if len(a) == 1:
        return f"{a[0] / b[0]:.2f}"
    logs = paired_difference([math.log(x) for x in a], [math.log(x) for x in b])
    mean, low, high = (math.exp(part) for part in logs)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _of(runs: Runs, read: Callable[[dict[str, Any]], float | None], digits: int = 3) -> str:
    """Mean and standard error over the runs that have a value."""
    values = [read(run) for run in runs.values()]
    return spread([value for value in values if value is not None], digits)


def _test(metric: str) -> Callable[[dict[str, Any]], float]:
    return lambda run: float(run["test"][metric])


def _ranking_table(found: dict[Row, Runs], reference: Row, metrics: Sequence[str]) -> str:
    base = found.get(reference, {})
    heart = [metric for metric in metrics if metric in HEART_METRICS]
    header = (
        "negatives",
        "runs",
        "MRR (val)",
        *metrics,
        f"MRR, difference to {reference.title}",
        "MRR, ratio",
        "MAP, difference",
        *(f"{metric}, difference" for metric in heart),
    )
    lines = []
    for row, runs in found.items():
        lines.append(
            [
                row.title,
                str(len(runs)),
                _of(runs, lambda run: run["val"]["MRR"]),
                *(_of(runs, _test(metric)) for metric in metrics),
                _difference(runs, base, "MRR"),
                _ratio(runs, base, "MRR"),
                *(_difference(runs, base, metric) for metric in ("MAP", *heart)),
            ]
        )
    return markdown_table(header, lines)


def _cost_table(found: dict[Row, Runs]) -> str:
    header = (
        "negatives",
        "s / epoch",
        "refresh share",
        "epochs",
        "best epoch",
        "input nodes / batch",
        "peak MB",
        "score of positives",
        "score of negatives",
        "false negatives, % (uniform)",
        "weight of a negative",
        "weight of a false one",
    )
    lines = [
        [
            row.title,
            _of(runs, lambda run: run["seconds per epoch"]),
            _of(runs, lambda run: run["refresh share"], 2),
            _of(runs, lambda run: run["epochs"], 0),
            _of(runs, lambda run: run["best epoch"], 0),
            _of(runs, lambda run: run["input nodes"], 0),
            _of(runs, lambda run: run["peak MB"], 0),
            _of(runs, lambda run: run["positive score"], 2),
            _of(runs, lambda run: run["negative score"], 2),
            f"{_of(runs, lambda run: 100 * run['negatives']['false share'])} "
            f"({_of(runs, lambda run: 100 * run['negatives']['uniform false share'])})",
            _of(runs, lambda run: run["negatives"]["weight"]),
            _of(runs, lambda run: run["negatives"]["false weight"]),
        ]
        for row, runs in found.items()
    ]
    return markdown_table(header, lines)


def _markdown(sections: Sequence[Section], store: CellStore, heading: str) -> str:
    text = [heading]
    for section in sections:
        found = section.results(store)
        text.append(
            f"\n## {section.dataset}\n\n"
            f"{_ranking_table(found, section.reference, section.metrics)}"
        )
        text.append(f"\n{_cost_table(found)}")
    return "".join(text)


def _csv(sections: Sequence[Section], store: CellStore) -> tuple[list[str], list[list[Any]]]:
    """Header and lines: every run."""
    metrics = sections[0].metrics
    costs = (*_COSTS, "peak MB", "seconds", *_SCORES)
    header = ["dataset", "row", "seed", *(f"val {metric}" for metric in METRICS)]
    header += [*(f"test {metric}" for metric in metrics), *costs, *_NEGATIVES]
    rows = []
    for section in sections:
        for row, runs in section.results(store).items():
            for seed, run in runs.items():
                val = [run["val"][metric] for metric in METRICS]
                test = [run["test"][metric] for metric in metrics]
                rest = [run[name] for name in costs]
                negatives = [run["negatives"][name] for name in _NEGATIVES]
                rows.append([section.dataset, row.title, seed, *val, *test, *rest, *negatives])
    return header, rows


def _plot(sections: Sequence[Section], store: CellStore, path: Path) -> bool:
    """Test MRR of every run, above the learning curves; False where matplotlib is absent."""
    plt = pyplot()
    if plt is None:
        return False
    height = 4.5 + 0.3 * max(len(section.cells) for section in sections)
    figure, axes = plt.subplots(
        2, len(sections), figsize=(5.5 * len(sections), height), squeeze=False
    )
    for top, bottom, section in zip(axes[0], axes[1], sections):
        done = [(row, runs) for row, runs in section.results(store).items() if runs]
        for place, (row, runs) in enumerate(done):
            values = [run["test"]["MRR"] for run in runs.values()]
            color, y = f"C{place % 10}", len(done) - 1 - place
            marker, line = (".", "-") if place < 10 else ("x", "--")  # there are ten colours
            top.plot(values, [y] * len(values), marker, color=color, alpha=0.5)
            top.plot([sum(values) / len(values)], [y], "|", color=color, markersize=14)
            bottom.plot(runs[min(runs)]["curve"], line, color=color, label=row.title, alpha=0.8)
        top.set_yticks(range(len(done)), [row.title for row, _ in reversed(done)])
        top.set_ylim(-0.7, max(len(done), 1) - 0.3)
        top.set_xlabel("test MRR over all nodes")
        top.set_title(section.dataset)
        top.grid(axis="x", alpha=0.3)
        bottom.set_xlabel("epoch")
        bottom.set_ylabel("validation MRR, first seed")
        bottom.grid(alpha=0.3)
        if done:
            bottom.legend(fontsize="x-small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def write_report(
    sections: Sequence[Section], store: CellStore, out: Path, heading: str
) -> list[Path]:
    """Write ``results.csv``, ``results.md`` and, with matplotlib, ``results.png``.

    Args:
        sections: one for each data set, at least one.
        store: the finished cells; absent ones show as "-".
        out: the folder.
        heading: Markdown above the first table.

    Returns:
        The files written.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "results.csv", out / "results.md"]
    write_csv(files[0], *_csv(sections, store))
    write_text(files[1], _markdown(sections, store, heading))
    if _plot(sections, store, out / "results.png"):
        files.append(out / "results.png")
    return files
