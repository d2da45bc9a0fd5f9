"""Shared memory: nothing is taken without a look, and files stand in where there is none."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dgl
import pytest
import torch

from dgl_dmns import (
    AdversarialSampler,
    DMNSSampler,
    DynamicSampler,
    InBatchSampler,
    MCNSSampler,
    PopularitySampler,
    Resources,
    SelfAdversarialSampler,
    UniformSampler,
)
from dgl_dmns.core import CandidateTable, KnownEdges, sharing
from dgl_dmns.samplers import misuse

PACKAGE = Path(sharing.__file__).parents[1]
H = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
FOLLOWING: tuple[Any, ...] = (
    DMNSSampler,
    DynamicSampler,
    SelfAdversarialSampler,
    AdversarialSampler,
    MCNSSampler,
)


def graph() -> Any:
    ends = torch.randint(0, 50, (2, 200), generator=torch.Generator().manual_seed(1))
    return dgl.graph(tuple(ends), num_nodes=50)


MADE: dict[str, Callable[[], Any]] = {
    **{
        one.__name__: lambda one=one: one(graph(), 2)
        for one in (UniformSampler, PopularitySampler, InBatchSampler)
    },
    **{one.__name__: lambda one=one: one(graph(), lambda: H, 2) for one in FOLLOWING},
}


def room(monkeypatch: Any, size: float) -> None:
    monkeypatch.setattr(sharing, "free_in", lambda _: size)


def unchecked(*_: Any) -> None:
    raise AssertionError("shared without a look")


@pytest.mark.parametrize("name", MADE)
def test_no_sampler_takes_what_is_not_there(name: str, monkeypatch: Any) -> None:
    room(monkeypatch, 100.0)
    monkeypatch.setattr(torch.Tensor, "share_memory_", unchecked)
    with pytest.raises(MemoryError, match=r"known edges take \d+ bytes.* 100 bytes free.*shm-size"):
        MADE[name]()


def test_what_comes_after_the_known_edges_is_looked_at_too(monkeypatch: Any) -> None:
    chains = MCNSSampler(graph(), lambda: H, 2)
    monkeypatch.setattr(KnownEdges, "share", lambda *_, **__: None)
    room(monkeypatch, 100.0)
    monkeypatch.setattr(torch.Tensor, "share_memory_", unchecked)
    with pytest.raises(MemoryError, match="weights of nodes take 400 bytes"):
        PopularitySampler(graph(), 2)
    with pytest.raises(MemoryError, match="a table of 192 groups takes 3072 bytes.*table_folder"):
        DynamicSampler(graph(), lambda: H, 2)
    with pytest.raises(MemoryError, match="embeddings beside the chains take 1600 bytes"):
        chains.refresh()
    monkeypatch.setattr(CandidateTable, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(misuse, "share", lambda tensor, *_: tensor)
    with pytest.raises(MemoryError, match="depth-first lists take"):
        MCNSSampler(graph(), lambda: H, 2)


def test_all_goes_through_one_place() -> None:
    shares = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if "share_memory_(" in file.read_text(encoding="utf-8")
    }
    assert shares == {"core/sharing.py", "core/table.py"}


@pytest.mark.parametrize("kind", [DMNSSampler, MCNSSampler])
def test_a_folder_takes_what_has_no_room(kind: Any, tmp_path: Path, monkeypatch: Any) -> None:
    plain = kind(graph(), lambda: H, 2)
    look = sharing.check_shared_room

    def only_small(needed: int, what: str, advice: str) -> None:
        if "known edges" in what or "lists" in what:
            raise MemoryError(what)
        look(needed, what, advice)

    monkeypatch.setattr(sharing, "check_shared_room", only_small)
    sampler = kind(graph(), lambda: H, 2, resources=Resources(table_folder=tmp_path))
    files = len(list(tmp_path.glob("dgl-dmns-edges-*")))
    assert files == (2 if kind is DMNSSampler else 4)
    edges = torch.arange(30)
    for one in (sampler, plain):
        one.refresh()
    for copied in (sampler, pickle.loads(pickle.dumps(sampler)), copy.deepcopy(sampler)):
        assert torch.equal(copied.known.indices, plain.known.indices)
        assert torch.equal(copied.known.bitmap.taken, plain.known.bitmap.taken)
        torch.manual_seed(3)
        if kind is DMNSSampler:  # chains go on from draw to draw
            drawn = copied(graph(), edges)
            torch.manual_seed(3)
            assert torch.equal(drawn[1], plain(graph(), edges)[1])
    del sampler, one, copied
    gc.collect()
    assert not list(tmp_path.iterdir())
