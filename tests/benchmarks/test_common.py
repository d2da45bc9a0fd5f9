"""What the benchmarks share: cells, rows, reports, and how their commands run and resume."""

import csv
import importlib
from dataclasses import replace

import dgl
import pytest
import torch

from benchmarks.common.cells import CellStore, cell_hash
from benchmarks.common.command import public_command
from benchmarks.common.report import Section, difference, mean, ratio, table, write_report
from benchmarks.common.rows import Cell, Row, make_sampler
from benchmarks.common.run import run_cells
from benchmarks.common.training import converged
from benchmarks.dropin import rows as dropin
from benchmarks.dropin.config import Recipe
from benchmarks.gae import problem as gae
from benchmarks.paper import config as paper
from benchmarks.speed import config as speed
from dgl_dmns import DMNSSampler, Pools, Resources
from dgl_dmns.core import Blend, Density
from dgl_dmns.samplers import SelfAdversarialSampler

CELL = Cell("tiny", Recipe(), Row("a", "dmns", {"rule": Blend(score_share=0.7)}), 0)


def failing(cell, context, threads):
    raise RuntimeError("no luck")


def test_a_configuration_is_known_by_its_hash():
    other = Row("a", "dmns", {"rule": Blend(score_share=0.6)})
    assert cell_hash(CELL) == cell_hash(replace(CELL, recipe=Recipe()))
    others = [
        replace(CELL, seed=1),
        replace(CELL, dataset="cora"),
        replace(CELL, recipe=Recipe(dropout=0.1)),
        replace(CELL, row=other),
        replace(CELL, row=replace(CELL.row, loss="calibrated")),
    ]
    assert len({cell_hash(one) for one in (CELL, *others)}) == 6
    assert CELL.row != other
    with pytest.raises(TypeError, match="expected plain values"):
        cell_hash({"folder": object()})


def test_every_row_of_every_benchmark_can_be_stored():
    groups = [group(5) for group in dropin.GROUPS.values()]
    groups += [gae.ROWS, paper.ROWS, *speed.ROWS.values()]
    for rows in groups:
        assert len({cell_hash(replace(CELL, row=row)) for row in rows.values()}) == len(rows)


def test_finished_cells_are_not_run_again(tmp_path):
    def counting(cell, context, threads):
        context.append(cell)
        return {"value": cell}

    store, ran = CellStore(tmp_path), []
    for cells in ([1, 2, 1], [1, 2, 3]):
        assert run_cells(cells, counting, store, context=ran, jobs=0, progress=False) == {}
    assert ran == [1, 2, 3]
    assert store.load(3) == {"value": 3}
    assert "no luck" in run_cells([4], failing, store, jobs=0, progress=False)["4"]
    assert store.load(4) is None
    with pytest.raises(ValueError, match="jobs, threads"):
        run_cells([1], failing, store, jobs=-1)


def test_a_process_that_dies_is_reported(tmp_path):
    reason = run_cells([CELL], failing, CellStore(tmp_path), progress=False)[str(CELL)]
    assert "exit status 1" in reason


def test_folders_of_the_machine_are_not_shown():
    words = ["a", "--out", "/x y", "--data-dir=/z", "--set", "k=1", "--out"]
    assert public_command(words) == "a --out OUT --data-dir=CACHE --set k=1 --out"


@pytest.fixture(scope="module")
def graph():
    return dgl.rand_graph(60, 240)


def test_rows_leave_defaults_to_the_samplers(graph):
    h = torch.randn(60, 8)

    def made(name, **options):
        return make_sampler(Row("a", name, options), 5, graph, lambda: h, 0)

    plain, default = made("dmns", pool=50), DMNSSampler(graph, lambda: h, k=5, pools=Pools(pool=50))
    assert (plain.settings, plain.rule, plain.levels) == (
        default.settings,
        default.rule,
        default.levels,
    )
    rival = made("self-adversarial", pool=40)
    own = SelfAdversarialSampler(graph, lambda: h, k=5, pools=Pools(pool=40))
    assert (rival.settings, rival.rule) == (own.settings, own.rule)
    changed = made("dmns", rule=Density(), levels=(0.1, 0.5), lam=0.3, fit_steps=3, pool=50, k=2)
    assert (changed.k, changed.settings.lam, changed.diffusion.fit_steps) == (2, 0.3, 3)
    assert changed.levels.fractions == (0.1, 0.5)
    assert made("dynamic", table_bytes=1 << 20).resources == Resources(table_bytes=1 << 20)
    with pytest.raises(ValueError, match=r"sampler: expected one of dgl.*got 'other'"):
        made("other")
    with pytest.raises(ValueError, match="queries: expected at least 1, with loss 'shared'"):
        Row("a", "uniform", queries=32)


