import math
from dataclasses import replace

import pytest
import torch

from benchmarks.common import CellStore, cell_hash, public_command
from benchmarks.dropin.__main__ import main
from benchmarks.dropin.config import (
    DMNS,
    Cell,
    Recipe,
    Row,
    SelfAdversarial,
    Shared,
    Uniform,
    with_settings,
)
from benchmarks.dropin.measure import HEART_METRICS, METRICS, false_negatives
from benchmarks.dropin.model import DotScorer, Encoder, MLPScorer, make_scorer
from benchmarks.dropin.negatives import make_sampler, negatives_per_edge
from benchmarks.dropin.problem import load_problem, prepared_features
from benchmarks.dropin.report import Section, write_report
from benchmarks.dropin.rows import GROUPS, main_rows, shared_rows
from benchmarks.dropin.train import _Run, objective, run_cell, train
from dgl_dmns import DMNSSampler, Pools
from dgl_dmns.losses import softmax_loss
from dgl_dmns.samplers import SelfAdversarialSampler

SHORT = Recipe(epochs=2, batch_size=256, hidden=16)
ROW_NAMES = tuple(main_rows(SHORT))


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


@pytest.mark.parametrize("loss", ["bce", "bce-pooled", "cross-entropy", "bpr"])
@pytest.mark.parametrize("name", ROW_NAMES)
def test_every_row_runs_with_every_loss(problem, name, loss):
    recipe = replace(SHORT, loss=loss)
    row = main_rows(recipe)[name]
    if isinstance(row.method, DMNS):
        row = replace(row, method=replace(row.method, warmup_steps=5, fit_steps=2))
    assert_sound(train(problem, Cell("tiny", recipe, row, 0)))


@pytest.mark.parametrize("scorer", ["dot", "mlp"])
@pytest.mark.parametrize("name", tuple(shared_rows(SHORT))[1:])
def test_every_row_of_shared_negatives_runs(problem, name, scorer):
    recipe = replace(SHORT, scorer=scorer)
    row = shared_rows(recipe)[name]
    assert_sound(train(problem, Cell("tiny", recipe, row, 0)))
    other = replace(recipe, loss="bpr")  # the rows have a loss of their own
    results = [train(problem, Cell("tiny", one, row, 0)) for one in (recipe, other)]
    assert results[0]["curve"] == results[1]["curve"]


def test_full_softmax_row_sums_over_all_nodes(problem):
    recipe = replace(SHORT, batch_size=4096)
    run = _Run(problem, Cell("tiny", recipe, shared_rows(recipe)["full-softmax"], 0))
    nodes, pos_graph, neg_graph, blocks = next(iter(run.loader))
    h = run.encoder(blocks, problem.features[nodes])
    ids = pos_graph.ndata["_ID"]
    assert torch.equal(ids.sort().values, torch.arange(problem.data.num_nodes))
    src, dst = pos_graph.edges()
    known = problem.graph.has_edges_between(
        ids[src].repeat_interleave(len(ids)), ids.repeat(len(src))
    )
    barred = known.view(len(src), -1) | (ids[src].unsqueeze(1) == ids)
    score = h[src] @ h.t()
    row = score.masked_fill(barred, -math.inf)
    positive = (h[src] * h[dst]).sum(1, keepdim=True)
    expected = (torch.cat([positive, row], 1).logsumexp(1) - positive.squeeze(1)).mean()
    loss, *_ = run._loss(h, pos_graph, neg_graph)
    torch.testing.assert_close(loss, expected)


