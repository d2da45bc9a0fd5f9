"""The examples, at a small size; that of GraphBolt is in tests/samplers/test_graphbolt.py."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import dgl
import dgl.distributed
import pandas as pd
import pytest

FOLDER = Path(__file__).parents[1] / "examples"
SMALL = {
    "rgcn": ["--entities", "60", "--relations", "3", "--batch-size", "256"],
    "recommend": ["--users", "150", "--items", "80", "--batch-size", "512"],
}

pytestmark = pytest.mark.filterwarnings("ignore:Dataloader CPU affinity")


@pytest.fixture
def example(monkeypatch):
    """Imports an example by its name."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *(("quickstart", o, "0") for o in ("--seeds", "--epochs", "--k", "--fanout")),
        *(("recommend", o, "0") for o in ("--users", "--k", "--batch-size")),
        ("recommend", "--items", "19"),
        *(("rgcn", o, "0") for o in ("--relations", "--k", "--batch-size", "--fanout")),
        ("rgcn", "--entities", "9"),
        *(("ddp", o, "0") for o in ("--processes", "--epochs", "--k", "--batch-size")),
        *(
            ("distributed", o, "-1")
            for o in ("--partitions", "--trainers", "--samplers", "--epochs", "--k")
        ),
    ],
)
def test_counts_that_are_too_small_are_refused(example, name, option, value, capsys):
    with pytest.raises(SystemExit) as caught:
        example(name).arguments([option, value])
    assert caught.value.code == 2
    assert f"{option}: expected at least" in capsys.readouterr().err


def test_quickstart_trains_three_times_and_writes_its_files(example, tmp_path, capsys):
    quickstart = example("quickstart")
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
    assert set(runs[-1]["hardness"][-1]) == {*"0123", "no level"}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    for kind in ("uniform", "DMNS"):
        assert f"{kind}, shared, over DGL's uniform, its loss: " in printed


def test_quickstart_says_what_is_missing(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DGL_REPO", "http://127.0.0.1:9/")
    out = tmp_path / "out"
    argv = ["--dataset", "cora", "--data-dir", str(tmp_path / "none"), "--out", str(out)]
    assert example("quickstart").main(argv) == 1
    assert "cora" in capsys.readouterr().err
    assert not out.exists()


def test_no_held_out_edge_is_in_the_training_graph_of_quickstart(example):
    quickstart = example("quickstart")
    data = quickstart.load_dataset("embedded")
    split = quickstart.split_pairs(data, seed=0)
    g, reverse = quickstart.training_graph(data, split)
    for pairs in (split.val, split.test):
        assert not g.has_edges_between(pairs[0], pairs[1]).any()
        assert not g.has_edges_between(pairs[1], pairs[0]).any()
    src, dst = g.edges()
    assert (src[reverse] == dst).all()
    assert (dst[reverse] == src).all()


@pytest.mark.parametrize("fanout", ["-1", "5"])  # all neighbours, and DGL's usual recipe
def test_one_seed_gives_one_result_in_quickstart(example, fanout):
    quickstart = example("quickstart")
    args = quickstart.arguments(["--epochs", "2", "--fanout", fanout])
    data = quickstart.load_dataset("embedded")
    split = quickstart.split_pairs(data, seed=0)
    first, second = (quickstart.train("dmns", data, split, 0, args) for _ in range(2))
    assert first.curve == second.curve
    assert first.metrics["MRR"] == second.metrics["MRR"]


# A random order of about 50 entities that are left has an MRR of .09; one of the 66 items that a
# user has not bought finds 20 / 66 = .30 of the test.
@pytest.mark.parametrize(
    ("name", "columns", "chance"),
    [
        ("rgcn", ["MRR", "NDCG", "Hits@1", "Hits@10"], 0.11),
        ("recommend", ["Recall@20", "NDCG@20"], 0.33),
    ],
)
def test_both_samplers_beat_chance_in_the_table_and_one_seed_gives_one_result(
    example, name, columns, chance, capsys
):
    tables = []
    for epochs in ("15", "3", "3"):
        assert example(name).main([*SMALL[name], "--seeds", "1", "--epochs", epochs]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert [*columns, "epochs", "seconds/epoch"] in [line.split() for line in printed]
        tables.append({line.split()[0]: line.split()[1:-1] for line in printed[-2:]})
    assert all(list(table) == ["uniform", "dmns"] for table in tables)
    assert tables[1] == tables[2]
    assert all(float(values[0]) > chance for values in tables[0].values()), tables


def run_apart(name, *options):
    """The lines that an example prints in a process of its own, in shared memory of its own."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--nodes", "300", *options]
    apart = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs none /dev/shm && exec "$@"', ""]
    if shutil.which("unshare") and not subprocess.run([*apart, "true"], check=False).returncode:
        command = [*apart, *command]  # DGL names its shared memory alike in all runs
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("name", "options", "what", "epochs"),
    [
        ("ddp", "--processes 2", "2 processes", 1),
        pytest.param("ddp", "--processes 2 --gather", "2 processes", 3, marks=pytest.mark.slow),
        ("distributed", "--trainers 1 --samplers 1 --batch-size 256", "1 trainers", 1),
        *(
            pytest.param(
                "distributed",
                f"--partitions {parts} --trainers 1 --samplers 1 --batch-size 256",
                f"{parts} trainers on {parts} machines",
                2,
                marks=pytest.mark.slow,
            )
            for parts in (2, 4)
        ),
        pytest.param(
            "distributed",
            "--trainers 2 --samplers 1 --batch-size 256",
            "2 trainers",
            3,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_several_processes_hold_the_same_and_print_the_metrics(name, options, what, epochs):
    lines = run_apart(name, *options.split(), "--epochs", str(epochs))
    place = next(i for i, line in enumerate(lines) if what in line)
    assert f"version={1 + epochs}" in lines[place]  # once at the start, then once an epoch
    assert lines[place + 1].split() == ["MRR", "NDCG", "Hits@10", "Hits@50", "seconds/epoch"]
    assert all(value > 0 for value in map(float, lines[place + 2].split()))


def test_the_loaders_are_where_the_installed_dgl_has_them(example, monkeypatch):
    """Stand-ins for what DGL 2.4 moved; this DGL's own in the other test."""
    names = ("DistEdgeDataLoader", "DistNodeDataLoader")
    for name in names:
        monkeypatch.delattr(dgl.dataloading, name, raising=False)
        monkeypatch.setattr(dgl.distributed, name, f"a stand-in for {name}", raising=False)
    module = example("distributed")
    assert [getattr(module, name) for name in names] == [f"a stand-in for {n}" for n in names]


def test_one_failure_ends_all_processes(example, tmp_path):
    code = (
        "import os, sys, time; time.sleep(60 * (os.environ['DGL_ROLE'] == 'server')); sys.exit(3)"
    )
    command = [sys.executable, "-c", code]
    assert example("distributed").launch(command, tmp_path, 2, 0) == 3
