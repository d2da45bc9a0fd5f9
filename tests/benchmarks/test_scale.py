"""The scale study: its graph, and a run of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.scale.__main__ import main
from benchmarks.scale.problem import load_problem, nested_graph
from benchmarks.scale.train import Recipe
from dgl_dmns.core import KnownEdges


def test_nested_communities_have_more_edges_inside() -> None:
    data = nested_graph(2000, seed=1)
    degree = torch.bincount(data.src, minlength=2000).double()
    assert 8 < float(degree.mean()) < 11
    assert float(degree.max()) > 5 * float(degree.mean())  # hubs
    known = KnownEdges(data.src, data.dst, 2000)
    generator = torch.Generator().manual_seed(0)
    edge = torch.randint(len(data.src), (4000,), generator=generator)
    end = data.dst[edge]
    start = known.indptr[end]
    step = (torch.rand(4000, generator=generator) * known.degrees()[end]).long()
    two_away = known.indices[start + step].long()
    closed = known.contains_edges(data.src[edge], two_away).double().mean()
    assert float(closed) > 10 * float(degree.mean()) / 2000  # friends of friends
    feature = torch.nn.functional.normalize(data.features, dim=1)
    alike = (feature[data.src] * feature[data.dst]).sum(1).mean()
    assert float(alike) > 0.2


def test_features_are_smoothed_over_training_edges_alone() -> None:
    problem = load_problem("tiny", Recipe(), 0, None)
    src, dst = problem.src, problem.dst
    width = problem.features.shape[1] // 3
    node = int(src[0])
    near = dst[src == node]
    mean = problem.features[near, :width].mean(0)
    expected = mean / mean.norm()
    torch.testing.assert_close(problem.features[node, width : 2 * width], expected)


@pytest.mark.filterwarnings("ignore:Dataloader CPU affinity")
def test_a_run_writes_its_table(tmp_path: Path) -> None:
    words = "--datasets tiny --shares 0.5 0.1 --rows uniform gaussian --seeds 1"
    more = "--epochs 3 --jobs 0 --quiet --out"
    assert main([*words.split(), *more.split(), str(tmp_path)]) == 0
    text = (tmp_path / "results.md").read_text()
    assert "tiny, pool 50.0% of the nodes" in text
    assert "| Gaussian around the query (5) | 1 | 12 |" in text
    cells = [json.loads(path.read_text())["result"] for path in tmp_path.glob("cells/*.json")]
    for false in [cell["false share"] for cell in cells if cell["refresh share"]]:
        assert 0 < false < 0.5  # the hardest are often held-out
