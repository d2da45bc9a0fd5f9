"""What the processes of `test_distributed` run: servers, trainers, and what starts them.

A machine holds one partition and shares memory among its processes. A second machine is a second
view of this one: other processes, in a namespace with a shared memory of its own, under another
loopback address.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dgl
import torch
from dgl.dataloading import NeighborSampler
from dgl.distributed import DistTensor, edge_split, rpc_client
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import BUYS, WIDTH, ends, make, said, star

from dgl_dmns.core import Blend, Density, Hardest
from dgl_dmns.samplers import InBatchSampler, PopularitySampler, UniformSampler
from dgl_dmns.samplers.stored import StoredRows

try:
    from dgl.distributed import DistEdgeDataLoader
except ImportError:  # until DGL 2.3
    from dgl.dataloading import DistEdgeDataLoader

K = 3
OWN_SHARED_MEMORY = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs none /dev/shm && exec "$@"', ""]

if "JOB_ADDRESS" in os.environ:  # DGL looks for its machine by the first address of each interface
    rpc_client.local_ip4_addr_list = lambda: {os.environ["JOB_ADDRESS"]}


# Starting.


@functools.cache
def own_shared_memory() -> list[str]:
    """What to put before a command for a shared memory of its own; empty where that is not allowed.

    DGL names its pieces by graph and feature alone, so that any two runs on a system would meet.
    """
    try:
        done = subprocess.run([*OWN_SHARED_MEMORY, "true"], capture_output=True, check=False)
    except OSError:
        return []
    return [] if done.returncode else OWN_SHARED_MEMORY


def free_port(address: str) -> int:
    with socket.socket() as one:
        one.bind((address, 0))
        return int(one.getsockname()[1])


def run(job: str, folder: Path, *, machines: int, trainers: int, samplers: int) -> list[Any]:
    """Run a job on trainers of each machine; what they returned, in order of rank."""
    addresses = [f"127.0.0.{1 + machine}" for machine in range(machines)]
    config = folder / "addresses.txt"
    config.write_text("".join(f"{address} {free_port(address)}\n" for address in addresses))
    common = {
        **os.environ,
        "DGL_DIST_MODE": "distributed",
        "DGL_IP_CONFIG": str(config),
        "DGL_CONF_PATH": str(folder / "graph.json"),
        "DGL_NUM_SERVER": "1",
        "DGL_NUM_CLIENT": str(machines * trainers * (1 + samplers)),
        "DGL_NUM_SAMPLER": str(samplers),
        "DGL_GRAPH_FORMAT": "csc,coo",
        "WORLD_SIZE": str(machines * trainers),
        "JOB_TRAINERS": str(trainers),
    }
    processes = [
        subprocess.Popen(
            [*own_shared_memory(), sys.executable, __file__, job, str(folder)],
            env={**common, "JOB_MACHINE": str(machine), "JOB_ADDRESS": address},
            start_new_session=True,
        )
        for machine, address in enumerate(addresses)
    ]
    wait(processes)
    return [torch.load(folder / f"{rank}.pt") for rank in range(machines * trainers)]


class Copy:
    """A copy of this process, as far as `wait` asks a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None

    def poll(self) -> int | None:
        if self.status is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if ended else None
        return self.status

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        while self.poll() is None:
            time.sleep(0.01)


def on_machine() -> bool:
    """Start the server and the trainers of this machine; True in each of them.

    They are copies of this process, which spares them the import of DGL.
    """
    machine, trainers = os.environ["JOB_MACHINE"], int(os.environ["JOB_TRAINERS"])
    roles = [{"DGL_ROLE": "server", "DGL_SERVER_ID": machine}]
    roles += [
        {"DGL_ROLE": "client", "RANK": str(int(machine) * trainers + i)} for i in range(trainers)
    ]
    copies = []
    for role in roles:
        pid = os.fork()
        if not pid:
            os.environ.update(role)
            return True
        copies.append(Copy(pid))
    wait(copies)
    return False


