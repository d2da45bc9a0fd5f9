"""Refreshes in a thread beside the training: staleness, errors, state, end of the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dgl
import pytest
import torch
from shared import FOLLOWING, WIDTH, graph, make, normal, optimizer, refreshed, same
from torch import Tensor

from dgl_dmns import Resources
from dgl_dmns.core import Candidates
from dgl_dmns.diagnostics import Monitor

BACKGROUND = Resources(background=True)
EIDS = torch.arange(5)


class Gate:
    """A scorer that the background waits in while it is shut, and that raises an error, if any."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.error: Exception | None = None

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            assert self.open.wait(60)
            if self.error is not None:
                raise self.error
        return (a * b).sum(-1)


def held() -> tuple[Any, Gate]:
    gate = Gate()
    return make("dmns", graph(), k=2, scorer=gate, resources=BACKGROUND), gate


def test_training_does_not_wait_and_staleness_is_bounded() -> None:
    (sampler, gate), one = held(), optimizer()
    seen: list[int] = []
    sampler.on_refresh(lambda report, h: seen.append(report.version))
    sampler.attach(one, every=3)
    assert sampler.version == 1  # the first one is waited for
    gate.open.clear()
    for _ in range(4):
        one.step()
    behind = sampler.staleness
    assert (sampler.version, behind.refreshes, behind.steps, seen) == (1, 1, 4, [1])
    row = sampler.stats().iloc[0]
    assert (row["refreshes_behind"], row["steps_behind"]) == (1, 4)
    assert sampler(graph(), EIDS)[0].numel() == 10  # negatives of the last table
    assert sampler.generate(normal(3, WIDTH)).shape == (4, 3, WIDTH)
    gate.open.set()
    sampler.wait()
    behind = sampler.staleness
    assert (sampler.version, behind.refreshes, behind.steps, seen) == (2, 0, 1, [1, 2])
    gate.open.clear()
    one.step()
    one.step()
    threading.Timer(0.3, gate.open.set).start()
    for _ in range(3):  # the second refresh point waits for the first
        one.step()
    assert sampler.version >= 3
    assert sampler.report.seconds_by_part.keys() == {"wait", "embed", "fit", "table"}
    sampler.wait()
    assert seen == [1, 2, 3, 4]


def test_the_report_is_taken_in_at_a_step() -> None:
    sampler, one = make("dmns", graph(), k=2, resources=BACKGROUND), optimizer()
    sampler.attach(one, every=1000)
    monitor = Monitor(sampler)
    sampler.refresh()
    while any(thread.name == "dgl-dmns-refresh" for thread in threading.enumerate()):
        time.sleep(0.01)
    assert not len(monitor.frame())
    one.step()
    assert sampler.report.version == 2
    assert monitor.frame()["refresh"].unique().tolist() == [2]
    assert monitor.frame()["steps_behind"].tolist()[0] == 1


@pytest.mark.parametrize("name", FOLLOWING)
def test_two_runs_build_the_same_tables_also_from_a_state(name: str) -> None:
    """Of which one is saved while a refresh is under way."""
    runs = []
    for resumed in (False, True):
        sampler = make(name, graph(), k=2, resources=BACKGROUND)
        for seed in range(3):
            sampler.refresh(normal(40, WIDTH, seed=seed))
            if resumed and seed == 1:
                state = sampler.state_dict()
                sampler = make(name, graph(), k=2, resources=BACKGROUND)
                sampler.load_state_dict(state)
                assert sampler.version == 2
        # A sampler that was made anew refreshes in its place first, and all the same alike.
        assert sampler.wait().version == sampler.version == 3
        runs.append(sampler.state_dict())
    assert same(*runs)


def test_without_it_nothing_changes() -> None:
    on, off = (refreshed("dmns", graph(), resources=r) for r in (Resources(), None))
    for sampler in (on, off):
        sampler.refresh()
        assert sampler.wait() is sampler.report
        assert sampler.staleness.refreshes == 0
    assert same(on.state_dict(), off.state_dict())


