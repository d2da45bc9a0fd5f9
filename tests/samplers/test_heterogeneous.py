"""Samplers that follow an encoder, on bipartite, heterogeneous and many-relation graphs.

What every sampler has to do alike is in `test_conformance.py`.
"""

from __future__ import annotations

import copy
import gc
import io
import itertools
import os
import pickle
import resource
import warnings
from typing import Any

import dgl
import pytest
import torch
from dgl.dataloading import DataLoader, NeighborSampler, as_edge_prediction_sampler
from dgl.nn import HeteroGraphConv, SAGEConv
from scipy.stats import chisquare
from states import same
from torch import Tensor, nn

from dgl_dmns.core import Density, FiLMPredictor, Hardest, KnownEdges, NoiseSchedule, dot_score
from dgl_dmns.samplers import (
    DMNSSampler,
    DynamicSampler,
    SelfAdversarialSampler,
    UniformSampler,
)
from dgl_dmns.samplers.minibatch import pairs_of
from dgl_dmns.samplers.resources import Resources

WIDTH = 6
SMALL: dict[str, Any] = {"warmup_steps": 4, "fit_steps": 2, "batch_pairs": 64, "groups": 3}
BUYS = ("user", "buys", "item")
KNOWS = ("user", "knows", "user")


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=rng(seed))


def pairs(sources: int, destinations: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    source = rng(seed)
    return (
        torch.randint(0, sources, (count,), generator=source),
        torch.randint(0, destinations, (count,), generator=source),
    )


def shop() -> Any:
    g = dgl.heterograph(
        {
            BUYS: pairs(12, 9, 30, 1),
            ("item", "bought by", "user"): pairs(12, 9, 30, 1)[::-1],
            KNOWS: pairs(12, 12, 20, 2),
            ("item", "like", "item"): ([], []),
        },
        num_nodes_dict={"user": 12, "item": 9},
    )
    for ntype, seed in (("user", 3), ("item", 4)):
        g.nodes[ntype].data["feat"] = normal(g.num_nodes(ntype), 5, seed=seed)
    return g


H = {"user": normal(12, WIDTH, seed=5), "item": normal(9, WIDTH, seed=6)}


def make(g: Any = None, encoder: Any = None, k: Any = 3, **arguments: Any) -> DMNSSampler:
    g = shop() if g is None else g
    return DMNSSampler(g, (lambda: H) if encoder is None else encoder, k, **{**SMALL, **arguments})


def allowed(g: Any, etype: Any) -> Tensor:
    """Which destinations each source may get, [Ns, Nd], bool."""
    free = torch.ones(g.num_nodes(etype[0]), g.num_nodes(etype[2]), dtype=torch.bool)
    free[g.edges(etype=etype)] = False
    return free.fill_diagonal_(False) if etype[0] == etype[2] else free


# Against the truth.


def test_self_adversarial_draws_from_the_softmax_over_the_destination_type() -> None:
    g = shop()
    # All items in the pool and k = 1: the groups of a row are independent draws.
    sampler = SelfAdversarialSampler(
        g, lambda: H, 1, pool=9, groups=3000, source="uniform", etypes=["buys"]
    )
    sampler.refresh()
    drawn = sampler.table.current().ids.long().view(12, 3000)
    free = allowed(g, BUYS)
    for user in range(12):
        weight = (H["item"] @ H["user"][user]).double().exp() * free[user]
        counts = torch.bincount(drawn[user], minlength=9)
        expected = weight / weight.sum() * 3000
        assert not counts[~free[user]].any()
        often = expected >= 5
        table = torch.stack([counts.double(), expected])
        table = torch.cat([table[:, often], table[:, ~often].sum(1, keepdim=True)], dim=1)
        table = table[:, table[1] > 0]
        assert chisquare(table[0].numpy(), table[1].numpy()).pvalue > 1e-4
        mine = weight.nonzero().squeeze(1)
        exact = (weight[mine] / weight[mine].mean()).log()
        found = sampler.log_ratio((torch.full_like(mine, user), mine)).double()
        torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-5)


