"""One run: a generated graph, its partitions, and a trainer on each, as processes of this machine.

Pairs are near on a ring but for a few strays, so that partitions can be cut out; features tell the
place of a node on it. The servers and trainers are started as ``examples/distributed.py`` does.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dgl
import torch
from dgl.distributed import DistTensor, rpc
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common.rows import Cell
from benchmarks.common.run import Runner
from dgl_dmns import DMNSSampler
from dgl_dmns.core import held_bytes
from dgl_dmns.evaluate import full_ranking, ranking_metrics

__all__ = ["Setting", "ring_pairs", "run_cell"]

_EXAMPLE = Path(__file__).parents[2] / "examples" / "distributed.py"
_TESTED = 1000  # held-out pairs
_NEAR, _STRAY = 1.2, 0.02  # tail exponent of distances on the ring; share of other pairs
_FEATURES = 32  # of a node
_REFRESHES = 4  # in the training, after the first
_POOL = 1024  # shared negatives of a positive, whatever the number of trainers


@dataclass(frozen=True)
class Setting:
    """The graph, its partitions, and the training on it.

    Raises:
        ValueError: for a number below 1.
    """

    partitions: int = 1  # with one trainer each
    nodes: int = 200_000  # N
    degree: int = 10  # mean number of neighbours of a node
    width: int = 64  # D
    k: int = 1  # negatives per edge
    batch: int = 4096  # positives of all trainers together
    steps: int = 200

    def __post_init__(self) -> None:
        for name in ("partitions", "nodes", "degree", "k", "batch", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


def ring_pairs(setting: Setting, random: torch.Generator) -> Tensor:
    """Distinct pairs ``u < v``, int64 [2, P], about ``nodes * degree / 2``, in random order."""
    nodes, wanted = setting.nodes, setting.nodes * setting.degree // 2
    u = torch.randint(0, nodes, (wanted,), generator=random)
    chance = torch.rand(wanted, generator=random, dtype=torch.float64)
    v = (u + (1 - chance).pow(-1 / _NEAR).clamp(max=nodes / 2).long()) % nodes
    stray = torch.rand(wanted, generator=random) < _STRAY
    v[stray] = torch.randint(0, nodes, (int(stray.sum()),), generator=random)
    key = torch.unique((torch.minimum(u, v) * nodes + torch.maximum(u, v))[u != v])
    key = key[torch.randperm(len(key), generator=random)]
    return torch.stack([torch.div(key, nodes, rounding_mode="floor"), key % nodes])


def _features(setting: Setting, random: torch.Generator) -> Tensor:
    angle = torch.arange(setting.nodes) * (2 * math.pi / setting.nodes)
    x = torch.randn(setting.nodes, _FEATURES, generator=random) / 3
    for column in range(0, _FEATURES - 1, 2):
        x[:, column] += torch.sin(angle * 2 ** (column // 2))
        x[:, column + 1] += torch.cos(angle * 2 ** (column // 2))
    return x


def _example() -> Any:
    """The example's module, which starts servers and trainers."""
    spec = importlib.util.spec_from_file_location("distributed_example", _EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load(_: str, setting: Setting, seed: int, __: Any) -> Path:
    """Write the partitions of the training graph and all that trainers have to know."""
    folder = Path(tempfile.mkdtemp(prefix="dgl-dmns-bench-"))
    random = torch.Generator().manual_seed(seed)
    pairs = ring_pairs(setting, random)
    train = pairs[:, _TESTED:]
    g = dgl.graph(tuple(torch.cat([train, train.flip(0)], dim=1)), num_nodes=setting.nodes)
    g.ndata["feat"], g.ndata["id"] = _features(setting, random), g.nodes()
    dgl.distributed.partition_graph(
        g, "graph", setting.partitions, str(folder), part_method="metis", balance_edges=True
    )
    torch.save(pairs, folder / "pairs.pt")
    (folder / "setting.json").write_text(json.dumps({**asdict(setting), "seed": seed}))
    return folder


def _work(folder: Path, cell: Cell) -> dict[str, Any]:
    """Run the trainers; the slowest one's seconds, and the largest of what they hold."""
    parts = cell.recipe.partitions
    command = [sys.executable, "-m", "benchmarks.distributed.run", str(folder)]
    status = _example().launch(command, folder, 1, 0, parts)
    if status:
        raise RuntimeError(f"a process ended with status {status} (messages are above)")
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(parts)]
    shutil.rmtree(folder)
    worst = {name: max(one[name] for one in found) for name in found[-1]}
    return {**found[0], **worst, "sources": sum(one["held"] for one in found)}


run_cell = Runner(_load, _work)


# What each trainer does. --------------------------------------------------------------------------


