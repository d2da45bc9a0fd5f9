"""The closed form against the chain and against numbers worked out by hand; loss; densities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small import normal, rng
from torch import Tensor
from torch.distributions import Independent, Normal

from dgl_dmns.core import (
    AffineNoisePredictor,
    FiLMPredictor,
    LevelGaussians,
    MLPPredictor,
    NoisePredictor,
    NoiseSchedule,
    diffusion_loss,
    level_gaussians,
    noise_to,
    reverse_step,
    sample_chain,
)

TWO_STEPS = NoiseSchedule(torch.tensor([0.36, 0.4375], dtype=torch.float64))


class Constant(AffineNoisePredictor):
    """``eps = A_t x + B_t`` with given numbers, the same for all queries."""

    def __init__(self, scale: list[float], shift: list[float]) -> None:
        super().__init__()
        self.scale = torch.tensor(scale)
        self.shift = torch.tensor(shift)

    def coefficients(self, t: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return (
            self.scale[t - 1].unsqueeze(-1).expand(h.shape),
            self.shift[t - 1].unsqueeze(-1).expand(h.shape),
        )


class Recorder(NoisePredictor):
    """Predicts no noise and notes the steps it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[int]] = []

    def forward(self, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        self.seen.append(t.tolist())
        return torch.zeros_like(x)


def random_film(width: int, seed: int) -> FiLMPredictor:
    """A predictor with coefficients well away from those of a fresh one."""
    predictor = FiLMPredictor(width)
    generator = rng(seed)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return predictor


# ---- closed form --------------------------------------------------------------------------------


def test_closed_form_by_hand() -> None:
    # beta = .36, .4375; sqrt(alpha) = .8, .75; sqrt(1 - abar) = .6, .8; sigma_2^2 = .24609375
    # c_2 = .4375 / .8 = .546875;  c_1 = .36 / .6 = .6
    # A = .5, B = .2 at both steps:
    #   a_2 = (1 - .546875 * .5) / .75 = .96875;  b_2 = -.546875 * .2 / .75 = -7/48
    #   a_1 = (1 - .6 * .5) / .8 = .875;          b_1 = -.6 * .2 / .8 = -.15
    # From m_2 = 0, s_2^2 = 1:
    #   m_1 = -7/48;                  s_1^2 = .96875^2 + .24609375 = 1.1845703125
    #   m_0 = -.875 * 7/48 - .15;     s_0^2 = .875^2 * 1.1845703125 + 0 = .906936645...
    predictor = Constant([0.5, 0.5], [0.2, 0.2])
    result = level_gaussians(predictor, TWO_STEPS, torch.zeros(1, 1), [0, 1, 2])
    assert result.mean.shape == result.std.shape == (3, 1, 1)
    mean = [-0.875 * 7 / 48 - 0.15, -7 / 48, 0.0]
    assert result.mean.flatten().tolist() == pytest.approx(mean, rel=1e-5)
    variance = [0.9069366455078125, 1.1845703125, 1.0]
    assert result.std.square().flatten().tolist() == pytest.approx(variance, rel=1e-5)


def test_closed_form_against_the_chain_at_every_level() -> None:
    draws, queries, width = 20_000, 3, 4
    schedule = NoiseSchedule.linear()
    predictor = random_film(width, seed=3)
    h = torch.randn(queries, width, generator=rng(4))
    levels = list(range(schedule.steps + 1))
    exact = level_gaussians(predictor, schedule, h, levels)

    # The case is not a trivial one: both moments move far from where the chain starts.
    assert float(exact.mean[0].abs().max()) > 0.5
    assert float((exact.std[0] - 1).abs().max()) > 0.3
    assert float((exact.mean[0, 0] - exact.mean[0, 1]).abs().max()) > 0.2

    chain = sample_chain(
        predictor,
        schedule,
        h.repeat_interleave(draws, 0),
        levels,
        generator=rng(5),
    )
    # Five standard errors: of 1224 moments, one fails for fewer than one seed in a thousand.
    for t in levels:
        states = chain[t].view(queries, draws, width)
        mean, std = states.mean(1), states.std(1)
        mean_error = (mean - exact.mean[t]).abs() / exact.std[t] * math.sqrt(draws)
        std_error = (std / exact.std[t] - 1).abs() * math.sqrt(2 * draws)
        assert float(mean_error.max()) < 5.0, t
        assert float(std_error.max()) < 5.0, t
        centred = (states - mean.unsqueeze(1)) / std.unsqueeze(1)
        correlation = centred.transpose(1, 2) @ centred / (draws - 1)
        off_diagonal = correlation - torch.diag_embed(correlation.diagonal(dim1=-2, dim2=-1))
        assert float(off_diagonal.abs().max()) * math.sqrt(draws) < 5.0, t


def test_the_exact_noise_of_one_point_leads_back_to_it() -> None:
    # If all data is the point u, the true noise estimate is (x_t - sqrt(abar_t) u) / sqrt(1 - abar)
    # and the last step of the chain lands on u exactly.
    schedule = NoiseSchedule.linear(50, 1e-4, 0.2)
    point = 1.7
    root = (1 - schedule.alpha_bar[1:]).sqrt()
    scale = (1 / root).tolist()
    shift = (-schedule.alpha_bar[1:].sqrt() * point / root).tolist()
    result = level_gaussians(Constant(scale, shift), schedule, torch.zeros(1, 1), [0, 25])
    assert float(result.mean[0]) == pytest.approx(point, abs=1e-3)
    assert float(result.std[0]) < 2e-3
    # On the way, the state follows the forward process: N(sqrt(abar) u, 1 - abar).
    abar = float(schedule.alpha_bar[25])
    remainder = float(schedule.alpha_bar[50])
    assert float(result.mean[1]) == pytest.approx(math.sqrt(abar) * point, abs=3 * remainder)
    assert float(result.std[1]) == pytest.approx(math.sqrt(1 - abar), abs=3 * remainder)


def test_level_gaussians_needs_an_affine_predictor() -> None:
    message = "predictor: the closed form needs an AffineNoisePredictor, got MLPPredictor; use"
    predictor: Any = MLPPredictor(3)
    with pytest.raises(TypeError, match=message):
        level_gaussians(predictor, NoiseSchedule.linear(), torch.zeros(2, 3), [5])


def test_reverse_step_is_the_posterior_mean() -> None:
    # With the true noise, the step's mean is that of q(x_{t-1} | x_t, x_0).
    schedule = NoiseSchedule.linear(50, 1e-4, 0.2)
    x0, eps = torch.tensor([[0.7, -1.2]]), torch.tensor([[0.4, 1.1]])
    for t in (2, 10, 50):
        x = noise_to(schedule, x0, torch.tensor([t]), eps)
        got = reverse_step(schedule, x, eps, torch.zeros_like(x), t)
        beta, alpha = float(schedule.beta[t]), float(schedule.alpha[t])
        abar, before = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[t - 1])
        of_x0 = math.sqrt(before) * beta / (1 - abar)
        of_x = math.sqrt(alpha) * (1 - before) / (1 - abar)
        torch.testing.assert_close(got, of_x0 * x0 + of_x * x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [MLPPredictor, FiLMPredictor])