def test_parts_of_a_batch_share_their_own_negatives(problem):
    recipe = replace(SHORT, batch_size=128)
    row = shared_rows(recipe)["uniform-shared-32"]
    run = _Run(problem, Cell("tiny", recipe, row, 0))
    nodes, pos_graph, neg_graph, blocks = next(iter(run.loader))
    h = run.encoder(blocks, problem.features[nodes])
    parts = []
    for at in range(0, 128, 32):
        graphs = [
            graph.edge_subgraph(torch.arange(at, at + 32), relabel_nodes=False)
            for graph in (pos_graph, neg_graph)
        ]
        parts.append(run.sampler.loss(h, *graphs))
    loss, *_ = run._loss(h, pos_graph, neg_graph)
    torch.testing.assert_close(loss, torch.stack(parts).mean())
    assert not torch.allclose(loss, run.sampler.loss(h, pos_graph, neg_graph))
    with pytest.raises(ValueError, match="queries: expected at least 1, with source 'uniform'"):
        Shared("in-batch", queries=32)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "gcn", "fanout": 3, "features": "pca-white", "width": 16},
        {"encoder": "gat", "dropout": 0.5, "layers": 1, "features": "stored"},
        {"scorer": "mlp", "loss": "cross-entropy", "full_softmax": True, "refresh_every": 2},
    ],
)
def test_recipes(changes):
    method = SelfAdversarial(calibrated="both", temperature=2.0)
    cell = Cell("tiny", replace(SHORT, **changes), Row("a", method), 0)
    assert_sound(run_cell(cell, None))


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
    cell = Cell("tiny", recipe, main_rows(recipe)["self-adversarial"], 0)
    assert_sound(train(problem, cell))
    assert len(seen) >= 2  # batches
    with pytest.raises(ValueError, match=r"refresh_share: expected a share in \(0, 1\], got 0"):
        replace(recipe, refresh_share=0.0)
    first, second, third = rebuilt
    quarter = math.ceil(problem.data.num_nodes / 4)
    assert first is None
    assert second != third
    assert len(set(second)) == len(set(third)) == quarter
    row = main_rows(recipe)["uniform"]
    plain = train(problem, Cell("tiny", SHORT, row, 0))
    assert train(problem, Cell("tiny", recipe, row, 0))["curve"] == plain["curve"]


def test_hard_evaluation_stands_beside_the_usual_one(tmp_path):
    recipe = replace(SHORT, heart=20)
    cell = Cell("tiny", recipe, main_rows(recipe)["uniform"], 0)
    problem = load_problem("tiny", recipe, 0, None)
    assert problem.heart is not None
    assert problem.heart.shape == (2, problem.split.test.shape[1], 10)
    known = problem.data.csr()
    for stays, moves in zip(problem.split.test.flatten(), problem.heart.flatten(0, 1)):
        assert not torch.isin(moves, known[1][known[0][stays] : known[0][stays + 1]]).any()
    result = train(problem, cell)
    plain = train(load_problem("tiny", SHORT, 0, None), replace(cell, recipe=SHORT))
    assert set(result["test"]) - set(plain["test"]) == set(HEART_METRICS)
    assert result["curve"] == plain["curve"]  # training does not see them
    assert 1 / 21 <= result["test"]["HeaRT MRR"] < result["test"]["MAP"]
    store = CellStore(tmp_path / "cells")
    store.save(cell, {**result, "seconds": 1.0, "peak MB": 1.0})
    section = Section("tiny", ((cell.row, (cell,)),), cell.row)
    files = write_report([section], store, tmp_path, "")
    header, line = (row.split(",") for row in files[0].read_text().splitlines())
    value = dict(zip(header, line))["test HeaRT MRR"]
    assert float(value) == pytest.approx(result["test"]["HeaRT MRR"])
    assert "HeaRT Hits@10, difference" in files[1].read_text()


def test_same_seed_same_result(problem):
    cell = Cell("tiny", SHORT, main_rows(SHORT)["self-adversarial"], 3)
    first, second = (train(problem, cell) for _ in range(2))
    for part in ("val", "test", "curve", "negatives", "negative score"):
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
    import dgl

    graph = dgl.add_self_loop(problem.graph)
    encoder = Encoder(kind, problem.features.shape[1], 8, 2, 0.0)
    seeds = torch.arange(10)
    sampler = dgl.dataloading.MultiLayerFullNeighborSampler(2)
    nodes, _, blocks = sampler.sample(graph, seeds)
    whole = encoder(graph, problem.features)
    assert torch.allclose(encoder(blocks, problem.features[nodes]), whole[seeds], atol=1e-5)