def test_training_stops_where_the_figure_does_not_rise():
    figures = [0.1, 0.3, 0.2, 0.2, 0.9]
    seen = []
    curve, best, kept = converged(
        9, 2, lambda: seen.append(len(seen)), lambda: figures[seen[-1]], lambda: list(seen)
    )
    assert (curve, best, kept) == ([0.1, 0.3, 0.2, 0.2], 1, [0, 1])


def test_differences_and_ratios_are_paired_by_seed(tmp_path):
    store = CellStore(tmp_path)
    rows = Row("base", "dgl"), Row("own", "dmns")
    cells = {row.title: [replace(CELL, row=row, seed=s) for s in range(3)] for row in rows}
    for seed, base in enumerate((0.1, 0.2, 0.3)):
        result = {"test": {"MRR": base, "MAP": 0.8}, "none": None, "curve": [0.1]}
        store.save(cells["base"][seed], result)
        if seed < 2:
            store.save(cells["own"][seed], {"test": {"MRR": 2 * base, "MAP": 0.7}})
    columns = (
        mean("MAP", "test MAP", 1),
        mean("none", "none"),
        difference("MRR", "test MRR"),
        ratio("MRR", "test MRR"),
    )
    section = Section("main", "tiny", cells, "base", note="A note.")
    files = write_report(
        [section], store, tmp_path, "# Top\n", lambda one, found: table(found, "base", columns)
    )
    text = files[1].read_text(encoding="utf-8")
    assert "## tiny: main" in text
    assert "A note." in text
    assert "| base | 3 | 0.8 ± 0.0 | - | - | - |" in text
    assert "| own | 2 | 0.7 ± 0.0 | - | +0.150 [-0.485, +0.785] | 2.00 [2.00, 2.00] |" in text
    with files[0].open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == ["base"] * 3 + ["own"] * 2
    assert lines[3]["test MRR"] == "0.2"
    assert "curve" not in lines[0]


COMMANDS = {
    "dropin": "--datasets tiny --rows uniform self-adversarial --set hidden=16 --epochs 2",
    "paper": "--datasets tiny --rows uniform-5 dmns-latent --ablations psi --epochs 2",
    "gae": "--datasets tiny --rows global density-calibrated --hidden 8 --epochs 1",
    "speed": "--nodes 200 400 --widths 8 --k 2 --batch-size 256 --batches 2 --rounds 1",
}
TITLES = {
    "dropin": ("uniform (5)", "self-adversarial (5)"),
    "paper": ("uniform, redrawn (5)", "DMNS, latent (5)", "Psi < 0 dropped (density)"),
    "gae": ("both ends uniform (the recipe's own)", "DMNS, density, calibrated"),
    "speed": ("dmns, N 200, D 8, K 2, workers 0", "dmns, N 400, D 8, K 2, workers 0"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_reports_each_row_and_resumes(name, tmp_path, monkeypatch, capsys):
    module = importlib.import_module(f"benchmarks.{name}.__main__")
    words = [*COMMANDS[name].split(), "--jobs", "0", "--quiet", "--out", str(tmp_path)]
    assert module.main([*words, "--seeds", "2"]) == 0
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    for title in TITLES[name]:
        assert f"| {title} | 2 |" in text
    assert "--out OUT --seeds 2`" in text
    assert str(tmp_path) not in text + (tmp_path / "environment.json").read_text()
    monkeypatch.setattr(module, "run_cell", failing)
    assert module.main([*words, "--seeds", "2"]) == 0
    assert module.main([*words, "--seeds", "3"]) == 1
    assert "no luck" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("dropin", "--rows nothing", "rows: expected some of uniform"),
        ("dropin", "--seeds 0", "--seeds: expected at least 1, got 0"),
        ("dropin", "--first-seed -1", "first seed: expected at least 0"),
        ("dropin", "--set k", "set: expected FIELD=VALUE"),
        ("gae", "--hidden 0", "--hidden: expected at least 1, got 0"),
        ("speed", "--rows none", "rows: expected some of dmns"),
        ("speed", "--nodes 10 --workers -1", "workers: expected at least 0, got -1"),
        ("speed", "--nodes 10 --k 0", "k: expected at least 1, got 0"),
        ("soak", "--minutes 0", "expected positive numbers"),
        ("paper", "--tune-settings lr=0.01,relu", "expected together with --tune"),
        ("paper", "--tune --encoder sage", "chooses for the rows with GCN"),
        ("paper", "--tune --ablations psi", "chooses for the rows with GCN"),
        ("paper", "--tune --rows", "at least one of --rows"),
        ("paper", "--rows", "nothing to do"),
    ],
)
def test_a_command_refuses(name, words, message, capsys):
    module = importlib.import_module(f"benchmarks.{name}.__main__")
    with pytest.raises(SystemExit):
        module.main(words.split())
    assert message in capsys.readouterr().err
