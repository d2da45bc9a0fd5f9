"""Samplers that follow an encoder, on bipartite, heterogeneous and many-relation graphs.

What every sampler has to do alike is in `test_conformance`.
"""

from __future__ import annotations

import gc
import itertools
import os
import resource
from typing import Any

import dgl
import pytest
import torch
from dgl.nn import HeteroGraphConv, SAGEConv
from shared import (
    BUYS,
    KNOWS,
    WIDTH,
    assert_drawn_from,
    barred,
    check,
    embed,
    ends,
    loader,
    make,
    normal,
    pairs,
    refreshed,
    rng,
    same,
    seed,
    shop,
)
from torch import Tensor, nn

from dgl_dmns.core import Density, FiLMPredictor, Hardest, NoiseSchedule, dot_score

H = embed(shop())


# Against the truth.


def test_self_adversarial_draws_from_the_softmax_over_the_destination_type() -> None:
    g = shop()
    # All items in the pool and k = 1: the groups of a row are independent draws.
    options = {"pool": 9, "groups": 1000, "source": "uniform", "etypes": ["buys"]}
    sampler = refreshed("self-adversarial", g, k=1, **options)
    drawn = sampler.table.current().ids.long().view(12, 1000)
    free = ~barred(g, BUYS)
    for user in range(12):
        weight = (H["item"] @ H["user"][user]).double().exp() * free[user]
        assert_drawn_from(drawn[user], weight, least=1e-4)
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
    for relation, step, value in (("buys", 1, 11), ("views", -1, 12)):
        linked = ((group + step) % groups).unsqueeze(1) == group
        linked &= torch.rand(count, count, generator=rng(value)) < 0.5
        edges["user", relation, "item"] = linked.nonzero(as_tuple=True)
    return dgl.heterograph(edges, num_nodes_dict={"user": count, "item": count}), h


def test_each_edge_type_learns_its_own_neighbours() -> None:
    g, h = matched()
    likely: dict[tuple[float, str], float] = {}
    for share in (0.0, 1.0):
        options = {"uniform_share": share, "groups": 8, "batch_pairs": 256, "warmup_steps": 200}
        sampler = refreshed("dmns", g, h, rule=Density(), **options)
        for relation, step in (("buys", 1), ("views", -1)):
            eids = {relation: torch.arange(g.num_edges(relation))}
            src, dst = sampler(g, eids)["user", relation, "item"]
            wanted = dst // 10 == (src // 10 + step) % 4
            likely[share, relation] = float(wanted.float().mean())
    for relation in ("buys", "views"):
        assert likely[1.0, relation] == pytest.approx(5 / 35, abs=0.05)
        assert likely[0.0, relation] > 3 * likely[1.0, relation]


def test_a_space_holds_both_ends() -> None:
    h = {"user": H["user"], "item": H["item"] + 4}
    sampler = refreshed("dmns", shop(), h, compact_width=3)
    for name, held in (("buys", torch.cat([h["user"], h["item"]])), ("knows", h["user"])):
        mean = sampler.relation(name).model.space.mean
        torch.testing.assert_close(mean, nn.functional.normalize(held, dim=1).mean(0))


# A graph with many relations, each with a scorer of its own.


