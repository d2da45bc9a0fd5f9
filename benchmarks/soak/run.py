"""A training that loses its loader workers again and again, watched from inside.

The loop is one that a user can write: each epoch has an order of its own of the edges, and where a
loader ends because a worker died, a new one goes on with the edges that were not trained on yet.
Torch tells of a dead worker by an error raised in the main process wherever that happens to be, in
the middle of a step or of a refresh, too; the step that was cut short is done again.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dgl
import psutil  # type: ignore[import-untyped]
import torch
from dgl.dataloading import NeighborSampler
from torch import Tensor

from benchmarks.common.rows import Row, make_sampler
from benchmarks.common.training import edge_loader
from benchmarks.dropin.model import Encoder
from benchmarks.speed.problem import power_law_pairs
from dgl_dmns import Resources
from dgl_dmns.core import CandidateTable
from dgl_dmns.losses import bce_loss
from dgl_dmns.seeds import fit_seed

__all__ = ["Outcome", "Sample", "Setting", "soak", "table_of"]

_PREFETCHED = 2  # batches that torch's loader draws ahead in each worker
_SAMPLES = 180  # over the whole run


@dataclass(frozen=True)
class Setting:
    """What a soak does."""

    minutes: float = 30.0  # how long it trains
    kill_every: float = 120.0  # seconds between two SIGKILLs of a worker
    refresh_every: int = 100  # optimizer steps between two refreshes
    nodes: int = 2000  # of the generated graph
    workers: int = 2  # of the loader
    batch_size: int = 128  # positive edges in a batch
    background: bool = False  # whether refreshes are done in a thread beside the training
    # seconds of rest after each step, so that the machine has time for other work
    pause: float = 0.1
    seed: int = 0  # of everything

    @property
    def bound(self) -> int:
        """The most steps that negatives may be older than their batch's step.

        From one refresh to the next, and what loaders have drawn ahead; in the background, one
        refresh more.
        """
        refreshes = 2 if self.background else 1
        return refreshes * self.refresh_every + self.workers * _PREFETCHED


@dataclass(frozen=True)
class Sample:
    """What the processes held at one moment."""

    seconds: float  # since the start
    step: int  # optimizer steps so far
    main_mb: float  # proportional set size of the main process, in MB of 10^6 bytes
    workers_mb: float  # the same of all loader workers
    shared: int  # names in ``/dev/shm`` that belong to this run
    files: int  # open files of the main process
    children: int  # child processes
    loss: float  # of the last step


@dataclass
class Outcome:
    """What a soak came to."""

    samples: list[Sample] = field(default_factory=list)  # of memory and files, in order
    # second and error of each loader that a kill ended
    kills: list[tuple[float, str]] = field(default_factory=list)
    steps: int = 0  # optimizer steps that were finished
    redone: int = 0  # steps that a kill cut short, which were done again
    epochs: int = 0  # finished epochs
    edges: int = 0  # edges of an epoch
    lost: int = 0  # edges of finished epochs that were not trained on
    repeated: int = 0  # edges of finished epochs that were trained on more than once
    versions: int = 0  # refreshes
    # for each number of steps, how many batches had negatives of a table that old
    age: dict[int, int] = field(default_factory=dict)
    unknown: int = 0  # batches with negatives in neither the live table nor the one before
    # names in shared memory and processes that were left after the end
    left: list[str] = field(default_factory=list)


def table_of(table: CandidateTable, src: Tensor, dst: Tensor) -> int | None:
    """The version that drawn pairs, int64 [P] each, stem from; None for neither.

    It is the live one of the table or the one before.
    """
    version = table.version
    for one, groups in ((version, table.current), (version - 1, table.hidden)):
        owner, place = table.spread(src)
        hit = owner[(groups(place).ids == dst[owner].unsqueeze(1)).any(1)]
        if hit.unique().numel() == src.numel():
            return one
    return None


class _Soak:
    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        generator = torch.Generator().manual_seed(fit_seed(setting.seed))
        torch.manual_seed(fit_seed(setting.seed))
        self.random = random.Random(setting.seed)
        u, v = power_law_pairs(setting.nodes, 10, generator)
        self.g = dgl.graph((torch.cat([u, v]), torch.cat([v, u])), num_nodes=setting.nodes)
        self.g.ndata["feat"] = torch.randn(setting.nodes, 32, generator=generator)
        ids = torch.arange(2 * u.numel())
        self.reverse = torch.where(ids < u.numel(), ids + u.numel(), ids - u.numel())
        self.encoder = Encoder("sage", 32, 32, 2, 0.0)
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), lr=1e-3)
        resources = Resources(background=setting.background)
        # No uniform draws: each negative tells which table it is from.
        row = Row("DMNS", "dmns", {"uniform_share": 0.0, "resources": resources})
        self.sampler = make_sampler(row, 5, self.g, self.embed, setting.seed)
        self.taken = 0  # steps that were finished when embeddings were taken last
        self.taken_for: dict[int, int] = {}  # the same for the versions that training knows of
        self.sampler.on_refresh(lambda report, _: self.known(report.version))
        self.outcome = Outcome(edges=self.g.num_edges())
        self.started = time.monotonic()
        self.next_sample = 0.0
        self.loss = float("nan")
        self.sent = 0  # kills
        self.ended = threading.Event()

    def embed(self) -> Tensor:
        """Embeddings of all nodes for a refresh."""
        h: Tensor = self.encoder(self.g, self.g.ndata["feat"])
        self.taken = self.outcome.steps
        return h

    def known(self, version: int) -> None:
        self.taken_for[version] = self.taken

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def over(self) -> bool:
        return self.seconds >= 60 * self.setting.minutes

    def loader(self, eids: Tensor) -> Any:
        return edge_loader(
            self.g,
            eids,
            NeighborSampler([5, 5], prefetch_node_feats=["feat"]),
            self.reverse,
            self.sampler,
            self.setting.batch_size,
            num_workers=self.setting.workers,
        )

    def run(self, progress: Callable[[str], None]) -> Outcome:
        self.sampler.attach(self.optimizer, every=self.setting.refresh_every)
        killer = threading.Thread(target=self.kill_now_and_then, name="killer", daemon=True)
        killer.start()
        try:
            self.watch()
            while not self.over():
                self.epoch(progress)
        finally:  # it would go on to kill whatever children this process has later
            self.ended.set()
            killer.join()
        self.sampler.wait()
        self.outcome.versions = self.sampler.version
        return self.outcome

    def kill_now_and_then(self) -> None:
        """SIGKILL a worker at times that have nothing to do with what the main process does."""
        while not self.ended.wait(self.setting.kill_every * self.random.uniform(0.8, 1.2)):
            workers = _children()
            if workers:
                self.sent += 1
                os.kill(self.random.choice(workers), signal.SIGKILL)

    def epoch(self, progress: Callable[[str], None]) -> None:
        """An epoch over all edges, by as many loaders as it takes."""
        order = torch.randperm(self.g.num_edges())
        seen = torch.zeros(self.g.num_edges(), dtype=torch.int64)
        while True:
            left = order[seen[order] == 0]
            if not len(left):
                break
            stepping = False
            try:
                for batch in self.loader(left):
                    stepping = True
                    self.step(batch)
                    seen[batch[1].edata[dgl.EID]] += 1
                    self.outcome.steps += 1
                    stepping = False
                    time.sleep(self.setting.pause)
                    self.watch()
                    if self.over():
                        return
                break  # the loader came to its end: what it left out is lost
            except (RuntimeError, OSError, EOFError) as error:
                if self.sent <= len(self.outcome.kills):
                    raise  # nobody was killed
                self.outcome.kills.append((self.seconds, f"{type(error).__name__}: {error}"))
                self.outcome.redone += stepping
                progress(f"{self.seconds:.0f} s: {error}")
                if self.over():
                    return  # this epoch has not ended, so nothing of it is lost
        self.outcome.epochs += 1
        self.outcome.lost += int((seen == 0).sum())
        self.outcome.repeated += int((seen > 1).sum())

    def step(self, batch: Any) -> None:
        """One optimizer step, and how old the table is that its negatives came from."""
        _, positive, negative, blocks = batch
        src, dst = (negative.ndata[dgl.NID][ends] for ends in negative.edges())
        version = table_of(self.sampler.table, src, dst)
        if version is None:
            self.outcome.unknown += 1
        else:
            age = self.outcome.steps - self.taken_for.get(version, self.taken)
            self.outcome.age[age] = self.outcome.age.get(age, 0) + 1
        h = self.encoder(blocks, blocks[0].srcdata["feat"])
        scores = [(h[a] * h[b]).sum(1) for a, b in (positive.edges(), negative.edges())]
        loss = bce_loss(scores[0], scores[1].view(-1, self.sampler.k))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss = float(loss.detach())

    def watch(self) -> None:
        """Take a sample where it is time."""
        if self.seconds < self.next_sample:
            return
        self.next_sample = self.seconds + 60 * self.setting.minutes / _SAMPLES
        workers = _children()
        self.outcome.samples.append(
            Sample(
                self.seconds,
                self.outcome.steps,
                _memory_mb(os.getpid()),
                sum(map(_memory_mb, workers)),
                len(_shared_names([os.getpid(), *workers])),
                len(os.listdir("/proc/self/fd")),
                len(workers),
                self.loss,
            )
        )


def _children() -> list[int]:
    """Child processes that have not ended."""
    found = []
    for one in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if one.status() != psutil.STATUS_ZOMBIE:
                found.append(one.pid)
    return found


def _memory_mb(pid: int) -> float:
    """Proportional set size: shared pages count for each process by its part."""
    try:
        return float(psutil.Process(pid).memory_full_info().pss) / 1e6
    except psutil.Error:  # it has just ended
        return 0.0


def _shared_names(pids: list[int]) -> list[str]:
    """Names in shared memory that torch or DGL made for these processes."""
    return [n for n in os.listdir("/dev/shm") if any(f"_{pid}_" in f"_{n}_" for pid in pids)]


def soak(setting: Setting, progress: Callable[[str], None] = lambda _: None) -> Outcome:
    """Run a soak; see `Setting` and `Outcome`."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Dataloader CPU affinity")
        one = _Soak(setting)
        outcome = one.run(progress)
    del one
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        outcome.left = _shared_names([os.getpid()]) + [str(pid) for pid in _children()]
        if not outcome.left:
            break
        time.sleep(0.2)
    return outcome
