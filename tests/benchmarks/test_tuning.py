import csv
import json
from dataclasses import replace

import pytest

from benchmarks.common import CellStore
from benchmarks.paper.__main__ import main
from benchmarks.paper.ablations import ABLATIONS, ablation_rows
from benchmarks.paper.config import Cell, Training
from benchmarks.paper.problem import Folders, load_problem
from benchmarks.paper.rows import ROW_NAMES, default_rows, main_rows
from benchmarks.paper.train import train
from benchmarks.paper.tuning import (
    SETTINGS,
    SHARED_NAMES,
    choose,
    read_choices,
    trials_of,
    write_choices,
)

SHORT = Training(epochs=1)
OWN = [(name, place) for name in ROW_NAMES for place in (4, 5)]


def described(cell):
    return {"val": {"MAP": 0.5}, "test": {"MAP": 0.5}, "best epoch": 0, "cell": str(cell)}


def test_every_row_has_six_settings_of_which_four_are_shared():
    assert tuple(SETTINGS) == ROW_NAMES
    for name, row in default_rows(SHORT).items():
        names = [setting.name for setting in SETTINGS[name]]
        assert len(set(names)) == 6
        assert tuple(names[:4]) == SHARED_NAMES
        made = [setting.of(row) for setting in SETTINGS[name]]
        assert made[0] == row
        assert {one.name for one in made} == {row.name}
        assert {one.method.k for one in made} == {row.method.k}
        assert all(one.method == row.method for one in made[:4])
        assert len(set(made)) == 6


@pytest.mark.parametrize(("name", "place"), OWN)
def test_own_settings_run_and_change_the_result(name, place):
    row = default_rows(Training(epochs=6))[name]
    problem = load_problem("tiny", row.training, 0, False, Folders())
    other, default = (
        train(problem, Cell("tiny", one, 0)) for one in (SETTINGS[name][place].of(row), row)
    )
    for result in (other, default):
        del result["seconds per epoch"]
    assert other != default


def test_the_best_validation_map_is_chosen(tmp_path):
    store = CellStore(tmp_path)
    rows = {name: default_rows(SHORT)[name] for name in ("dns", "pns")}
    trials = trials_of("tiny", rows, False)
    assert len(trials) == 12
    with pytest.raises(ValueError, match="no setting has a result"):
        choose(trials, store)
    for trial in trials:
        value = 0.9 if trial.setting in ("pool=10", "lr=0.002,none") else 0.5
        result = {"val": {"MAP": value}, "test": {"MAP": 1 - value}, "best epoch": 0}
        if trial.setting != "pool=20":
            store.save(trial.cell, result)
    with pytest.raises(ValueError, match=r"different budgets: dns lacks pool=20$"):
        choose(trials, store)
    store.save(next(trial.cell for trial in trials if trial.setting == "pool=20"), described(0))
    assert choose(trials, store) == {"dns": "lr=0.002,none", "pns": "lr=0.002,none"}


def test_counterparts_that_all_rows_lack_are_left_out(tmp_path):
    store = CellStore(tmp_path)
    rows = {name: default_rows(SHORT)[name] for name in ("dns", "pns")}
    trials = trials_of("tiny", rows, False)
    for trial in trials:
        if trial.slot != 5:
            store.save(trial.cell, described(trial.cell))
    assert choose(trials, store) == dict.fromkeys(rows, "lr=0.01,relu")
    some = trials_of("tiny", rows, False, ["lr=0.002,relu"])
    assert [trial.setting for trial in some] == ["lr=0.002,relu"] * 2


def test_choices_build_the_rows_of_gcn_alone():
    choices = {"cora": {"dns": "pool=10", "uniform-5": "lr=0.002,none"}}
    rows, defaults = main_rows("cora", SHORT, choices), default_rows(SHORT)
    assert rows["dns"] == replace(defaults["dns"], method=replace(defaults["dns"].method, pool=10))
    plain = replace(SHORT, learning_rate=0.002, activation="none")
    assert rows["uniform-5"] == replace(defaults["uniform-5"], training=plain)
    assert rows["pns"] == defaults["pns"]
    assert main_rows("tiny", SHORT, choices) == defaults
    sage = replace(SHORT, encoder="sage")
    assert main_rows("cora", sage, choices) == default_rows(sage)
    with pytest.raises(ValueError, match=r"expected one of .* for row dns, got 'pool=7'"):
        main_rows("cora", SHORT, {"cora": {"dns": "pool=7"}})


