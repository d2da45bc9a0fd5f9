"""What all benchmarks share: rows and the samplers they name, training, stored cells, reports.

A *cell* is the smallest unit of a benchmark that is run and stored: one data set, one recipe, one
row, one seed. It is a frozen dataclass; its hash names the file of its result.
"""

__all__: list[str] = []
