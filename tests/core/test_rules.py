"""Selection rules against their definitions, their limits and the calibration statement."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from small import alike, all_pairs, normal, random_edges, rng
from torch import Tensor

from dgl_dmns.core import (
    Blend,
    Density,
    Gate,
    Hardest,
    Nearest,
    NodeDistribution,
    Part,
    PoolSettings,
    Rule,
    SelfAdversarial,
    Snapshot,
    check_rule,
    check_tractable,
    fill_table,
)

RULES = [Density(), Gate(), Blend(), Nearest(), SelfAdversarial(), Hardest()]


def doubles(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * normal(*shape, seed=seed, dtype=torch.float64)


def logits(rule: Rule, score: Tensor | None, log_ratio: Tensor | None) -> Tensor:
    """The weights of a rule of one part, in logs."""
    (part,) = rule.parts(score, log_ratio)
    assert part.share == 1
    assert part.levelled == rule.uses_generator
    return part.logits


def test_the_gate_is_its_definition() -> None:
    s, w = doubles(30, 40, seed=1, scale=3), doubles(30, 40, seed=2, scale=2)
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


def test_the_gate_is_roughly_the_smaller_of_the_two() -> None:
    s, w = doubles(500, seed=3, scale=4), doubles(500, seed=4, scale=4).abs()
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
    s = doubles(queries, members, seed=5, scale=3)
    q = doubles(queries, members, seed=6, scale=2).softmax(-1)
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


def test_the_parts_of_the_other_rules_are_their_definitions() -> None:
    s, w = doubles(6, 20, seed=8), doubles(6, 20, seed=9)
    gate, soft = Blend(0.3, 8.0).with_measures({"sharpness": 2.0}).parts(s, w)
    assert (gate.share, gate.levelled) == (0.7, True)
    assert torch.equal(gate.logits, logits(Gate(), s, w))  # which is not sharpened
    assert (soft.share, soft.levelled) == (0.3, False)
    assert torch.equal(soft.logits, 2 * s)
    assert torch.equal(logits(Density(), s, w), w)
    assert torch.equal(logits(Hardest(), s, None), s)
    for temperature in (0.25, 1.0, 4.0):
        torch.testing.assert_close(logits(SelfAdversarial(temperature), s, None), s / temperature)
    sharp = SelfAdversarial(edge_ratio=8.0).with_measures({"sharpness": 3.0})
    torch.testing.assert_close(logits(sharp, s, None), 3 * s)


def test_what_each_rule_says_of_itself() -> None:
    needs = {type(r).__name__: (r.uses_generator, r.uses_scores, r.tractable) for r in RULES}
    assert needs == {
        "Density": (True, False, True),
        "Gate": (True, True, True),
        "Blend": (True, True, True),
        "Nearest": (True, False, False),
        "SelfAdversarial": (False, True, True),
        "Hardest": (False, True, False),
    }
    assert [r for r in RULES if r.takes_largest] == [Hardest()]
    assert [r.nearest_among(9) for r in (*RULES, Nearest(4))] == [*[None] * 3, 9, None, None, 4]
    for rule in RULES:
        if rule.tractable:
            check_tractable(rule)
        else:
            with pytest.raises(ValueError, match=f"rule: {type(rule).__name__} has no tractable"):
                check_tractable(rule)


def test_what_was_measured_is_kept_beside_the_value() -> None:
    for rule in (Blend(0.3, 8.0), SelfAdversarial(edge_ratio=8.0)):
        sharp = rule.with_measures({"sharpness": 2.5})
        assert (rule.measures(), sharp.measures()) == ({"sharpness": 1.0}, {"sharpness": 2.5})
        assert sharp.with_measures(rule.measures()).measures() == {"sharpness": 1.0}
        assert sharp == rule
        assert pickle.loads(pickle.dumps(sharp)).measures() == sharp.measures()
        for wrong in (0.5, math.nan, math.inf, "2", None):
            with pytest.raises(ValueError, match="state: expected a sharpness of at least 1"):
                rule.with_measures({"sharpness": wrong})
    assert Gate().measures() == {}
    assert Gate().with_measures({}) == Gate()


@dataclass(frozen=True)
class Margin(Rule):
    """A rule of one's own: nodes above the mean score of the refresh, which it looks at first."""

    mean: float = 0.0

    def parts(self, score: Tensor | None, log_ratio: Tensor | None) -> list[Part]:
        assert score is not None
        return [Part(1.0, 50 * (score - self.mean).clamp(max=0), levelled=False)]

    def measured(self, snapshot: Snapshot, **_: Any) -> Margin:
        every = torch.arange(snapshot.known.num_src).unsqueeze(0)
        return self.with_measures({"mean": float(snapshot.scores(every, every).mean())})

    def measures(self) -> dict[str, float]:
        return {"mean": self.mean}

    def with_measures(self, measures: Mapping[str, float]) -> Margin:
        return Margin(measures["mean"])


def test_a_rule_of_ones_own_measures_fills_and_has_log_ratios() -> None:
    known, h, table = random_edges(30, 60), torch.randn(30, 4, generator=rng(1)), alike(30, 4, 2)
    snapshot = Snapshot(h, h, known, None, None)
    rule = Margin().measured(snapshot)
    check_rule(rule)
    settings = PoolSettings(pool=30)
    report, norms = fill_table(table, rule, settings, snapshot, generator=rng(2))
    assert report.measures == {"mean": rule.mean}
    assert report.sharpness == 1.0
    table.publish()
    src = torch.arange(30).repeat_interleave(8)
    dst = table.current().ids.flatten().long()
    assert float(((h[src] * h[dst]).sum(-1) > rule.mean - 0.2).float().mean()) > 0.95
    found = NodeDistribution(rule, settings, snapshot, norms).hard_log_ratio(src, dst)
    logits = 50 * (h @ h.T - rule.mean).clamp(max=0).masked_fill(all_pairs(known), -math.inf)
    count = (~all_pairs(known)).sum(1, keepdim=True)
    expected = logits.log_softmax(1) + count.log()
    torch.testing.assert_close(found, expected[src, dst], rtol=0, atol=1e-3)
    with pytest.raises(NotImplementedError):
        Rule().parts(None, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda s=s: Blend(s), "score_share: .* between 0 and 1") for s in (0.0, 1.0, math.nan)),
        *(
            (lambda t=t: SelfAdversarial(t), "temperature: expected a positive number")
            for t in (0.0, -1.0, math.nan)
        ),
        (lambda: SelfAdversarial(0.5, edge_ratio=4.0), "temperature: edge_ratio takes its place"),
        *(
            (lambda kind=kind, r=r: kind(edge_ratio=r), "edge_ratio: expected more than 1")
            for kind in (Blend, SelfAdversarial)
            for r in (1.0, -2.0, math.nan, math.inf)
        ),
        (lambda: Nearest(0), "pool: expected at least 1 candidate"),
    ],
)
def test_values_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
