"""The bitmap of pairs: nothing in the set is ruled out, and most of the rest is."""

from __future__ import annotations

import pytest
import torch

from dgl_dmns.core import KnownEdges, PairBitmap, bitmap


@pytest.mark.parametrize("pairs", [0, 1, 9, 5000, 40_000])
@pytest.mark.parametrize("nodes", [1000, 3_000_000_000])
def test_pairs_of_the_set_are_never_ruled_out_and_most_others_are(pairs: int, nodes: int) -> None:
    generator = torch.Generator().manual_seed(pairs)
    first, second = torch.randint(0, nodes, (2, pairs), generator=generator)
    found = PairBitmap(first, second)
    assert found.useful
    assert found.may_contain(first, second).all()
    other = torch.randint(nodes, 2 * nodes, (2, 20_000), generator=generator)
    assert float(found.may_contain(other[0], other[1]).float().mean()) < 0.14
    # Pairs next to each other, as in a grid, are spread over the slots too.
    side = torch.arange(nodes, nodes + 200)
    grid = found.may_contain(side.unsqueeze(1), side.unsqueeze(0))
    assert grid.shape == (200, 200)
    assert float(grid.float().mean()) < 0.14


def test_a_set_too_large_has_no_bitmap(monkeypatch: pytest.MonkeyPatch) -> None:
    src, dst = torch.randint(0, 50, (2, 200), generator=torch.Generator().manual_seed(0))
    everyone = torch.arange(50)
    usual = KnownEdges(src, dst, 50)
    monkeypatch.setattr(bitmap, "_SLOTS", 64)
    without = KnownEdges(src, dst, 50)
    assert usual.bitmap.useful
    assert not without.bitmap.useful
    found = [k.contains(everyone.unsqueeze(1), everyone.unsqueeze(0)) for k in (usual, without)]
    assert torch.equal(*found)
    assert bool(usual.contains(src[0], dst[0])) is True  # single pairs, without a dimension
