"""Whether draws follow a distribution, for the tests of all folders."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor


def assert_drawn_from(ids: Tensor, weight: Tensor, *, least: float = 1e-3) -> None:
    """Independent draws of node ids against unnormalised weights [N], by a chi-squared test."""
    assert_counts(torch.bincount(ids.flatten(), minlength=weight.numel()), weight, least=least)


def assert_counts(count: Tensor, weight: Tensor, *, least: float = 1e-3) -> None:
    """Counts of draws likewise; those expected less than five times are taken together.

    Args:
        count: how often each was drawn, of the shape of ``weight``.
        weight: unnormalised, at least 0.
        least: p-value below which it fails.
    """
    assert count.shape == weight.shape
    assert not count[weight == 0].any()
    expected = weight.double() / weight.double().sum() * int(count.sum())
    rare = expected < 5
    assert not rare.all(), "too few draws for a chi-squared test"
    seen = torch.cat([count[~rare].double(), count[rare].sum().double().view(1)])
    wanted = torch.cat([expected[~rare], expected[rare].sum().view(1)])
    if wanted[-1] < 5:
        seen, wanted = seen[:-1], wanted[:-1]
    if len(wanted) > 1:
        wanted *= seen.sum() / wanted.sum()
        assert stats.chisquare(seen.numpy(), wanted.numpy()).pvalue > least
