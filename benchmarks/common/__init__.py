"""What all benchmarks share: stored cells, jobs, the environment record, tables.

A *cell* is the smallest unit of a benchmark that is run and stored: one data set, one method, one
seed. A cell is a frozen dataclass; its hash names the file of its result.
"""

from benchmarks.common.cells import CellStore, cell_hash, describe
from benchmarks.common.command import public_command
from benchmarks.common.environment import environment_record, peak_memory_mb, reset_peak_memory
from benchmarks.common.jobs import run_cells
from benchmarks.common.tables import markdown_table, spread, write_csv, write_text

__all__ = [
    "CellStore",
    "cell_hash",
    "describe",
    "environment_record",
    "markdown_table",
    "peak_memory_mb",
    "public_command",
    "reset_peak_memory",
    "run_cells",
    "spread",
    "write_csv",
    "write_text",
]