def test_chain_shapes_order_and_seed(make: type[MLPPredictor] | type[FiLMPredictor]) -> None:
    torch.manual_seed(0)
    schedule, predictor = NoiseSchedule.linear(12), make(4)
    h = torch.randn(6, 4)

    def run(steps: list[int], seed: int) -> Tensor:
        generator = rng(seed)
        return sample_chain(predictor, schedule, h, steps, generator=generator)

    states = run([1, 3, 6, 12], 1)
    assert states.shape == (4, 6, 4)
    assert bool(torch.isfinite(states).all())
    assert not states.requires_grad
    assert torch.equal(states, run([1, 3, 6, 12], 1))
    assert not torch.equal(states, run([1, 3, 6, 12], 2))
    # Every level is the same point of the same chain, whatever else is kept, in the order asked.
    assert torch.equal(states[[2, 0]], run([6, 1], 1))
    assert torch.equal(states[3], torch.randn(6, 4, generator=rng(1)))


def test_chain_asks_for_every_step_once_and_stops_at_the_hardest() -> None:
    predictor = Recorder()
    sample_chain(predictor, NoiseSchedule.linear(6), torch.zeros(2, 3), [2, 4])
    assert predictor.seen == [[6, 6], [5, 5], [4, 4], [3, 3]]


