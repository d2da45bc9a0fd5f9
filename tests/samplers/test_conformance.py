"""One suite for every sampler: the contract in `dgl_dmns/samplers/base.py`.

A new public sampler has to be added to `shared.KINDS`; `test_every_public_sampler_is_in_this_suite`
fails until it is. DGL's own samplers go through the suite too, without the checks they do not claim
to pass: each exemption is shown to be needed by a test at the end.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import dgl
import pytest
import shared
import torch
from dgl.dataloading import negative_sampler as theirs
from shared import (
    BUYS,
    FOLLOWING,
    KINDS,
    WIDTH,
    barred,
    check,
    embed,
    ends,
    graph,
    loader,
    make,
    normal,
    optimizer,
    pairs,
    pickled,
    refreshed,
    rng,
    same,
    seed,
    shop,
)

import dgl_dmns
from dgl_dmns import samplers

OURS = list(KINDS)
# Filters nothing, and checks no arguments.
PER_SOURCE = "dgl per source"
# Filters, but replaces the source too, returns fewer than k where it finds no more, and fails on an
# empty request.
GLOBAL = "dgl global"
ALL = [*OURS, PER_SOURCE, GLOBAL]
TYPED = [name for name in ALL if name not in ("mcns", "adversarial")]
OUR_TYPED = [name for name in TYPED if name in OURS]
BASES = {samplers.NegativeSampler, samplers.RefreshingSampler}
"""Public classes to derive from, which choose nothing themselves."""
EIDS = torch.arange(120)


def build(name: str, g: Any, k: int = 3) -> Any:
    """A sampler that is ready: refreshed where there is something to refresh."""
    if name in OURS:
        return refreshed(name, g, k=k)
    return {PER_SOURCE: theirs.PerSourceUniform, GLOBAL: theirs.GlobalUniform}[name](k)


def both_ways(src: list[int], dst: list[int], count: int) -> Any:
    return dgl.graph((torch.tensor(src + dst), torch.tensor(dst + src)), num_nodes=count)


def complete_graph(count: int = 5) -> Any:
    src, dst = torch.nonzero(~torch.eye(count, dtype=torch.bool), as_tuple=True)
    return dgl.graph((src, dst), num_nodes=count)


GRAPHS: dict[str, Callable[[], Any]] = {
    "random": graph,
    "star and a node": lambda: both_ways([0] * 8, list(range(1, 9)), 10),
    "star": lambda: both_ways([0] * 8, list(range(1, 9)), 9),
    "two nodes": lambda: dgl.graph(([0], [1])),
    "isolated nodes": lambda: both_ways([0, 1], [1, 2], 20),
    "parallel edges": lambda: dgl.graph(([0, 0, 0, 1, 1, 2], [1, 1, 1, 2, 2, 0]), num_nodes=6),
    "self-loops": lambda: dgl.graph(([0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 1, 2]), num_nodes=5),
    "linked to all but one": lambda: both_ways([0] * 9, list(range(1, 10)), 11),
    "complete": complete_graph,
}


def test_every_public_sampler_is_in_this_suite() -> None:
    public = {getattr(samplers, name) for name in samplers.__all__}
    found = {c for c in public if isinstance(c, type) and issubclass(c, samplers.NegativeSampler)}
    assert found - BASES == {cls for cls, _ in KINDS.values()}
    for name in samplers.__all__:
        assert name in dgl_dmns.__all__
        assert getattr(dgl_dmns, name) is getattr(samplers, name)


# What is drawn.


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("name", ALL)
def test_exactly_k_grouped_in_range_and_filtered(name: str, kind: str) -> None:
    for g in (GRAPHS[kind](), GRAPHS[kind]().int()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            sampler = build(name, g)
        # Ours warn at construction if a node has no admissible other, and only then.
        assert {w.filename for w in caught} <= {shared.__file__}
        assert bool(caught) == (name in OURS and bool(barred(g).all(dim=1).any()))
        assert all("no true negative exists" in str(w.message) for w in caught)
        eids = torch.arange(g.num_edges(), dtype=g.idtype).repeat(3)
        src, dst = sampler(g, eids)
        assert src.dtype == dst.dtype == g.idtype
        assert src.device == dst.device == eids.device
        assert src.shape == dst.shape
        assert ((dst >= 0) & (dst < g.num_nodes())).all()
        if name == GLOBAL:
            assert src.numel() <= 3 * eids.numel()
        else:
            assert torch.equal(src, g.find_edges(eids)[0].repeat_interleave(3))
        if name != PER_SOURCE:
            check(g, src, dst)
        if name in OURS:
            chosen = sampler.for_queries(g, torch.arange(g.num_nodes(), dtype=g.idtype))
            assert chosen.dtype == g.idtype
            assert chosen.shape == (g.num_nodes(), 3)
            check(g, torch.arange(g.num_nodes()).repeat_interleave(3), chosen.flatten())


@pytest.mark.parametrize("name", FOLLOWING)
def test_before_the_first_refresh_negatives_are_filtered_uniform(name: str) -> None:
    g = graph()
    sampler = make(name, g, lambda: pytest.fail("not called"))
    assert sampler.version == 0
    drawn = []
    for one in (sampler, make("uniform", g)):
        seed()
        drawn.append(one(g, EIDS))
    check(g, *drawn[0])
    assert same(*drawn)
    if sampler.rule.tractable:
        assert not sampler.log_ratio(drawn[0]).any()


@pytest.mark.parametrize("name", [name for name in ALL if name != GLOBAL])
def test_zero_edges_are_legal(name: str) -> None:
    for g in (graph(), graph().int()):
        src, dst = build(name, g)(g, torch.zeros(0, dtype=g.idtype))
        assert src.shape == dst.shape == (0,)
        assert src.dtype == dst.dtype == g.idtype


@pytest.mark.parametrize("name", ALL)
def test_a_dict_becomes_a_dict_with_canonical_keys(name: str) -> None:
    g = graph()
    eids = torch.tensor([3, 1, 2])
    ((key, (src, _)),) = build(name, g)(g, {"_E": eids}).items()
    assert key == ("_N", "_E", "_N")
    if name != GLOBAL:
        assert torch.equal(src, g.find_edges(eids)[0].repeat_interleave(3))


@pytest.mark.parametrize("ready", [False, True], ids=["new", "refreshed"])
@pytest.mark.parametrize("idtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("name", TYPED)
def test_several_edge_types(name: str, idtype: torch.dtype, ready: bool) -> None:
    g = shop().astype(idtype)
    sampler = build(name, g) if ready or name not in OURS else make(name, g)
    eids = {"buys": torch.arange(5).to(idtype), ("user", "knows", "user"): torch.arange(3)}
    eids["user", "knows", "user"] = eids["user", "knows", "user"].to(idtype)
    if name != GLOBAL:
        eids["like"] = torch.arange(0).to(idtype)
    result = sampler(g, eids)
    assert set(result) == {g.to_canonical_etype(etype) for etype in eids}
    for etype, (src, dst) in result.items():
        assert src.dtype == dst.dtype == idtype
        assert (dst < g.num_nodes(etype[2])).all()
        mine = eids.get(etype, eids.get(etype[1]))
        if name != GLOBAL:
            assert torch.equal(src, g.find_edges(mine, etype=etype)[0].repeat_interleave(3))
        if name != PER_SOURCE:
            check(g, src, dst, etype)


@pytest.mark.parametrize("name", OUR_TYPED)
def test_query_nodes_of_several_edge_types(name: str) -> None:
    g = shop()
    sampler = build(name, g)
    for etype in g.canonical_etypes:
        nodes = torch.arange(g.num_nodes(etype[0]))
        if name in FOLLOWING and etype[1] == "like":  # no edges: nothing to learn from
            with pytest.raises(ValueError, match=r"^etype: no negatives for .*'like'.*etypes="):
                sampler.for_queries(g, nodes, etype)
            continue
        seed()
        chosen = sampler.for_queries(g, nodes, etype)  # "like" has no edges: uniform
        assert chosen.shape == (len(nodes), 3)
        check(g, nodes.repeat_interleave(3), chosen.flatten(), etype)
        seed()
        assert torch.equal(sampler.for_queries(g, nodes, etype[1]), chosen)
    with pytest.raises(ValueError, match=r"^etype: there are edge types .* name one of them"):
        sampler.for_queries(g, torch.arange(2))
    with pytest.raises(ValueError, match=r"^etype: no edge type of name 'sells' in .*; name one"):
        sampler.for_queries(g, torch.arange(2), "sells")


@pytest.mark.parametrize("name", OUR_TYPED)
def test_users_that_bought_everything_get_any_item(name: str) -> None:
    g = dgl.heterograph(
        {BUYS: ([0, 0, 1], [0, 1, 1]), ("user", "likes", "thing"): ([], [])},
        num_nodes_dict={"user": 2, "item": 2, "thing": 0},
    )
    with pytest.warns(UserWarning, match=r"^1 node\(s\), for example 0, .* they get any node"):
        sampler = build(name, g)
    drawn = sampler(g, {"buys": torch.arange(3), "likes": torch.arange(0)})
    dst = drawn[BUYS][1]
    assert ((dst >= 0) & (dst < 2)).all()
    assert (dst[6:] == 0).all()


@pytest.mark.parametrize("name", OURS)
def test_several_edge_types_are_refused_where_one_is_learnt(name: str) -> None:
    if name in TYPED:
        make(name, shop())
    else:
        with pytest.raises(ValueError, match="^g: expected one node type and one edge type"):
            make(name, shop())


# Loaders, seeds, copies.


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ALL)
def test_in_a_dgl_loader(name: str, workers: int) -> None:
    g = graph()
    count = 0
    for _, positive, negative, _ in loader(g, build(name, g), workers, batch_size=50):
        count += positive.num_edges()
        src, dst = ends(negative)
        if name != GLOBAL:
            assert torch.equal(src, ends(positive)[0].repeat_interleave(3))
        if name != PER_SOURCE:
            check(g, src, dst)
    assert count == g.num_edges()


@pytest.mark.parametrize(("workers", "idtype"), [(0, torch.int32), (2, torch.int64)])
@pytest.mark.parametrize("name", OUR_TYPED)
def test_several_edge_types_in_a_dgl_loader(name: str, idtype: torch.dtype, workers: int) -> None:
    """Users, items and tags, with the reverses that a message-passing pipeline has."""
    (buyer, bought), (item, tag) = pairs(30, 20, 90), pairs(20, 7, 25)
    edges = {
        BUYS: (buyer, bought),
        ("item", "bought by", "user"): (bought, buyer),
        ("item", "has", "tag"): (item, tag),
        ("tag", "of", "item"): (tag, item),
    }
    g = dgl.heterograph(edges, num_nodes_dict={"user": 30, "item": 20, "tag": 7}).astype(idtype)
    sampler = build(name, g)
    reverse = {"buys": "bought by", "bought by": "buys", "has": "of", "of": "has"}
    batches = loader(
        g,
        sampler,
        workers,
        {e: torch.arange(g.num_edges(e), dtype=idtype) for e in ("buys", "has")},
        exclude="reverse_types",
        reverse_etypes=reverse,
    )
    seen = 0
    for _, positive, negative, _ in batches:
        assert negative.canonical_etypes == g.canonical_etypes
        for etype in g.canonical_etypes:
            src, dst = ends(negative, etype)
            assert torch.equal(src, ends(positive, etype)[0].repeat_interleave(3))
            check(g, src, dst, etype)
            seen += src.numel()
        if name in FOLLOWING and sampler.rule.tractable:
            ratios = sampler.log_ratio(negative)
            assert {e: r.numel() for e, r in ratios.items()} == {
                e: negative.num_edges(e) for e in g.canonical_etypes
            }
    assert seen == 3 * (90 + 25)


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_result(name: str) -> None:
    g = graph()
    results = []
    for value in (7, 7, 8):
        sampler = build(name, g)
        seed(value)
        results.append([*sampler(g, EIDS[::2]), *sampler(g, EIDS[::2])])
        if name in FOLLOWING:  # edges may be served in turn, nodes are by chance
            results[-1].append(sampler.for_queries(g, torch.arange(40)))
    assert same(results[0], results[1])
    # The same table, another choice of groups: only a choice that is left over can differ.
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(results[0], results[2]))


@pytest.mark.parametrize("name", FOLLOWING)
def test_an_own_generator_leaves_the_global_one_alone(name: str) -> None:
    g = graph()
    results = []
    for value in (0, 1):
        seed(value)
        before = torch.get_rng_state()
        sampler = refreshed(name, g, generator=rng(5))
        results.append(sampler(g, EIDS))
        assert torch.equal(torch.get_rng_state(), before)
    assert same(*results)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
@pytest.mark.parametrize("name", ALL)
def test_copies_draw_alike_and_do_nothing_else(name: str, duplicate: Any) -> None:
    g = graph()
    sampler = build(name, g)
    other = duplicate(sampler)
    results = []
    for one in (sampler, other):
        seed()
        results.append(one(g, EIDS))
    assert same(*results)
    if name in OURS:
        assert repr(other) == repr(sampler)
    if name not in FOLLOWING:
        return
    calls: dict[str, Callable[[], Any]] = {
        "refresh": other.refresh,
        "state_dict": other.state_dict,
        "load_state_dict": lambda: other.load_state_dict({}),
        "update_graph": lambda: other.update_graph(g),
        "stats": other.stats,
        "wait": other.wait,
        "attach": lambda: other.attach(optimizer()),
    }
    if sampler.rule.tractable:
        calls["distribution"] = lambda: other.log_ratio(results[0])
    if name == "dmns":
        calls["generate"] = lambda: other.generate(normal(3, WIDTH))
        calls["for_embeddings"] = lambda: other.for_embeddings(normal(3, WIDTH))
    for asked, call in calls.items():
        with pytest.raises(RuntimeError, match=f"^{asked}: this is a copy of a sampler .* make a"):
            call()
    assert sampler.refresh().version == 2  # the original is left as it was


@pytest.mark.parametrize("name", OURS)
def test_repr_names_the_class_and_k(name: str) -> None:
    text = repr(build(name, graph()))
    assert text.startswith(f"{KINDS[name][0].__name__}(k=3")
    assert text.isprintable()
    assert len(text) < 200


# Arguments: the message names the argument, what was expected, what came, and what to do.


@pytest.mark.parametrize("name", OURS)
def test_arguments(name: str) -> None:
    for k in (0, -2):
        with pytest.raises(ValueError, match=f"^k: expected at least 1 negative per edge, got {k}"):
            make(name, graph(), k=k)
    for k in (1.0, "3", True, None):
        with pytest.raises(TypeError, match="^k: expected an integer, the negatives per edge, got"):
            make(name, graph(), k=k)
    with pytest.raises(ValueError, match="^g: expected at least one edge, the known positives"):
        make(name, dgl.graph(([], []), num_nodes=3))
    if name in FOLLOWING:
        with pytest.raises(TypeError, match=r"^encoder: expected an nn.Module or a callable .* Te"):
            KINDS[name][0](graph(), embed(graph()), 3)
    if name in FOLLOWING and name != "mcns":
        with pytest.raises(ValueError, match="^pool: expected at least k = 5 candidates, got 4"):
            make(name, graph(), k=5, pool=4)
    if name in ("mcns", "adversarial"):
        with pytest.raises(TypeError, match=f"^source: {KINDS[name][0].__name__} takes no such"):
            make(name, graph(), source="edge")
    if name in ("dynamic", "self-adversarial", "dmns"):
        with pytest.raises(ValueError, match="source: expected 'edge' or 'uniform', got 'both'"):
            make(name, graph(), source="both")


@pytest.mark.parametrize("name", OURS)
def test_ids(name: str) -> None:
    g = graph()
    sampler = build(name, g)
    for bad, said in ((-1, r"-1 \.\. 0"), (120, r"0 \.\. 120")):
        ids = torch.tensor([0, bad])
        with pytest.raises(
            ValueError, match=rf"^eids: expected edge ids in 0 \.\. 119, got {said}"
        ):
            sampler(g, ids)
        with pytest.raises(ValueError, match=r"^nodes: expected node ids in 0 \.\. 39, got"):
            sampler.for_queries(g, ids)
    with pytest.raises(TypeError, match=r"^eids: .* torch\.int64, got torch\.int32; convert with"):
        sampler(g, EIDS.int())
    with pytest.raises(
        TypeError, match=r"^eids: .* int64 or int32.* got torch\.float32; ids are w"
    ):
        sampler(g, torch.arange(3.0))
    with pytest.raises(TypeError, match=r"^eids: .* got torch.bool .*mask.nonzero\(\)"):
        sampler(g, torch.ones(120, dtype=torch.bool))
    with pytest.raises(TypeError, match="^eids: expected a tensor of edge ids, got list"):
        sampler(g, [0, 1])
    with pytest.raises(ValueError, match=r"^eids: expected shape \[B\], got \(1, 3\)"):
        sampler(g, torch.arange(3).unsqueeze(0))
    g.add_nodes(1)
    g.add_edges(40, 0)
    with pytest.raises(ValueError, match="^g: the sampler was made for 40 .* the graph has 41"):
        sampler(g, torch.tensor([120]))


# Why DGL's own samplers are exempt.


def test_dgl_per_source_uniform_does_not_filter() -> None:
    g = GRAPHS["linked to all but one"]()
    src, dst = theirs.PerSourceUniform(20)(g, torch.arange(g.num_edges()))
    assert barred(g)[src, dst].any()


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_dgl_global_uniform_returns_fewer_moves_the_source_and_refuses_an_empty_request() -> None:
    g = complete_graph()
    src, _ = theirs.GlobalUniform(3)(g, torch.arange(g.num_edges()))
    assert src.numel() < 3 * g.num_edges()
    g = both_ways([0], [1], 50)
    src, _ = theirs.GlobalUniform(3)(g, torch.arange(g.num_edges()))
    assert (src > 1).any()
    with pytest.raises(dgl.DGLError, match="Number of samples must be positive"):
        theirs.GlobalUniform(3)(graph(), torch.arange(0))
