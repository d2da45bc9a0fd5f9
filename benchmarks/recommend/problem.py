"""A shop and its split: a folder with ``train.tsv`` and ``test.tsv``, or one that is generated.

A tenth of the training purchases, drawn by the seed, is for validation. A test leaves out all that
stands in ``train.tsv``, that tenth included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.common.queries import Problem, Recipe
from dgl_dmns.core import KnownEdges
from dgl_dmns.data import shop_graph
from dgl_dmns.evaluate import recommendation_metrics

__all__ = ["generated_shop", "load_problem", "read_shop"]

USERS, ITEMS, EACH = 300, 200, 16


def read_shop(folder: Path) -> tuple[Tensor, Tensor]:
    """Purchases (user, item) for training and test, int64 [2, P], numbered from 0."""
    parts = (pd.read_csv(folder / f"{name}.tsv", sep="\t") for name in ("train", "test"))
    train, test = (torch.from_numpy(part.to_numpy("int64")).t().contiguous() for part in parts)
    return train, test


def generated_shop(seed: int) -> tuple[Tensor, Tensor]:
    """Tastes and kinds of goods are points on a sphere; popular and fitting items sell."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, 8, generator=rng)
    group = [torch.randint(10, (count,), generator=rng) for count in (USERS, ITEMS)]
    at = [centres[own] + torch.randn(len(own), 8, generator=rng) for own in group]
    user, item = (normalize(point, dim=1) for point in at)
    popular = torch.rand(ITEMS, generator=rng).clamp(min=1e-3).pow(-0.5)
    bought = torch.multinomial(popular * torch.exp(8 * user @ item.t()), EACH, generator=rng)
    bought = bought[:, torch.randperm(EACH, generator=rng)]  # the best-fitting ones come first
    buyer = torch.arange(USERS).unsqueeze(1).expand_as(bought)
    last = EACH - EACH // 5
    train, test = (
        torch.stack([buyer[:, a:b], bought[:, a:b]]).flatten(1)
        for a, b in ((0, last), (last, EACH))
    )
    return train, test


def load_problem(dataset: str, recipe: Recipe, seed: int, folder: Any) -> Problem:
    """A shop with a tenth of its training purchases held out, by the seed."""
    train, test = generated_shop(seed) if folder is None else read_shop(Path(folder))
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
        seen = known[part].indptr, known[part].indices
        return recommendation_metrics(query, item, pairs[part], seen, n=20, score=score, batch=512)

    return Problem(shop_graph(rest[0], rest[1], users, items), None, rank, "NDCG@20")
