"""Hard negatives by heuristics, against networkx and by hand."""

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from dgl_dmns.evaluate import heart_negatives, heart_ranking

NODES = 30


def csr(edges):
    """Edges in both directions, as sorted compressed rows."""
    both = sorted(set(edges) | {(b, a) for a, b in edges})
    src, dst = torch.tensor(both, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return torch.cat([torch.zeros(1).long(), torch.bincount(src, minlength=NODES).cumsum(0)]), dst


GRAPH = nx.gnm_random_graph(NODES, 60, seed=1)
HELD = list(GRAPH.edges)[::6]
TRAIN = GRAPH.edge_subgraph([e for e in GRAPH.edges if e not in HELD]).copy()
TRAIN.add_nodes_from(range(NODES))
PAIRS = torch.tensor(HELD).T.contiguous()
X = torch.rand(NODES, 5, generator=torch.Generator().manual_seed(2))


def best_ranks(node):
    """By networkx, scipy and numpy."""
    others = range(NODES)
    allocation = np.zeros(NODES)
    for u in others:
        shared = set(TRAIN[node]) & set(TRAIN[u])
        allocation[u] = sum(1 / TRAIN.degree[w] for w in shared)
    pages = nx.pagerank(
        TRAIN, alpha=0.85, personalization={node: 1}, dangling={node: 1}, tol=1e-10, max_iter=1000
    )
    x = X.numpy()
    cosine = x @ x[node] / np.linalg.norm(x, axis=1) / np.linalg.norm(x[node])
    scores = (allocation, np.array([pages[u] for u in others]), cosine)
    return np.min([rankdata(-np.round(score, 7), method="average") for score in scores], axis=0)


def test_negatives_are_those_of_the_reference():
    found = heart_negatives(PAIRS, csr(TRAIN.edges), csr(GRAPH.edges), X, 12)
    assert found.shape == (2, PAIRS.shape[1], 6)
    for end in (0, 1):
        for pair in range(PAIRS.shape[1]):
            node = int(PAIRS[end, pair])
            rank = best_ranks(node)
            rank[[node, *GRAPH[node]]] = np.inf
            chosen = found[end, pair].tolist()
            assert len(set(chosen)) == 6
            # The same ranks, in order; equal ranks may change places by rounding.
            np.testing.assert_allclose(rank[chosen], np.sort(rank)[:6], atol=0.51)


def test_ranks_count_the_negatives_of_both_ends():
    h = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    pairs = torch.tensor([[0], [2]])  # score 3
    negatives = torch.tensor([[[3, 1]], [[1, 3]]])  # (0, 3): 4, (0, 1): 2, (1, 2): 6, (3, 2): 12
    assert heart_ranking(h, pairs, negatives).tolist() == [4.0]
    # A scorer that knows first from second: v - u; positive -2; -3, -1 and -1, 1.
    assert heart_ranking(h, pairs, negatives, lambda v, u: (v - u).sum(-1)).tolist() == [4.0]
    assert heart_ranking(h, pairs, negatives, lambda v, u: (u - v).sum(-1)).tolist() == [2.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 3}, "n: expected an even number of at least 2, got 3"),
        ({"n": 60}, "n: expected at most [0-9]+, twice the number of admissible nodes"),
        ({"alpha": 1.0}, "alpha: expected a probability between 0 and 1, got 1.0"),
        ({"pairs": PAIRS[0]}, "pairs: expected shape"),
        ({"pairs": PAIRS + NODES}, "pairs: "),
    ],
)
def test_errors(changes, message):
    known = {"observed": csr(TRAIN.edges), "known": csr(GRAPH.edges)}
    with pytest.raises(ValueError, match=message):
        heart_negatives(**{"pairs": PAIRS, **known, "features": X, "n": 12, **changes})
    with pytest.raises(ValueError, match="negatives: expected shape"):
        heart_ranking(X, PAIRS, PAIRS)
