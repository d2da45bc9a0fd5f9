"""`negatives.loss`: the sums of each sampler are those over all nodes; loaders, types, errors."""

from __future__ import annotations

import math
from typing import Any

import dgl
import pytest
import torch
from shared import library, loader, make, normal, refreshed, rng
from torch import Tensor

from dgl_dmns.core import KnownEdges, Nearest
from dgl_dmns.losses import shared_softmax_loss
from dgl_dmns.samplers.minibatch import pair_batches, weighed

N, D, K = 24, 3, 4
SOME = torch.arange(1, N, 2)  # candidates
OPTIONS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "popularity": {},
    "in-batch": {},
    "dmns": {"k": 1, "pool": N, "fit_steps": 0, "groups": 1},
    "self-adversarial": {"k": 1, "uniform_share": 0.5, "pool": N, "groups": 1},
}
# Their hard negatives have no tractable distribution, and need none in a batch.
UNKNOWN: dict[str, dict[str, Any]] = {
    "dynamic": {"k": 3, "uniform_share": 0.5, "pool": 12, "groups": 1},
    "nearest": {"k": 3, "rule": Nearest(), "fit_steps": 0, "groups": 1},
}


def table_of(g: Any) -> Any:
    """An encoder of fixed embeddings."""
    generator = rng(2)
    h = {t: torch.randn(g.num_nodes(t), D, generator=generator) for t in g.ntypes}
    return lambda: h if len(h) > 1 or len(g.canonical_etypes) > 1 else next(iter(h.values()))


def made(name: str, g: Any, **options: Any) -> Any:
    kind = "dmns" if name == "nearest" else name
    return refreshed(
        kind, g, table_of(g), **{"k": K, **{**OPTIONS, **UNKNOWN}.get(name, {}), **options}
    )


def graph(idtype: torch.dtype = torch.int64) -> Any:
    """Parallel edges and self loops among its edges; node 0 is linked to all others."""
    src, dst = torch.randint(1, N, (2, 90), generator=rng())
    src, dst = torch.cat([src, torch.zeros(N).long()]), torch.cat([dst, torch.arange(N)])
    return dgl.graph((src, dst), num_nodes=N).astype(idtype)


def embeddings() -> Tensor:
    return normal(N, D, seed=1).requires_grad_()


pytestmark = pytest.mark.filterwarnings("ignore:.*no true negative exists")


def batch(g: Any, sampler: Any, eids: Tensor) -> tuple[Any, Any]:
    """The two graphs of a batch over all nodes, as a loader makes them."""
    pos = dgl.graph(g.find_edges(eids), num_nodes=N)
    return pos, dgl.graph(sampler(g, eids), num_nodes=N)


# ---- no bias ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more", "some"),
    [(n, m, None) for n in (*OPTIONS, *UNKNOWN) for m in ({}, {"pool": 3})]
    + [(n, {"share": "edge"}, None) for n in OPTIONS]
    + [(n, {}, SOME) for n in (*OPTIONS, *UNKNOWN)]
    + [(n, {"share": "edge"}, SOME) for n in OPTIONS],
)
def test_sums_are_those_over_all_nodes_on_average(name: str, more: Any, some: Any) -> None:
    """Of the first edge's query, in batches whose other edges are random ones; or of candidates."""
    g = graph()
    sampler = made(name, g) if some is None else made(name, g, candidates=some)
    known = next(iter(sampler.known_by_type.values()))
    h = embeddings()
    first = int(g.out_edges(torch.tensor([5]), form="eid")[0])
    # What nobody points to is no popular node, and no destination of a batch.
    can = torch.ones(N) if name == "uniform" else (g.in_degrees() > 0).float()
    can = can * ~known.knows(torch.full((N,), 5), torch.arange(N))
    if some is not None:
        can[~torch.isin(torch.arange(N), some)] = 0
    score = h @ h[5] / 2
    full = (score.exp() * can).sum()
    (slope,) = torch.autograd.grad(full, h, retain_graph=True)
    positive = score[g.find_edges(torch.tensor([first]))[1]].squeeze(0)
    ways = torch.randn(N * D, 4)  # single rows are drawn too rarely
    rounds = 240 if more.get("share") == "edge" else 120  # few of which weigh much
    values, slopes = [], []
    for _ in range(rounds):
        if more.get("share") == "edge" and hasattr(sampler, "refresh"):
            sampler.refresh()  # an edge has one group of a table
        eids = torch.randint(g.num_edges(), (8,))
        place = int(torch.randint(8, ()))
        eids[place] = first
        loss = loss_of(place, sampler, h, *batch(g, sampler, eids), more)
        of = positive.exp() * torch.expm1(loss)
        values.append(of.detach().view(1))
        slopes.append(torch.autograd.grad(of, h, retain_graph=True)[0].flatten() @ ways)
    for found, truth in ((values, full.detach().view(1)), (slopes, slope.flatten() @ ways)):
        mean, error = torch.stack(found).mean(0), torch.stack(found).std(0) / math.sqrt(rounds)
        assert ((mean - truth).abs() <= 4 * error + 1e-5).all()


