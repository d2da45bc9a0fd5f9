"""`candidates=`: only admissible ones are drawn, by their own distribution, and who is refused."""

from __future__ import annotations

import math
import warnings
from typing import Any

import dgl
import pytest
import torch
from shared import (
    BUYS,
    FOLLOWING,
    KINDS,
    KNOWS,
    assert_drawn_from,
    barred,
    embed,
    ends,
    graph,
    loader,
    make,
    normal,
    optimizer,
    pickled,
    refreshed,
    shop,
    through_a_file,
)

from dgl_dmns import DMNSSampler, MCNSSampler, Pools
from dgl_dmns.core import Density, Nearest
from dgl_dmns.evaluate import fixed_negatives
from dgl_dmns.losses import shared_softmax_loss
from dgl_dmns.samplers import candidates as module
from dgl_dmns.samplers.minibatch import pair_batches, weighed
from dgl_dmns.samplers.registry import default_options

SOME = torch.arange(3, 40, 3)
NAMES = [name for name in KINDS if name != "mcns"]


def may_be(g: Any, some: Any = SOME, etype: Any = None) -> Any:
    """Which pairs may be negatives."""
    may = ~barred(g, etype)
    within = torch.zeros(may.shape[1], dtype=torch.bool)
    within[some] = True
    return may & within


@pytest.mark.parametrize("name", NAMES)
def test_admissible_candidates_alone_are_drawn(name: str) -> None:
    g = graph()
    sampler = refreshed(name, g, candidates=SOME.flip(0))
    for one in (sampler, pickled(sampler)):
        src, dst = one(g, torch.arange(g.num_edges()).repeat(3))
        assert may_be(g)[src, dst].all()
    before = make(name, g, candidates=SOME)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        query = before.for_queries(g, torch.arange(40))
    assert may_be(g)[torch.arange(40).unsqueeze(1), query].all()


@pytest.mark.parametrize("name", ["uniform", "dmns"])
def test_in_workers_and_after_refreshes(name: str) -> None:
    g = graph()
    sampler = refreshed(name, g, candidates=SOME)
    if name == "dmns":
        sampler.attach(optimizer(), every=4)
    for _, _, neg, _ in loader(g, sampler, 1):
        assert may_be(g)[ends(neg)].all()


