"""Graphs that grow between refreshes, and queries that are not in the graph at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import dgl
import pytest
import torch
from dgl.nn import SAGEConv
from shared import (
    BUYS,
    FOLLOWING,
    assert_drawn_from,
    barred,
    check,
    embed,
    ends,
    graph,
    loader,
    make,
    negatives,
    optimizer,
    pickled,
    refreshed,
    rng,
    same,
)
from torch import Tensor, nn

from dgl_dmns.core import NO_LEVEL, Density, Hardest, KnownEdges, Nearest, row_sizes
from dgl_dmns.samplers import DMNSSampler, Resources

BEFORE, AFTER, K = 40, 46, 3
EIDS = torch.arange(120)


def grown(g: Any) -> Any:
    """Six nodes more, an edge to and from each, and 120 more edges among the old nodes."""
    src, dst = torch.randint(0, BEFORE, (2, 120), generator=rng(2))
    new, friend = torch.arange(BEFORE, AFTER), torch.arange(AFTER - BEFORE)
    more = torch.cat([src, new, friend]), torch.cat([dst, friend, new])
    return dgl.add_edges(dgl.add_nodes(g, AFTER - BEFORE), *more)


def rows(count: int) -> Tensor:
    h: Tensor = embed(graph(count, 9))
    return h


# What is carried over, and what is not.


@pytest.mark.parametrize("name", [*FOLLOWING, "nearest"])
def test_negatives_of_the_new_graph_before_and_after_the_next_refresh(name: str) -> None:
    old_graph, g = graph(), grown(graph())
    options = {"rule": Nearest()} if name == "nearest" else {}
    sampler = refreshed("dmns" if options else name, old_graph, **options)
    old = sampler.table
    then = old.current().ids.clone()
    sampler.update_graph(g)
    assert sampler.version == 1
    assert sampler.known.num_src == AFTER
    assert sampler.known_by_type[sampler.relation().etype] is sampler.known
    assert torch.equal(old.current().ids, then)  # for workers that still run
    for version in (1, 2):
        for _ in range(3):
            src, dst = sampler(g, torch.arange(g.num_edges()))
            assert torch.equal(src, g.edges()[0].repeat_interleave(K))
            check(g, src, dst)
        new = torch.arange(BEFORE, AFTER)
        check(g, new.repeat_interleave(K), sampler.for_queries(g, new).flatten())
        assert sampler.version == version
        sampler.refresh()


@pytest.mark.parametrize("name", ["dmns", "self-adversarial"])
def test_only_negatives_that_are_edges_by_now_are_replaced(name: str) -> None:
    sampler, g = refreshed(name, graph()), grown(graph())
    old = sampler.table
    sampler.update_graph(g)
    new = sampler.table
    assert torch.equal(new.sizes(), row_sizes(sampler.known.degrees(), 3 * AFTER))
    assert bool((new.sizes()[:BEFORE] > old.sizes()).any())
    # Rows that have grown repeat their groups.
    query, place = new.spread(torch.arange(BEFORE))
    source = old.start[query] + (place - new.start[query]) % old.sizes(query)
    before = [field[source] for field in old.current()]
    after = new.current()
    hit = barred(g)[query.unsqueeze(1), before[0].long()]
    assert 5 < int(hit.sum()) < hit.numel() / 2
    for one, other in zip(before, after):
        assert torch.equal(one[~hit], other[place][~hit])
    assert (after.level[place][hit] == NO_LEVEL).all()
    assert (after.level[new.start[BEFORE] :] == NO_LEVEL).all()
    assert (after.ids.sort(dim=-1).values.diff(dim=-1) > 0).all()  # distinct in a group


def test_new_nodes_have_uniform_negatives_until_the_next_refresh() -> None:
    g = grown(graph())
    drawn = []
    for seed in range(5):
        sampler = refreshed("dynamic", graph(), groups=60, source="uniform", seed=seed)
        sampler.update_graph(g)
        drawn.append(sampler.table.current().ids[-60:].flatten().long())
    assert_drawn_from(torch.cat(drawn), (~barred(g)[-1]).float(), least=1e-4)


def test_the_diffusion_model_goes_on_where_it_was() -> None:
    sampler = refreshed("dmns", graph())
    model = sampler.model
    weights = copy.deepcopy(model.state_dict())
    sampler.update_graph(grown(graph()))
    assert sampler.model is model
    assert same(model.state_dict(), weights)
    report = sampler.refresh()
    assert len(report.fit.losses) == 2  # no second warm-up
    assert report.version == 2


def test_a_generator_learns_from_the_new_edges() -> None:
    """Two clusters, linked within at first and across afterwards: the density follows."""
    cluster = torch.arange(BEFORE) % 2
    h = nn.functional.one_hot(cluster, 2).float() + 0.1 * rows(BEFORE)[:, :2]
    pairs = torch.combinations(torch.arange(BEFORE))
    alike = cluster[pairs[:, 0]] == cluster[pairs[:, 1]]

    def linked(mask: Tensor) -> Any:
        some = pairs[mask][torch.rand(int(mask.sum())) < 0.3]
        return dgl.to_bidirected(dgl.graph(tuple(some.T), num_nodes=BEFORE))

    sampler = make("dmns", linked(alike), h, warmup_steps=200, fit_steps=300)
    shares = []
    for g in (None, linked(~alike)):
        if g is not None:
            sampler.update_graph(g)
        sampler.refresh()
        chosen = sampler.negatives_by_level(torch.arange(BEFORE), 4)[:, 0]
        shares.append(float((cluster[chosen] == cluster.unsqueeze(1)).float().mean()))
    assert shares[0] > 0.75
    assert shares[1] < shares[0] - 0.2


def test_before_the_first_refresh() -> None:
    sampler, g = make("dmns", graph()), grown(graph())
    sampler.update_graph(g)
    assert sampler.version == 0
    check(g, *sampler(g, torch.arange(g.num_edges())))
    assert sampler.refresh().version == 1


@pytest.mark.parametrize("name", ["dmns", "mcns", "adversarial"])
def test_a_state_resumes_on_the_new_graph(name: str) -> None:
    sampler, g = refreshed(name, graph()), grown(graph())
    early = sampler.state_dict()
    sampler.update_graph(g)
    state = sampler.state_dict()
    other = make(name, g)
    other.load_state_dict(pickled(state))
    for one in (sampler, other):
        assert same(one.state_dict(), state)
        one.refresh()
    assert same(sampler.state_dict(), other.state_dict())
    with pytest.raises(ValueError, match=r"^state: made for 40 nodes, this sampler has 46; load"):
        sampler.load_state_dict(early)
    # A state of the old graph: load it there, and then go on with the new one.
    third = make(name, graph())
    third.load_state_dict(early)
    third.update_graph(g)
    assert same(third.state_dict(), state)


def test_a_log_ratio_waits_for_the_next_refresh() -> None:
    sampler = refreshed("self-adversarial", graph())
    pairs = sampler(graph(), EIDS)
    sampler.update_graph(grown(graph()))
    with pytest.raises(RuntimeError, match="^distribution: .* none since the graph has changed"):
        sampler.log_ratio(pairs)
    sampler.refresh()
    assert sampler.log_ratio(pairs).any()


def test_rows_last_as_long_on_the_new_graph() -> None:
    sampler = make("dmns", graph(), groups=200)
    sampler.attach(optimizer(), every=4)
    for g in (graph(), grown(graph())):
        sampler.update_graph(g)
        assert torch.equal(sampler.table.sizes(), (sampler.known.degrees() * 4).clamp(min=1))
        assert not sampler.state_dict()["asked"].any()  # no edge of the graph has asked yet
        sampler(g, torch.arange(50))


def test_tables_keep_to_their_budget() -> None:
    budget = Resources(table_bytes=10 * 4 * 40)
    sampler = refreshed("dmns", graph(40, 240), k=2, groups=4, resources=budget)

    def first() -> Tensor:
        ids: Tensor = sampler.table.current().ids[sampler.table.start[:40]]
        return ids

    kept, known, sizes = first().clone(), sampler.known, sampler.table.sizes()
    assert 3 * 40 <= sampler.table.groups <= 4 * 40
    with pytest.raises(ValueError, match="^table_bytes: tables with one group for each source"):
        sampler.update_graph(graph(400, 1200))
    assert sampler.known is known
    assert torch.equal(sampler.table.sizes(), sizes)
    sampler.update_graph(dgl.add_nodes(graph(40, 240), 40))
    for _ in range(2):
        assert sampler.table.queries == 80
        assert 40 < sampler.table.groups - 40 <= 3 * 40
        if sampler.version == 1:
            assert torch.equal(first(), kept)
        sampler.refresh()


def test_several_types() -> None:
    def shop(users: int, items: int) -> Any:
        user, item = (torch.randint(0, n, (4 * users,)) for n in (users, items))
        edges = {BUYS: (user, item), ("item", "sold to", "user"): (item, user)}
        return dgl.heterograph(edges, num_nodes_dict={"user": users, "item": items})

    g, etypes = shop(20, 15), ("buys", "sold to")
    sampler = refreshed("dmns", g)
    for users, items in ((20, 19), (25, 19), (31, 40)):
        g = shop(users, items)
        sampler.update_graph(g)
        for _ in range(2):
            found = sampler(g, {e: torch.arange(g.num_edges(e)) for e in etypes})
            for etype, (src, dst) in found.items():
                assert src.numel() == K * g.num_edges(etype)
                check(g, src, dst, etype)
            report = sampler.refresh()
    assert report.version == 7
    assert sampler.relation("sold to").known.num_src == 40


# Workers and loaders.


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_run_on_a_graph_that_grows(workers: int) -> None:
    model = SAGEConv(5, 8, "mean")
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    g = graph()
    sampler = make("dmns", g, model)
    sampler.attach(adam, every=4)
    for number in range(3):
        if number == 1:
            g = grown(g)
            sampler.update_graph(g)
        for inputs, positive, negative, blocks in loader(g, sampler, workers):
            h = model(blocks[0], (g.ndata["feat"][inputs], blocks[0].dstdata["feat"]))
            check(g, *ends(negative))
            loss = sum(
                nn.functional.softplus(sign * (h[one.edges()[0]] * h[one.edges()[1]]).sum(1)).mean()
                for sign, one in ((-1, positive), (1, negative))
            )
            adam.zero_grad()
            loss.backward()
            adam.step()
    assert sampler.version >= 6
    assert (sampler.table.queries, sampler.table.k) == (AFTER, 2)  # one and a half of K are hard
    assert sampler.table.groups <= 3 * AFTER


def test_workers_that_still_run_keep_what_goes_with_their_graph() -> None:
    old, g = graph(), grown(graph())
    sampler = refreshed("dynamic", old)
    batches = loader(old, sampler, 2, persistent_workers=True)
    running = iter(batches)
    seen = [next(running)]
    sampler.update_graph(g)
    sampler.refresh()
    seen += [*running, *batches]
    assert len(seen) == 8
    check(old, *negatives(seen))
    src, dst = negatives(loader(g, sampler, 2))
    check(g, src, dst)
    assert len(src) == K * g.num_edges()


# DGL takes ten seconds to end workers after an error, whoever raised it.
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loader_of_the_old_graph_is_told(workers: int) -> None:
    old = graph()
    sampler = make("dynamic", old)
    batches = loader(old, sampler, workers)
    sampler.update_graph(grown(old))
    message = r"g: the sampler was made for 46 nodes of type '_N', the graph has 40; .*new loader"
    with pytest.raises(ValueError, match=message):
        list(batches)


def test_an_old_loader_draws_sources_that_its_graph_has() -> None:
    def shop(users: int) -> Any:
        edges = {BUYS: (torch.arange(5), torch.arange(5))}
        return dgl.heterograph(edges, num_nodes_dict={"user": users, "item": 30})

    sampler = refreshed("dmns", shop(5), k=4, source="uniform")
    sampler.update_graph(shop(50))
    assert int(sampler(shop(5), {BUYS: torch.arange(5)})[BUYS][0].max()) < 5


# What is refused.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda g: dgl.graph(([0], [1]), num_nodes=39),
            r"^g: expected at least the 40 nodes of type '_N' .*39",
        ),
        (
            lambda g: dgl.graph(([], []), num_nodes=50),
            r"^g: the sampler holds edge type .* no edge",
        ),
        (
            lambda g: dgl.heterograph(
                {("_N", "_E", "_N"): g.edges(), ("_N", "more", "_N"): g.edges()}
            ),
            "^g: expected node and edge types as before",
        ),
        (lambda g: dgl.graph(g.edges(), num_nodes=50), "^feat: the graph has no node feature"),
    ],
)
def test_graphs_that_do_not_fit_change_nothing(change: Callable[[Any], Any], message: str) -> None:
    g = graph()
    sampler = refreshed("dmns", g, SAGEConv(5, 8, "mean"))
    before = sampler.state_dict()
    with pytest.raises(ValueError, match=message):
        sampler.update_graph(change(g))
    assert same(sampler.state_dict(), before)
    sampler.refresh()
    check(g, *sampler(g, EIDS))


def test_an_edge_type_that_is_gone() -> None:
    both = {("a", "to", "b"): ([0, 1], [1, 0]), ("b", "to too", "a"): ([0], [1])}
    sampler = make("dynamic", dgl.heterograph(both), k=1)
    gone = dgl.heterograph({**both, ("b", "to too", "a"): ([], [])}, {"a": 2, "b": 2})
    with pytest.raises(ValueError, match=r"^g: the sampler holds edge type \('b', 'to too', 'a'\)"):
        sampler.update_graph(gone)


def test_embeddings_of_the_old_graph_are_refused_with_advice() -> None:
    g = graph()
    sampler = make("dynamic", g)
    g.add_nodes(1)
    with pytest.raises(ValueError, match=r"^encoder: expected shape \[40, D\], .* update_graph\(g"):
        sampler.refresh()
    sampler.update_graph(g)
    assert sampler.refresh().version == 1


# Queries by their embeddings.


@pytest.fixture(scope="module")
def fitted() -> DMNSSampler:
    sampler: DMNSSampler = refreshed("dmns", graph())
    return sampler


def test_queries_by_embedding_have_the_rule_of_the_table() -> None:
    """The hardest of all nodes, for queries that are no nodes of the graph."""
    sampler = refreshed("dmns", graph(), rule=Hardest(), pool=BEFORE, uniform_share=0.0)
    h_query = rows(AFTER)[BEFORE:]
    best = (h_query @ rows(BEFORE).T).topk(K + 1).indices
    chosen = sampler.for_embeddings(h_query)
    assert chosen.dtype == torch.int64
    assert torch.equal(chosen.sort(1).values, best[:, :K].sort(1).values)
    # With some of them known, the next ones.
    known = KnownEdges(torch.arange(6), best[:, 0], 6, BEFORE, exclude_self=False)
    chosen = sampler.for_embeddings(h_query, known=known)
    assert torch.equal(chosen.sort(1).values, best[:, 1:].sort(1).values)


@pytest.mark.parametrize("rule", [Density(), Nearest()])
def test_an_embedding_gets_what_its_node_gets(rule: Any) -> None:
    """The distribution for a node's own embedding is that of its row in the table."""
    g, node, times = graph(), 5, 1000
    alike = {"uniform_share": 0.0, "groups": times, "source": "uniform"}
    sampler = refreshed("dmns", g, rule=rule, warmup_steps=60, pool=BEFORE, **alike)
    edges = barred(g)[node].nonzero().squeeze(1)
    query = torch.arange(times).repeat_interleave(edges.numel())
    known = KnownEdges(query, edges.repeat(times), times, BEFORE, exclude_self=False)
    drawn = sampler.for_embeddings(rows(BEFORE)[[node] * times], known=known)
    row = sampler.table.current().ids.view(BEFORE, times, K)[node]
    counts = [torch.bincount(ids.flatten().long(), minlength=BEFORE) for ids in (row, drawn)]
    share = torch.stack([count / count.sum() for count in counts])
    assert not share[:, edges].any()
    uniform = (~barred(g)[node]).float() / (BEFORE - edges.numel())
    apart = (share.unsqueeze(1) - torch.stack([share[0], uniform])).abs().sum(-1) / 2
    assert float(apart[1, 0]) < 0.1
    assert float(apart[:, 1].min()) > 0.1


