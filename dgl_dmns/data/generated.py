"""Small shops and knowledge graphs, generated on the spot: for tries and checks, no evidence."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dgl_dmns.checks import as_integer
from dgl_dmns.core import fit_seed, in_float32, shielded

__all__ = ["generated_shop", "generated_triples"]

_GROUPS = 12
_PURCHASES, _TAILS = 16, 5  # of a user; of a head and a relation


def _normal(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=rng, dtype=torch.float32)


def _points(count: int, centres: Tensor, rng: torch.Generator) -> Tensor:
    """Points [count, D] around centres [C, D]."""
    group = torch.randint(len(centres), (count,), generator=rng)
    return centres[group] + 0.7 * _normal(count, centres.shape[1], rng)


def _shuffled(rows: Tensor, rng: torch.Generator) -> Tensor:
    return rows[:, torch.randperm(rows.shape[1], generator=rng)]


@in_float32
@shielded
def generated_shop(num_users: int = 300, num_items: int = 200, seed: int = 0) -> Tensor:
    """Purchases of a shop: tastes and goods are points on a sphere; popular and fitting items sell.

    Args:
        num_users: at least 1.
        num_items: at least 16.
        seed: of everything.

    Returns:
        User and item of each purchase, int64 [2, 16 num_users], in random order; each user has 16
        different items.

    Raises:
        TypeError, ValueError: for counts out of range.
    """
    users = as_integer("num_users", num_users, 1)
    items = as_integer("num_items", num_items, _PURCHASES)
    rng = torch.Generator().manual_seed(fit_seed(seed))
    centres = _normal(_GROUPS, 8, rng)
    user, item = (normalize(_points(count, centres, rng), dim=1) for count in (users, items))
    popular = torch.rand(items, generator=rng, dtype=torch.float32).clamp(min=1e-3).pow(-0.5)
    bought = torch.multinomial(popular * torch.exp(8 * user @ item.T), _PURCHASES, generator=rng)
    buyer = torch.arange(users).repeat_interleave(_PURCHASES)
    return _shuffled(torch.stack([buyer, bought.flatten()]), rng)


@in_float32
@shielded
def generated_triples(num_entities: int = 200, num_relations: int = 4, seed: int = 0) -> Tensor:
    """Triples of entities that are points; each relation looks at some coordinates of both ends.

    Args:
        num_entities: at least 6.
        num_relations: at least 1.
        seed: of everything.

    Returns:
        Head, relation and tail, int64 [3, 5 num_entities num_relations], in random order; a head
        has 5 different tails of each relation, none of them itself.

    Raises:
        TypeError, ValueError: for counts out of range.
    """
    entities = as_integer("num_entities", num_entities, _TAILS + 1)
    kinds = as_integer("num_relations", num_relations, 1)
    rng = torch.Generator().manual_seed(fit_seed(seed))
    point = _points(entities, _normal(_GROUPS, 12, rng), rng)
    heads, found = torch.arange(entities).repeat_interleave(_TAILS), []
    for relation in range(kinds):
        seen = point[:, torch.randperm(12, generator=rng)[:4]]
        weight = torch.exp(seen @ seen.T).fill_diagonal_(0)
        tails = torch.multinomial(weight, _TAILS, generator=rng).flatten()
        found.append(torch.stack([heads, torch.full_like(heads, relation), tails]))
    return _shuffled(torch.cat(found, dim=1), rng)
