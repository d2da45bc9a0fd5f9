"""Models of queries and items: each score against its formula, blocks against the whole graph."""

from __future__ import annotations

import dgl
import pytest
import torch
from dgl.dataloading import DataLoader, as_edge_prediction_sampler

from dgl_dmns import DMNSSampler, UniformSampler
from dgl_dmns.data import QueryGraph, shop_graph
from dgl_dmns.models import MODELS, block_sampler, edge_loader, make_model
from tests.shared import make, normal, pairs, rng, seed

ENTITIES, RELATIONS, TRIPLES = 14, 3, 40
OF_SHOPS = ("mf", "lightgcn", "sage")
OF_KNOWLEDGE = ("distmult", "complex", "transe", "rgcn")


def triples() -> tuple[torch.Tensor, ...]:
    source = rng(5)
    return tuple(
        torch.randint(0, size, (TRIPLES,), generator=source)
        for size in (ENTITIES, RELATIONS, ENTITIES)
    )


def knowledge(training: int = 30):
    """Queries of all triples, and the graph of the first ones."""
    h, r, t = triples()
    queries = QueryGraph.from_triples(h, r, t, ENTITIES, RELATIONS)
    first = queries.pairs(h[:training], r[:training], t[:training])
    return queries, queries.graph(first)


def shop():
    return shop_graph(*pairs(12, 9, 30), 12, 9)


def built(name: str, **options):
    seed()
    if name in OF_SHOPS:
        g, queries = shop(), None
    else:
        queries, g = knowledge()
    return make_model(name, g, queries, width=6, **options).eval(), g, queries


def everyone(g):
    return {n: g.nodes[n].data["feat"] for n in ("query", "item")}


# ---- queries -------------------------------------------------------------------------------------


def test_queries_are_the_distinct_pairs_of_entity_and_relation():
    h, r, t = triples()
    queries, _ = knowledge()
    wanted = set(zip(h.tolist(), r.tolist()))
    wanted |= {(c, b + RELATIONS) for c, b in zip(t.tolist(), r.tolist())}
    found = list(zip(queries.entity.tolist(), queries.relation.tolist()))
    assert found == sorted(wanted)
    query, item = queries.pairs(h, r, t)
    assert torch.equal(item, torch.cat([t, h]))
    assert torch.equal(queries.entity[query], torch.cat([h, t]))
    assert torch.equal(queries.relation[query], torch.cat([r, r + RELATIONS]))


def test_a_graph_has_its_pairs_as_edges_and_the_known_edges_of_the_filtered_setting():
    h, r, t = triples()
    queries, g = knowledge(30)
    query, item = queries.pairs(h[:30], r[:30], t[:30])
    assert all(map(torch.equal, g.edges(etype="to"), (query, item)))
    assert all(map(torch.equal, g.edges(etype="of"), (queries.entity, g.nodes("query"))))
    known = UniformSampler(g, 1).known_by_type["query", "to", "item"]
    training = set(zip(h[:30].tolist(), r[:30].tolist(), t[:30].tolist()))
    for q, (e, s) in enumerate(zip(queries.entity.tolist(), queries.relation.tolist())):
        held = {u for u in range(ENTITIES) if (e, s, u) in training}
        if s >= RELATIONS:
            held = {u for u in range(ENTITIES) if (u, s - RELATIONS, e) in training}
        assert set(known.neighbours(q).tolist()) == held


def test_queries_that_have_no_number_and_ids_out_of_range_are_refused():
    h, r, t = triples()
    queries = QueryGraph.from_triples(h[:5], r[:5], t[:5], ENTITIES, RELATIONS)
    with pytest.raises(ValueError, match=r"queries have no number; give from_triples\(\) all"):
        queries.pairs(h, r, t)
    with pytest.raises(ValueError, match="relations: expected relations in 0 .. 1"):
        QueryGraph.from_triples(h, r, t, ENTITIES, 2)
    with pytest.raises(ValueError, match="expected as many of each, got 40, 39 and 40"):
        QueryGraph.from_triples(h, r[1:], t, ENTITIES, RELATIONS)
    with pytest.raises(ValueError, match="pairs: expected ids of type 'item' in 0 .. 13"):
        queries.graph(torch.tensor([[0], [ENTITIES]]))
    with pytest.raises(ValueError, match="users, items: expected as many of each, got 1 and 2"):
        shop_graph(torch.tensor([0]), torch.tensor([0, 1]), 2, 2)


# ---- models --------------------------------------------------------------------------------------


