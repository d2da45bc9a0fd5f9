"""Whose graph is it: graphs whose nodes have other numbers than those of the sampler's."""

from __future__ import annotations

import warnings
from typing import Any, Callable

import dgl
import pytest
import torch
from shared import FOLLOWING, KINDS, loader, make, pickled, refreshed, rng, same, seed

NODES, EDGES, K = 60, 240, 3
FORTY = torch.arange(40)


def whole(nodes: int = NODES, idtype: torch.dtype = torch.int64) -> Any:
    key = torch.randperm(nodes * nodes, generator=rng(1))[:EDGES]
    return dgl.graph((key // nodes, key % nodes), num_nodes=nodes, idtype=idtype)


def renumbered(g: Any) -> Any:
    """The same edges under other ids, with as many nodes."""
    place = torch.randperm(NODES, generator=rng(2)).to(g.idtype)
    return dgl.graph(tuple(place[ends.long()] for ends in g.edges()), num_nodes=NODES)


def silent(call: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


@pytest.mark.parametrize("name", KINDS)
def test_as_many_nodes_under_other_ids_give_one_warning(name: str) -> None:
    g = whole()
    sampler = make(name, renumbered(g))
    with pytest.warns(UserWarning, match=rf"^{type(sampler).__name__}: \d+ of the 64 edges") as got:
        for _ in range(3):
            sampler(g, torch.arange(64))
    said = [one for one in got if "number its nodes otherwise" in str(one.message)]
    assert len(said) == 1
    assert said[0].filename == __file__
    assert "relabel_nodes=False" in str(said[0].message)


@pytest.mark.parametrize("idtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("name", KINDS)
def test_another_number_of_nodes_is_refused(name: str, idtype: torch.dtype) -> None:
    g = whole(idtype=idtype)
    chosen = (g.edges()[0] > 2) & (g.edges()[1] > 2)
    train = chosen.nonzero().squeeze(1).to(idtype)
    sub = dgl.edge_subgraph(g, train)  # which renumbers nodes
    assert sub.num_nodes() < NODES
    with pytest.raises(ValueError, match="^g: "):
        make(name, sub)(g, train[:64])


def test_what_a_whole_loader_gets() -> None:
    """Items without a training edge are dropped: all later ids move."""
    key = torch.randperm(50 * 40)[:600]
    g = dgl.heterograph(
        {("user", "buys", "item"): (key // 40, key % 40)}, num_nodes_dict={"user": 50, "item": 40}
    )
    item = key % 40
    train = ((item != 0) & (item != 5)).nonzero().squeeze(1)
    sampler = refreshed("dynamic", dgl.edge_subgraph(g, train))
    with pytest.raises(ValueError, match="^g: .*unknown.*50 and 40 nodes.*for 50 and 38"):
        next(iter(loader(g, sampler, 0, train, batch_size=64, shuffle=False)))
    with pytest.raises(ValueError, match="^g: .*number its nodes otherwise"):
        sampler.for_queries(g, torch.arange(5))


def test_graphs_of_the_same_numbering_are_silent() -> None:
    g = whole()
    some = dgl.edge_subgraph(g, torch.arange(200), relabel_nodes=False)
    for made, called in ((g, g), (some, g), (g, some), (g, g.clone()), (g, dgl.add_self_loop(g))):
        for name in ("uniform", "dynamic"):
            sampler = make(name, made)
            count = called.num_edges()
            silent(lambda s=sampler, c=called, n=count: [s(c, torch.arange(n)) for _ in range(2)])
            silent(lambda s=sampler, c=called: s.for_queries(c, torch.arange(9)))


def test_half_of_the_edges_in_common_says_nothing_while_the_asked_ones_are_known() -> None:
    """Both directions known, a loader of one direction with held-out edges behind."""
    g = whole()
    some = dgl.edge_subgraph(g, torch.arange(200), relabel_nodes=False)
    sampler = make("uniform", dgl.add_reverse_edges(some))
    silent(lambda: sampler(g, torch.arange(200)))
    with pytest.warns(UserWarning, match=r"\d\d of the 40 edges asked for are unknown"):
        sampler(g, torch.arange(200, 240))


def test_every_new_graph_is_looked_at_and_a_copy_starts_anew() -> None:
    g = whole()
    sampler = make("uniform", g)
    copied = pickled(sampler)
    for one in (sampler, copied):
        silent(lambda s=one: s(g, torch.arange(9)))
        with pytest.warns(UserWarning, match="number its nodes otherwise"):
            one(renumbered(g), torch.arange(64))


def test_the_look_takes_no_draws_of_the_training() -> None:
    g = whole()
    sampler = make("uniform", g)
    drawn = []
    for one in (g, g.clone()):
        seed(3)
        drawn.append(sampler(one, torch.arange(20)))
    assert same(*drawn)


def test_later_calls_look_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    g = whole()
    sampler = refreshed("dynamic", g)
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
    sampler = make("uniform", g)
    silent(lambda: sampler(Partitioned(g), torch.arange(64)))
    with pytest.warns(UserWarning, match="number its nodes otherwise"):
        sampler(Partitioned(renumbered(g)), torch.arange(64))


def test_a_graph_that_grew_and_lost_edges_needs_update_graph() -> None:
    g = whole()
    sampler = make("dynamic", g)
    new = dgl.add_edges(dgl.remove_edges(g, torch.arange(5)), torch.arange(9), torch.arange(9) + 9)
    with pytest.warns(UserWarning, match=r"update_graph\(g\)"):
        sampler(new, torch.arange(new.num_edges()))
    sampler.update_graph(new)
    silent(lambda: sampler(new, torch.arange(new.num_edges())))


@pytest.mark.parametrize("name", FOLLOWING)
def test_a_state_of_another_graph_is_refused(name: str, tmp_path: Any) -> None:
    """As many nodes and edges, and a first table that would pass: none was drawn yet."""
    g = whole()
    other = make(name, renumbered(g))
    sampler = make(name, g)
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
    assert same(before, sampler.state_dict())
    assert before["edges"] == sampler.known.fingerprint()
