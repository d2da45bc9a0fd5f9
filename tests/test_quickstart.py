"""The example that the README starts with, at a small size."""

import importlib.util
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "quickstart.py"


@pytest.fixture(scope="module")
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setitem(sys.modules, "quickstart", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    monkeypatch.undo()


def test_trains_three_times_and_writes_its_files(quickstart, tmp_path, capsys):
    assert quickstart.main(["--seeds", "1", "--epochs", "3", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "table.csv", index_col="kind")
    assert list(table.index) == ["dgl", "uniform", "dmns"]
    assert {"MRR", "Hits@10", "Hits@50", "MAP@9", "seconds/epoch"} <= set(table.columns)
    # Three epochs already rank far better than chance: 1 in 2 500 nodes, and 0.29 among nine.
    assert (table["MRR"] > 0.005).all()
    assert (table["MAP@9"] > 0.4).all()
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert [len(run["curve"]) for run in runs] == [3] * 3
    assert [len(run["hardness"]) for run in runs] == [0, 0, 3]
    dmns = runs[-1]
    assert set(dmns["hardness"][-1]) == {*"0123", "no level"}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    for kind in ("uniform", "DMNS"):
        assert f"{kind}, shared, over DGL's uniform, its loss: " in printed
    assert "embedded" in printed


@pytest.mark.parametrize("fanout", ["-1", "5"])  # all neighbours, and DGL's usual recipe
def test_one_seed_gives_one_result(quickstart, fanout):
    args = quickstart.arguments(["--epochs", "2", "--fanout", fanout])
    data = quickstart.load_dataset("embedded")
    split = quickstart.split_pairs(data, seed=0)
    first, second = (quickstart.train("dmns", data, split, 0, args) for _ in range(2))
    assert first.curve == second.curve
    assert first.metrics["MRR"] == second.metrics["MRR"]


def test_no_held_out_edge_is_in_the_training_graph(quickstart):
    data = quickstart.load_dataset("embedded")
    split = quickstart.split_pairs(data, seed=0)
    g, reverse = quickstart.training_graph(data, split)
    for pairs in (split.val, split.test):
        assert not g.has_edges_between(pairs[0], pairs[1]).any()
        assert not g.has_edges_between(pairs[1], pairs[0]).any()
    src, dst = g.edges()
    assert (src[reverse] == dst).all()
    assert (dst[reverse] == src).all()


def test_says_what_is_missing(quickstart, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DGL_REPO", "http://127.0.0.1:9/")
    out = tmp_path / "out"
    argv = ["--dataset", "cora", "--data-dir", str(tmp_path / "none"), "--out", str(out)]
    assert quickstart.main(argv) == 1
    assert "cora" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("option", ["--seeds", "--epochs", "--k", "--fanout"])
def test_rejects_counts_below_one(quickstart, option, capsys):
    with pytest.raises(SystemExit) as caught:
        quickstart.arguments([option, "0"])
    assert caught.value.code == 2
    assert "at least 1" in capsys.readouterr().err
