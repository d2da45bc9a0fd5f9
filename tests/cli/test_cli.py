import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import dgl_dmns.cli.doctor
import dgl_dmns.cli.train
from dgl_dmns.cli import main
from dgl_dmns.cli.edges import read_edges
from dgl_dmns.cli.parser import _DATASETS, _SAMPLERS
from dgl_dmns.data import DATASET_NAMES, split_pairs
from dgl_dmns.evaluate import full_ranking, ranking_metrics
from dgl_dmns.files import write_state
from dgl_dmns.samplers.registry import SAMPLERS

SMALL = ["--quiet", "--hidden", "16", "--batch-size", "512"]
QUICK = ["--set", "warmup_steps=10", "fit_steps=3"]
# A batch shares more negatives than the graph has: with another loss all are uniform.
OWN = [*SMALL, "--loss", "bce", *QUICK]


@pytest.fixture(scope="module")
def edges(tmp_path_factory):
    """A ring of 90 words with chords."""
    folder = tmp_path_factory.mktemp("edges")
    ends = [(i, (i + step) % 90) for i in range(90) for step in (1, 2, 3)]
    lines = [f"n{a:02d},n{b:02d}" for a, b in ends]
    (folder / "ring.csv").write_text("\n".join(["src,dst", *lines, ""]))
    return folder / "ring.csv"


@pytest.fixture(scope="module")
def run(edges):
    """A finished run."""
    out = edges.parent / "run"
    words = ["train", "--edges", str(edges), "--out", str(out), "--epochs", "4", *OWN]
    assert main(words) == 0
    return out


@pytest.fixture
def train(edges, tmp_path):
    """Trains on the ring; the folder with what it left."""

    def trained(*words, out="r"):
        words = ["train", "--edges", edges, "--out", tmp_path / out, *SMALL, *words]
        assert main([*map(str, words)]) == 0
        return tmp_path / out

    return trained


def record(folder, name):
    return json.loads((folder / name).read_text())


def embeddings(folder):
    with np.load(folder / "embeddings.npz") as archive:
        return dict(archive)


def test_what_a_run_leaves_behind(run):
    kinds = "baseline.npz checkpoint.npz embeddings.npz query.npz scores.npz metrics.json run.json"
    tables = {"metrics.csv", "negatives.csv", "ranks.csv"}
    assert set(contents(run)) == {*kinds.split(), *tables, "report.html"}
    archive = embeddings(run)
    assert archive["id"].tolist()[:2] == ["n00", "n01"]
    assert archive["embedding"].shape == (90, 16)
    metrics = record(run, "metrics.json")
    uniform = metrics.pop("uniform")
    assert set(metrics) == set(uniform) == {"MRR", "Hits@10", "Hits@50", "MAP@9"}
    assert all(0 < value <= 1 for one in (metrics, uniform) for value in one.values())
    assert record(run, "run.json")["baseline"] == uniform
    page = (run / "report.html").read_text()
    assert f"{metrics['MRR']:.3f} here, {uniform['MRR']:.3f} with uniform negatives" in page
    assert pd.read_csv(run / "metrics.csv")["epoch"].tolist() == [1, 2, 3, 4]
    assert pd.read_csv(run / "negatives.csv")["refresh"].max() == 5


def test_a_sampler_without_an_encoder_leaves_its_epochs_behind_too(train):
    words = ["--sampler", "uniform", "--seed", 2**64 + 20240131]
    train(*words, "--epochs", 2)
    parts, whole = train(*words, "--epochs", 4, "--resume"), train(*words, "--epochs", 4, out="w")
    columns = ["epoch", "loss", "mrr"]
    whole_csv, parts_csv = (pd.read_csv(one / "metrics.csv")[columns] for one in (whole, parts))
    assert whole_csv["epoch"].tolist() == [1, 2, 3, 4]
    assert whole_csv.equals(parts_csv)
    assert "negatives.csv" not in contents(whole)
    assert "Training" in (whole / "report.html").read_text()


