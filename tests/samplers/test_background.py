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
from states import same
from torch import Tensor

from dgl_dmns import AdversarialSampler, DMNSSampler, DynamicSampler, MCNSSampler, Resources
from dgl_dmns.core import Candidates
from dgl_dmns.diagnostics import Monitor

NODES = 300
SMALL: dict[str, Any] = {"warmup_steps": 5, "fit_steps": 3, "batch_pairs": 64, "groups": 4}
BACKGROUND = Resources(background=True)


@pytest.fixture(scope="module")
def g() -> Any:
    source = torch.Generator().manual_seed(1)
    return dgl.graph(tuple(torch.randint(0, NODES, (2, 1500), generator=source)), num_nodes=NODES)


def embeddings(seed: int = 0) -> Tensor:
    return torch.randn(NODES, 8, generator=torch.Generator().manual_seed(seed))


class Held(DMNSSampler):
    """Tables are built when the gate is open, and not if there is an error to raise."""

    def __init__(self, g: Any, **arguments: Any) -> None:
        super().__init__(g, embeddings, 2, resources=BACKGROUND, **{**SMALL, **arguments})
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def _rebuild(self, *arguments: Any) -> Any:
        assert self.gate.wait(60)
        if self.error is not None:
            raise self.error
        return super()._rebuild(*arguments)


def test_training_does_not_wait_and_staleness_is_bounded(g: Any) -> None:
    sampler = Held(g)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[int] = []
    sampler.on_refresh(lambda report, h: seen.append(report.version))
    sampler.attach(optimizer, every=3)
    assert sampler.version == 1  # the first one is waited for
    sampler.gate.clear()

    def step() -> None:
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()

    for _ in range(4):
        step()
    behind = sampler.staleness
    assert (sampler.version, behind.refreshes, behind.steps, seen) == (1, 1, 4, [1])
    row = sampler.stats().iloc[0]
    assert (row["refreshes_behind"], row["steps_behind"]) == (1, 4)
    src, _ = sampler(g, torch.arange(5))  # negatives of the last table
    assert src.numel() == 10
    sampler.gate.set()
    sampler.wait()
    behind = sampler.staleness
    assert (sampler.version, behind.refreshes, behind.steps, seen) == (2, 0, 1, [1, 2])
    sampler.gate.clear()
    for _ in range(2):
        step()
    threading.Timer(0.3, sampler.gate.set).start()
    for _ in range(3):  # the second refresh point waits for the first
        step()
    assert sampler.version >= 3
    assert sampler.report is not None
    assert sampler.report.seconds_by_part.keys() == {"wait", "embed", "fit", "table"}
    sampler.wait()
    assert seen == [1, 2, 3, 4]


def test_a_refresh_sees_the_embeddings_at_the_time_of_the_call(g: Any) -> None:
    sampler = Held(g)
    seen: list[Tensor] = []
    sampler.on_refresh(lambda report, h: seen.append(next(iter(h.values()))))
    sampler.refresh()
    sampler.gate.clear()
    h = embeddings(1)
    sampler.refresh(h)
    h.fill_(7)  # training goes on in place
    sampler.gate.set()
    sampler.wait()
    assert torch.equal(seen[1], embeddings(1))


def test_the_report_is_taken_in_at_a_step(g: Any) -> None:
    sampler = DMNSSampler(g, embeddings, 2, resources=BACKGROUND, **SMALL)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sampler.attach(optimizer, every=1000)
    monitor = Monitor(sampler)
    sampler.refresh()
    while sampler.version < 2 or not sampler._task.done:  # type: ignore[union-attr]
        time.sleep(0.01)
    assert not len(monitor.frame())
    optimizer.step()
    assert sampler.report is not None
    assert sampler.report.version == 2
    assert monitor.frame()["refresh"].unique().tolist() == [2]
    assert monitor.frame()["steps_behind"].tolist()[0] == 1


@pytest.mark.parametrize("cls", [DMNSSampler, DynamicSampler, AdversarialSampler, MCNSSampler])
def test_two_runs_build_the_same_tables(g: Any, cls: Any) -> None:
    states = []
    for _ in range(2):
        sampler = cls(g, embeddings, 2, resources=BACKGROUND)
        for seed in range(3):
            sampler.refresh(embeddings(seed))
        assert sampler.wait().version == sampler.version == 3
        states.append(sampler.state_dict())
    assert same(*states)


