"""Where records go: files, a line of text, TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

__all__ = ["TensorBoard", "line_of", "write_table"]


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV or Parquet, by the ending of the name.

    Raises:
        ValueError: for another ending.
        ImportError: if Parquet is asked for and pyarrow is missing.
    """
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        try:
            frame.to_parquet(path, index=False)
        except ImportError as error:
            raise ImportError(
                f"{path}: writing Parquet needs pyarrow (pip install pyarrow); or write a .csv file"
            ) from error
    else:
        raise ValueError(f"path: expected a name that ends in .csv or .parquet, got {path.name!r}")


def line_of(frame: pd.DataFrame) -> str:
    """One record in words: score and percentile of each level, and what stands out.

    Args:
        frame: the rows of one refresh; several edge types follow each other.
    """
    lines = []
    several = frame["etype"].nunique() > 1
    for etype, rows in frame.groupby("etype", sort=False):
        by_level = rows.set_index("level")
        parts = [f"refresh {rows['refresh'].iloc[0]}"]
        if several:
            parts.append(str(etype))
        for level, row in by_level.iterrows():
            parts.append(f"{level} {row['score']:.3g} ({row['percentile']:.2f})")
        negatives = by_level.loc["all"]
        parts.append(f"gini {negatives['gini']:.2f} (uniform {negatives['gini_uniform']:.2f})")
        if negatives["false_negatives"] == negatives["false_negatives"]:
            parts.append(f"false negatives {negatives['false_negatives']:.2%}")
        if negatives["fit_loss"] == negatives["fit_loss"]:
            parts.append(f"fit {negatives['fit_loss']:.3g}")
        parts.append(f"{negatives['refresh_seconds']:.2f} s")
        lines.append("  ".join(parts))
    return " | ".join(lines)


class TensorBoard:
    """Records as scalars ``negatives/COLUMN/LEVEL`` and ``training/NAME``.

    Args:
        folder: of the event files.

    Raises:
        ImportError: if TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "tensorboard: it is not installed; python -m pip install tensorboard, or leave "
                "tensorboard= out"
            ) from error
        self._writer: Any = SummaryWriter(str(folder))

    def add(self, frame: pd.DataFrame) -> None:
        """Write one record."""
        several = frame["etype"].nunique() > 1
        numbers = frame.select_dtypes("number").columns.difference(["refresh"])
        for row in frame.to_dict("records"):
            level = f"{row['etype']}/{row['level']}" if several else str(row["level"])
            for column in numbers:
                if row[column] == row[column]:
                    tag = f"negatives/{column}/{level}".replace(" ", "_")
                    self._writer.add_scalar(tag, row[column], row["refresh"])
        self._writer.flush()

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Write values of the training."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"training/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
