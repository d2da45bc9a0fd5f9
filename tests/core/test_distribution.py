"""The distribution of negatives against what is drawn from it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from shared import assert_drawn_from
from small import hard_ratios, rng
from torch import Tensor

from dgl_dmns.core import (
    Blend,
    CandidateTable,
    Density,
    DiffusionGenerator,
    Gate,
    KnownEdges,
    Nearest,
    NodeDistribution,
    PoolSettings,
    SelfAdversarial,
    Snapshot,
    fill_table,
)

NODES = 20
SHARE = 0.3
RULES = [Density(), Gate(), Blend(0.4), SelfAdversarial(0.8)]
QUERY = 3


H = torch.randn(NODES, 4, generator=rng(1))
SRC, DST = torch.randint(0, NODES, (2, 60), generator=rng(2))
KNOWN = KnownEdges(SRC, DST, NODES)
EVERY = torch.arange(NODES)
ALLOWED = ~KNOWN.contains(EVERY.unsqueeze(1), EVERY.unsqueeze(0))  # [v, u]; not the node itself
PAIRS = EVERY.repeat_interleave(NODES), EVERY.repeat(NODES)
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)


@pytest.fixture(scope="module")
def model() -> DiffusionGenerator:
    made = DiffusionGenerator(4, space="raw", batch_pairs=256)
    made.fit(H, H, KNOWN, 60, generator=rng(3))
    return made


def distribution(rule: Any, model: DiffusionGenerator, pool: int, **more: Any) -> NodeDistribution:
    snapshot = Snapshot(H, H, KNOWN, None, model if rule.uses_generator else None)
    # Pools of all nodes are all alike, and can be shared.
    settings = PoolSettings(
        pool=pool, uniform_share=SHARE, draws_per_pool=1 if pool < NODES else 1000
    )
    return NodeDistribution(rule, settings, snapshot, **more)


def filled(made: NodeDistribution, groups: int) -> tuple[Tensor, NodeDistribution]:
    """First candidates of a table [N, G], and the distribution with the norms of its filling."""
    table = CandidateTable(torch.full((NODES,), groups), 2)
    _, norms = fill_table(table, made.rule, made.settings, made.snapshot, generator=rng(4))
    ids = table.hidden().ids[:, 0].view(NODES, groups).long()
    return ids, dataclasses.replace(made, norms=norms)


def shares(made: NodeDistribution) -> Tensor:
    """Of what the rule draws, the share of each node for each query, [N, N]."""
    return hard_ratios(made).exp() / ALLOWED.sum(1, keepdim=True)


@every_rule
@pytest.mark.parametrize("pool", [NODES, 3 * NODES])
def test_with_a_pool_of_all_nodes_it_is_exact(
    rule: Any, pool: int, model: DiffusionGenerator
) -> None:
    ids, made = filled(distribution(rule, model, pool), 1500)
    share = shares(made)
    torch.testing.assert_close(share.sum(1), torch.ones(NODES), rtol=0, atol=1e-4)
    assert bool(((share > 0) == ALLOWED).all())
    for drawn, weight in zip(ids, share):
        assert_drawn_from(drawn, weight, least=1e-5)
    assert float(share[QUERY].max()) > 2 / int(ALLOWED[QUERY].sum())  # far from uniform
    # What is measured on demand is the same, and a sample mixes in the uniform share.
    torch.testing.assert_close(shares(distribution(rule, model, pool)), share)
    drawn = made.sample(torch.full((4000,), QUERY), 1, generator=rng(5)).ids
    mixed = made.log_prob(*PAIRS).exp().view(NODES, NODES)[QUERY] * ALLOWED[QUERY]
    assert_drawn_from(drawn, mixed)


@every_rule
def test_a_small_pool_is_another_distribution_and_followed_about(
    rule: Any, model: DiffusionGenerator
) -> None:
    ids, made = filled(distribution(rule, model, 6), 800)
    share = shares(made)
    seen = torch.stack([torch.bincount(row, minlength=NODES) for row in ids]) / ids.shape[1]
    exact = shares(distribution(rule, model, NODES))
    assert float((exact - seen).abs().max()) > 0.05
    apart = 0.5 * float((share - seen).abs().sum(1).mean())  # 0.04 of it is chance
    assert apart < (0.2 if isinstance(rule, SelfAdversarial) else 0.13)
    # No node is drawn more often than it stands in a pool, and a ratio does not say so either.
    assert float((share * ALLOWED.sum(1, keepdim=True)).max()) <= 6


@every_rule
def test_the_uniform_share_bounds_ratios(rule: Any, model: DiffusionGenerator) -> None:
    for pool in (6, NODES):
        made = distribution(rule, model, pool)
        hard = made.hard_log_ratio(*PAIRS).view(NODES, NODES)
        found = made.log_ratio(*PAIRS).view(NODES, NODES)
        expected = (SHARE + (1 - SHARE) * hard.exp()).log()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert float(found.min()) >= math.log(SHARE) - 1e-6
        torch.testing.assert_close(
            made.log_prob(*PAIRS).view(NODES, NODES), found - math.log(NODES)
        )


@pytest.mark.parametrize("rule", [Density(), SelfAdversarial(0.8)])
def test_the_ratio_of_a_known_edge_is_what_it_would_have_as_a_candidate(
    rule: Any, model: DiffusionGenerator
) -> None:
    made = distribution(rule, model, NODES)
    query, node = SRC[SRC != DST], DST[SRC != DST]
    expected = []
    for v, u in zip(query, node):
        others = (v != SRC) | (u != DST)
        snapshot = dataclasses.replace(
            made.snapshot, known=KnownEdges(SRC[others], DST[others], NODES)
        )
        without = dataclasses.replace(made, snapshot=snapshot, norms=None)
        expected.append(without.log_ratio(v.view(1), u.view(1)))
    torch.testing.assert_close(made.log_ratio(query, node), torch.cat(expected))
    drawn = made.sample(SRC, 4, generator=rng(1)).ids
    assert not bool(KNOWN.contains(SRC.unsqueeze(1), drawn).any())


@every_rule
def test_norms_of_rows_that_have_none_are_measured_on_demand(
    rule: Any, model: DiffusionGenerator
) -> None:
    _, made = filled(distribution(rule, model, NODES), 1)
    assert made.norms is not None
    whole, expected = made.norms.clone(), made.log_ratio(*PAIRS)
    made.norms[[2, 5]] = math.nan
    torch.testing.assert_close(made.log_ratio(*PAIRS), expected)
    torch.testing.assert_close(made.norms, whole)
    # With a small pool they depend on the seed.
    small = [distribution(rule, model, 6, seed=seed).log_ratio(*PAIRS) for seed in (1, 1, 2)]
    assert torch.equal(small[0], small[1])
    assert not torch.equal(small[0], small[2])


@pytest.mark.parametrize("pool", [6, NODES])
def test_the_generator_counts_as_uniform_where_its_gaussians_have_come_apart(pool: int) -> None:
    model = DiffusionGenerator(4, space="raw")
    with torch.no_grad():
        model.predictor.film.bias.add_(1e4)
    for rule in (Density(), Gate(), Blend(0.4)):
        made = distribution(rule, model, pool)
        found = made.log_ratio(*PAIRS)
        expected = torch.ones(len(found))
        if isinstance(rule, Blend):
            soft = distribution(SelfAdversarial(), model, pool).log_ratio(*PAIRS)
            expected = 0.6 + 0.4 * soft.exp()
        torch.testing.assert_close(found, expected.log(), rtol=0, atol=1e-4)


def test_no_pairs_give_no_ratios(model: DiffusionGenerator) -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    assert distribution(Gate(), model, 6).log_ratio(empty, empty).shape == (0,)


def test_errors(model: DiffusionGenerator) -> None:
    with pytest.raises(ValueError, match=r"rule: Nearest has no tractable distribution; use"):
        distribution(Nearest(), model, 6)
    made = distribution(Density(), model, 6)
    with pytest.raises(ValueError, match=r"src, dst: expected two tensors of one shape"):
        made.log_ratio(EVERY, EVERY[:1])
    with pytest.raises(ValueError, match=r"dst: expected ids in 0 \.\. 19, got 0 \.\. 20"):
        made.log_ratio(torch.tensor([0, 0]), torch.tensor([0, NODES]))
