"""A knowledge graph and its split: a folder of ``train.txt``, ``valid.txt`` and ``test.txt``.

A line is head, relation and tail, separated by tabs. Without a folder, triples are generated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from benchmarks.common.queries import Problem, Recipe
from dgl_dmns.core import KnownEdges
from dgl_dmns.data import QueryGraph
from dgl_dmns.evaluate import filtered_ranking, ranking_metrics

__all__ = ["generated_triples", "load_problem", "read_triples"]

Triples = dict[str, Tensor]
"""Heads, relations and tails, int64 [3, P], of ``train``, ``val`` and ``test``."""

ENTITIES, RELATIONS, EACH = 200, 4, 5


def read_triples(folder: Path) -> tuple[Triples, int, int]:
    """The triples of a folder, and the numbers of entities and relations; named in any way."""
    files = {"train": "train.txt", "val": "valid.txt", "test": "test.txt"}
    names = {
        part: pd.read_csv(folder / file, sep="\t", header=None, dtype=str, keep_default_na=False)
        for part, file in files.items()
    }
    every = pd.concat(names.values())
    entities = pd.Index(pd.concat([every[0], every[2]]).unique())
    relations = pd.Index(every[1].unique())
    numbered = {
        part: torch.stack(
            [
                torch.from_numpy(index.get_indexer(lines[column]).astype("int64"))
                for column, index in enumerate((entities, relations, entities))
            ]
        )
        for part, lines in names.items()
    }
    return numbered, len(entities), len(relations)


def generated_triples(seed: int) -> tuple[Triples, int, int]:
    """Entities are points; each relation looks at some coordinates, and likes agreement."""
    rng = torch.Generator().manual_seed(seed)
    point = torch.randn(ENTITIES, 12, generator=rng)
    heads = torch.arange(ENTITIES).repeat_interleave(EACH)
    found = []
    for relation in range(RELATIONS):
        looks_at = torch.randperm(12, generator=rng)[:4]
        weight = torch.exp(2 * point[:, looks_at] @ point[:, looks_at].t()).fill_diagonal_(0)
        tails = torch.multinomial(weight, EACH, generator=rng).flatten()
        found.append(torch.stack([heads, torch.full_like(heads, relation), tails]))
    triples = torch.cat(found, dim=1)
    triples = triples[:, torch.randperm(triples.shape[1], generator=rng)]
    tenth = triples.shape[1] // 10
    val, test, train = triples.split([tenth, tenth, triples.shape[1] - 2 * tenth], dim=1)
    return {"train": train, "val": val, "test": test}, ENTITIES, RELATIONS


def load_problem(dataset: str, recipe: Recipe, seed: int, folder: Any) -> Problem:
    """Queries of all triples, training edges, and the filtered ranking of both sides."""
    made = generated_triples(seed) if folder is None else read_triples(Path(folder))
    triples, entities, relations = made
    heads, kinds, tails = torch.cat([*triples.values()], dim=1)
    queries = QueryGraph.from_triples(heads, kinds, tails, entities, relations)
    pairs = {part: queries.pairs(*columns) for part, columns in triples.items()}
    query, entity = torch.cat([*pairs.values()], dim=1)
    known = KnownEdges(query, entity, queries.num_queries, entities, exclude_self=False)

    def rank(query: Tensor, item: Tensor, score: Any, part: str) -> dict[str, float]:
        seen = known.indptr, known.indices
        return ranking_metrics(
            filtered_ranking(query, item, pairs[part], seen, score), hits=(1, 3, 10)
        )

    return Problem(queries.graph(pairs["train"]), queries, rank, "MRR")
