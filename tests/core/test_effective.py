"""Effective sample sizes, and the exponent that reaches one."""

from __future__ import annotations

import math

import pytest
import torch

from dgl_dmns.core import effective_size, exponent_for


def densities(scale: float) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return scale * torch.randn(2, 50, 64, generator=random)


def test_sizes_by_hand() -> None:
    assert float(effective_size(torch.zeros(7))) == pytest.approx(7)
    assert float(effective_size(torch.tensor([0.0, -200.0, -200.0]))) == pytest.approx(1)
    log_density = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]]).log()
    wanted = [1 / (0.04 + 0.09 + 0.25), 1 / (0.01 + 0.01 + 0.64)]
    assert effective_size(log_density).tolist() == pytest.approx(wanted)
    roots = torch.tensor([0.2, 0.3, 0.5]).sqrt()
    share = roots / roots.sum()
    assert float(effective_size(log_density[0], 0.5)) == pytest.approx(1 / float(share @ share))
    assert float(effective_size(log_density[0], 0.0)) == pytest.approx(3)


@pytest.mark.parametrize("size", [1.5, 8.0, 40.0])
@pytest.mark.parametrize("lam", [0.3, 2.0])
def test_the_exponent_is_the_largest_that_reaches_the_size(size: float, lam: float) -> None:
    shares = torch.tensor([0.7, 0.3])
    density = densities(20.0)
    found = exponent_for(density, shares, lam, size)

    def mean(exponent: float) -> float:
        sizes = effective_size(density, exponent)
        return float(0.7 * sizes[0].mean() + 0.3 * sizes[1].mean())

    assert mean(found) >= size
    if found == lam:
        assert mean(lam) >= size
    else:
        assert mean(found * 1.001) < size


def test_a_density_that_is_flat_enough_keeps_its_exponent() -> None:
    assert exponent_for(densities(0.1), torch.tensor([0.5, 0.5]), 1.0, 32.0) == 1.0


def test_densities_of_any_size_have_an_exponent() -> None:
    found = exponent_for(densities(1e30), torch.tensor([0.5, 0.5]), 1.0, 8.0)
    assert 0 < found < 1
    assert math.isfinite(found)
