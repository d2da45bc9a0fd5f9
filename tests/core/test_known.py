"""Known edges against a set of pairs, and draws against the admissible nodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import assert_counts, assert_drawn_from, same
from small import NONE, all_pairs, edges_of, random_edges, rng
from torch import Tensor

from dgl_dmns.core import KnownEdges, WeightedFallback, bitmap, known
from dgl_dmns.core.bitmap import PairBitmap
from dgl_dmns.core.openslots import fill_open_slots


def free_of(edges: KnownEdges, node: int) -> Tensor:
    return (~all_pairs(edges)[node]).nonzero().flatten()


def brute(edges: KnownEdges, src: Tensor, dst: Tensor) -> Tensor:
    """What `contains` has to say, from a Python set."""
    pairs = set(zip(src.tolist(), dst.tolist()))
    return torch.tensor(
        [
            [(v, u) in pairs or (edges.exclude_self and v == u) for u in range(edges.num_dst)]
            for v in range(edges.num_src)
        ],
        dtype=torch.bool,
    ).view(edges.num_src, edges.num_dst)


GRAPHS = {
    "sparse": (30, 40),
    "multigraph": (6, 200),  # far more edges than pairs: nearly all of them repeated
    "dense": (12, 400),
    "no edges": (5, 0),
    "one node": (1, 3),
    "isolated": (200, 10),
}


@pytest.mark.parametrize("exclude_self", [True, False])
@pytest.mark.parametrize("name", GRAPHS)
def test_all_that_is_asked_agrees_with_a_set(name: str, exclude_self: bool) -> None:
    nodes, count = GRAPHS[name]
    src, dst = torch.randint(0, nodes, (2, count), generator=rng(1))
    edges = KnownEdges(src, dst, nodes, exclude_self=exclude_self)
    truth = brute(edges, src, dst)
    assert torch.equal(all_pairs(edges), truth)
    for node in range(nodes):
        mine = sorted({u for v, u in zip(src.tolist(), dst.tolist()) if v == node})
        assert edges.neighbours(node).tolist() == mine
        assert int(edges.degrees()[node]) == len(mine)
    assert edges.saturated().tolist() == truth.all(dim=1).nonzero().flatten().tolist()
    rows = torch.randint(0, nodes, (25,), generator=rng(3))  # with repeats
    listed = torch.zeros(25, nodes, dtype=torch.bool)
    listed[edges.barred_of(rows)] = True
    assert torch.equal(listed, truth[rows])


@pytest.mark.parametrize("exclude_self", [True, False])
@pytest.mark.parametrize("name", GRAPHS)
def test_ranks_and_admissible_nodes_are_each_others_inverse(name: str, exclude_self: bool) -> None:
    nodes, count = GRAPHS[name]
    edges = random_edges(nodes, count, exclude_self=exclude_self)
    free = ~all_pairs(edges)
    assert edges.admissible_count(torch.arange(nodes)).tolist() == free.sum(1).tolist()
    query, node = free.nonzero(as_tuple=True)
    rank = free.cumsum(1)[query, node] - 1
    assert torch.equal(edges.nth_admissible(query, rank), node)
    assert torch.equal(edges.admissible_rank(query, node), rank)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    picks=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=60),
)
def test_two_node_types_of_any_size(shape: tuple[int, int], picks: list[tuple[int, int]]) -> None:
    src, dst = edges_of(picks, *shape)
    edges = KnownEdges(src, dst, *shape, exclude_self=False)
    truth = brute(edges, src, dst)
    assert torch.equal(all_pairs(edges), truth)
    assert edges.saturated().tolist() == truth.all(dim=1).nonzero().flatten().tolist()


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 7, 8, 9, 63, 64, 65])
def test_the_search_reaches_both_ends_of_a_long_row(degree: int) -> None:
    dst = torch.arange(degree) * 2 + 1  # odd nodes are known, even ones are not
    edges = KnownEdges(torch.ones(degree, dtype=torch.int64), dst, 2 * degree + 2)
    found = edges.contains(torch.tensor(1), torch.arange(2 * degree + 2))
    truth = torch.zeros(2 * degree + 2, dtype=torch.bool)
    truth[1::2] = True
    truth[-1] = False  # the last odd node stays free
    assert torch.equal(found, truth)


def test_contains_broadcasts_and_takes_int32() -> None:
    src, dst = torch.tensor([0, 2], dtype=torch.int32), torch.tensor([1, 0], dtype=torch.int32)
    edges = KnownEdges(src, dst, 3)
    rows = torch.arange(3, dtype=torch.int32)
    found = edges.contains(rows.view(3, 1, 1), rows.view(1, 1, 3))
    assert found.shape == (3, 1, 3)
    assert found[:, 0].tolist() == [[True, True, False], [False, True, False], [True, False, True]]
    assert edges.contains(torch.empty(0, 4), torch.empty(0, 1)).shape == (0, 4)


def test_the_key_of_a_pair_does_not_overflow_int32() -> None:
    nodes = 100_000  # the largest key is 10^10
    ends = torch.tensor([nodes - 1, nodes - 2, 0], dtype=torch.int32)
    edges = KnownEdges(ends, ends.flip(0), nodes)
    assert edges.neighbours(nodes - 1).tolist() == [0]
    assert edges.neighbours(0).tolist() == [nodes - 1]
    assert edges.neighbours(nodes - 2).tolist() == [nodes - 2]


@pytest.mark.parametrize("rounds", [0, 1, 8])
def test_rejection_and_listing_have_one_distribution(rounds: int) -> None:
    nodes = 40
    dst = torch.arange(1, 37)  # 0 is linked to all but 37, 38, 39: most proposals are rejected
    edges = KnownEdges(torch.zeros_like(dst), dst, nodes)
    drawn = edges.uniform(torch.zeros(50, dtype=torch.int64), 60, generator=rng(6), rounds=rounds)
    seen = torch.bincount(drawn.flatten(), minlength=nodes)
    assert int(seen[:37].sum()) == 0
    assert_counts(seen[37:], torch.ones(3))


def test_the_listing_serves_several_sources_at_once() -> None:
    nodes = 300
    src = torch.arange(2).repeat_interleave(nodes - 1)
    dst = torch.cat([torch.arange(nodes - 1), torch.arange(1, nodes)])  # 0 lacks 299, 1 lacks 0
    edges = KnownEdges(src, dst, nodes)
    drawn = edges.uniform(torch.tensor([1, 0, 1, 2]), 7, generator=rng(7), rounds=2)
    assert drawn[0].tolist() == drawn[2].tolist() == [0] * 7
    assert drawn[1].tolist() == [299] * 7
    assert not bool((drawn[3] == 2).any())


@settings(max_examples=40, deadline=None)
@given(
    nodes=st.integers(1, 6),
    picks=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40),
    exclude_self=st.booleans(),
    rounds=st.integers(0, 3),
)
def test_uniform_always_ends_with_admissible_nodes(
    nodes: int, picks: list[tuple[int, int]], exclude_self: bool, rounds: int
) -> None:
    edges = KnownEdges(*edges_of(picks, nodes), nodes, exclude_self=exclude_self)
    drawn = edges.uniform(torch.arange(nodes), 4, generator=rng(11), rounds=rounds)
    assert bool(((drawn >= 0) & (drawn < nodes)).all())
    bad = edges.contains(torch.arange(nodes).unsqueeze(1), drawn).any(dim=1)
    assert bad.nonzero().flatten().tolist() == edges.saturated().tolist()


def test_the_arrays_are_buffers() -> None:
    edges = KnownEdges(torch.tensor([0, 0, 1]), torch.tensor([2, 1, 2]), 3)
    assert edges.uniform(NONE, 4).shape == (0, 4)
    assert edges.uniform(torch.tensor([0]), 0).shape == (1, 0)
    state = edges.state_dict()
    assert state["indptr"].tolist() == [0, 2, 3, 3]
    assert state["indices"].tolist() == [1, 2, 2]
    assert repr(edges) == "KnownEdges(num_src=3, num_dst=3, edges=3)"


# Errors.


@pytest.mark.parametrize(
    ("src", "dst", "message"),
    [
        ([0, 1], [0], r"src, dst: expected two tensors of one shape \[P\], got \(2,\) and \(1,\)"),
        ([[0]], [[0]], r"src, dst: expected .* got \(1, 1\) and \(1, 1\)"),
        ([0, 4], [0, 1], r"src: expected ids in 0 \.\. 3, got 0 \.\. 4"),
        ([-1, 1], [0, 1], r"src: expected ids in 0 \.\. 3, got -1 \.\. 1"),
        ([0, 1], [0, 5], r"dst: expected ids in 0 \.\. 4, got 0 \.\. 5"),
        ([0, 1], [-2, 1], r"dst: expected ids in 0 \.\. 4, got -2 \.\. 1"),
    ],
)
def test_bad_edges(src: list[int], dst: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KnownEdges(torch.tensor(src), torch.tensor(dst), 4, 5)


def crowded(users: int, items: int, free: int) -> KnownEdges:
    """Each user knows all items but a few."""
    order = torch.rand(users, items, generator=rng(1)).argsort(1)[:, free:]
    src = torch.arange(users).unsqueeze(1).expand_as(order)
    return KnownEdges(src.flatten(), order.flatten(), users, items, exclude_self=False)


@pytest.mark.parametrize("free", [0, 1, 3])
def test_filling_takes_no_more_rounds_with_more_rows(free: int, monkeypatch: Any) -> None:
    counted = []
    inner = KnownEdges.contains_edges
    monkeypatch.setattr(
        KnownEdges, "contains_edges", lambda *a: counted.append(1) or inner(*a), raising=True
    )
    asked = []
    for users in (20, 400):
        known = crowded(users, 10, free)
        counted.clear()
        rows = torch.arange(users)
        ids = torch.full((users, 4, 3), -1)
        filled = fill_open_slots(ids, ids < 0, known, rows, rng(2))
        known.uniform(rows, 5, generator=rng(3))
        asked.append(len(counted))
        if free:
            assert not bool(known.contains(rows.view(-1, 1, 1), filled).any())
            distinct = (filled.sort(-1).values.diff(dim=-1) != 0).sum(-1) + 1
            assert bool((distinct == min(free, 3)).all())
        else:
            assert bool(((filled >= 0) & (filled < 10)).all())
    assert max(asked) < 40  # once a row would be far more


def test_open_slots_are_filled_uniformly_from_the_rest() -> None:
    known = crowded(1, 10, 4)
    free = free_of(known, 0)
    ids = free[0].repeat(6000, 1, 3)
    hole = torch.tensor([False, True, True]).expand_as(ids)
    rows = torch.zeros(6000, dtype=torch.int64)
    filled = fill_open_slots(ids, hole, known, rows, rng(4)).squeeze(1)
    assert bool((filled[:, 0] == free[0]).all())
    weight = torch.zeros(10)
    weight[free[1:]] = 1
    for slot in (1, 2):
        assert_drawn_from(filled[:, slot], weight)
    assert bool((filled[:, 1] != filled[:, 2]).all())


@pytest.mark.parametrize("exclude_self", [True, False])
def test_weighted_draws_among_the_admissible_are_exact(exclude_self: bool) -> None:
    nodes = 12
    edges = random_edges(nodes, 90, seed=5, exclude_self=exclude_self)
    weight = torch.arange(nodes).double() ** 3
    weight[5] = 0.0
    drawn = WeightedFallback(edges, weight.cumsum(0)).draw(
        torch.arange(nodes).repeat_interleave(3000), generator=rng(7)
    )
    for mine, barred in zip(drawn.view(nodes, -1), all_pairs(edges)):
        free = weight.masked_fill(barred, 0.0)
        if float(free.sum()):
            assert_drawn_from(mine, free, least=1e-4)


@pytest.mark.parametrize("most", [1 << 24, 0])
def test_edges_are_found_by_their_number_or_searched_for(most: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(known, "_KEYS", most)
    src, dst = torch.randint(0, 30, (2, 400), generator=rng(1))
    edges = KnownEdges(src, dst, 30)
    assert edges.given.numel() == (400 if most else 0)
    number = torch.arange(400)
    expected = edges.find(src, dst)
    assert bool(expected[1].all())
    searches: list[int] = []
    inner = torch.searchsorted
    monkeypatch.setattr(torch, "searchsorted", lambda *a: searches.append(1) or inner(*a))
    for right in (number, number.int()):
        assert same(edges.find(src, dst, right), expected)
    assert searches == []
    for wrong in (number.flip(0), number + 7, number + 1000):  # of another graph, or of a larger
        assert same(edges.find(src, dst, wrong), expected)
    assert same(edges.find(dst, src, number), edges.find(dst, src))


# The bitmap.


@pytest.mark.parametrize("pairs", [0, 1, 9, 5000, 40_000])
@pytest.mark.parametrize("nodes", [1000, 3_000_000_000])
def test_pairs_of_the_set_are_never_ruled_out_and_most_others_are(pairs: int, nodes: int) -> None:
    generator = rng(pairs)
    first, second = torch.randint(0, nodes, (2, pairs), generator=generator)
    found = PairBitmap(pairs)
    found.add(first, second)
    assert found.useful
    assert found.may_contain(first, second).all()
    other = torch.randint(nodes, 2 * nodes, (2, 20_000), generator=generator)
    assert float(found.may_contain(other[0], other[1]).float().mean()) < 0.05
    # Pairs next to each other, as in a grid, are spread over the slots too.
    side = torch.arange(nodes, nodes + 200)
    grid = found.may_contain(side.unsqueeze(1), side.unsqueeze(0))
    assert grid.shape == (200, 200)
    assert float(grid.float().mean()) < 0.05


def test_a_set_too_large_has_no_bitmap(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = random_edges(50, 200)
    monkeypatch.setattr(bitmap, "_SLOTS", 64)
    without = random_edges(50, 200)
    assert usual.bitmap.useful
    assert not without.bitmap.useful
    monkeypatch.setattr(known, "_KEYS", 0)  # nor keys: a search by halves
    halves = random_edges(50, 200)
    assert not halves.keys.numel()
    for other in (without, halves):
        assert torch.equal(all_pairs(usual), all_pairs(other))
    node = torch.tensor(3)
    assert bool(usual.contains(node, usual.neighbours(3)[0])) is True  # without a dimension