def test_known_edges_count_where_they_are_not_left_out() -> None:
    """With many draws the loss is the softmax over all nodes, known ones among them or not."""
    g = graph()
    sampler = made("uniform", g, k=256)
    known = next(iter(sampler.known_by_type.values()))
    h = embeddings().detach()
    eids = torch.randint(g.num_edges() - N, (16,))
    src, dst = g.find_edges(eids)
    score = h[src] @ h.t()
    rows = torch.arange(len(src))
    barred = known.contains(src.unsqueeze(1), torch.arange(N))
    barred[rows, src] = True
    barred[rows, dst] = False
    for filtered, other in ((False, torch.zeros_like(barred)), (True, barred)):
        truth = torch.nn.functional.cross_entropy(score.masked_fill(other, -math.inf), dst)
        found = sampler.loss(h, *batch(g, sampler, eids), filtered=filtered)
        assert float(found) == pytest.approx(float(truth), rel=0.02)


def loss_of(place: int, sampler: Any, h: Tensor, pos: Any, neg: Any, more: Any) -> Tensor:
    """The loss of one positive alone, against the batch's pool."""
    (one,) = pair_batches(h, pos, neg, list(sampler.known_by_type)).values()
    known = sampler.known_by_type[one.etype]
    share = more.get("share", "batch")
    ratio, chosen = weighed(sampler, one, share)
    candidates = one.candidates if share == "edge" else one.candidates.flatten()
    mask = known.contains(one.src.unsqueeze(1), candidates)
    mask[torch.arange(len(mask)) != place] = True
    return len(one.src) * shared_softmax_loss(
        h,
        one.src,
        one.dst,
        one.candidates,
        num_nodes=known.num_candidates,
        known=mask,
        log_ratio=ratio,
        chosen=chosen,
        temperature=2.0,
        **more,
    )


def test_a_part_of_a_batch_knows_which_of_its_negatives_are_hard() -> None:
    """Cut out of the graphs of a loader, they are weighed as in the whole."""
    g, h = graph(), embeddings()
    sampler = made("dmns", g, k=3)
    pos, neg = batch(g, sampler, torch.arange(40))
    rows = torch.tensor([5, 2, 11, 30])
    own = (rows.unsqueeze(1) * 3 + torch.arange(3)).flatten()
    parts = [dgl.edge_subgraph(x, e, relabel_nodes=False) for x, e in ((pos, rows), (neg, own))]
    (one,) = pair_batches(h, *parts, list(sampler.known_by_type)).values()
    etype = g.canonical_etypes[0]
    assert torch.equal(one.places, rows)
    assert torch.equal(weighed(sampler, one, "batch")[1], sampler.chosen(etype, rows))
    assert math.isfinite(float(sampler.loss(h, *parts)))
    torn = dgl.edge_subgraph(neg, own.flip(0), relabel_nodes=False)
    with pytest.raises(ValueError, match="neg_graph: expected K negatives for each of the 4"):
        sampler.loss(h, parts[0], torn)