def test_the_metrics_are_those_of_the_embeddings(run, edges):
    data, h = read_edges(edges).data, torch.from_numpy(embeddings(run)["embedding"])
    pairs = split_pairs(data).test
    ranks = full_ranking(h, pairs, data.csr())
    found = ranking_metrics(ranks)["MRR"]
    assert record(run, "metrics.json")["MRR"] == pytest.approx(found)
    kept = pd.read_csv(run / "ranks.csv")
    ids = embeddings(run)["id"]
    named = [(ids[u], ids[v], rank) for (u, v), rank in zip(pairs.t(), ranks.tolist())]
    assert kept.columns.tolist() == ["src", "dst", "rank"]
    assert [*kept.itertuples(index=False, name=None)] == sorted(named, key=lambda one: one[2])


def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(run, edges, error, tmp_path):
    out = edges.parent / "resumed"
    words = ["train", "--edges", str(edges), "--out", str(out), *OWN]
    assert main([*words, "--epochs", "2"]) == 0
    assert "holds a run already; add --resume" in error(*words, "--epochs", 4)
    said = error(*words, "--epochs", 4, "--resume", "--k", 2)
    assert "--resume: the checkpoint was made with {'k': 5}" in said
    assert main([*words, "--epochs", "4", "--resume"]) == 0
    assert np.array_equal(*(embeddings(folder)["embedding"] for folder in (run, out)))
    losses = [pd.read_csv(folder / "metrics.csv")["loss"].tolist() for folder in (run, out)]
    assert losses[0] == losses[1]
    assert record(run, "metrics.json") == record(out, "metrics.json")
    scores = [pd.read_csv(folder / "negatives.csv")["score"].tolist() for folder in (run, out)]
    assert scores[0] == pytest.approx(scores[1], nan_ok=True, rel=1e-12)
    write_state(tmp_path / "other.npz", {"settings": {}, "format": "something else"})
    for content in (b"broken", (tmp_path / "other.npz").read_bytes()):
        (out / "checkpoint.npz").write_bytes(content)
        assert "is not a checkpoint of this version" in error(*words, "--resume")
        assert contents(out)["checkpoint.npz"] == content


def test_an_interrupt_says_how_to_go_on(edges, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(dgl_dmns.cli.train, "train", interrupt)
    words = ["train", "--edges", str(edges), "--out", str(tmp_path / "a b")]
    assert main(words) == 130
    said = capsys.readouterr().err
    assert f"dgl-dmns train --edges {edges} --out '{tmp_path / 'a b'}' --resume" in said


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def write_ring(folder, nodes=30, name="{:02d}", chord=2, feature=7):
    """Edges and features of a ring, and the words that train on them."""
    ends = [(i, (i + step) % nodes) for i in range(nodes) for step in (1, chord)]
    lines = [f"{name.format(a)},{name.format(b)}" for a, b in ends]
    (folder / "ring.csv").write_text("\n".join(["src,dst", *lines, ""]))
    rows = [f"{name.format(i)},{i / 30},{i % feature}" for i in range(nodes)]
    (folder / "x.csv").write_text("\n".join(["id,a,b", *rows, ""]))
    words = ["train", "--edges", str(folder / "ring.csv"), "--features", str(folder / "x.csv")]
    return [*words, "--sampler", "uniform", "--epochs", "1", "--resume", *SMALL]


@pytest.fixture(scope="module")
def with_features(tmp_path_factory):
    """A run on the edges of 30 nodes with features; the words that made it."""
    folder = tmp_path_factory.mktemp("features")
    words = [*write_ring(folder, name="n{:02d}"), "--out", str(folder / "run")]
    assert main(words) == 0
    return folder, words


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chord": 3}, "with other edges;"),
        ({"nodes": 31}, "with other edges, ids, features;"),
        ({"name": "m{:02d}"}, "with other ids;"),
        ({"feature": 8}, "with other features;"),
    ],
)
def test_a_run_is_not_resumed_on_other_data(with_features, tmp_path, error, change, said):
    folder, _ = with_features
    words = write_ring(tmp_path, **{"name": "n{:02d}", **change})
    before = contents(folder / "run")
    line = error(*words, "--epochs", 2, "--out", folder / "run")
    assert line.startswith("error: --resume: ")
    assert said in line
    assert contents(folder / "run") == before