def test_what_is_computed_for_some_levels_is_what_is_for_all() -> None:
    schedule, predictor, h = NoiseSchedule.cosine(20), random_film(3, seed=1), normal(5, 3, seed=2)
    everywhere = level_gaussians(predictor, schedule, h, list(range(21)))
    some = level_gaussians(predictor, schedule, h, [2, 5, 20])
    assert torch.equal(some.mean, everywhere.mean[[2, 5, 20]])
    assert torch.equal(some.std, everywhere.std[[2, 5, 20]])
    assert torch.equal(some.mean[2], torch.zeros(5, 3))
    assert torch.equal(some.std[2], torch.ones(5, 3))
    assert not some.mean.requires_grad


@pytest.mark.parametrize("steps", [[], [-1, 2], [2, 7]])
def test_steps_outside_the_chain(steps: list[int]) -> None:
    schedule, predictor, h = NoiseSchedule.linear(6), FiLMPredictor(3), torch.zeros(2, 3)
    message = r"steps: expected one or more steps in 0 .. T = 6, got \["
    with pytest.raises(ValueError, match=message):
        sample_chain(predictor, schedule, h, steps)
    with pytest.raises(ValueError, match=message):
        level_gaussians(predictor, schedule, h, steps)


# ---- loss ---------------------------------------------------------------------------------------


def test_loss_of_a_predictor_that_says_zero_is_the_noise_itself() -> None:
    # E|eps| = sqrt(2 / pi), E eps^2 = 1; deviations sqrt(1 - 2 / pi) and sqrt(2).
    n = 40_000
    x0 = torch.ones(n, 1)
    schedule = NoiseSchedule.linear()
    for kind, expected, deviation in (
        ("l1", math.sqrt(2 / math.pi), math.sqrt(1 - 2 / math.pi)),
        ("l2", 1.0, math.sqrt(2)),
    ):
        generator = rng(7)
        loss = diffusion_loss(Recorder(), schedule, x0, x0, kind=kind, generator=generator)  # type: ignore[arg-type]
        assert float(loss) == pytest.approx(expected, abs=5 * deviation / math.sqrt(n))


def test_loss_draws_every_step_equally_often() -> None:
    predictor = Recorder()
    x0 = torch.zeros(20_000, 1)
    generator = rng(8)
    diffusion_loss(predictor, NoiseSchedule.linear(4), x0, x0, generator=generator)
    counts = torch.bincount(torch.tensor(predictor.seen[0]), minlength=6)
    assert counts[0] == counts[5] == 0
    deviation = math.sqrt(20_000 * 0.25 * 0.75)
    assert float((counts[1:5] - 5000).abs().max()) < 5 * deviation