def matched(groups: int = 4, size: int = 10) -> tuple[Any, dict[str, Tensor]]:
    """Users buy items of the next group on a circle and view those of the one before.

    Half of the pairs are edges; the other half are what a generator has to find.
    """
    count = groups * size
    group = torch.arange(count) // size
    angle = group * (2 * torch.pi / groups)
    centre = torch.stack([angle.cos(), angle.sin()], dim=1)
    h = {
        "user": centre @ normal(2, WIDTH, seed=7) + 0.1 * normal(count, WIDTH, seed=8),
        "item": centre @ normal(2, WIDTH, seed=9) + 0.1 * normal(count, WIDTH, seed=10),
    }
    edges = {}
    for relation, step, seed in (("buys", 1, 11), ("views", -1, 12)):
        linked = ((group + step) % groups).unsqueeze(1) == group
        linked &= torch.rand(count, count, generator=rng(seed)) < 0.5
        edges["user", relation, "item"] = linked.nonzero(as_tuple=True)
    return dgl.heterograph(edges, num_nodes_dict={"user": count, "item": count}), h


def test_each_edge_type_learns_its_own_neighbours() -> None:
    g, h = matched()
    likely: dict[tuple[float, str], float] = {}
    for share in (0.0, 1.0):
        sampler = DMNSSampler(
            g, lambda: h, 3, rule=Density(), uniform_share=share, groups=8, batch_pairs=256
        )
        sampler.refresh()
        for relation, step in (("buys", 1), ("views", -1)):
            src, dst = sampler(g, {relation: torch.arange(g.num_edges(relation))})[
                "user", relation, "item"
            ]
            wanted = dst // 10 == (src // 10 + step) % 4
            likely[share, relation] = float(wanted.float().mean())
    for relation in ("buys", "views"):
        assert likely[1.0, relation] == pytest.approx(5 / 35, abs=0.05)
        assert likely[0.0, relation] > 3 * likely[1.0, relation]


def test_a_space_holds_both_ends() -> None:
    h = {"user": normal(12, WIDTH, seed=5), "item": normal(9, WIDTH, seed=6) + 4}
    sampler = make(encoder=lambda: h, compact_width=3)
    sampler.refresh()
    model = sampler.relation("buys").model
    assert model is not None
    unit = nn.functional.normalize(torch.cat([h["user"], h["item"]]), dim=1)
    torch.testing.assert_close(model.space.mean, unit.mean(0))
    model = sampler.relation("knows").model
    assert model is not None
    torch.testing.assert_close(model.space.mean, nn.functional.normalize(h["user"], dim=1).mean(0))


# A graph with many relations, each with a scorer of its own.


