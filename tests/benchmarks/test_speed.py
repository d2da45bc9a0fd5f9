import csv
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from benchmarks.common import cell_hash
from benchmarks.speed.__main__ import main
from benchmarks.speed.config import ROWS, Cell, Row, Setting
from benchmarks.speed.measure import make_sampler
from benchmarks.speed.problem import load_problem, power_law_pairs
from benchmarks.speed.report import scaling_exponent
from benchmarks.speed.without import WITHOUT
from dgl_dmns.core import diffusion, pools
from dgl_dmns.samplers.lookup import TableSampler

TINY = Setting(nodes=300, width=8, k=2, batch_size=256, batches=2, rounds=1)
OPTIONS = ["--jobs", "0", "--quiet", "--widths", "8", "--k", "2", "--batch-size", "256"]
OPTIONS += ["--batches", "2", "--rounds", "1"]


def test_two_sizes_give_files_ratios_and_an_exponent(tmp_path, capsys):
    words = [*OPTIONS, "--nodes", "200", "400", "--out", str(tmp_path)]
    assert main(words) == 0
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["nodes"] for row in rows] == ["200", "400"]
    for row in rows:
        assert min(float(row[f"{what} ratio"]) for what in ("call", "loader", "epoch")) > 0
        batches, share = int(row["batches per epoch"]), float(row["refresh share"])
        own = batches * float(row["training own"]) + float(row["refresh later"])
        assert float(row["epoch own"]) == pytest.approx(own)
        assert share == pytest.approx(float(row["refresh later"]) / own)
        parts = sum(float(row[f"refresh {part}"]) for part in ("embed", "fit", "table"))
        assert parts == pytest.approx(float(row["refresh later"]), rel=0.2)
        # Ids and levels of two buffers, a group of one for each edge; starts; four counters.
        nodes = int(row["nodes"])
        degrees = load_problem(replace(TINY, nodes=nodes), 0).graph.out_degrees()
        table = 2 * (4 + 1) * int(degrees.clamp(min=1).sum()) + 8 * (nodes + 1) + 32
        assert float(row["table MB"]) == pytest.approx(table / 1e6)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "exponent in N of" in text
    assert str(tmp_path) not in text
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    capsys.readouterr()
    assert main(words) == 0  # nothing is run again
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == stamps


@pytest.mark.parametrize("title", [t for rows in ROWS.values() for t in rows if t != "dmns"])
def test_every_row_makes_a_sampler(title):
    row = next(rows[title] for rows in ROWS.values() if title in rows)
    problem = load_problem(TINY, 0)
    h = torch.randn(TINY.nodes, 8)
    sampler = make_sampler(row, TINY.k, problem.graph, lambda: h, 0)
    src, _ = sampler(problem.graph, torch.arange(5))
    assert src.shape == (10,)
    for name, value in row.pools:
        assert getattr(sampler.settings, name) == value
    for name, value in row.arguments:
        models = getattr(sampler, "_models", None)
        settings = models.arguments if models else {}
        assert settings.get(name, getattr(sampler.settings, name, None)) == value
    for name, value in row.resources:
        assert getattr(sampler.resources, name) == value
    assert not row.without or row.without in WITHOUT


def test_graph_is_simple_has_hubs_and_reverses_are_right():
    problem = load_problem(Setting(nodes=3000), 0)
    graph = problem.graph
    src, dst = graph.edges()
    assert torch.equal(src[problem.reverse], dst)
    assert torch.equal(dst[problem.reverse], src)
    assert (src != dst).all()
    assert len(torch.unique(src * 3000 + dst)) == graph.num_edges()
    degrees = graph.in_degrees().float()
    assert 7 < float(degrees.mean()) <= 10
    assert float(degrees.max()) > 20 * float(degrees.median())
    assert problem.features.shape == (3000, 32)


def test_pairs_are_seeded():
    first, again, other = (
        power_law_pairs(500, 10, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_int32_graph():
    assert load_problem(Setting(nodes=100, int32=True), 0).graph.idtype == torch.int32


def test_exponent():
    assert scaling_exponent([10, 100, 1000], [2, 200, 20000]) == pytest.approx(2.0)


def test_settings_and_rows_are_checked(capsys):
    with pytest.raises(ValueError, match="workers: expected at least 0, got -1"):
        Setting(nodes=10, workers=-1)
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        Setting(nodes=10, k=0)
    problem = load_problem(TINY, 0)
    with pytest.raises(ValueError, match="sampler: expected 'filtered'.*got 'other'"):
        make_sampler(Row("x", "other"), 1, problem.graph, lambda: torch.ones(300, 2), 0)
    for words, message in (
        (["--rows", "none"], "rows: expected some of dmns"),
        (["--seeds", "0"], "--seeds: expected at least 1"),
    ):
        with pytest.raises(SystemExit):
            main([*OPTIONS, *words])
        assert message in capsys.readouterr().err


def test_what_changes_a_result_changes_the_hash():
    row = ROWS["main"]["dmns"]
    assert cell_hash(Cell(TINY, row)) != cell_hash(Cell(Setting(nodes=301, width=8, k=2), row))


def test_what_is_taken_out_is_back_afterwards_and_changes_no_draw():
    problem = load_problem(TINY, 0)
    h = torch.randn(TINY.nodes, 8)
    before = pools.CELLS, diffusion._BLOCK, TableSampler._draw_ids
    drawn = []
    for context in (nullcontext, *WITHOUT.values()):
        with context():
            sampler = make_sampler(ROWS["main"]["dmns"], TINY.k, problem.graph, lambda: h, 0)
            sampler.refresh()
            torch.manual_seed(0)
            drawn.append(sampler(problem.graph, torch.arange(50))[1])
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])
    assert before == (pools.CELLS, diffusion._BLOCK, TableSampler._draw_ids)


def test_a_refresh_in_the_background_is_measured(tmp_path):
    words = [*OPTIONS, "--group", "resources", "--rows", "in the background", "--nodes", "300"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row["refresh table"]) > 0
