"""One suite for every sampler: the contract in `dgl_dmns/samplers/base.py`.

A new public sampler has to be added to `ENTRIES`; `test_every_public_sampler_is_in_this_suite`
fails until it is. DGL's own samplers go through the suite too, without the checks they do not claim
to pass: each exemption is stated in their entries and shown to be needed by a test at the end.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import dgl
import pytest
import torch
from dgl.dataloading import negative_sampler as theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dgl_dmns
from dgl_dmns import samplers
from dgl_dmns.files import read_state

WIDTH = 8


def embeddings(count: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(count))


@dataclass(frozen=True)
class Entry:
    """A sampler in the suite.

    Args:
        cls: its class.
        make: a sampler for a graph, k and further arguments, not refreshed yet.
        ours: False exempts from the checks of arguments: DGL makes few.
        filtered: False exempts from "no known edge, no self pair".
        exact: False exempts from "exactly k" and from the grouping by source.
        refreshing: it follows an encoder.
        typed: it takes graphs with several edge types.
        empty: False exempts from zero edges.
    """

    cls: type
    make: Callable[..., Any]
    ours: bool = True
    filtered: bool = True
    exact: bool = True
    refreshing: bool = False
    typed: bool = False
    empty: bool = True


def following(cls: type, *, typed: bool = True, **arguments: Any) -> Entry:
    def make(g: Any, k: int, **more: Any) -> Any:
        if len(g.canonical_etypes) == 1 and len(g.ntypes) == 1:
            h: Any = embeddings(g.num_nodes())
        else:
            h = {ntype: embeddings(g.num_nodes(ntype)) for ntype in g.ntypes}
        return cls(g, more.pop("encoder", lambda: h), k, **arguments, **more)

    return Entry(cls, make, refreshing=True, typed=typed)


ENTRIES = {
    "uniform": Entry(samplers.UniformSampler, samplers.UniformSampler, typed=True),
    "popularity": Entry(samplers.PopularitySampler, samplers.PopularitySampler, typed=True),
    "in-batch": Entry(samplers.InBatchSampler, samplers.InBatchSampler, typed=True),
    "dynamic": following(samplers.DynamicSampler, groups=2),
    "self-adversarial": following(samplers.SelfAdversarialSampler, groups=2),
    "mcns": following(samplers.MCNSSampler, typed=False, steps=3, width=20),
    "adversarial": following(
        samplers.AdversarialSampler,
        typed=False,
        groups=2,
        warmup_steps=3,
        fit_steps=2,
        batch_queries=16,
    ),
    "dmns": following(
        samplers.DMNSSampler, groups=2, warmup_steps=3, fit_steps=2, batch_pairs=64, compact_width=4
    ),
    # Filters nothing (checked below), and DGL checks no arguments.
    "dgl per source": Entry(
        theirs.PerSourceUniform,
        lambda g, k: theirs.PerSourceUniform(k),
        ours=False,
        filtered=False,
        typed=True,
    ),
    # Filters, but replaces the source as well, returns fewer than k where it finds no more, and
    # fails on an empty request.
    "dgl global": Entry(
        theirs.GlobalUniform,
        lambda g, k: theirs.GlobalUniform(k),
        ours=False,
        exact=False,
        typed=True,
        empty=False,
    ),
}
BASES = {samplers.NegativeSampler, samplers.RefreshingSampler}
"""Public classes to derive from, which choose nothing themselves."""


def names(**wanted: bool) -> list[str]:
    return [n for n, e in ENTRIES.items() if all(getattr(e, a) is v for a, v in wanted.items())]


def build(name: str, g: Any, k: int) -> Any:
    """A sampler that is ready: refreshed where there is something to refresh."""
    sampler = ENTRIES[name].make(g, k)
    if ENTRIES[name].refreshing:
        sampler.refresh()
    return sampler


def seed(value: int = 0) -> None:
    torch.manual_seed(value)
    dgl.seed(value)


# Graphs. Each is small enough to check every pair by a dense matrix.


def both_ways(src: list[int], dst: list[int], count: int) -> Any:
    return dgl.graph((torch.tensor(src + dst), torch.tensor(dst + src)), num_nodes=count)


def random_graph(count: int = 40, edges: int = 120) -> Any:
    source = torch.Generator().manual_seed(1)
    src, dst = torch.randint(0, count, (2, edges), generator=source)
    return dgl.graph((src, dst), num_nodes=count)


def complete_graph(count: int = 5) -> Any:
    src, dst = torch.nonzero(~torch.eye(count, dtype=torch.bool), as_tuple=True)
    return dgl.graph((src, dst), num_nodes=count)


GRAPHS: dict[str, Callable[[], Any]] = {
    "random": random_graph,
    "star and a node": lambda: both_ways([0] * 8, list(range(1, 9)), 10),
    "star": lambda: both_ways([0] * 8, list(range(1, 9)), 9),
    "two nodes": lambda: dgl.graph(([0], [1])),
    "isolated nodes": lambda: both_ways([0, 1], [1, 2], 20),
    "parallel edges": lambda: dgl.graph(([0, 0, 0, 1, 1, 2], [1, 1, 1, 2, 2, 0]), num_nodes=6),
    "self-loops": lambda: dgl.graph(([0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 1, 2]), num_nodes=5),
    "linked to all but one": lambda: both_ways([0] * 9, list(range(1, 10)), 11),
    "complete": complete_graph,
}


def barred(g: Any) -> Tensor:
    """Which pairs may not be negatives: known edges and self pairs, shape [N, N], bool."""
    matrix = torch.eye(g.num_nodes(), dtype=torch.bool)
    src, dst = g.edges()
    matrix[src.long(), dst.long()] = True
    return matrix


def check_filtered(g: Any, src: Tensor, dst: Tensor) -> None:
    matrix = barred(g)
    src, dst = src.long(), dst.long()
    without = matrix.all(dim=1)[src]  # no admissible node: the documented fallback is (v, v)
    assert not matrix[src, dst][~without].any()
    assert torch.equal(dst[without], src[without])


@contextmanager
def expected_warning(g: Any, name: str) -> Iterator[None]:
    """Ours warn at construction if a node has no admissible other, and only then."""
    if ENTRIES[name].ours and bool(barred(g).all(dim=1).any()):
        with pytest.warns(UserWarning, match="no true negative exists") as caught:
            yield
        assert {w.filename for w in caught} == {__file__}
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            yield


def test_every_public_sampler_is_in_this_suite() -> None:
    public = {getattr(samplers, name) for name in samplers.__all__}
    found = {
        c for c in public if isinstance(c, type) and issubclass(c, samplers.NegativeSampler)
    } - BASES
    missing = found - {entry.cls for entry in ENTRIES.values()}
    assert not missing, f"add {sorted(c.__name__ for c in missing)} to ENTRIES"
    assert public >= BASES


def test_the_package_offers_every_sampler() -> None:
    for name in samplers.__all__:
        assert name in dgl_dmns.__all__
        assert getattr(dgl_dmns, name) is getattr(samplers, name)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", ENTRIES)
def test_exactly_k_grouped_in_range_and_filtered(name: str, graph: str) -> None:
    entry = ENTRIES[name]
    for g in (GRAPHS[graph](), GRAPHS[graph]().int()):
        with expected_warning(g, name):
            sampler = build(name, g, 3)
        eids = torch.arange(g.num_edges(), dtype=g.idtype).repeat(3)
        src, dst = sampler(g, eids)
        assert src.dtype == dst.dtype == g.idtype
        assert src.device == dst.device == eids.device
        assert src.shape == dst.shape
        assert ((dst >= 0) & (dst < g.num_nodes())).all()
        if entry.exact:
            assert torch.equal(src, g.find_edges(eids)[0].repeat_interleave(3))
        else:
            assert src.numel() <= 3 * eids.numel()
        if entry.filtered:
            check_filtered(g, src, dst)


@pytest.mark.parametrize("name", names(filtered=True, ours=True))
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    count=st.integers(2, 9),
    pairs=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=60),
    k=st.integers(1, 6),
)
def test_any_graph_is_filtered(name: str, count: int, pairs: list[tuple[int, int]], k: int) -> None:
    src, dst = torch.tensor(pairs).T % count
    g = dgl.graph((src, dst), num_nodes=count)
    with expected_warning(g, name):
        sampler = build(name, g, k)
    negatives = sampler(g, torch.arange(g.num_edges()))
    check_filtered(g, *negatives)
    nodes = torch.arange(count)
    by_node = sampler.for_queries(g, nodes)
    assert by_node.shape == (count, k)
    check_filtered(g, nodes.repeat_interleave(k), by_node.flatten())


@pytest.mark.parametrize("name", names(ours=True, refreshing=True))
def test_before_the_first_refresh_negatives_are_filtered_uniform(name: str) -> None:
    g = random_graph()
    sampler = ENTRIES[name].make(g, 4)
    assert sampler.version == 0
    check_filtered(g, *sampler(g, torch.arange(g.num_edges())))
    seed()
    ours = sampler(g, torch.arange(20))[1]
    seed()
    assert torch.equal(ours, samplers.UniformSampler(g, 4)(g, torch.arange(20))[1])


@pytest.mark.parametrize("name", names(empty=True))
def test_zero_edges_are_legal(name: str) -> None:
    for g in (random_graph(), random_graph().int()):
        src, dst = build(name, g, 3)(g, torch.zeros(0, dtype=g.idtype))
        assert src.shape == dst.shape == (0,)
        assert src.dtype == dst.dtype == g.idtype


@pytest.mark.parametrize("name", ENTRIES)
def test_a_dict_becomes_a_dict_with_canonical_keys(name: str) -> None:
    g = random_graph()
    eids = torch.tensor([3, 1, 2])
    result = build(name, g, 2)(g, {"_E": eids})
    assert list(result) == [("_N", "_E", "_N")]
    src, _ = result["_N", "_E", "_N"]
    if ENTRIES[name].exact:
        assert torch.equal(src, g.find_edges(eids)[0].repeat_interleave(2))


def shop() -> Any:
    """Users and items: more users than items, a relation among users, and one without edges."""
    return dgl.heterograph(
        {
            ("user", "buys", "item"): ([0, 0, 1, 5, 5], [0, 1, 2, 0, 0]),
            ("user", "knows", "user"): ([0, 1, 2], [1, 2, 3]),
            ("item", "like", "item"): ([], []),
        },
        num_nodes_dict={"user": 9, "item": 4},
    )


def check_filtered_type(g: Any, etype: Any, src: Tensor, dst: Tensor) -> None:
    assert ((dst >= 0) & (dst < g.num_nodes(etype[2]))).all()
    if src.numel():
        assert not g.has_edges_between(src, dst, etype=etype).any()
        if etype[0] == etype[2]:
            assert (src != dst).all()


@pytest.mark.parametrize("ready", [False, True], ids=["new", "refreshed"])
@pytest.mark.parametrize("idtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("name", names(typed=True))
def test_several_edge_types(name: str, idtype: torch.dtype, ready: bool) -> None:
    g = shop().astype(idtype)
    entry = ENTRIES[name]
    sampler = build(name, g, 6) if ready else entry.make(g, 6)
    eids = {"buys": torch.arange(5).to(idtype), ("user", "knows", "user"): torch.arange(3)}
    eids["user", "knows", "user"] = eids["user", "knows", "user"].to(idtype)
    if entry.empty:
        eids["like"] = torch.arange(0).to(idtype)
    result = sampler(g, eids)
    assert set(result) == {g.to_canonical_etype(etype) for etype in eids}
    for etype, (src, dst) in result.items():
        assert src.dtype == dst.dtype == idtype
        assert src.shape == dst.shape
        assert (dst < g.num_nodes(etype[2])).all()
        if entry.exact:
            mine = eids.get(etype, eids.get(etype[1]))
            expected = g.find_edges(mine, etype=etype)[0].repeat_interleave(6)
            assert torch.equal(src, expected)
        if entry.filtered:
            check_filtered_type(g, etype, src, dst)


@pytest.mark.parametrize("name", names(typed=True, ours=True))
def test_query_nodes_of_several_edge_types(name: str) -> None:
    g = shop()
    sampler = build(name, g, 3)
    for etype in g.canonical_etypes:
        nodes = torch.arange(g.num_nodes(etype[0]))
        if ENTRIES[name].refreshing and etype[1] == "like":  # no edges: nothing to learn from
            with pytest.raises(ValueError, match=r"^etype: no negatives for .*'like'.* in etypes="):
                sampler.for_queries(g, nodes, etype)
            continue
        seed()
        chosen = sampler.for_queries(g, nodes, etype)  # "like" has no edges: uniform
        assert chosen.shape == (len(nodes), 3)
        check_filtered_type(g, etype, nodes.repeat_interleave(3), chosen.flatten())
        seed()
        assert torch.equal(sampler.for_queries(g, nodes, etype[1]), chosen)
    with pytest.raises(ValueError, match=r"^etype: the graph has edge types .* name one of them"):
        sampler.for_queries(g, torch.arange(2))
    with pytest.raises(ValueError, match=r"^etype: no edge type of name 'sells' in .*; name one"):
        sampler.for_queries(g, torch.arange(2), "sells")


@pytest.mark.parametrize("name", names(typed=True, ours=True))
def test_users_that_bought_everything_get_any_item(name: str) -> None:
    g = dgl.heterograph(
        {("user", "buys", "item"): ([0, 0, 1], [0, 1, 1])},
        num_nodes_dict={"user": 2, "item": 2},
    )
    with pytest.warns(UserWarning, match=r"^1 node\(s\), for example 0, .* they get any node"):
        sampler = build(name, g, 4)
    _, dst = sampler(g, {"buys": torch.arange(3)})["user", "buys", "item"]
    assert ((dst >= 0) & (dst < 2)).all()
    assert (dst[8:] == 0).all()


def market(idtype: torch.dtype = torch.int64) -> Any:
    """Users and items with reverse edges, as a message-passing pipeline has them, and tags."""
    source = torch.Generator().manual_seed(2)
    buys = torch.stack([torch.randint(0, n, (90,), generator=source) for n in (30, 20)])
    tags = torch.stack([torch.randint(0, n, (25,), generator=source) for n in (20, 7)])
    return dgl.heterograph(
        {
            ("user", "buys", "item"): tuple(buys),
            ("item", "bought by", "user"): tuple(buys.flip(0)),
            ("item", "has", "tag"): tuple(tags),
            ("tag", "of", "item"): tuple(tags.flip(0)),
        },
        num_nodes_dict={"user": 30, "item": 20, "tag": 7},
    ).astype(idtype)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("idtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("name", names(typed=True, ours=True))
def test_several_edge_types_in_a_dgl_loader(name: str, idtype: torch.dtype, workers: int) -> None:
    g = market(idtype)
    seeds = {e: torch.arange(g.num_edges(e), dtype=idtype) for e in ("buys", "has")}
    sampler = build(name, g, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # DGL's advice on CPU affinity
        loader = dgl.dataloading.DataLoader(
            g,
            seeds,
            dgl.dataloading.as_edge_prediction_sampler(
                dgl.dataloading.NeighborSampler([2]),
                exclude="reverse_types",
                reverse_etypes={
                    "buys": "bought by",
                    "bought by": "buys",
                    "has": "of",
                    "of": "has",
                },
                negative_sampler=sampler,
            ),
            batch_size=40,
            shuffle=True,
            num_workers=workers,
        )
        batches = list(loader)
    seen = 0
    for _, positive, negative, _ in batches:
        assert negative.canonical_etypes == g.canonical_etypes
        for etype in g.canonical_etypes:
            src, dst = negative.edges(etype=etype)
            src = negative.nodes[etype[0]].data[dgl.NID][src.long()]
            dst = negative.nodes[etype[2]].data[dgl.NID][dst.long()]
            query = positive.edges(etype=etype)[0].long()
            query = positive.nodes[etype[0]].data[dgl.NID][query]
            assert torch.equal(src, query.repeat_interleave(3))
            check_filtered_type(g, etype, src, dst)
            seen += src.numel()
        if ENTRIES[name].refreshing and sampler.rule.tractable:
            ratios = sampler.log_ratio(negative)
            assert {e: r.numel() for e, r in ratios.items()} == {
                e: negative.num_edges(e) for e in g.canonical_etypes
            }
    assert seen == 3 * (90 + 25)


@pytest.mark.parametrize("name", names(typed=False, ours=True))
def test_several_edge_types_are_refused(name: str) -> None:
    h = embeddings(13)
    with pytest.raises(ValueError, match="^g: expected one node type and one edge type"):
        ENTRIES[name].cls(shop(), lambda: h)


@pytest.mark.parametrize("name", ENTRIES)
def test_same_seed_same_result(name: str) -> None:
    g = random_graph()
    eids = torch.arange(0, g.num_edges(), 2)
    results = []
    for value in (7, 7, 8):
        sampler = build(name, g, 3)
        seed(value)
        results.append([*sampler(g, eids), *sampler(g, eids)])
        if ENTRIES[name].refreshing:  # edges may be served in turn, nodes are by chance
            results[-1].append(sampler.for_queries(g, torch.arange(40)))
    first, again, other = results
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    # The same table, another choice of groups: only a choice that is left over can differ.
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, other))


@pytest.mark.parametrize("name", names(ours=True, refreshing=True))
def test_an_own_generator_makes_draws_independent_of_the_global_one(name: str) -> None:
    g = random_graph()
    results = []
    for value in (0, 1):
        sampler = ENTRIES[name].make(g, 3, generator=torch.Generator().manual_seed(5))
        sampler.refresh()
        seed(value)
        results.append(sampler(g, torch.arange(50))[1])
    assert torch.equal(*results)


@pytest.mark.parametrize("name", names(ours=True))
class TestArguments:
    @pytest.mark.parametrize("k", [0, -2])
    def test_k_below_one(self, name: str, k: int) -> None:
        with pytest.raises(ValueError, match="^k: expected at least 1 negative per edge"):
            ENTRIES[name].make(random_graph(), k)

    @pytest.mark.parametrize("k", [1.0, "3", True, None])
    def test_k_no_integer(self, name: str, k: Any) -> None:
        with pytest.raises(TypeError, match="^k: expected an integer"):
            ENTRIES[name].make(random_graph(), k)

    def test_graph_without_edges(self, name: str) -> None:
        with pytest.raises(ValueError, match="^g: expected at least one edge"):
            ENTRIES[name].make(dgl.graph(([], []), num_nodes=3), 1)

    @pytest.mark.parametrize("bad", [-1, 120])
    def test_ids_out_of_range(self, name: str, bad: int) -> None:
        g = random_graph()
        sampler = build(name, g, 1)
        with pytest.raises(ValueError, match=r"^eids: expected edge ids in 0 \.\. 119, got"):
            sampler(g, torch.tensor([0, bad]))
        with pytest.raises(ValueError, match=r"^nodes: expected node ids in 0 \.\. 39, got"):
            sampler.for_queries(g, torch.tensor([0, bad]))

    def test_ids_of_a_wrong_type(self, name: str) -> None:
        g = random_graph()
        sampler = build(name, g, 1)
        with pytest.raises(TypeError, match=r"eids: the graph has ids of torch\.int64, got torch"):
            sampler(g, torch.arange(3, dtype=torch.int32))
        with pytest.raises(TypeError, match=r"eids: expected edge ids as int64 or int32"):
            sampler(g, torch.arange(3.0))
        with pytest.raises(TypeError, match="eids: expected a tensor of edge ids, got list"):
            sampler(g, [0, 1])
        with pytest.raises(ValueError, match=r"eids: expected shape \[B\], got \(1, 3\)"):
            sampler(g, torch.arange(3).unsqueeze(0))

    def test_a_graph_that_has_grown(self, name: str) -> None:
        g = random_graph()
        sampler = build(name, g, 1)
        g.add_nodes(1)
        g.add_edges(40, 0)
        with pytest.raises(ValueError, match="^g: the sampler was made for 40 "):
            sampler(g, torch.tensor([120]))


@pytest.mark.parametrize("name", ENTRIES)
def test_pickled_copies_draw_alike(name: str) -> None:
    g = random_graph()
    sampler = build(name, g, 3)
    copy = pickle.loads(pickle.dumps(sampler))
    results = []
    for one in (sampler, copy):
        seed()
        results.append(one(g, torch.arange(30)))
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("name", names(ours=True))
def test_repr_names_the_class_and_k(name: str) -> None:
    sampler = build(name, random_graph(), 3)
    text = repr(sampler)
    assert text.startswith(f"{ENTRIES[name].cls.__name__}(k=3")
    assert text.isprintable()
    assert len(text) < 200


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ENTRIES)
def test_in_a_dgl_loader(name: str, workers: int) -> None:
    entry = ENTRIES[name]
    g = random_graph()
    k = 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # DGL's advice on CPU affinity
        loader = dgl.dataloading.DataLoader(
            g,
            torch.arange(g.num_edges()),
            dgl.dataloading.as_edge_prediction_sampler(
                dgl.dataloading.NeighborSampler([2]), negative_sampler=build(name, g, k)
            ),
            batch_size=50,
            num_workers=workers,
        )
        batches = list(loader)
    assert len(batches) == 3
    for _, positive, negative, _ in batches:
        src, dst = (negative.ndata[dgl.NID][end] for end in negative.edges())
        if entry.exact:
            query = positive.ndata[dgl.NID][positive.edges()[0]]
            assert torch.equal(src, query.repeat_interleave(k))
        if entry.filtered:
            check_filtered(g, src, dst)


# Samplers that follow an encoder.

FOLLOWING = names(refreshing=True)


def flatten(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [part for key in sorted(state, key=str) for part in flatten(state[key])]
    if isinstance(state, (list, tuple)):
        return [part for value in state for part in flatten(value)]
    return [state]


def same_state(one: Any, other: Any) -> bool:
    """Whether two states agree to the last bit, NaN included."""
    pairs = list(zip(flatten(one), flatten(other)))
    return len(flatten(one)) == len(flatten(other)) and all(
        torch.equal(a.nan_to_num(nan=9.0), b.nan_to_num(nan=9.0))
        if isinstance(a, Tensor)
        else a == b
        for a, b in pairs
    )


def saved(sampler: Any) -> Any:
    """The state, written to a file and read back."""
    with tempfile.TemporaryDirectory() as folder:
        sampler.save(Path(folder) / "state")
        return read_state(Path(folder) / "state")


@pytest.mark.parametrize("name", FOLLOWING)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda h: h.index_fill(0, torch.tensor([3]), torch.nan), "NaN or infinity in 1 of 40"),
        (lambda h: h / 0, "NaN or infinity in 40 of 40"),
        (lambda h: h[:-1], r"expected shape \[40, D\], got \(39, 8\)"),
        (lambda h: h.long(), "expected floating point embeddings"),
    ],
)
def test_a_refresh_that_fails_leaves_everything_as_it_was(
    name: str, spoil: Callable[[Tensor], Tensor], message: str
) -> None:
    g = random_graph()
    sampler = build(name, g, 3)
    before = saved(sampler)
    with pytest.raises(ValueError, match=f"^encoder: {message}"):
        sampler.refresh(spoil(embeddings(40)))
    assert sampler.version == 1
    assert same_state(before, saved(sampler))
    check_filtered(g, *sampler(g, torch.arange(20)))


@pytest.mark.parametrize("name", FOLLOWING)
def test_a_loaded_state_goes_on_as_if_nothing_had_happened(name: str) -> None:
    g = random_graph()
    sampler = build(name, g, 3)
    sampler(g, torch.arange(30))
    sampler.refresh()
    other = ENTRIES[name].make(g, 3)
    other.load_state_dict(saved(sampler))
    assert other.version == 2
    for _ in range(2):
        drawn = []
        for one in (sampler, other):
            seed()
            drawn.append(one(g, torch.arange(60))[1])
        assert torch.equal(*drawn)
        sampler.refresh()
        other.refresh()
        assert same_state(sampler.state_dict(), other.state_dict())


@pytest.mark.parametrize("name", FOLLOWING)
def test_a_state_is_a_copy_that_later_refreshes_leave_alone(name: str) -> None:
    sampler = build(name, random_graph(), 3)
    sampler.refresh(embeddings(40))
    state = sampler.state_dict()
    before = copy.deepcopy(state)
    sampler.refresh(embeddings(40))
    assert same_state(state, before)
    assert not same_state(sampler.state_dict(), before)


@pytest.mark.parametrize("name", FOLLOWING)
def test_states_of_other_samplers_are_refused(name: str) -> None:
    state = saved(build(name, random_graph(), 3))
    with pytest.raises(ValueError, match="^state: made for 40 nodes, this sampler has 30"):
        ENTRIES[name].make(random_graph(30), 3).load_state_dict(state)
    with pytest.raises(ValueError, match="^state: table of"):
        ENTRIES[name].make(random_graph(), 2).load_state_dict(state)


@pytest.mark.parametrize("name", FOLLOWING)
def test_refreshes_are_reported_and_reach_the_negatives(name: str) -> None:
    g = random_graph()
    sampler = ENTRIES[name].make(g, 3)
    for version in (1, 2):
        report = sampler.refresh(embeddings(40))
        assert report is sampler.report
        assert report.version == sampler.version == version
        assert set(report.seconds_by_part) == {"embed", "fit", "table"}
        assert report.seconds >= sum(report.seconds_by_part.values()) * 0.99
        assert all(torch.tensor(v).isfinite() for v in report.table.level_score.values())
        assert report.table.level_score


@pytest.mark.parametrize("name", FOLLOWING)
def test_attached_to_an_optimizer(name: str) -> None:
    g = random_graph()
    weight = torch.nn.Parameter(torch.ones(1))
    sampler = ENTRIES[name].make(g, 3)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    handle = sampler.attach(optimizer, every=2)
    assert sampler.version == 1
    for _ in range(4):
        weight.sum().backward()
        optimizer.step()
    assert sampler.version == 3
    handle.remove()
    optimizer.step()
    optimizer.step()
    assert sampler.version == 3


@pytest.mark.parametrize("name", FOLLOWING)
def test_an_attached_refresh_that_fails_is_tried_again_after_the_next_step(name: str) -> None:
    h = [embeddings(40)]
    weight = torch.nn.Parameter(torch.ones(1))
    sampler = ENTRIES[name].make(random_graph(), 3, encoder=lambda: h[0])
    optimizer = torch.optim.SGD([weight], lr=0.1)
    sampler.attach(optimizer, every=2)
    versions = []
    for step in range(6):
        h[0] = embeddings(40) * (torch.nan if step == 1 else 1.0)
        weight.grad = torch.zeros(1)
        with suppress(ValueError):
            optimizer.step()
        versions.append(sampler.version)
    assert versions == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("name", FOLLOWING)
def test_scores_and_embeddings_never_reach_the_encoder(name: str) -> None:
    g = random_graph()
    h = embeddings(40).requires_grad_()
    sampler = ENTRIES[name].make(g, 3, encoder=lambda: h * 2.0)
    sampler.refresh()
    sampler.refresh(h * 2.0)
    _, dst = sampler(g, torch.arange(9))
    assert h.grad is None
    assert not dst.requires_grad


# Why DGL's own samplers are exempt.


def test_dgl_per_source_uniform_does_not_filter() -> None:
    g = GRAPHS["linked to all but one"]()
    seed()
    src, dst = theirs.PerSourceUniform(20)(g, torch.arange(g.num_edges()))
    assert barred(g)[src, dst].any()


def test_dgl_global_uniform_returns_fewer_and_moves_the_source() -> None:
    g = complete_graph()
    src, _ = theirs.GlobalUniform(3)(g, torch.arange(g.num_edges()))
    assert src.numel() < 3 * g.num_edges()
    g = both_ways([0], [1], 50)
    src, _ = theirs.GlobalUniform(3)(g, torch.arange(g.num_edges()))
    assert (src > 1).any()


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_dgl_global_uniform_refuses_an_empty_request() -> None:
    with pytest.raises(dgl.DGLError, match="Number of samples must be positive"):
        theirs.GlobalUniform(3)(random_graph(), torch.arange(0))
