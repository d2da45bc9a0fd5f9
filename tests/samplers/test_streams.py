"""Streams of draws by rank and process; real processes: test_ddp and test_distributed."""

from __future__ import annotations

import pickle
import sys
from multiprocessing import current_process
from types import SimpleNamespace

import pytest
import torch

from dgl_dmns.samplers import streams
from dgl_dmns.samplers.streams import Stream


def draw(stream: Stream) -> list[int]:
    return torch.randint(0, 1 << 30, (8,), generator=stream.generator()).tolist()


def test_one_process_draws_from_the_global_generator() -> None:
    assert Stream().generator() is None
    assert pickle.loads(pickle.dumps(Stream())).generator() is None


def test_ranks_above_zero_draw_their_own_and_follow_the_global_seed() -> None:
    results = []
    for rank in (0, 1, 2):
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            results.append(draw(Stream(rank=rank)))
    assert results[::3] == results[1::3]
    assert len({tuple(one) for one in results}) == 6
    stream = Stream(rank=1)
    assert draw(stream) != draw(stream)


def test_a_copy_keeps_the_rank() -> None:
    """A spawned worker knows nothing of ranks."""
    results = []
    for stream in (Stream(rank=2), pickle.loads(pickle.dumps(Stream(rank=2)))):
        torch.manual_seed(3)
        results.append(draw(stream))
    assert results[0] == results[1]


def test_sampler_processes_draw_by_the_seed_of_their_trainer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(3)
    data = pickle.dumps(Stream())
    names = iter(["SpawnProcess-1", "SpawnProcess-1", "SpawnProcess-2"])
    results = []
    for seed in (5, 6, 7):  # theirs are any
        torch.manual_seed(seed)
        name = next(names)
        monkeypatch.setattr(streams, "_sampler_process", lambda name=name: name)
        stream = pickle.loads(data)
        results.append((draw(stream), draw(stream)))
    assert results[0] == results[1]
    assert results[0][0] != results[0][1]
    assert results[0] != results[2]


def test_a_sampler_process_is_known_by_its_role(monkeypatch: pytest.MonkeyPatch) -> None:
    for role, name in (("sampler", current_process().name), ("default", "")):
        roles = SimpleNamespace(get_role=lambda role=role: role)
        monkeypatch.setitem(sys.modules, "dgl.distributed.role", roles)
        assert streams._sampler_process() == name
    monkeypatch.delitem(sys.modules, "dgl.distributed.role")  # not imported: as of DGL 2.4
    assert streams._sampler_process() == ""
