"""Protocol A: the paper's rows, latent negatives, the loss, ablations, the choice of settings."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

from benchmarks.common.cells import CellStore
from benchmarks.common.rows import Cell
from benchmarks.paper.__main__ import main
from benchmarks.paper.ablations import ABLATIONS, ablation_lines
from benchmarks.paper.config import PAPER_FRACTIONS, ROWS, Latent, Line, Training
from benchmarks.paper.latents import psi_density, slot_levels
from benchmarks.paper.negatives import Terms, objective, real_scores
from benchmarks.paper.problem import Folders, load_problem
from benchmarks.paper.train import make_source, run_cell, train
from benchmarks.paper.tuning import (
    SETTINGS,
    SHARED_NAMES,
    choose,
    chosen_lines,
    read_choices,
    trials_of,
    write_choices,
)
from dgl_dmns.core import LevelGaussians
from dgl_dmns.diagnostics import psi_distance
from dgl_dmns.losses import multilevel_loss

SHORT = Training(epochs=2)
LATENT = ROWS["dmns-latent"]


@pytest.fixture(scope="module")
def problem():
    return load_problem("tiny", SHORT, 0, Folders())


def cell(row, training=SHORT, seed=0):
    return Cell("tiny", training, row, seed)


def assert_finite(result):
    figures = [*result["val"].values(), *result["test"].values(), result["probe"]]
    assert all(0.0 <= figure <= 1.0 for figure in figures)


def embeddings(problem):
    return torch.nn.functional.normalize(torch.randn(problem.graph.num_nodes(), 8), dim=1)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_runs_with_its_number_of_negatives(problem, name):
    result = train(problem, cell(ROWS[name]))
    assert_finite(result)
    assert result["epochs"] == 2
    terms = make_source(problem, ROWS[name], 0).terms(embeddings(problem), 0)
    assert terms.score.shape == (len(problem.query), 1 if name in ("fixed", "uniform-1") else 5)


@pytest.mark.parametrize(
    "options",
    [
        {"source": "forward"},
        {"sampling": "chain"},
        {"unit_norm": True},
        {"copies": 2, "uniform": 0},
        {"curriculum": "easy-first", "stage": 1},
        {"drop": "density"},
    ],
)
def test_variants_of_the_latent_row(problem, options):
    assert_finite(train(problem, cell(LATENT.with_options(**options))))


@pytest.mark.parametrize("encoder", ["gat", "sage"])
def test_encoders(encoder):
    training = replace(SHORT, encoder=encoder)
    assert_finite(run_cell(cell(ROWS["uniform-5"], training), Folders()))


def test_every_ablation_can_be_built_and_has_five_negatives(problem):
    latent = chosen_lines("cora", SHORT, {"cora": {"dmns-latent": "diffusion lr=0.01"}})
    for group in ABLATIONS:
        lines = ablation_lines(group, latent["dmns-latent"])
        assert lines[0] == latent["dmns-latent"]
        assert len({line.row.title for line in lines}) == len(lines)
        for row, _ in lines:
            if row.sampler == "latent":
                assert row.options["learning_rate"] == 0.01
                assert Latent(**row.options).k == 5
                make_source(problem, row, 0)
    with pytest.raises(ValueError, match="ablation: expected one of"):
        ablation_lines("nothing", latent["dmns-latent"])


def test_same_seed_same_result(problem):
    first, second = (train(problem, cell(LATENT, seed=3)) for _ in range(2))
    assert first["test"] == second["test"]


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


@pytest.mark.parametrize(("form", "name"), [("sigmoid", "sigmoid"), ("logsigmoid", "log_sigmoid")])
def test_objective_is_the_multilevel_loss_of_the_package(form, name):
    positive, latent, real = torch.randn(6), torch.randn(3, 6), torch.randn(6)
    weights = (1.0, 0.9, 0.8)
    scores = torch.cat([latent, real.unsqueeze(0)]).t()
    mine = objective(positive, Terms(scores, torch.tensor([*weights, 1.0])), form=form)
    assert float(mine) == pytest.approx(
        float(multilevel_loss(positive, latent, real=real, weights=weights, form=name)), abs=1e-6
    )
    with pytest.raises(ValueError, match="loss: expected one of"):
        objective(positive, Terms(scores, None), form="hinge")


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
    source = make_source(problem, LATENT.with_options(drop="distance"), 0)
    assert source.statistics() == {}
    weight = source.terms(embeddings(problem), 0).weight
    shares = source.statistics()
    assert len(shares) == 8
    # Dropped terms are those whose Psi is negative; the last column is the uniform one.
    kept = (weight[:, :4] > 0).float().mean(0).tolist()
    assert [shares[f"psi distance T*{f:g}"] for f in PAPER_FRACTIONS] == pytest.approx(kept)


def test_every_row_has_six_settings_of_which_four_are_shared():
    assert tuple(SETTINGS) == tuple(ROWS)
    for name, row in ROWS.items():
        assert tuple(setting.name for setting in SETTINGS[name][:4]) == SHARED_NAMES
        made = [setting.of(Line(row, SHORT)) for setting in SETTINGS[name]]
        assert len({setting.name for setting in SETTINGS[name]}) == 6
        assert made[0] == Line(row, SHORT)
        assert all(line.row == row for line in made[:4])
        assert all(made[i] != made[j] for i in range(6) for j in range(i))


@pytest.mark.parametrize(("name", "place"), [(name, place) for name in ROWS for place in (4, 5)])
def test_own_settings_run_and_change_the_result(problem, name, place):
    changed = SETTINGS[name][place].of(Line(ROWS[name], Training(epochs=6)))
    other = train(problem, cell(changed.row, changed.training))
    assert figures(other) != by_default(problem, name)


@cache
def by_default(problem, name):
    return figures(train(problem, cell(ROWS[name], Training(epochs=6))))


def figures(result):
    return {name: value for name, value in result.items() if name != "seconds per epoch"}


def test_the_best_validation_map_is_chosen(tmp_path):
    store = CellStore(tmp_path)
    trials = trials_of("tiny", ["dns", "pns"], SHORT)

    def save(row, slot, value=0.5):
        store.save(trials[row][slot], {"val": {"MAP": value}})

    with pytest.raises(ValueError, match="no setting has a result"):
        choose(trials, store)
    for slot in range(5):  # settings that all rows lack alike do no harm
        save("pns", slot, 0.9 if slot == 3 else 0.5)
        if slot != 4:
            save("dns", slot, 0.5 + 0.1 * (slot == 1))
    with pytest.raises(ValueError, match=r"different budgets: dns lacks pool=20$"):
        choose(trials, store)
    save("dns", 4)
    assert choose(trials, store) == {"dns": "lr=0.01,none", "pns": "lr=0.002,none"}
    some = trials_of("tiny", ["dns"], SHORT, ["lr=0.002,relu"])
    assert list(some["dns"]) == [2]


def test_choices_build_the_rows_of_gcn_alone():
    choices = {"cora": {"dns": "pool=10", "uniform-5": "lr=0.002,none"}}
    defaults = {name: Line(row, SHORT) for name, row in ROWS.items()}
    lines = chosen_lines("cora", SHORT, choices)
    assert lines["dns"].row == ROWS["dns"].with_options(pool=10)
    assert lines["uniform-5"].training == replace(SHORT, learning_rate=0.002, activation="none")
    assert lines["pns"] == defaults["pns"]
    assert chosen_lines("tiny", SHORT, choices) == defaults
    sage = replace(SHORT, encoder="sage")
    assert chosen_lines("cora", sage, choices)["dns"] == Line(ROWS["dns"], sage)
    with pytest.raises(ValueError, match=r"expected one of .* for row dns, got 'pool=7'"):
        chosen_lines("cora", SHORT, {"cora": {"dns": "pool=7"}})


def test_choices_of_other_rows_stay_in_the_file(tmp_path):
    path = tmp_path / "choices.json"
    assert read_choices(path) == {}
    write_choices(path, {"cora": {"dns": "pool=10"}, "actor": {"dns": "pool=20"}})
    write_choices(path, {"cora": {"pns": "exponent=1"}})
    assert read_choices(path) == {
        "cora": {"dns": "pool=10", "pns": "exponent=1"},
        "actor": {"dns": "pool=20"},
    }


def test_command_tunes_then_reports_with_the_choices(tmp_path, monkeypatch, capsys):
    out, file = tmp_path / "out", tmp_path / "chosen.json"
    words = ["--datasets", "tiny", "--rows", "uniform-5", "dmns-latent", "--epochs", "2"]
    words += ["--jobs", "0", "--quiet", f"--out={out}", "--choices", str(file)]
    assert main([*words, "--tune"]) == 0
    text = (out / "tuning.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    chosen = json.loads(file.read_text(encoding="utf-8"))["tiny"]
    assert list(chosen) == ["dmns-latent", "uniform-5"]
    for row, setting in chosen.items():
        lines = [line.split(" | ") for line in text.splitlines() if line.startswith(f"| {row}: ")]
        assert len(lines) == 6
        best = max(float(line[2]) for line in lines)
        (mine,) = (line for line in lines if line[0] == f"| {row}: {setting} (chosen)")
        assert float(mine[2]) == best

    def failing(cell, context, threads):
        raise RuntimeError("no luck")

    # The chosen settings have run already: one seed of the table needs no run of its own.
    monkeypatch.setattr("benchmarks.paper.__main__.run_cell", failing)
    assert main([*words, "--tune"]) == 0
    assert main([*words, "--seeds", "1"]) == 0
    text = (out / "results.md").read_text(encoding="utf-8")
    assert f"uniform-5: {chosen['uniform-5']}; dmns-latent: {chosen['dmns-latent']}." in text
    assert "--out=OUT --choices CHOICES --seeds 1`" in text
    assert "failed" not in capsys.readouterr().err


def test_command_refuses_unequal_budgets(tmp_path, monkeypatch, capsys):
    def partly(cell, context, threads):
        if cell.row.title.startswith("PNS") and cell.recipe.learning_rate < 0.01:
            raise RuntimeError("no luck")
        return {part: {"MAP": 0.5} for part in ("val", "test")} | {"best epoch": 0}

    monkeypatch.setattr("benchmarks.paper.__main__.run_cell", partly)
    words = ["--datasets", "tiny", "--jobs", "0", "--quiet", "--out", str(tmp_path)]
    words += ["--choices", str(tmp_path / "choices.json"), "--tune", "--tune-settings"]
    assert main([*words, "lr=0.01,relu", "lr=0.002,relu"]) == 1
    assert "pns lacks lr=0.002,relu" in capsys.readouterr().err
    assert not (tmp_path / "choices.json").exists()
    text = (tmp_path / "tuning.md").read_text(encoding="utf-8")
    assert "| pns: lr=0.002,relu | 0 | - | - | - |" in text
    assert main([*words, "lr=0.01,relu"]) == 0
    assert set(read_choices(tmp_path / "choices.json")["tiny"]) == set(ROWS)
