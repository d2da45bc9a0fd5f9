"""Protocol B: DGL's minibatch recipe with every row, its data, its losses, its measures."""

import math
from dataclasses import replace

import dgl
import pytest
import torch

from benchmarks.common.command import with_settings
from benchmarks.common.rows import Cell, Row
from benchmarks.dropin.__main__ import main
from benchmarks.dropin.config import Recipe
from benchmarks.dropin.measure import HEART_METRICS, METRICS, false_negatives
from benchmarks.dropin.model import DotScorer, Encoder, MLPScorer, make_scorer
from benchmarks.dropin.problem import load_problem, prepared_features
from benchmarks.dropin.rows import GROUPS, main_rows, shared_rows
from benchmarks.dropin.train import _Run, objective, run_cell, train
from dgl_dmns.losses import softmax_loss
from dgl_dmns.samplers import SelfAdversarialSampler

SHORT = Recipe(epochs=2, batch_size=256, hidden=16)
MAIN, SHARED = main_rows(5), shared_rows(5)
LOSSES = ("bce", "bce-pooled", "cross-entropy", "bpr")
ROWS = {f"{group} {name}": row for group in GROUPS for name, row in GROUPS[group](5).items()}


@pytest.fixture(scope="module")
def problem():
    return load_problem("tiny", SHORT, 0, None)


def assert_sound(result):
    figures = [result[part][metric] for part in ("val", "test") for metric in METRICS]
    assert all(0.0 <= figure <= 1.0 for figure in figures)
    assert len(result["curve"]) == result["epochs"] == 2
    assert result["curve"][result["best epoch"]] == pytest.approx(result["val"]["MRR"])
    assert 0.0 <= result["refresh share"] <= 1.0
    assert math.isfinite(result["positive score"] + result["negative score"])


def quick(row):
    """The row with little fitting."""
    return row.with_options(warmup_steps=5, fit_steps=2) if row.sampler == "dmns" else row


@pytest.mark.parametrize(("number", "name"), enumerate(ROWS), ids=list(ROWS))
def test_every_row_runs(problem, number, name):
    recipe = replace(SHORT, loss=LOSSES[number % 4], scorer=("dot", "mlp")[number % 2])
    assert_sound(train(problem, Cell("tiny", recipe, quick(ROWS[name]), 0)))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["uniform", "calibrated", "density-half-calibrated"])
def test_every_loss_runs(problem, name, loss):
    assert_sound(train(problem, Cell("tiny", replace(SHORT, loss=loss), quick(MAIN[name]), 0)))


def test_shared_rows_have_a_loss_of_their_own(problem):
    row = SHARED["uniform-shared-1"]
    recipes = SHORT, replace(SHORT, loss="bpr")
    results = [train(problem, Cell("tiny", recipe, row, 0)) for recipe in recipes]
    assert results[0]["curve"] == results[1]["curve"]


def a_batch(problem, recipe, row):
    run = _Run(problem, Cell("tiny", recipe, row, 0))
    nodes, pos_graph, neg_graph, blocks = next(iter(run.loader))
    return run, run.encoder(blocks, problem.features[nodes]), pos_graph, neg_graph


def test_parts_of_a_batch_share_their_own_negatives(problem):
    recipe = replace(SHORT, batch_size=128)
    run, h, *graphs = a_batch(problem, recipe, SHARED["uniform-shared-32"])
    parts = [
        run.sampler.loss(h, *(g.edge_subgraph(rows, relabel_nodes=False) for g in graphs))
        for rows in torch.arange(128).split(32)
    ]
    loss, *_ = run.loss(h, *graphs)
    torch.testing.assert_close(loss, torch.stack(parts).mean())
    assert not torch.allclose(loss, run.sampler.loss(h, *graphs))


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "gcn", "fanout": 3, "features": "pca-white", "width": 16},
        {"encoder": "gat", "dropout": 0.5, "layers": 1, "features": "stored"},
        {"scorer": "mlp", "loss": "cross-entropy", "full_softmax": True, "refresh_every": 2},
    ],
)
def test_recipes(changes):
    row = Row("a", "self-adversarial", {"temperature": 2.0}, "calibrated")
    assert_sound(run_cell(Cell("tiny", replace(SHORT, **changes), row, 0), None))


