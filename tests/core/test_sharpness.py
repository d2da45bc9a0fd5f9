"""The factor on scores against the rate that it is measured for, and its limits."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from dgl_dmns.core import (
    Blend,
    CandidateTable,
    KnownEdges,
    NodeDistribution,
    PoolSettings,
    SelfAdversarial,
    Snapshot,
    build_table,
    sharpened,
)

NODES, GROUPS = 600, 6


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clustered(scale: float) -> tuple[Tensor, KnownEdges]:
    """Embeddings whose inner products tell edges, within groups of nodes, from other pairs."""
    group = torch.arange(NODES) % GROUPS
    h = torch.nn.functional.one_hot(group, 16).float()
    h += 0.1 * torch.randn(NODES, 16, generator=rng(1))
    src = torch.randint(0, NODES, (3000,), generator=rng(2))
    dst = (src + GROUPS * torch.randint(1, NODES // GROUPS, (3000,), generator=rng(3))) % NODES
    return h * scale, KnownEdges(src, dst, NODES)


def unrelated(scale: float) -> tuple[Tensor, KnownEdges]:
    """Embeddings that know nothing of the edges."""
    src, dst = torch.randint(0, NODES, (2, 3000), generator=rng(4))
    return scale * torch.randn(NODES, 16, generator=rng(5)), KnownEdges(src, dst, NODES)


def sharp(h: Tensor, known: KnownEdges, ratio: float | None = 4.0, seed: int = 6) -> Snapshot:
    rule = SelfAdversarial(edge_ratio=ratio)
    return sharpened(Snapshot.take(h, h, known, None, None), rule, generator=rng(seed))


def mean_log_ratio(snapshot: Snapshot) -> float:
    """Of all known edges, with a pool of all nodes."""
    known = snapshot.known
    src = torch.arange(NODES).repeat_interleave(known.degrees())
    made = NodeDistribution(SelfAdversarial(), PoolSettings(pool=NODES), snapshot)
    return float(made.log_ratio(src, known.indices.long()).mean())


@pytest.mark.parametrize("ratio", [2.0, 4.0])
def test_known_edges_are_drawn_as_often_as_wanted(ratio: float) -> None:
    snapshot = sharp(*clustered(0.1), ratio)
    assert snapshot.sharpness > 10
    assert mean_log_ratio(snapshot) == pytest.approx(math.log(ratio), abs=0.25)
    assert mean_log_ratio(sharp(*clustered(0.1), None)) < 0.1


def test_what_is_drawn_does_not_depend_on_the_size_of_the_scores() -> None:
    small, large = sharp(*clustered(0.05)), sharp(*clustered(0.1))
    assert small.sharpness == pytest.approx(4 * large.sharpness, rel=1e-3)


def test_scores_that_are_sharp_enough_stay_as_they_are() -> None:
    assert sharp(*clustered(3.0)).sharpness == 1.0


def test_where_scores_cannot_tell_edges_their_spread_bounds_the_factor() -> None:
    h, known = unrelated(0.1)
    spread = float((h @ h.T).fill_diagonal_(0).std())
    assert sharp(h, known, 8.0).sharpness == pytest.approx(4 / spread, rel=0.15)
    assert sharp(unrelated(10.0)[0], known, 8.0).sharpness == 1.0


def test_where_there_is_nothing_to_measure_scores_stay_as_they_are() -> None:
    h, known = clustered(0.1)
    assert sharp(torch.ones(NODES, 2), known).sharpness == 1.0
    assert sharp(h.fill_(math.nan), known).sharpness == 1.0
    none = torch.empty(0, dtype=torch.int64)
    assert sharp(unrelated(0.1)[0], KnownEdges(none, none, NODES)).sharpness == 1.0
    every = torch.arange(2)
    complete = KnownEdges(every.repeat(2), every.repeat_interleave(2), 2)
    assert sharp(torch.eye(2), complete).sharpness == 1.0


def test_the_gate_is_not_sharpened_and_the_softmax_of_a_blend_is() -> None:
    score, ratio = torch.randn(2, 5, 20, generator=rng(8))
    (soft,) = SelfAdversarial(edge_ratio=8.0).parts(score, None, 3.0)
    torch.testing.assert_close(soft.logits, 3 * score)
    flat, sharper = (Blend(0.4).parts(score, ratio, by) for by in (1.0, 3.0))
    torch.testing.assert_close(sharper[0].logits, flat[0].logits)
    torch.testing.assert_close(sharper[1].logits, 3 * flat[1].logits)


def test_a_table_says_what_it_was_drawn_with() -> None:
    h, known = clustered(0.1)
    table = CandidateTable(torch.full((NODES,), 2), 3)
    settings = PoolSettings(pool=64)

    def built(rule: SelfAdversarial, sharpness: float | None = None) -> tuple[float, float]:
        """The factor, and the mean score of what was drawn."""
        report = build_table(
            table, rule, settings, known, h, h, sharpness=sharpness, generator=rng(6)
        )
        ids = table.current().ids.view(NODES, -1).long()
        return report.sharpness, float((h.unsqueeze(1) * h[ids]).sum(-1).mean())

    measured, sharper = built(SelfAdversarial(edge_ratio=4.0))
    as_it_is, flat = built(SelfAdversarial())
    assert measured == sharp(h, known).sharpness
    assert as_it_is == 1.0
    assert sharper > 2 * flat
    assert built(SelfAdversarial(edge_ratio=4.0), 1.0) == (1.0, flat)


@pytest.mark.parametrize("ratio", [1.0, 0.0, -2.0, math.nan, math.inf])
def test_a_ratio_has_to_be_above_one(ratio: float) -> None:
    for rule in (Blend, SelfAdversarial):
        with pytest.raises(ValueError, match="edge_ratio"):
            rule(edge_ratio=ratio)


def test_a_temperature_and_a_ratio_exclude_one_another() -> None:
    with pytest.raises(ValueError, match="temperature"):
        SelfAdversarial(0.5, edge_ratio=4.0)


@pytest.mark.parametrize(
    ("refreshes", "scale", "warned"), [(20, 1e-2, True), (19, 1e-2, False), (20, 0.1, False)]
)
def test_scores_that_stay_flat_give_a_warning(refreshes: int, scale: float, warned: bool) -> None:
    h, known = unrelated(scale)
    snapshot = Snapshot.take(h, h, known, None, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sharpened(snapshot, Blend(0.8, edge_ratio=4.0), refreshes=refreshes, generator=rng(6))
    assert ["hardly differ" in str(one.message) for one in caught] == [True] * warned
