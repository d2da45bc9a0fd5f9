"""Graphs and their splits for examples, tests and benchmarks; plain tensors throughout."""

from dgl_dmns.data.datasets import DATASET_NAMES, load_dataset
from dgl_dmns.data.embedded import GraphData, dense_graph, embedded_graph, simple_undirected
from dgl_dmns.data.generated import generated_shop, generated_triples
from dgl_dmns.data.queries import QueryGraph, exclusion, shop_graph
from dgl_dmns.data.splits import (
    EdgeSplit,
    RankingSplit,
    official_split,
    split_directed,
    split_pairs,
)

__all__ = [
    "DATASET_NAMES",
    "EdgeSplit",
    "GraphData",
    "QueryGraph",
    "RankingSplit",
    "dense_graph",
    "embedded_graph",
    "exclusion",
    "generated_shop",
    "generated_triples",
    "load_dataset",
    "official_split",
    "shop_graph",
    "simple_undirected",
    "split_directed",
    "split_pairs",
]
