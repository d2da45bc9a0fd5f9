"""Shared memory: nothing is taken without a look, and files stand in where there is none."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from shared import KINDS, graph, make

from dgl_dmns import Resources
from dgl_dmns.core import CandidateTable, KnownEdges, sharing
from dgl_dmns.samplers import misuse

PACKAGE = Path(sharing.__file__).parents[1]


def room(monkeypatch: Any, size: float) -> None:
    monkeypatch.setattr(sharing, "free_in", lambda _: size)


def unchecked(*_: Any) -> None:
    raise AssertionError("shared without a look")


@pytest.mark.parametrize("name", KINDS)
def test_no_sampler_takes_what_is_not_there(name: str, monkeypatch: Any) -> None:
    room(monkeypatch, 100.0)
    monkeypatch.setattr(torch.Tensor, "share_memory_", unchecked)
    with pytest.raises(MemoryError, match=r"known edges take \d+ bytes.* 100 bytes free.*shm-size"):
        make(name, graph())


def test_what_comes_after_the_known_edges_is_looked_at_too(monkeypatch: Any) -> None:
    chains = make("mcns", graph())
    monkeypatch.setattr(KnownEdges, "share", lambda *_, **__: None)
    room(monkeypatch, 100.0)
    monkeypatch.setattr(torch.Tensor, "share_memory_", unchecked)
    with pytest.raises(MemoryError, match="weights of nodes take 320 bytes"):
        make("popularity", graph())
    with pytest.raises(MemoryError, match=r"a table of \d+ groups takes \d+ bytes.*table_folder"):
        make("dynamic", graph())
    with pytest.raises(MemoryError, match="embeddings beside the chains take 1920 bytes"):
        chains.refresh()
    monkeypatch.setattr(CandidateTable, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(misuse, "share", lambda tensor, *_: tensor)
    with pytest.raises(MemoryError, match="depth-first lists take"):
        make("mcns", graph())


def test_all_goes_through_one_place() -> None:
    shares = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if "share_memory_(" in file.read_text(encoding="utf-8")
    }
    assert shares == {"core/sharing.py", "core/table.py"}


@pytest.mark.parametrize("kind", ["dmns", "mcns"])
def test_a_folder_takes_what_has_no_room(kind: Any, tmp_path: Path, monkeypatch: Any) -> None:
    plain = make(kind, graph())
    look = sharing.check_shared_room

    def only_small(needed: int, what: str, advice: str) -> None:
        if "known edges" in what or "lists" in what:
            raise MemoryError(what)
        look(needed, what, advice)

    monkeypatch.setattr(sharing, "check_shared_room", only_small)
    sampler = make(kind, graph(), resources=Resources(table_folder=tmp_path))
    files = len(list(tmp_path.glob("dgl-dmns-edges-*")))
    assert files == (2 if kind == "dmns" else 4)
    edges = torch.arange(30)
    for one in (sampler, plain):
        one.refresh()
    for copied in (sampler, pickle.loads(pickle.dumps(sampler)), copy.deepcopy(sampler)):
        assert torch.equal(copied.known.indices, plain.known.indices)
        assert torch.equal(copied.known.bitmap.taken, plain.known.bitmap.taken)
        torch.manual_seed(3)
        if kind == "dmns":  # chains go on from draw to draw
            drawn = copied(graph(), edges)
            torch.manual_seed(3)
            assert torch.equal(drawn[1], plain(graph(), edges)[1])
    del sampler, one, copied
    gc.collect()
    assert not list(tmp_path.iterdir())