def test_a_failure_is_told_at_the_next_refresh_and_the_last_table_stays() -> None:
    sampler, gate = held()
    sampler.refresh()
    before, report = sampler.state_dict(), sampler.report
    live = [field.clone() for field in sampler.table.current()]
    gate.error = ValueError("no more room")
    sampler.refresh()
    state = sampler.state_dict()  # saving is possible all the same
    assert int(state["table"]["counter"]) == 1
    assert sampler.staleness.refreshes == 1
    assert sampler(graph(), EIDS)[0].numel() == 10
    with pytest.raises(RuntimeError, match=r"failed \(ValueError: no more room\).*of version 1,"):
        sampler.refresh()
    assert sampler.version == 1
    assert sampler.report is report
    assert sampler.staleness.refreshes == 0  # it has been told
    after = sampler.state_dict()
    assert all(same(before[key], after[key]) for key in ("random", "model"))
    assert same(live, list(sampler.table.current()))
    gate.error = None
    sampler.refresh()
    assert sampler.wait().version == 2
    assert sampler.staleness.refreshes == 0


def test_a_table_half_written_is_not_read() -> None:
    sampler = refreshed("dynamic", graph())
    sampler.refresh(normal(40, WIDTH, seed=1))
    table = sampler.table
    src, place = table.spread(torch.arange(40))
    older = table.hidden(place).ids[:, 0].long()
    live = torch.zeros(40, 40, dtype=torch.bool)
    live[src.unsqueeze(1), table.current(place).ids.long()] = True
    gone = ~live[src, older]
    assert gone.any()
    assert table.holds(src, older).all()
    table.write_at(place[:3], Candidates(*(field[place[:3]] for field in table.current())))
    assert not table.holds(src, older)[gone].any()
    table.publish()
    assert not int(table.unfinished)


def test_a_graph_that_grows_waits_for_the_refresh() -> None:
    sampler = refreshed("dmns", graph(), resources=BACKGROUND)
    sampler.refresh()
    sampler.update_graph(dgl.add_nodes(graph(), 5))
    assert sampler.version == 2
    assert sampler.table.queries == 45
    sampler.refresh(normal(45, WIDTH))
    assert sampler.wait().version == 3


# ---- the end of the process -------------------------------------------------------------------

SCRIPT = """
import sys, threading, time, torch
from shared import embed, graph, make
from dgl_dmns import Resources

def scorer(a, b):
    if threading.current_thread() is not threading.main_thread():
        time.sleep(0.05)  # for each block of rows
    return (a * b).sum(-1)

resources = Resources(background=True, table_folder=sys.argv[1], chunk_bytes=1)
sampler = make("dmns", graph(400, 1200), scorer=scorer, resources=resources)
sampler.refresh()
sampler.refresh()
time.sleep(0.1)
assert sampler.staleness.refreshes == 1, "too quick for this test"
print("under way", flush=True)
{end}
"""


def start(folder: Path, end: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(end=end), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("sys.exit(3)", 3),
        pytest.param("", 0, marks=pytest.mark.slow),
        pytest.param("raise ValueError", 1, marks=pytest.mark.slow),
    ],
)
def test_a_process_ends_at_once_and_cleanly(tmp_path: Path, end: str, status: int) -> None:
    process = start(tmp_path, end)
    out, err = process.communicate(timeout=120)
    assert out == "under way\n", err
    assert process.returncode == status, err
    assert "Fatal" not in err
    assert "terminate" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at the processes of Linux")
def test_nothing_is_left_of_a_killed_process(tmp_path: Path) -> None:
    process = start(tmp_path, "time.sleep(600)")
    assert process.stdout is not None
    assert process.stdout.readline() == "under way\n"
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.communicate()
    with pytest.raises(ProcessLookupError):  # nobody is left in its group
        os.killpg(process.pid, 0)
