"""Ranks against sorting, metrics and intervals against hand-computed and table values."""

import itertools
import math

import pytest
import torch

from dgl_dmns.core import KnownEdges
from dgl_dmns.data import simple_undirected
from dgl_dmns.evaluate import (
    candidate_ranking,
    full_ranking,
    mean_and_stderr,
    paired_difference,
    ranking_metrics,
    ranks,
    recommendation_metrics,
)

NAN = float("nan")


def average_rank(positive, others):
    """The mean of the places that the positive can take in a sorted list."""
    places = [
        place
        for place, value in enumerate(sorted([*others, positive], reverse=True), start=1)
        if value == positive
    ]
    return sum(places) / len(places)


def csr(src, dst, num_nodes):
    src, dst = simple_undirected(src, dst)
    degree = torch.bincount(src, minlength=num_nodes)
    return torch.cat([torch.zeros(1, dtype=torch.int64), degree.cumsum(0)]), dst


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_ranks_agree_with_sorting(dtype):
    generator = torch.Generator().manual_seed(0)
    positive = torch.randint(6, (40,), generator=generator).to(dtype)
    candidates = torch.randint(6, (40, 25), generator=generator).to(dtype)
    mask = torch.rand(40, 25, generator=generator) < 0.6
    result = ranks(positive, candidates, mask)
    for b in range(40):
        assert result[b] == average_rank(float(positive[b]), candidates[b][mask[b]].tolist())
    assert result.dtype == torch.float64
    assert ranks(positive, candidates[:, :0]).tolist() == [1.0] * 40


def test_metrics_by_hand():
    metrics = ranking_metrics(torch.tensor([1.0, 2.0, 10.5, 50.0]))
    assert metrics["MRR"] == pytest.approx((1 + 1 / 2 + 1 / 10.5 + 1 / 50) / 4)
    assert metrics["NDCG"] == pytest.approx(
        (1 + 1 / math.log2(3) + 1 / math.log2(11.5) + 1 / math.log2(51)) / 4
    )
    assert (metrics["Hits@1"], metrics["Hits@10"], metrics["Hits@50"]) == (0.25, 0.5, 1.0)
    assert set(ranking_metrics(torch.tensor([3]), hits=(3,))) == {"MRR", "NDCG", "Hits@3"}


@pytest.mark.parametrize("batch", [1, 7, 1024])
def test_full_ranking_agrees_with_a_loop_over_nodes(batch):
    generator = torch.Generator().manual_seed(1)
    n = 30
    h = torch.randint(-2, 3, (n, 3), generator=generator).float()  # small integers: many ties
    src, dst = torch.randint(n, (2, 60), generator=generator)
    known = csr(src, dst, n)
    adjacent = torch.zeros(n, n, dtype=torch.bool)
    first, second = simple_undirected(src, dst)
    adjacent[first, second] = True
    pairs = torch.stack([first, second])[:, ::2]
    unknown = (~adjacent).fill_diagonal_(False).nonzero()[:5].t()  # known need not hold the pair
    pairs = torch.cat([pairs, unknown], dim=1)
    expected = []
    for q, p in pairs.t().tolist():
        others = [
            float(h[q] @ h[v]) for v in range(n) if v not in (q, p) and not bool(adjacent[q, v])
        ]
        expected.append(average_rank(float(h[q] @ h[p]), others))
    assert full_ranking(h, pairs, known, batch=batch).tolist() == expected
    narrow = full_ranking(h, pairs.int(), (known[0], known[1].int()), batch=batch)
    assert narrow.tolist() == expected
    assert full_ranking(h, pairs[:, :0], known).shape == (0,)


def test_a_scorer_gets_broadcastable_embeddings_and_no_gradients():
    h = torch.randn(20, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    known = csr(torch.tensor([0, 2]), torch.tensor([1, 5]), 20)
    pairs = torch.tensor([[0, 2, 7], [1, 5, 9]])

    def distance(h_q, h_c):
        assert not torch.is_grad_enabled()
        assert (h_q.shape, h_c.shape) == ((3, 1, 4), (1, 20, 4))
        return -(h_q - h_c).square().sum(-1)

    rank = full_ranking(h, pairs, known, distance)
    squares = -torch.cdist(h, h).square()
    squares.fill_diagonal_(-math.inf)
    assert rank[2] == 1 + (squares[7] > squares[7, 9]).sum()
    assert not rank.requires_grad


def test_candidate_ranking_by_hand():
    h = torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.9, 1.0], [0.5, 9.0]])
    query, candidates = torch.tensor([0, 1]), torch.tensor([[1, 2, 3], [2, 3, 3]])
    assert candidate_ranking(h, query, candidates).tolist() == [2.5, 1.0]

    def second(h_q, h_c):
        return (h_q * 0 + h_c)[..., 1]

    assert candidate_ranking(h, query, candidates, second).tolist() == [3.0, 3.0]


