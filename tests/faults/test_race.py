"""Refreshes beside readers: every look-up belongs to exactly one version."""

from __future__ import annotations

import threading
import time
from typing import Any

import dgl
import pytest
import shared
import torch
from shared import refreshed
from torch import Tensor
from torch import multiprocessing as mp

from dgl_dmns import Resources
from dgl_dmns.core import Hardest

NODES = 400


def ring() -> Any:
    """Ends 200 to 399 are linked to nobody: each may be everybody's negative."""
    nodes = torch.arange(200)
    return dgl.graph((nodes, (nodes + 1) % 200), num_nodes=NODES)


def star(version: int) -> Tensor:
    """Embeddings of which one node's stands out, another one for each version."""
    return shared.star(NODES, 200 + version % 200)


def read(sampler: Any, g: Any, stop: Any, wrong: Tensor) -> None:
    """Ask for negatives without end: each answer holds one node only, never an earlier one."""
    eids = torch.arange(200).repeat(3)
    last = 1
    while not stop():
        found = sampler(g, eids)[1].unique().tolist()
        version = found[0] - 200
        wrong[0] += 1
        wrong[1] += len(found) != 1 or version < last
        last = version


@pytest.mark.parametrize("background", [False, True])
def test_readers_in_threads_and_processes_see_one_version_each_time(background: bool) -> None:
    g = ring()
    g.create_formats_()
    resources = Resources(background=background)
    quick = {"warmup_steps": 0, "fit_steps": 0, "groups": None, "resources": resources}
    hardest = {"rule": Hardest(), "pool": NODES, "uniform_share": 0.0}
    sampler = refreshed("dmns", g, star(1), 1, **hardest, **quick)
    flag = torch.zeros(1, dtype=torch.int64).share_memory_()
    wrong = torch.zeros(4, 2, dtype=torch.int64).share_memory_()
    readers: list[Any] = [
        mp.get_context("fork").Process(
            target=read, args=(sampler, g, lambda: bool(flag), wrong[i]), daemon=True
        )
        for i in range(2)
    ]
    readers += [
        threading.Thread(target=read, args=(sampler, g, lambda: bool(flag), wrong[i]), daemon=True)
        for i in (2, 3)
    ]
    for reader in readers:
        reader.start()
    version, deadline = 1, time.monotonic() + 200
    while version < 190 and time.monotonic() < deadline:
        version += 1
        sampler.refresh(star(version))
        if version > 25 and int(wrong[:, 0].min()) > 30:
            break
    sampler.wait()
    flag.fill_(1)
    for reader in readers:
        reader.join(timeout=30)
    assert int(wrong[:, 0].min()) > 30
    assert wrong[:, 1].tolist() == [0, 0, 0, 0]
    assert version > 25
