"""Seeds, tables and fills that the tests of the core share."""

from __future__ import annotations

from typing import Any

import torch
from shared import normal as normal
from shared import rng as rng
from torch import Tensor

from dgl_dmns.core import (
    CandidateTable,
    KnownEdges,
    NodeDistribution,
    PoolSettings,
    Rule,
    Snapshot,
    TableReport,
    fill_table,
)

NONE = torch.empty(0, dtype=torch.int64)


def random_edges(nodes: int, count: int, seed: int = 1, **more: Any) -> KnownEdges:
    src, dst = torch.randint(0, nodes, (2, count), generator=rng(seed))
    return KnownEdges(src, dst, nodes, **more)


def hard_ratios(of: NodeDistribution) -> Tensor:
    """Log ratios of what its rule draws, of all pairs [Nq, Nc]; -inf for known edges."""
    known = of.snapshot.known
    src = torch.arange(known.num_src).repeat_interleave(known.num_dst)
    dst = torch.arange(known.num_dst).repeat(known.num_src)
    ratio = of.hard_log_ratio(src, dst).masked_fill(known.contains(src, dst), -torch.inf)
    return ratio.view(known.num_src, known.num_dst)


def edges_of(picks: list[tuple[int, int]], num_src: int, num_dst: int | None = None) -> Any:
    """Ends of drawn pairs of numbers, brought into range."""
    src = torch.tensor([v % num_src for v, _ in picks], dtype=torch.int64)
    return src, torch.tensor([u % (num_dst or num_src) for _, u in picks], dtype=torch.int64)


def all_pairs(known: KnownEdges) -> Tensor:
    """Which pairs are barred, bool [num_src, num_dst]."""
    return known.contains(torch.arange(known.num_src).unsqueeze(1), torch.arange(known.num_dst))


def alike(queries: int, groups: int, k: int) -> CandidateTable:
    """A table whose rows have the same number of groups."""
    return CandidateTable(torch.full((queries,), groups), k)


def build(
    table: CandidateTable,
    rule: Rule,
    settings: PoolSettings,
    known: KnownEdges,
    h_query: Tensor,
    h_candidate: Tensor,
    *,
    model: Any = None,
    scorer: Any = None,
    generator: torch.Generator | None = None,
) -> TableReport:
    """Fill and publish a table from embeddings."""
    model = model if rule.uses_generator else None
    snapshot = Snapshot(h_query, h_candidate, known, scorer, model)
    report, _ = fill_table(table, rule, settings, snapshot, generator=generator)
    table.publish()
    return report
