"""Training pairs against the distribution that they are said to follow."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from dgl_dmns.core import KnownEdges, sample_pairs


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Node 0 has four neighbours, 1 has two, 2 one and itself, 3 and 4 none.
SRC = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 0])
DST = torch.tensor([1, 2, 3, 4, 0, 4, 2, 3, 1])  # the last edge repeats the first


def test_a_uniform_query_then_a_uniform_neighbour() -> None:
    edges = KnownEdges(SRC, DST, 5)
    count = 60_000
    query, neighbour = sample_pairs(edges, count, generator=rng(1))
    assert query.shape == neighbour.shape == (count,)
    assert query.dtype == neighbour.dtype == torch.int64
    expected = torch.zeros(5, 5)
    for node in range(5):
        mine = edges.neighbours(node).tolist() or [node]
        expected[node, mine] = 1 / 5 / len(mine)
    seen = torch.bincount(query * 5 + neighbour, minlength=25).view(5, 5)
    possible = expected > 0
    assert int(seen[~possible].sum()) == 0
    assert chisquare(seen[possible], (expected[possible] * count).numpy()).pvalue > 1e-4


def test_an_isolated_node_is_its_own_neighbour() -> None:
    edges = KnownEdges(SRC, DST, 5)
    query, neighbour = sample_pairs(edges, 2000, generator=rng(2))
    alone = query >= 3
    assert int(alone.sum()) > 0
    assert torch.equal(query[alone], neighbour[alone])


def test_the_last_node_may_be_isolated() -> None:
    # Its row starts behind the last index: reading there must not fail nor hit a stranger.
    edges = KnownEdges(torch.tensor([0]), torch.tensor([1]), 3)
    query, neighbour = sample_pairs(edges, 500, generator=rng(3))
    assert neighbour[query == 0].unique().tolist() == [1]
    assert neighbour[query == 2].unique().tolist() == [2]


def test_two_node_types_skip_queries_without_neighbours() -> None:
    src, dst = torch.tensor([0, 2, 2]), torch.tensor([5, 1, 4])
    edges = KnownEdges(src, dst, 4, 6, exclude_self=False)
    count = 20_000
    query, neighbour = sample_pairs(edges, count, generator=rng(4))
    seen = torch.bincount(query * 6 + neighbour, minlength=24)
    assert seen.nonzero().flatten().tolist() == [5, 13, 16]
    expected = [count / 2, count / 4, count / 4]
    assert chisquare(seen[[5, 13, 16]], expected).pvalue > 1e-4


def test_all_of_a_long_row_is_reached() -> None:
    edges = KnownEdges(
        torch.zeros(2000, dtype=torch.int64),
        torch.arange(2000),
        1,
        2000,
        exclude_self=False,
    )
    _, neighbour = sample_pairs(edges, 100_000, generator=rng(5))
    assert chisquare(torch.bincount(neighbour, minlength=2000)).pvalue > 1e-4


def test_one_seed_one_result() -> None:
    edges = KnownEdges(SRC, DST, 5)
    first, again = (sample_pairs(edges, 50, generator=rng(6)) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_no_edges() -> None:
    none = torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="edges: expected at least one edge .* got none"):
        sample_pairs(KnownEdges(none, none, 3), 4)
