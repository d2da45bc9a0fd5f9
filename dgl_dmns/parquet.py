"""Parquet tables from others, bounded before they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

__all__ = ["read_arrow", "read_names", "read_parquet"]

MOST_BYTES = 2 << 30
"""Bytes that the columns of a table may take, unpacked."""

MOST_CELLS = 1 << 28
"""Cells of a table, rows times columns."""


def read_parquet(path: Path) -> pd.DataFrame:
    """The table in a Parquet file; for the errors see `read_arrow`."""
    table: pd.DataFrame = read_arrow([path])[0].to_pandas(ignore_metadata=True)
    return table


def read_names(path: Path) -> list[str]:
    """The names of the columns of a Parquet file."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return list(file.schema_arrow.names)


def read_arrow(paths: Sequence[Path], columns: Sequence[Sequence[str]] | None = None) -> list[Any]:
    """The Arrow tables in Parquet files, which together keep to the bounds.

    Args:
        paths: the files.
        columns: those to read of each file; all where None.

    Raises:
        ImportError: if pyarrow is missing.
        ValueError: if the tables are larger than 2 GiB or 2^28 cells.
        Exception: whatever Arrow raises for a damaged file.
    """
    from pyarrow import parquet

    unpacked = cells = 0
    tables = []
    for place, path in enumerate(paths):
        with parquet.ParquetFile(path) as file:
            known = file.metadata
            names = file.schema_arrow.names if columns is None else columns[place]
            unpacked += sum(known.row_group(i).total_byte_size for i in range(known.num_row_groups))
            cells += known.num_rows * len(names)
            if unpacked > MOST_BYTES or cells > MOST_CELLS:
                raise ValueError(
                    f"expected at most {MOST_BYTES} bytes and {MOST_CELLS} cells, got {unpacked} "
                    f"and {cells}; split the file, or build the graph in Python"
                )
            tables.append(file.read(columns=list(names)))
    return tables