def recommend_by_hand(values, pairs, known, n):
    """Recall@n and NDCG@n by listing every order of tied items."""
    recall, ndcg = [], []
    for user in sorted({u for u, _ in pairs}):
        relevant = {i for u, i in pairs if u == user}
        items = [i for i in range(len(values[user])) if (user, i) not in known]
        orders = [
            order
            for order in itertools.permutations(items)
            if all(values[user][a] >= values[user][b] for a, b in zip(order, order[1:]))
        ]
        best = sum(1 / math.log2(1 + place) for place in range(1, min(n, len(relevant)) + 1))
        hits = [[p for p, i in enumerate(order[:n], 1) if i in relevant] for order in orders]
        recall.append(sum(map(len, hits)) / len(orders) / len(relevant))
        ndcg.append(sum(1 / math.log2(1 + p) for h in hits for p in h) / len(orders) / best)
    return sum(recall) / len(recall), sum(ndcg) / len(ndcg)


def known_items(pairs, users, items):
    src, dst = torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 2).T
    return KnownEdges(src, dst, users, items, exclude_self=False)


@pytest.mark.parametrize("n", [1, 2, 4, 20])
@pytest.mark.parametrize("batch", [1, 3, 1024])
def test_recommendation_agrees_with_all_orders_of_ties(n, batch):
    generator = torch.Generator().manual_seed(6)
    h_user = torch.randint(-1, 2, (8, 2), generator=generator).float()  # many ties
    h_item = torch.randint(-1, 2, (6, 2), generator=generator).float()
    draw = torch.rand(8, 6, generator=generator)
    pairs = (draw < 0.3).nonzero()
    pairs = pairs[torch.randperm(len(pairs), generator=generator)]
    known = {tuple(pair) for pair in (draw > 0.8).nonzero().tolist()}
    listed = [tuple(pair) for pair in pairs.tolist()]
    expected = recommend_by_hand((h_user @ h_item.T).tolist(), listed, known, n)
    for ids, score in ((pairs.T, None), (pairs.T.int(), lambda q, c: (q * c).sum(-1))):
        metrics = recommendation_metrics(
            h_user, h_item, ids, known_items(known, 8, 6), n, score, batch
        )
        assert list(metrics) == [f"Recall@{n}", f"NDCG@{n}"]
        assert tuple(metrics.values()) == pytest.approx(expected)


def test_mean_and_stderr():
    mean, error = mean_and_stderr([1.0, 2.0, 3.0, 4.0])
    assert (mean, error) == pytest.approx((2.5, math.sqrt(5 / 3) / 2))
    mean, error = mean_and_stderr(torch.tensor([0.25]))
    assert mean == 0.25
    assert math.isnan(error)


def test_paired_difference_by_hand():
    a, b = [0.5, 0.7, 0.6, 0.9, 0.8], [0.4, 0.5, 0.5, 0.7, 0.4]
    mean, low, high = paired_difference(a, b)  # differences .1 .2 .1 .2 .4, deviation .1224745
    half = 2.776445 * 0.1224745 / math.sqrt(5)
    assert (mean, low, high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-6)
    assert paired_difference(a, a) == (0.0, 0.0, 0.0)
    wide = paired_difference(a, b, confidence=0.99)  # t is 4.604095
    assert wide[2] - mean == pytest.approx(half * 4.604095 / 2.776445, abs=1e-6)


