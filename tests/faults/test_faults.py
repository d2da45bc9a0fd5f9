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

import numpy as np
import pandas as pd
import pytest
from shared import graph, make

from dgl_dmns.cli import main

G = graph(60, 240)
PREAMBLE = """
import itertools, os, resource, signal, sys
import torch
from shared import graph, loader, make
from dgl_dmns import Resources
from dgl_dmns.core import CandidateTable

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def when(owner, name, call, what):
    '''Do `what` instead of the call-th call of a function.'''
    own, numbers = getattr(owner, name), itertools.count(1)
    def counted(*arguments, **more):
        return (what if next(numbers) == call else own)(*arguments, **more)
    setattr(owner, name, counted)
"""


def run(script: str, *words: object, code: int = 0) -> str:
    """What a script printed; its exit code has to be the one expected."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PREAMBLE + script, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


# The main process is killed: a whole training, resumed.

TRAINING = """
from dgl_dmns import files
from dgl_dmns.cli import main
place, *words = sys.argv[1:]
if place == "refresh":  # the third of five, when half of the table is written
    when(CandidateTable, "publish", 3, die)
elif place == "fit":
    from dgl_dmns.core import generator
    when(generator, "diffusion_loss", 230, die)  # in a fit after the first
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
strategy, background = sys.argv[1], sys.argv[2] == "background"
torch.multiprocessing.set_sharing_strategy(strategy)
one = make("dmns", graph(60, 240), resources=Resources(background=background))
one.refresh()
batches = iter(loader(graph(60, 240), one, 2, batch_size=8))
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
one = make("dmns", graph())
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
    sampler = make("dmns", graph())
    sampler.load(tmp_path / "state")
    assert sampler.version == 1


MEMORY = """
import ctypes
torch.set_num_threads(1)  # the start of a thread has no good end without memory
ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back to the system
g, h = graph(50_000, 200_000), torch.randn(50_000, 6)
one = make("dmns", g, h, groups=1, warmup_steps=1, fit_steps=1)
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
src, dst = one(g, torch.arange(1000))
print(bool(one.known.contains(src, dst).any()))
print(one.refresh().version)
"""


def test_memory_that_runs_out_in_a_refresh_leaves_the_last_table() -> None:
    assert run(MEMORY).split() == ["error", "True", "1", "True", "False", "2"]
