"""Levels: the paper's values, shares, and every validation message."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest

from dgl_dmns.core import Levels


def test_defaults_are_the_paper_s() -> None:
    levels = Levels()
    assert len(levels) == 4
    assert levels.fractions == (1 / 10, 1 / 8, 1 / 4, 1 / 2)
    assert levels.steps(50) == (5, 6, 12, 25)
    assert levels.loss_weights == pytest.approx((1.0, 0.9, 0.8, 0.7))
    assert levels.mixture_shares == (0.25, 0.25, 0.25, 0.25)


def test_steps_round_down_and_start_at_one() -> None:
    assert Levels((0.001, 0.999, 1.0)).steps(10) == (1, 9, 10)
    assert Levels((0.1, 0.2, 0.3, 0.7)).steps(10) == (1, 2, 3, 7)  # 0.7 * 10 is 7, 0.3 * 10 is 3
    assert Levels((0.29, 0.57, 0.58)).steps(100) == (29, 57, 58)  # all below as floating point


def test_shares_are_normalised_and_zero_is_allowed() -> None:
    assert Levels((0.1, 0.5), shares=(3, 1)).mixture_shares == (0.75, 0.25)
    assert Levels((0.1, 0.5), shares=(0, 2)).mixture_shares == (0.0, 1.0)


def test_default_weights_stay_positive_for_many_levels() -> None:
    weights = Levels(tuple(i / 20 for i in range(1, 15))).loss_weights
    assert weights[:3] == pytest.approx((1.0, 0.9, 0.8))
    assert min(weights) == pytest.approx(0.1)


def test_lists_become_tuples_of_floats() -> None:
    levels = Levels([0.1, 1], weights=[2, 1], shares=[1, 1])  # type: ignore[arg-type]
    assert levels == Levels((0.1, 1.0), weights=(2.0, 1.0), shares=(0.5, 0.5))
    assert hash(levels) == hash(Levels((0.1, 1.0), weights=(2.0, 1.0)))
    assert all(type(w) is float for w in levels.loss_weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fractions": ()}, r"expected one or more fractions in \(0, 1\], got \(\)"),
        ({"fractions": (0.0, 0.5)}, r"expected one or more fractions in \(0, 1\]"),
        ({"fractions": (0.5, 1.01)}, r"a level is a fraction of the T diffusion steps"),
        ({"fractions": (5, 12)}, r"a level is a fraction of the T diffusion steps"),
        ({"fractions": (0.1, math.nan)}, r"expected one or more fractions in \(0, 1\]"),
        ({"fractions": (0.5, 0.1)}, r"expected strictly increasing fractions, got \(0.5, 0.1\)"),
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
