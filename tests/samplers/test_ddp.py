"""Training on several ranks: `DistributedDataParallel`, gloo on the CPU, real processes.

Refreshes talk to no other rank. What makes the ranks agree is that each fits from the same seed to
the same embeddings, so these tests compare the ranks bit by bit.
"""

from __future__ import annotations

import gc
import multiprocessing
from pathlib import Path
from typing import Any

import dgl
import pytest
import shared
import torch
from dgl.dataloading import NeighborSampler
from dgl.nn import SAGEConv
from shared import WIDTH, make, same, seed
from torch import Tensor, distributed, nn
from torch import multiprocessing as mp
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

NODES, EDGES, K = 60, 400, 3


class SAGE(nn.Module):
    """Two layers with dropout; with ``norm``, buffers that every rank keeps for itself."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([SAGEConv(5, WIDTH, "mean"), SAGEConv(WIDTH, WIDTH, "mean")])
        self.norm = nn.BatchNorm1d(WIDTH) if norm else nn.Identity()
        self.dropout = nn.Dropout(0.3)

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        first, second = graph if isinstance(graph, list) else (graph, graph)
        h: Tensor = self.dropout(torch.relu(self.norm(self.layers[0](first, x))))
        return self.layers[1](second, h)


def graph() -> Any:
    return shared.graph(NODES, EDGES)


def loader(g: Any, sampler: Any, workers: int = 0) -> Any:
    return shared.loader(g, sampler, workers, flow=NeighborSampler([3, 3]), use_ddp=True)


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    _, positive, negative, blocks = batch
    h = model(blocks, blocks[0].srcdata["feat"])
    scores = [(h[e[0]] * h[e[1]]).sum(1) for e in (positive.edges(), negative.edges())]
    labels = torch.cat([torch.ones_like(scores[0]), torch.zeros_like(scores[1])])
    return nn.functional.binary_cross_entropy_with_logits(torch.cat(scores), labels)


def start(rank: int, ranks: int, folder: Path, work: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks
    )
    seed()  # alike on all ranks, as many scripts do
    torch.save(work(rank, ranks), folder / f"{rank}.pt")
    # The end of a group joins gloo's threads with the interpreter locked, and a thread that has yet
    # to release a tensor waits for that lock.  The backend itself is joined with the lock released,
    # so let its own reference be the last: models that hold the group are gone by now.
    gc.collect()
    backend = distributed.group.WORLD._get_backend(torch.device("cpu"))
    distributed.destroy_process_group()
    del backend


def on_ranks(work: Any, ranks: int, folder: Path) -> list[dict[str, Any]]:
    """What each rank returned, from a process of its own that did not have to import DGL."""
    multiprocessing.set_forkserver_preload(["dgl", "dgl.distributed"])
    mp.start_processes(start, (ranks, folder, work), ranks, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


def equal(results: list[Any]) -> bool:
    """Whether results agree to the last bit."""
    return all(same(results[0], other) for other in results[1:])


# Even batches: DGL gives every rank as many.


def train(rank: int, ranks: int) -> dict[str, Any]:
    g = graph()
    torch.manual_seed(rank)  # DistributedDataParallel starts from the weights of rank 0
    model = DistributedDataParallel(SAGE())
    torch.manual_seed(0)
    sampler = make("dmns", g, model)
    batches = loader(g, sampler)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    sampler.attach(optimizer, every=3)
    versions, drawn = [], []
    for _ in range(2):
        for batch in batches:
            drawn.append(batch[2].ndata[dgl.NID][batch[2].edges()[1]])
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            versions.append(sampler.version)
    nodes = torch.arange(NODES)
    torch.manual_seed(5)
    queries = sampler.for_queries(g, nodes)
    torch.manual_seed(5)
    again = sampler.for_queries(g, nodes)
    uniform = make("uniform", g).for_queries(g, nodes)
    state = sampler.state_dict()
    return {
        "weights": model.module.state_dict(),
        "sampler": {name: state[name] for name in ("table", "random")},
        "fit": state["model"]["_extra_state"]["optimizer"]["state"],
        "generator": {k: v for k, v in state["model"].items() if isinstance(v, Tensor)},
        "versions": versions,
        "training": model.module.training,
        "repeated": torch.equal(queries, again),
        "own": {"drawn": drawn, "queries": queries, "uniform": uniform},
    }


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_refresh_at_the_same_step_and_agree_to_the_last_bit(
    ranks: int, tmp_path: Path
) -> None:
    results = on_ranks(train, ranks, tmp_path)
    own = [result.pop("own") for result in results]
    assert equal(results)
    steps = len(own[0]["drawn"])
    assert results[0]["versions"] == [1 + (step + 1) // 3 for step in range(steps)]
    assert results[0]["training"]
    assert results[0]["repeated"]
    assert steps == 2 * -(-EDGES // (ranks * 32))
    # Seeded alike, and yet no two ranks draw the same.
    for name in ("queries", "uniform"):
        assert len({tuple(one[name].flatten().tolist()) for one in own}) == ranks


def fork_workers(rank: int, ranks: int) -> dict[str, Any]:
    """One query and many candidates: equal draws would mean equal streams."""
    g = dgl.graph(([0] * EDGES, [1] * EDGES), num_nodes=5000)
    batches = loader(g, make("uniform", g), workers=2)
    return {
        "drawn": [
            tuple(batch[2].ndata[dgl.NID][batch[2].edges()[1]].tolist())
            for _ in range(2)
            for batch in batches
        ]
    }


@pytest.mark.slow
def test_workers_of_all_ranks_draw_differently(tmp_path: Path) -> None:
    drawn = [batch for one in on_ranks(fork_workers, 2, tmp_path) for batch in one["drawn"]]
    assert len(set(drawn)) == len(drawn) == 2 * 2 * 7


# Where ranks do not meet: a refresh waits for none.


def uneven(rank: int, ranks: int) -> dict[str, Any]:
    g = graph()
    model = DistributedDataParallel(SAGE())
    sampler = make("dmns", g, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    sampler.attach(optimizer, every=2)
    batches = list(loader(g, sampler))
    with Join([model]):
        for batch in batches[: 2 + 2 * rank]:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    return {"version": sampler.version}


def test_uneven_batches_do_not_hang(tmp_path: Path) -> None:
    versions = [result["version"] for result in on_ranks(uneven, 2, tmp_path)]
    assert versions == [2, 3]  # each rank counts its own steps


def alone(rank: int, ranks: int) -> dict[str, Any]:
    g = graph()
    model = DistributedDataParallel(SAGE(norm=True))
    sampler = make("dmns", g, model)
    if rank == 0:  # the wrapper's own forward would wait here for the buffers of all ranks
        sampler.refresh()
    return {"version": sampler.version}


def test_a_refresh_of_one_rank_alone_waits_for_no_other(tmp_path: Path) -> None:
    assert [result["version"] for result in on_ranks(alone, 2, tmp_path)] == [1, 0]


def broadcast(rank: int, ranks: int) -> dict[str, Any]:
    g = graph()
    sampler = make("dmns", g, lambda: torch.randn(NODES, WIDTH) + rank)
    h = torch.randn(NODES, WIDTH) + rank
    distributed.broadcast(h, src=0)
    sampler.refresh(h)
    return {"table": sampler.table.state_dict()}


def test_embeddings_that_differ_by_rank_may_be_broadcast(tmp_path: Path) -> None:
    assert equal(on_ranks(broadcast, 2, tmp_path))
