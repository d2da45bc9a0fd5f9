"""Level Gaussians against torch.distributions and against brute force over all pairs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from dgl_dmns.core import LevelGaussians


def make(
    levels: int, queries: int, width: int, seed: int = 0, low: float = 0.2, high: float = 2.0
) -> LevelGaussians:
    generator = torch.Generator().manual_seed(seed)
    shape = (levels, queries, width)
    std = low + (high - low) * torch.rand(shape, generator=generator)
    return LevelGaussians(torch.randn(shape, generator=generator), std)


def reference(g: LevelGaussians, x: Tensor) -> Tensor:
    exact = Independent(Normal(g.mean.double(), g.std.double()), 1)
    value: Tensor = exact.log_prob(x.double())
    return value


def test_log_prob_of_one_point_by_hand() -> None:
    # x - m = (1, 2), s = (1, 2): -(1/2 + 1/2) - log 2 - log(2 pi)
    g = LevelGaussians(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 2.0]]]))
    expected = -1 - math.log(2) - math.log(2 * math.pi)
    assert float(g.log_prob(torch.tensor([[1.0, 2.0]]))) == pytest.approx(expected, rel=1e-6)


def test_log_prob_against_torch_distributions() -> None:
    g = make(3, 5, 4)
    shared = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    each = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(2))
    for x in (shared, each):
        got = g.log_prob(x)
        assert got.shape == (3, 5)
        torch.testing.assert_close(got.double(), reference(g, x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("chunks", "size"), [(1, 6), (2, 3), (6, 1)])
def test_pool_log_prob_against_brute_force(chunks: int, size: int) -> None:
    levels, members, width = 3, 5, 4
    g = make(levels, chunks * size, width)
    pool = torch.randn(chunks, members, width, generator=torch.Generator().manual_seed(3))
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
    pool = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(4))
    pool[:, 0] = g.mean[0, 0]
    got = g.pool_log_prob(pool).view(2, 8, 7)
    points = pool.repeat_interleave(4, 0)
    expected = torch.stack([reference(g, points[:, u]) for u in range(7)], dim=-1)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-2)


def test_pool_log_prob_of_sliced_parameters() -> None:
    g = make(3, 10, 4)
    part = LevelGaussians(g.mean[:, 2:6], g.std[:, 2:6])
    pool = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(5))
    copied = LevelGaussians(part.mean.contiguous(), part.std.contiguous())
    torch.testing.assert_close(part.pool_log_prob(pool), copied.pool_log_prob(pool))


@pytest.mark.parametrize("shape", [(4, 5, 3), (2, 5, 4), (0, 5, 3)])
def test_pool_that_does_not_fit(shape: tuple[int, ...]) -> None:
    message = r"pool: expected \[C, M, 3\] with C dividing the 6 queries, got \("
    with pytest.raises(ValueError, match=message):
        make(2, 6, 3).pool_log_prob(torch.zeros(shape))


def test_samples_have_the_moments_and_follow_the_seed() -> None:
    n = 20_000
    one = make(2, 1, 3)
    g = LevelGaussians(one.mean.expand(2, n, 3), one.std.expand(2, n, 3))
    x = g.sample(torch.Generator().manual_seed(6))
    assert x.shape == (2, n, 3)
    mean_error = (x.mean(1) - one.mean[:, 0]).abs() / one.std[:, 0] * math.sqrt(n)
    std_error = (x.std(1) / one.std[:, 0] - 1).abs() * math.sqrt(2 * n)
    assert float(mean_error.max()) < 5
    assert float(std_error.max()) < 5
    assert torch.equal(x, g.sample(torch.Generator().manual_seed(6)))
    assert not torch.equal(x, g.sample(torch.Generator().manual_seed(7)))


def test_expected_score_by_hand_and_against_samples() -> None:
    mean = torch.tensor([[[1.0, 2.0]], [[0.0, -1.0]]])
    by_hand = LevelGaussians(mean, torch.ones_like(mean)).expected_score(torch.tensor([[3.0, 0.5]]))
    assert by_hand.tolist() == [[4.0], [-0.5]]

    n = 20_000
    one = make(3, 1, 4)
    h = torch.randn(1, 4, generator=torch.Generator().manual_seed(8))
    g = LevelGaussians(one.mean.expand(3, n, 4), one.std.expand(3, n, 4))
    score = (g.sample(torch.Generator().manual_seed(9)) * h).sum(-1)
    deviation = (one.std.square() * h.square()).sum(-1).sqrt() / math.sqrt(n)
    error = (score.mean(1, keepdim=True) - one.expected_score(h)).abs()
    assert bool((error < 5 * deviation).all())


def test_density_integrates_to_one() -> None:
    g = make(2, 1, 1)
    grid = torch.linspace(-20, 20, 8001).view(1, -1, 1)
    total = g.pool_log_prob(grid).double().exp().sum(-1) * (40 / 8000)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-4, atol=1e-4)
