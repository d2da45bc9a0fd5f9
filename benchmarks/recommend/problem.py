"""A shop and its split: a folder with ``train.tsv`` and ``test.tsv``, or one that is generated.

A tenth of the training purchases, drawn by the seed, is for validation. A test leaves out all that
stands in ``train.tsv``, that tenth included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.queries import Problem, Recipe
from dgl_dmns.cli.records import read_records
from dgl_dmns.core import KnownEdges
from dgl_dmns.data import generated_shop, shop_graph
from dgl_dmns.evaluate import recommendation_metrics

__all__ = ["load_problem"]


def _purchases(folder: Path | None, seed: int) -> tuple[Tensor, Tensor]:
    """Purchases (user, item) for training and test, int64 [2, P]."""
    if folder is None:
        made = generated_shop(seed=seed)
        return made[:, : -made.shape[1] // 5], made[:, -made.shape[1] // 5 :]
    with (folder / "train.tsv").open() as file:
        columns = file.readline().split()
    test = folder / "test.tsv"
    records = read_records(folder / "train.tsv", "bipartite", columns, test=test)
    assert records.test is not None
    return records.rows, records.test


def load_problem(dataset: str, recipe: Recipe, seed: int, folder: Any) -> Problem:
    """A shop with a tenth of its training purchases held out, by the seed."""
    train, test = _purchases(folder and Path(folder), seed)
    users, items = (torch.cat([train, test], dim=1).amax(1) + 1).tolist()
    order = torch.randperm(train.shape[1], generator=torch.Generator().manual_seed(seed))
    held = train.shape[1] // 10
    pairs = {"val": train[:, order[:held]], "test": test}
    rest = train[:, order[held:].sort().values]
    known = {
        part: KnownEdges(bought[0], bought[1], users, items, exclude_self=False)
        for part, bought in (("val", rest), ("test", train))
    }

    def rank(query: Tensor, item: Tensor, score: Any, part: str) -> dict[str, float]:
        seen = known[part]
        return recommendation_metrics(query, item, pairs[part], seen, n=20, score=score, batch=512)

    return Problem(shop_graph(rest[0], rest[1], users, items), None, rank, "NDCG@20")
