"""Graphs that grow between refreshes, and queries that are not in the graph at all."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import dgl
import pytest
import torch
from dgl.dataloading import DataLoader, NeighborSampler, as_edge_prediction_sampler
from dgl.nn import SAGEConv
from scipy.stats import chisquare
from states import same
from torch import Tensor, nn

from dgl_dmns.core import NO_LEVEL, Hardest, KnownEdges, Nearest, row_sizes
from dgl_dmns.samplers import (
    AdversarialSampler,
    DMNSSampler,
    DynamicSampler,
    MCNSSampler,
    SelfAdversarialSampler,
)

pytestmark = pytest.mark.filterwarnings("ignore:Dataloader CPU affinity")

BEFORE, AFTER, WIDTH, K = 40, 46, 6, 3
SMALL: dict[str, Any] = {"warmup_steps": 4, "fit_steps": 2, "batch_pairs": 64, "groups": 3}

MAKE: dict[str, Callable[..., Any]] = {
    "dmns": lambda g, h, **more: DMNSSampler(g, h, K, **{**SMALL, **more}),
    "nearest": lambda g, h, **more: DMNSSampler(g, h, K, rule=Nearest(), **{**SMALL, **more}),
    "dynamic": lambda g, h, **more: DynamicSampler(g, h, K, groups=3, **more),
    "self-adversarial": lambda g, h, **more: SelfAdversarialSampler(g, h, K, groups=3, **more),
    "mcns": lambda g, h, **more: MCNSSampler(g, h, K, steps=3, width=10, **more),
    "adversarial": lambda g, h, **more: AdversarialSampler(
        g, h, K, groups=3, warmup_steps=3, fit_steps=2, batch_queries=16, **more
    ),
}


def rows(count: int) -> Tensor:
    """Embeddings, of which the first do not depend on how many there are."""
    return torch.randn(AFTER, WIDTH, generator=torch.Generator().manual_seed(3))[:count]


def encoder(g: Any) -> Tensor:
    return rows(g.num_nodes())


def small_graph() -> Any:
    source = torch.Generator().manual_seed(1)
    return dgl.graph(tuple(torch.randint(0, BEFORE, (2, 120), generator=source)), num_nodes=BEFORE)


def grown(g: Any) -> Any:
    """Six nodes more, an edge to and from each, and 120 more edges among the old nodes."""
    source = torch.Generator().manual_seed(2)
    src, dst = torch.randint(0, BEFORE, (2, 120), generator=source)
    new, friend = torch.arange(BEFORE, AFTER), torch.arange(AFTER - BEFORE)
    return dgl.add_edges(
        dgl.add_nodes(g, AFTER - BEFORE),
        torch.cat([src, new, friend]),
        torch.cat([dst, friend, new]),
    )


def barred(g: Any) -> Tensor:
    matrix = torch.eye(g.num_nodes(), dtype=torch.bool)
    matrix[g.edges()] = True
    return matrix


def batches(g: Any, sampler: Any, workers: int, **more: Any) -> Any:
    return DataLoader(
        g,
        torch.arange(g.num_edges()),
        as_edge_prediction_sampler(NeighborSampler([3]), negative_sampler=sampler),
        batch_size=32,
        shuffle=True,
        num_workers=workers,
        **more,
    )


def check(g: Any, src: Tensor, dst: Tensor) -> None:
    assert int(dst.max()) < g.num_nodes()
    assert not barred(g)[src, dst].any()


# What is carried over, and what is not.


@pytest.mark.parametrize("name", MAKE)
def test_negatives_of_the_new_graph_before_and_after_the_next_refresh(name: str) -> None:
    g = small_graph()
    sampler = MAKE[name](g, encoder)
    sampler.refresh()
    old = sampler.table
    then = old.current().ids.clone()
    g = grown(g)
    sampler.update_graph(g)
    assert sampler.version == 1
    assert sampler.known.num_src == AFTER
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
    g = small_graph()
    sampler = MAKE[name](g, encoder)
    sampler.refresh()
    old = sampler.table
    g = grown(g)
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
    g = grown(small_graph())
    whole = torch.zeros(AFTER)
    for seed in range(60):
        sampler = MAKE["dynamic"](small_graph(), encoder, seed=seed)
        sampler.refresh()
        sampler.update_graph(g)
        whole += torch.bincount(sampler.table.current().ids[-1].flatten().long(), minlength=AFTER)
    free = ~barred(g)[-1]
    assert whole[~free].sum() == 0
    assert chisquare(whole[free].numpy()).pvalue > 1e-4


def test_the_diffusion_model_goes_on_where_it_was() -> None:
    sampler = MAKE["dmns"](small_graph(), encoder)
    sampler.refresh()
    model = sampler.model
    weights = copy.deepcopy(model.state_dict())
    sampler.update_graph(grown(small_graph()))
    assert sampler.model is model
    assert same(model.state_dict(), weights)
    report = sampler.refresh()
    assert len(report.fit.losses) == SMALL["fit_steps"]  # no second warm-up
    assert report.version == 2


def test_a_generator_learns_from_the_new_edges() -> None:
    """Two clusters, linked within at first and across afterwards: the density follows."""
    cluster = torch.arange(BEFORE) % 2
    h = nn.functional.one_hot(cluster, 2).float() + 0.1 * rows(BEFORE)[:, :2]
    source = torch.Generator().manual_seed(4)
    pairs = torch.combinations(torch.arange(BEFORE))
    alike = cluster[pairs[:, 0]] == cluster[pairs[:, 1]]

    def linked(mask: Tensor) -> Any:
        some = pairs[mask][torch.rand(int(mask.sum()), generator=source) < 0.3]
        return dgl.to_bidirected(dgl.graph(tuple(some.T), num_nodes=BEFORE))

    sampler = DMNSSampler(
        linked(alike), lambda: h, 4, **{**SMALL, "warmup_steps": 200, "fit_steps": 200}
    )
    shares = []
    for g in (None, linked(~alike)):
        if g is not None:
            sampler.update_graph(g)
        sampler.refresh()
        chosen = sampler.negatives_by_level(torch.arange(BEFORE), 4)[:, 0]
        shares.append(float((cluster[chosen] == cluster.unsqueeze(1)).float().mean()))
    assert shares[0] > 0.75
    assert shares[1] < 0.4


def test_before_the_first_refresh() -> None:
    g = small_graph()
    sampler = MAKE["dmns"](g, encoder)
    g = grown(g)
    sampler.update_graph(g)
    assert sampler.version == 0
    check(g, *sampler(g, torch.arange(g.num_edges())))
    assert sampler.refresh().version == 1


@pytest.mark.parametrize("name", ["dmns", "mcns", "adversarial"])
def test_a_state_resumes_on_the_new_graph(name: str) -> None:
    g = small_graph()
    sampler = MAKE[name](g, encoder)
    sampler.refresh()
    early = sampler.state_dict()
    g = grown(g)
    sampler.update_graph(g)
    state = sampler.state_dict()
    other = MAKE[name](g, encoder)
    other.load_state_dict(pickle.loads(pickle.dumps(state)))
    for one in (sampler, other):
        assert same(one.state_dict(), state)
        one.refresh()
    assert same(sampler.state_dict(), other.state_dict())
    with pytest.raises(ValueError, match=r"^state: made for 40 nodes, this sampler has 46; load"):
        sampler.load_state_dict(early)
    # A state of the old graph: load it there, and then go on with the new one.
    third = MAKE[name](small_graph(), encoder)
    third.load_state_dict(early)
    third.update_graph(g)
    assert same(third.state_dict(), state)


def test_a_log_ratio_waits_for_the_next_refresh() -> None:
    g = small_graph()
    sampler = MAKE["self-adversarial"](g, encoder)
    sampler.refresh()
    pairs = sampler(g, torch.arange(g.num_edges()))
    sampler.update_graph(grown(g))
    with pytest.raises(RuntimeError, match="^distribution: .* none since the graph has changed"):
        sampler.log_ratio(pairs)
    sampler.refresh()
    assert sampler.log_ratio(pairs).any()


def test_rows_last_as_long_on_the_new_graph() -> None:
    g = small_graph()
    sampler = MAKE["dmns"](g, encoder, groups=200)
    sampler.attach(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), every=4)
    passes = sampler.relation().passes
    assert passes == 4
    sampler(g, torch.arange(50))
    sampler.update_graph(grown(g))
    assert sampler.relation().passes == passes
    assert torch.equal(sampler.table.sizes(), sampler.known.degrees().clamp(min=1) * passes)
    # No edge of the new graph has asked yet.
    assert not sampler.state_dict()["asked"].any()


def test_several_types() -> None:
    def shop(users: int, items: int) -> Any:
        source = torch.Generator().manual_seed(users)
        user, item = (torch.randint(0, n, (4 * users,), generator=source) for n in (users, items))
        return dgl.heterograph(
            {("user", "buys", "item"): (user, item), ("item", "sold to", "user"): (item, user)},
            num_nodes_dict={"user": users, "item": items},
        )

    def embed(g: Any) -> dict[str, Tensor]:
        return {ntype: rows(g.num_nodes(ntype)) for ntype in g.ntypes}

    g, etypes = shop(20, 15), ("buys", "sold to")
    sampler = DMNSSampler(g, embed, K, **SMALL)
    sampler.refresh()
    for users, items in ((20, 19), (25, 19), (31, 40)):
        g = shop(users, items)
        sampler.update_graph(g)
        for _ in range(2):
            found = sampler(g, {e: torch.arange(g.num_edges(e)) for e in etypes})
            for etype, (src, dst) in found.items():
                assert src.numel() == K * g.num_edges(etype)
                assert not g.has_edges_between(src, dst, etype=etype).any()
            report = sampler.refresh()
    assert report.version == 7
    assert sampler.relation("sold to").known.num_src == 40


# Workers and loaders.


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_run_on_a_graph_that_grows(workers: int) -> None:
    torch.manual_seed(0)
    model = SAGEConv(WIDTH, 8, "mean")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    g = small_graph()
    g.ndata["feat"] = rows(BEFORE)
    sampler = MAKE["dmns"](g, model)
    sampler.attach(optimizer, every=4)
    for number in range(3):
        if number == 1:
            g = grown(g)
            g.ndata["feat"] = rows(AFTER)
            sampler.update_graph(g)
        for inputs, positive, negative, blocks in batches(g, sampler, workers):
            h = model(blocks[0], (g.ndata["feat"][inputs], blocks[0].dstdata["feat"]))
            src, dst = (negative.ndata[dgl.NID][end] for end in negative.edges())
            check(g, src, dst)
            loss = sum(
                nn.functional.softplus(
                    sign * (h[graph.edges()[0]] * h[graph.edges()[1]]).sum(1)
                ).mean()
                for sign, graph in ((-1, positive), (1, negative))
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert sampler.version >= 6
    table = sampler.relation().table
    assert (table.queries, table.k) == (AFTER, 2)  # one and a half of K are hard
    assert table.groups <= 3 * AFTER


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_that_still_run_keep_what_goes_with_their_graph(workers: int) -> None:
    old = small_graph()
    sampler = MAKE["dynamic"](old, encoder)
    sampler.refresh()
    loader = batches(old, sampler, workers, persistent_workers=True)
    running = iter(loader)
    seen = [next(running)]
    g = grown(old)
    sampler.update_graph(g)
    sampler.refresh()
    seen += [*running, *loader]
    assert len(seen) == 8
    for _, _, negative, _ in seen:
        check(old, *(negative.ndata[dgl.NID][end] for end in negative.edges()))
    fresh = [batch[2] for batch in batches(g, sampler, workers)]
    for negative in fresh:
        check(g, *(negative.ndata[dgl.NID][end] for end in negative.edges()))
    assert sum(negative.num_edges() for negative in fresh) == K * g.num_edges()


# DGL takes ten seconds to end workers after an error, whoever raised it.
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loader_of_the_old_graph_is_told(workers: int) -> None:
    old = small_graph()
    sampler = MAKE["dynamic"](old, encoder)
    loader = batches(old, sampler, workers)
    sampler.update_graph(grown(old))
    message = r"g: the sampler was made for 46 nodes of type '_N', the graph has 40; .*new loader"
    with pytest.raises(ValueError, match=message):
        list(loader)


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
    g = small_graph()
    g.ndata["feat"] = rows(BEFORE)
    sampler = MAKE["dmns"](g, SAGEConv(WIDTH, 8, "mean"))
    sampler.refresh()
    before = sampler.state_dict()
    with pytest.raises(ValueError, match=message):
        sampler.update_graph(change(g))
    assert same(sampler.state_dict(), before)
    sampler.refresh()
    check(g, *sampler(g, torch.arange(g.num_edges())))


def test_an_edge_type_that_is_gone() -> None:
    both = {("a", "to", "b"): ([0, 1], [1, 0]), ("b", "to too", "a"): ([0], [1])}
    g = dgl.heterograph(both)
    sampler = DynamicSampler(g, lambda: {"a": rows(2), "b": rows(2)}, 1)
    gone = dgl.heterograph({**both, ("b", "to too", "a"): ([], [])}, {"a": 2, "b": 2})
    with pytest.raises(ValueError, match=r"^g: the sampler holds edge type \('b', 'to too', 'a'\)"):
        sampler.update_graph(gone)


def test_embeddings_of_the_old_graph_are_refused_with_advice() -> None:
    g = small_graph()
    sampler = MAKE["dynamic"](g, encoder)
    g.add_nodes(1)
    with pytest.raises(ValueError, match=r"^encoder: expected shape \[40, D\], .* update_graph\(g"):
        sampler.refresh()
    sampler.update_graph(g)
    assert sampler.refresh().version == 1


def test_a_copy_has_no_graph_to_update() -> None:
    sampler = copy.copy(MAKE["dynamic"](small_graph(), encoder))
    with pytest.raises(RuntimeError, match="^update_graph: this is a copy of a sampler"):
        sampler.update_graph(grown(small_graph()))


# Queries by their embeddings.


@pytest.fixture(scope="module")
def fitted() -> DMNSSampler:
    sampler: DMNSSampler = MAKE["dmns"](small_graph(), encoder)
    sampler.refresh()
    return sampler


def test_queries_by_embedding_have_the_rule_of_the_table() -> None:
    """The hardest of all nodes, for queries that are no nodes of the graph."""
    sampler = MAKE["dmns"](small_graph(), encoder, rule=Hardest(), pool=BEFORE, uniform_share=0.0)
    sampler.refresh()
    h_query = rows(AFTER)[BEFORE:]
    expected = (h_query @ rows(BEFORE).T).topk(K).indices
    chosen = sampler.for_embeddings(h_query)
    assert chosen.dtype == torch.int64
    assert torch.equal(chosen.sort(1).values, expected.sort(1).values)
    # With some of them known, the next ones.
    known = KnownEdges(torch.arange(6), expected[:, 0], 6, BEFORE, exclude_self=False)
    following = (h_query @ rows(BEFORE).T).topk(K + 1).indices[:, 1:]
    assert torch.equal(
        sampler.for_embeddings(h_query, known=known).sort(1).values, following.sort(1).values
    )


@pytest.mark.parametrize("name", ["dmns", "nearest"])
def test_an_embedding_gets_what_its_node_gets(name: str) -> None:
    """The distribution for a node's own embedding is that of its row in the table."""
    g, node, times = small_graph(), 5, 1000
    alike = {"uniform_share": 0.0, "groups": times, "source": "uniform"}
    sampler = MAKE[name](g, encoder, warmup_steps=60, pool=BEFORE, **alike)
    sampler.refresh()
    edges = barred(g)[node].nonzero().squeeze(1)
    known = KnownEdges(
        torch.arange(times).repeat_interleave(edges.numel()),
        edges.repeat(times),
        times,
        BEFORE,
        exclude_self=False,
    )
    drawn = sampler.for_embeddings(rows(BEFORE)[[node] * times], known=known)
    row = sampler.table.current().ids.view(BEFORE, times, K)[node]
    share = torch.stack(
        [
            torch.bincount(ids.flatten().long(), minlength=BEFORE) / ids.numel()
            for ids in (row, drawn)
        ]
    )
    assert not share[:, edges].any()
    uniform = (~barred(g)[node]).float() / (BEFORE - edges.numel())
    apart = (share.unsqueeze(1) - torch.stack([share[0], uniform])).abs().sum(-1) / 2
    assert float(apart[1, 0]) < 0.1
    assert float(apart[:, 1].min()) > 0.12