def test_loss_is_zero_for_the_true_noise() -> None:
    class Oracle(NoisePredictor):
        def forward(self, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
            abar = schedule.alpha_bar[t].unsqueeze(-1)
            noise: Tensor = (x - abar.sqrt() * h) / (1 - abar).sqrt()
            return noise

    schedule = NoiseSchedule.linear(20)
    x0 = torch.randn(50, 3, generator=rng(0))
    assert float(diffusion_loss(Oracle(), schedule, x0, x0)) < 1e-3
    assert float(diffusion_loss(Oracle(), schedule, x0, -x0)) > 1.0


def test_the_loss_follows_its_generator_and_knows_two_kinds() -> None:
    schedule, predictor = NoiseSchedule.linear(), random_film(3, seed=0)
    x0, h = normal(2, 8, 3, seed=1)
    one, same, other = (
        diffusion_loss(predictor, schedule, x0, h, generator=rng(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.requires_grad
    kind: Any = "huber"
    with pytest.raises(ValueError, match="kind: expected 'l1' or 'l2', got 'huber'"):
        diffusion_loss(predictor, schedule, x0, h, kind=kind)


# ---- densities ----------------------------------------------------------------------------------


def make(
    levels: int, queries: int, width: int, seed: int = 0, low: float = 0.2, high: float = 2.0
) -> LevelGaussians:
    generator = rng(seed)
    shape = (levels, queries, width)
    std = low + (high - low) * torch.rand(shape, generator=generator)
    return LevelGaussians(torch.randn(shape, generator=generator), std)


def reference(g: LevelGaussians, x: Tensor) -> Tensor:
    exact = Independent(Normal(g.mean.double(), g.std.double()), 1)
    value: Tensor = exact.log_prob(x.double())
    return value


def test_log_prob_against_torch_distributions() -> None:
    g = make(3, 5, 4)
    shared = torch.randn(5, 4, generator=rng(1))
    each = torch.randn(3, 5, 4, generator=rng(2))
    for x in (shared, each):
        got = g.log_prob(x)
        assert got.shape == (3, 5)
        torch.testing.assert_close(got.double(), reference(g, x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("chunks", "size"), [(1, 6), (2, 3), (6, 1)])
def test_pool_log_prob_against_brute_force(chunks: int, size: int) -> None:
    levels, members, width = 3, 5, 4
    g = make(levels, chunks * size, width)
    pool = torch.randn(chunks, members, width, generator=rng(3))
    got = g.pool_log_prob(pool)
    assert got.shape == (levels, chunks, size, members)
    for c in range(chunks):
        for q in range(size):
            query = c * size + q
            for u in range(members):
                x = pool[c, u].expand(chunks * size, width)
                expected = reference(g, x)[:, query]
                torch.testing.assert_close(got[:, c, q, u].double(), expected, rtol=1e-4, atol=1e-4)


def test_pool_log_prob_of_narrow_gaussians() -> None:
    # Expanding the square loses digits where |u| / s is large: still 1e-2 nats at s = 0.05.
    g = make(2, 8, 16, low=0.05, high=0.06)
    pool = torch.randn(2, 7, 16, generator=rng(4))
    pool[:, 0] = g.mean[0, 0]
    got = g.pool_log_prob(pool).view(2, 8, 7)
    points = pool.repeat_interleave(4, 0)
    expected = torch.stack([reference(g, points[:, u]) for u in range(7)], dim=-1)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("shape", [(4, 5, 3), (2, 5, 4), (0, 5, 3)])
def test_pool_that_does_not_fit(shape: tuple[int, ...]) -> None:
    message = r"pool: expected \[C, M, 3\] with C dividing the 6 queries, got \("
    with pytest.raises(ValueError, match=message):
        make(2, 6, 3).pool_log_prob(torch.zeros(shape))


def test_samples_have_the_moments_and_follow_the_seed() -> None:
    n = 20_000
    one = make(2, 1, 3)
    g = LevelGaussians(one.mean.expand(2, n, 3), one.std.expand(2, n, 3))
    x = g.sample(rng(6))
    assert x.shape == (2, n, 3)
    mean_error = (x.mean(1) - one.mean[:, 0]).abs() / one.std[:, 0] * math.sqrt(n)
    std_error = (x.std(1) / one.std[:, 0] - 1).abs() * math.sqrt(2 * n)
    assert float(mean_error.max()) < 5
    assert float(std_error.max()) < 5
    assert torch.equal(x, g.sample(rng(6)))
    assert not torch.equal(x, g.sample(rng(7)))
