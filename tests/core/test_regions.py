"""Regions of likely nodes: what they propose, how often, and what pools with them draw."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dgl_dmns.core import CandidateTable, KnownEdges, NodeDistribution, PoolSettings
from dgl_dmns.core.fill import fill_table
from dgl_dmns.core.regions import Regions
from dgl_dmns.core.rules import Hardest, SelfAdversarial
from dgl_dmns.core.snapshot import Snapshot

NODES, QUERIES = 600, 50


def embeddings() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 6, generator=generator)
    group = torch.randint(8, (NODES,), generator=generator)
    h = centres[group] + 0.4 * torch.randn(NODES, 6, generator=generator)
    return 1.5 * h[:QUERIES], h


def snapshot() -> Snapshot:
    h_query, h = embeddings()
    generator = torch.Generator().manual_seed(1)
    src = torch.randint(QUERIES, (300,), generator=generator)
    dst = torch.randint(NODES, (300,), generator=generator)
    known = KnownEdges(src, dst, QUERIES, NODES, exclude_self=False)
    return Snapshot(h_query, h, known).with_regions(torch.Generator().manual_seed(2))


def test_all_nodes_are_in_regions_of_alike_ones() -> None:
    found = snapshot().regions
    assert found is not None
    assert sorted(found.members.tolist()) == list(range(NODES))
    sizes = found.start.diff()
    assert len(sizes) == 8
    assert int(sizes.min()) > 20
    _, h = embeddings()
    apart = torch.cdist(h, h)
    same = found.of_node.unsqueeze(0) == found.of_node.unsqueeze(1)
    assert float(apart[same].mean()) < 0.7 * float(apart[~same].mean())
    torch.testing.assert_close(found.log_share.exp().sum(1), torch.ones(8))


def test_a_region_is_drawn_by_its_rank_and_its_nodes_evenly() -> None:
    of = snapshot()
    assert of.regions is not None
    query = torch.full((400, 1), 7)
    drawn = of.regions.draw(query, 50, torch.Generator().manual_seed(0)).flatten()
    seen = drawn.bincount(minlength=NODES).double()
    rate = of.regions.log_rate(torch.tensor(7), torch.arange(NODES), 1 - 1e-9).exp().double()
    expected = len(drawn) * rate / NODES
    assert float(((seen - expected).square() / expected).sum()) < NODES + 5 * math.sqrt(2 * NODES)


def test_the_rate_of_a_pool_is_the_mean_over_those_it_was_drawn_for() -> None:
    of = snapshot()
    assert of.regions is not None
    queries = torch.randperm(QUERIES, generator=torch.Generator().manual_seed(0))[:48].view(8, 6)
    pools = torch.arange(NODES).repeat(8, 1)
    found = of.regions.log_rate_of_pools(queries, pools, 300).exp()
    mean = torch.stack(
        [of.regions.log_rate(queries[:, at : at + 1], pools, 0.5).exp() for at in range(6)]
    ).mean(0)
    torch.testing.assert_close(found, mean)


@pytest.mark.parametrize("reach", [0.0, 0.5])
def test_draws_have_the_distribution_that_is_stated(reach: float) -> None:
    of, rounds = snapshot(), 150
    rule, settings = (
        SelfAdversarial(temperature=5.0),
        PoolSettings(pool=64, queries_per_pool=10, reach=reach),
    )
    table = CandidateTable(torch.full((QUERIES,), rounds), 1)
    _, norms = fill_table(table, rule, settings, of, generator=torch.Generator().manual_seed(3))
    table.publish()
    seen = torch.zeros(QUERIES, NODES).double()
    for at in range(rounds):
        ids = table.ids_at(table.start[:-1] + at).squeeze(1)
        seen[torch.arange(QUERIES), ids] += 1
    query, node = torch.cartesian_prod(torch.arange(QUERIES), torch.arange(NODES)).unbind(1)
    stated = NodeDistribution(rule, settings, of, norms).log_ratio(query, node)
    known = of.known.contains(query, node)
    expected = stated.double().exp().masked_fill(known, 0.0).view(QUERIES, NODES) * rounds / NODES
    assert float(expected.sum() / (QUERIES * rounds)) == pytest.approx(1.0, abs=0.03)
    assert not bool(seen.view(-1)[known].any())
    # Few draws for many nodes: those of about the same ratio are taken together.
    order = expected.flatten().argsort()
    left, right = (part.flatten()[order].view(60, -1).sum(1) for part in (seen, expected))
    assert left.tolist() == pytest.approx(right.tolist(), rel=0.15, abs=40)


def test_the_best_of_a_pool_is_nearer_the_best_of_all() -> None:
    of = snapshot()
    score = of.h_query @ of.h_candidate.T  # type: ignore[union-attr]
    rank = score.argsort(1, descending=True).argsort(1)
    found = {}
    for reach in (0.0, 0.5):
        table = CandidateTable(torch.full((QUERIES,), 4), 2)
        fill_table(
            table,
            Hardest(),
            PoolSettings(pool=32, queries_per_pool=10, reach=reach),
            of,
            generator=torch.Generator().manual_seed(0),
        )
        table.publish()
        ids = torch.stack([table.ids_at(table.start[:-1] + at) for at in range(4)], 1).flatten(1)
        assert all(len(set(two)) == 2 for two in ids.view(-1, 2).tolist())
        found[reach] = float(rank.gather(1, ids).double().mean())
    assert found[0.5] < 0.7 * found[0.0]


def test_few_nodes_have_no_regions() -> None:
    h = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    assert Regions.of(h, h, lambda v, u: v @ u.T) is None


def test_alike_embeddings_have_regions_of_which_most_are_empty() -> None:
    h = torch.ones(512, 4)
    made = Regions.of(h, h, lambda v, u: v @ u.T, torch.Generator().manual_seed(0))
    assert made is not None
    drawn = made.draw(torch.arange(64).view(4, 16), 16, torch.Generator().manual_seed(0))
    assert drawn.shape == (4, 16)
    rate = made.log_rate(torch.zeros(512).long(), torch.arange(512), 0.5)
    torch.testing.assert_close(rate, torch.zeros(512), atol=1e-5, rtol=0)