class _Encoder:
    """Embeddings of all nodes in a DistTensor, of which each trainer computes its part."""

    def __init__(self, g: Any, model: nn.Module, width: int) -> None:
        self.g, self.model = g, model
        book = g.get_partition_book()
        self.mine = book.partid2nids(book.partid)
        self.one_each = torch.cat([book.partid2nids(p)[:1] for p in range(book.num_partitions())])
        self.h = DistTensor((g.num_nodes(), width), torch.float32, "h")

    @torch.no_grad()
    def __call__(self) -> DistTensor:
        for part in self.mine.split(1 << 16):
            self.h[part] = self.model(self.g.ndata["feat"][part])
        self.h[self.one_each]  # a read waits for writes to other machines, the barrier does not
        self.g.barrier()
        return self.h


def _batch(src: Tensor, dst: Tensor, drawn: Tensor) -> tuple[Tensor, Any, Any]:
    """Nodes of a batch, and its positive and negative graph."""
    k = len(drawn) // len(src)
    nodes, row = torch.cat([src, dst, drawn]).unique(return_inverse=True)
    src, dst, drawn = row.split([len(src), len(dst), len(drawn)])
    graphs = []
    for ends in ((src, dst), (src.repeat_interleave(k), drawn)):
        graph = dgl.graph(ends, num_nodes=len(nodes))
        graph.ndata[dgl.NID] = nodes
        graphs.append(graph)
    return nodes, *graphs


def _train(folder: Path) -> None:
    found = json.loads((folder / "setting.json").read_text())
    seed = found.pop("seed")
    setting = Setting(**found)
    distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    g, width = dgl.distributed.DistGraph("graph"), setting.width
    encoder = nn.Sequential(nn.Linear(_FEATURES, width), nn.ReLU(), nn.Linear(width, width))
    model = DistributedDataParallel(encoder)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    everything = torch.ones(g.num_edges(), dtype=torch.bool)
    mine = dgl.distributed.edge_split(everything, g.get_partition_book(), force_even=True)
    embeddings = _Encoder(g, encoder, width)
    negatives = DMNSSampler(g, embeddings, k=setting.k, seed=seed)
    negatives.attach(optimizer, every=max(1, setting.steps // _REFRESHES))
    size = max(1, setting.batch // setting.partitions)
    for _ in range(setting.steps):
        eids = mine[torch.randint(0, len(mine), (size,))]
        src, dst = g.find_edges(eids)
        nodes, positive, negative = _batch(src, dst, negatives(g, eids)[1])
        h = model(g.ndata["feat"][nodes])
        loss = negatives.loss(h, positive, negative, pool=_POOL)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    costs = []
    for _ in range(2):
        sent, cpu = rpc.get_msg_seq(), time.process_time()
        report = negatives.refresh()
        cost = {"cpu": time.process_time() - cpu, "messages": rpc.get_msg_seq() - sent}
        parts = {f"{part} seconds": spent for part, spent in report.seconds_by_part.items()}
        costs.append({**cost, "wall": report.seconds, **parts})
    share = negatives.relation().share
    result = {
        "held": g.num_nodes() if share is None else len(share.ids),
        "held MB": held_bytes([negatives.refresher, negatives.relation()]) / 1e6,
        **{name: min(one[name] for one in costs) for name in costs[0]},
    }
    h, rank = embeddings(), distributed.get_rank()
    if rank == 0:
        result["MRR"] = _mrr(g, h, torch.load(folder / "pairs.pt"))
    (folder / f"{rank}.json").write_text(json.dumps(result))
    g.barrier()  # the others serve until then


def _mrr(g: Any, h: DistTensor, pairs: Tensor) -> float:
    """Of held-out pairs, among all nodes, known ones left out."""
    everyone = torch.arange(g.num_nodes())
    whole = torch.empty(h.shape)
    whole[g.ndata["id"][everyone]] = h[everyone]
    src, dst = torch.cat([pairs, pairs.flip(0)], dim=1)
    order = (src * len(whole) + dst).argsort()
    indptr = torch.cat([src.new_zeros(1), torch.bincount(src, minlength=len(whole)).cumsum(0)])
    ranks = full_ranking(whole, pairs[:, :_TESTED], (indptr, dst[order]), batch=64)
    return float(ranking_metrics(ranks, hits=(10,))["MRR"])


def _main(folder: Path) -> int:
    role = os.environ.get("DGL_ROLE")
    if role is None:
        example = _example()
        command = [sys.executable, "-m", "benchmarks.distributed.run", str(folder)]
        mine = example.roles(int(os.environ["MACHINE"]), 1)
        return int(example.run_all(command, [{**os.environ, **one} for one in mine]))
    _example()  # sets the address of this machine
    dgl.distributed.initialize(os.environ["DGL_IP_CONFIG"])  # a server serves here, and exits
    try:
        _train(folder)
    except Exception:  # DGL's own exit would wait for the other trainers
        traceback.print_exc()
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
