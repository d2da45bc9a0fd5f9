"""Signs that the negatives harm the training, each with what to turn.

The paper names four ways in which negatives fail: hardness that comes too early makes training
diverge, hardness that is misaligned leaves it on a plateau, a condition that is not learned gives
negatives no better than uniform ones, and a collapse repeats a few hubs. A table of ready
candidates adds two: they are handed out again and again, or used up, so that at the end of their
time they score below random nodes and teach less than those. `signs` looks for all of them in what
a `Monitor` has recorded. They are rules of thumb: `Thresholds` holds the numbers they use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

__all__ = ["NegativesWarning", "Sign", "Thresholds", "signs"]


class NegativesWarning(UserWarning):
    """The negatives look as if they harm the training; the message says what to turn."""


@dataclass(frozen=True)
class Sign:
    """One failure sign.

    Args:
        name: what `signs` calls it, for example ``"plateau"``.
        refresh: the refresh at which it was seen.
        message: what was seen, and a remedy.
    """

    name: str
    refresh: int
    message: str


@dataclass(frozen=True)
class Thresholds:
    """When a record counts as a failure sign.

    Args:
        warmup: refreshes before which nothing is judged but divergence.
        window: refreshes without a gain that count as a plateau.
        gain: smallest rise of the watched value within the window that is a gain.
        fall: fall of the percentile of positives below its best that counts as divergence.
        hard: share of negatives above a positive that counts as too hard.
        easy: AUC of the hardest level's density (percentile of the negatives, for a sampler without
            a generator) below which negatives are no better than uniform.
        learned: percentile of positives below which the encoder knows too little to judge that.
        uneven: excess of the Gini index over that of uniform draws that counts as a collapse.
        hub_share: share of the draws that the top hundredth of nodes takes in a collapse.
        repeats: times that each candidate is handed out, on average, before the next table, above
            which negatives count as repeated.
        used_up: percentile at the end of a table's time below which its negatives count as used up;
            0.5 is that of uniform ones.

    Raises:
        ValueError: for a count below 1, a share outside (0, 1), or ``repeats`` that are not
            positive.
    """

    warmup: int = 5
    window: int = 10
    gain: float = 0.002
    fall: float = 0.1
    hard: float = 0.3
    easy: float = 0.6
    learned: float = 0.7
    uneven: float = 0.4
    hub_share: float = 0.2
    repeats: float = 2.0
    used_up: float = 0.45

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in ("warmup", "window"):
                fits, expected = value >= 1, "at least 1 refresh"
            elif name == "repeats":
                fits, expected = value > 0, "a positive number"
            else:
                fits, expected = 0.0 < value < 1.0, "a number between 0 and 1"
            if not fits:
                raise ValueError(f"{name}: expected {expected}, got {value}")


Levels = Mapping[str, Mapping[Any, Any]]


def signs(
    records: pd.DataFrame,
    watched: Sequence[float] | None = None,
    thresholds: Thresholds | None = None,
) -> list[Sign]:
    """The failure signs at the last refresh of one edge type.

    Args:
        records: rows of `Monitor.frame` of one edge type.
        watched: values in order of time, larger is better, whose standstill is a plateau, for
            example a validation metric after each refresh; defaults to the percentile of the
            positives.
        thresholds: the numbers to judge by.

    Returns:
        The signs, the most severe first: ``"diverging"``, ``"plateau"``, ``"not learned"``,
        ``"hubs"``, ``"repeated"``, ``"used up"``.
    """
    limits = thresholds or Thresholds()
    last = int(records["refresh"].max())
    rows = records[records["refresh"] == last].to_dict("records")
    now: Levels = {str(row["level"]): row for row in rows}
    auc = [float(value) for value in records.loc[records["level"] == "positive", "percentile"]]
    found = {"diverging": _diverging(auc, now["all"], limits)}
    if last >= limits.warmup:
        found["plateau"] = _plateau(auc if watched is None else watched, now, limits)
        found["not learned"] = _not_learned(auc[-1], now, limits)
        found["hubs"] = _hubs(now["all"], limits)
        found["repeated"] = _repeated(now["all"], limits)
        found["used up"] = _used_up(now["all"], limits)
    return [Sign(name, last, message) for name, message in found.items() if message]


def _diverging(auc: Sequence[float], negatives: Mapping[str, Any], limits: Thresholds) -> str:
    if max(auc) - auc[-1] <= limits.fall or negatives["percentile"] <= limits.easy:
        return ""
    return (
        "training diverges while negatives are hard: the percentile of the positives fell from "
        f"{max(auc):.3f} to {auc[-1]:.3f}, and that of the negatives is "
        f"{negatives['percentile']:.2f}. Hardness came too early: train some epochs with uniform "
        "negatives before attach(), raise uniform_share, leave out the hardest levels (for example "
        "levels=(0.25, 0.5)), or lower the learning rate"
    )


def _plateau(values: Sequence[float], now: Levels, limits: Thresholds) -> str:
    if len(values) <= limits.window:
        return ""
    misaligned = _misaligned(now, limits)
    gained = max(values[-limits.window :]) >= max(values[: -limits.window]) + limits.gain
    if gained or not misaligned:
        return ""
    return (
        f"no gain in {limits.window} refreshes, and {misaligned}. Raise uniform_share or choose "
        "easier levels, use a loss with sampler.log_ratio(neg_graph), and check that scorer= is "
        "the function that your model scores edges with"
    )


def _misaligned(now: Levels, limits: Thresholds) -> str:
    """What is wrong with the hardness, or an empty string."""
    above = now["all"]["above_positive"]
    if above > limits.hard:
        return f"negatives are too hard: {above:.0%} of them score above a positive of their query"
    levels = _levels(now)
    if len(levels) > 1 and now[levels[0]]["score"] < now[levels[-1]]["score"]:
        return (
            f"the levels are out of order: the hardest ({levels[0]}) scores "
            f"{now[levels[0]]['score']:.3g}, the easiest ({levels[-1]}) "
            f"{now[levels[-1]]['score']:.3g}"
        )
    return ""


def _not_learned(auc: float, now: Levels, limits: Thresholds) -> str:
    if auc <= limits.learned:
        return ""
    levels = _levels(now)
    density = now[levels[0]]["density_auc"] if levels else math.nan
    if density < limits.easy:
        return (
            f"the generator's negatives are no better than uniform: its hardest level "
            f"({levels[0]}) prefers a positive to a random node with probability {density:.2f} "
            f"(density_auc), while the percentile of the positives is {auc:.2f}. It has not "
            "learned its condition: raise warmup_steps and fit_steps, refresh more often, and see "
            "that the fitting loss falls"
        )
    percentile = now["all"]["percentile"]
    if not levels and percentile < limits.easy:
        return (
            f"negatives are no better than uniform: their percentile is {percentile:.2f}, "
            f"that of the positives {auc:.2f}. Take a larger pool or a lower temperature, or "
            "refresh more often"
        )
    return ""


def _hubs(negatives: Mapping[str, Any], limits: Thresholds) -> str:
    excess = negatives["gini"] - negatives["gini_uniform"]
    if excess <= limits.uneven or negatives["top_1_percent"] <= limits.hub_share:
        return ""
    return (
        f"negatives collapse onto a few nodes: 1 % of the nodes takes "
        f"{negatives['top_1_percent']:.0%} of the draws (Gini index {negatives['gini']:.2f}, that "
        f"of uniform draws {negatives['gini_uniform']:.2f}). Raise uniform_share, lower lam, or "
        "take a smaller pool; with an inner product, nodes with long embeddings win for every "
        "query: normalise them or use weight decay"
    )


def _repeated(negatives: Mapping[str, Any], limits: Thresholds) -> str:
    times = negatives.get("handed_out", math.nan)
    if not times > limits.repeats:
        return ""
    more = math.ceil(times / limits.repeats)
    return (
        f"the same negatives come again and again: each candidate was handed out {times:.1f} times "
        f"before the next table. Hold {more} times as many (pools=Pools(groups=...)), or refresh "
        f"{more} times as often (every= of attach)"
    )


def _used_up(negatives: Mapping[str, Any], limits: Thresholds) -> str:
    left = negatives.get("end_percentile", math.nan)
    if not left < limits.used_up:
        return ""
    return (
        f"negatives are used up before the next table: at the end of their time they scored above "
        f"{left:.0%} of random nodes, so that uniform negatives would have taught more. Refresh "
        "more often, hold more candidates (pools=Pools(groups=...)), or raise uniform_share"
    )


def _levels(now: Levels) -> list[str]:
    """Names of the levels that have negatives, hardest first."""
    return [name for name in now if name.endswith("T") and not math.isnan(now[name]["score"])]
