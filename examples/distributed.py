r"""Link prediction on DGL's distributed graph, with DMNS negatives, on one machine.

Run ``python examples/distributed.py --partitions 2``. The script generates a graph, partitions it,
and starts for each partition a server, trainers and their sampler processes; they find each other
by the variables that DGL's launch tool sets as well. A machine holds one partition, as DGL has it.
Several are played by one: each has an address and a shared memory of its own (by ``unshare``, on
Linux), since DGL names its shared memory by graph and feature.

What differs from ``examples/quickstart.py`` is the encoder: a partitioned graph does not fit a
forward pass, so a refresh gets the embeddings by inference layer by layer, into a ``DistTensor``.
Each trainer holds its share of the negatives, and all of them refresh after the same step.

On several machines, write the partitions to a folder that all of them see, and let DGL's launch
tool (``tools/launch.py`` of its repository) start the servers and trainers by ssh::

    python examples/distributed.py --partitions 4 --folder parts
    python dgl/tools/launch.py --workspace $PWD --num_trainers 2 --num_samplers 1 --num_servers 1 \
        --part_config parts/graph.json --ip_config ip_config.txt --graph_format csc,coo \
        "python examples/distributed.py --partitions 4"
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import dgl
import dgl.distributed  # later versions leave this import to their users
import torch
from dgl.dataloading import NeighborSampler
from dgl.nn import SAGEConv
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from dgl_dmns import DMNSSampler
from dgl_dmns.data import EdgeSplit, GraphData, embedded_graph, split_pairs
from dgl_dmns.evaluate import full_ranking, ranking_metrics

try:
    from dgl.distributed import DistEdgeDataLoader, DistNodeDataLoader
except ImportError:  # until DGL 2.3 they are among the other loaders
    from dgl.dataloading import DistEdgeDataLoader, DistNodeDataLoader

HIDDEN = 64

# 1. The model, and embeddings of all nodes with it. -----------------------------------------------


class SAGE(nn.Module):
    """Two GraphSAGE layers; the score of an edge is the inner product of its ends."""

    def __init__(self, in_feats: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                SAGEConv(in_feats, HIDDEN, "mean", activation=torch.relu),
                SAGEConv(HIDDEN, HIDDEN, "mean"),
            ]
        )

    def forward(self, blocks: list[Any], x: Tensor) -> Tensor:
        """Embeddings of the output nodes, shape [N, HIDDEN]."""
        for layer, block in zip(self.layers, blocks):
            x = layer(block, x)
        return x


class Embedder:
    """Embeddings of all nodes; each trainer computes those of its share of the nodes.

    All trainers have to call it at the same step: they wait for each other after each layer.
    """

    def __init__(self, g: Any, model: SAGE) -> None:
        self.g, self.model = g, model
        everyone = torch.ones(g.num_nodes(), dtype=torch.bool)
        self.mine = dgl.distributed.node_split(everyone, g.get_partition_book(), force_even=True)
        book = g.get_partition_book()
        self.one_each = torch.cat([book.partid2nids(p)[:1] for p in range(book.num_partitions())])
        shape = (g.num_nodes(), HIDDEN)
        self.outputs = [
            dgl.distributed.DistTensor(shape, torch.float32, f"layer-{i}")
            for i in range(len(model.layers))
        ]

    @torch.no_grad()
    def __call__(self) -> Any:
        """A DistTensor, shape [N, HIDDEN]."""
        x = self.g.ndata["feat"]
        for layer, output in zip(self.model.layers, self.outputs):
            loader = DistNodeDataLoader(self.g, self.mine, NeighborSampler([-1]), batch_size=2048)
            for inputs, nodes, blocks in loader:
                output[nodes] = layer(blocks[0], x[inputs])
            # DGL's barrier does not wait for writes to other machines; a read of them does.
            output[self.one_each]
            self.g.barrier()
            x = output
        return x


# 2. Training: what every trainer does. ------------------------------------------------------------


def reverse_edges(g: Any) -> Tensor:
    """The id of each edge's reverse, shape [E]; partitioning has given all edges new ids."""
    src, dst = g.find_edges(torch.arange(g.num_edges()))
    key, twin = src * g.num_nodes() + dst, dst * g.num_nodes() + src
    order = key.argsort()
    reverse: Tensor = order[torch.searchsorted(key[order], twin)]
    return reverse


