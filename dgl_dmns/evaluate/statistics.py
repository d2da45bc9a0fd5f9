"""The spread of repeated runs.

Standard error of a mean = sample deviation / sqrt(runs).  Two methods run with the same seeds are
compared by the mean of their paired differences and Student's t interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Union

import torch
from torch import Tensor

from dgl_dmns.evaluate.ranking import check_numbers

__all__ = ["mean_and_stderr", "paired_difference"]

Values = Union[Sequence[float], Tensor]
"""One number for each run."""


def _as_values(name: str, values: Values, least: int) -> Tensor:
    result = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if result.dim() != 1 or len(result) < least:
        raise ValueError(
            f"{name}: expected at least {least} value(s) in one dimension, one for each run, got "
            f"shape {list(result.shape)}; pass one number for each run"
        )
    check_numbers(name, result)
    return result


def mean_and_stderr(values: Values) -> tuple[float, float]:
    """Mean and standard error of repeated runs.

    Args:
        values: float [R], one for each run.

    Returns:
        The mean, and the sample deviation (R - 1) over sqrt(R); NaN for one run, which has no
        spread.

    Raises:
        ValueError: no value, not one dimension, or a NaN.
    """
    data = _as_values("values", values, 1)
    if len(data) == 1:
        return float(data[0]), math.nan
    return float(data.mean()), float(data.std(unbiased=True)) / math.sqrt(len(data))


def paired_difference(a: Values, b: Values, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of a - b over runs with the same seeds, and its Student t interval.

    Args:
        a: float [R], one method's results, R >= 2.
        b: float [R], the other's, run i of both with the same seed and split.
        confidence: mass of the interval, in (0, 1).

    Returns:
        mean, low, high.  The interval assumes that the differences are roughly normal.

    Raises:
        ValueError: lengths differ, fewer than two runs, a NaN, or confidence outside (0, 1).
    """
    from scipy.special import stdtrit  # comes with DGL

    first, second = _as_values("a", a, 2), _as_values("b", b, 2)
    if len(first) != len(second):
        raise ValueError(
            f"a and b: expected equal lengths, got {len(first)} and {len(second)}; pair the runs "
            "by seed"
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(
            f"confidence: expected a number in (0, 1), got {confidence}; pass for example 0.95"
        )
    mean, error = mean_and_stderr(first - second)
    half = float(stdtrit(len(first) - 1, 0.5 + confidence / 2.0)) * error
    return mean, mean - half, mean + half
