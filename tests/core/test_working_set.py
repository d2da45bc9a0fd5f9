"""Filling a table: allocations counted by the profiler stay within `chunk_bytes`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dgl_dmns.core import (
    Blend,
    CandidateTable,
    Density,
    DiffusionGenerator,
    KnownEdges,
    PoolSettings,
    Snapshot,
    fill_table,
    queries_at_a_time,
)

NODES = 400


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most that tensors took beside what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
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
        (Blend(), PoolSettings(pool=32, draws_per_pool=40), 8, 5 << 20),
        (Density(), PoolSettings(pool=256), 2, 5 << 20),
    ],
)
def test_it_is_bounded(rule: Any, settings: PoolSettings, groups: int, chunk_bytes: int) -> None:
    source = torch.Generator().manual_seed(0)
    known = KnownEdges(*torch.randint(0, NODES, (2, 5 * NODES), generator=source), NODES)
    h = torch.randn(NODES, 16, generator=source)
    model = DiffusionGenerator(16, compact_width=8)
    model.space.update(h)
    snapshot = Snapshot.take(h, h, known, None, model)
    rows = queries_at_a_time(settings, snapshot, 5, chunk_bytes, groups)
    assert settings.queries_per_pool <= rows < NODES
    table = CandidateTable(torch.full((NODES,), groups), 5)
    most = peak_bytes(lambda: fill_table(table, rule, settings, snapshot, chunk_bytes=chunk_bytes))
    assert chunk_bytes / 8 < most <= chunk_bytes + 8 * NODES


def test_a_chunk_is_the_least_and_4096_queries_are_the_most() -> None:
    known = KnownEdges(torch.tensor([0]), torch.tensor([1]), NODES)
    snapshot = Snapshot(torch.zeros(NODES, 2), torch.zeros(NODES, 2), known)
    assert queries_at_a_time(PoolSettings(), snapshot, 1, chunk_bytes=1) == 1
    assert queries_at_a_time(PoolSettings(), snapshot, 1, chunk_bytes=1 << 40) == 4096
