"""What negatives cost: the generated graph, what is measured, and what is taken out."""

import csv
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from benchmarks.common.rows import make_sampler
from benchmarks.speed.__main__ import main
from benchmarks.speed.config import ROWS, Setting, cell_of
from benchmarks.speed.measure import _Recipe, run_cell
from benchmarks.speed.problem import load_problem, power_law_pairs
from benchmarks.speed.report import scaling_exponent
from benchmarks.speed.without import WITHOUT
from dgl_dmns.core import diffusion, pools
from dgl_dmns.samplers import dmns
from dgl_dmns.samplers.tables import Tables

TINY = Setting(nodes=300, width=8, k=2, batch_size=256, batches=2, rounds=1)


def problem_of(setting, seed=0):
    return load_problem("", setting, seed)


def test_two_sizes_give_figures_that_agree_and_an_exponent(tmp_path):
    words = "--jobs 0 --quiet --widths 8 --k 2 --batch-size 256 --batches 2 --rounds 1".split()
    assert main([*words, "--nodes", "200", "400", "--out", str(tmp_path)]) == 0
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
        degrees = problem_of(replace(TINY, nodes=nodes)).graph.out_degrees()
        table = 2 * 4 * int(degrees.clamp(min=1).sum()) + 8 * (nodes + 1) + 32
        assert float(row["table MB"]) == pytest.approx(table / 1e6)
    assert "exponent in N of" in (tmp_path / "results.md").read_text(encoding="utf-8")


ALL = {title: row for rows in ROWS.values() for title, row in rows.items()}


@pytest.mark.parametrize("title", ALL)
def test_every_row_makes_a_sampler(title):
    graph, h = problem_of(TINY).graph, torch.randn(TINY.nodes, 8)
    with WITHOUT.get(title, nullcontext)():
        sampler = make_sampler(ALL[title], TINY.k, graph, lambda: h, 0)
    assert sampler(graph, torch.arange(5))[0].shape == (10,)
    if title.startswith("a pool for each"):
        assert 1 in (sampler.settings.draws_per_pool, sampler.settings.queries_per_pool)


def test_graph_is_simple_has_hubs_and_reverses_are_right():
    problem = problem_of(Setting(nodes=3000))
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
    assert problem_of(Setting(nodes=100, int32=True)).graph.idtype == torch.int32


def test_embeddings_layer_by_layer_are_the_same():
    problem = problem_of(TINY)
    whole, parts = (_Recipe(problem, replace(TINY, layerwise=on), 0) for on in (False, True))
    assert torch.allclose(whole.embeddings(), parts.embeddings(), atol=1e-5)


def test_exponent():
    assert scaling_exponent([10, 100, 1000], [2, 200, 20000]) == pytest.approx(2.0)


def test_the_clock_of_the_process_sees_neither_workers_nor_the_background():
    with pytest.raises(ValueError, match="clock: cpu does not count the 1 workers"):
        Setting(nodes=10, workers=1, clock="cpu")
    row = ROWS["resources"]["in the background"]
    with pytest.raises(ValueError, match="clock: cpu counts what is done in the background"):
        run_cell(cell_of(replace(TINY, clock="cpu"), row))


def test_what_is_taken_out_is_back_afterwards_and_changes_no_draw():
    problem, h = problem_of(TINY), torch.randn(TINY.nodes, 8)

    def patched():
        return pools.CELLS, diffusion._BLOCK, Tables._draw_ids, dmns.DMNSSampler.defaults

    before, drawn = patched(), []
    for title in ("dmns", "calls that read levels", "no parts for the cache"):
        with WITHOUT.get(title, nullcontext)():
            sampler = make_sampler(ROWS["main"]["dmns"], TINY.k, problem.graph, lambda: h, 0)
            sampler.refresh()
            torch.manual_seed(0)
            drawn.append(sampler(problem.graph, torch.arange(50))[1])
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])
    for context in WITHOUT.values():
        with context():
            assert before != patched()
        assert before == patched()


def test_a_refresh_in_the_background_is_measured():
    result = run_cell(cell_of(TINY, ROWS["resources"]["in the background"]))
    assert result["refresh"]["table"] > 0