def test_the_same_edges_in_another_order_are_the_same(with_features):
    folder, words = with_features
    header, *rows = (folder / "ring.csv").read_text().splitlines()
    (folder / "turned.csv").write_text("\n".join([header, *reversed(rows), ""]))
    shutil.copytree(folder / "run", folder / "copy")
    words = [*words, "--edges", str(folder / "turned.csv"), "--out", str(folder / "copy")]
    assert main([*words, "--epochs", "2"]) == 0


@pytest.mark.parametrize("command", ["train", "bench"])
@pytest.mark.parametrize(
    "there", ["run.json", "metrics.csv", "report.html", "bench.csv", "baseline.npz"]
)
def test_no_file_of_another_run_is_overwritten(edges, tmp_path, command, there, error):
    (tmp_path / there).write_text("mine")
    words = [command, "--edges", str(edges), "--out", str(tmp_path)]
    for more in ([], ["--resume"])[: 1 + (command == "train")]:
        assert f"holds {there} already" in error(*words, *more)
    assert contents(tmp_path) == {there: b"mine"}


def test_an_interrupted_baseline_leaves_the_run_and_goes_on(with_features, monkeypatch, tmp_path):
    _, words = with_features
    words = [*words, "--sampler", "dynamic", "--loss", "bce", "--out", str(tmp_path)]
    whole, calls = dgl_dmns.cli.train.train, []

    def once(*arguments, **named):
        calls.append(named["checkpoint"].name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments, **named)

    monkeypatch.setattr(dgl_dmns.cli.train, "train", once)
    assert main(words) == 130
    assert {"embeddings.npz", "metrics.json"} < set(contents(tmp_path))
    assert "uniform" not in record(tmp_path, "metrics.json")
    assert main(words) == 0
    assert calls == ["checkpoint.npz", "baseline.npz"] * 2
    assert "uniform" in record(tmp_path, "metrics.json")


