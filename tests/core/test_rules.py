"""Selection rules against their definitions, their limits and the calibration statement."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dgl_dmns.core import Blend, Density, Gate, Hardest, Nearest, PoolRule, SelfAdversarial

RULES = [Density(), Gate(), Blend(), Nearest(), SelfAdversarial(), Hardest()]


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    draws = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scale * draws


def logits(rule: PoolRule, score: Tensor | None, log_ratio: Tensor | None) -> Tensor:
    """The weights of a rule of one part, in logs."""
    (part,) = rule.parts(score, log_ratio)
    assert part.share == 1
    assert part.levelled == rule.uses_generator
    return part.logits


def test_the_gate_is_its_definition() -> None:
    s, w = normal(30, 40, seed=1, scale=3), normal(30, 40, seed=2, scale=2)
    weight = (s.exp() + 1) / ((s - w).exp() + 1)
    assert torch.allclose(logits(Gate(), s, w), weight.log(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("w", [-30.0, -1.0, 0.0, 2.0, 10.0])
def test_the_gate_is_uniform_for_an_unsure_scorer_and_the_generator_for_a_sure_one(
    w: float,
) -> None:
    ratio = torch.tensor(w, dtype=torch.float64)
    low, high = torch.tensor([-200.0, 200.0], dtype=torch.float64)
    assert float(logits(Gate(), low, ratio)) == pytest.approx(0.0, abs=1e-12)
    assert float(logits(Gate(), high, ratio)) == pytest.approx(w, abs=1e-9)


def test_the_gate_lies_between_uniform_and_the_generator_and_rises_with_both() -> None:
    s = torch.linspace(-20, 20, 81, dtype=torch.float64)
    w = torch.linspace(-8, 8, 33, dtype=torch.float64)
    gate = logits(Gate(), s.unsqueeze(1), w.unsqueeze(0))
    assert bool((gate >= w.clamp(max=0) - 1e-12).all())
    assert bool((gate <= w.clamp(min=0) + 1e-12).all())
    assert bool((gate.diff(dim=1) > 0).all())  # likelier for the generator: more weight
    assert bool((gate[:, w > 0].diff(dim=0) > 0).all())  # harder, among the likely: more weight
    assert torch.equal(gate[:, w == 0], torch.zeros(81, 1, dtype=torch.float64))


def test_a_blend_has_the_parts_of_the_gate_and_of_the_softmax() -> None:
    s, w = normal(6, 20, seed=8), normal(6, 20, seed=9)
    gate, soft = Blend(0.3).parts(s, w, 2.0)
    assert (gate.share, gate.levelled) == (0.7, True)
    assert torch.equal(gate.logits, logits(Gate(), s, w))
    assert (soft.share, soft.levelled) == (0.3, False)
    assert torch.equal(soft.logits, 2 * s)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, math.nan])
def test_a_blend_needs_both_of_its_parts(share: float) -> None:
    with pytest.raises(ValueError, match="score_share"):
        Blend(share)


def test_the_gate_is_roughly_the_smaller_of_the_two() -> None:
    s, w = normal(500, seed=3, scale=4), normal(500, seed=4, scale=4).abs()
    smaller = torch.minimum((s.exp() + 1).log(), w)
    gate = logits(Gate(), s, w)
    assert bool((gate <= smaller + 1e-12).all())
    assert bool((gate >= smaller - math.log(2)).all())


def test_the_gate_pushes_like_the_calibrated_loss() -> None:
    """``p_n sigmoid(s)`` (plain loss, gated) is ``q sigmoid(s - w)`` (calibrated, q) per query.

    Both are the expected gradients on the negatives' scores. They agree up to one factor for each
    query, so a query's negatives are pushed in the same proportions.
    """
    queries, members = 12, 50
    s = normal(queries, members, seed=5, scale=3)
    q = normal(queries, members, seed=6, scale=2).softmax(-1)
    w = q.log() + math.log(members)
    gated = logits(Gate(), s, w).softmax(-1) * s.sigmoid()
    calibrated = q * (s - w).sigmoid()
    factor = gated / calibrated
    assert torch.allclose(factor, factor[:, :1].expand_as(factor), rtol=1e-9)
    # The statement is one about the gate: the plain generator pushes in other proportions.
    plain = q * s.sigmoid() / calibrated
    assert float((plain / plain[:, :1]).log().abs().max()) > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gate_does_not_overflow(dtype: torch.dtype) -> None:
    s = torch.tensor([1e4, -1e4, 0.0, 1e4], dtype=dtype)
    w = torch.tensor([-1e4, 1e4, -1e4, 1e4], dtype=dtype)
    expected = torch.tensor([-1e4, 0.0, -1e4, 1e4], dtype=dtype)
    assert torch.allclose(logits(Gate(), s, w), expected, atol=1.0)


def test_a_pool_member_that_the_generator_bars_has_no_weight() -> None:
    s, w = torch.tensor([2.0, 2.0]), torch.tensor([0.5, -torch.inf])
    assert logits(Gate(), s, w).softmax(-1).tolist() == [1.0, 0.0]


def test_the_density_is_the_generators_mixture() -> None:
    w = normal(5, 6, seed=7)
    assert torch.equal(logits(Density(), None, w), w)
    assert torch.equal(logits(Density(), normal(5, 6, seed=8), w), w)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_self_adversarial_is_a_softmax_of_the_scores(temperature: float) -> None:
    s = normal(5, 6, seed=9)
    weight = (s / temperature).exp()
    chances = logits(SelfAdversarial(temperature), s, None).softmax(-1)
    assert torch.allclose(chances, weight / weight.sum(-1, keepdim=True))


def test_hardest_ranks_by_the_scores() -> None:
    s = normal(5, 6, seed=10)
    assert torch.equal(logits(Hardest(), s, None), s)


def test_what_each_rule_needs() -> None:
    needs = {type(r).__name__: (r.uses_generator, r.uses_scores, r.tractable) for r in RULES}
    assert needs == {
        "Density": (True, False, True),
        "Gate": (True, True, True),
        "Blend": (True, True, True),
        "Nearest": (True, False, False),
        "SelfAdversarial": (False, True, True),
        "Hardest": (False, True, False),
    }


def test_rules_are_values() -> None:
    assert Gate() == Gate()
    assert SelfAdversarial(2.0) != SelfAdversarial()
    assert len({Nearest(), Nearest(5), Nearest(5)}) == 2
    assert repr(Nearest(5)) == "Nearest(pool=5)"
    assert repr(SelfAdversarial(2.0)) == "SelfAdversarial(temperature=2.0, edge_ratio=None)"
    with pytest.raises(AttributeError):
        SelfAdversarial().temperature = 3.0  # type: ignore[misc]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature: expected a positive number, got"):
        SelfAdversarial(temperature)


def test_pool_of_nearest() -> None:
    with pytest.raises(ValueError, match="pool: expected at least 1 candidate"):
        Nearest(0)
