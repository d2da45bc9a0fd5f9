"""Faults for real: killed processes, full disks, memory that runs out, code of the user that fails.

Each fault is brought about in a process of its own, at a place that is chosen, and what is left of
it is looked at from outside.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dgl
import numpy as np
import pandas as pd
import pytest
import torch

from dgl_dmns import DMNSSampler, Resources
from dgl_dmns.cli import main
from dgl_dmns.core import CandidateTable

NODES = 60
SMALL: dict[str, Any] = {"warmup_steps": 5, "fit_steps": 2, "batch_pairs": 64, "groups": 2}
PREAMBLE = """
import os, resource, signal, sys
import dgl, torch
from dgl_dmns import DMNSSampler, Resources
from dgl_dmns.core import CandidateTable

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def when(owner, name, call, what):
    '''Do `what` instead of the call-th call of a function.'''
    own, calls = getattr(owner, name), []
    def counted(*arguments, **more):
        calls.append(1)
        return (what if len(calls) == call else own)(*arguments, **more)
    setattr(owner, name, counted)

def graph(nodes=60):
    source = torch.Generator().manual_seed(1)
    return dgl.graph(tuple(torch.randint(0, nodes, (2, 4 * nodes), generator=source)),
                     num_nodes=nodes)

def sampler(nodes=60, **more):
    h = torch.randn(nodes, 6, generator=torch.Generator().manual_seed(2))
    small = dict(warmup_steps=5, fit_steps=2, batch_pairs=64, groups=2)
    return DMNSSampler(graph(nodes), lambda: h, 3, **{**small, **more})
"""


def run(script: str, *words: object, code: int = 0) -> str:
    """What a script printed; its exit code has to be the one expected."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PREAMBLE + script, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def graph() -> Any:
    source = torch.Generator().manual_seed(1)
    pairs = torch.randint(0, NODES, (2, 4 * NODES), generator=source)
    return dgl.graph(tuple(pairs), num_nodes=NODES)


def embeddings() -> torch.Tensor:
    return torch.randn(NODES, 6, generator=torch.Generator().manual_seed(2))


# The main process is killed: a whole training, resumed.

TRAINING = """
from dgl_dmns import files
from dgl_dmns.cli import main
place, *words = sys.argv[1:]
if place == "refresh":  # the third of five, when half of the table is written
    when(CandidateTable, "publish", 3, die)
elif place == "fit":
    from dgl_dmns.core import generator
    when(generator, "sample_pairs", 300, die)
elif place == "checkpoint":  # the second, before it is complete
    when(files.os, "fsync", 3, die)  # each takes two: of the file, of its folder
else:  # the second, after it has taken its place
    when(files, "_sync_folder", 2, die)
main(words)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The words of a training and the folder of one that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("trained")
    ends = [(i, (i + step) % 90) for i in range(90) for step in (1, 2, 3)]
    (folder / "ring.csv").write_text("\n".join(["src,dst", *(f"{a},{b}" for a, b in ends), ""]))
    words = ["train", "--edges", str(folder / "ring.csv"), "--quiet", "--hidden", "16"]
    words += ["--batch-size", "512", "--epochs", "4", "--loss", "bce", "--out"]
    assert main([*words, str(folder / "whole")]) == 0
    return words, folder / "whole"


@pytest.mark.parametrize(
    "place",
    [
        "refresh",
        pytest.param("checkpoint", marks=pytest.mark.slow),
        pytest.param("fit", marks=pytest.mark.slow),
        pytest.param("after a checkpoint", marks=pytest.mark.slow),
    ],
)
def test_a_training_that_is_killed_goes_on_to_the_same_bits(
    place: str, trained: tuple[list[str], Path], tmp_path: Path
) -> None:
    words, whole = trained
    out = tmp_path / "out"
    run(TRAINING, place, *words, out, code=-signal.SIGKILL)
    assert (out / "checkpoint.npz").is_file()
    assert not (out / "embeddings.npz").exists()
    assert main([*words, str(out), "--resume"]) == 0
    with np.load(whole / "embeddings.npz") as a, np.load(out / "embeddings.npz") as b:
        assert np.array_equal(a["embedding"], b["embedding"])
    losses = [pd.read_csv(folder / "metrics.csv")["loss"].tolist() for folder in (whole, out)]
    assert losses[0] == losses[1]


# The main process is killed: nothing is left of it.

ORPHANS = """
from dgl.dataloading import DataLoader, NeighborSampler, as_edge_prediction_sampler
strategy, background = sys.argv[1], sys.argv[2] == "background"
torch.multiprocessing.set_sharing_strategy(strategy)
one = sampler(resources=Resources(background=background))
one.refresh()
loader = DataLoader(
    graph(), torch.arange(240), as_edge_prediction_sampler(NeighborSampler([2]),
    negative_sampler=one), batch_size=8, num_workers=2,
)
batches = iter(loader)
next(batches)
print(os.getpid(), *(w.pid for w in torch.multiprocessing.active_children()), flush=True)
when(CandidateTable, "publish", 1, die)
one.refresh()
one.wait()
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("file_descriptor", "background"),
        pytest.param("file_descriptor", "foreground", marks=pytest.mark.slow),
        pytest.param("file_system", "foreground", marks=pytest.mark.slow),
    ],
)
def test_a_main_process_killed_in_a_refresh_leaves_nothing_behind(strategy: str, kind: str) -> None:
    pids = [int(pid) for pid in run(ORPHANS, strategy, kind, code=-signal.SIGKILL).split()]
    assert len(pids) == 3
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        names = [
            n for n in os.listdir("/dev/shm") if set(re.split(r"\D+", n)) & set(map(str, pids))
        ]
        left = [pid for pid in pids if alive(pid)]
        if not names and not left:
            break
        time.sleep(0.2)
    assert left == []
    assert names == []


