"""The factor on scores against the rate that it is measured for, and its limits."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from small import NONE, alike, build, normal, rng
from torch import Tensor

from dgl_dmns.core import (
    Blend,
    KnownEdges,
    NodeDistribution,
    PoolSettings,
    Rule,
    SelfAdversarial,
    Snapshot,
)

NODES, GROUPS = 600, 6


def clustered(scale: float) -> tuple[Tensor, KnownEdges]:
    """Embeddings whose inner products tell edges, within groups of nodes, from other pairs."""
    group = torch.arange(NODES) % GROUPS
    h = torch.nn.functional.one_hot(group, 16).float()
    h += 0.1 * normal(NODES, 16, seed=1)
    src = torch.randint(0, NODES, (3000,), generator=rng(2))
    dst = (src + GROUPS * torch.randint(1, NODES // GROUPS, (3000,), generator=rng(3))) % NODES
    return h * scale, KnownEdges(src, dst, NODES)


def unrelated(scale: float) -> tuple[Tensor, KnownEdges]:
    """Embeddings that know nothing of the edges."""
    src, dst = torch.randint(0, NODES, (2, 3000), generator=rng(4))
    return scale * normal(NODES, 16, seed=5), KnownEdges(src, dst, NODES)


def measured(
    rule: Rule, h: Tensor, known: KnownEdges, refreshes: int = 0, seed: int = 6
) -> tuple[Rule, Snapshot]:
    snapshot = Snapshot(h, h, known, None, None)
    return rule.measured(snapshot, refreshes=refreshes, generator=rng(seed)), snapshot


def sharp(h: Tensor, known: KnownEdges, ratio: float | None = 4.0) -> float:
    return measured(SelfAdversarial(edge_ratio=ratio), h, known)[0].measures()["sharpness"]


@pytest.mark.parametrize("ratio", [2.0, 4.0, None])
def test_known_edges_are_drawn_as_often_as_wanted(ratio: float | None) -> None:
    """On average over all known edges, with a pool of all nodes."""
    rule, snapshot = measured(SelfAdversarial(edge_ratio=ratio), *clustered(0.1))
    src = torch.arange(NODES).repeat_interleave(snapshot.known.degrees())
    made = NodeDistribution(rule, PoolSettings(pool=NODES), snapshot)
    found = float(made.log_ratio(src, snapshot.known.indices.long()).mean())
    factor = rule.measures()["sharpness"]
    if ratio is None:
        assert found < 0.1
        assert factor == 1.0
    else:
        assert found == pytest.approx(math.log(ratio), abs=0.25)
        assert factor > 10


def test_what_is_drawn_does_not_depend_on_the_size_of_the_scores() -> None:
    small, large = sharp(*clustered(0.05)), sharp(*clustered(0.1))
    assert small == pytest.approx(4 * large, rel=1e-3)


def test_scores_that_are_sharp_enough_stay_as_they_are() -> None:
    assert sharp(*clustered(3.0)) == 1.0


def test_where_scores_cannot_tell_edges_their_spread_bounds_the_factor() -> None:
    h, known = unrelated(0.1)
    spread = float((h @ h.T).fill_diagonal_(0).std())
    assert sharp(h, known, 8.0) == pytest.approx(4 / spread, rel=0.15)
    assert sharp(unrelated(10.0)[0], known, 8.0) == 1.0


def test_where_there_is_nothing_to_measure_scores_stay_as_they_are() -> None:
    h, known = clustered(0.1)
    assert sharp(torch.ones(NODES, 2), known) == 1.0
    assert sharp(h.fill_(math.nan), known) == 1.0
    assert sharp(unrelated(0.1)[0], KnownEdges(NONE, NONE, NODES)) == 1.0
    every = torch.arange(2)
    complete = KnownEdges(every.repeat(2), every.repeat_interleave(2), 2)
    assert sharp(torch.eye(2), complete) == 1.0


def test_a_table_is_drawn_with_it_and_says_so() -> None:
    h, known = clustered(0.1)
    table = alike(NODES, 2, 3)

    def built(rule: Rule) -> tuple[float, float]:
        """The factor, and the mean score of what was drawn."""
        report = build(table, rule, PoolSettings(pool=64), known, h, h, generator=rng(6))
        ids = table.current().ids.view(NODES, -1).long()
        return report.sharpness, float((h.unsqueeze(1) * h[ids]).sum(-1).mean())

    rule = SelfAdversarial(edge_ratio=4.0)
    factor, sharper = built(measured(rule, h, known)[0])
    assert factor == sharp(h, known)
    assert built(rule) == built(SelfAdversarial())
    assert sharper > 2 * built(rule)[1]


@pytest.mark.parametrize(
    ("refreshes", "scale", "warned"), [(20, 1e-2, True), (19, 1e-2, False), (20, 0.1, False)]
)
def test_scores_that_stay_flat_give_a_warning(refreshes: int, scale: float, warned: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        measured(Blend(0.8, edge_ratio=4.0), *unrelated(scale), refreshes)
    assert ["hardly differ" in str(one.message) for one in caught] == [True] * warned
