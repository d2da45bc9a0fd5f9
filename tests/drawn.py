"""Whether draws follow a distribution, for the tests of all folders."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor


def assert_drawn_from(ids: Tensor, weight: Tensor) -> None:
    """Independent draws of node ids against unnormalised weights [N], by a chi-squared test."""
    count = torch.bincount(ids.flatten(), minlength=weight.numel())
    possible = weight > 0
    assert not count[~possible].any()
    expected = weight[possible].double()
    expected = expected / expected.sum() * ids.numel()
    assert expected.min() >= 5, "too few draws for a chi-squared test"
    assert stats.chisquare(count[possible].numpy(), expected.numpy()).pvalue > 1e-3
