"""Whose graph is it: graphs whose nodes have other numbers than those of the sampler's."""

from __future__ import annotations

import pickle
import warnings
from typing import Any, Callable

import dgl
import pytest
import torch
from dgl.dataloading import DataLoader, NeighborSampler, as_edge_prediction_sampler
from torch import Tensor

from dgl_dmns.samplers import (
    AdversarialSampler,
    DMNSSampler,
    DynamicSampler,
    InBatchSampler,
    MCNSSampler,
    PopularitySampler,
    UniformSampler,
)

pytestmark = pytest.mark.filterwarnings("ignore:Dataloader CPU affinity")

NODES, EDGES, K = 60, 240, 3
SMALL: dict[str, Any] = {"groups": 2, "warmup_steps": 3, "fit_steps": 2}
MAKE: dict[str, Callable[[Any], Any]] = {
    "uniform": lambda g: UniformSampler(g, K),
    "popularity": lambda g: PopularitySampler(g, K),
    "in-batch": lambda g: InBatchSampler(g, K),
    "dynamic": lambda g: DynamicSampler(g, encoder, K, groups=2),
    "mcns": lambda g: MCNSSampler(g, encoder, K, steps=2, width=10),
    "adversarial": lambda g: AdversarialSampler(g, encoder, K, batch_queries=16, **SMALL),
    "dmns": lambda g: DMNSSampler(g, encoder, K, batch_pairs=64, **SMALL),
}


def encoder(g: Any) -> Tensor:
    return torch.randn(g.num_nodes(), 4, generator=torch.Generator().manual_seed(0))


