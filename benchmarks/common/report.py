"""Reports: every run as a line of ``results.csv``, tables as ``results.md``, a plot.

The figures of a run go by one name each, such as ``test MRR``: those of a part of a result have the
part's name before theirs (see `flat`).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common.cells import CellStore, write_text
from benchmarks.common.rows import Cell, Row
from dgl_dmns.evaluate import mean_and_stderr, paired_difference

__all__ = [
    "Column",
    "Done",
    "Found",
    "Runs",
    "Section",
    "cells_of",
    "difference",
    "markdown_table",
    "mean",
    "plot_runs",
    "ratio",
    "save_plot",
    "sections_of",
    "setting",
    "spread",
    "table",
    "write_csv",
    "write_report",
]

Runs = dict[int, dict[str, Any]]
"""The figures of one row's runs, by seed."""

Found = dict[str, Runs]
"""Those of a section's rows, by their titles."""


def flat(result: Mapping[str, Any], part: str = "") -> dict[str, Any]:
    """The figures of a result by name, ``{"test": {"MRR": 0.5}}`` as ``{"test MRR": 0.5}``."""
    figures: dict[str, Any] = {}
    for name, value in result.items():
        if isinstance(value, Mapping):
            figures |= flat(value, f"{part}{name} ")
        else:
            figures[part + name] = value
    return figures


@dataclass(frozen=True)
class Section:
    """The runs of one table."""

    table: str  # what the rows are, such as the name of their group
    dataset: str  # name of the data set
    cells: Mapping[str, Sequence[Cell]]  # the cells of each row, by its title
    reference: str  # title of the row that others are compared to; it need not be among the cells
    note: str = ""  # a paragraph beneath the table

    def found(self, store: CellStore) -> Found:
        """The finished runs."""
        return {
            title: {seed: flat(result) for seed, result in store.finished(cells).items()}
            for title, cells in self.cells.items()
        }


Done = list[tuple[Section, Found]]
"""The sections of a report with their finished runs."""


def sections_of(
    table: str,
    datasets: Sequence[str],
    rows: Sequence[Row],
    seeds: Sequence[int],
    cell: Callable[[str, Row, int], Cell],
    reference: str = "",
) -> list[Section]:
    """A section for each data set, with a cell for each row and seed.

    ``cell`` makes one, of data set, row and seed; the reference is the first row where empty.
    """
    return [
        Section(
            table,
            dataset,
            {row.title: [cell(dataset, row, seed) for seed in seeds] for row in rows},
            reference or rows[0].title,
        )
        for dataset in datasets
    ]


def cells_of(sections: Sequence[Section]) -> list[Cell]:
    """All their cells."""
    return [cell for section in sections for group in section.cells.values() for cell in group]


