"""Schedules and levels against values worked out by hand and against the definitions."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest
import torch

from dgl_dmns.core import Levels, NoiseSchedule, noise_to


def test_two_steps_by_hand() -> None:
    # alpha = .64, .5625;  abar = .64, .64 * .5625 = .36
    # sigma_1^2 = .36 * (1 - 1) / .36 = 0;  sigma_2^2 = .4375 * (1 - .64) / (1 - .36) = .24609375
    schedule = NoiseSchedule(torch.tensor([0.36, 0.4375], dtype=torch.float64))
    assert schedule.steps == 2
    assert schedule.beta.tolist() == pytest.approx([0.0, 0.36, 0.4375])
    assert schedule.alpha.tolist() == pytest.approx([1.0, 0.64, 0.5625])
    assert schedule.alpha_bar.tolist() == pytest.approx([1.0, 0.64, 0.36])
    assert schedule.sigma.tolist() == pytest.approx([0.0, 0.0, math.sqrt(0.24609375)])


def test_default_is_the_paper_s_linear_schedule() -> None:
    schedule = NoiseSchedule.linear()
    beta = [1e-4 + (0.02 - 1e-4) * i / 49 for i in range(50)]
    assert schedule.steps == 50
    assert schedule.beta[0] == 0.0
    assert schedule.beta[1:].tolist() == pytest.approx(beta, rel=1e-6)
    product = [math.prod(1 - b for b in beta[:t]) for t in range(51)]
    assert schedule.alpha_bar.tolist() == pytest.approx(product, rel=1e-6)
    variance = [
        beta[t - 1] * (1 - product[t - 1]) / (1 - product[t]) if t else 0.0 for t in range(51)
    ]
    assert schedule.sigma.square().tolist() == pytest.approx(variance, rel=1e-5)


def test_cosine_follows_its_curve_up_to_the_clip() -> None:
    steps, offset = 20, 0.008
    schedule = NoiseSchedule.cosine(steps, offset)

    def curve(t: int) -> float:
        return math.cos((t / steps + offset) / (1 + offset) * math.pi / 2) ** 2

    abar = [curve(t) / curve(0) for t in range(steps)]
    assert schedule.alpha_bar[:-1].tolist() == pytest.approx(abar, rel=1e-5)
    # The curve ends at 0, which would make the last beta 1.
    assert float(schedule.beta[-1]) == pytest.approx(0.999)


@pytest.mark.parametrize(
    "schedule", [NoiseSchedule.linear(), NoiseSchedule.linear(1), NoiseSchedule.cosine(100)]
)
def test_invariants(schedule: NoiseSchedule) -> None:
    assert float(schedule.sigma[1]) == 0.0  # the last reverse step adds no noise
    assert bool((schedule.sigma[2:] > 0).all())
    assert bool((schedule.sigma.square() <= schedule.beta + 1e-7).all())
    assert bool((schedule.alpha_bar[1:] < schedule.alpha_bar[:-1]).all())
    for value in schedule.state_dict().values():
        assert value.shape == (schedule.steps + 1,)
        assert value.dtype == torch.float32


def test_forward_noising_by_hand() -> None:
    schedule = NoiseSchedule(torch.tensor([0.36, 0.4375]))
    x0 = torch.tensor([[1.0, -2.0], [1.0, -2.0], [1.0, -2.0]])
    eps = torch.tensor([[0.5, 1.0], [0.5, 1.0], [0.5, 1.0]])
    noisy = noise_to(schedule, x0, torch.tensor([0, 1, 2]), eps)
    # t = 0: the data; t = 1: .8 x + .6 eps; t = 2: .6 x + .8 eps
    expected = torch.tensor([[1.0, -2.0], [1.1, -1.0], [1.0, -0.4]])
    torch.testing.assert_close(noisy, expected)


def test_state_dict_round_trip_and_repr() -> None:
    source, target = NoiseSchedule.cosine(12), NoiseSchedule.linear(12)
    target.load_state_dict(source.state_dict())
    for name in ("beta", "alpha", "alpha_bar", "sigma"):
        assert torch.equal(getattr(source, name), getattr(target, name))
    assert repr(NoiseSchedule.linear()) == "NoiseSchedule(steps=50, abar_T=0.6030)"


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        *((torch.zeros(shape), r"betas: expected shape \[T\]") for shape in ((0,), (2, 2), ())),
        *(
            (torch.tensor([0.1, bad]), "betas: .* strictly between 0 and 1")
            for bad in (0.0, 1.0, -0.1, 1.5, math.nan)
        ),
        (torch.tensor([1e-9, 1e-8]).double(), r"betas: .*1e-09.* lost in single precision"),
    ],
)
def test_betas_that_are_refused(betas: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(betas)
    assert float(NoiseSchedule.linear(4, start=1e-7).alpha_bar[1]) < 1.0
    for make in (NoiseSchedule.linear, NoiseSchedule.cosine):
        with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
            make(0)


# Levels.


def test_values_and_steps_of_levels() -> None:
    assert Levels((0.001, 0.999, 1.0)).steps(10) == (1, 9, 10)
    assert Levels((0.1, 0.2, 0.3, 0.7)).steps(10) == (1, 2, 3, 7)  # 0.7 * 10 is 7, 0.3 * 10 is 3
    assert Levels((0.29, 0.57, 0.58)).steps(100) == (29, 57, 58)  # all below as floating point
    assert Levels((0.1, 0.5), shares=(3, 1)).mixture_shares == (0.75, 0.25)
    assert Levels((0.1, 0.5), shares=(0, 2)).mixture_shares == (0.0, 1.0)
    weights = Levels(tuple(i / 20 for i in range(1, 15))).loss_weights
    assert weights[:3] == pytest.approx((1.0, 0.9, 0.8))
    assert min(weights) == pytest.approx(0.1)
    levels = Levels([0.1, 1], weights=[2, 1], shares=[1, 1])  # type: ignore[arg-type]
    assert levels == Levels((0.1, 1.0), weights=(2.0, 1.0), shares=(0.5, 0.5))
    assert hash(levels) == hash(Levels((0.1, 1.0), weights=(2.0, 1.0)))
    assert all(type(w) is float for w in levels.loss_weights)


def test_defaults_are_the_paper_s() -> None:
    levels = Levels()
    assert len(levels) == 4
    assert levels.fractions == (1 / 10, 1 / 8, 1 / 4, 1 / 2)
    assert levels.steps(50) == (5, 6, 12, 25)
    assert levels.loss_weights == pytest.approx((1.0, 0.9, 0.8, 0.7))
    assert levels.mixture_shares == (0.25, 0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fractions": ()}, r"expected one or more fractions in \(0, 1\], got \(\)"),
        ({"fractions": (0.0, 0.5)}, r"expected one or more fractions in \(0, 1\]"),
        ({"fractions": (0.5, 1.01)}, r"a level is a fraction of the T diffusion steps"),
        ({"fractions": (5, 12)}, r"a level is a fraction of the T diffusion steps"),
        ({"fractions": (0.1, math.nan)}, r"expected one or more fractions in \(0, 1\]"),
        ({"fractions": (0.5, 0.1)}, r"expected strictly increasing fractions, got \(0.5, 0.1\)"),
        ({"fractions": [(1 + i) / 16 for i in range(16)]}, "expected at most 15 fractions.*got 16"),
        ({"fractions": (0.1, 0.1)}, r"list the hardest \(smallest\) level first"),
        ({"weights": (1.0, 0.9)}, "expected 4 weights, got 2"),
        ({"shares": (1.0,) * 5}, "expected 4 shares, got 5"),
        ({"weights": (1.0, 0.9, 0.8, 0.0)}, "expected positive weights, got"),
        ({"weights": (1.0, 0.9, 0.8, math.nan)}, "expected positive weights, got"),
        ({"weights": (1.0, 0.9, 0.8, math.inf)}, "expected positive weights, got"),
        ({"shares": (1.0, 1.0, 1.0, -1.0)}, "expected non-negative shares, not all zero, got"),
        ({"shares": (0.0,) * 4}, "expected non-negative shares, not all zero, got"),
        ({"shares": (1.0, 1.0, 1.0, math.nan)}, "expected non-negative shares, not all zero"),
        ({"shares": (1.0, 1.0, 1.0, math.inf)}, "expected non-negative shares, not all zero"),
    ],
)
def test_validation(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^levels: .*{message}"):
        Levels(**arguments)


def test_levels_that_fall_on_one_step() -> None:
    message = r"levels: fractions \(.*\) of T = 10 fall on steps \(1, 1, 2, 5\); choose fractions"
    with pytest.raises(ValueError, match=message):
        Levels().steps(10)


def test_value_semantics_and_repr() -> None:
    levels = Levels((0.1, 0.5), shares=(3, 1))
    assert repr(levels) == ("Levels(fractions=(0.1, 0.5), weights=(1.0, 0.9), shares=(0.75, 0.25))")
    assert eval(repr(levels)) == levels
    assert pickle.loads(pickle.dumps(levels)) == levels
    assert dataclasses.replace(levels) == levels
    with pytest.raises(dataclasses.FrozenInstanceError):
        levels.fractions = (0.2, 0.4)  # type: ignore[misc]