def test_ablations_start_from_the_chosen_latent_row():
    choices = {"cora": {"dmns-latent": "diffusion lr=0.01"}}
    chosen = main_rows("cora", SHORT, choices)["dmns-latent"]
    for name in ABLATIONS:
        rows = ablation_rows(name, "cora", SHORT, choices)
        assert rows[0] == chosen
        assert {row.method.k for row in rows} == {5}
    for row in ablation_rows("steps", "cora", SHORT, choices):
        assert row.method.diffusion.learning_rate == 0.01
    slow = {"cora": {"dmns-latent": "lr=0.002,relu"}}
    for row in ablation_rows("pairs", "cora", SHORT, slow):
        assert row.training.learning_rate == 0.002


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
    rows = ["--datasets", "tiny", "--rows", "uniform-5", "dmns-latent", "--epochs", "2"]
    words = [*rows, "--jobs", "0", "--quiet", f"--out={out}", "--choices", str(file)]
    words += ["--data-dir", str(tmp_path)]
    assert main([*words, "--tune"]) == 0
    with (out / "tuning.csv").open(encoding="utf-8") as lines:
        table = list(csv.DictReader(lines))
    assert len(table) == 12
    chosen = {line["row"]: line["setting"] for line in table if line["chosen"]}
    assert json.loads(file.read_text(encoding="utf-8")) == {"tiny": chosen}
    for row in chosen:
        best = max(float(line["val MAP"]) for line in table if line["row"] == row)
        mine = next(one for one in table if one["row"] == row and one["setting"] == chosen[row])
        assert float(mine["val MAP"]) == best

    def failing(cell, context, threads):
        raise RuntimeError("no luck")

    # The chosen settings have run already: one seed of the table needs no run of its own.
    monkeypatch.setattr("benchmarks.paper.__main__.run_cell", failing)
    assert main([*words, "--tune"]) == 0
    assert main([*words, "--seeds", "1"]) == 0
    text = (out / "results.md").read_text(encoding="utf-8")
    assert f"uniform-5: {chosen['uniform-5']}; dmns-latent: {chosen['dmns-latent']}." in text
    command = "--out=OUT --choices CHOICES --data-dir CACHE --seeds 1`"
    assert command in text
    for written in ("results.md", "environment.json", "tuning.md"):
        assert str(tmp_path) not in (out / written).read_text(encoding="utf-8")
    assert "failed" not in capsys.readouterr().err


def test_command_refuses_unequal_budgets(tmp_path, monkeypatch, capsys):
    def partly(cell, context, threads):
        if cell.row.name.startswith("PNS") and cell.row.training.learning_rate < 0.01:
            raise RuntimeError("no luck")
        return described(cell)

    monkeypatch.setattr("benchmarks.paper.__main__.run_cell", partly)
    words = ["--datasets", "tiny", "--jobs", "0", "--quiet", "--out", str(tmp_path)]
    words += ["--choices", str(tmp_path / "choices.json"), "--tune"]
    shared = ["lr=0.01,relu", "lr=0.002,relu"]
    assert main([*words, "--tune-settings", *shared]) == 1
    assert "pns lacks lr=0.002,relu" in capsys.readouterr().err
    assert not (tmp_path / "choices.json").exists()
    text = (tmp_path / "tuning.md").read_text(encoding="utf-8")
    assert "| tiny | pns | lr=0.002,relu | - | - | - |  |" in text
    assert main([*words, "--tune-settings", "lr=0.01,relu"]) == 0
    assert set(read_choices(tmp_path / "choices.json")["tiny"]) == set(ROW_NAMES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tune-settings", "lr=0.01,relu"], "expected together with --tune"),
        (["--tune", "--encoder", "sage"], "chooses for the rows with GCN"),
        (["--tune", "--ablations", "psi"], "chooses for the rows with GCN"),
        (["--tune", "--rows"], "at least one of --rows"),
    ],
)
def test_command_refuses_what_does_not_go_together(words, message, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err
