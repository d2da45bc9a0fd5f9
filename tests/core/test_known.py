"""Known edges against a set of pairs, and the uniform draws against the admissible nodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from dgl_dmns.core import KnownEdges, WeightedFallback, fill_open_slots


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


def all_pairs(edges: KnownEdges) -> Tensor:
    rows = torch.arange(edges.num_src).unsqueeze(1)
    return edges.contains(rows, torch.arange(edges.num_dst).unsqueeze(0))


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
def test_contains_and_admissible_agree_with_a_set(name: str, exclude_self: bool) -> None:
    nodes, count = GRAPHS[name]
    src = torch.randint(0, nodes, (count,), generator=rng(1))
    dst = torch.randint(0, nodes, (count,), generator=rng(2))
    edges = KnownEdges(src, dst, nodes, exclude_self=exclude_self)
    truth = brute(edges, src, dst)
    assert torch.equal(all_pairs(edges), truth)
    for node in range(nodes):
        assert edges.admissible(node).tolist() == (~truth[node]).nonzero().flatten().tolist()
        mine = sorted({u for v, u in zip(src.tolist(), dst.tolist()) if v == node})
        assert edges.neighbours(node).tolist() == mine
        assert int(edges.degrees()[node]) == len(mine)
    assert edges.saturated().tolist() == truth.all(dim=1).nonzero().flatten().tolist()
    loops = {v for v, u in zip(src.tolist(), dst.tolist()) if v == u}
    assert edges.contains_self_as_known().tolist() == [v in loops for v in range(nodes)]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    picks=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=60),
)
def test_two_node_types_of_any_size(shape: tuple[int, int], picks: list[tuple[int, int]]) -> None:
    num_src, num_dst = shape
    src = torch.tensor([v % num_src for v, _ in picks], dtype=torch.int64)
    dst = torch.tensor([u % num_dst for _, u in picks], dtype=torch.int64)
    edges = KnownEdges(src, dst, num_src, num_dst, exclude_self=False)
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


# Uniform draws.


def test_uniform_is_filtered_and_uniform_over_the_admissible() -> None:
    nodes = 20
    src = torch.randint(0, nodes, (100,), generator=rng(3))
    dst = torch.randint(0, nodes, (100,), generator=rng(4))
    edges = KnownEdges(src, dst, nodes)
    truth = brute(edges, src, dst)
    count = 4000
    drawn = edges.uniform(torch.arange(nodes), count, generator=rng(5))
    assert drawn.shape == (nodes, count)
    assert drawn.dtype == torch.int64
    for node in range(nodes):
        seen = torch.bincount(drawn[node], minlength=nodes)
        assert int(seen[truth[node]].sum()) == 0
        assert chisquare(seen[~truth[node]]).pvalue > 1e-4


@pytest.mark.parametrize("rounds", [0, 1, 8])
def test_rejection_and_listing_have_one_distribution(rounds: int) -> None:
    nodes = 40
    dst = torch.arange(1, 37)  # 0 is linked to all but 37, 38, 39: most proposals are rejected
    edges = KnownEdges(torch.zeros_like(dst), dst, nodes)
    drawn = edges.uniform(torch.zeros(50, dtype=torch.int64), 60, generator=rng(6), rounds=rounds)
    seen = torch.bincount(drawn.flatten(), minlength=nodes)
    assert int(seen[:37].sum()) == 0
    assert chisquare(seen[37:]).pvalue > 1e-4


def test_the_listing_serves_several_sources_at_once() -> None:
    nodes = 300
    src = torch.arange(2).repeat_interleave(nodes - 1)
    dst = torch.cat([torch.arange(nodes - 1), torch.arange(1, nodes)])  # 0 lacks 299, 1 lacks 0
    edges = KnownEdges(src, dst, nodes)
    drawn = edges.uniform(torch.tensor([1, 0, 1, 2]), 7, generator=rng(7), rounds=2)
    assert drawn[0].tolist() == drawn[2].tolist() == [0] * 7
    assert drawn[1].tolist() == [299] * 7
    assert not bool((drawn[3] == 2).any())


def test_a_saturated_source_gets_itself() -> None:
    src = torch.tensor([0, 0, 1])
    dst = torch.tensor([1, 2, 0])
    edges = KnownEdges(src, dst, 3)
    assert edges.saturated().tolist() == [0]
    assert edges.uniform(torch.tensor([0, 1]), 5, generator=rng(8)).tolist() == [[0] * 5, [2] * 5]


def test_a_stored_loop_does_not_count_twice_towards_saturation() -> None:
    edges = KnownEdges(torch.tensor([0, 0]), torch.tensor([0, 1]), 3)
    assert edges.saturated().tolist() == []
    edges = KnownEdges(torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2]), 3)
    assert edges.saturated().tolist() == [0]


def test_a_saturated_source_of_another_type_gets_any_destination() -> None:
    edges = KnownEdges(torch.tensor([1, 1, 1]), torch.tensor([0, 1, 2]), 2, 3, exclude_self=False)
    assert edges.saturated().tolist() == [1]
    drawn = edges.uniform(torch.tensor([1]), 3000, generator=rng(9)).flatten()
    assert chisquare(torch.bincount(drawn, minlength=3)).pvalue > 1e-4


def test_two_types_may_draw_the_equal_number() -> None:
    edges = KnownEdges(torch.tensor([0]), torch.tensor([1]), 2, 3, exclude_self=False)
    drawn = edges.uniform(torch.tensor([0]), 3000, generator=rng(10)).flatten()
    seen = torch.bincount(drawn, minlength=3)
    assert int(seen[1]) == 0
    assert chisquare(seen[[0, 2]]).pvalue > 1e-4


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
    src = torch.tensor([v % nodes for v, _ in picks], dtype=torch.int64)
    dst = torch.tensor([u % nodes for _, u in picks], dtype=torch.int64)
    edges = KnownEdges(src, dst, nodes, exclude_self=exclude_self)
    drawn = edges.uniform(torch.arange(nodes), 4, generator=rng(11), rounds=rounds)
    assert bool(((drawn >= 0) & (drawn < nodes)).all())
    bad = edges.contains(torch.arange(nodes).unsqueeze(1), drawn).any(dim=1)
    assert bad.nonzero().flatten().tolist() == edges.saturated().tolist()


def test_nothing_asked_nothing_drawn() -> None:
    edges = KnownEdges(torch.tensor([0]), torch.tensor([1]), 3)
    assert edges.uniform(torch.empty(0, dtype=torch.int64), 4).shape == (0, 4)
    assert edges.uniform(torch.tensor([0]), 0).shape == (1, 0)


def test_one_seed_one_result() -> None:
    edges = KnownEdges(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), 5)
    a, b = (edges.uniform(torch.arange(5), 9, generator=rng(12)) for _ in range(2))
    assert torch.equal(a, b)


def test_the_arrays_are_buffers() -> None:
    edges = KnownEdges(torch.tensor([0, 0, 1]), torch.tensor([2, 1, 2]), 3)
    state = edges.state_dict()
    assert state["indptr"].tolist() == [0, 2, 3, 3]
    assert state["indices"].tolist() == [1, 2, 2]
    assert repr(edges) == "KnownEdges(num_src=3, num_dst=3, edges=3)"


# Errors.


@pytest.mark.parametrize(
    ("src", "dst", "message"),
    [
        ([0, 1], [0], r"src, dst: expected two tensors of one shape \[E\], got \(2,\) and \(1,\)"),
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


@pytest.mark.parametrize("exclude_self", [True, False])
def test_barred_pairs_are_all_that_contains_says(exclude_self: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    src = torch.randint(0, 30, (120,), generator=generator)
    dst = torch.randint(0, 30, (120,), generator=generator)
    known = KnownEdges(src, dst, 40, exclude_self=exclude_self)  # ten isolated nodes
    rows = torch.randint(0, 40, (25,), generator=generator)  # with repeats
    owner, node = known.barred_of(rows)
    listed = torch.zeros(25, 40, dtype=torch.bool)
    listed[owner, node] = True
    assert torch.equal(listed, known.contains(rows.unsqueeze(1), torch.arange(40).unsqueeze(0)))


# Sources that know nearly all destinations.


@pytest.mark.parametrize("exclude_self", [True, False])
@pytest.mark.parametrize("name", GRAPHS)
def test_ranks_and_admissible_nodes_are_each_others_inverse(name: str, exclude_self: bool) -> None:
    nodes, count = GRAPHS[name]
    src = torch.randint(0, nodes, (count,), generator=rng(1))
    dst = torch.randint(0, nodes, (count,), generator=rng(2))
    edges = KnownEdges(src, dst, nodes, exclude_self=exclude_self)
    truth = brute(edges, src, dst)
    everyone = torch.arange(nodes)
    assert edges.admissible_count(everyone).tolist() == (~truth).sum(1).tolist()
    query, free = (~truth).nonzero(as_tuple=True)
    rank = (~truth).cumsum(1)[query, free] - 1
    assert torch.equal(edges.nth_admissible(query, rank), free)
    assert torch.equal(edges.admissible_rank(query, free), rank)


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
    free = known.admissible(0)
    ids = free[0].repeat(6000, 1, 3)
    hole = torch.tensor([False, True, True]).expand_as(ids)
    rows = torch.zeros(6000, dtype=torch.int64)
    filled = fill_open_slots(ids, hole, known, rows, rng(4)).squeeze(1)
    assert bool((filled[:, 0] == free[0]).all())
    for slot in (1, 2):
        seen = torch.bincount(filled[:, slot], minlength=10)
        assert int(seen.sum() - seen[free[1:]].sum()) == 0
        assert chisquare(seen[free[1:]]).pvalue > 1e-4
    assert bool((filled[:, 1] != filled[:, 2]).all())


@pytest.mark.parametrize("exclude_self", [True, False])
def test_weighted_draws_among_the_admissible_are_exact(exclude_self: bool) -> None:
    nodes = 12
    src = torch.randint(0, nodes, (90,), generator=rng(5))
    dst = torch.randint(0, nodes, (90,), generator=rng(6))
    edges = KnownEdges(src, dst, nodes, exclude_self=exclude_self)
    weight = torch.arange(nodes).double() ** 3
    weight[5] = 0.0
    drawn = WeightedFallback(edges, weight.cumsum(0)).draw(
        torch.arange(nodes).repeat_interleave(3000), generator=rng(7)
    )
    for node, mine in enumerate(drawn.view(nodes, -1)):
        free = weight.clone()
        free[~torch.isin(torch.arange(nodes), edges.admissible(node))] = 0.0
        seen = torch.bincount(mine, minlength=nodes)
        if not float(free.sum()):
            continue
        assert int(seen[free == 0].sum()) == 0
        some = free > 0
        assert chisquare(seen[some], 3000 * free[some] / free.sum()).pvalue > 1e-4
