"""A training that loses its workers: what it counts, and what is judged."""

import csv
import threading
from dataclasses import replace

import pytest
import torch

from benchmarks.soak.__main__ import main
from benchmarks.soak.report import checks, growth
from benchmarks.soak.run import Outcome, Sample, Setting, soak, table_of
from dgl_dmns.core import Candidates, CandidateTable

SHORT = {"kill_every": 1.0, "refresh_every": 8, "nodes": 120, "batch_size": 32, "pause": 0.01}


@pytest.mark.slow  # when a kill lands depends on the machine
@pytest.mark.parametrize("minutes", [0.03, 1.0])
def test_a_short_one_with_killed_workers(minutes, tmp_path, capsys):
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
    main([*words, f"--minutes={minutes}", "--out", str(tmp_path)])
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["main_mb"]) > 50
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    for line in ("edges lost | 0 | 0 | yes", "edges trained on twice | 0 | 0 | yes"):
        assert line in text
    assert "left behind | nothing | nothing | yes" in text
    if minutes == 1.0:  # however slow the machine is
        assert int(rows[-1]["step"]) > 8
        assert "loaders ended by a kill | 0" not in text
    assert "results.csv" in capsys.readouterr().out
    assert str(tmp_path) not in text


def test_an_epoch_that_the_end_cuts_short_loses_nothing(monkeypatch):
    def ends(self, _):
        self.sent, self.setting = 1, replace(self.setting, minutes=0.0)
        raise RuntimeError("a worker is killed")

    monkeypatch.setattr("benchmarks.soak.run._Soak.step", ends)
    outcome = soak(Setting(minutes=1.0, **{**SHORT, "kill_every": 60.0}))
    assert len(outcome.kills) == 1
    assert (outcome.epochs, outcome.lost) == (0, 0)


def test_without_a_kill_errors_are_not_swallowed(monkeypatch):
    def fails(*_):
        raise RuntimeError("not the loader's")

    monkeypatch.setattr("benchmarks.soak.run._Soak.step", fails)
    with pytest.raises(RuntimeError, match="not the loader's"):
        soak(Setting(minutes=1, **{**SHORT, "kill_every": 60.0}))
    # The one that kills is gone, too: it would take the children of later tests.
    assert "killer" not in [thread.name for thread in threading.enumerate()]


def test_the_age_of_negatives():
    table = CandidateTable(torch.tensor([1, 2, 1]), 1)
    rows = torch.arange(3)

    def publish(node):
        ids = torch.full((3, 2, 1), node)
        table.write(rows, Candidates(ids, ids))
        table.publish()

    publish(7)
    publish(8)
    assert table_of(table, rows, torch.tensor([8, 8, 8])) == 2
    assert table_of(table, rows, torch.tensor([7, 7, 7])) == 1
    assert table_of(table, rows, torch.tensor([7, 8, 7])) is None


def test_what_is_judged():
    setting = Setting(refresh_every=10, workers=2)
    sample = {"step": 1, "workers_mb": 1.0, "shared": 0, "files": 9, "children": 2, "loss": 1.0}
    fine = Outcome(kills=[(1.0, "RuntimeError: x")], age={14: 1})
    fine.samples = [Sample(seconds=float(i), main_mb=100.0, **sample) for i in range(30)]
    assert all(ok for *_, ok in checks(setting, fine))
    spoils = {
        "kills": [],
        "lost": 1,
        "repeated": 1,
        "age": {15: 1},
        "unknown": 1,
        "left": ["torch_1_2_3"],
        "samples": [Sample(seconds=float(i), main_mb=100.0 + i, **sample) for i in range(30)],
    }
    for name, value in spoils.items():
        spoilt = Outcome(**{**vars(fine), name: value})
        assert sum(not ok for *_, ok in checks(setting, spoilt)) == 1, name
    assert growth([5.0] * 10 + [10.0] * 10) == pytest.approx(100)