def test_scores_of_triples_are_those_of_the_papers():
    h, r, t = triples()
    for name in ("distmult", "complex", "transe"):
        for norm in (1, 2) if name == "transe" else (None,):
            model, g, queries = built(name, **({} if norm is None else {"norm": norm}))
            with torch.no_grad():
                out = model(g, everyone(g))
            query, item = queries.pairs(h, r, t)
            found = model.score(out["query"][query], out["item"][item])
            entity, relation = model.entity.weight, model.relation.weight
            head, tail = entity[torch.cat([h, t])], entity[torch.cat([t, h])]
            between = relation[torch.cat([r, r + RELATIONS])]
            if name == "distmult":
                wanted = (head * between * tail).sum(1)
            elif name == "transe":
                wanted = -torch.linalg.vector_norm(head + between - tail, ord=norm, dim=1)
            else:
                a, b, c = (torch.complex(*x.chunk(2, dim=1)) for x in (head, between, tail))
                wanted = (a * b * c.conj()).sum(1).real
            assert torch.allclose(found, wanted, atol=1e-5), name


def test_rgcn_is_a_mean_of_messages_with_weights_of_the_relation():
    model, g, queries = built("rgcn", layers=2)
    query, item = g.edges(etype="to")
    x = model.entity.weight
    with torch.no_grad():
        for layer in model.layers:
            weight = torch.einsum("rb,bij->rij", layer.share, layer.basis)
            rows = []
            for u in range(ENTITIES):
                asked = query[item == u]
                got = [x[queries.entity[q]] @ weight[queries.relation[q]] for q in asked]
                mean = torch.stack(got).mean(0) if got else torch.zeros(6)
                rows.append(x[u] @ layer.own.weight.T + mean)
            x = torch.stack(rows)
            x = x if layer is model.layers[-1] else x.relu()
        out = model(g, everyone(g))
        wanted = x[queries.entity] * model.relation.weight[queries.relation]
    assert torch.allclose(out["item"], x, atol=1e-5)
    assert torch.allclose(out["query"], wanted, atol=1e-5)


def test_lightgcn_is_the_mean_of_powers_of_the_normalised_adjacency():
    model, g, _ = built("lightgcn", layers=3)
    users, items = g.num_nodes("query"), g.num_nodes("item")
    adjacency = torch.zeros(users + items, users + items)
    for u, i in zip(*(end.tolist() for end in g.edges(etype="to"))):
        adjacency[u, users + i] += 1
        adjacency[users + i, u] += 1
    root = adjacency.sum(1).clamp(min=1).sqrt()
    step = adjacency / root.unsqueeze(1) / root
    with torch.no_grad():
        x = torch.cat([model.query.weight, model.item.weight])
        wanted = sum(torch.linalg.matrix_power(step, power) @ x for power in range(4)) / 4
        out = model(g, everyone(g))
    assert torch.allclose(torch.cat([out["query"], out["item"]]), wanted, atol=1e-5)


