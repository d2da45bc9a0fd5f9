"""What trainers tell each other after each piece of work, with a stand-in for the other one."""

from __future__ import annotations

from typing import Any

import dgl
import pytest
from torch import distributed

from dgl_dmns.samplers.trainers import Trainers


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """DGL counts trainers once it is initialised."""
    monkeypatch.setattr(dgl.distributed.role, "get_num_trainers", lambda: 1)


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The first of two trainers; ``told`` is what the other one says next."""
    made = Trainers()
    assert (made.rank, made.count) == (0, 1)
    made.count = 2
    told: list[Any] = []

    def gather(found: list[Any], own: Any, group: Any) -> None:
        if not told:
            raise RuntimeError("Connection closed by peer\nat some place")
        found[:] = [own, told.pop(0)]

    monkeypatch.setattr(distributed, "all_gather_object", gather)
    return made, told


def work() -> str:
    return "own"


def breaks() -> str:
    raise MemoryError("no room")


def test_results_come_in_order_of_rank(trainers: Any) -> None:
    first, told = trainers
    told += [(1, None, "other"), (2, None, "not of interest")]
    assert first.each(work) == ["own", "other"]
    assert first.agree(work) == "own"


def test_an_error_of_one_is_one_of_all(trainers: Any) -> None:
    first, told = trainers
    told.append((1, "ValueError: bad rows", None))
    with pytest.raises(RuntimeError) as of_another:
        first.each(work)
    assert str(of_another.value).startswith(
        "refresh: 1 of 2 trainers could not make it, trainer 1 for one (ValueError: bad rows); no "
        "trainer has changed its tables"
    )
    told.append((2, None, "other"))
    with pytest.raises(RuntimeError, match=r"trainer 0 for one \(MemoryError: no room\)") as own:
        first.agree(breaks)
    assert isinstance(own.value.__cause__, MemoryError)


def test_the_same_error_on_all_is_that_error(trainers: Any) -> None:
    first, told = trainers
    told.append((1, "MemoryError: no room", None))
    with pytest.raises(MemoryError, match="no room"):
        first.each(breaks)


def test_who_is_at_another_piece_of_work_is_told(trainers: Any) -> None:
    first, told = trainers
    told.append((3, None, "other"))
    with pytest.raises(RuntimeError, match=r"come apart \(pieces of work so far: \[1, 3\]\)"):
        first.each(work)


def test_a_trainer_that_is_gone(trainers: Any) -> None:
    first, _ = trainers
    with pytest.raises(
        RuntimeError, match=r"does not answer \(RuntimeError: Connection closed by peer\); end"
    ):
        first.each(work)


def test_one_trainer_alone_has_its_own_errors() -> None:
    with pytest.raises(MemoryError, match="no room"):
        Trainers().each(breaks)


def test_several_trainers_have_to_be_able_to_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dgl.distributed.role, "get_num_trainers", lambda: 4)
    with pytest.raises(RuntimeError, match="g: 4 trainers share this graph.*init_process_group"):
        Trainers()