def test_without_it_nothing_changes(g: Any) -> None:
    on, off = (
        DMNSSampler(g, embeddings, 2, resources=resources, **SMALL)
        for resources in (Resources(), None)
    )
    for sampler in (on, off):
        sampler.refresh()
        sampler.refresh()
        assert sampler.wait() is sampler.report
        assert sampler.staleness.refreshes == 0
    assert same(on.state_dict(), off.state_dict())


def test_a_failure_is_told_at_the_next_refresh_and_the_last_table_stays(g: Any) -> None:
    sampler = Held(g)
    sampler.refresh()
    model, random = sampler.model, sampler.relation().random.get_state()
    report = sampler.report
    before = [field.clone() for field in sampler.table.current()]
    sampler.error = ValueError("no more room")
    sampler.refresh()
    state = sampler.state_dict()  # saving is possible all the same
    assert int(state["table"]["counter"]) == 1
    assert sampler.staleness.refreshes == 1
    assert sampler(g, torch.arange(5))[0].numel() == 10
    with pytest.raises(RuntimeError, match=r"failed \(ValueError: no more room\).*of version 1,"):
        sampler.refresh()
    assert sampler.version == 1
    assert sampler.model is model
    assert sampler.report is report
    assert sampler.staleness.refreshes == 0  # it has been told
    assert torch.equal(random, sampler.relation().random.get_state())
    assert all(map(torch.equal, before, sampler.table.current()))
    sampler.error = None
    sampler.refresh()
    assert sampler.wait().version == 2  # type: ignore[union-attr]
    assert sampler.staleness.refreshes == 0


def test_a_table_half_written_is_not_read(g: Any) -> None:
    sampler = DMNSSampler(g, embeddings, 2, **SMALL)
    sampler.refresh()
    sampler.refresh()
    table = sampler.table
    src, place = table.spread(torch.arange(NODES))
    older = table.hidden().ids[place, 0].long()
    live = torch.zeros(NODES, NODES, dtype=torch.bool)
    live[src.unsqueeze(1), table.current().ids[place].long()] = True
    gone = ~live[src, older]
    assert gone.any()
    assert table.holds(src, older).all()
    table.write_at(place[:3], Candidates(*(field[place[:3]] for field in table.current())))
    assert not table.holds(src, older)[gone].any()
    table.publish()
    assert not int(table.unfinished)


def test_a_state_saved_meanwhile_goes_on_as_the_run_itself(g: Any) -> None:
    one = DMNSSampler(g, embeddings, 2, resources=BACKGROUND, **SMALL)
    other = DMNSSampler(g, embeddings, 2, resources=BACKGROUND, **SMALL)
    one.refresh()
    one.refresh(embeddings(1))
    other.refresh()
    other.load_state_dict(one.state_dict())
    assert other.version == 2
    for sampler in (one, other):
        sampler.refresh(embeddings(2))
        sampler.wait()
    assert same(one.state_dict(), other.state_dict())


def test_a_graph_that_grows_waits_for_the_refresh(g: Any) -> None:
    sampler = DMNSSampler(g, embeddings, 2, resources=BACKGROUND, **SMALL)
    sampler.refresh()
    sampler.refresh()
    sampler.update_graph(dgl.add_nodes(g, 5))
    assert sampler.version == 2
    assert sampler.table.queries == NODES + 5
    sampler.refresh(torch.randn(NODES + 5, 8))
    assert sampler.wait().version == 3  # type: ignore[union-attr]


def test_latents_are_drawn_beside_a_refresh(g: Any) -> None:
    sampler = Held(g)
    sampler.refresh()
    sampler.gate.clear()
    sampler.refresh()
    assert sampler.generate(embeddings()[:3]).shape == (4, 3, 8)
    sampler.gate.set()
    sampler.wait()


# ---- the end of the process -------------------------------------------------------------------

SCRIPT = """
import sys, time, dgl, torch
from dgl_dmns import DMNSSampler, Resources
g = dgl.rand_graph({nodes}, {nodes} * 8)
h = torch.randn({nodes}, 16)
resources = Resources(background=True, table_folder=sys.argv[1], chunk_bytes=1 << 20)
sampler = DMNSSampler(g, lambda: h, 5, warmup_steps=2, fit_steps=1, resources=resources)
sampler.refresh(h)
sampler.refresh(h)
time.sleep(0.1)
assert sampler.staleness.refreshes == 1, "too small a graph for this test"
print("under way", flush=True)
{end}
"""


def start(folder: Path, end: str, nodes: int = 20_000) -> subprocess.Popen[str]:
    code = SCRIPT.format(nodes=nodes, end=end)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
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
