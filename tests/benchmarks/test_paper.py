import json
from dataclasses import replace

import pytest
import torch

from benchmarks.common import CellStore, cell_hash, run_cells
from benchmarks.paper.__main__ import main
from benchmarks.paper.ablations import ABLATIONS, ablation_rows
from benchmarks.paper.config import PAPER_FRACTIONS, Cell, Latent, Row, Training
from benchmarks.paper.latents import psi_density, slot_levels
from benchmarks.paper.negatives import make_source
from benchmarks.paper.objective import objective
from benchmarks.paper.problem import Folders, load_problem
from benchmarks.paper.published import published
from benchmarks.paper.rows import ROW_NAMES, main_rows
from benchmarks.paper.terms import Terms, real_scores
from benchmarks.paper.train import run_cell, train
from dgl_dmns.core import LevelGaussians
from dgl_dmns.diagnostics import psi_distance
from dgl_dmns.losses import multilevel_loss

SHORT = Training(epochs=2)


@pytest.fixture(scope="module")
def problem():
    return load_problem("tiny", SHORT, 0, False, Folders())


def short_latent(**changes):
    row = main_rows("tiny", SHORT)["dmns-latent"]
    return replace(row, method=replace(row.method, **changes))


def assert_finite(result):
    figures = [*result["val"].values(), *result["test"].values(), result["probe"]]
    assert all(0.0 <= figure <= 1.0 for figure in figures)


@pytest.mark.parametrize("name", ROW_NAMES)
def test_every_row_runs(problem, name):
    row = main_rows("tiny", SHORT)[name]
    result = train(problem, Cell("tiny", row, 0))
    assert_finite(result)
    assert result["epochs"] == 2


@pytest.mark.parametrize("name", [name for name in ROW_NAMES if not name.endswith(("1", "fixed"))])
def test_rows_have_five_negatives(problem, name):
    method = main_rows("tiny")[name].method
    h = torch.nn.functional.normalize(torch.randn(problem.graph.num_nodes(), 8), dim=1)
    terms = make_source(problem, method, 0).terms(h, 0)
    assert method.k == 5
    assert terms.score.shape == (len(problem.query), 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "forward"},
        {"sampling": "chain"},
        {"unit_norm": True},
        {"copies": 2, "uniform": 0},
        {"curriculum": "easy-first", "stage": 1},
        {"drop": "density"},
    ],
)
def test_variants_of_the_latent_row(problem, changes):
    assert_finite(train(problem, Cell("tiny", short_latent(**changes), 0)))


@pytest.mark.parametrize("encoder", ["gat", "sage"])
def test_encoders(encoder):
    training = replace(SHORT, encoder=encoder)
    row = main_rows("tiny", training)["uniform-5"]
    assert_finite(run_cell(Cell("tiny", row, 0), Folders()))


def test_every_ablation_can_be_built(problem):
    for name in ABLATIONS:
        rows = ablation_rows(name, "cora")
        assert len({row.name for row in rows}) == len(rows)
        for row in rows:
            if isinstance(row.method, Latent):
                make_source(problem, row.method, 0)
    with pytest.raises(ValueError, match="ablation: expected one of"):
        ablation_rows("nothing", "cora")


def test_levels_and_pairs_keep_the_number_of_negatives():
    for name in ("levels", "pairs"):
        assert {row.method.k for row in ablation_rows(name, "cora")} == {5}


def test_same_seed_same_result(problem):
    cell = Cell("tiny", main_rows("tiny", SHORT)["dmns-latent"], 3)
    assert train(problem, cell)["test"] == train(problem, cell)["test"]


def test_configuration_hash():
    cell = Cell("tiny", short_latent(), 0)
    same = Cell("tiny", short_latent(), 0)
    assert cell_hash(cell) == cell_hash(same)
    others = [
        replace(cell, seed=1),
        replace(cell, dataset="cora"),
        replace(cell, official=True),
        replace(cell, row=replace(cell.row, training=Training())),
        Cell("tiny", short_latent(unit_norm=True), 0),
    ]
    assert len({cell_hash(other) for other in [cell, *others]}) == len(others) + 1
    with pytest.raises(TypeError, match="expected plain values"):
        cell_hash({"folder": object()})


def failing(cell, context, threads):
    raise RuntimeError("no luck")


def counting(cell, context, threads):
    context.append(cell)
    return {"value": cell}


def test_finished_cells_are_not_run_again(tmp_path):
    store, ran = CellStore(tmp_path), []
    assert run_cells([1, 2, 1], counting, store, context=ran, jobs=0, progress=False) == {}
    assert ran == [1, 2]
    run_cells([1, 2, 3], counting, store, context=ran, jobs=0, progress=False)
    assert ran == [1, 2, 3]
    assert store.load(3) == {"value": 3}
    assert store.load(4) is None


def test_a_failed_cell_is_reported_and_not_stored(tmp_path):
    store = CellStore(tmp_path)
    failures = run_cells([1], failing, store, jobs=0, progress=False)
    assert "no luck" in failures["1"]
    assert store.load(1) is None
    with pytest.raises(ValueError, match="jobs, threads"):
        run_cells([1], failing, store, jobs=-1)