def test_temperature_divides_cosines(problem):
    encoder = Encoder("sage", problem.features.shape[1], 8, 2, 0.0, temperature=0.25)
    h = encoder(problem.graph, problem.features)
    cosine = torch.nn.functional.cosine_similarity(h[0], h[1], dim=0)
    assert float(DotScorer()(h[0], h[1])) == pytest.approx(float(cosine) / 0.25, abs=1e-5)
    assert with_settings(Recipe(), ["temperature=0.1"]).temperature == 0.1
    with pytest.raises(ValueError, match="temperature: expected a positive number, got 0"):
        Recipe(temperature=0.0)


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


def test_methods_leave_defaults_to_the_samplers(problem):
    graph, h = problem.graph, torch.randn(problem.data.num_nodes, 8)

    def made(method):
        return make_sampler(method, 5, graph, lambda: h, None, 0)

    plain, default = made(DMNS()), DMNSSampler(graph, lambda: h, k=5)
    assert plain.settings == default.settings
    assert plain.rule == default.rule
    assert plain.levels == default.levels
    assert plain._models.arguments["learning_rate"] == default._models.arguments["learning_rate"]
    rival = made(SelfAdversarial(pool=64))
    own = SelfAdversarialSampler(graph, lambda: h, k=5, pools=Pools(pool=64))
    assert (rival.settings, rival.rule) == (own.settings, own.rule)
    changed = made(DMNS(rule="density", levels=(0.1, 0.5), lam=0.3, fit_steps=3))
    assert changed.settings.lam == 0.3
    assert changed.levels.fractions == (0.1, 0.5)
    assert changed.fit_steps == 3
    assert [negatives_per_edge(m, 5) for m in (Uniform(), Uniform(20), DMNS())] == [5, 20, 5]
    assert [negatives_per_edge(Shared(k=k), 5) for k in (None, 1)] == [5, 1]


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
    mine = objective(full, positive, negative, None, None, 100)
    assert mine == softmax_loss(positive, negative, num_nodes=100)
    assert mine > objective(replace(full, full_softmax=False), positive, negative, None, None, 100)
    scorer = MLPScorer(4)
    assert scorer(torch.randn(6, 1, 4), torch.randn(1, 7, 4)).shape == (6, 7)
    with pytest.raises(ValueError, match="scorer: expected"):
        make_scorer("cosine", 4)
    with pytest.raises(ValueError, match="encoder: expected"):
        Encoder("gin", 4, 4, 2, 0.0)


def test_settings_are_read_as_the_types_of_the_fields():
    words = ["fanout=10", "dropout=0.5", "full_softmax=true", "loss=cross-entropy", "hidden=8"]
    recipe = with_settings(Recipe(), words)
    assert recipe == Recipe(
        fanout=10, dropout=0.5, full_softmax=True, loss="cross-entropy", hidden=8
    )
    assert with_settings(recipe, ["fanout=none"]).fanout is None


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
    ],
)
def test_settings_that_do_not_fit(word, message):
    with pytest.raises(ValueError, match=message):
        with_settings(Recipe(), [word])


def test_nearest_cannot_be_calibrated():
    with pytest.raises(ValueError, match="calibrated: rule 'nearest'"):
        DMNS(rule="nearest", calibrated="negatives")


def test_configuration_hash():
    row = main_rows(SHORT)["gate"]
    cell = Cell("tiny", SHORT, row, 0)
    assert cell_hash(cell) == cell_hash(Cell("tiny", replace(SHORT), row, 0))
    others = [
        replace(cell, seed=1),
        replace(cell, recipe=replace(SHORT, dropout=0.1)),
        replace(cell, row=replace(row, method=DMNS(lam=0.3))),
    ]
    assert len({cell_hash(other) for other in (cell, *others)}) == 4


def test_titles_of_a_group_differ_whatever_k():
    for k in (5, 20, 50):
        for group in GROUPS.values():
            titles = [row.title for row in group(replace(SHORT, k=k)).values()]
            assert len(set(titles)) == len(titles)