# Resources that run out.

FULL = """
path = sys.argv[1]
one = sampler()
one.refresh()
one.save(path)
one.refresh()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    one.save(path)
except OSError as error:
    print("error", error.errno)
one.refresh()  # training goes on
print(one.version)
"""


def test_a_disk_without_room_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    said = run(FULL, tmp_path / "state")
    assert said.split() == ["error", "27", "3"]
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    sampler = DMNSSampler(graph(), embeddings, 3, **SMALL)
    sampler.load(tmp_path / "state")
    assert sampler.version == 1


MEMORY = """
import ctypes
ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back to the system
one = sampler(50_000, groups=1, warmup_steps=1, fit_steps=1, resources=Resources())
one.refresh()
before = one.table.current().ids.clone()
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
more = torch.randn(50_000, 6)
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 20), hard))
try:
    one.refresh(more)
    print("no error")
except (RuntimeError, MemoryError) as error:
    print("error", "memory" in str(error).lower() or isinstance(error, MemoryError))
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
print(one.version, torch.equal(one.table.current().ids, before))
src, dst = one(graph(50_000), torch.arange(1000))
print(bool(one.known.contains(src, dst).any()))
print(one.refresh().version)
"""


def test_memory_that_runs_out_in_a_refresh_leaves_the_last_table() -> None:
    assert run(MEMORY).split() == ["error", "True", "1", "True", "False", "2"]


# Code of the user that fails.


def refresh_to_the_end(sampler: DMNSSampler) -> None:
    sampler.refresh()
    sampler.wait()


@pytest.mark.parametrize("background", [False, True])
def test_an_encoder_that_raises_leaves_the_last_table(background: bool) -> None:
    broken = []

    def encoder() -> torch.Tensor:
        if broken:
            raise KeyError("the user's")
        return embeddings()

    sampler = DMNSSampler(graph(), encoder, 3, resources=Resources(background=background), **SMALL)
    sampler.refresh()
    before = sampler.state_dict()
    broken.append(True)
    with pytest.raises(KeyError, match="the user's"):
        sampler.refresh()
    after = sampler.state_dict()
    assert torch.equal(after["table"]["ids"], before["table"]["ids"])
    assert torch.equal(after["random"], before["random"])
    broken.clear()
    sampler.refresh()
    sampler.wait()
    assert sampler.version == 2


@pytest.mark.parametrize("background", [False, True])
def test_a_scorer_that_raises_in_the_middle_leaves_the_last_table(background: bool) -> None:
    calls: list[int] = []

    def scorer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if calls[0] < 0 and len(calls) > 1:
            raise KeyError("the user's")
        return (a * b).sum(-1)

    resources = Resources(background=background)
    sampler = DMNSSampler(graph(), embeddings, 3, scorer=scorer, resources=resources, **SMALL)
    sampler.refresh()
    before = [field.clone() for field in sampler.table.current()]
    calls[:] = [-1]
    with pytest.raises((KeyError, RuntimeError), match="the user's"):
        refresh_to_the_end(sampler)
    assert sampler.version == 1
    for field, was in zip(sampler.table.current(), before):
        assert torch.equal(field, was)
    calls[:] = [1]
    ratio = sampler.log_ratio(sampler(graph(), torch.arange(30)))  # of the distribution before
    assert bool(ratio.isfinite().all())
    sampler.refresh()
    sampler.wait()
    assert sampler.version == 2


def test_a_writer_that_stops_before_the_end_changes_nothing_that_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampler = DMNSSampler(graph(), embeddings, 3, **SMALL)
    sampler.refresh()
    drawn = sampler.table.current()
    before = [field.clone() for field in drawn]

    def stop(_: CandidateTable) -> None:
        raise RuntimeError("stop")

    monkeypatch.setattr(CandidateTable, "publish", stop)
    with pytest.raises(RuntimeError, match="stop"):
        sampler.refresh()
    monkeypatch.undo()
    assert sampler.version == 1
    assert all(torch.equal(a, b) for a, b in zip(drawn, before))
