"""Queries that are numbered by their place among some, compared with all queries by their ids."""

from __future__ import annotations

import torch
from torch import Tensor

from dgl_dmns.core import (
    Blend,
    CandidateTable,
    DiffusionGenerator,
    FetchedRows,
    FilteredDraws,
    KnownEdges,
    NodeDistribution,
    PoolSettings,
    SelfAdversarial,
    Snapshot,
    fill_table,
    sample_neighbours,
)

N, D = 80, 6
HELD = torch.arange(3, N, 4)
SETTINGS = PoolSettings(pool=8, uniform_share=0.5)


def edges() -> Tensor:
    source = torch.Generator().manual_seed(3)
    pairs = torch.randint(0, N, (2, 500), generator=source)
    crowd = torch.stack([torch.full((N,), 7), torch.arange(N)])  # one knows all but itself
    return torch.cat([pairs, crowd[:, crowd[1] != 7]], dim=1)


def whole() -> KnownEdges:
    return KnownEdges(*edges(), N)


def part() -> KnownEdges:
    src, dst = edges()
    place = torch.searchsorted(HELD, src).clamp(max=len(HELD) - 1)
    ours = HELD[place] == src
    return KnownEdges(place[ours], dst[ours], len(HELD), N, own=HELD)


def test_known_edges_of_rows_are_those_of_their_ids() -> None:
    known, some = whole(), part()
    rows, every = torch.arange(len(HELD)), torch.arange(N)
    assert torch.equal(
        some.contains(rows.unsqueeze(1), every), known.contains(HELD.unsqueeze(1), every)
    )
    assert torch.equal(some.admissible_count(rows), known.admissible_count(HELD))
    rank = torch.arange(N - 1)
    inside = rank < known.admissible_count(HELD).unsqueeze(1)
    one, other = (
        k.nth_admissible(ids.unsqueeze(1), rank) for k, ids in ((some, rows), (known, HELD))
    )
    assert torch.equal(one[inside], other[inside])
    assert torch.equal(
        some.admissible_rank(rows.unsqueeze(1), every),
        known.admissible_rank(HELD.unsqueeze(1), every),
    )
    barred = [
        set(zip(*(end.tolist() for end in k.barred_of(ids))))
        for k, ids in ((some, rows), (known, HELD))
    ]
    assert barred[0] == barred[1]
    assert HELD[some.saturated()].tolist() == [7]
    torch.manual_seed(0)
    drawn = some.uniform(rows, 20)
    torch.manual_seed(0)
    assert torch.equal(drawn, known.uniform(HELD, 20))
    assert bool((drawn[HELD == 7] == 7).all())


def test_fingerprints_tell_which_sources_are_held() -> None:
    src, dst = torch.tensor([0, 1]), torch.tensor([5, 6])
    one, other = (KnownEdges(src, dst, 2, N, own=torch.tensor(ids)) for ids in ([1, 2], [1, 3]))
    assert one.fingerprint() != other.fingerprint()


def test_a_query_without_neighbours_is_its_own_by_its_id() -> None:
    known = KnownEdges(torch.tensor([0]), torch.tensor([5]), 2, N, own=torch.tensor([10, 20]))
    assert sample_neighbours(known, torch.tensor([0, 1])).tolist() == [5, 20]


def test_the_mixture_of_rows_is_that_of_their_ids() -> None:
    queries, nodes = torch.tensor([0, 1, 1, 5, 9]), torch.arange(0, N, 3)
    one, other = FilteredDraws(part()), FilteredDraws(whole())
    assert torch.equal(
        one.mixture_log_ratio(queries, nodes), other.mixture_log_ratio(HELD[queries], nodes)
    )
    candidates = torch.arange(10).view(5, 2)
    assert torch.equal(
        one.own_log_ratio(queries, candidates), other.own_log_ratio(HELD[queries], candidates)
    )


def fetched(h: Tensor, ids: Tensor, asked: list[Tensor]) -> FetchedRows:
    def fetch(nodes: Tensor) -> Tensor:
        asked.append(nodes)
        return h[nodes]

    return FetchedRows(ids, h[ids], fetch)


def test_rows_that_are_not_held_are_fetched_once_each() -> None:
    h = torch.randn(N, D)
    asked: list[Tensor] = []
    rows = fetched(h, torch.tensor([2, 5, 70]), asked)
    ids = torch.tensor([[5, 0], [79, 2], [0, 70]])
    assert torch.equal(rows.rows(ids), h[ids])
    assert [nodes.tolist() for nodes in asked] == [[0, 79]]
    assert torch.equal(rows.mapped(lambda part: 2 * part).rows(ids), 2 * h[ids])
    assert torch.equal(rows.rows(torch.tensor([2, 70])), h[[2, 70]])
    assert len(asked) == 2


def test_ratios_of_rows_are_those_of_their_ids() -> None:
    """With the norms of a table that was filled for all, and candidates that are fetched."""
    h = torch.randn(N, D)
    known, some = whole(), part()
    model = DiffusionGenerator(D, compact_width=4)
    model.space.update(h)
    z = model.space.encode(h)
    model.fit(z, z, known, 5)
    table = CandidateTable(torch.ones(N, dtype=torch.int64), 2)
    every = Snapshot(h, h, known, None, model)
    _, norms = fill_table(table, Blend(), SETTINGS, every)
    assert norms is not None
    held = Snapshot(h[HELD], fetched(h, torch.arange(0, N, 5), []), some, None, model)
    of_rows = NodeDistribution(Blend(), SETTINGS, held, norms[HELD])
    of_ids = NodeDistribution(Blend(), SETTINGS, every, norms)
    rows, dst = torch.arange(len(HELD)).repeat(4), torch.randint(0, N, (4 * len(HELD),))
    torch.testing.assert_close(of_rows.log_ratio(rows, dst), of_ids.log_ratio(HELD[rows], dst))


def test_a_table_of_rows_is_drawn_from_the_nodes_that_are_held() -> None:
    """No row is fetched for it; a group that finds none there is filled from all nodes."""
    h, known = torch.randn(N, D), part()
    asked: list[Tensor] = []
    ids = torch.arange(1, N, 3)
    snapshot = Snapshot(h[HELD], fetched(h, ids, asked), known, None, None)
    pools = snapshot.pools(3, 8, None)
    assert pools.shape == (3, 8)
    assert bool(torch.isin(pools, ids).all())
    table = CandidateTable(torch.full((len(HELD),), 6), 2)
    report, _ = fill_table(table, SelfAdversarial(), SETTINGS, snapshot)
    table.publish()
    drawn = table.current().ids.view(len(HELD), 6, 2).long()
    assert not asked
    free = HELD != 7  # which knows all
    assert report.fallback == 1
    assert bool(torch.isin(drawn[free], ids).all())
    rows = torch.arange(len(HELD)).view(-1, 1, 1)
    assert not known.contains(rows, drawn)[free].any()