def finished(mrr, map_):
    metrics = {"MRR": mrr, "Hits@10": 0.5, "Hits@50": 0.6, "MAP": map_}
    names = ("false share", "uniform false share", "weight", "false weight")
    costs = ("best epoch", "epochs", "seconds per epoch", "refresh share", "input nodes")
    rest = (*costs, "peak MB", "seconds", "positive score", "negative score")
    negatives = {**dict.fromkeys(names, 0.1), "false weight": None}
    result = {"val": metrics, "test": metrics, "curve": [0.1], "negatives": negatives}
    return {**result, **dict.fromkeys(rest, 1)}


def test_report_pairs_by_seed(tmp_path):
    store, rows = CellStore(tmp_path / "cells"), main_rows(SHORT)
    uniform, gate = rows["uniform"], rows["gate"]
    cells = {
        row: tuple(Cell("tiny", SHORT, row, seed) for seed in range(3)) for row in (uniform, gate)
    }
    for seed, base in enumerate((0.1, 0.2, 0.3)):
        store.save(cells[uniform][seed], finished(base, 0.8))
        if seed < 2:
            store.save(cells[gate][seed], finished(2 * base, 0.7))
    sections = [Section("tiny", tuple(cells.items()), uniform)]
    write_report(sections, store, tmp_path, "# Heading\n")
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| uniform (5) | 3 |" in text
    assert "2.00 [2.00, 2.00] | -0.100 [-0.100, -0.100] |" in text
    assert "+0.150 [-0.485, +0.785]" in text
    assert len((tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()) == 6


def failing(cell, context, threads):
    raise RuntimeError("no luck")


def test_command_resumes_and_reports_each_row(tmp_path, monkeypatch, capsys):
    words = ["--datasets", "tiny", "--rows", "uniform", "self-adversarial", "--seeds", "2"]
    words += ["--epochs", "2", "--set", "hidden=16", "--jobs", "0", "--quiet"]
    words += ["--out", str(tmp_path)]
    assert main(words) == 0
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    for title in ("uniform (5)", "self-adversarial (5)"):
        assert f"| {title} | 2 |" in text
    assert "hidden 16" in text
    assert "--out OUT`" in text
    assert str(tmp_path) not in text + (tmp_path / "environment.json").read_text()
    monkeypatch.setattr("benchmarks.dropin.__main__.run_cell", failing)
    assert main(words) == 0
    assert main([*words, "--seeds", "3"]) == 1
    assert "no luck" in capsys.readouterr().err


def test_seeds_can_be_shared_out(tmp_path, monkeypatch):
    ran = []

    def stamped(cell, context, threads):
        ran.append(cell.seed)
        return finished(0.1 + 0.1 * cell.seed, 0.8)

    monkeypatch.setattr("benchmarks.dropin.__main__.run_cell", stamped)
    words = ["--datasets", "tiny", "--rows", "uniform", "--jobs", "0", "--quiet"]
    words += ["--out", str(tmp_path)]
    assert main([*words, "--first-seed", "1", "--seeds", "2"]) == 0
    assert "| uniform (5) | 2 |" in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert ran == [1, 2]
    assert main([*words, "--seeds", "3"]) == 0
    assert "| uniform (5) | 3 |" in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert ran == [1, 2, 0]


@pytest.mark.parametrize(
    "words",
    [["--rows", "nothing"], ["--seeds", "0"], ["--first-seed", "-1"], ["--set", "k"]],
)
def test_command_refuses(words, capsys):
    with pytest.raises(SystemExit):
        main(["--datasets", "tiny", *words])
    assert "expected" in capsys.readouterr().err


def test_public_command():
    words = ["a", "--out", "/x y", "--data-dir=/z", "--set", "k=1", "--out"]
    shown = public_command(words, {"--out": "OUT", "--data-dir": "CACHE"})
    assert shown == "a --out OUT --data-dir=CACHE --set k=1 --out"