def test_by_edge_type_and_destination_type() -> None:
    g = shop()
    items, users = torch.tensor([0, 3, 4, 8]), torch.tensor([1, 5, 7, 9, 10])
    cases = [
        ({"item": items}, {BUYS: items, KNOWS: torch.arange(12)}),
        ({"buys": items, KNOWS: users}, {BUYS: items, KNOWS: users}),
        ({"user": users, "knows": users[:3]}, {BUYS: torch.arange(9), KNOWS: users[:3]}),
    ]
    for given, expected in cases:
        for name in ("uniform", "dmns"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some query knows all of so few
                sampler = refreshed(name, g, candidates=given)
            for etype, some in expected.items():
                negatives = sampler(g, {etype: torch.arange(g.num_edges(etype)).repeat(4)})
                src, dst = negatives[etype]
                may = may_be(g, some, etype)
                has = may.any(1)[src]
                assert may[src[has], dst[has]].all()


# ---- distributions ------------------------------------------------------------------------------


def test_densities_are_over_admissible_candidates() -> None:
    """Pools of all candidates: the mixture of levels, each normalised over who is admissible."""
    g, many = graph(), 4000
    sampler = refreshed(
        "dmns", g, k=1, candidates=SOME, rule=Density(), pool=40, uniform_share=0.0, groups=many,
        source="uniform",
    )  # fmt: skip
    model, z_query, z = sampler.look().diffusion
    density = model.gaussians(z_query).pool_log_prob(z.unsqueeze(0)).squeeze(1).exp().double()
    density = density * may_be(g)
    density = density / density.sum(-1, keepdim=True)
    share = torch.tensor(model.levels.mixture_shares).double().view(-1, 1, 1)
    q = (share * density).sum(0)
    src, dst = may_be(g).nonzero(as_tuple=True)
    ratio = sampler.distribution().log_ratio(src, dst)
    expected = (q[src, dst] * may_be(g).sum(1)[src]).log().float()
    torch.testing.assert_close(ratio, expected, rtol=1e-3, atol=1e-3)
    place = sampler.table.spread(torch.arange(0, 40, 5))[1]
    held = sampler.table.current(place).ids.view(8, many)
    for v, ids in zip(range(0, 40, 5), held):
        assert_drawn_from(ids.long(), q[v], least=1e-4)


def test_other_rules_and_draws_over_all_nodes() -> None:
    g = graph()
    every = torch.arange(40)
    for rule in (Nearest(), Nearest(pool=20)):
        sampler = refreshed("dmns", g, candidates=SOME, rule=rule, uniform_share=0.0)
        src, dst = sampler(g, torch.arange(g.num_edges()))
        assert may_be(g)[src, dst].all()
    sampler = refreshed("dmns", g, candidates=SOME)
    ids = sampler.negatives_by_level(every, 3)
    assert may_be(g)[every.view(-1, 1, 1), ids].all()
    new = sampler.for_embeddings(normal(50, embed(g).shape[1]))
    assert torch.isin(new, SOME).all()
    fixed = fixed_negatives(sampler, torch.tensor([[0, 1], [2, 4]]), n=4)
    assert torch.isin(fixed.negatives, SOME).all()


def test_statistics_are_over_candidates() -> None:
    g = graph(400, 900)
    some = torch.arange(0, 400, 40)
    table = make("uniform", g, k=5, candidates=some).stats(embeddings=embed(g))
    row = table.set_index("level").loc["all"]
    assert abs(row["gini"] - row["gini_uniform"]) < 0.1
    assert row["distinct"] == 10
    assert row["top_1_percent"] < 0.2


def test_in_a_batch_without_a_candidate_negatives_are_uniform_and_count_nothing() -> None:
    g = graph()
    some = torch.tensor([7, 9])
    sampler = make("in-batch", g, candidates=some)
    eids = (~torch.isin(g.edges()[1], some)).nonzero().squeeze(1)
    src, dst = g.find_edges(eids)
    drawn = sampler(g, eids)[1].view(-1, 3)
    assert torch.isin(drawn, some).all()
    ratio = sampler.batch_log_ratio(g.canonical_etypes[0], src, dst, drawn)
    assert (ratio == math.inf).all()


@pytest.mark.filterwarnings("ignore:.*no true negative exists")
@pytest.mark.parametrize("name", ["uniform", "dmns"])
def test_the_loss_of_known_edges_is_that_of_a_mask_of_what_is_admissible(name: str) -> None:
    """Also where a query without any candidate brings itself, which is none, into the pool."""
    src, dst = (torch.cat(part) for part in zip(graph().edges(), (torch.zeros(13).long(), SOME)))
    g = dgl.graph((src, dst), num_nodes=40)
    sampler = refreshed(name, g, k=2, candidates=SOME)
    pos, eids = g, torch.arange(g.num_edges())
    neg = dgl.graph(sampler(g, eids), num_nodes=40)
    assert (neg.edges()[1] == 0).any()
    h = normal(40, 4, seed=5).requires_grad_()
    (one,) = pair_batches(h, pos, neg, list(sampler.known_by_type)).values()
    ratio, chosen = weighed(sampler, one, "batch")
    mask = ~may_be(g)[one.src.unsqueeze(1), one.candidates.flatten()]
    ids = one.src, one.dst, one.candidates
    more = {"num_nodes": 13, "known": mask, "log_ratio": ratio, "chosen": chosen}
    loss = shared_softmax_loss(h, *ids, **more)
    found = sampler.loss(h, pos, neg)
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(*(torch.autograd.grad(x, h)[0] for x in (found, loss)))


# ---- who has no candidate, states, growth -------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_query_without_an_admissible_candidate_gets_itself(name: str) -> None:
    src, dst = torch.tensor([0, 0, 1, 2, 3, 4]), torch.tensor([1, 2, 3, 4, 5, 0])
    g = dgl.graph((src, dst), num_nodes=6)
    with pytest.warns(UserWarning, match=r"1 node\(s\), for example 0, .* every other candidate"):
        sampler = refreshed(name, g, k=2, candidates=torch.tensor([1, 2]))
    found = sampler(g, torch.arange(6))[1].view(6, 2)
    assert (found[:2] == 0).all()
    assert torch.isin(found[2:], torch.tensor([1, 2])).all()
    h = normal(6, 3).requires_grad_()
    if name in ("dmns", "uniform", "popularity", "in-batch"):
        loss = sampler.loss(
            h, g, dgl.graph((src.repeat_interleave(2), found.flatten()), num_nodes=6)
        )
        assert math.isfinite(float(loss))


def test_a_query_of_another_type_gets_any_candidate() -> None:
    edges = {BUYS: (torch.tensor([0, 0, 1]), torch.tensor([1, 2, 3]))}
    g = dgl.heterograph(edges, num_nodes_dict={"user": 2, "item": 5})
    with pytest.warns(UserWarning, match="every other candidate.* any candidate"):
        sampler = make("uniform", g, k=200, candidates=torch.tensor([1, 2]))
    drawn = sampler.for_queries(g, torch.tensor([0]))
    assert drawn.unique().tolist() == [1, 2]


@pytest.mark.parametrize("name", [name for name in FOLLOWING if name != "mcns"])
def test_states_name_their_candidates(name: str) -> None:
    g = graph()
    sampler = refreshed(name, g, candidates=SOME)
    state = through_a_file(sampler.state_dict())
    again = make(name, g, candidates=SOME.flip(0))
    again.load_state_dict(state)
    eids = torch.arange(g.num_edges())
    torch.manual_seed(4)
    expected = sampler(g, eids)[1]
    torch.manual_seed(4)
    assert torch.equal(again(g, eids)[1], expected)
    for other in (SOME[:-1], None):
        more = {} if other is None else {"candidates": other}
        with pytest.raises(ValueError, match=r"state: made for other candidates .* '_E'"):
            make(name, g, **more).load_state_dict(state)
    plain = refreshed(name, g).state_dict()
    with pytest.raises(ValueError, match=r"state: made for other candidates \(all nodes, this"):
        again.load_state_dict(plain)


def test_new_nodes_are_no_candidates() -> None:
    g = graph()
    sampler = refreshed("dmns", g, candidates=SOME)
    grown = dgl.add_edges(dgl.add_nodes(g, 5), torch.arange(40, 45), torch.arange(5))
    sampler.update_graph(grown)
    for _ in range(2):
        src, dst = sampler(grown, torch.arange(grown.num_edges()).repeat(3))
        assert may_be(grown)[src, dst].all()
        sampler.refresh()


# ---- bad input ----------------------------------------------------------------------------------


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    g, typed = graph(), shop()
    none = torch.empty(0, dtype=torch.int64)
    cases: list[tuple[Any, Any, type[Exception], str]] = [
        (g, none, ValueError, "expected at least one node of type '_N'.*leave them out"),
        (g, torch.tensor([3, 40]), ValueError, r"ids of type '_N' in 0 \.\. 39, got 3 \.\. 40"),
        (g, torch.tensor([-1, 4]), ValueError, r"in 0 \.\. 39, got -1 \.\. 4"),
        (g, torch.tensor([1.0, 2.0]), TypeError, "got torch.float32"),
        (g, torch.ones(40, dtype=torch.bool), TypeError, "for a mask, pass mask.nonzero"),
        (g, [1, 2], TypeError, r"write torch.tensor\(candidates\)"),
        (g, torch.tensor([[1, 2]]), ValueError, r"expected shape \[B\]"),
        (g, {"item": SOME}, ValueError, "no edge type of name 'item'"),
        (typed, torch.tensor([1]), ValueError, "expected a dict by edge type or destination node"),
        (typed, {"sells": none}, ValueError, "no edge type of name 'sells'"),
        (typed, {"buys": none}, ValueError, "at least one node of type 'item' for .*'buys'"),
    ]
    for name in ("uniform", "dmns"):
        for one, given, error, message in cases:
            with pytest.raises(error, match=f"candidates: .*{message}"):
                make(name, one, candidates=given)
        with monkeypatch.context() as patch:
            patch.setattr(module, "is_distributed", lambda g, kind: True)
            with pytest.raises(ValueError, match="candidates: a distributed graph draws among all"):
                make(name, g, candidates=SOME)
    with pytest.raises(TypeError, match="candidates"):
        MCNSSampler(g, embed, candidates=SOME)


def test_negatives_of_another_sampler_are_refused_by_the_loss() -> None:
    g = graph()
    sampler, other = make("uniform", g, k=4, candidates=SOME), make("uniform", g, k=4)
    pos = dgl.graph(g.find_edges(torch.arange(40)), num_nodes=40)
    neg = dgl.graph(other(g, torch.arange(40)), num_nodes=40)
    with pytest.raises(ValueError, match="known edges of their sources, or no candidates"):
        sampler.loss(normal(40, 3), pos, neg)


def test_settings_with_candidates() -> None:
    assert Pools(pool=64, candidates=SOME) == Pools(pool=64, candidates=SOME.clone())
    for name in KINDS:
        assert "candidates" not in default_options(name)
    g = graph()
    sampler = DMNSSampler(g, embed, pools=Pools(pool=64, candidates=SOME))
    assert sampler.settings.pool == 64
    assert "candidates=13" in repr(sampler.known)
    assert torch.equal(sampler.known.candidates, SOME)
