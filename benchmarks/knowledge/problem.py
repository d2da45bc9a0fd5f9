"""A knowledge graph and its split: a folder of ``train.txt``, ``valid.txt`` and ``test.txt``.

A line is head, relation and tail, separated by tabs. Without a folder, triples are generated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.queries import Problem, Recipe
from dgl_dmns.cli.records import read_records
from dgl_dmns.core import KnownEdges
from dgl_dmns.data import QueryGraph, generated_triples
from dgl_dmns.evaluate import filtered_ranking, ranking_metrics

__all__ = ["load_problem", "read_triples"]

Triples = dict[str, Tensor]
"""Heads, relations and tails, int64 [3, P], of ``train``, ``val`` and ``test``."""


def read_triples(folder: Path | None, seed: int) -> tuple[Triples, int, int]:
    """The triples of a folder, or generated ones, and the numbers of entities and relations."""
    if folder is None:
        made = generated_triples(seed=seed)
        tenth = made.shape[1] // 10
        parts = made.tensor_split([tenth, 2 * tenth], dim=1)
        return dict(zip(("val", "test", "train"), parts)), 200, 4
    test, validation = folder / "test.txt", folder / "valid.txt"
    records = read_records(
        folder / "train.txt",
        "knowledge",
        ("head", "relation", "tail"),
        test=test,
        validation=validation,
        header=False,
    )
    return records.split(seed)[0], records.count("entity"), records.count("relation")


def load_problem(dataset: str, recipe: Recipe, seed: int, folder: Any) -> Problem:
    """Queries of all triples, training edges, and the filtered ranking of both sides."""
    triples, entities, relations = read_triples(folder and Path(folder), seed)
    heads, kinds, tails = torch.cat([*triples.values()], dim=1)
    queries = QueryGraph.from_triples(heads, kinds, tails, entities, relations)
    pairs = {part: queries.pairs(*columns) for part, columns in triples.items()}
    query, entity = torch.cat([*pairs.values()], dim=1)
    known = KnownEdges(query, entity, queries.num_queries, entities, exclude_self=False)

    def rank(query: Tensor, item: Tensor, score: Any, part: str) -> dict[str, float]:
        ranks = filtered_ranking(query, item, pairs[part], known, score)
        return ranking_metrics(ranks, hits=(1, 3, 10))

    return Problem(queries.graph(pairs["train"]), queries, rank, "MRR")
