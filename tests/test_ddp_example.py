"""The example of training on several processes, at a small size."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "ddp.py"


@pytest.mark.parametrize("epochs", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_two_processes_hold_the_same_and_print_the_metrics(epochs):
    options = ["--processes", "2", "--nodes", "300", "--epochs", str(epochs)]
    command = [sys.executable, str(SCRIPT), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    first, header, row = done.stdout.splitlines()
    assert "2 processes" in first
    assert f"version={1 + epochs}" in first  # once at the start, then once an epoch
    assert header.split() == ["MRR", "NDCG", "Hits@10", "Hits@50", "seconds/epoch"]
    assert all(value > 0 for value in map(float, row.split()))


@pytest.mark.parametrize("option", ["--processes", "--epochs", "--k", "--batch-size"])
def test_rejects_counts_that_are_too_small(option, capsys):
    spec = importlib.util.spec_from_file_location("ddp_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit) as caught:
        module.arguments([option, "0"])
    assert caught.value.code == 2
    assert f"{option}: expected at least 1" in capsys.readouterr().err