def knowledge_graph() -> Any:
    """Twelve relations among three types of entities, several between the same two types."""
    sizes = {"person": 30, "place": 20, "work": 25}
    edges = {}
    for i in range(12):
        source, destination = (list(sizes)[(i + j * (1 + i // 3)) % 3] for j in (0, 1))
        edges[source, f"r{i}", destination] = pairs(sizes[source], sizes[destination], 20, 20 + i)
    return dgl.heterograph(edges, num_nodes_dict=sizes)


def entities(g: Any) -> dict[str, Tensor]:
    return {n: normal(g.num_nodes(n), WIDTH, seed=i) for i, n in enumerate(g.ntypes)}


def dist_mult(g: Any) -> dict[str, Any]:
    """One bilinear scorer a relation; each prefers other entities."""

    def scorer(weight: Tensor) -> Any:
        return lambda a, b: (a * weight * b).sum(-1)

    return {e: scorer(normal(WIDTH, seed=40 + i)) for i, e in enumerate(g.etypes)}


def test_every_relation_heeds_its_own_scorer() -> None:
    g, scorers = knowledge_graph(), dist_mult(knowledge_graph())
    assert len({(s == d) for s, _, d in g.canonical_etypes}) == 2  # within types and between them
    h = entities(g)
    sampler = DynamicSampler(g, lambda: h, 4, pool=30, groups=2, scorer=scorers)
    sampler.refresh()
    for etype in g.canonical_etypes:
        score = scorers[etype[1]](h[etype[0]].unsqueeze(1), h[etype[2]].unsqueeze(0))
        best = score.masked_fill(~allowed(g, etype), -torch.inf).topk(4).indices
        chosen = sampler.for_queries(g, torch.arange(g.num_nodes(etype[0])), etype)
        assert torch.equal(chosen.sort(1).values, best.sort(1).values)


@pytest.mark.parametrize("background", [False, True])
def test_a_refresh_that_fails_in_one_relation_publishes_none(background: bool) -> None:
    spoilt = False

    def of_knows(query: Tensor, candidate: Tensor) -> Tensor:
        return dot_score(query, candidate) * (torch.nan if spoilt else 1.0)

    scorer = {"buys": dot_score, "bought by": dot_score, "knows": of_knows}
    sampler = make(scorer=scorer, resources=Resources(background=background))
    sampler.refresh()
    before = {e: copy.deepcopy(r.table.state_dict()) for e, r in sampler.relations.items()}

    def refresh() -> None:
        sampler.refresh()
        sampler.wait()

    spoilt = True
    with pytest.raises((ValueError, RuntimeError), match="NaN or infinite"):
        refresh()
    for etype, relation in sampler.relations.items():
        live, old = relation.table.current(), before[etype]
        assert relation.table.version == 1
        assert torch.equal(live.ids, old["ids"][1])
        assert torch.equal(live.level, old["level"][1])
    spoilt = False
    refresh()
    assert [r.table.version for r in sampler.relations.values()] == [2, 2, 2]


@pytest.mark.filterwarnings("ignore:Dataloader CPU affinity")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_epoch_over_many_relations(workers: int) -> None:
    g = knowledge_graph()
    h = entities(g)
    k = {etype: 1 + i % 3 for i, etype in enumerate(g.etypes)}
    sampler = DMNSSampler(
        g, lambda: h, k, scorer=nn.ModuleDict({e: Product() for e in g.etypes}), **SMALL
    )
    report = sampler.refresh()
    assert list(report.by_type) == g.canonical_etypes
    loader = DataLoader(
        g,
        {etype: torch.arange(20) for etype in g.etypes},
        as_edge_prediction_sampler(NeighborSampler([2]), negative_sampler=sampler),
        batch_size=60,
        shuffle=True,
        num_workers=workers,
    )
    seen = dict.fromkeys(g.canonical_etypes, 0)
    for _, positive, negative, _ in loader:
        ratios = sampler.log_ratio(negative)
        for etype in g.canonical_etypes:
            src, dst = pairs_of(negative, etype)
            query = pairs_of(positive, etype)[0].repeat_interleave(k[etype[1]])
            assert torch.equal(src, query)
            assert allowed(g, etype)[src, dst].all()
            assert torch.equal(ratios[etype], sampler.log_ratio({etype: (src, dst)})[etype])
            seen[etype] += src.numel()
    assert seen == {etype: 20 * k[etype[1]] for etype in g.canonical_etypes}
    assert repr(sampler).startswith("DMNSSampler(k=1..3, types=12, rule=Blend(")


class Product(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1)


def test_one_node_type_with_several_relations() -> None:
    g = dgl.heterograph(
        {("n", "a", "n"): pairs(15, 15, 30, 1), ("n", "b", "n"): pairs(15, 15, 9, 2)}
    )
    g.ndata["feat"] = normal(15, WIDTH)
    seen: list[Any] = []

    class Encoder(nn.Module):
        def forward(self, graph: Any, x: Any) -> Any:
            seen.append(x)
            return x

    drawn = []
    for encoder in (Encoder(), lambda: g.ndata["feat"]):  # a dict of one, or that one
        sampler = make(g, encoder)
        sampler.refresh()
        torch.manual_seed(0)
        drawn.append(sampler(g, {"a": torch.arange(30), "b": torch.arange(9)}))
    assert same(*drawn)
    assert list(seen[0]) == ["n"]
    for etype, (src, dst) in drawn[0].items():
        assert allowed(g, etype)[src, dst].all()


# Which edge types, and how many negatives of each.


def test_k_by_edge_type_says_which_are_held() -> None:
    g = shop()
    sampler = make(g, k={"buys": 2, KNOWS: 5})
    for _ in range(2):
        result = sampler(g, {"buys": torch.arange(4), "knows": torch.arange(3)})
        assert {etype: dst.numel() for etype, (_, dst) in result.items()} == {BUYS: 8, KNOWS: 15}
        assert torch.equal(result[BUYS][0], g.edges(etype=BUYS)[0][:4].repeat_interleave(2))
        with pytest.raises(
            ValueError, match=r"^etype: no negatives for .*'bought by'.* or in k if"
        ):
            sampler(g, {"bought by": torch.arange(2)})
        assert sampler(g, {"bought by": torch.arange(0)})["item", "bought by", "user"][1].shape == (
            0,
        )
        sampler.refresh()
    assert list(sampler.relations) == [BUYS, KNOWS]
    assert sampler.k == 5


def test_a_type_does_not_depend_on_what_else_is_held() -> None:
    g = shop()
    drawn = []
    for etypes in (None, ["knows"], [KNOWS, "buys"]):
        sampler = make(g, etypes=etypes)
        sampler.refresh()
        sampler.refresh()
        torch.manual_seed(1)
        drawn.append(sampler(g, {"knows": torch.arange(20)}))
    assert same(drawn[0], drawn[1])
    assert same(drawn[0], drawn[2])


def test_a_table_takes_the_memory_that_is_said() -> None:
    relation = make(k=3, groups=4, uniform_share=0.0).relation("buys")
    table, needed = relation.table, relation.known.degrees().clamp(min=1)
    assert torch.equal(table.sizes(), needed)
    taken = sum(b.numel() * b.element_size() for b in table.buffers())
    assert taken == 10 * 3 * int(needed.sum()) + 8 * 13 + 32  # rows, and four counters


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"etypes": "buys"}, TypeError, "etypes: expected a list of edge types, got 'buys'; put"),
        ({"etypes": ["sells"]}, ValueError, "etypes: no edge type of name 'sells' in "),
        ({"etypes": []}, ValueError, "etypes, k: expected at least one edge type, got none"),
        ({"k": {}}, ValueError, "etypes, k: expected at least one edge type, got none"),
        ({"etypes": ["like"]}, ValueError, r"etypes, k: expected .* got .*'like'.* without any"),
        (
            {"k": {"like": 2}},
            ValueError,
            r"etypes, k: expected .* got .*'like'.* without any; leav",
        ),
        ({"k": {"sells": 2}}, ValueError, "k: no edge type of name 'sells' in "),
        ({"k": {"buys": 0}}, ValueError, "k: expected at least 1 negative per edge, got 0"),
        ({"k": {"buys": 1.0}}, TypeError, "k: expected an integer"),
        ({"k": {"buys": 1}, "etypes": ["knows"]}, ValueError, "etypes: .* are not the edge types"),
        ({"k": {"buys": 1, "knows": 9}, "pool": 8}, ValueError, "pool: expected at least k = 9"),
        (
            {"scorer": {"buys": Product()}},
            ValueError,
            "scorer: expected one .* got none for .*knows",
        ),
        ({"scorer": {"sells": Product()}}, ValueError, "scorer: no edge type of name 'sells'"),
        ({"scorer": 3}, TypeError, "scorer: expected a callable of two tensors .* got int"),
        (
            {"scorer": {"buys": 3}, "etypes": ["buys"]},
            TypeError,
            "scorer of 'buys': expected a call",
        ),
        (
            {"encoder": nn.Identity(), "feat": "x"},
            ValueError,
            "feat: nodes of type item, user have",
        ),
    ],
)
def test_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        make(**arguments)