def test_command_resumes_and_reports_each_row(tmp_path, monkeypatch, capsys):
    words = ["--datasets", "tiny", "--rows", "uniform-5", "dmns-latent", "--ablations", "psi"]
    words += ["--seeds", "2", "--epochs", "2", "--jobs", "0", "--quiet", "--out", str(tmp_path)]
    assert main(words) == 0
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    for title in ("uniform, redrawn (5)", "DMNS, latent (5)", "Psi < 0 dropped (density)"):
        assert f"| {title} | 2 |" in text
    assert "Sub-linear positivity" in text
    assert len((tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()) == 1 + 2 * 5
    assert "versions" not in json.loads((tmp_path / "environment.json").read_text())
    monkeypatch.setattr("benchmarks.paper.__main__.run_cell", failing)
    assert main(words) == 0
    assert main([*words, "--seeds", "3"]) == 1
    assert "no luck" in capsys.readouterr().err


def test_curriculum_slots():
    assert slot_levels(4, "constant", 10, 0) == [0, 1, 2, 3]
    assert slot_levels(4, "easy-first", 10, 0) == [3, 3, 3, 3]
    assert slot_levels(4, "easy-first", 10, 30) == [0, 1, 2, 3]
    assert slot_levels(4, "hard-first", 10, 10) == [0, 1, 1, 1]


def test_psi_by_hand():
    negatives = LevelGaussians(torch.zeros(1, 1, 2), torch.full((1, 1, 2), 2.0))
    positives = LevelGaussians(torch.ones(1, 1, 2), torch.ones(1, 1, 2))
    x = torch.tensor([[[2.0, 2.0]]])
    u = torch.tensor([[3.0, 1.0]])
    assert float(psi_density(x, u, negatives, positives)) == pytest.approx(4.0 - 2.0)
    # Means scaled by 1/2: the negative is sqrt(1.5^2 + 1.5^2) away from it, the positive 2 / 2.
    found = psi_distance(x, u, positives.mean[0], torch.tensor([0.25]))
    assert float(found) == pytest.approx(4.5 - 1.0)


def test_objective_by_hand():
    positive, negative = torch.tensor([1.0]), torch.tensor([[0.0, 2.0]])
    terms = Terms(negative, torch.tensor([1.0, 0.5]))
    sigmoid = torch.sigmoid
    wrong = (-sigmoid(torch.tensor(0.0)) - 0.5 * sigmoid(torch.tensor(-2.0))) / 2
    expected = (wrong - sigmoid(torch.tensor(1.0))) / 2
    assert float(objective(positive, terms, form="sigmoid")) == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="loss: expected one of"):
        objective(positive, terms, form="hinge")


@pytest.mark.parametrize(("form", "name"), [("sigmoid", "sigmoid"), ("logsigmoid", "log_sigmoid")])
def test_objective_is_the_multilevel_loss_of_the_package(form, name):
    positive, latent, real = torch.randn(6), torch.randn(3, 6), torch.randn(6)
    weights = (1.0, 0.9, 0.8)
    scores = torch.cat([latent, real.unsqueeze(0)]).t()
    mine = objective(positive, Terms(scores, torch.tensor([*weights, 1.0])), form=form)
    assert float(mine) == pytest.approx(
        float(multilevel_loss(positive, latent, real=real, weights=weights, form=name)), abs=1e-6
    )


def test_real_nodes_refuse_what_the_sampler_cannot_do(problem):
    method = main_rows("tiny")["dmns-density"].method
    method = replace(method, diffusion=replace(method.diffusion, conditional=False))
    with pytest.raises(ValueError, match="rows of real nodes"):
        make_source(problem, method, 0)


def test_published_figures():
    assert published("DMNS, latent (5)", "cora") == (0.793, 0.844)
    assert published("uniform, fixed (1)", "actor") == (0.521, 0.634)
    assert published("uniform, redrawn (5)", "cora") is None
    assert published("DNS (5)", "tiny") is None


def test_row_is_a_plain_value():
    row = Row("a", Latent())
    assert row == Row("a", Latent())


def test_scores_of_real_negatives_and_their_gradients():
    generator = torch.Generator().manual_seed(0)
    query = torch.randint(0, 20, (60,), generator=generator)
    negatives = torch.randint(0, 20, (60, 5), generator=generator)
    upstream = torch.randn(60, 5, generator=generator)
    h = torch.randn(20, 4, generator=generator, requires_grad=True)
    score = real_scores(h, query, negatives)
    plain = (h[query].unsqueeze(1) * h[negatives]).sum(-1)
    torch.testing.assert_close(score, plain)
    found, expected = (torch.autograd.grad(s, h, upstream)[0] for s in (score, plain))
    torch.testing.assert_close(found, expected)


def test_shares_of_psi_do_not_depend_on_when_they_are_asked_for(problem):
    h = torch.nn.functional.normalize(torch.randn(problem.graph.num_nodes(), 8), dim=1)
    source = make_source(problem, short_latent(drop="distance").method, 0)
    assert source.statistics() == {}
    weight = source.terms(h, 0).weight
    shares = source.statistics()
    assert len(shares) == 8
    # Dropped terms are those whose Psi is negative; the last column is the uniform one.
    kept = (weight[:, :4] > 0).float().mean(0).tolist()
    assert [shares[f"psi distance T*{f:g}"] for f in PAPER_FRACTIONS] == pytest.approx(kept)
