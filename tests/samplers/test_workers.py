"""Loader workers: counts, start methods, lifetimes, refreshes in between, crashes, seeds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared import ends, graph, loader, make, negatives, refreshed, seed, star
from torch import Tensor
from torch.utils.data import get_worker_info

from dgl_dmns.core import Hardest
from dgl_dmns.samplers import DMNSSampler

G = graph(40, 160)
SIZE = {"batch_size": 8}


class Witness(DMNSSampler):
    """Hardest negatives; notes how often which version was used, by the place of the worker."""

    seen: Tensor

    def negatives_for_edges(self, g: Any, src: Any, dst: Any, etype: Any, eids: Any = None) -> Any:
        info = get_worker_info()
        self.seen[0 if info is None else info.id, self.version] += 1
        return super().negatives_for_edges(g, src, dst, etype, eids)


def witness() -> Any:
    sampler = make(Witness, G, star(40, 0), 1, rule=Hardest(), pool=40, uniform_share=0.0)
    sampler.seen = torch.zeros(8, 4, dtype=torch.int64).share_memory_()
    return sampler


def stars_of(sampler: Any, batch: Any) -> list[int]:
    """The destinations in a batch, of those sources that may have either star, 1 and 2."""
    src, dst = ends(batch[2])
    barred = sampler.known.contains(src.unsqueeze(1), torch.tensor([1, 2])).any(dim=1)
    return dst[~barred].unique().tolist()


# Every worker, from the next epoch on.


@pytest.mark.parametrize(
    ("workers", "start", "persistent"),
    [
        (0, "", False),
        *((workers, "fork", lasting) for workers in (2, 4) for lasting in (False, True)),
        *(
            pytest.param(
                workers,
                "spawn",
                lasting,
                marks=() if (workers, lasting) == (2, True) else pytest.mark.slow,
            )
            for workers in (2, 4)
            for lasting in (False, True)
        ),
    ],
)
def test_the_next_epoch_uses_the_new_table_in_every_worker(
    workers: int, start: str, persistent: bool
) -> None:
    sampler = witness()
    more = {"persistent_workers": persistent, "multiprocessing_context": start} if workers else {}
    batches = loader(G, sampler, workers, **SIZE, **more)
    for version, node in ((1, 3), (2, 30)):
        sampler.refresh(star(40, node))
        sampler.seen.zero_()
        src, dst = negatives(batches)
        free = ~sampler.known.contains(src, torch.full_like(src, node))
        assert int(free.sum()) > 100
        assert dst[free].unique().tolist() == [node]
        used = sampler.seen.sum(dim=0).tolist()
        assert used[version] == 160 // 8
        assert sum(used) == used[version]
        assert int((sampler.seen[:, version] > 0).sum()) == max(1, workers)


# A refresh while an epoch runs.


@pytest.mark.parametrize("workers", [0, 2])
def test_a_refresh_in_the_middle_of_an_epoch(workers: int) -> None:
    sampler = witness()
    sampler.refresh(star(40, 1))
    found = []
    ahead = {"prefetch_factor": 2 if workers else None}
    for step, batch in enumerate(loader(G, sampler, workers, **SIZE, **ahead)):
        found.append(stars_of(sampler, batch))
        if step == 5:
            sampler.refresh(star(40, 2))
    assert all(len(one) <= 1 for one in found)  # no batch mixes two tables
    assert {node for one in found for node in one} <= {1, 2}
    # Loaders draw ahead: two batches for each worker, no more.
    late = found[6 + 2 * workers :]
    assert all(one in ([2], []) for one in late)
    assert [1] in found[:6]
    assert [2] in late


def test_a_refresh_beside_a_prefetch_thread() -> None:
    sampler = witness()
    sampler.refresh(star(40, 1))
    batches = loader(G, sampler, **SIZE)
    batches.use_prefetch_thread = True  # as DGL does where the device is a GPU
    for node in (1, 2):
        sampler.refresh(star(40, node))
        found = [stars_of(sampler, batch) for batch in batches]
        assert {node for one in found for node in one} == {node}


# Workers that die.

CRASH = """
import os, signal, sys
sys.path[:0] = {folders!r}
import torch
import test_workers as tests
torch.multiprocessing.set_sharing_strategy({strategy!r})
sampler = tests.witness()
sampler.refresh()
loader = tests.loader(tests.G, sampler, 2, batch_size=8, persistent_workers={persistent})
batches = iter(loader)
next(batches)
workers = [worker.pid for worker in torch.multiprocessing.active_children()]
own = [name for name in os.listdir("/dev/shm") if name.startswith(f"torch_{{os.getpid()}}_")]
print(len(own))
print(os.getpid(), *workers, flush=True)
try:
    try:
        os.kill(workers[0], signal.SIGKILL)
        for _ in batches:
            pass
        for _ in loader:  # where all batches had been drawn ahead
            pass
        print("no error")
    except (OSError, EOFError):  # killed while it handed a batch over; torch may say so later
        print("lost the connection")
except RuntimeError as error:
    print("RuntimeError", error)
"""


@pytest.mark.parametrize("persistent", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    "strategy", [pytest.param("file_descriptor", marks=pytest.mark.slow), "file_system"]
)
def test_a_killed_worker_ends_the_loader_and_leaves_no_shared_memory(
    strategy: str, persistent: bool
) -> None:
    folders = [str(Path(__file__).parents[i]) for i in (0, 1)]
    script = CRASH.format(folders=folders, strategy=strategy, persistent=persistent)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    named, pids, message = done.stdout.splitlines()[:3]
    assert (int(named) > 0) == (strategy == "file_system")  # the other has no names to leave
    assert message.startswith(("RuntimeError DataLoader worker", "lost the connection"))
    deadline = time.monotonic() + 60
    names = tuple(f"torch_{pid}_" for pid in pids.split())

    def left() -> list[str]:
        return [name for name in os.listdir("/dev/shm") if name.startswith(names)]

    while left() and time.monotonic() < deadline:  # torch's manager cleans up after the exit
        time.sleep(0.2)
    assert left() == []


# Seeds.


@pytest.mark.parametrize("workers", [0, 2])
def test_one_seed_and_one_number_of_workers_give_one_result(workers: int) -> None:
    drawn = []
    for value in (7, 7, 8):
        seed(value)
        np.random.seed(value)  # noqa: NPY002 (DGL shuffles by it)
        batches = loader(G, refreshed("dmns", G), workers)
        drawn.append(torch.cat([torch.stack(negatives(batches)) for _ in range(2)], dim=1))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    # Neither do two epochs agree, nor two workers.
    parts = drawn[0].view(2, 10, -1)[1].tolist()
    assert len(set(map(tuple, parts))) == 10
