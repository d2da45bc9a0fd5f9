"""Link prediction on several processes: DistributedDataParallel, a DGL loader, DMNS negatives.

Run ``python examples/ddp.py --processes 2``; the graph is generated on the spot, and the processes
meet over gloo on this machine. Every process has a sampler of its own. Nothing in a refresh waits
for the others, and since all fit from the same seed to the same embeddings, all hold the same
generator and table: the script checks that at the end, and prints the test metrics.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import dgl
import torch
from dgl.dataloading import DataLoader, NeighborSampler, as_edge_prediction_sampler
from dgl.nn import SAGEConv
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from dgl_dmns import DMNSSampler
from dgl_dmns.data import embedded_graph, split_pairs
from dgl_dmns.evaluate import full_ranking, ranking_metrics

# 1. The model: two GraphSAGE layers, and the inner product of two nodes as the score of an edge. --


class SAGE(nn.Module):
    """Called with a minibatch's blocks in training, and with the whole graph in a refresh."""

    def __init__(self, in_feats: int, hidden: int = 64) -> None:
        super().__init__()
        self.first = SAGEConv(in_feats, hidden, "mean")
        self.second = SAGEConv(hidden, hidden, "mean")

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        """Embeddings of the output nodes, shape [N, hidden]."""
        first, second = graph if isinstance(graph, list) else (graph, graph)
        h: Tensor = self.second(second, torch.relu(self.first(first, x)))
        return h


# 2. What every process does. ----------------------------------------------------------------------


def process(rank: int, args: argparse.Namespace, meeting: str) -> None:
    """Meet the others, train, and take leave."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=args.processes
    )
    train(rank, args)
    # The end of a group joins gloo's threads with the interpreter locked, and a thread that has yet
    # to release a tensor waits for that lock: a deadlock, now and then.  The backend itself is
    # joined with the lock released, so its own reference has to be the last one: the model, which
    # holds the group too, is gone with `train` and with what the collector finds.
    gc.collect()
    group: Any = distributed.group.WORLD
    backend = group._get_backend(torch.device("cpu"))
    del group
    distributed.destroy_process_group()
    del backend


def train(rank: int, args: argparse.Namespace) -> None:
    """Train on this process's share of the edges; process 0 prints."""
    torch.manual_seed(args.seed)
    data = embedded_graph(num_nodes=args.nodes)
    split = split_pairs(data, seed=args.seed)
    one_way = split.train.shape[1]  # each pair once: the other direction follows
    both_ways = torch.cat([split.train, split.train.flip(0)], dim=1)
    g = dgl.graph(tuple(both_ways), num_nodes=data.num_nodes)
    g.ndata["feat"] = nn.functional.normalize(data.features, dim=1)

    model = DistributedDataParallel(SAGE(g.ndata["feat"].shape[1]))
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    negatives = DMNSSampler(g, model, k=args.k, seed=args.seed)  # the same seed on every process
    sampler = as_edge_prediction_sampler(
        NeighborSampler([10, 10]),
        exclude="reverse_id",
        reverse_eids=torch.arange(g.num_edges()).roll(one_way),
        negative_sampler=negatives,
    )
    loader = DataLoader(
        g,
        torch.arange(g.num_edges()),
        sampler,
        batch_size=args.batch_size,
        shuffle=True,
        use_ddp=True,  # as many batches for every process, so all refresh after the same step
    )
    # After DistributedDataParallel has made the weights alike: this refreshes at once.
    negatives.attach(optimizer, every=len(loader))
    started = time.perf_counter()
    for _ in range(args.epochs):
        model.train()
        for _, positive, negative, blocks in loader:
            h = model(blocks, blocks[0].srcdata["feat"])
            # Each positive against all negatives, of this process or of all of them.
            loss = negatives.loss(h, positive, negative, gather=args.gather)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    seconds = (time.perf_counter() - started) / args.epochs

    check_alike("tables", negatives.table.current().ids)
    check_alike("weights", torch.cat([p.detach().flatten() for p in model.parameters()]))
    if rank == 0:
        model.eval()
        with torch.no_grad():
            h = model.module(g, g.ndata["feat"])
        metrics = ranking_metrics(full_ranking(h, split.test, data.csr()), hits=(10, 50))
        metrics["seconds/epoch"] = seconds
        print(f"{data}; {args.processes} processes, {negatives}")
        print("".join(f"{name:>15}" for name in metrics))
        print("".join(f"{value:15.3f}" for value in metrics.values()))


def check_alike(what: str, mine: Tensor) -> None:
    """Stop if this process holds something else than process 0 does."""
    first = mine.clone()
    distributed.broadcast(first, src=0)
    if not torch.equal(first, mine):
        raise SystemExit(f"the {what} of process {distributed.get_rank()} are not those of 0")


# 3. The command. ----------------------------------------------------------------------------------


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--nodes", type=int, default=2500, help="of the generated graph")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument(
        "--k", type=int, default=1, help="negatives per edge; the batch shares them"
    )
    parser.add_argument("--batch-size", type=int, default=1024, help="of each process")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument(
        "--gather", action="store_true", help="share the negatives of all processes"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    least_of = {"processes": 1, "nodes": 50, "epochs": 1, "k": 1, "batch_size": 1}
    for name, least in least_of.items():
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')}: expected at least {least}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Start the processes and wait for them."""
    args = arguments(argv)
    with tempfile.TemporaryDirectory() as folder:
        spawn(process, args=(args, str(Path(folder) / "meeting")), nprocs=args.processes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
