"""Two options of `DMNSSampler`: where sources come from, and levels that join over time."""

from __future__ import annotations

import pickle
from typing import Any

import dgl
import pytest
import torch
from dgl.dataloading import DataLoader, NeighborSampler, as_edge_prediction_sampler
from scipy.stats import chisquare
from torch import Tensor

from dgl_dmns import DMNSSampler
from dgl_dmns.core import Density, EasyFirst, HardFirst, KnownEdges
from dgl_dmns.samplers import DynamicSampler, SelfAdversarialSampler

NODES = 30
SMALL: dict[str, Any] = {"warmup_steps": 5, "fit_steps": 2, "batch_pairs": 64, "groups": 4}


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


H = torch.randn(NODES, 4, generator=rng(0))


def graph() -> Any:
    src = torch.randint(0, 6, (80,), generator=rng(1))  # sources of edges are few
    return dgl.graph((src, torch.randint(0, NODES, (80,), generator=rng(2))), num_nodes=NODES)


def make(g: Any, **arguments: Any) -> DMNSSampler:
    return DMNSSampler(g, lambda: H, 3, **{**SMALL, **arguments})


@pytest.mark.parametrize("refreshed", [False, True])
@pytest.mark.parametrize("idtype", [torch.int64, torch.int32])
def test_uniform_sources(idtype: torch.dtype, refreshed: bool) -> None:
    g = graph().astype(idtype)
    sampler = make(g, source="uniform", generator=rng(3))
    if refreshed:
        sampler.refresh()
    eids = torch.arange(80, dtype=idtype)
    src, dst = (torch.cat(ends) for ends in zip(*(sampler(g, eids) for _ in range(20))))
    assert src.dtype == dst.dtype == idtype
    assert src.shape == dst.shape == (20 * 80 * 3,)
    counts = torch.bincount(src.long(), minlength=NODES)
    assert chisquare(counts.numpy()).pvalue > 1e-4
    known = KnownEdges(*g.edges(), NODES)
    assert not bool(known.contains(src.long(), dst.long()).any())
    assert not bool((src == dst).any())
    if refreshed:  # half of the destinations are uniform, the others come from the source's row
        held = float(sampler.table.holds(src.long(), dst.long()).float().mean())
        row = sampler.table.current().ids.view(NODES, -1)
        share = torch.tensor([len(set(ids)) for ids in row.tolist()]) / (
            known.admissible_count(torch.arange(NODES))
        )
        assert held == pytest.approx(0.5 + 0.5 * float(share.mean()), abs=0.03)


def test_uniform_sources_follow_the_same_conditional_distribution() -> None:
    g = graph()
    ratios = []
    for source in ("edge", "uniform"):
        sampler = make(g, rule=Density(), uniform_share=0.3, source=source, generator=rng(4))
        sampler.refresh()
        src, dst = sampler(g, torch.arange(80))
        ratios.append(sampler.log_ratio((src, dst)))
        assert bool((ratios[-1] != 0).all())
    assert ratios[0].shape == ratios[1].shape


def test_uniform_sources_in_a_loader() -> None:
    g = graph()
    g.ndata["feat"] = H
    sampler = make(g, source="uniform")
    sampler.refresh()
    loader = DataLoader(
        g,
        torch.arange(80),
        as_edge_prediction_sampler(NeighborSampler([3]), negative_sampler=sampler),
        batch_size=40,
        num_workers=2,
    )
    for _, positive, negative, _ in loader:
        assert negative.num_edges() == 3 * positive.num_edges()
        ends = [negative.ndata[dgl.NID][end] for end in negative.edges()]
        assert int(ends[0].max()) > 5  # sources that no edge has
        assert sampler.log_ratio(negative).shape == (negative.num_edges(),)


def test_no_edges_no_negatives() -> None:
    src, dst = make(graph(), source="uniform")(graph(), torch.zeros(0, dtype=torch.int64))
    assert src.shape == dst.shape == (0,)


@pytest.mark.parametrize("kind", [DMNSSampler, DynamicSampler, SelfAdversarialSampler])
def test_an_unknown_source(kind: Any) -> None:
    with pytest.raises(ValueError, match="source: expected 'edge' or 'uniform', got 'both'"):
        kind(graph(), lambda: H, 3, source="both")


def levels_in(sampler: DMNSSampler) -> set[int]:
    level: Tensor = sampler.table.current().level
    return set(level.unique().tolist())


@pytest.mark.parametrize(("curriculum", "first"), [(EasyFirst(2), 3), (HardFirst(2), 0)])
def test_levels_join_as_refreshes_go_on(curriculum: Any, first: int) -> None:
    sampler = make(
        graph(), rule=Density(), uniform_share=0.0, curriculum=curriculum, groups=16, lam=0.1
    )
    seen = []
    for _ in range(7):
        sampler.refresh()
        seen.append(levels_in(sampler))
    assert seen[0] == seen[1] == {first}
    assert len(seen[2]) == 2
    assert first in seen[2]
    assert seen[6] == {0, 1, 2, 3}


def test_a_curriculum_of_ones_own_and_of_the_wrong_length() -> None:
    sampler = make(graph(), rule=Density(), uniform_share=0.0, curriculum=lambda r, n: [0, 1, 0, 0])
    sampler.refresh()
    assert levels_in(sampler) == {1}
    assert sampler.levels.mixture_shares == (0.25,) * 4  # the argument stays as it is
    wrong = make(graph(), curriculum=lambda r, n: [1, 1])
    with pytest.raises(ValueError, match="levels: expected 4 shares, got 2"):
        wrong.refresh()
    assert wrong.version == 0


def test_a_sampler_with_a_curriculum_goes_to_workers_and_resumes() -> None:
    g = graph()
    first, second = (
        make(g, rule=Density(), curriculum=lambda r, n: [r + 1, 1, 1, 1]) for _ in "ab"
    )
    pickle.loads(pickle.dumps(first))  # a lambda would not pickle
    for _ in range(2):
        first.refresh()
    second.load_state_dict(first.state_dict())
    first.refresh()
    second.refresh()
    assert torch.equal(first.table.current().ids, second.table.current().ids)