class Column(NamedTuple):
    """A column of a table."""

    header: str  # at its top
    # what stands in a row, of its runs and those of the reference
    text: Callable[[Runs, Runs], str]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard error of runs, such as ``0.792 ± 0.001``; one run has no error."""
    if not values:
        return "-"
    average, error = mean_and_stderr(values)
    text = f"{average:,.{digits}f}"
    return text if math.isnan(error) else f"{text} ± {error:.{digits}f}"


def mean(header: str, figure: str, digits: int = 3, times: float = 1.0) -> Column:
    """Mean and standard error of a figure over the runs that have it."""

    def text(runs: Runs, _: Runs) -> str:
        values = [run.get(figure) for run in runs.values()]
        return spread([times * value for value in values if value is not None], digits)

    return Column(header, text)


def setting(figure: str) -> Column:
    """The value of a setting in the runs, all of them where they differ."""

    def text(runs: Runs, _: Runs) -> str:
        values = {float(run[figure]) for run in runs.values() if run.get(figure) is not None}
        return ", ".join(f"{value:g}" for value in sorted(values)) or "-"

    return Column(figure, text)


def _paired(runs: Runs, base: Runs, figure: str) -> tuple[list[float], list[float]]:
    """A figure of both rows for the seeds that both have; nothing of a row and itself."""
    seeds = sorted(set(runs) & set(base)) if runs is not base else []
    a, b = ([one[seed][figure] for seed in seeds] for one in (runs, base))
    return a, b


def difference(header: str, figure: str) -> Column:
    """Mean difference to the reference, paired by seed, with its 95 % interval."""

    def text(runs: Runs, base: Runs) -> str:
        a, b = _paired(runs, base, figure)
        if len(a) < 2:
            return f"{a[0] - b[0]:+.3f}" if a else "-"
        average, low, high = paired_difference(a, b)
        return f"{average:+.3f} [{low:+.3f}, {high:+.3f}]"

    return Column(header, text)


def ratio(header: str, figure: str) -> Column:
    """Geometric mean of the ratios to the reference, paired by seed, with its 95 % interval."""

    def text(runs: Runs, base: Runs) -> str:
        a, b = _paired(runs, base, figure)
        if not a or min(*a, *b) <= 0.0:
            return "-"
        if len(a) < 2:
            return f"{a[0] / b[0]:.2f}"
        logs = paired_difference([math.log(x) for x in a], [math.log(x) for x in b])
        average, low, high = (math.exp(part) for part in logs)
        return f"{average:.2f} [{low:.2f}, {high:.2f}]"

    return Column(header, text)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *rows))


def table(found: Found, reference: str, columns: Sequence[Column]) -> str:
    """A line for each row: its title, the number of its runs, and the columns."""
    base = found.get(reference, {})
    lines = [
        [title, str(len(runs)), *(column.text(runs, base) for column in columns)]
        for title, runs in found.items()
    ]
    return markdown_table(("negatives", "runs", *(column.header for column in columns)), lines)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file, whole or not at all."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def _write_runs(path: Path, done: Done) -> None:
    """A line for each run: where it belongs, and all its figures but lists."""
    runs = [
        ([section.table, section.dataset, title, seed], run)
        for section, found in done
        for title, by_seed in found.items()
        for seed, run in by_seed.items()
    ]
    names = [
        name
        for name in dict.fromkeys(name for _, run in runs for name in run)
        if not any(isinstance(run.get(name), list) for _, run in runs)
    ]
    lines = [[*place, *(run.get(name) for name in names)] for place, run in runs]
    write_csv(path, ["table", "dataset", "row", "seed", *names], lines)


def save_plot(path: Path, draw: Callable[[Any], Any]) -> list[Path]:
    """Save the figure that ``draw`` makes with matplotlib's pyplot, if it makes one.

    Returns the file, or nothing where there is no figure or matplotlib is absent.
    """
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = draw(plt)
    if figure is None:
        return []
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return [path]


def plot_runs(axis: Any, found: Found, figure: str, marks: Mapping[str, float]) -> None:
    """A figure of every run as dots in a line for each row, their mean, and marks by title."""
    titles = [title for title, runs in found.items() if runs][::-1]
    for place, title in enumerate(titles):
        values = [run[figure] for run in found[title].values()]
        color = "tab:orange" if "DMNS" in title else "tab:blue"
        axis.plot(values, [place] * len(values), ".", color=color, alpha=0.5)
        axis.plot([sum(values) / len(values)], [place], "|", color=color, markersize=14)
        if title in marks:
            axis.plot([marks[title]], [place], "x", color="black")
    axis.set_yticks(range(len(titles)), titles)
    axis.set_ylim(-0.7, max(len(titles), 1) - 0.3)
    axis.set_xlabel(figure)
    axis.grid(axis="x", alpha=0.3)


def write_report(
    sections: Sequence[Section],
    store: CellStore,
    out: Path,
    heading: str,
    body: Callable[[Section, Found], str],
    *,
    end: Callable[[Done], str] | None = None,
    draw: Callable[[Any, Done], Any] | None = None,
    name: str = "results",
) -> list[Path]:
    """Write a CSV file of the runs, Markdown of the tables and, where there is one, a plot.

    Args:
        sections: the tables; those of the first one's kind are plotted.
        store: the finished cells; absent ones show as "-".
        out: the folder.
        heading: Markdown above the first table.
        body: Markdown of a section.
        end: Markdown after the last one.
        draw: makes the figure with matplotlib's pyplot, or None if there is nothing to draw.
        name: of the files.

    Returns:
        The files written.
    """
    done = [(section, section.found(store)) for section in sections]
    files = [out / f"{name}.csv", out / f"{name}.md"]
    _write_runs(files[0], done)
    text = [heading]
    for section, found in done:
        note = f"\n{section.note}\n" if section.note else ""
        text.append(f"\n## {section.dataset}: {section.table}\n\n{body(section, found)}{note}")
    if end is not None:
        text.append(end(done))
    write_text(files[1], "".join(text))
    if draw is not None:
        plotted = [one for one in done if one[0].table == sections[0].table]
        files += save_plot(out / f"{name}.png", lambda plt: draw(plt, plotted))
    return files