def test_a_name_that_several_edge_types_share() -> None:
    g = dgl.heterograph({("a", "to", "b"): ([0], [0]), ("b", "to", "a"): ([0], [0])})
    with pytest.raises(
        ValueError, match="^etypes: several edge types of name 'to' in .*; name one"
    ):
        make(g, etypes=["to"])
    with pytest.warns(UserWarning, match="no true negative"):
        assert list(make(g, etypes=[("a", "to", "b")]).relations) == [("a", "to", "b")]


def test_what_is_asked_of_one_type_has_to_name_it() -> None:
    sampler = make()
    sampler.refresh()
    for ask in (
        lambda: sampler.table,
        lambda: sampler.known,
        lambda: sampler.model,
        lambda: sampler.draw(torch.arange(2)),
        lambda: sampler.generate(H["user"]),
        lambda: sampler.log_ratio((torch.arange(2), torch.arange(2))),
    ):
        with pytest.raises(ValueError, match=r"^etype: the sampler holds edge types .*; name one"):
            ask()
    assert sampler.draw(torch.arange(2), "buys").ids.shape == (2, 3)
    assert sampler.generate(H["user"], etype=BUYS).shape == (4, 12, WIDTH)
    with pytest.raises(ValueError, match=r"^etype: no edge type of name 'like' in "):
        sampler.relation("like")
    one = make(etypes=["buys"])
    one.refresh()
    assert one.table is one.relation("buys").table
    assert one.model is not None
    assert one.known.num_dst == 9


