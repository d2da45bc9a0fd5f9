"""The benchmark of trainers' shares: its graph, what it counts, and a small run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.distributed.run import Setting, ring_pairs

ROOT = Path(__file__).parents[2]


def test_pairs_are_distinct_seeded_and_mostly_near():
    setting = Setting(nodes=3000)
    pairs, again = (ring_pairs(setting, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(pairs, again)
    u, v = pairs
    assert (u < v).all()
    assert len(torch.unique(u * 3000 + v)) == len(u)
    assert 8000 < len(u) <= 15000
    distance = torch.minimum(v - u, u + 3000 - v)
    assert 0.8 < float((distance < 30).double().mean()) < 0.99


@pytest.mark.parametrize("name", ["partitions", "nodes", "degree", "k", "batch", "steps"])
def test_settings_out_of_range(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        Setting(**{name: 0})


@pytest.mark.slow
def test_a_small_run(tmp_path):
    words = "--nodes 3000 --partitions 1 2 --steps 4 --batch 256 --quiet --out".split()
    command = [sys.executable, "-m", "benchmarks.distributed", *words, str(tmp_path)]
    apart = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs none /dev/shm && exec "$@"', ""]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], check=False).returncode:
        pytest.skip("needs user namespaces (unshare)")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*apart, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "results.md").read_text().splitlines()[-2:]
    one, two = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert one[2] == "3,000"
    assert int(two[2].replace(",", "")) < 2500