def test_the_ratio_of_filtered_uniform_draws_is_below_one_where_many_know_a_node() -> None:
    g = graph()
    sampler = make("uniform", g, k=K)
    etype = g.canonical_etypes[0]
    src, dst = g.edges()
    ratio = sampler.batch_log_ratio(etype, src, dst, torch.arange(N)).exp()
    drawn = torch.bincount(sampler(g, torch.arange(len(src)).repeat(100))[1], minlength=N)
    torch.testing.assert_close(ratio, N * drawn.double() / drawn.sum(), rtol=0.1, atol=0.01)
    assert float(ratio.max() / ratio.min()) > 1.3


# ---- what loaders return ------------------------------------------------------------------------


@pytest.mark.parametrize("idtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("more", [{}, {"pool": 20}, {"share": "edge"}])
@pytest.mark.parametrize("name", OPTIONS)
def test_batches_of_a_loader(name: str, more: Any, idtype: torch.dtype) -> None:
    g = graph(idtype)
    sampler = made(name, g)
    table = embeddings()
    seen = 0
    for _, pos, neg, _ in loader(g, sampler, batch_size=40, shuffle=False):
        ids = pos.ndata[dgl.NID].long()
        state = torch.get_rng_state()
        loss = sampler.loss(table[ids], pos, neg, **more)
        (gradient,) = torch.autograd.grad(loss, table)
        assert loss.dtype == torch.float32
        assert gradient.any()
        # The same batch over all nodes, with ids in place of rows.
        whole = [
            dgl.graph(tuple(ids[e.long()] for e in x.edges()), num_nodes=N) for x in (pos, neg)
        ]
        torch.set_rng_state(state)
        torch.testing.assert_close(sampler.loss(table, *whole, **more), loss)
        seen += pos.num_edges()
    assert seen == g.num_edges()


def test_workers_draw_and_the_main_process_weighs() -> None:
    g = graph()
    sampler = make("in-batch", g, k=K)
    table = embeddings()
    for _, pos, neg, _ in loader(g, sampler, 1, batch_size=40):
        assert math.isfinite(float(sampler.loss(table[pos.ndata[dgl.NID]], pos, neg)))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_batch_of_one(name: str) -> None:
    g = graph()
    sampler = made(name, g)
    for edge in (3, g.num_edges() - 1):  # the last one's source is linked to all: no negatives
        loss = sampler.loss(embeddings(), *batch(g, sampler, torch.tensor([edge])))
        assert math.isfinite(float(loss))
        assert (float(loss) > 0) == (edge == 3)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_empty_batch(name: str) -> None:
    g, h = graph(), embeddings()
    sampler = made(name, g)
    empty = dgl.graph(([], []), num_nodes=N)
    for more in ({}, {"pool": 9}, {"share": "edge"}):
        loss = sampler.loss(h, empty, empty, **more)
        assert float(loss) == 0.0
        assert not torch.autograd.grad(loss, h)[0].any()


@pytest.mark.parametrize("name", OPTIONS)
def test_several_types(name: str) -> None:
    g = library()
    sampler = made(name, g)
    eids = {e: torch.arange(g.num_edges(e)) for e in g.canonical_etypes}
    sizes = {t: g.num_nodes(t) for t in g.ntypes}
    pos, neg = (
        dgl.heterograph({e: tuple(ends) for e, ends in edges.items()}, num_nodes_dict=sizes)
        for edges in ({e: g.find_edges(i, e) for e, i in eids.items()}, sampler(g, eids))
    )
    h = {t: torch.randn(n, D).requires_grad_() for t, n in sizes.items()}
    parts = sampler.loss(h, pos, neg, reduce="none")
    assert set(parts) == set(g.canonical_etypes)
    total = sampler.loss(h, pos, neg)
    torch.testing.assert_close(total, sum(parts.values()))
    assert all(x.any() for x in torch.autograd.grad(total, list(h.values())))
    halved = sampler.loss(
        h,
        pos,
        neg,
        scorer={"cites": lambda a, b: (a * b).sum(-1) / 2, "wrote": None},
        reduce="none",
    )
    assert float(halved["paper", "cites", "paper"]) != float(parts["paper", "cites", "paper"])
    same = ("author", "wrote", "paper")
    torch.testing.assert_close(halved[same], parts[same])
    # Only one of the types has positives.
    some = {same: eids[same][:5]}
    pos, neg = (
        dgl.heterograph(
            {e: tuple(edges.get(e, ([], []))) for e in g.canonical_etypes}, num_nodes_dict=sizes
        )
        for edges in ({e: g.find_edges(i, e) for e, i in some.items()}, sampler(g, some))
    )
    assert list(sampler.loss(h, pos, neg, reduce="none")) == [same]


@pytest.mark.parametrize("kind", ["node_pairs", "seeds"])
@pytest.mark.parametrize("several", [False, True])
def test_minibatches_of_graphbolt(kind: str, several: bool) -> None:
    gb = pytest.importorskip("dgl.graphbolt")
    import dgl_dmns.graphbolt  # noqa: F401

    g = library() if several else graph()
    sampler = make("uniform", g, k=K)
    items = {
        ":".join(e): gb.ItemSet(torch.stack(g.edges(etype=e), 1), names=kind)
        for e in g.canonical_etypes
    }
    every = gb.ItemSetDict(items) if several else next(iter(items.values()))
    whole = gb.from_dglgraph(g, is_homogeneous=not several)
    pipe = gb.ItemSampler(every, batch_size=25).sample_negative_with(sampler)
    tables = {t: torch.randn(g.num_nodes(t), D) for t in g.ntypes}
    for minibatch in gb.DataLoader(pipe.sample_neighbor(whole, [3])):
        nodes = minibatch.sampled_subgraphs[-1].original_column_node_ids
        if several:
            h = {t: tables[t][ids] for t, ids in nodes.items()}
            counts = {t: len(part) for t, part in h.items()}
        else:
            h, counts = tables["_N"][nodes], {"_N": len(nodes)}
        found = sampler.loss(h, minibatch, reduce="none")
        for key, loss in found.items():
            e = tuple(key.split(":")) if several else key
            if not all(counts.get(t) for t in (e[0], e[2])):
                continue
            expected = over_all_nodes(sampler, g, e, minibatch, kind, key if several else None)
            torch.testing.assert_close(loss, expected(tables))
        torch.testing.assert_close(sampler.loss(h, minibatch), sum(found.values()))


def over_all_nodes(sampler: Any, g: Any, e: Any, minibatch: Any, kind: str, key: Any) -> Any:
    """The loss of a minibatch's edges of one type from their ids."""

    def read(name: str) -> Any:
        value = getattr(minibatch, name)
        return value if key is None else value[key]

    if kind == "seeds":
        label = read("labels").bool()
        (src, dst), drawn = read("seeds")[label].unbind(1), read("seeds")[~label][:, 1]
    else:
        (src, dst), drawn = read("node_pairs"), read("negative_dsts")
    drawn = drawn.view(len(src), -1)
    nodes, place = drawn.unique(return_inverse=True)
    ratio = sampler.batch_log_ratio(e, src, dst, nodes)[place]
    known = sampler.known_by_type[e]
    return lambda tables: shared_softmax_loss(
        (tables[e[0]], tables[e[2]]),
        src,
        dst,
        drawn,
        num_nodes=known.num_dst,
        known=known,
        ids=(torch.arange(known.num_src), torch.arange(known.num_dst)),
        log_ratio=ratio,
    )


# ---- other samplers and bad input ---------------------------------------------------------------


@pytest.mark.parametrize("name", UNKNOWN)
def test_samplers_without_a_distribution_share_their_uniform_negatives(name: str) -> None:
    g, h = graph(), embeddings()
    sampler = made(name, g)
    pair = batch(g, sampler, torch.arange(9))
    assert math.isfinite(float(sampler.loss(h, *pair)))
    with pytest.raises(ValueError, match="no tractable distribution"):
        sampler.loss(h, *pair, share="edge")
    with pytest.raises(ValueError, match="neg_graph: expected . negatives for each positive"):
        sampler.loss(h, *batch(g, make("uniform", g, k=7), torch.arange(9)))


def test_dgl_s_own_negatives_go_through_the_plain_function() -> None:
    g, table = graph(), embeddings()
    known = KnownEdges(*g.edges(), N)
    for _, pos, neg, _ in loader(g, dgl.dataloading.negative_sampler.Uniform(K)):
        ids = pos.ndata[dgl.NID]
        loss = shared_softmax_loss(
            table[ids], *pos.edges(), neg.edges()[1], num_nodes=N, known=known, ids=ids
        )
        assert math.isfinite(float(loss))


def test_bad_input() -> None:
    g, h = graph(), embeddings()
    sampler = make("uniform", g, k=K)
    pos, neg = batch(g, sampler, torch.arange(6))
    other = batch(g, sampler, torch.arange(7))[1]
    shuffled = dgl.graph(tuple(x.flip(0) for x in neg.edges()), num_nodes=N)
    larger = dgl.graph(neg.edges(), num_nodes=N + 1)
    two = library()
    cases: list[tuple[Any, type[Exception], str]] = [
        ((h[:-1], pos, neg), ValueError, "h: expected one row for each of the 24 nodes"),
        ((h.flatten(), pos, neg), ValueError, "h: expected one row for each of the 24 nodes"),
        (({"user": h}, pos, neg), TypeError, "h: expected embeddings of nodes of type '_N'"),
        ((h, pos, other), ValueError, "neg_graph: expected K negatives for each of the 6"),
        ((h, pos, shuffled), ValueError, "neg_graph: expected K negatives for each of the 6"),
        ((h, pos, larger), ValueError, "neg_graph: expected the 24 nodes of pos_graph"),
        ((h, pos), TypeError, "neg_graph: expected the negative graph"),
        ((h, g.edges(), neg), TypeError, "pos_graph: expected a positive graph"),
        ((h, two, two), ValueError, "pos_graph: no edge type of name"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            sampler.loss(*arguments)
    _, drawn_for, drawn, _ = next(iter(loader(g, make("uniform", g, k=2))))
    with pytest.raises(ValueError, match="neg_graph: expected K negatives for each"):
        sampler.loss(h[: drawn.num_nodes()], drawn, drawn_for)  # the other way round
    with pytest.raises(ValueError, match="reduce: expected 'sum' or 'none', got 'mean'"):
        sampler.loss(h, pos, neg, reduce="mean")
    with pytest.raises(ValueError, match="h: NaN or infinity in 24 of 24 rows"):
        sampler.loss(h * math.nan, pos, neg)
    never = dgl.graph((neg.edges()[0], torch.zeros(6 * K).long()), num_nodes=N)
    popular = make("popularity", dgl.graph(([1, 2], [2, 3]), num_nodes=N), k=K)
    with pytest.raises(ValueError, match="neg_graph: 24 negatives are none that PopularitySampler"):
        popular.loss(h, pos, never)


def test_positives_in_the_place_of_negatives_are_refused() -> None:
    g, h = graph(), embeddings()
    pos, neg = batch(g, make("uniform", g, k=1), torch.arange(20))
    with pytest.raises(ValueError, match="neg_graph: .* of 20 negatives are known edges"):
        make("uniform", g, k=1).loss(h, pos, pos)
    with pytest.raises(TypeError, match="pool: expected an integer, the candidates, got 2.5"):
        make("uniform", g, k=1).loss(h, pos, neg, pool=2.5)
    with pytest.raises(TypeError, match="temperature: expected a number"):
        make("uniform", g, k=1).loss(h, pos, neg, temperature="1")


def test_hard_negatives_alone_are_refused() -> None:
    g, h = graph(), embeddings()
    for name, share, message in (
        ("self-adversarial", "batch", "uniform_share: a batch shares its uniform negatives"),
        ("self-adversarial", "edge", "share='edge': the log ratio of negatives that the score"),
        ("mcns", "batch", "MCNSSampler draws none; take UniformSampler or DMNSSampler"),
        ("dmns", "batch", "DMNSSampler draws none; make it with pools=Pools"),
    ):
        sampler = made(name, g, **({} if name == "mcns" else {"uniform_share": 0.0}))
        with pytest.raises(ValueError, match=message):
            sampler.loss(h, *batch(g, sampler, torch.arange(9)), share=share)
    loss = sampler.loss(h, *batch(g, sampler, torch.arange(g.num_edges())), share="edge")
    assert math.isfinite(float(loss))  # of a query without an admissible node, too