def test_partial_refreshes_and_observed_embeddings(problem, monkeypatch):
    seen, rebuilt = [], []
    observe, refresh = SelfAdversarialSampler.observe, SelfAdversarialSampler.refresh

    def observing(self, nodes, h):
        seen.append(len(nodes))
        return observe(self, nodes, h)

    def refreshing(self, *arguments, nodes=None, **named):
        rebuilt.append(None if nodes is None else tuple(nodes.tolist()))
        return refresh(self, *arguments, nodes=nodes, **named)

    monkeypatch.setattr(SelfAdversarialSampler, "observe", observing)
    monkeypatch.setattr(SelfAdversarialSampler, "refresh", refreshing)
    recipe = replace(SHORT, refresh_share=0.25, observe=True)
    assert_sound(train(problem, Cell("tiny", recipe, MAIN["self-adversarial"], 0)))
    assert len(seen) >= 2  # batches
    first, second, third = rebuilt
    assert first is None
    assert second != third
    assert len(set(second)) == len(set(third)) == math.ceil(problem.data.num_nodes / 4)
    plain, other = (train(problem, Cell("tiny", r, MAIN["uniform"], 0)) for r in (SHORT, recipe))
    assert plain["curve"] == other["curve"]


def test_hard_evaluation_stands_beside_the_usual_one():
    recipe = replace(SHORT, heart=20)
    problem = load_problem("tiny", recipe, 0, None)
    assert problem.heart.shape == (2, problem.split.test.shape[1], 10)
    known = problem.data.csr()
    for stays, moves in zip(problem.split.test.flatten(), problem.heart.flatten(0, 1)):
        assert not torch.isin(moves, known[1][known[0][stays] : known[0][stays + 1]]).any()
    cell = Cell("tiny", recipe, MAIN["uniform"], 0)
    result = train(problem, cell)
    plain = train(load_problem("tiny", SHORT, 0, None), replace(cell, recipe=SHORT))
    assert set(result["test"]) - set(plain["test"]) == set(HEART_METRICS)
    assert result["curve"] == plain["curve"]  # training does not see them
    assert 1 / 21 <= result["test"]["HeaRT MRR"] < result["test"]["MAP"]


def test_same_seed_same_result(problem):
    cell = Cell("tiny", SHORT, MAIN["self-adversarial"], 3)
    first, second = (train(problem, cell) for _ in range(2))
    for part in ("val", "test", "curve", "false share", "negative score"):
        assert first[part] == second[part]


@pytest.mark.parametrize("encoder", ["sage", "gcn"])
def test_problem_is_free_of_leaks_and_reverses_are_right(encoder):
    problem = load_problem("tiny", replace(SHORT, encoder=encoder), 1, None)
    src, dst = problem.graph.edges()
    assert torch.equal(src[problem.reverse], dst)
    assert torch.equal(dst[problem.reverse], src)
    assert not problem.held.contains(src, dst).any()
    edges = problem.graph.num_edges()
    for one, other in zip(problem.messages.edges(), (src, dst)):
        assert torch.equal(one[:edges], other)
    assert problem.messages.num_edges() - edges == (0 if encoder == "sage" else len(src.unique()))


@pytest.mark.parametrize("kind", ["sage", "gcn", "gat"])
def test_blocks_and_whole_graph_agree(problem, kind):
    graph = dgl.add_self_loop(problem.graph)
    encoder = Encoder(kind, problem.features.shape[1], 8, 2, 0.0)
    sampler = dgl.dataloading.MultiLayerFullNeighborSampler(2)
    nodes, _, blocks = sampler.sample(graph, torch.arange(10))
    whole = encoder(graph, problem.features)
    assert torch.allclose(encoder(blocks, problem.features[nodes]), whole[:10], atol=1e-5)


def test_temperature_divides_cosines(problem):
    encoder = Encoder("sage", problem.features.shape[1], 8, 2, 0.0, temperature=0.25)
    h = encoder(problem.graph, problem.features)
    cosine = torch.nn.functional.cosine_similarity(h[0], h[1], dim=0)
    assert float(DotScorer()(h[0], h[1])) == pytest.approx(float(cosine) / 0.25, abs=1e-5)


