"""Pools smaller than the graph, their settings, and the working set of a fill."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from listed import (
    NODES,
    admissible,
    fill,
)
from shared import assert_counts
from small import NONE, alike, build, normal, random_edges, rng
from torch.profiler import ProfilerActivity, profile

from dgl_dmns.core import (
    Blend,
    CandidateTable,
    Density,
    DiffusionGenerator,
    KnownEdges,
    PoolSettings,
    SelfAdversarial,
    Snapshot,
    fill_table,
)
from dgl_dmns.core.fill import queries_at_a_time
from dgl_dmns.core.pools import PoolDraw

assert_frequencies = partial(assert_counts, least=1e-4)


# Pools smaller than the graph.

FLAT = SelfAdversarial(1e9)  # equal weights


@pytest.mark.parametrize("pool", [3, 4, 7])  # 3: few enough to redraw twins; 4, 7: random keys
def test_small_pools_keep_draws_by_equal_weights_uniform(pool: int) -> None:
    count = 1500
    table = fill(FLAT, PoolSettings(pool=pool, queries_per_pool=2), 2, count=count)
    ids = table.current().ids.view(NODES, count, 2).long()
    for query in range(NODES):
        allowed = admissible(query)
        pairs = Counter(tuple(sorted(pair)) for pair in ids[query].tolist())
        assert all(a != b for a, b in pairs)
        assert {u for pair in pairs for u in pair} <= set(allowed)
        for slot in range(2):
            seen = torch.bincount(ids[query, :, slot], minlength=NODES)[allowed]
            assert_frequencies(seen, torch.ones(len(allowed)))


@pytest.mark.parametrize(("pool", "nodes"), [(2, 5), (2, 3), (5, 30), (6, 30), (30, 30), (40, 30)])
def test_pools_are_uniform_sets_of_distinct_nodes(pool: int, nodes: int) -> None:
    """Seen through a rule that takes the whole pool: k = pool, nothing known."""
    queries = 12_000
    k = min(pool, nodes - 1)
    known = KnownEdges(NONE, NONE, queries, nodes, exclude_self=False)
    table = alike(queries, 1, k)
    settings_ = PoolSettings(pool=pool, queries_per_pool=1)
    h = torch.zeros(queries, 1)
    build(table, SelfAdversarial(), settings_, known, h, h[:nodes], generator=rng(5))
    ids = table.current().ids.long().sort(dim=-1).values
    assert bool((ids.diff(dim=-1) > 0).all())
    assert_frequencies(torch.bincount(ids.flatten(), minlength=nodes), torch.ones(nodes))
    if k == 2:
        seen = torch.bincount(ids[:, 0] * nodes + ids[:, 1], minlength=nodes**2)
        assert_frequencies(seen, torch.ones(nodes, nodes).triu(1).flatten())


def test_queries_of_a_chunk_share_a_pool_and_chunks_do_not() -> None:
    queries, nodes, pool = 64, 500, 5
    known = KnownEdges(NONE, NONE, queries, nodes, exclude_self=False)
    table = alike(queries, 1, pool)
    pools = PoolSettings(pool=pool, queries_per_pool=16)
    h = torch.zeros(nodes, 1)
    build(table, SelfAdversarial(), pools, known, h[:queries], h, generator=rng(6))
    sets = Counter(tuple(row) for row in table.current().ids.sort(dim=-1).values.tolist())
    assert sorted(sets.values()) == [16] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool": 0}, "pool: expected at least 1, got 0"),
        ({"queries_per_pool": 0}, "queries_per_pool: expected at least 1, got 0"),
        ({"groups": -1}, "groups: expected at least 1, got -1"),
        ({"uniform_share": -0.1}, r"uniform_share: expected a value in \[0, 1\], got -0.1"),
        ({"uniform_share": 1.1}, r"uniform_share: expected a value in \[0, 1\], got 1.1"),
        ({"uniform_share": math.nan}, r"uniform_share: expected a value in \[0, 1\], got nan"),
        ({"lam": 0.0}, "lam: expected a positive exponent, got 0.0"),
        ({"lam": math.nan}, "lam: expected a positive exponent, got nan"),
    ],
)
def test_pool_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoolSettings(**arguments)


@pytest.mark.parametrize(
    ("share", "k", "hard", "groups"),
    [(0, 5, 5, 11), (0.5, 5, 3, 18), (0.9, 10, 1, 112), (1, 2, 1, 22)],
)
def test_what_a_table_holds_of_the_negatives_of_an_edge(
    share: float, k: int, hard: int, groups: int
) -> None:
    settings_ = PoolSettings(uniform_share=share)
    assert (settings_.hard(k), settings_.groups_for(k)) == (hard, groups)  # 90 k bytes a query
    assert PoolSettings(uniform_share=share, groups=7).groups_for(k) == 7


@pytest.mark.parametrize("exclude_self", [True, False])
def test_pools_bar_exactly_the_known_edges(exclude_self: bool) -> None:
    nodes, pools = 60, PoolSettings(pool=16)
    known = random_edges(nodes, 400, exclude_self=exclude_self)
    h = torch.randn(nodes, 4, generator=rng(4))
    rows = torch.randperm(nodes, generator=rng(5))
    draw = PoolDraw(SelfAdversarial(), pools, Snapshot(h, h, known), rows, 12, rng(6))
    pool = torch.stack([torch.randperm(nodes, generator=rng(7 + c))[:16] for c in range(5)])
    expected = known.contains(draw.queries.unsqueeze(2), pool.unsqueeze(1))
    assert expected.any()
    assert torch.equal(draw.barred(pool), expected.flatten().nonzero().squeeze(1))


# The working set.

MANY = 2000


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most that tensors took beside what was there before; the profiler sees one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    torch.set_num_threads(threads)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    clock = "start_ns" if events and hasattr(events[0], "start_ns") else "start_us"
    now = most = 0
    for event in sorted(events, key=lambda event: getattr(event, clock)()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    ("rule", "settings", "groups", "chunk_bytes"),
    [
        (Blend(), PoolSettings(pool=32, draws_per_pool=40), 8, 14 << 20),
        (Density(), PoolSettings(pool=256), 2, 13 << 20),
    ],
)
def test_it_is_bounded(rule: Any, settings: PoolSettings, groups: int, chunk_bytes: int) -> None:
    known = random_edges(MANY, 5 * MANY)
    h = normal(MANY, 16)
    model = DiffusionGenerator(16, compact_width=8)
    model.space.update(h)
    snapshot = Snapshot(h, h, known, None, model)
    rows = queries_at_a_time(settings, snapshot, 5, chunk_bytes, groups)
    assert settings.queries_per_pool <= rows < MANY
    table = CandidateTable(torch.full((MANY,), groups), 5)
    most = peak_bytes(lambda: fill_table(table, rule, settings, snapshot, chunk_bytes=chunk_bytes))
    assert chunk_bytes / 8 < most <= chunk_bytes + 8 * MANY


def test_a_chunk_is_the_least_and_2048_queries_are_the_most() -> None:
    known = KnownEdges(torch.tensor([0]), torch.tensor([1]), MANY)
    snapshot = Snapshot(torch.zeros(MANY, 2), torch.zeros(MANY, 2), known)
    assert queries_at_a_time(PoolSettings(), snapshot, 1, chunk_bytes=1) == 1
    assert queries_at_a_time(PoolSettings(), snapshot, 1, chunk_bytes=1 << 40) == 2048
