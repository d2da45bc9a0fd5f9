"""Tables and a plot from the stored cells: CSV, Markdown, and cost against the number of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import CellStore, markdown_table, pyplot, write_csv, write_text
from benchmarks.speed.config import Cell

__all__ = ["scaling_exponent", "write_report"]

Run = tuple[Cell, dict[str, Any]]

_PARTS = ("embed", "fit", "table")
_MEMORY = ("graph and features", "uniform", "made", "own")
_CSV_HEADER = (
    "negatives",
    "nodes",
    "edges",
    "width",
    "k",
    "workers",
    "seed",
    *(f"{what} {of}" for what in ("call", "loader", "training") for of in ("uniform", "own")),
    *(f"{what} ratio" for what in ("call", "loader", "training", "epoch")),
    "batches per epoch",
    "epoch uniform",
    "epoch own",
    "refresh share",
    "refresh first",
    "refresh later",
    *(f"refresh {part}" for part in _PARTS),
    "seconds to make",
    *(f"peak MB {name}" for name in _MEMORY),
    "table MB",
)
_TABLE_HEADER = (
    "negatives",
    "N",
    "edges",
    "D",
    "K",
    "workers",
    "call, uniform (ms)",
    "call",
    "loader",
    "training step",
    "epoch, uniform (s)",
    "epoch",
    "refresh (s)",
    "its share",
    "embed, fit, table (s)",
    "peak MB, uniform",
    "peak MB",
    "table MB",
)


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


def _finished(cells: Sequence[Cell], store: CellStore) -> list[Run]:
    loaded = [(cell, store.load(cell)) for cell in cells]
    return [(cell, result) for cell, result in loaded if result is not None]


def _csv_rows(runs: Sequence[Run]) -> list[list[Any]]:
    rows = []
    for cell, run in runs:
        s, refresh = cell.setting, run["refresh"]
        timed = [run[what] for what in ("call", "loader", "training")]
        rows.append(
            [
                cell.row.title,
                *(s.nodes, run["edges"], s.width, s.k, s.workers, cell.seed),
                *(one[of] for one in timed for of in ("uniform", "own")),
                *(one["ratio"] for one in (*timed, run["epoch"])),
                run["batches per epoch"],
                *(run["epoch"][name] for name in ("uniform", "own", "refresh share")),
                refresh["first"],
                refresh["later"],
                *(refresh["parts"].get(part, 0.0) for part in _PARTS),
                run["seconds to make"],
                *(run["memory"][name] for name in _MEMORY),
                run["table MB"],
            ]
        )
    return rows


def _line(cell: Cell, run: dict[str, Any]) -> list[str]:
    s, epoch, refresh = cell.setting, run["epoch"], run["refresh"]
    parts = [f"{refresh['parts'].get(part, 0.0):.2f}" for part in _PARTS]
    return [
        cell.row.title,
        *(f"{number:,}" for number in (s.nodes, run["edges"], s.width, s.k, s.workers)),
        f"{1e3 * run['call']['uniform']:.2f}",
        *(f"{run[what]['ratio']:.2f}" for what in ("call", "loader", "training")),
        f"{epoch['uniform']:.1f}",
        f"{epoch['ratio']:.2f}",
        f"{refresh['later']:.2f}",
        f"{100 * epoch['refresh share']:.1f} %",
        ", ".join(parts),
        *(f"{run['memory'][name]:.0f}" for name in ("uniform", "own")),
        f"{run['table MB']:.0f}",
    ]


def _series(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ in the number of nodes only, by name, where there are two sizes or more."""
    series: dict[str, list[Run]] = {}
    for cell, run in runs:
        s = cell.setting
        name = f"{cell.row.title}, D {s.width}, K {s.k}, workers {s.workers}, seed {cell.seed}"
        series.setdefault(name, []).append((cell, run))
    return {
        name: group
        for name, group in series.items()
        if len({cell.setting.nodes for cell, _ in group}) > 1
        and all(run["refresh"]["later"] > 0 for _, run in group)
    }


def _exponents(series: dict[str, list[Run]]) -> str:
    lines = []
    for name, group in series.items():
        nodes = [cell.setting.nodes for cell, _ in group]
        columns = [[run["refresh"]["later"] for _, run in group]]
        columns += [[run["refresh"]["parts"][part] for _, run in group] for part in _PARTS]
        columns.append([run["memory"]["own"] for _, run in group])
        lines.append([name, *(f"{scaling_exponent(nodes, column):.2f}" for column in columns)])
    return markdown_table(("exponent in N of", "refresh", *_PARTS, "peak memory"), lines)


def _plot(series: dict[str, list[Run]], path: Path) -> bool:
    """Refresh time and peak memory against N; False where matplotlib or two sizes are missing."""
    plt = pyplot()
    if plt is None or not series:
        return False
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    read = (("refresh", "later", "refresh (s)"), ("memory", "own", "peak memory (MB)"))
    for axis, (what, of, title) in zip(axes, read):
        for name, group in series.items():
            group = sorted(group, key=lambda one: one[0].setting.nodes)
            nodes = [cell.setting.nodes for cell, _ in group]
            values = [run[what][of] for _, run in group]
            exponent = scaling_exponent(nodes, values)
            axis.loglog(nodes, values, "o-", label=f"{name}: N^{exponent:.2f}")
        axis.set_xlabel("nodes N")
        axis.set_ylabel(title)
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize="x-small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def write_report(cells: Sequence[Cell], store: CellStore, out: Path, heading: str) -> list[Path]:
    """Write ``results.csv``, ``results.md`` and, with matplotlib and two sizes, ``results.png``.

    Args:
        cells: what was to be run.
        store: the finished cells; absent ones are left out.
        out: the folder.
        heading: Markdown above the first table.

    Returns:
        The files written.
    """
    out.mkdir(parents=True, exist_ok=True)
    runs = _finished(cells, store)
    series = _series(runs)
    files = [out / "results.csv", out / "results.md"]
    write_csv(files[0], _CSV_HEADER, _csv_rows(runs))
    text = heading + "\n" + markdown_table(_TABLE_HEADER, [_line(*run) for run in runs])
    if series:
        text += "\n" + _exponents(series)
    write_text(files[1], text)
    if _plot(series, out / "results.png"):
        files.append(out / "results.png")
    return files