def whole(nodes: int = NODES, idtype: torch.dtype = torch.int64) -> Any:
    source = torch.Generator().manual_seed(1)
    key = torch.randperm(nodes * nodes, generator=source)[:EDGES]
    return dgl.graph((key // nodes, key % nodes), num_nodes=nodes, idtype=idtype)


def renumbered(g: Any) -> Any:
    """The same edges under other ids, with as many nodes."""
    place = torch.randperm(NODES, generator=torch.Generator().manual_seed(2)).to(g.idtype)
    return dgl.graph(tuple(place[ends.long()] for ends in g.edges()), num_nodes=NODES)


def silent(call: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


@pytest.mark.parametrize("name", MAKE)
def test_as_many_nodes_under_other_ids_give_one_warning(name: str) -> None:
    g = whole()
    sampler = MAKE[name](renumbered(g))
    with pytest.warns(UserWarning, match=rf"^{type(sampler).__name__}: \d+ of the 64 edges") as got:
        for _ in range(3):
            sampler(g, torch.arange(64))
    said = [one for one in got if "number its nodes otherwise" in str(one.message)]
    assert len(said) == 1
    assert said[0].filename == __file__
    assert "relabel_nodes=False" in str(said[0].message)


@pytest.mark.parametrize("idtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("name", MAKE)
def test_another_number_of_nodes_is_refused(name: str, idtype: torch.dtype) -> None:
    g = whole(idtype=idtype)
    chosen = (g.edges()[0] > 2) & (g.edges()[1] > 2)
    train = chosen.nonzero().squeeze(1).to(idtype)
    sub = dgl.edge_subgraph(g, train)  # which renumbers nodes
    assert sub.num_nodes() < NODES
    with pytest.raises(ValueError, match="^g: "):
        MAKE[name](sub)(g, train[:64])


def test_what_a_whole_loader_gets() -> None:
    """Items without a training edge are dropped: all later ids move."""
    source = torch.Generator().manual_seed(0)
    key = torch.randperm(50 * 40, generator=source)[:600]
    g = dgl.heterograph(
        {("user", "buys", "item"): (key // 40, key % 40)}, num_nodes_dict={"user": 50, "item": 40}
    )
    item = key % 40
    train = ((item != 0) & (item != 5)).nonzero().squeeze(1)
    h = {"user": torch.randn(50, 4), "item": torch.randn(38, 4)}
    sampler = DynamicSampler(dgl.edge_subgraph(g, train), lambda: h, K)
    sampler.refresh()
    ours = as_edge_prediction_sampler(NeighborSampler([2]), negative_sampler=sampler)
    with pytest.raises(ValueError, match="^g: .*unknown.*50 and 40 nodes.*for 50 and 38"):
        next(iter(DataLoader(g, train, ours, batch_size=64)))
    with pytest.raises(ValueError, match="^g: .*number its nodes otherwise"):
        sampler.for_queries(g, torch.arange(5))


def test_graphs_of_the_same_numbering_are_silent() -> None:
    g = whole()
    some = dgl.edge_subgraph(g, torch.arange(200), relabel_nodes=False)
    for made, called in ((g, g), (some, g), (g, some), (g, g.clone()), (g, dgl.add_self_loop(g))):
        for name in ("uniform", "dynamic"):
            sampler = MAKE[name](made)
            count = called.num_edges()
            silent(lambda s=sampler, c=called, n=count: [s(c, torch.arange(n)) for _ in range(2)])
            silent(lambda s=sampler, c=called: s.for_queries(c, torch.arange(9)))


def test_half_of_the_edges_in_common_says_nothing_while_the_asked_ones_are_known() -> None:
    """Both directions known, a loader of one direction with held-out edges behind."""
    g = whole()
    some = dgl.edge_subgraph(g, torch.arange(200), relabel_nodes=False)
    sampler = UniformSampler(dgl.add_reverse_edges(some), K)
    silent(lambda: sampler(g, torch.arange(200)))
    with pytest.warns(UserWarning, match=r"\d\d of the 40 edges asked for are unknown"):
        sampler(g, torch.arange(200, 240))


def test_every_new_graph_is_looked_at_and_a_copy_starts_anew() -> None:
    g = whole()
    sampler = UniformSampler(g, K)
    copied = pickle.loads(pickle.dumps(sampler))
    for one in (sampler, copied):
        silent(lambda s=one: s(g, torch.arange(9)))
        with pytest.warns(UserWarning, match="number its nodes otherwise"):
            one(renumbered(g), torch.arange(64))


def test_the_look_takes_no_draws_of_the_training() -> None:
    g = whole()
    sampler = UniformSampler(g, K)
    torch.manual_seed(3)
    first = sampler(g, torch.arange(20))
    torch.manual_seed(3)
    again = sampler(g.clone(), torch.arange(20))
    assert all(map(torch.equal, first, again))


def test_later_calls_look_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    g = whole()
    sampler = DynamicSampler(g, encoder, K)
    sampler.refresh()
    copied = g.clone()
    sampler(copied, torch.arange(9))

    def forbidden(*_: Any) -> Any:
        raise AssertionError("looked up again")

    monkeypatch.setattr(type(sampler.known), "contains", forbidden)
    sampler(copied, torch.arange(9))


def test_a_graph_that_cannot_be_asked_has_its_edges_looked_up() -> None:
    """As a partitioned graph, which has no `has_edges_between`."""

    class Partitioned:
        def __init__(self, g: Any) -> None:
            self.g = g

        def __getattr__(self, name: str) -> Any:
            if name == "has_edges_between":
                raise AttributeError(name)
            return getattr(self.__dict__["g"], name)

    g = whole()
    sampler = UniformSampler(g, K)
    silent(lambda: sampler(Partitioned(g), torch.arange(64)))
    with pytest.warns(UserWarning, match="number its nodes otherwise"):
        sampler(Partitioned(renumbered(g)), torch.arange(64))


def test_a_graph_that_grew_and_lost_edges_needs_update_graph() -> None:
    g = whole()
    sampler = DynamicSampler(g, encoder, K)
    new = dgl.add_edges(dgl.remove_edges(g, torch.arange(5)), torch.arange(9), torch.arange(9) + 9)
    with pytest.warns(UserWarning, match=r"update_graph\(g\)"):
        sampler(new, torch.arange(new.num_edges()))
    sampler.update_graph(new)
    silent(lambda: sampler(new, torch.arange(new.num_edges())))


@pytest.mark.parametrize("name", ["dynamic", "dmns", "mcns", "adversarial"])
def test_a_state_of_another_graph_is_refused(name: str, tmp_path: Any) -> None:
    """As many nodes and edges, and a first table that would pass: none was drawn yet."""
    g = whole()
    other = MAKE[name](renumbered(g))
    sampler = MAKE[name](g)
    sampler.refresh()
    before = sampler.state_dict()
    other.save(tmp_path / "other")
    for load in (
        lambda: sampler.load(tmp_path / "other"),
        lambda: sampler.load_state_dict(other.state_dict()),
    ):
        with pytest.raises(ValueError, match="^state: made for other known edges") as caught:
            load()
        assert "\n" not in str(caught.value)
    after = sampler.state_dict()
    assert torch.equal(before["table"]["ids"], after["table"]["ids"])
    assert before["edges"] == after["edges"] == sampler.known.fingerprint()