def knowledge_graph() -> Any:
    """Twelve relations among three types of entities, several between the same two types."""
    sizes = {"person": 30, "place": 20, "work": 25}
    edges = {}
    for i in range(12):
        source, destination = (list(sizes)[(i + j * (1 + i // 3)) % 3] for j in (0, 1))
        edges[source, f"r{i}", destination] = pairs(sizes[source], sizes[destination], 20, 20 + i)
    return dgl.heterograph(edges, num_nodes_dict=sizes)


class Weighted(nn.Module):
    """A bilinear scorer; each prefers other entities."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(WIDTH, seed=seed))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * self.weight * b).sum(-1)


def test_every_relation_heeds_its_own_scorer() -> None:
    g = knowledge_graph()
    scorers = {e: Weighted(40 + i) for i, e in enumerate(g.etypes)}
    assert len({(s == d) for s, _, d in g.canonical_etypes}) == 2  # within types and between them
    h = embed(g)
    sampler = refreshed("dynamic", g, k=4, pool=30, groups=2, scorer=scorers)
    for etype in g.canonical_etypes:
        score = scorers[etype[1]](h[etype[0]].unsqueeze(1), h[etype[2]].unsqueeze(0))
        best = score.masked_fill(barred(g, etype), -torch.inf).topk(4).indices
        chosen = sampler.for_queries(g, torch.arange(g.num_nodes(etype[0])), etype)
        assert torch.equal(chosen.sort(1).values, best.sort(1).values)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_epoch_over_many_relations(workers: int) -> None:
    g = knowledge_graph()
    k = {etype: 1 + i % 3 for i, etype in enumerate(g.etypes)}
    scorer = nn.ModuleDict({e: Weighted(40 + i) for i, e in enumerate(g.etypes)})
    sampler = make("dmns", g, k=k, scorer=scorer)
    assert list(sampler.refresh().by_type) == g.canonical_etypes
    batches = loader(g, sampler, workers, {e: torch.arange(20) for e in g.etypes}, batch_size=60)
    seen = dict.fromkeys(g.canonical_etypes, 0)
    for _, positive, negative, _ in batches:
        ratios = sampler.log_ratio(negative)
        for etype in g.canonical_etypes:
            src, dst = ends(negative, etype)
            assert torch.equal(src, ends(positive, etype)[0].repeat_interleave(k[etype[1]]))
            check(g, src, dst, etype)
            assert torch.equal(ratios[etype], sampler.log_ratio({etype: (src, dst)})[etype])
            seen[etype] += src.numel()
    assert seen == {etype: 20 * k[etype[1]] for etype in g.canonical_etypes}
    assert repr(sampler).startswith("DMNSSampler(k=1..3, types=12, rule=Blend(")


class Kept(nn.Module):
    """An encoder that returns its features, and keeps what it was given."""

    def forward(self, g: Any, x: Any) -> Any:
        self.seen = x
        return x


def test_one_node_type_with_several_relations() -> None:
    edges = {("n", "a", "n"): pairs(15, 15, 30, 1), ("n", "b", "n"): pairs(15, 15, 9, 2)}
    g = dgl.heterograph(edges)
    g.ndata["feat"] = normal(15, WIDTH)
    encoder, drawn = Kept(), []
    for one in (encoder, lambda: g.ndata["feat"]):  # a dict of one, or that one
        sampler = refreshed("dmns", g, one)
        seed()
        drawn.append(sampler(g, {"a": torch.arange(30), "b": torch.arange(9)}))
    assert same(*drawn)
    assert list(encoder.seen) == ["n"]
    for etype, (src, dst) in drawn[0].items():
        check(g, src, dst, etype)


# Which edge types, and how many negatives of each.


def test_k_by_edge_type_says_which_are_held() -> None:
    g = shop()
    sampler = make("dmns", g, k={"buys": 2, KNOWS: 5})
    for _ in range(2):
        result = sampler(g, {"buys": torch.arange(4), "knows": torch.arange(3)})
        assert {etype: dst.numel() for etype, (_, dst) in result.items()} == {BUYS: 8, KNOWS: 15}
        with pytest.raises(ValueError, match=r"^etype: no negatives for .*'bought by'.* in k if"):
            sampler(g, {"bought by": torch.arange(2)})
        (none,) = sampler(g, {"bought by": torch.arange(0)}).values()
        assert none[1].shape == (0,)
        sampler.refresh()
    assert list(sampler.relations) == [BUYS, KNOWS]
    assert sampler.k == 5


def test_a_type_does_not_depend_on_what_else_is_held() -> None:
    g, drawn = shop(), []
    for etypes in (None, ["knows"], [KNOWS, "buys"]):
        sampler = refreshed("dmns", g, etypes=etypes)
        sampler.refresh()
        seed(1)
        drawn.append(sampler(g, {"knows": torch.arange(20)}))
    assert same(drawn[0], drawn[1])
    assert same(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"etypes": "buys"}, TypeError, "etypes: expected a list of edge types, got 'buys'; put"),
        ({"etypes": ["sells"]}, ValueError, "etypes: no edge type of name 'sells' in "),
        ({"etypes": []}, ValueError, "etypes, k: expected at least one edge type, got none"),
        ({"k": {}}, ValueError, "etypes, k: expected at least one edge type, got none"),
        ({"etypes": ["like"]}, ValueError, r"etypes, k: expected .* got .*'like'.* without any"),
        ({"k": {"like": 2}}, ValueError, r"etypes, k: expected .* got .*'like'.* without any"),
        ({"k": {"sells": 2}}, ValueError, "k: no edge type of name 'sells' in "),
        ({"k": {"buys": 0}}, ValueError, "k: expected at least 1 negative per edge, got 0"),
        ({"k": {"buys": 1.0}}, TypeError, "k: expected an integer"),
        ({"k": {"buys": 1}, "etypes": ["knows"]}, ValueError, "etypes: .* are not the edge types"),
        ({"k": {"buys": 1, "knows": 9}, "pool": 8}, ValueError, "pool: expected at least k = 9"),
        ({"scorer": {"buys": dot_score}}, ValueError, "scorer: expected one .* none for .*knows"),
        ({"scorer": {"sells": dot_score}}, ValueError, "scorer: no edge type of name 'sells'"),
        ({"scorer": 3}, TypeError, "scorer: expected a callable of two tensors .* got int"),
        ({"scorer": {"buys": 3}, "etypes": ["buys"]}, TypeError, "scorer of 'buys': expected a ca"),
        ({"encoder": nn.Identity(), "feat": "x"}, ValueError, "feat: nodes of type item, user hav"),
    ],
)
def test_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        make("dmns", shop(), **arguments)


@pytest.mark.filterwarnings("ignore:.*no true negative")
def test_a_name_that_several_edge_types_share() -> None:
    g = dgl.heterograph({("a", "to", "b"): ([0], [0]), ("b", "to", "a"): ([0], [0])})
    with pytest.raises(ValueError, match="^etypes: several .* of name 'to' in .*; name one"):
        make("dmns", g, etypes=["to"])
    assert list(make("dmns", g, etypes=[("a", "to", "b")]).relations) == [("a", "to", "b")]


def test_what_is_asked_of_one_type_has_to_name_it() -> None:
    sampler = refreshed("dmns", shop())
    for ask in (
        lambda: sampler.table,
        lambda: sampler.known,
        lambda: sampler.model,
        lambda: sampler.draw(torch.arange(2)),
        lambda: sampler.generate(H["user"]),
        lambda: sampler.for_embeddings(H["user"]),
        lambda: sampler.log_ratio((torch.arange(2), torch.arange(2))),
    ):
        with pytest.raises(ValueError, match=r"^etype: there are edge types .*; name one"):
            ask()
    assert sampler.draw(torch.arange(2), "buys").ids.shape == (2, 3)
    assert sampler.generate(H["user"], etype=BUYS).shape == (4, 12, WIDTH)
    assert int(sampler.for_embeddings(H["user"], etype="buys").max()) < 9
    with pytest.raises(ValueError, match=r"^etype: no edge type of name 'like' in "):
        sampler.relation("like")
    one = refreshed("dmns", shop(), etypes=["buys"])
    assert one.table is one.relation("buys").table
    assert one.model is not None
    assert one.known.num_dst == 9


@pytest.mark.parametrize("name", ["dynamic", "uniform"])
def test_more_edge_types_than_files_may_be_open(name: str) -> None:
    g = knowledge_graph()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # tables of other tests that would give their files back while this one runs
    taken = {int(one) for one in os.listdir("/proc/self/fd")}
    free = (number for number in itertools.count() if number not in taken)
    # The limit is on the numbers, and these have gaps: leave exactly twenty of them.
    limit = next(itertools.islice(free, 20, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        with pytest.raises(RuntimeError, match=r"^g: what is held for 12 .*ulimit -n 8192"):
            make(name, g)
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
    encoder, options = Hetero(g), {"rule": Hardest(), "pool": 12}
    sampler = refreshed("dmns", g, encoder, **options)
    assert encoder.modes == [False]
    assert encoder.training
    h = encoder(g, {n: g.nodes[n].data["feat"] for n in g.ntypes})
    given = make("dmns", g, **options)
    given.refresh(h)
    for other in (refreshed("dmns", g, lambda graph: h, **options), given):
        for etype, relation in sampler.relations.items():
            assert torch.equal(relation.table.cells, other.relations[etype].table.cells)
    assert all(p.grad is None for p in encoder.parameters())


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"user": H["user"]}, r".* \['item', 'user'\], got none of \['item'\]; .* reverse"),
        (H["user"], r"expected a dict of tensors .* \['item', 'user'\], got Tensor; return"),
        ({**H, "item": H["item"][:, :4]}, r"expected one width D .*: 4.*; project"),
        ({**H, "item": H["item"][:-1]}, r"item: expected shape \[9, D\], got \(8, 6\)"),
        ({**H, "user": H["user"] / 0}, "user: NaN or infinity in 12 of 12 rows"),
        ({**H, "user": None}, r"user: expected a tensor \[N, D\], got NoneType"),
    ],
)
def test_output_of_the_encoder(output: Any, message: str) -> None:
    sampler = refreshed("dmns", shop())
    before = sampler.state_dict()
    for refresh in (make("dmns", shop(), lambda: output).refresh, lambda: sampler.refresh(output)):
        with pytest.raises(ValueError, match=f"^encoder: {message}"):
            refresh()
    assert same(before, sampler.state_dict())


def test_only_the_node_types_of_held_edge_types_are_needed() -> None:
    sampler = make("dmns", shop(), etypes=["knows"])
    sampler.refresh({"user": H["user"]})
    sampler.refresh(H["user"])  # one node type: no dict needed
    assert sampler.version == 2


def test_a_predictor_is_copied_for_each_edge_type() -> None:
    predictor = FiLMPredictor(WIDTH)
    sampler = refreshed("dmns", shop(), predictor=predictor)
    found = [predictor, *(r.model.predictor for r in sampler.relations.values())]
    assert len(set(map(id, found))) == 4


# Log ratios, reports, states.


def test_log_ratios_by_edge_type() -> None:
    g = shop()
    sampler = make("dmns", g, rule=Density(), uniform_share=0.2)
    eids = {"buys": torch.arange(30), "knows": torch.arange(20)}
    assert not any(ratio.any() for ratio in sampler.log_ratio(sampler(g, eids)).values())
    sampler.refresh()
    negatives = sampler(g, eids)
    ratios = sampler.log_ratio(negatives)
    assert list(ratios) == [BUYS, KNOWS]
    for etype, (src, dst) in negatives.items():
        assert torch.equal(ratios[etype], sampler.distribution(etype).log_ratio(src, dst))
        assert ratios[etype].any()
    assert same(sampler.log_ratio({"knows": negatives[KNOWS]}), {KNOWS: ratios[KNOWS]})
    with pytest.raises(ValueError, match=r"^negatives: no edge type of name 'like' in "):
        sampler.log_ratio({"like": negatives[KNOWS]})


def test_log_ratios_of_a_graph_with_negatives_of_a_type_that_is_not_held() -> None:
    g = shop()
    sampler = refreshed("dmns", g, etypes=["buys"])
    edges = {e: ([], []) for e in g.canonical_etypes} | {KNOWS: ([0], [1])}
    negative = dgl.heterograph(edges, num_nodes_dict={"user": 12, "item": 9})
    with pytest.raises(ValueError, match=r"^etype: no edge type of name .*'knows'"):
        sampler.log_ratio(negative)
    negative = dgl.remove_edges(negative, torch.tensor([0]), etype="knows")
    assert {e: tuple(r.shape) for e, r in sampler.log_ratio(negative).items()} == {BUYS: (0,)}


def test_the_report_is_by_edge_type() -> None:
    sampler = make("dmns", shop())
    report = sampler.refresh()
    assert report is sampler.report
    assert list(report.by_type) == list(sampler.relations)
    for part in report.by_type.values():
        assert len(part.fit.losses) == 4
        assert part.table.level_score
    for read in (lambda: report.fit, lambda: report.table):
        with pytest.raises(ValueError, match=r"^report: there is one for each edge type, .*by_typ"):
            read()
    one = make("dmns", shop(), etypes=["buys"]).refresh()
    assert (one.table, one.fit) == (one.by_type[BUYS].table, one.by_type[BUYS].fit)


def test_states_that_do_not_fit_change_nothing() -> None:
    plain = refreshed("dmns", dgl.graph(pairs(12, 12, 20, 2), num_nodes=12))
    sampler = refreshed("dmns", shop())
    before = sampler.state_dict()
    for message, other in (
        ("made for a homogeneous graph", plain),
        (r"made for \[.*'buys'.*\], this sampler h", refreshed("dmns", shop(), etypes=["buys"])),
        ("made with another s", refreshed("dmns", shop(), schedule=NoiseSchedule.linear(60))),
    ):
        with pytest.raises(ValueError, match=f"^state: {message}"):
            sampler.load_state_dict(other.state_dict())
        assert same(before, sampler.state_dict())
    with pytest.raises(ValueError, match=r"^state: made for \[.*'buys'.*\], this .* \[.*_E"):
        plain.load_state_dict(before)
    with pytest.raises(ValueError, match=r"^state: table of .*; use the same k, groups, uniform"):
        make("dmns", shop(), k={"buys": 3, "bought by": 3, "knows": 2}).load_state_dict(before)
    g = dgl.add_nodes(shop(), 1, ntype="item")
    message = r"^state: made for \(9, 12\) nodes, this sampler has \(10, 12\); .* 'bought by'"
    with pytest.raises(ValueError, match=message):
        make("dmns", g).load_state_dict(before)