def test_a_graph_that_has_grown() -> None:
    g = shop()
    sampler = make(g)
    g.add_nodes(1, ntype="user")
    with pytest.raises(
        ValueError,
        match=r"^g: the sampler was made for 12 nodes of type 'user', the graph has 13; hand .*"
        r"update_graph\(g\)",
    ):
        sampler.for_queries(g, torch.tensor([12]), "buys")


@pytest.mark.parametrize("cls", [DynamicSampler, UniformSampler])
def test_more_edge_types_than_files_may_be_open(cls: Any) -> None:
    g = knowledge_graph()
    arguments = [] if cls is UniformSampler else [lambda: entities(g)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # tables of other tests that would give their files back while this one runs
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    free = (number for number in itertools.count() if number not in taken)
    # The limit is on the numbers, and these have gaps: leave exactly twenty of them.
    limit = next(itertools.islice(free, 20, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        with pytest.raises(
            RuntimeError, match=r"^g: what is held for 12 edge types .*ulimit -n 8192"
        ):
            cls(g, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Encoders.


class Hetero(nn.Module):
    """One GraphSAGE layer per edge type, called as DGL's own examples call it."""

    def __init__(self, g: Any) -> None:
        super().__init__()
        self.layer = HeteroGraphConv({e: SAGEConv(5, WIDTH, "mean") for e in g.etypes})
        self.modes: list[bool] = []

    def forward(self, g: Any, x: dict[str, Tensor]) -> Any:
        self.modes.append(self.training)
        return self.layer(g, x)


def test_a_module_gets_the_features_by_node_type() -> None:
    g = shop()
    encoder = Hetero(g)
    sampler = make(g, encoder, rule=Hardest(), pool=12)
    sampler.refresh()
    assert encoder.modes == [False]
    assert encoder.training
    h = encoder(g, {n: g.nodes[n].data["feat"] for n in g.ntypes})
    by_hand = make(g, lambda graph: h, rule=Hardest(), pool=12)
    by_hand.refresh()
    given = make(g, rule=Hardest(), pool=12)
    given.refresh(h)
    for other in (by_hand, given):
        for etype, relation in sampler.relations.items():
            assert torch.equal(relation.table.ids, other.relations[etype].table.ids)
    assert all(p.grad is None for p in encoder.parameters())


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            {"user": H["user"]},
            r"encoder: .* \['item', 'user'\], got none of \['item'\]; .* reverse",
        ),
        (
            H["user"],
            r"encoder: expected a dict of tensors .* \['item', 'user'\], got Tensor; return",
        ),
        ({**H, "item": H["item"][:, :4]}, r"encoder: expected one width D .*: 4.*; project"),
        ({**H, "item": H["item"][:-1]}, r"encoder: item: expected shape \[9, D\], got \(8, 6\)"),
        ({**H, "user": H["user"] / 0}, "encoder: user: NaN or infinity in 12 of 12 rows"),
        ({**H, "user": None}, r"encoder: user: expected a tensor \[N, D\], got NoneType"),
    ],
)
def test_output_of_the_encoder(output: Any, message: str) -> None:
    g = shop()
    sampler = make(g)
    sampler.refresh()
    before = sampler.state_dict()
    for refresh in (make(g, lambda: output).refresh, lambda: sampler.refresh(output)):
        with pytest.raises(ValueError, match=f"^{message}"):
            refresh()
    assert same(before, sampler.state_dict())


def test_only_the_node_types_of_held_edge_types_are_needed() -> None:
    sampler = make(etypes=["knows"])
    sampler.refresh({"user": H["user"]})
    sampler.refresh(H["user"])  # one node type: no dict needed
    assert sampler.version == 2


def test_a_predictor_is_copied_for_each_edge_type() -> None:
    predictor = FiLMPredictor(WIDTH)
    sampler = make(predictor=predictor)
    sampler.refresh()
    models = [relation.model for relation in sampler.relations.values()]
    assert all(model is not None and model.predictor is not predictor for model in models)
    assert len({id(model) for model in models}) == 3
    one = make(predictor=predictor, etypes=["buys"])
    one.refresh()
    assert one.model is not None
    assert one.model.predictor is not predictor


# Log ratios, reports, state, workers.


def test_log_ratios_by_edge_type() -> None:
    g = shop()
    sampler = make(g, rule=Density(), uniform_share=0.2)
    eids = {"buys": torch.arange(30), "knows": torch.arange(20)}
    new = sampler.log_ratio(sampler(g, eids))
    assert all(not ratio.any() for ratio in new.values())
    sampler.refresh()
    negatives = sampler(g, eids)
    ratios = sampler.log_ratio(negatives)
    assert list(ratios) == [BUYS, KNOWS]
    for etype, (src, dst) in negatives.items():
        assert torch.equal(ratios[etype], sampler.distribution(etype).log_ratio(src, dst))
        assert ratios[etype].any()
    by_name = sampler.log_ratio({"knows": negatives[KNOWS]})
    assert same(by_name, {KNOWS: ratios[KNOWS]})
    with pytest.raises(ValueError, match=r"^negatives: no edge type of name 'like' in "):
        sampler.log_ratio({"like": negatives[KNOWS]})


def test_log_ratios_of_a_graph_with_negatives_of_a_type_that_is_not_held() -> None:
    g = shop()
    sampler = make(g, etypes=["buys"])
    sampler.refresh()
    negative = dgl.heterograph(
        {e: ([], []) for e in g.canonical_etypes if e != KNOWS} | {KNOWS: ([0], [1])},
        num_nodes_dict={"user": 12, "item": 9},
    )
    with pytest.raises(ValueError, match=r"^etype: no edge type of name .*'knows'"):
        sampler.log_ratio(negative)
    negative = dgl.remove_edges(negative, torch.tensor([0]), etype="knows")
    assert {e: tuple(r.shape) for e, r in sampler.log_ratio(negative).items()} == {BUYS: (0,)}


def test_the_report_is_by_edge_type() -> None:
    sampler = make()
    report = sampler.refresh()
    assert report is sampler.report
    assert report.version == sampler.version == 1
    assert list(report.by_type) == list(sampler.relations)
    for part in report.by_type.values():
        assert part.fit is not None
        assert len(part.fit.losses) == 4
        assert part.table.level_score
    for read in (lambda: report.fit, lambda: report.table):
        with pytest.raises(
            ValueError, match=r"^report: there is one for each edge type, .*by_type"
        ):
            read()
    one = make(etypes=["buys"]).refresh()
    assert one.table is one.by_type[BUYS].table
    assert one.fit is one.by_type[BUYS].fit


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("cls", [DMNSSampler, DynamicSampler, SelfAdversarialSampler])
@pytest.mark.parametrize("refreshes", [0, 2])
def test_a_loaded_state_goes_on_exactly(cls: Any, refreshes: int) -> None:
    g = shop()
    arguments = SMALL if cls is DMNSSampler else {"groups": 3}
    sampler, other = (cls(g, lambda: H, {"buys": 2, "knows": 4}, **arguments) for _ in range(2))
    for _ in range(refreshes):
        sampler.refresh()
    state = through_a_file(sampler.state_dict())
    kept = copy.deepcopy(state)
    other.load_state_dict(state)
    results = []
    for one in (sampler, other):
        torch.manual_seed(3)
        drawn = [one(g, {"buys": torch.arange(30), "knows": torch.arange(20)})]
        one.refresh({n: h + 0.1 for n, h in H.items()})
        drawn.append(one(g, {"buys": torch.arange(30), "knows": torch.arange(20)}))
        results.append((drawn, one.state_dict()))
    assert same(*results)
    assert other.version == refreshes + 1
    assert same(state, kept)


def test_states_that_do_not_fit_change_nothing() -> None:
    plain = dgl.graph(pairs(12, 12, 20, 2), num_nodes=12)
    homogeneous = DMNSSampler(plain, lambda: H["user"], 3, **SMALL)
    homogeneous.refresh()
    states: dict[str, Any] = {"a homogeneous graph": homogeneous.state_dict()}
    for name, arguments in (
        (r"\[\('user', 'buys', 'item'\)\], this sampler holds", {"etypes": ["buys"]}),
        ("another schedule, predictor or space", {"schedule": NoiseSchedule.linear(60)}),
    ):
        other = make(**arguments)
        other.refresh()
        states[name] = other.state_dict()
    sampler = make()
    sampler.refresh()
    before = sampler.state_dict()
    for name, state in states.items():
        with pytest.raises(ValueError, match=f"^state: made (for|with) {name}"):
            sampler.load_state_dict(state)
        assert same(before, sampler.state_dict())
    with pytest.raises(
        ValueError, match=r"^state: made for \[.*'buys'.*\], this sampler holds \[.*_E"
    ):
        homogeneous.load_state_dict(before)
    with pytest.raises(ValueError, match=r"^state: table of .*; use the same k, groups, uniform"):
        make(k={"buys": 3, "bought by": 3, "knows": 2}).load_state_dict(before)
    g = shop()
    g.add_nodes(1, ntype="item")
    with pytest.raises(
        ValueError,
        match=r"^state: made for \(9, 12\) nodes, this sampler has \(10, 12\); .* 'bought by'",
    ):
        make(g).load_state_dict(before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_look_up_and_do_nothing_else(duplicate: Any) -> None:
    g = shop()
    sampler = make(g, scorer=lambda a, b: (a * b).sum(-1))
    sampler.refresh()
    other = duplicate(sampler)
    drawn = []
    for one in (sampler, other):
        torch.manual_seed(4)
        drawn.append(one(g, {"buys": torch.arange(30), "knows": torch.arange(20)}))
    assert same(*drawn)
    assert sampler.log_ratio(drawn[0]).keys() == drawn[0].keys()
    with pytest.raises(RuntimeError, match="^distribution: this is a copy of a sampler"):
        other.log_ratio(drawn[0])
    assert repr(other) == repr(sampler)
    assert all(relation.model is None for relation in other.relations.values())
    with pytest.raises(RuntimeError, match="^refresh: this is a copy of a sampler"):
        other.refresh()
    assert sampler.refresh().version == 2


@pytest.mark.parametrize("persistent", [True, False])
def test_a_refresh_in_the_main_process_reaches_workers(persistent: bool) -> None:
    """The hardest item is the one that stands out; a refresh makes it another one."""
    g = shop()
    sampler = make(g, k=1, rule=Hardest(), pool=12, uniform_share=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        loader = DataLoader(
            g,
            {"buys": torch.arange(30)},
            as_edge_prediction_sampler(NeighborSampler([2]), negative_sampler=sampler),
            batch_size=10,
            num_workers=2,
            persistent_workers=persistent,
        )
        free = allowed(g, BUYS)
        for version, star in enumerate((2, 7), start=1):
            h = {"user": torch.ones(12, 1), "item": torch.ones(9, 1)}
            h["item"][star] = 9
            sampler.refresh(h)
            assert sampler.version == version
            ends = [pairs_of(negative, BUYS) for _, _, negative, _ in loader]
            src, dst = (torch.cat(side) for side in zip(*ends))
            assert int(free[src, star].sum()) > 15
            assert dst[free[src, star]].unique().tolist() == [star]


def test_attached_to_an_optimizer() -> None:
    g = shop()
    encoder = Hetero(g)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    sampler = make(g, encoder)
    sampler.attach(optimizer, every=2)
    for _ in range(4):
        encoder(g, g.ndata["feat"])["item"].sum().backward()
        optimizer.step()
    assert sampler.version == 3
    assert [r.table.version for r in sampler.relations.values()] == [3, 3, 3]


def test_users_with_no_edge_of_a_type_get_filtered_negatives_all_the_same() -> None:
    g = dgl.heterograph({BUYS: ([0, 0], [1, 2])}, num_nodes_dict={"user": 4, "item": 6})
    h = {"user": normal(4, WIDTH), "item": normal(6, WIDTH)}
    sampler = make(g, lambda: h, k=4, uniform_share=0.0)
    sampler.refresh()
    src, dst = g.edges()
    known = KnownEdges(src, dst, 4, 6, exclude_self=False)
    chosen = sampler.for_queries(g, torch.arange(4))
    assert not known.contains(torch.arange(4).unsqueeze(1), chosen).any()
    assert all(len(set(row)) == 4 for row in chosen.tolist())
