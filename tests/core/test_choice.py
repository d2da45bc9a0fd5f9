"""Draws without replacement against successive draws."""

from __future__ import annotations

import pytest
import torch
from shared import assert_drawn_from
from small import rng

from dgl_dmns.core import first_above
from dgl_dmns.core.choice import draw_distinct


def test_first_above_is_searchsorted_of_some_rows() -> None:
    for size in (1, 2, 3, 8, 13, 128):
        weight = torch.rand(30, size, generator=rng(size))
        weight[torch.rand(30, size, generator=rng(size + 1)) < 0.4] = 0.0  # plateaus
        total = weight.cumsum(-1)
        row = torch.randint(0, 30, (400,), generator=rng(2))
        value = torch.rand(400, generator=rng(3)) * total[row, -1]
        value[:40] = total[row[:40], size // 2]  # exactly on a step
        expected = torch.searchsorted(total[row], value.unsqueeze(1), right=True).squeeze(1)
        assert torch.equal(first_above(total, row, value), expected.clamp(max=size - 1))


def test_places_are_distinct_and_never_of_weight_zero_while_others_are_left() -> None:
    weight = torch.tensor([[0.0, 1.0, 1e-6, 5.0, 0.0, 2.0], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    place = draw_distinct(weight, 50, 4, rng(4))
    assert place.shape == (2, 50, 4)
    assert all(len(set(group)) == 4 for group in place.flatten(0, 1).tolist())
    assert set(place[0].flatten().tolist()) == {1, 2, 3, 5}
    assert bool((place[1, :, 0] == 0).all())


@pytest.mark.parametrize(
    "weights",
    [(0.5, 0.3, 0.15, 0.05), (0.9, 0.0999, 0.0001, 0.0), (0.9999994, 1e-7, 2e-7, 3e-7)],
    ids=["usual", "next to nothing left", "one rules"],
)
@pytest.mark.parametrize("size", [4, 32])  # one search among few places, another among many
def test_places_follow_successive_draws(weights: tuple[float, ...], size: int) -> None:
    weight = torch.zeros(size)
    weight[:: size // 4] = torch.tensor(weights)
    place = draw_distinct(weight.expand(20_000, size), 2, 2, rng(5)).flatten(0, 1)
    place = torch.div(place, size // 4, rounding_mode="floor")
    exact = torch.tensor(weights, dtype=torch.float64)
    expected = (exact.unsqueeze(1) * exact / (1 - exact).unsqueeze(1)).fill_diagonal_(0)
    assert_drawn_from(place[:, 0] * 4 + place[:, 1], expected.flatten(), least=1e-4)
