"""Ranks of one machine that share a table: two processes on gloo, beside one that has its own."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from shared import make, normal, shop
from shared import graph as random_graph
from test_ddp import equal, on_ranks
from torch import Tensor, distributed, nn

from dgl_dmns import Resources
from dgl_dmns.core import Nearest
from dgl_dmns.samplers.trainers import Trainers

NODES, EDGES = 300, 1500
OPTIONS: dict[str, Any] = {"fit_steps": 3, "warmup_steps": 5, "batch_pairs": 64, "groups": 6}


def graph() -> Any:
    return random_graph(NODES, EDGES)


def embeddings(step: int = 0) -> Tensor:
    return normal(NODES, 6, seed=step)


def of_table(sampler: Any) -> dict[str, Any]:
    """What has to be the same as in one process."""
    known = sampler.known
    src, dst = known.indices.new_tensor(range(NODES)), sampler.table.current().ids[:, 0].long()
    report = sampler.report
    return {
        "table": sampler.table.fields(),
        "ratios": sampler.log_ratio(src, dst[: len(src)].unsqueeze(1)),
        "state": {n: v for n, v in sampler.state_dict().items() if n in ("norms", "random")},
        "report": repr(report.by_type),
        "version": sampler.version,
    }


def train(one_table: bool, chunk_bytes: int = 1 << 16) -> dict[str, Any]:
    """A few refreshes after `attach`, some rows anew, and what is left of it."""
    resources = Resources(one_table=one_table, chunk_bytes=chunk_bytes)
    encoder = nn.Embedding.from_pretrained(embeddings())
    sampler = make("dmns", graph(), lambda: encoder.weight, resources=resources, **OPTIONS)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    sampler.attach(optimizer, every=2 * EDGES // 1024 + 4)  # rows of another size
    results = [of_table(sampler)]
    encoder.weight.data.copy_(embeddings(1))
    sampler.refresh()
    results.append(of_table(sampler))
    sampler.refresh(embeddings(2), nodes=torch.arange(0, NODES, 3))
    results.append(of_table(sampler))
    saved = sampler.state_dict()
    sampler.refresh(embeddings(3))
    sampler.load_state_dict(saved)
    sampler.refresh(embeddings(4))
    results.append(of_table(sampler))
    rows = [one.rows for one in sampler.report.by_rank]
    files = [None if one.table.path is None else str(one.table.path) for one in [sampler]]
    return {"results": results, "rows": rows, "files": files, "passes": sampler.relation().passes}


def both(rank: int, ranks: int) -> dict[str, Any]:
    return {"shared": train(True), "alone": train(False)}


def test_a_shared_table_is_that_of_one_process_and_each_rank_fills_half(tmp_path: Path) -> None:
    results = on_ranks(both, 2, tmp_path)
    for one in results:
        assert equal([one["shared"]["results"], one["alone"]["results"]])
        rows = one["shared"]["rows"]
        assert sum(rows) == NODES
        assert min(rows) > NODES / 4
        assert one["alone"]["rows"] == []
    files = [one["shared"]["files"] for one in results]
    assert files[0] == files[1] != [None]
    assert not Path(files[0][0]).exists()  # it went with the samplers