H = torch.ones(4, 2)
PAIRS = torch.tensor([[0], [1]])
KNOWN = csr(torch.tensor([0]), torch.tensor([1]), 4)
COLUMN = torch.tensor([[1, 2]])
ITEMS = torch.ones(3, 2)
ZERO = torch.tensor([0])
full, among, recommend = full_ranking, candidate_ranking, recommendation_metrics


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (ranks, (H, H), r"positive: .*\[B\], got \[4, 2\]"),
        (ranks, (H[0], H), r"candidates: .*\[2, C\], got \[4, 2\]"),
        (ranks, (H[:, 0], H, H), "mask: expected bool, got torch.float32"),
        (ranks, (H[:, 0], H, H[:1] > 0), r"mask: .*\[4, 2\]"),
        (ranks, (H[:, 0] * NAN, H), "positive: .*4 NaN among 4"),
        (ranks, (H[:, 0], H * NAN), "candidates: .* 8 NaN among 8; the encoder"),
        (ranking_metrics, (H,), r"rank: .*\[B\] with B >= 1"),
        (ranking_metrics, (H[0, :0],), r"rank: .*got \[0\]"),
        (ranking_metrics, (torch.tensor([1, 0]),), "rank: .* at least 1, got 0.0"),
        (ranking_metrics, (H[0] * NAN,), "rank: .* at least 1, got nan"),
        (ranking_metrics, (H[0], (0,)), "hits: .* at least 1, got 0"),
        (full, (H[0], PAIRS, KNOWN), r"h: .*\[N, D\]"),
        (full, (H, PAIRS.t()[0], KNOWN), r"pairs: .*\[2, B\]"),
        (full, (H, PAIRS + 3, KNOWN), r"pairs: .* 0 \.\. 3, got 3 \.\. 4"),
        (full, (H, PAIRS.float(), KNOWN), "pairs: .*got torch.float32"),
        (full, (H, PAIRS * 0, KNOWN), "pairs: .*self loops"),
        (full, (H[:3], PAIRS, KNOWN), r"known: .*indptr \[4\].*GraphData.csr"),
        (full, (H, PAIRS, (KNOWN[0], KNOWN[1][:1])), "known: .*0 to E"),
        (full, (H, PAIRS, (KNOWN[0], KNOWN[1] + 9)), r"known: .*got 9 \.\. 10"),
        (full, (H * NAN, PAIRS, KNOWN), "NaN"),
        (full, (H, PAIRS, KNOWN, lambda q, c: q), r"score: .*\[1, 4\]"),
        (full, (H, PAIRS, KNOWN, None, 0), "batch: .* at least 1, got 0"),
        (among, (H[0], ZERO, COLUMN), r"h: .*\[N, D\]"),
        (among, (H, COLUMN, COLUMN), r"query: .*\[B\]"),
        (among, (H, ZERO, COLUMN[:, :1]), "candidates: .*C >= 1"),
        (among, (H, ZERO, COLUMN.float()), "candidates: .*float32"),
        (among, (H, ZERO + 4, COLUMN), r"query: .*got 4 \.\. 4"),
        (among, (H * NAN, ZERO, COLUMN), "NaN"),
        (among, (H, ZERO, COLUMN, lambda q, c: c), r"score: .*\[1, 2\]"),
        (recommend, (H[0], ITEMS, PAIRS, KNOWN), "h_query: expected shape"),
        (recommend, (H, H[0], PAIRS, KNOWN), "h_candidate: expected shape"),
        (recommend, (H, ITEMS, PAIRS[:, :0], KNOWN), "pairs: .*P >= 1"),
        (recommend, (H, ITEMS, PAIRS, KNOWN, 0), "n: .*at least 1, got 0"),
        (recommend, (H, ITEMS, PAIRS + 2, KNOWN), r"pairs: .*got 3 \.\. 3"),
        (recommend, (H, ITEMS, PAIRS.float(), KNOWN), "pairs: .*float32"),
        (recommend, (H, ITEMS, PAIRS, (KNOWN[0][:-1], KNOWN[1])), "known: .* with KnownEdges"),
        (recommend, (H, ITEMS, PAIRS.repeat(1, 2), KNOWN), "pairs: .*got duplicates"),
        (recommend, (H, ITEMS, PAIRS, KNOWN), "pairs: 1 of them are known"),
        (recommend, (H / 0, ITEMS, PAIRS, KNOWN), "score: expected finite numbers"),
        (recommend, (H, ITEMS, PAIRS, KNOWN, 20, lambda q, c: q), r"score: .*\[1, 3\]"),
        (mean_and_stderr, ([],), "values: expected at least 1 value"),
        (mean_and_stderr, ([1.0, NAN],), "values: .*1 NaN among 2"),
        (paired_difference, ([1.0], [1.0]), "a: expected at least 2 value"),
        (paired_difference, ([1.0, 2.0], [1.0] * 3), "a and b: .*got 2 and 3"),
        (paired_difference, ([1.0, 2.0], [1.0, 1.0], 95), "confidence: .*got 95"),
    ],
)
def test_messages(function, arguments, message):
    kind = TypeError if "float32" in message else ValueError
    with pytest.raises(kind, match=message):
        function(*arguments)
