import csv

import pytest

from benchmarks.dropin.config import DMNS, Recipe, Row, Uniform
from benchmarks.dropin.hardness import COLUMNS, FOLLOWS, WatchedCell, course, main
from benchmarks.dropin.problem import load_problem
from benchmarks.dropin.rows import main_rows
from benchmarks.dropin.train import train
from dgl_dmns.diagnostics import Monitor

RECIPE = Recipe(epochs=3, batch_size=256, hidden=16)
ROW = Row("small", DMNS(warmup_steps=5, fit_steps=2))


@pytest.fixture(scope="module")
def problem():
    return load_problem("tiny", RECIPE, 0, None)


def test_watching_changes_nothing(problem):
    cell = WatchedCell("tiny", RECIPE, ROW, 0)
    monitors = []
    watched = train(problem, cell, watch=lambda sampler: monitors.append(Monitor(sampler)))
    assert len(monitors[0].frame()["refresh"].unique()) == 1 + RECIPE.epochs
    assert watched["curve"] == train(problem, cell)["curve"]


def test_a_record_for_each_refresh(problem):
    seen = course(problem, WatchedCell("tiny", RECIPE, ROW, 0))
    for name in ("auc", *COLUMNS):
        assert len(seen[name]) == 1 + RECIPE.epochs
    assert all(0 < value < 1 for name in ("auc", "percentile") for value in seen[name])
    assert seen["auc"][0] != seen["auc"][-1]


def test_nobody_watches_what_does_not_change(problem):
    watched = []
    cell = WatchedCell("tiny", Recipe(epochs=1, batch_size=256), Row("uniform", Uniform()), 0)
    train(problem, cell, watch=watched.append)
    assert not watched
    assert not isinstance(cell.row.method, FOLLOWS)


def test_report_and_resuming(tmp_path, capsys):
    words = ["--datasets", "tiny", "--rows", "self-adversarial", "gate", "--seeds", "2"]
    words += ["--epochs", "2", "--jobs", "0", "--quiet", "--out", str(tmp_path)]
    assert main(words) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"results.csv", "results.md", "tiny.png", "environment.json"} <= names
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 2 * 3  # rows, seeds, refreshes
    titles = [main_rows(Recipe())[name].title for name in ("self-adversarial", "gate")]
    assert list(dict.fromkeys(line["row"] for line in lines)) == titles
    mean = sum(
        float(x["percentile"]) for x in lines if x["row"] == titles[0] and x["refresh"] == "1"
    )
    text = (tmp_path / "results.md").read_text()
    assert f"| {titles[0]} | 2 | 1 |" in text
    assert f"{mean / 2:.3f} ±" in text
    assert str(tmp_path) not in text
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    capsys.readouterr()
    assert main(words) == 0  # nothing is run again
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == stamps


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rows", "uniform"], "invalid choice: 'uniform'"),
        (["--seeds", "0"], "--seeds: expected at least 1"),
        (["--epochs", "0"], "epochs: expected at least 1"),
    ],
)
def test_bad_words(words, said, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*words, "--out", str(tmp_path)])
    assert said in capsys.readouterr().err