def test_features():
    x = torch.rand(40, 12) @ torch.diag(torch.linspace(1, 3, 12))
    centred = x - x.mean(0)
    pca = prepared_features(x, "pca", 12)
    assert torch.allclose(pca @ pca.t(), centred @ centred.t(), atol=1e-3)
    assert prepared_features(x, "pca", 5).shape == (40, 5)
    for width in (5, 12):
        unit = prepared_features(x, "pca-unit", width)
        assert torch.allclose(unit.norm(dim=1), torch.ones(40))
    scaled = prepared_features(x, "pca-scaled", 5)
    assert float(scaled.square().sum(1).mean()) == pytest.approx(1.0, abs=1e-5)
    white = prepared_features(x, "pca-white", 5)
    assert torch.allclose(white.square().mean(0), torch.ones(5), atol=1e-4)
    assert prepared_features(x, "stored", 5) is x


def test_false_negatives_by_hand(problem):
    class Everyone:
        def __call__(self, graph, eids):
            src, _ = graph.find_edges(eids)
            nodes = graph.num_nodes()
            return src.repeat_interleave(nodes), torch.arange(nodes).repeat(len(eids))

    h = torch.zeros(problem.data.num_nodes, 4)
    found = false_negatives(problem, h, DotScorer(), Everyone(), calibrated=False)
    degree = problem.held.degrees()[problem.graph.edges()[0]].double()
    assert found["false share"] == pytest.approx(float(degree.mean() / problem.data.num_nodes))
    assert found["weight"] == found["false weight"] == pytest.approx(0.5)
    assert found["uniform false share"] > found["false share"]


def test_full_softmax_and_scorers():
    positive, negative = torch.randn(3), torch.randn(3, 5)
    full = replace(SHORT, loss="cross-entropy", full_softmax=True)
    mine = objective(full, positive, negative, 100)
    assert mine == softmax_loss(positive, negative, num_nodes=100)
    assert mine > objective(replace(full, full_softmax=False), positive, negative, 100)
    assert MLPScorer(4)(torch.randn(6, 1, 4), torch.randn(1, 7, 4)).shape == (6, 7)
    with pytest.raises(ValueError, match="scorer: expected"):
        make_scorer("cosine", 4)
    with pytest.raises(ValueError, match="encoder: expected"):
        Encoder("gin", 4, 4, 2, 0.0)


def test_settings_are_read_as_the_types_of_the_fields():
    words = ["fanout=10", "dropout=0.5", "full_softmax=true", "loss=cross-entropy", "hidden=8"]
    recipe = with_settings(Recipe(temperature=0.1), [*words, "temperature=none"])
    assert recipe == Recipe(
        fanout=10, dropout=0.5, full_softmax=True, loss="cross-entropy", hidden=8
    )


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("hidden", "set: expected FIELD=VALUE"),
        ("depth=3", "set: expected FIELD=VALUE"),
        ("hidden=many", "hidden: expected int, got 'many'"),
        ("full_softmax=1", "full_softmax: expected true or false"),
        ("full_softmax=true", "full_softmax: goes with loss 'cross-entropy'"),
        ("features=raw", "features: expected 'pca-unit' or"),
        ("fanout=0", "fanout: expected at least 1"),
        ("heart=3", "heart: expected an even number"),
        ("temperature=0", "temperature: expected a positive number"),
        ("refresh_share=0", "refresh_share: expected a share"),
    ],
)
def test_settings_that_do_not_fit(word, message):
    with pytest.raises(ValueError, match=message):
        with_settings(Recipe(), [word])


def test_titles_of_a_group_differ_whatever_k():
    for k in (5, 20, 50):
        for group in GROUPS.values():
            titles = [row.title for row in group(k).values()]
            assert len(set(titles)) == len(titles)


def test_seeds_can_be_shared_out(tmp_path, monkeypatch, problem):
    ran = []
    result = {**train(problem, Cell("tiny", SHORT, MAIN["uniform"], 0)), "peak MB": 1.0}

    def stamped(cell, context, threads):
        ran.append(cell.seed)
        return result

    monkeypatch.setattr("benchmarks.dropin.__main__.run_cell", stamped)
    words = ["--datasets", "tiny", "--rows", "uniform", "--jobs", "0", "--quiet"]
    words += ["--out", str(tmp_path)]
    for options, runs in ((["--first-seed", "1", "--seeds", "2"], 2), (["--seeds", "3"], 3)):
        assert main([*words, *options]) == 0
        assert f"| uniform (5) | {runs} |" in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert ran == [1, 2, 0]
