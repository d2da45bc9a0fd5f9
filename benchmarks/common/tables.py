"""Tables of results as CSV and Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.cells import CellStore, write_atomically
from dgl_dmns.evaluate import mean_and_stderr, paired_difference

__all__ = ["finished", "interval", "markdown_table", "pyplot", "spread", "write_csv", "write_text"]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard error of runs, such as ``0.792 ± 0.001``; one run has no error."""
    if not values:
        return "-"
    mean, error = mean_and_stderr(values)
    text = f"{mean:.{digits}f}"
    return text if math.isnan(error) else f"{text} ± {error:.{digits}f}"


def interval(a: Sequence[float], b: Sequence[float]) -> str:
    """Mean paired difference ``a - b`` of two runs or more with its 95 % interval."""
    mean, low, high = paired_difference(a, b)
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def finished(cells: Sequence[Any], store: CellStore) -> dict[int, dict[str, Any]]:
    """The stored results of one row's cells by their seeds; absent ones are left out."""
    loaded = {cell.seed: store.load(cell) for cell in cells}
    return {seed: result for seed, result in loaded.items() if result is not None}


def pyplot() -> Any:
    """Matplotlib's pyplot, drawing to files; None where matplotlib is absent."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *rows))


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file, whole or not at all."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_atomically(path, text)