def test_queries_by_embedding_of_one_type() -> None:
    g = dgl.heterograph(
        {("user", "buys", "item"): ([0, 1, 2], [3, 1, 0]), ("user", "likes", "user"): ([0], [1])}
    )
    h = {ntype: rows(g.num_nodes(ntype)) for ntype in g.ntypes}
    sampler = DMNSSampler(g, lambda: h, {"buys": 2, "likes": 1}, **SMALL)
    sampler.refresh()
    assert sampler.for_embeddings(rows(7), etype="buys").shape == (7, 2)
    assert int(sampler.for_embeddings(rows(7), etype="likes").max()) < 3
    with pytest.raises(ValueError, match="^etype: the sampler holds edge types"):
        sampler.for_embeddings(rows(7))


def test_queries_by_embedding_repeat_with_a_generator(fitted: DMNSSampler) -> None:
    state = fitted.state_dict()
    first, second = (
        fitted.for_embeddings(rows(9), generator=torch.Generator().manual_seed(4)) for _ in "ab"
    )
    assert torch.equal(first, second)
    assert same(fitted.state_dict(), state)
    assert fitted.for_embeddings(rows(0)).shape == (0, K)


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


def test_queries_by_embedding_need_a_refresh_and_the_original(fitted: DMNSSampler) -> None:
    with pytest.raises(RuntimeError, match="^for_embeddings: no generator is fitted yet; call"):
        MAKE["dmns"](small_graph(), encoder).for_embeddings(rows(3))
    with pytest.raises(RuntimeError, match="^for_embeddings: this is a copy"):
        pickle.loads(pickle.dumps(fitted)).for_embeddings(rows(3))