def test_queries_by_embedding_repeat_with_a_generator(fitted: DMNSSampler) -> None:
    state = fitted.state_dict()
    first, second = (fitted.for_embeddings(rows(9), generator=rng(4)) for _ in "ab")
    assert torch.equal(first, second)
    assert same(fitted.state_dict(), state)
    assert fitted.for_embeddings(rows(9)[:0]).shape == (0, K)


@pytest.mark.parametrize(
    ("h_query", "more", "message"),
    [
        (rows(3)[0], {}, r"^h_query: expected shape \[B, 6\], got \(6,\)"),
        (rows(3)[:, :5], {}, r"^h_query: expected shape \[B, 6\], got \(3, 5\)"),
        (rows(3).long(), {}, "^h_query: expected floating point .* got torch.int64"),
        (rows(3) / 0, {}, "^h_query: expected floating point embeddings without NaN"),
        (
            rows(3),
            {"known": KnownEdges(torch.tensor([0]), torch.tensor([1]), 40)},
            r"^known: expected edges from 3 queries .* to 40 nodes of type '_N', got KnownEdges",
        ),
        (rows(3), {"embeddings": rows(39)}, r"^encoder: expected shape \[40, D\]"),
    ],
)
def test_messages(fitted: DMNSSampler, h_query: Tensor, more: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted.for_embeddings(h_query, **more)


def test_queries_by_embedding_need_a_refresh() -> None:
    with pytest.raises(RuntimeError, match="^for_embeddings: no generator is fitted yet; call"):
        make("dmns", graph()).for_embeddings(rows(3))
