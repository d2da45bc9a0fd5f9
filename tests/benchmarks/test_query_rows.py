"""The benchmarks of recommendation and of knowledge graphs, on generated data."""

import csv
import math
from dataclasses import replace

import dgl
import pytest
import torch

from benchmarks.common.queries import ROWS, self_adversarial_loss, train
from benchmarks.common.rows import Cell
from benchmarks.common.training import EveryNode
from benchmarks.knowledge.__main__ import BENCHMARK as KNOWLEDGE
from benchmarks.knowledge.__main__ import main as knowledge
from benchmarks.knowledge.problem import load_problem, read_triples
from benchmarks.recommend.__main__ import BENCHMARK as RECOMMEND
from benchmarks.recommend.__main__ import main as recommend
from dgl_dmns.seeds import seed_all

MODELS = {"mf": RECOMMEND, "lightgcn": RECOMMEND, "complex": KNOWLEDGE, "transe": KNOWLEDGE}


def short(benchmark, model):
    return replace(benchmark.recipe, model=model, width=8, k=3, epochs=1)


@pytest.fixture(scope="module")
def problems():
    return {one.name: one.load("generated", one.recipe, 0, None) for one in (RECOMMEND, KNOWLEDGE)}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("model", ["mf", "transe"])
def test_every_row_trains(problems, model, row):
    benchmark = MODELS[model]
    cell = Cell("generated", short(benchmark, model), ROWS[row], 0)
    result = train(problems[benchmark.name], cell)
    assert result["epochs"] == len(result["curve"]) == 1
    assert result["curve"][result["best epoch"]] == result["val"][benchmark.metrics[0]]
    assert all(0 < result["test"][metric] < 1 for metric in benchmark.metrics[:1])


@pytest.mark.parametrize("model", MODELS)
def test_the_recipe_learns(problems, model):
    benchmark = MODELS[model]
    recipe = replace(short(benchmark, model), width=16, epochs=8, learning_rate=0.05, dropout=0.0)
    cell = Cell("generated", recipe, ROWS["uniform-shared"], 0)
    curve = train(problems[benchmark.name], cell)["curve"]
    assert max(curve) > 1.5 * curve[0]


def test_full_softmax_is_the_mean_over_all_items_that_are_not_known(problems):
    g = problems["recommend"].graph
    h = {n: torch.randn(g.num_nodes(n), 4) for n in ("query", "item")}
    user, item = g.edges(etype="to")
    score = h["query"] @ h["item"].t()
    bought = torch.zeros(score.shape, dtype=torch.bool)
    bought[user, item] = True
    others = score.masked_fill(bought, -torch.inf)[user]
    own = score[user, item]
    wanted = (torch.cat([own.unsqueeze(1), others], 1).logsumexp(1) - own).mean()

    def graph(src, dst):
        made = dgl.heterograph(
            {("query", "to", "item"): (src, dst)},
            num_nodes_dict={n: g.num_nodes(n) for n in ("query", "item")},
        )
        for ntype in made.ntypes:
            made.nodes[ntype].data[dgl.NID] = made.nodes(ntype)
        return made

    every = EveryNode(g, etypes=["to"])
    (drawn,) = every(g, {"to": torch.arange(5)}).values()
    assert torch.allclose(every.loss(h, graph(user, item), graph(*drawn)), wanted, atol=1e-5)


def test_self_adversarial_loss_weighs_negatives_by_their_scores():
    positive, negative = torch.tensor([0.5]), torch.tensor([[0.0, 2.0]])
    weight = torch.tensor([1.0, torch.e**2]) / (1 + torch.e**2)
    wanted = -positive.sigmoid().log() - (weight * (-negative).sigmoid().log()).sum()
    assert torch.allclose(self_adversarial_loss(positive, negative), wanted / 2)


def test_ranks_of_triples_are_filtered_and_of_both_sides():
    problem = load_problem("generated", KNOWLEDGE.recipe, 0, None)
    triples, entities, _ = read_triples(None, 0)
    every = {tuple(one) for part in triples.values() for one in part.t().tolist()}
    queries = problem.queries
    seed_all(0)
    h, items = torch.randn(queries.num_queries, 6), torch.randn(entities, 6)
    rank = []
    for v, r, u in triples["test"].t().tolist():
        query, _ = queries.pairs(*(torch.tensor([x]) for x in (v, r, u)))
        for q, answer, known in (
            (query[0], u, lambda e, v=v, r=r: (v, r, e) in every),
            (query[1], v, lambda e, r=r, u=u: (e, r, u) in every),
        ):
            score = items @ h[q]
            above = [e for e in range(entities) if score[e] > score[answer] and not known(e)]
            rank.append(1 + len(above))
    wanted = (1 / torch.tensor(rank, dtype=torch.float64)).mean()
    assert problem.rank(h, items, None, "test")["MRR"] == pytest.approx(float(wanted))


def test_held_out_purchases_are_no_training_edges(problems):
    g = problems["recommend"].graph
    query = torch.eye(g.num_nodes("query"))
    bought = torch.zeros(g.num_nodes("item"), g.num_nodes("query"))
    user, item = g.edges(etype="to")
    bought[item, user] = 1.0  # scores are 1 for what was trained on
    for part in ("val", "test"):
        assert problems["recommend"].rank(query, bought, None, part)["NDCG@20"] < 0.2


def test_files_are_read(tmp_path):
    training = "".join(f"e{i:02d}\tlikes\tNA\n" for i in range(20))
    for name, text in (("train", training), ("valid", "NA\tis\te00\n"), ("test", "e01\tis\te02\n")):
        (tmp_path / f"{name}.txt").write_text(text)
    triples, entities, relations = read_triples(tmp_path, 0)
    assert (entities, relations) == (21, 2)
    assert triples["train"].tolist() == [list(range(1, 21)), [1] * 20, [0] * 20]
    assert triples["val"].tolist() == [[0], [0], [1]]
    assert triples["test"].tolist() == [[2], [0], [3]]
    for name, rows in (("train", range(22)), ("test", range(22, 25))):
        lines = "".join(f"{row % 3}\t{row}\n" for row in rows)
        (tmp_path / f"{name}.tsv").write_text("user_id\titem_id\n" + lines)
    g = RECOMMEND.load("shop", RECOMMEND.recipe, 0, tmp_path).graph
    assert (g.num_nodes("query"), g.num_nodes("item"), g.num_edges("to")) == (3, 25, 20)


@pytest.mark.parametrize("main", [recommend, knowledge])
def test_a_tuned_run_reports_settings_and_choices(main, tmp_path):
    words = ["--rows", "uniform-shared", "full-softmax", "--tune", "--epochs", "1", "--seeds", "2"]
    done = main([*words, "--set", "width=4", "--jobs", "0", "--quiet", "--out", str(tmp_path)])
    assert done == 0
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    tables = [line["table"] for line in lines]
    grid = (RECOMMEND if main is recommend else KNOWLEDGE).grid.values()
    assert tables.count("settings") == 2 * math.prod(map(len, grid)) == len(tables) - 4
    watched = "val NDCG@20" if main is recommend else "val MRR"
    title = "uniform, shared, one an edge"
    trials = [float(line[watched]) for line in lines if line["row"].startswith(f"{title}:")]
    first = next(line for line in lines if line["row"] == title)
    assert float(first[watched]) == max(trials)