def test_graphsage_of_users_and_items_reads_both_sides():
    model, g, _ = built("sage", layers=1)
    user, item = g.edges(etype="to")
    layer, own = model.layers[0]["item"], model.own
    with torch.no_grad():
        rows = []
        for i in range(g.num_nodes("item")):
            of = own["query"].weight[user[item == i]]
            mean = of.mean(0) if len(of) else torch.zeros(6)
            rows.append(layer.fc_self(own["item"].weight[i]) + layer.fc_neigh(mean))
        assert torch.allclose(model(g, everyone(g))["item"], torch.stack(rows), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_with_all_neighbours_give_what_the_whole_graph_gives(name):
    model, g, _ = built(name)
    flow = as_edge_prediction_sampler(block_sampler(model), negative_sampler=UniformSampler(g, 2))
    with torch.no_grad():
        whole = model(g, everyone(g))
        count = g.num_edges("to")
        for ids, pos, neg, blocks in DataLoader(g, {"to": torch.arange(count)}, flow, batch_size=8):
            assert len(blocks) == model.num_layers
            h = model(blocks, ids)
            for ntype in h:
                rows = whole[ntype][pos.nodes[ntype].data[dgl.NID]]
                assert torch.allclose(h[ntype], rows, atol=1e-5)
            assert neg.num_edges("to") == 2 * pos.num_edges("to")


@pytest.mark.parametrize("name", MODELS)
def test_training_with_dmns_needs_nothing_else(name):
    model, g, _ = built(name, temperature=0.5, dropout=0.1)
    negatives = make("dmns", g, model, 1, etypes=["to"], scorer=model.scorer)
    loader = edge_loader(model, g, negatives, 3, batch_size=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    negatives.attach(optimizer, every=len(loader))
    losses = []
    for _ in range(6):
        for ids, pos, neg, blocks in loader:
            loss = negatives.loss(model(blocks, ids), pos, neg)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert all(p.grad is not None for p in model.parameters())
    assert sum(losses[-len(loader) :]) < sum(losses[: len(loader)])


def test_a_batch_has_none_of_its_edges_among_its_messages():
    for g in (shop(), knowledge()[1]):
        shopping = "from" in g.etypes
        model, _, _ = built("sage" if shopping else "rgcn")
        count = g.num_edges("to")
        for _, pos, _, blocks in edge_loader(model, g, UniformSampler(g, 1), batch_size=4):
            mine = set(pos.edges["to"].data[dgl.EID].tolist())
            twins = mine if shopping else {(e + count // 2) % count for e in mine}
            for block in blocks:
                assert not (mine | twins) & set(block.edges["to"].data[dgl.EID].tolist())
                if shopping:
                    assert not mine & set(block.edges["from"].data[dgl.EID].tolist())


@pytest.fixture
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("name", ["lightgcn", "sage", "rgcn"])
def test_blocks_are_whole_where_torch_has_several_threads(name):
    model, g, _ = built(name)
    whole = model(g, everyone(g))
    sampler = as_edge_prediction_sampler(block_sampler(model))
    for ids, pos, blocks in DataLoader(g, {"to": torch.arange(24)}, sampler, batch_size=8):
        h = model(blocks, ids)
        for ntype in h:
            rows = whole[ntype][pos.nodes[ntype].data[dgl.NID]]
            assert torch.allclose(h[ntype], rows, atol=1e-5)


@pytest.mark.usefixtures("_two_threads")
def test_blocks_that_lack_nodes_are_refused():
    model, g, _ = built("rgcn")
    sampler = dgl.dataloading.NeighborSampler(model.fanouts(-1))
    ids, _, blocks = sampler.sample(g, {"query": g.nodes("query"), "item": g.nodes("item")})
    if all(block.num_src_nodes(n) >= block.num_dst_nodes(n) for block in blocks for n in g.ntypes):
        pytest.skip("the fused sampling of this DGL drops no node")
    with pytest.raises(ValueError, match=r"blocks: .*block_sampler\(model\)"):
        model(blocks, ids)


def test_a_loader_names_what_it_cannot_take():
    model, g, _ = built("mf")
    negatives, single = UniformSampler(g, 1), dgl.rand_graph(9, 30)
    wrapped = torch.nn.DataParallel(model)
    for other in (wrapped, "mf", g):
        with pytest.raises(TypeError, match="model: expected one of dgl_dmns.models, got .*module"):
            edge_loader(other, g, negatives)
    with pytest.raises(ValueError, match=r"g: expected a graph of shop_graph\(...\)"):
        edge_loader(model, single, UniformSampler(single, 1))


def test_a_temperature_makes_scores_cosines_over_it():
    for name in ("mf", "complex"):
        model, g, _ = built(name)
        plain = model(g, everyone(g))
        model.temperature = 0.25
        cool = model(g, everyone(g))
        score = cool["query"] @ cool["item"].T
        cosine = torch.cosine_similarity(plain["query"][:, None], plain["item"][None], dim=-1)
        assert torch.allclose(score, cosine / 0.25, atol=1e-5)
    model, g, _ = built("transe", temperature=0.5)
    cool = model(g, everyone(g))
    model.temperature = None
    plain = model(g, everyone(g))
    found, wanted = (model.score(h["query"][:9], h["item"][:9]) for h in (cool, plain))
    assert torch.allclose(found, wanted / 0.5, atol=1e-5)


def test_graphsage_of_one_type_takes_features_or_ids():
    g = dgl.graph(pairs(20, 20, 60), num_nodes=20)
    for features, x in ((0, torch.arange(20)), (5, normal(20, 5))):
        model = make_model("sage", g, width=6, features=features).eval()
        h = model(g, x)
        assert h.shape == (20, 6)
        src, dst = g.edges()
        assert torch.equal(model.scores(h, g), (h[src] * h[dst]).sum(1))


def test_squares_are_those_of_both_ends():
    for name in ("mf", "transe"):
        model, g, _ = built(name)
        h = model(g, everyone(g))
        query, item = g.edges(etype="to")
        q, u = h["query"][query], h["item"][item]
        assert torch.allclose(model.scores(h, g), model.score(q, u))
        assert torch.allclose(model.squares(h, g), (q**2).sum(1).mean() + (u**2).sum(1).mean())
        assert (model.scorer is None) == (name == "mf")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gcn", {}, "name: expected one of mf, lightgcn"),
        ("complex", {}, "queries: model 'complex' is for a knowledge graph"),
        ("mf", {"temperature": 0}, "temperature: expected a positive, finite number or None"),
        ("mf", {"dropout": 1.0}, r"dropout: expected a number in \[0, 1\)"),
        ("sage", {"features": 3}, "features: expected 0 with several node types"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_model(name, shop(), **options)


def test_models_of_shops_do_not_fit_a_knowledge_graph():
    queries, g = knowledge()
    with pytest.raises(ValueError, match="name: model 'lightgcn' does not fit a graph"):
        make_model("lightgcn", g)
    with pytest.raises(ValueError, match="norm: expected 1 or 2, got 3"):
        make_model("transe", g, queries, norm=3)
    assert isinstance(DMNSSampler(g, make_model("mf", g), etypes=["to"]), DMNSSampler)
