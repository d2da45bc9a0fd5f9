"""Parquet tables from others, bounded before they are read."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

__all__ = ["read_parquet"]

MOST_BYTES = 2 << 30
"""Bytes that the columns of a file may take, unpacked."""

MOST_CELLS = 1 << 28
"""Cells of a file, rows times columns."""


def read_parquet(path: Path, columns: tuple[str, ...] | None = None) -> pd.DataFrame:
    """The table in a Parquet file.

    Args:
        path: the file.
        columns: those to read, as far as the file has them; all where None.

    Raises:
        ImportError: if pyarrow is missing.
        ValueError: if the table is larger than 2 GiB or 2^28 cells.
        Exception: whatever Arrow raises for a damaged file.
    """
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        known = file.metadata
        names = [n for n in file.schema_arrow.names if columns is None or n in columns]
        unpacked = sum(known.row_group(i).total_byte_size for i in range(known.num_row_groups))
        cells = known.num_rows * len(names)
        if unpacked > MOST_BYTES or cells > MOST_CELLS:
            raise ValueError(
                f"expected at most {MOST_BYTES} bytes and {MOST_CELLS} cells, got {unpacked} and "
                f"{cells}; split the file, or build the graph in Python"
            )
        table: pd.DataFrame = file.read(columns=names).to_pandas(ignore_metadata=True)
    return table