def wait(processes: list[Any], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    try:
        states = [None]
        while None in states:
            time.sleep(0.05)
            states = [process.poll() for process in processes]
            assert not any(states), "a process has failed"
            assert time.monotonic() < deadline, "the processes do not end"
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # where it leads a group
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()


# Jobs: each runs in every trainer.


def epoch(batches: Any, etype: Any = None) -> list[dict[str, Tensor]]:
    """Sources of the positives and ends of the negatives of each batch, as ids of the graph."""
    result = []
    for _, positive, negative, _ in batches:
        src, dst = ends(negative, etype)
        result.append({"query": ends(positive, etype)[0], "src": src, "dst": dst})
    return result


def write(h: Any, value: Tensor) -> None:
    """Write all rows, and read them back: DGL's barrier waits for no write to another server."""
    rows = torch.arange(len(value))
    h[rows] = value
    assert torch.equal(h[rows].nan_to_num(), value.nan_to_num())


def homogeneous() -> dict[str, Any]:
    g = dgl.distributed.DistGraph("graph")
    nodes = g.num_nodes()
    first = distributed.get_rank() == 0
    everything = torch.ones(g.num_edges(), dtype=torch.bool)
    mine = edge_split(everything, g.get_partition_book(), force_even=True)

    def loader(sampler: Any, size: int = 20) -> Any:
        return DistEdgeDataLoader(
            g, mine, NeighborSampler([2]), negative_sampler=sampler, batch_size=size, shuffle=True
        )

    result: dict[str, Any] = {"ids": g.ndata["id"][torch.arange(nodes)]}
    for cls in (UniformSampler, PopularitySampler, InBatchSampler):
        result[cls.__name__] = epoch(loader(cls(g, K)))
    for name in ("seeded", "seeded again"):
        torch.manual_seed(7)
        # DGL hands batches to its sampler processes in turn, and goes on where an epoch ended: only
        # an even number of batches begins with the same one of two again.
        batches = loader(UniformSampler(g, K), size=24)
        assert -(-len(mine) // 24) % 2 == 0
        result[name] = epoch(batches)

    # Embeddings in a DistTensor; each trainer's refresh reaches its sampler processes.
    h = DistTensor((nodes, WIDTH), torch.float32, "h")
    sampler = make("dmns", g, lambda: h, rule=Density())
    batches = loader(sampler)
    result["before"] = epoch(batches)
    if first:
        write(h, torch.randn(nodes, WIDTH))
    g.barrier()
    sampler.refresh()
    result["after"] = epoch(batches)
    result["table"] = sampler.table.current().ids.clone()
    result["random"] = sampler.state_dict()["random"]
    pairs = [(batch["src"], batch["dst"]) for batch in result["after"]]
    result["held"] = [sampler.relation().over(sampler.table.holds, *one) for one in pairs]
    result["ratios"] = [sampler.log_ratio(one) for one in pairs]

    # The hardest node is the one that stands out; a refresh makes it another one.
    of = {"rule": Hardest(), "pool": nodes, "uniform_share": 0.0, "groups": 1}
    hardest = make("dmns", g, lambda: h, 1, **of)
    batches = loader(hardest)
    for node in (3, 30):
        g.barrier()
        if first:
            write(h, star(nodes, node).repeat(1, WIDTH))
        g.barrier()
        hardest.refresh()
        result[f"star {node}"] = epoch(batches)

    try:
        make("dmns", g, nn.Linear(5, WIDTH))
    except TypeError as error:
        result["error"] = str(error)
    return result


def reads(h: Any) -> list[int]:
    """How many rows of a DistTensor each read from now on takes."""
    kind, taken = type(h), []
    original = kind.__getitem__

    def watched(self: Any, index: Any) -> Any:
        if self is h:
            taken.append(len(index))
        return original(self, index)

    kind.__getitem__ = watched
    return taken


def densities(sampler: Any, known: Any, src: Tensor) -> tuple[Tensor, Tensor]:
    """``N q(u|v)`` of all nodes for some queries, uniform and of all draws: [B, N] each."""
    relation, every = sampler.relation(), torch.arange(known.num_dst)
    free = ~known.contains(src.unsqueeze(1), every)
    uniform = free.double() * (len(every) / free.sum(1, keepdim=True))
    row, held = relation.share.rows(src)
    rows = row[held].repeat_interleave(len(every))
    hard = relation.method.distribution.hard_log_ratio(rows, every.repeat(int(held.sum())))
    drawn = uniform.clone()
    drawn[held] *= hard.double().exp().view(-1, len(every))
    share = relation.rows.uniform_share
    return uniform, share * uniform + (1 - share) * drawn


class Whole(UniformSampler):
    """Knows all edges, for comparison."""

    shares = False


def shares() -> dict[str, Any]:
    g = dgl.distributed.DistGraph("graph")
    nodes, rank, last = g.num_nodes(), distributed.get_rank(), distributed.get_world_size() - 1
    everything = torch.ones(g.num_edges(), dtype=torch.bool)
    mine = edge_split(everything, g.get_partition_book(), force_even=True)
    h = DistTensor((nodes, WIDTH), torch.float32, "h")

    def filled(value: Tensor) -> None:
        g.barrier()
        if not rank:
            write(h, value)
        g.barrier()

    filled(torch.randn(nodes, WIDTH))
    torch.manual_seed(rank)
    failing: list[bool] = []

    def encoder() -> Any:
        if failing and rank == last:
            raise ValueError("no memory left here")
        return h

    def loader(sampler: Any, eids: Tensor) -> Any:
        return DistEdgeDataLoader(
            g, eids, NeighborSampler([2]), negative_sampler=sampler, batch_size=40
        )

    options = {"rule": Blend(), "pool": 4}
    sampler, whole, uniform = make("dmns", g, encoder, **options), Whole(g, K), UniformSampler(g, K)
    relation = sampler.relation()
    result: dict[str, Any] = {
        "ids": g.ndata["id"][torch.arange(nodes)],
        "mine": g.find_edges(mine)[0],
        "held": relation.share.ids,
        "known": (relation.known.indptr, relation.known.indices),
    }

    # Edges of all trainers, so that many queries are not held. Before a refresh all is uniform.
    some = torch.randperm(g.num_edges())[:200]

    def batches() -> Any:
        for _, pos, neg, _ in loader(sampler, some):
            yield h[pos.ndata[dgl.NID]], pos, neg

    kinds = (sampler, uniform, whole)
    result["losses"] = [tuple(kind.loss(*b) for kind in kinds) for b in batches()]
    result["before"] = epoch(loader(sampler, some)) + epoch(loader(uniform, some))
    result["uniform"] = uniform.known_by_type["_N", "_E", "_N"].num_src

    taken = reads(h)
    sampler.refresh()
    result["reads"] = list(taken)
    result["by rank"] = [sampler.report.by_rank]
    result["model"] = {
        name: value for name, value in sampler.model.state_dict().items() if name[0] != "_"
    }
    result["after"] = epoch(loader(sampler, mine))
    result["elsewhere"] = epoch(loader(sampler, some))
    known, etype = whole.known_by_type["_N", "_E", "_N"], ("_N", "_E", "_N")
    result["ratios"] = []
    for batch in result["elsewhere"]:
        pairs = batch["src"], batch["dst"]
        row, held = relation.share.rows(pairs[0])
        ratio = sampler.log_ratio(pairs)
        own = relation.method.distribution.log_ratio(row[held], pairs[1][held])
        assert torch.equal(ratio[held], own)
        result["ratios"].append((held, ratio, relation.over(relation.table.holds, *pairs)))
        src, candidates = batch["query"], pairs[1].view(-1, K)
        even, exact = densities(sampler, known, src)
        torch.testing.assert_close(  # but for the known edges of who is not held, 10 of 600
            sampler.batch_log_ratio(etype, src, src, candidates).exp(),
            even.mean(0)[candidates],
            rtol=0.03,
            atol=0.0,
        )
        torch.testing.assert_close(
            sampler.batch_log_ratio(etype, src, src, candidates, "edge").exp(),
            exact.gather(1, candidates),
            rtol=0.03,
            atol=0.0,
        )
    result["trained"] = [sampler.loss(*b) for b in batches()]
    every = torch.arange(nodes)
    result["queries"] = sampler.for_queries(g, every)
    result["arrived"] = sampler.for_embeddings(torch.randn(4, WIDTH))

    state, other = sampler.state_dict(), make("dmns", g, encoder, **options)
    other.load_state_dict(state)
    result["states"] = (relation.table.current().ids, other.table.current().ids)

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    result["errors"] = {
        "look": said(sampler.look),
        "look of uniform": said(uniform.look),
        "draw": said(lambda: sampler.draw(every)),
        "distribution": said(sampler.distribution),
        "g": said(lambda: sampler.update_graph(g)),
        "observe": said(lambda: sampler.observe(every[:1], torch.zeros(1, WIDTH))),
        "share": said(lambda: sampler.attach(optimizer, share=0.1)),
        "source": said(lambda: make("dmns", g, encoder, source="uniform")),
        "state": said(lambda: other.log_ratio((every, every.flip(0)))),
    }

    # A refresh that one trainer cannot make.
    before = relation.table.current().ids.clone()
    failing.append(True)
    result["failed"] = said(sampler.refresh)
    failing.clear()
    broken = h[every]
    broken[int(relation.share.ids[0])] = float("nan")
    filled(broken)
    result["NaN"] = said(sampler.refresh)
    assert torch.equal(relation.table.current().ids, before)
    assert sampler.version == 1
    filled(torch.randn(nodes, WIDTH))
    sampler.refresh(nodes=every[:100])
    result["by rank"].append(sampler.report.by_rank)
    result["part"] = int((relation.share.ids < 100).sum())
    result["version"] = sampler.version
    result["again"] = epoch(loader(sampler, mine))
    return result


def random_embeddings() -> tuple[Any, Any, int, int]:
    """The graph, embeddings of its nodes that the first trainer draws, their number, the rank."""
    g = dgl.distributed.DistGraph("graph")
    nodes, rank = g.num_nodes(), distributed.get_rank()
    h = DistTensor((nodes, WIDTH), torch.float32, "h")
    if not rank:
        write(h, torch.randn(nodes, WIDTH))
    g.barrier()
    return g, h, nodes, rank


def gathering() -> dict[str, Any]:
    """Training on the candidates of all trainers."""
    g, h, _, rank = random_embeddings()
    model = DistributedDataParallel(nn.Linear(WIDTH, WIDTH))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    sampler, whole, uniform = make("dmns", g, lambda: h), Whole(g, K), UniformSampler(g, K)
    sampler.attach(optimizer, every=3)
    torch.manual_seed(rank)
    some = torch.randperm(g.num_edges())[: 200 + 40 * rank]  # of all trainers
    batches = list(
        DistEdgeDataLoader(g, some, NeighborSampler([2]), negative_sampler=sampler, batch_size=100)
    )[:2]
    result: dict[str, Any] = {"losses": [], "compared": []}
    for _, pos, neg, _ in batches * 5:
        loss = sampler.loss(model(h[pos.ndata[dgl.NID]]), pos, neg, gather=True, temperature=3.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        result["losses"].append(float(loss))
    result["version"] = sampler.version
    result["weights"] = model.module.state_dict()

    # Known edges of queries that are not held are looked up among the others' candidates, too.
    asked: list[Tensor] = []
    original = uniform.known_of_batch

    def watched(etype: Any, src: Tensor, nodes: Tensor) -> Any:
        asked.append(nodes)
        return original(etype, src, nodes)

    uniform.known_of_batch = watched
    _, pos, neg, _ = batches[0]
    for kind in (uniform, whole):
        result["compared"].append(float(kind.loss(h[pos.ndata[dgl.NID]], pos, neg, gather=True)))
    result["asked"] = asked[-1]
    result["drawn"] = ends(neg)[1]
    return result


def background() -> dict[str, Any]:
    """Refreshes in threads, which talk to each other alone."""
    g, h, nodes, rank = random_embeddings()
    failing: list[str] = []

    def scorer(a: Tensor, b: Tensor) -> Tensor:
        if failing and threading.current_thread() is not threading.main_thread():
            if failing[0] == "fetch":
                h_all.rows(torch.arange(3))
            if rank:
                raise ValueError("no memory left here")
        return (a * b).sum(-1)

    h_all = StoredRows("encoder", h)
    sampler = make("dmns", g, lambda: h, scorer=scorer, background=True, rule=Blend(), pool=4)
    relation = sampler.relation()
    model = DistributedDataParallel(nn.Linear(WIDTH, WIDTH))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sampler.attach(optimizer, every=2)
    result: dict[str, Any] = {"versions": [sampler.version], "models": []}
    mine = edge_split(torch.ones(g.num_edges(), dtype=torch.bool), g.get_partition_book())
    threads: list[str] = []
    taken, original = reads(h), type(h).__getitem__

    def watched(self: Any, index: Any) -> Any:
        threads.append(threading.current_thread().name)
        return original(self, index)

    type(h).__getitem__ = watched
    for _ in range(3):
        for some in mine[:80].split(40):  # collectives and servers in the main thread, meanwhile
            src, dst = g.find_edges(some)
            optimizer.zero_grad()
            (model(h[src]) * model(h[dst])).mean().backward()
            optimizer.step()
            sampler(g, some)
    sampler.wait()
    result["versions"].append(sampler.version)
    result["threads"] = set(threads)
    result["reads"] = sum(taken) > 0
    result["table"] = relation.table.current().ids.clone()
    result["known"] = (relation.share.ids, relation.known.indptr, relation.known.indices)

    def parameters() -> dict[str, Tensor]:
        state = sampler.model.state_dict()
        return {name: value.clone() for name, value in state.items() if name[0] != "_"}

    result["model"] = parameters()
    before = relation.table.current().ids.clone()
    result["errors"] = []
    for what in ("fetch", "one"):
        failing[:] = [what]
        sampler.refresh()
        if what == "one":
            result["waited"] = said(sampler.wait)
            sampler.refresh()
        result["errors"].append(said(sampler.refresh))
        assert sampler.staleness.refreshes == 0
    assert torch.equal(relation.table.current().ids, before)
    failing.clear()
    kept = {name: torch.equal(v, result["model"][name]) for name, v in parameters().items()}
    assert all(kept.values())
    result["share"] = said(lambda: sampler.attach(optimizer, share=0.1))
    result["nodes"] = said(lambda: sampler.refresh(nodes=torch.tensor([nodes])))
    sampler.refresh(nodes=relation.share.ids[:20] if not rank else relation.share.ids[:0])
    sampler.wait()
    result["versions"].append(sampler.version)
    result["by rank"] = sampler.report.by_rank
    relation.table.counter += rank  # a state of another checkpoint
    result["apart"] = said(sampler.refresh)
    return result


def killed() -> dict[str, Any]:
    g = dgl.distributed.DistGraph("graph")
    h = DistTensor((g.num_nodes(), WIDTH), torch.float32, "h")
    rank, version = distributed.get_rank(), 0

    def encoder() -> Any:
        if version and rank == distributed.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return h

    sampler = make("dmns", g, encoder, rule=Hardest())
    sampler.refresh()
    version = sampler.version
    try:
        sampler.refresh()
    except RuntimeError as error:
        (Path(sys.argv[2]) / f"{rank}.txt").write_text(str(error))
        raise
    return {}


def market() -> dict[str, Any]:
    g = dgl.distributed.DistGraph("graph")
    etype = BUYS
    h = {ntype: DistTensor((g.num_nodes(ntype), WIDTH), torch.float32, ntype) for ntype in g.ntypes}
    sampler = make("dmns", g, lambda: h, etypes=["buys"])
    share = sampler.relation().share
    batches = DistEdgeDataLoader(
        g,
        {etype: torch.arange(g.num_edges(etype))},
        NeighborSampler([2]),
        negative_sampler=sampler,
        batch_size=20,
    )
    for ntype, part in h.items():
        if not distributed.get_rank():
            write(part, torch.randn(g.num_nodes(ntype), WIDTH))
        g.barrier()
    sampler.refresh()
    ids = {ntype: g.nodes[ntype].data["id"][torch.arange(g.num_nodes(ntype))] for ntype in g.ntypes}
    return {"ids": ids, "after": epoch(batches, etype), "held": share and share.ids}


def main() -> None:
    job, folder = sys.argv[1:]
    if "DGL_ROLE" not in os.environ and not on_machine():  # DGL's sampler processes have a role
        return
    dgl.distributed.initialize(os.environ["DGL_IP_CONFIG"])  # a server serves here, and exits
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    distributed.init_process_group(  # by a file: no other port to be free
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks
    )
    jobs = (homogeneous, market, shares, gathering, background, killed)
    result = {one.__name__: one for one in jobs}[job]()
    torch.save(result, Path(folder) / f"{rank}.pt")


if __name__ == "__main__":
    main()
