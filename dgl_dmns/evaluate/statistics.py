"""The spread of repeated runs.

Standard error of a mean = sample deviation / sqrt(runs).  Two methods run with the same seeds are
compared by the mean of their paired differences and Student's t interval.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgl_dmns.evaluate.checks import Values, check_numbers

__all__ = ["mean_and_stderr", "paired_difference", "student_t_quantile"]


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


def _central_mass(t: float, freedom: int) -> float:
    """P(|T| <= t) of Student's T for whole degrees of freedom: a finite sum in an angle."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= (k - 1) / k * cosine * cosine
        total += term
    return 2.0 / math.pi * (angle + sine * total) if odd else sine * total


def student_t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution.

    Args:
        probability: in (0, 1), mass below the quantile.
        freedom: degrees of freedom, an integer of at least 1.

    Returns:
        The t with P(T <= t) = probability, to about 1e-10 of its size.

    Raises:
        ValueError: an argument is outside its range.
    """
    if not 0.0 < probability < 1.0:
        raise ValueError(f"probability: expected a number in (0, 1), got {probability}; scale it")
    if freedom < 1:
        raise ValueError(f"freedom: expected at least 1, got {freedom}; use two runs or more")
    if probability < 0.5:
        return -student_t_quantile(1.0 - probability, freedom)
    central, low, high = 2.0 * probability - 1.0, 0.0, 1.0
    while _central_mass(high, freedom) < central and high < 1e15:
        low, high = high, 2.0 * high
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if _central_mass(middle, freedom) < central:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


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
    half = student_t_quantile(0.5 + confidence / 2.0, len(first) - 1) * error
    return mean, mean - half, mean + half
