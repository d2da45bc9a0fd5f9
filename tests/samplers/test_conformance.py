"""One suite for every sampler: the contract in `dgl_dmns/samplers/base.py`.

A new public sampler has to be added to `shared.KINDS`; `test_every_public_sampler_is_in_this_suite`
fails until it is. DGL's own samplers go through the suite too, without the checks they do not claim
to pass: each exemption is shown to be needed by a test at the end.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
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
from torch import Tensor

import dgl_dmns
from dgl_dmns import samplers
from dgl_dmns.core import Density, FiLMPredictor, Nearest, NoiseSchedule

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
    with pytest.raises(ValueError, match=r"^etype: the graph has edge types .* name one of them"):
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
    }
    if sampler.rule.tractable:
        calls["distribution"] = lambda: other.log_ratio(results[0])
    if name == "dmns":
        calls["generate"] = lambda: other.generate(normal(3, WIDTH))
        calls["for_embeddings"] = lambda: other.for_embeddings(normal(3, WIDTH))
    for asked, call in calls.items():
        with pytest.raises(RuntimeError, match=f"^{asked}: this is a copy of a sampler .* make a"):
            call()
    with pytest.raises(RuntimeError, match="^refresh: this is a copy of a sampler"):
        other.attach(optimizer())
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


# Samplers that follow an encoder: refreshes.

H = embed(graph())
ADVICE = "the encoder has to return one finite row per node of the sampler's graph"


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", FOLLOWING)
def test_embeddings_that_are_refused_leave_everything_as_it_was(name: str, given: bool) -> None:
    g = graph()
    h = [H]
    sampler = refreshed(name, g, lambda: h[0])
    before = sampler.state_dict()
    for bad, message in (
        (H.flatten(), rf"expected shape \[40, D\], got \(240,\); {ADVICE}"),
        (H[:-1], rf"expected shape \[40, D\], got \(39, 6\); {ADVICE}"),
        (H[:, :0], rf"expected shape \[40, D\], got \(40, 0\); {ADVICE}"),
        (H.unsqueeze(0), rf"expected shape \[40, D\], got \(1, 40, 6\); {ADVICE}"),
        (H.long(), rf"expected floating point embeddings, got torch.int64; {ADVICE}"),
        (H.numpy(), rf"expected a tensor \[N, D\], got ndarray; {ADVICE}"),
        ({"user": H}, r"expected .*dict"),
        (
            H.index_fill(0, torch.tensor([1, 7]), torch.nan),
            "NaN or infinity in 2 of 40.*last table",
        ),
        (H.double() * 1e300, "NaN or infinity in 40 of 40.*lower the learning rate or clip"),
    ):
        h[0] = bad
        with pytest.raises((ValueError, TypeError), match=f"^encoder: {message}"):
            sampler.refresh(bad) if given else sampler.refresh()
        with pytest.raises((ValueError, TypeError, RuntimeError), match=f"encoder: .*{message}"):
            refreshed(name, g, lambda bad=bad: bad)
    if name not in ("dynamic", "self-adversarial"):  # they fit nothing
        with pytest.raises(ValueError, match="^encoder: .* width 6, .* first refresh, got 5; make"):
            sampler.refresh(H[:, :5])
    assert sampler.version == 1
    assert same(before, sampler.state_dict())
    check(g, *sampler(g, EIDS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", FOLLOWING)
def test_embeddings_of_any_float_type_get_no_gradient(name: str, dtype: torch.dtype) -> None:
    g = graph()
    h = H.to(dtype).requires_grad_()
    sampler = refreshed(name, g, lambda: h * 2.0)
    sampler.refresh(h * 2.0)
    _, dst = sampler(g, EIDS)
    assert h.grad is None
    assert not dst.requires_grad


@pytest.mark.parametrize("name", FOLLOWING)
def test_refreshes_are_reported_and_reach_the_negatives(name: str) -> None:
    sampler = make(name, graph())
    steps = [4, 2] if name == "dmns" else [3, 2]  # a warm-up for the first one only
    for version in (1, 2):
        report = sampler.refresh(H)
        assert report is sampler.report
        assert report.version == sampler.version == version
        assert set(report.seconds_by_part) == {"embed", "fit", "table"}
        assert report.seconds >= sum(report.seconds_by_part.values()) * 0.99
        assert all(torch.tensor(v).isfinite() for v in report.table.level_score.values())
        assert report.table.level_score
        assert report.table.fallback == 0
        if name in ("dmns", "adversarial"):
            assert len(report.fit.losses) == steps[version - 1]


@pytest.mark.parametrize("name", FOLLOWING)
def test_attached_to_an_optimizer(name: str) -> None:
    sampler = make(name, graph())
    first, other = optimizer(), optimizer()
    sampler.attach(first, every=3).remove()
    sampler.attach(first, every=3)
    handle = sampler.attach(first, every=3)  # takes the place of the one before
    sampler.attach(other, every=100)
    versions = []
    for _ in range(7):
        first.step()
        other.step()
        versions.append(sampler.version - 3)
    assert versions == [1, 1, 2, 2, 2, 3, 3]
    assert sampler.staleness.steps == 1  # of one optimizer
    handle.remove()
    for _ in range(4):
        first.step()
    assert sampler.version == 6


@pytest.mark.parametrize("name", FOLLOWING)
def test_an_attached_refresh_that_fails_is_tried_again_after_the_next_step(name: str) -> None:
    h = [H]
    sampler = make(name, graph(), lambda: h[0])
    one = optimizer()
    sampler.attach(one, every=2)
    versions = []
    for step in range(6):
        h[0] = H * (torch.nan if step == 1 else 1.0)
        with suppress(ValueError):
            one.step()
        versions.append(sampler.version)
    assert versions == [1, 1, 2, 2, 3, 3]


# States.


@pytest.mark.parametrize("refreshes", [0, 2])
@pytest.mark.parametrize("name", [*FOLLOWING, "several types"])
def test_a_loaded_state_goes_on_as_if_nothing_had_happened(
    name: str, refreshes: int, tmp_path: Path
) -> None:
    """Through a file, into a sampler that was refreshed before, with another seed."""
    several = name == "several types"
    g, k = (shop(), {"buys": 2, "knows": 4}) if several else (graph(), 3)
    edges = {e: torch.arange(g.num_edges(e)) for e in ("buys", "knows")} if several else EIDS
    kind = "dmns" if several else name
    # Another seed goes with the state, but for one that orders the proposals of chains.
    other_seed = 9 if refreshes and name != "mcns" else 0
    sampler, other = make(kind, g, k=k), make(kind, g, k=k, seed=other_seed)
    if refreshes or kind != "dmns":
        other.refresh()
    for _ in range(refreshes):
        sampler.refresh()
        sampler(g, edges)
    sampler.save(tmp_path / "state")
    if not refreshes and kind == "dmns":
        with pytest.raises(ValueError, match="^state: made before the first refresh, this sampler"):
            refreshed(kind, g, k=k).load(tmp_path / "state")
    other.load(tmp_path / "state")
    assert other.version == refreshes
    state = sampler.state_dict()
    truth = copy.deepcopy(state)
    third = make(kind, g, k=k)
    third.load_state_dict(state)
    for turn in range(3):
        found = []
        for one in (sampler, other, third):
            seed(turn)
            if turn:
                h = embed(g)
                moved = {n: x * (1 + 0.1 * turn) for n, x in h.items()} if several else h * turn
                one.refresh(moved)
            drawn = one(g, edges)
            ratios = one.log_ratio(drawn) if one.rule.tractable else None
            latents = one.generate(H) if name == "dmns" and one.version else None
            # Chains keep an older snapshot too: that of two refreshes ago is theirs alone.
            held = None if name == "mcns" and turn < 2 else one.state_dict()
            found.append((drawn, ratios, latents, held))
        assert same(found[0], found[1])
        assert same(found[0], found[2])
    assert same(state, truth)  # it was a copy, which later refreshes leave alone
    assert not same(state, sampler.state_dict())


def wide(name: str, g: Any) -> Any:
    """Refreshed with other embeddings, twice as wide, of which some are observed."""
    sampler = refreshed(name, g, normal(40, 2 * WIDTH))
    sampler.observe(torch.tensor([0]), torch.ones(1, 2 * WIDTH))
    return sampler


REFUSED: dict[str, tuple[str, Callable[[str, Any], Any], str]] = {
    "nodes": ("", lambda name, g: refreshed(name, graph(30)), "made for 30 nodes, .* has 40; load"),
    "k": ("", lambda name, g: refreshed(name, g, k=2), r"table of .*; use the same k, groups, uni"),
    "groups": ("dynamic dmns", lambda name, g: refreshed(name, g, groups=1), "table of .*groups"),
    "share": (
        "dmns",
        lambda name, g: refreshed(name, g, uniform_share=0.0),
        "table of .*uniform_s",
    ),
    "width": ("", wide, "made for embeddings of width 12, this sampler's encoder gives 6; load it"),
    "class": (
        "",
        lambda name, g: refreshed("mcns" if name == "dynamic" else "dynamic", g),
        "made by .*, this is a .*; load it into a sampler of",
    ),
    "hidden": (
        "adversarial",
        lambda name, g: refreshed(name, g, hidden=5),
        "made with another hidden width",
    ),
    "schedule": (
        "dmns",
        lambda name, g: refreshed(name, g, schedule=NoiseSchedule.linear(60)),
        "made with another schedule, predictor or space, or other levels; construct",
    ),
    "predictor": (
        "dmns",
        lambda name, g: refreshed(name, g, predictor=FiLMPredictor(WIDTH, layers=3)),
        "made with another schedule, predictor",
    ),
    "space": (
        "dmns",
        lambda name, g: refreshed(name, g, compact_width=2),
        "made with another schedule",
    ),
    "levels": (
        "dmns",
        lambda name, g: refreshed(name, g, levels=(0.1, 0.2, 0.3, 0.4)),
        "made with .* or other levels",
    ),
}


@pytest.mark.parametrize("refreshed_before", [False, True])
@pytest.mark.parametrize(
    ("name", "why"),
    [(name, why) for why, (of, _, _) in REFUSED.items() for name in of.split() or FOLLOWING],
)
def test_a_refused_state_changes_nothing(name: str, why: str, refreshed_before: bool) -> None:
    _, donor, message = REFUSED[why]
    g = graph()
    state = donor(name, g).state_dict()
    sampler, twin = make(name, g), make(name, g)
    for _ in range(2 if refreshed_before else 1):
        with pytest.raises(ValueError, match=f"^state: {message}"):
            sampler.load_state_dict(state)
        assert same(sampler.state_dict(), twin.state_dict())
        sampler.refresh()
        twin.refresh()
        assert same(sampler.state_dict(), twin.state_dict())


@pytest.mark.parametrize("name", FOLLOWING)
def test_a_loaded_state_brings_its_distribution_and_its_embeddings(name: str) -> None:
    g = graph()
    donor, sampler = refreshed(name, g), refreshed(name, g, H.flip(0))
    sampler.load_state_dict(donor.state_dict())
    if donor.rule.tractable:
        found, mine = (one.distribution().log_ratio(*g.edges()) for one in (sampler, donor))
        assert torch.equal(found, mine)
        sampler.refresh(H.flip(0))
        assert not torch.equal(sampler.distribution().log_ratio(*g.edges()), mine)
        sampler.load_state_dict(donor.state_dict())
    seen: list[Tensor] = []
    sampler.on_refresh(lambda report, h: seen.append(next(iter(h.values()))))
    sampler.observe(torch.tensor([0]), torch.ones(1, WIDTH))
    sampler.refresh()  # by what is observed, and by the state's embeddings for the other nodes
    assert torch.equal(seen[0][1:], H[1:])


# Log ratios.


@pytest.mark.parametrize("name", [*FOLLOWING, "nearest"])
def test_log_ratios_are_those_of_the_distribution(name: str) -> None:
    g = graph()
    rule = {"dmns": {"rule": Density()}, "nearest": {"rule": Nearest()}}.get(name, {})
    pool = {} if name == "mcns" else {"pool": 40}  # one pool: no noise
    sampler = make("dmns" if name == "nearest" else name, g, **rule, **pool)
    pos, drawn = g.edges(), sampler(g, EIDS)
    asks = (lambda: sampler.log_ratio(drawn), lambda: sampler.positive_log_ratio(pos))
    if not sampler.rule.tractable:
        sampler.refresh()
        for ask in (*asks, sampler.distribution):
            with pytest.raises(ValueError, match="^rule: .* has no tractable distribution.* use"):
                ask()
        return
    with pytest.raises(RuntimeError, match="^distribution: there was no refresh yet"):
        sampler.distribution()
    sampler.refresh()
    drawn = sampler(g, EIDS)
    for found, (src, dst) in ((sampler.log_ratio(drawn), drawn), (asks[1](), pos)):
        assert found.dtype == torch.float32
        assert found.shape == src.shape
        torch.testing.assert_close(found, sampler.distribution().log_ratio(src, dst))
        assert found.any()
    order = torch.randperm(360)
    ratio = sampler.log_ratio(drawn)
    assert torch.equal(sampler.log_ratio(tuple(end[order].int() for end in drawn)), ratio[order])
    # Ratios to the uniform distribution over the nodes that a query may take: 1 on average.
    for node in (0, 7, 21):
        free = sampler.known.admissible(node)
        ratio = sampler.log_ratio((torch.full_like(free, node), free)).exp()
        assert float(ratio.mean()) == pytest.approx(1, abs=1e-4)
    for _, positive, negative, _ in loader(g, sampler):
        for ask, of in ((sampler.log_ratio, negative), (sampler.positive_log_ratio, positive)):
            torch.testing.assert_close(ask(of), ask(ends(of)))
    # Those of the last refresh.
    first = sampler.log_ratio(drawn)
    sampler.refresh(H.flip(0))
    assert not torch.equal(sampler.log_ratio(drawn), first)


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
