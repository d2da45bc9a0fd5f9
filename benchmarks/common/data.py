"""Data sets of the benchmarks, read once in a process."""

from __future__ import annotations

from functools import lru_cache

from dgl_dmns.data import GraphData, embedded_graph, load_dataset

__all__ = ["TINY_NODES", "benchmark_data"]

TINY_NODES = 120


@lru_cache(maxsize=1)
def benchmark_data(dataset: str, folder: str | None) -> GraphData:
    """A data set, kept for the cells that one process runs in a row.

    Args:
        dataset: ``tiny``, a small generated graph for tests, or a name that
            `dgl_dmns.data.load_dataset` knows.
        folder: DGL's cache; None: its own.
    """
    if dataset == "tiny":
        return embedded_graph(TINY_NODES, words=64)
    return load_dataset(dataset, folder)
