"""Schedule constants against values worked out by hand and against the definitions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from dgl_dmns.core import NoiseSchedule, noise_to


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


def test_forward_noising_is_the_chain_of_single_steps() -> None:
    # q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, beta_t), composed exactly.
    schedule = NoiseSchedule.linear(30)
    scale, variance = 1.0, 0.0
    for t in range(1, 31):
        scale *= math.sqrt(float(schedule.alpha[t]))
        variance = float(schedule.alpha[t]) * variance + float(schedule.beta[t])
        one, zero = torch.ones(1, 1), torch.zeros(1, 1)
        step = torch.tensor([t])
        assert float(noise_to(schedule, one, step, zero)) == pytest.approx(scale, rel=1e-5)
        deviation = float(noise_to(schedule, zero, step, one))
        assert deviation == pytest.approx(math.sqrt(variance), rel=1e-3)


@pytest.mark.parametrize("betas", [torch.zeros(0), torch.full((2, 2), 0.1), torch.tensor(0.1)])
def test_betas_of_a_wrong_shape(betas: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"betas: expected shape \[T\] with T >= 1, got"):
        NoiseSchedule(betas)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_betas_out_of_range(bad: float) -> None:
    with pytest.raises(ValueError, match="betas: every value has to lie strictly between 0 and 1"):
        NoiseSchedule(torch.tensor([0.1, bad]))


def test_betas_too_small_for_single_precision() -> None:
    with pytest.raises(ValueError, match=r"betas: the first \(1e-09\) is lost in single precision"):
        NoiseSchedule.linear(4, start=1e-9, end=1e-8)
    assert float(NoiseSchedule.linear(4, start=1e-7).alpha_bar[1]) < 1.0


@pytest.mark.parametrize("make", [NoiseSchedule.linear, NoiseSchedule.cosine])
def test_steps_below_one(make: Callable[[int], NoiseSchedule]) -> None:
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        make(0)


def test_state_dict_round_trip_and_repr() -> None:
    source = NoiseSchedule.cosine(12)
    target = NoiseSchedule.linear(12)
    assert not torch.equal(source.alpha_bar, target.alpha_bar)
    target.load_state_dict(source.state_dict())
    for name in ("beta", "alpha", "alpha_bar", "sigma"):
        assert torch.equal(getattr(source, name), getattr(target, name))
    assert not list(source.parameters())
    assert repr(NoiseSchedule.linear()) == "NoiseSchedule(steps=50, abar_T=0.6030)"
