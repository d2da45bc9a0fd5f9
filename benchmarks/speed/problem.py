"""A graph of any size in linear time: half of the pairs near on a ring, half to hubs.

Symbols: N nodes, P undirected pairs, E = 2 P edges, F features.

Degrees follow a power law through the hubs; the ring gives the encoder something to learn, as the
features tell a node's place on it. The graph is made to be measured on, not to be learnt from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import dgl
import torch
from torch import Tensor

from benchmarks.speed.config import Setting

__all__ = ["Problem", "load_problem", "power_law_pairs"]

HUB_EXPONENT = 0.7  # the i-th hub is drawn in proportion to i^-0.7: degree exponent 1 + 1 / 0.7
NEARNESS = 1.2  # the tail exponent of distances on the ring


@dataclass(frozen=True, eq=False)
class Problem:
    """What a cell needs."""

    graph: Any  # both directions of every pair; edge ``e + P`` is the reverse of edge ``e < P``
    reverse: Tensor  # id of the reverse of each edge, of the graph's id type, [E]
    features: Tensor  # of the nodes, float32 [N, F]


def power_law_pairs(nodes: int, degree: int, generator: torch.Generator) -> Tensor:
    """Distinct pairs ``u < v`` of a graph with hubs, int64 [2, P].

    About ``nodes * degree / 2`` of them; duplicates that are left out make the mean degree a little
    less.
    """
    wanted = nodes * degree // 2
    u = torch.randint(0, nodes, (wanted,), generator=generator)
    chance = torch.rand(wanted, generator=generator, dtype=torch.float64)
    near = wanted // 2
    # Inverse distribution functions; places of hubs are spread over the ring by a coprime step.
    distance = (1 - chance[:near]).pow(-1 / NEARNESS).clamp(max=nodes / 2).long()
    hub = (chance[near:].pow(1 / (1 - HUB_EXPONENT)) * nodes).long().clamp(max=nodes - 1)
    v = torch.cat([u[:near] + distance, hub * _coprime(nodes)]) % nodes
    del chance, distance, hub
    keys = torch.unique((torch.minimum(u, v) * nodes + torch.maximum(u, v))[u != v])
    return torch.stack([torch.div(keys, nodes, rounding_mode="floor"), keys % nodes])


def _coprime(nodes: int) -> int:
    step = max(1, int(nodes * 0.6180339887))
    while math.gcd(step, nodes) != 1:
        step += 1
    return step


@lru_cache(maxsize=1)
def _graph(nodes: int, degree: int, int32: bool, seed: int) -> tuple[Any, Tensor]:
    u, v = power_law_pairs(nodes, degree, torch.Generator().manual_seed(seed))
    pairs, kind = u.numel(), torch.int32 if int32 else torch.int64
    u, v = u.to(kind), v.to(kind)
    graph = dgl.graph((torch.cat([u, v]), torch.cat([v, u])), num_nodes=nodes)
    graph.create_formats_()
    ids = torch.arange(2 * pairs, dtype=kind)
    return graph, torch.where(ids < pairs, ids + pairs, ids - pairs)


def load_problem(_: str, setting: Setting, seed: int, context: Any = None) -> Problem:
    """Make the graph of a setting; kept for the next cell of the same process."""
    graph, reverse = _graph(setting.nodes, setting.degree, setting.int32, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    angle = torch.arange(setting.nodes) * (2 * math.pi / setting.nodes)
    features = torch.randn(setting.nodes, setting.features, generator=generator)
    for column in range(0, setting.features - 1, 2):
        features[:, column] += 3 * torch.sin(angle * 2 ** (column // 2))
        features[:, column + 1] += 3 * torch.cos(angle * 2 ** (column // 2))
    return Problem(graph, reverse, features)
