"""The distribution of negatives against what is drawn from it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
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
    build_table,
)

NODES = 20
RULES = [Density(), Gate(), Blend(0.4), SelfAdversarial(0.8)]
QUERY = 3


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


H = torch.randn(NODES, 4, generator=rng(1))
SRC, DST = torch.randint(0, NODES, (2, 60), generator=rng(2))
KNOWN = KnownEdges(SRC, DST, NODES)
EVERY = torch.arange(NODES)
ADMISSIBLE = ~KNOWN.contains(torch.full((NODES,), QUERY), EVERY) & (EVERY != QUERY)


@pytest.fixture(scope="module")
def model() -> DiffusionGenerator:
    made = DiffusionGenerator(4, space="raw", batch_pairs=256)
    made.fit(H, H, KNOWN, 60, generator=rng(3))
    return made


def distribution(rule: Any, model: DiffusionGenerator, pool: int, **more: Any) -> NodeDistribution:
    snapshot = Snapshot.take(H, H, KNOWN, None, model if rule.uses_generator else None)
    return NodeDistribution(rule, PoolSettings(pool=pool, uniform_share=0.3, **more), snapshot)


def of_query(made: NodeDistribution, seed: int = 0) -> Tensor:
    """Log ratios of all nodes for one query."""
    return made.log_ratio(torch.full((NODES,), QUERY), EVERY, generator=rng(seed))


def frequencies(made: NodeDistribution, draws: int) -> Tensor:
    drawn = made.sample(torch.full((draws,), QUERY), 1, generator=rng(4))
    return torch.bincount(drawn.ids.flatten(), minlength=NODES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_with_a_pool_of_all_nodes_it_is_exact(rule: Any, model: DiffusionGenerator) -> None:
    made = distribution(rule, model, NODES)
    share = of_query(made).exp()[ADMISSIBLE] / int(ADMISSIBLE.sum())
    assert float(share.sum()) == pytest.approx(1, abs=1e-5)
    draws = 40_000
    seen = frequencies(made, draws)
    assert int(seen[~ADMISSIBLE].sum()) == 0
    wanted = share.double() / share.double().sum() * draws
    assert chisquare(seen[ADMISSIBLE].numpy(), wanted.numpy()).pvalue > 1e-4
    flat = torch.full_like(wanted, draws / len(wanted))
    assert chisquare(seen[ADMISSIBLE].numpy(), flat.numpy()).pvalue < 1e-9  # it could fail


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_the_mean_ratio_over_pools_is_that_of_the_draws(
    rule: Any, model: DiffusionGenerator
) -> None:
    made = distribution(rule, model, 6, queries_per_pool=1)
    draws = 40_000
    seen = frequencies(made, draws)[ADMISSIBLE] / draws
    src = torch.full((NODES * 2000,), QUERY)
    ratio = made.log_ratio(src, EVERY.repeat(2000), generator=rng(5)).view(2000, NODES)
    share = ratio.exp()[:, ADMISSIBLE] / int(ADMISSIBLE.sum())
    # Pools are drawn over all nodes, barred ones included: their number in a pool varies, and with
    # it the admissible nodes that a ratio is taken over; this leaves a bias of a few percent.
    torch.testing.assert_close(share.mean(0), seen.float(), rtol=0.12, atol=0.004)
    exact = of_query(distribution(rule, model, NODES)).exp()[ADMISSIBLE] / int(ADMISSIBLE.sum())
    assert float((exact - seen).abs().max()) > 0.005  # a small pool is another distribution


def test_log_prob_is_the_ratio_over_the_number_of_nodes(model: DiffusionGenerator) -> None:
    made = distribution(Density(), model, NODES)
    src = torch.full((NODES,), QUERY)
    torch.testing.assert_close(
        made.log_prob(src, EVERY, generator=rng(0)), of_query(made) - math.log(NODES)
    )


def test_table_and_distribution_agree(model: DiffusionGenerator) -> None:
    made = distribution(Blend(), model, NODES)
    table = CandidateTable(NODES, 4, 3)
    build_table(table, made.rule, made.settings, KNOWN, H, H, model=model, generator=rng(6))
    ids, ratio, _ = table.current()
    src = EVERY.view(-1, 1, 1).expand_as(ids).flatten()
    again = made.log_ratio(src, ids.flatten().long(), generator=rng(7))
    torch.testing.assert_close(ratio.flatten().float(), again, rtol=0, atol=4e-3)  # half precision


def test_known_edges_have_a_ratio_and_are_never_drawn(model: DiffusionGenerator) -> None:
    made = distribution(Density(), model, NODES)
    ratio = made.log_ratio(SRC, DST, generator=rng(0))
    assert bool(torch.isfinite(ratio).all())
    drawn = made.sample(SRC, 4, generator=rng(1)).ids
    assert not bool(KNOWN.contains(SRC.repeat_interleave(4), drawn.flatten()).any())


def test_half_precision_is_enough_for_a_ratio(model: DiffusionGenerator) -> None:
    ratio = of_query(distribution(Blend(), model, NODES))
    assert float((ratio.half().float() - ratio).abs().max()) < 4e-3


def test_the_same_seed_gives_the_same_ratios(model: DiffusionGenerator) -> None:
    made = distribution(Gate(), model, 6)
    torch.testing.assert_close(of_query(made, 1), of_query(made, 1), rtol=0, atol=0)
    assert bool((of_query(made, 1) != of_query(made, 2)).any())


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
