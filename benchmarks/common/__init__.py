"""What all benchmarks share: stored cells, jobs, the environment record, tables.

A *cell* is the smallest unit of a benchmark that is run and stored: one data set, one method, one
seed. A cell is a frozen dataclass; its hash names the file of its result.
"""

from benchmarks.common.cells import CellStore, cell_hash, describe
from benchmarks.common.command import public_command
from benchmarks.common.data import benchmark_data
from benchmarks.common.environment import environment_record, peak_memory_mb, reset_peak_memory
from benchmarks.common.jobs import run_cells
from benchmarks.common.runner import (
    add_run_options,
    measured,
    parse_run,
    record_run,
    report_failures,
    run_missing,
)
from benchmarks.common.tables import (
    finished,
    interval,
    markdown_table,
    pyplot,
    spread,
    write_csv,
    write_text,
)

__all__ = [
    "CellStore",
    "add_run_options",
    "benchmark_data",
    "cell_hash",
    "describe",
    "environment_record",
    "finished",
    "interval",
    "markdown_table",
    "measured",
    "parse_run",
    "peak_memory_mb",
    "public_command",
    "pyplot",
    "record_run",
    "report_failures",
    "reset_peak_memory",
    "run_cells",
    "run_missing",
    "spread",
    "write_csv",
    "write_text",
]
