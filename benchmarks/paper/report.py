"""Tables and a plot from the stored cells: CSV with every run, Markdown with means and errors."""

from __future__ import annotations

from collections.abc import Sequence
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
from benchmarks.paper.config import Cell, Row
from benchmarks.paper.published import PUBLISHED_PSI, published

__all__ = ["Section", "write_report"]

METRICS = ("MAP", "NDCG", "Hits@1")
_CSV_HEADER = (
    "section",
    "dataset",
    "row",
    "seed",
    *(f"val {metric}" for metric in METRICS),
    *(f"test {metric}" for metric in METRICS),
    "probe",
    "best epoch",
    "epochs",
    "seconds per epoch",
    "seconds",
    "peak MB",
)


@dataclass(frozen=True)
class Section:
    """One table: a title, a data set, and its cells by row.

    Args:
        title: of the table.
        dataset: name of the data set.
        cells: the cells of each row, in order of seeds.
        reference: title of the row that differences are taken to.
        note: a paragraph beneath the table.
    """

    title: str
    dataset: str
    cells: tuple[tuple[Row, tuple[Cell, ...]], ...]
    reference: str
    note: str = ""

    def results(self, store: CellStore) -> dict[str, dict[int, dict[str, Any]]]:
        """Finished results by row title and seed."""
        return {row.name: finished(cells, store) for row, cells in self.cells}


def _difference(mine: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]]) -> str:
    """Mean paired difference of test MAP with its 95 % interval."""
    seeds = sorted(set(mine) & set(other))
    if len(seeds) < 2 or mine is other:
        return "-"
    a, b = ([runs[seed]["test"]["MAP"] for seed in seeds] for runs in (mine, other))
    return interval(a, b)


def _line(row: Row, section: Section, found: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    mine = found[row.name]
    runs = list(mine.values())
    figures = published(row.name, section.dataset)

    def of(*path: str, digits: int = 3) -> str:
        values = []
        for run in runs:
            value: Any = run
            for part in path:
                value = value[part]
            values.append(value)
        return spread(values, digits)

    return [
        row.name,
        str(len(runs)),
        of("val", "MAP"),
        *(of("test", metric) for metric in METRICS),
        "-" if figures is None else f"{figures[0]:.3f} / {figures[1]:.3f}",
        _difference(mine, found.get(section.reference, {})),
        of("probe"),
        of("seconds per epoch"),
        of("epochs", digits=0),
        of("peak MB", digits=0),
    ]


def _psi_table(sections: Sequence[Section], store: CellStore) -> str:
    lines = []
    for section in sections:
        for name, runs in section.results(store).items():
            shares = [r["statistics"] for r in runs.values()]
            keys = [k for k in (shares[0] if shares else {}) if k.startswith("psi ")]
            if name.startswith("DMNS, latent") and keys:
                paper = PUBLISHED_PSI.get(section.dataset)
                for key in keys:
                    _, kind, level = key.split(" ")
                    share = spread([s[key] for s in shares if key in s])
                    lines.append(
                        [section.dataset, kind, level, share, f"{paper:.3f}" if paper else "-"]
                    )
    if not lines:
        return ""
    header = ("data set", "Psi by", "level", "share >= 0", "published, all levels")
    unique = list(dict.fromkeys(map(tuple, lines)))
    return "\n## Sub-linear positivity\n\n" + markdown_table(header, unique)


def _markdown(sections: Sequence[Section], store: CellStore, heading: str) -> str:
    text = [heading]
    for section in sections:
        found = section.results(store)
        header = (
            "negatives",
            "runs",
            "MAP (val)",
            *METRICS,
            "published MAP / NDCG",
            f"MAP, difference to {section.reference}",
            "probe",
            "s / epoch",
            "epochs",
            "peak MB",
        )
        table = markdown_table(header, [_line(row, section, found) for row, _ in section.cells])
        note = f"\n{section.note}\n" if section.note else ""
        text.append(f"\n## {section.title}: {section.dataset}\n\n{table}{note}")
    text.append(_psi_table(sections, store))
    return "".join(text)


def _csv_rows(sections: Sequence[Section], store: CellStore) -> list[list[Any]]:
    rows = []
    for section in sections:
        for name, runs in section.results(store).items():
            for seed, run in runs.items():
                metrics = [run[part][metric] for part in ("val", "test") for metric in METRICS]
                rest = [run[key] for key in _CSV_HEADER[4 + len(metrics) :]]
                rows.append([section.title, section.dataset, name, seed, *metrics, *rest])
    return rows


def _plot(sections: Sequence[Section], store: CellStore, path: Path) -> bool:
    """Test MAP of the rows, one panel a table; False where matplotlib is absent."""
    plt = pyplot()
    if plt is None:
        return False
    height = 1.0 + 0.3 * max(len(section.cells) for section in sections)
    figure, axes = plt.subplots(
        1, len(sections), figsize=(4.5 * len(sections), height), squeeze=False
    )
    for axis, section in zip(axes[0], sections):
        found = section.results(store)
        names = [name for name, runs in found.items() if runs][::-1]
        for place, name in enumerate(names):
            values = [run["test"]["MAP"] for run in found[name].values()]
            color = "tab:orange" if name.startswith("DMNS") else "tab:blue"
            axis.plot(values, [place] * len(values), ".", color=color, alpha=0.4)
            axis.plot([sum(values) / len(values)], [place], "|", color=color, markersize=14)
            if (figures := published(name, section.dataset)) is not None:
                axis.plot([figures[0]], [place], "x", color="black")
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(-0.7, len(names) - 0.3)
        axis.set_xlabel("test MAP (x: published)")
        axis.set_title(section.dataset)
        axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def write_report(
    sections: Sequence[Section], store: CellStore, out: Path, heading: str
) -> list[Path]:
    """Write ``results.csv``, ``results.md`` and, with matplotlib, ``results.png``.

    Args:
        sections: the tables, main ones first.
        store: the finished cells; absent ones show as "-".
        out: the folder.
        heading: Markdown above the first table.

    Returns:
        The files written.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "results.csv", out / "results.md"]
    write_csv(files[0], _CSV_HEADER, _csv_rows(sections, store))
    write_text(files[1], _markdown(sections, store, heading))
    main = [section for section in sections if section.title == sections[0].title]
    if main and _plot(main, store, out / "results.png"):
        files.append(out / "results.png")
    return files
