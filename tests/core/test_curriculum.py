"""Curricula over the hardness levels."""

from __future__ import annotations

import pytest

from dgl_dmns.core import EasyFirst, HardFirst


def test_levels_join_one_after_the_other() -> None:
    easy = [EasyFirst(2)(refresh, 3) for refresh in range(7)]
    hard = [HardFirst(2)(refresh, 3) for refresh in range(7)]
    assert easy == [(0, 0, 1)] * 2 + [(0, 1, 1)] * 2 + [(1, 1, 1)] * 3
    assert hard == [(1, 0, 0)] * 2 + [(1, 1, 0)] * 2 + [(1, 1, 1)] * 3


@pytest.mark.parametrize("kind", [EasyFirst, HardFirst])
def test_a_stage_has_at_least_one_refresh(kind: type) -> None:
    with pytest.raises(ValueError, match="stage: expected at least 1 refresh for each level"):
        kind(0)