def train(args: argparse.Namespace) -> None:
    """Train on this trainer's share of the edges; the first trainer prints the test metrics."""
    dgl.distributed.initialize(os.environ["DGL_IP_CONFIG"])  # starts the sampler processes, too
    distributed.init_process_group("gloo")
    torch.manual_seed(args.seed)
    g = dgl.distributed.DistGraph("graph")
    model = DistributedDataParallel(SAGE(g.ndata["feat"].shape[1]))
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    embedder = Embedder(g, model.module)
    negatives = DMNSSampler(g, embedder, k=args.k, seed=args.seed)
    everything = torch.ones(g.num_edges(), dtype=torch.bool)
    eids = dgl.distributed.edge_split(everything, g.get_partition_book(), force_even=True)
    eids = eids[: g.num_edges() // distributed.get_world_size()]  # as many for every trainer
    # Before the loader, which sends the sampler away at once: this may make tables of another size.
    negatives.attach(optimizer, every=max(1, len(eids) // args.batch_size))
    loader = DistEdgeDataLoader(
        g,
        eids,
        NeighborSampler([10, 10]),
        exclude="reverse_id",
        reverse_eids=reverse_edges(g),
        negative_sampler=negatives,  # travels to the sampler processes once; its table is shared
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
    )
    started = time.perf_counter()
    for _ in range(args.epochs):
        for inputs, positive, negative, blocks in loader:
            h = model(blocks, g.ndata["feat"][inputs])
            loss = negatives.loss(h, positive, negative)  # each positive against all negatives
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    seconds = (time.perf_counter() - started) / args.epochs
    embeddings = embedder()
    if distributed.get_rank() == 0:
        everyone = torch.arange(g.num_nodes())
        h = torch.empty(g.num_nodes(), HIDDEN)
        h[g.ndata["id"][everyone]] = embeddings[everyone]  # in the order before partitioning
        data, split = generate(args)
        metrics = ranking_metrics(full_ranking(h, split.test, data.csr()), hits=(10, 50))
        metrics["seconds/epoch"] = seconds
        trainers, parts = distributed.get_world_size(), args.partitions
        print(f"{data}; {trainers} trainers on {parts} machines, {negatives}")
        print("".join(f"{name:>15}" for name in metrics))
        print("".join(f"{value:15.3f}" for value in metrics.values()), flush=True)
    g.barrier()  # the others serve until then


# 3. The machines: servers, trainers, and what they have to know of each other. --------------------

APART = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs none /dev/shm && exec "$@"', ""]
if "ADDRESS" in os.environ:  # DGL looks for its machine by the first address of each interface
    dgl.distributed.rpc_client.local_ip4_addr_list = lambda: {os.environ["ADDRESS"]}


def generate(args: argparse.Namespace) -> tuple[GraphData, EdgeSplit]:
    """The data, and the parts of its edges."""
    data = embedded_graph(num_nodes=args.nodes)
    return data, split_pairs(data, seed=args.seed)


def partition(args: argparse.Namespace, folder: Path) -> None:
    """Write the training graph, in both directions, as a partition for each machine."""
    data, split = generate(args)
    g = dgl.graph(
        tuple(torch.cat([split.train, split.train.flip(0)], dim=1)), num_nodes=data.num_nodes
    )
    g.ndata["feat"] = nn.functional.normalize(data.features, dim=1)
    g.ndata["id"] = g.nodes()
    # Each trainer holds the sources of its edges: METIS, in place of a random cut, keeps them few.
    dgl.distributed.partition_graph(g, "graph", args.partitions, str(folder), part_method="metis")


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nothing listens on."""
    with socket.socket() as one:
        one.bind((address, 0))
        return int(one.getsockname()[1])


def launch(
    command: list[str], folder: Path, trainers: int, samplers: int, machines: int = 1
) -> int:
    """Run a command as the servers and as every trainer; stop all if one fails.

    Args:
        command: what to run; ``DGL_ROLE`` in its environment says ``server`` or ``client``. Where
            there are several machines, it is also run as each of them: ``MACHINE`` is its number.
        folder: where ``graph.json`` and its partitions are.
        trainers: number of trainers of a machine.
        samplers: sampler processes of each trainer.
        machines: number of machines, one for each partition.

    Returns:
        0, or the exit status of the first process that failed.
    """
    addresses = [f"127.0.0.{1 + machine}" for machine in range(machines)]
    config = folder / "addresses.txt"
    config.write_text("".join(f"{one} {free_port(one)}\n" for one in addresses))
    common = {
        **os.environ,
        "DGL_DIST_MODE": "distributed",
        "DGL_IP_CONFIG": str(config),
        "DGL_CONF_PATH": str(folder / "graph.json"),
        "DGL_NUM_SERVER": "1",
        "DGL_NUM_CLIENT": str(machines * trainers * (1 + samplers)),
        "DGL_NUM_SAMPLER": str(samplers),
        "DGL_GRAPH_FORMAT": "csc,coo",  # coo: the sampler asks for the ends of edges
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(machines * trainers),
    }
    if machines == 1:
        return run_all(command, [{**common, **role} for role in roles(0, trainers)])
    each = [{"MACHINE": str(i), "ADDRESS": one} for i, one in enumerate(addresses)]
    return run_all([*APART, *command], [{**common, **one} for one in each])


def roles(machine: int, trainers: int) -> list[dict[str, str]]:
    """What the server and the trainers of a machine are told."""
    ranks = range(machine * trainers, (machine + 1) * trainers)
    server = {"DGL_ROLE": "server", "DGL_SERVER_ID": str(machine)}
    return [server, *({"DGL_ROLE": "client", "RANK": str(rank)} for rank in ranks)]


def run_all(command: list[str], environments: list[dict[str, str]]) -> int:
    """Run a command in several environments; stop all if one fails, and return its status."""
    # What a machine starts stays in its group, and so ends with it.
    outer = "MACHINE" not in os.environ
    processes = [
        subprocess.Popen(command, env=environment, start_new_session=outer)
        for environment in environments
    ]
    try:
        states: list[int | None] = [None]
        while None in states:
            time.sleep(0.1)
            states = [process.poll() for process in processes]
            failed = [state for state in states if state]
            if failed:
                return failed[0]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                if outer:
                    os.killpg(process.pid, signal.SIGKILL)  # with its sampler processes
            process.kill()
            process.wait()
    return 0


# 4. The command. ----------------------------------------------------------------------------------


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--partitions", type=int, default=1, help="machines, one for each")
    parser.add_argument("--folder", type=Path, help="only write the partitions, to this folder")
    parser.add_argument("--trainers", type=int, default=2, help="of each machine")
    parser.add_argument("--samplers", type=int, default=1, help="processes of each trainer")
    parser.add_argument("--nodes", type=int, default=2500, help="of the generated graph")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument(
        "--k", type=int, default=1, help="negatives per edge; the batch shares them"
    )
    parser.add_argument("--batch-size", type=int, default=1024, help="of each trainer")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    least_of = {"partitions": 1, "trainers": 1, "samplers": 0, "nodes": 50, "epochs": 1, "k": 1}
    for name, least in least_of.items():
        if getattr(args, name) < least:
            parser.error(f"--{name}: expected at least {least}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Launch all processes; in each of them, do what its role is."""
    args = arguments(argv)
    role = os.environ.get("DGL_ROLE")
    if role == "server":
        dgl.distributed.initialize(os.environ["DGL_IP_CONFIG"])  # serves, and then exits
    elif role == "client":
        try:
            train(args)
        except Exception:  # DGL's own exit would wait for the other trainers, and they for this one
            traceback.print_exc()
            os._exit(1)
    elif args.folder is not None:
        partition(args, args.folder)
    else:
        options = sys.argv[1:] if argv is None else argv
        command = [sys.executable, __file__, *options]
        if "MACHINE" in os.environ:  # within its own shared memory
            mine = roles(int(os.environ["MACHINE"]), args.trainers)
            return run_all(command, [{**os.environ, **role} for role in mine])
        if args.partitions > 1 and subprocess.run([*APART, "true"], check=False).returncode:
            raise SystemExit(
                "--partitions: this system does not let users have a shared memory of their own "
                "(unshare); run on one machine for each partition, see the top of this file"
            )
        with tempfile.TemporaryDirectory() as folder:
            partition(args, Path(folder))
            return launch(command, Path(folder), args.trainers, args.samplers, args.partitions)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