def test_a_trained_run_ends_well_without_its_page(with_features, monkeypatch, tmp_path, capsys):
    def broken(*_, **__):
        raise KeyError("a\nb")

    _, words = with_features
    monkeypatch.setattr(dgl_dmns.cli.train, "write_report", broken)
    assert main([*words, "--out", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: no report (KeyError:")
    assert {"embeddings.npz", "metrics.json", "run.json"} < set(contents(tmp_path))


def test_without_matplotlib_a_run_says_how_to_get_it(with_features, monkeypatch, tmp_path, capsys):
    _, words = with_features
    monkeypatch.setattr("dgl_dmns.cli.train.util.find_spec", lambda _: None)
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert "pip install matplotlib" in capsys.readouterr().out
    assert "report.html" not in contents(tmp_path)


LEARNING = ["--sampler", "uniform", "--lr", "0.03", "--seed", "4"]


def test_training_learns_and_stops(train):
    run = train(*LEARNING, "--patience", 10, "--epochs", 80)
    metrics = pd.read_csv(run / "metrics.csv")
    assert len(metrics) == metrics["mrr"].idxmax() + 11
    assert metrics["loss"].min() < 0.7 * metrics["loss"].iloc[0]
    assert metrics["mrr"].max() > 2 * metrics["mrr"].iloc[0]
    said = record(run, "run.json")["measured"]
    assert "the 27 test edges ranked among all 90 nodes" in said
    assert "a random order would have an MRR of 0.056" in said  # (1 + 1/2 + .. + 1/90) / 90


@pytest.mark.parametrize("sampler", sorted(set(_SAMPLERS) - {"dmns"}))
def test_every_sampler_trains(train, edges, sampler, error):
    words = ["--sampler", sampler, "--epochs", "1", "--k", "2", "--no-baseline"]
    if sampler in ("dynamic", "mcns"):
        said = error("train", "--edges", edges, "--out", "nowhere", *words, "--loss", "softmax")
        assert said.startswith(f"error: --loss softmax: the negatives of {sampler} have no distrib")
    if sampler == "mcns":
        said = error("train", "--edges", edges, "--out", "nowhere", *words)
        assert said.startswith("error: --loss shared: mcns draws no uniform negatives")
        words += ["--loss", "bce"]
    assert (train(*words) / "report.html").is_file()


@pytest.mark.parametrize(("loss", "k"), [("shared", 1), ("softmax", 5), ("bce", 5)])
def test_losses_and_how_many_negatives_they_have(train, loss, k, capsys):
    run = train(*LEARNING, "--loss", loss, "--epochs", 12)
    assert f"{k} negatives an edge, uniform, {loss} loss" in capsys.readouterr().out
    assert record(run, "run.json")["settings"]["k"] == k
    metrics = pd.read_csv(run / "metrics.csv")
    assert metrics["loss"].iloc[-1] < 0.9 * metrics["loss"].iloc[0]
    assert metrics["mrr"].max() > 1.5 * metrics["mrr"].iloc[0]


def test_options_of_the_sampler(train):
    more = ["--set", "uniform_share=0.5", "levels=[0.25,0.5]", "--set", "rule=gate"]
    folder = train("--epochs", 1, "--no-baseline", *QUICK, *more)
    run = record(folder, "run.json")
    options = {"uniform_share": 0.5, "levels": [0.25, 0.5], "rule": "gate"}
    assert run["settings"]["options"] == {"warmup_steps": 10, "fit_steps": 3, **options}
    assert "rule=Gate()" in run["sampler"]
    levels = pd.read_csv(folder / "negatives.csv")["level"].unique()
    assert levels[:2].tolist() == ["0.25T", "0.5T"]


WRONG = {
    **dict.fromkeys(("rule=Gate", "rule=None", "rule=3"), "blend, gate, density, nearest"),
    **dict.fromkeys(("schedule=linear", "resources=4", "scorer=x"), "an object"),
    **dict.fromkeys(("levels=0.25", "levels=(0.25)", "levels=[]", "levels=[nan]"), "numbers in"),
    **dict.fromkeys(("groups=2.5", "groups=10000000000", "pool=True", "pool='64'"), "a whole"),
    **dict.fromkeys(("lam=None", "uniform_share=nan", "lam=1e999", "lam=x"), "a number"),
    **dict.fromkeys(("pool=0", "pool=-1", "levels=[2]", "lam=0", "uniform_share=2"), ""),
    **dict.fromkeys(("source=foo", "batch_pairs=0"), ""),
    **dict.fromkeys(("g=3", "etypes=x", "curriculum=easy", "effective_size=5"), "no argument of"),
    "pull=3": "no argument of dmns, which takes batch_pairs",
    "space=3": "a word",
    "k=3": "write --k 3",
    "seed=3": "write --seed 3",
    **dict.fromkeys(("pool", "pool=", "=3"), "expected NAME=VALUE"),
    "pool=64 pool=64": "given twice",
    "source=uniform": "negatives of the positives' sources",
    "uniform_share=0": "needs some uniform negatives",
}


@pytest.mark.parametrize("word", WRONG)
def test_a_wrong_option_is_one_line_that_names_it(word, error):
    """Before the files are read."""
    said = error("train", "--edges", "nowhere.csv", "--out", "nowhere", "--set", *word.split())
    name = word.partition("=")[0] if "NAME=" not in WRONG[word] else ""
    assert said.startswith(("error: --loss shared", f"error: --set {name}".rstrip()))
    assert WRONG[word] in said


def test_an_option_that_a_refresh_refuses_is_named(edges, tmp_path, error):
    words = ["train", "--edges", edges, "--sampler", "self-adversarial", *SMALL]
    said = error(*words, "--set", "temperature=1e-300", "--out", tmp_path / "r")
    assert said.startswith("error: --set temperature=1e-300: ")


@pytest.mark.parametrize("command", ["train", "bench"])
def test_k_beyond_the_pool_names_the_sampler(command, error):
    said = error(command, "--edges", "nowhere.csv", "--out", "nowhere", "--k", 200)
    assert re.search(r"^error: --sampler [a-z-]+: pool: expected at least k = 200", said)


@pytest.mark.parametrize("raised", [KeyError("x"), MemoryError(), RuntimeError("a\nb")])
def test_no_error_is_a_traceback(monkeypatch, error, raised):
    def broken(*_):
        raise raised

    monkeypatch.setattr(dgl_dmns.cli.train, "run_train", broken)
    said = error("train", "--dataset", "embedded", "--out", "r")
    assert len(said) > len("error: ")


def test_a_bench_compares_at_equal_seeds(edges, tmp_path, capsys):
    words = ["bench", "--edges", str(edges), "--samplers", "uniform", "dynamic", "uniform", *SMALL]
    words += ["--loss", "bce"]
    assert main([*words, "--seeds", "2", "--epochs", "2", "--out", str(tmp_path)]) == 0
    rows = pd.read_csv(tmp_path / "bench.csv")
    assert rows["sampler"].tolist() == ["uniform", "dynamic"] * 2
    assert rows["seed"].tolist() == [0, 0, 1, 1]
    said = capsys.readouterr().out
    mean = rows[rows["sampler"] == "uniform"]["MRR"].mean()
    assert f"{mean:.3f} (" in said
    page = (tmp_path / "report.html").read_text()
    assert f"{mean:.3f} (" in page
    assert "MRR - uniform" in page
    (tmp_path / "report.html").unlink()
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_text() == page


def test_a_wrong_file_is_one_line_and_exit_code_1(tmp_path, error):
    file, words = tmp_path / "edges.csv", ["train", "--edges", tmp_path / "edges.csv", "--out"]
    file.write_text("src,dst\n1,2\n3,\n")
    said = f"error: {file}, line 3, column dst: expected a node's id, got an empty cell"
    assert error(*words, tmp_path / "r") == said
    file.write_text("src,dst\n1,2\n3,4\n")
    assert error(*words, tmp_path / "r") == (
        f"error: {file}: expected at least 20 different edges, of which one is held out for "
        "validation and two for the test, got 2"
    )
    assert error(*words, file) == f"error: --out: {file} is a file; name a folder"
    assert not (tmp_path / "r").exists()


def test_options_for_files(tmp_path):
    """A list of 30 nodes with names of its own, packed."""
    rows = "".join(f"{user},{(user * step) % 10}\n" for user in range(30) for step in (1, 2, 3))
    file = tmp_path / "likes.txt.gz"
    file.write_bytes(gzip.compress(b"From,TO\n" + rows.encode()))
    words = ["train", "--edges", str(file), "--epochs", "1", *SMALL, "--sampler", "uniform"]
    words += ["--source", "from", "--target", "to", "--kind", "graph", "--out", str(tmp_path)]
    assert main(words) == 0
    archive = embeddings(tmp_path)
    assert archive["id"].tolist() == list(range(30))
    assert archive["columns"].tolist() == ["from", "to"]


def test_a_data_set_that_is_not_there(tmp_path, monkeypatch, error):
    monkeypatch.setenv("DGL_REPO", "http://127.0.0.1:9/")
    said = error("train", "--dataset", "cora", "--data-dir", tmp_path, "--out", tmp_path)
    assert said.startswith("error: data set 'cora': no folder")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("frobnicate", "COMMAND"),
        ("train --out r", "one of the arguments --dataset --edges is required"),
        ("train --dataset pubmed --out r", "invalid choice: 'pubmed'"),
        ("train --dataset cora --out r --k 0", "number from 1 on, got '0'"),
        ("train --dataset cora --out r --k five", "from 1 on, got 'five'"),
        ("train --dataset cora --out r --fanout -3", "from 0 on, got '-3'"),
        (f"train --dataset cora --out r --k {2**31}", "at most 2147483647"),
        ("train --dataset cora --out r --seed -1", "from 0 on, got '-1'"),
        ("train --dataset cora --out r --seed 1e3", "from 0 on, got '1e3'"),
        ("train --dataset cora --out r --threads 9999", "at most 1024"),
        ("train --dataset cora --out ''", "the name of a folder, got ''"),
        ("train --edges '' --out o", "the name of a file, got ''"),
        ("report o --out ''", "the name of a file, got ''"),
        ("train --dataset cora --out r --lr -1", "above 0, got '-1'"),
        ("train --dataset cora --out r --lr x", "above 0, got 'x'"),
        ("train --dataset cora --out r --features f.npy", "--features: goes with --edges"),
        ("train --dataset cora --out r --no-header", "--no-header: goes with --edges"),
        ("bench --dataset cora --out r --kind graph", "--kind: goes with --edges"),
        ("bench --edges e.csv --out o --samplers foo", "--samplers"),
        ("train --edges e --out r --no-header --source a", "--no-header: without names"),
        ("train --edges e --out r --kind bipartite --features f", "--features: goes with"),
    ],
)
def test_a_command_line_that_is_wrong_is_one_line_and_exit_code_2(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(words))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "--help" in line


def test_report_of_a_run(run, tmp_path, capsys, error):
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert "expected the folder of a run, with a file run.json" in error("report", tmp_path)
    mine = tmp_path / "edges.csv"
    mine.write_text("mine")
    assert f"--out: {mine} is there and no page" in error("report", run, "--out", mine)
    assert mine.read_text() == "mine"


def test_the_lists_of_names_are_complete():
    assert tuple(SAMPLERS) == _SAMPLERS
    assert DATASET_NAMES == _DATASETS


def test_the_doctor_finds_a_healthy_installation(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "no failure(s)" in said
    assert said.count("  ok ") == 5
    assert f"torch        {torch.__version__.split('+')[0]}" in said


@pytest.mark.parametrize(
    ("batch", "line"),
    [
        ("9", "Take UniformSampler(g, 1) with negatives.loss"),
        ("5", "Take a larger batch, or hard negatives beside the shared ones"),
        ("1", "0.011 times the nodes"),
    ],
)
def test_the_doctor_says_which_negatives_suit_a_graph(edges, batch, line, capsys):
    assert main(["doctor", "--edges", str(edges), "--batch-size", batch]) == 0
    printed = capsys.readouterr().out
    assert "90 nodes that negatives are drawn from, 540 edges to train on" in printed
    assert line in printed


def test_many_shared_negatives_ask_for_no_hard_ones():
    lines = list(dgl_dmns.cli.doctor.which(1_000_000, 2048))
    assert lines[0] == "A batch of 2048 edges shares 2048 uniform negatives, 0.002 times the nodes."
    assert any(line.startswith("Start with UniformSampler(g, 1)") for line in lines)


def test_the_doctor_prints_commands_that_work(monkeypatch):
    monkeypatch.setattr("dgl_dmns.cli.doctor.util.find_spec", lambda _: None)
    lines = list(dgl_dmns.cli.doctor._lines())
    commands = [line for line in lines if "install " in line]
    assert sum("pip install matplotlib" in line for line in commands) == 1
    assert not any("dgl-dmns[" in line or "$" in line for line in commands)


def test_the_doctor_reports_what_fails(monkeypatch, capsys):
    monkeypatch.setattr("dgl_dmns.core.level_gaussians", lambda *_: 1 / 0)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "FAILED  the closed form against chains: ZeroDivisionError" in said
    assert "1 failure(s)" in said


def test_without_a_dgl_that_works(monkeypatch, capsys, tmp_path, error):
    for module in ("dgl_dmns.cli.doctor", "dgl_dmns.cli.parser"):
        monkeypatch.setattr(f"{module}.why_unusable", lambda: "DGL is not installed")
    assert main(["doctor"]) == 1
    assert "Not usable: DGL is not installed" in capsys.readouterr().out
    said = error("train", "--dataset", "embedded", "--out", tmp_path / "r")
    assert said == "error: DGL is not installed"


def test_python_m(run):
    words = [sys.executable, "-m", "dgl_dmns", "report", str(run)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, str(run / "report.html"))
