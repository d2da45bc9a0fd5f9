"""The candidate table: look-ups, two buffers, shared memory, and a writer that races readers."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from shared import assert_drawn_from
from small import rng
from torch import Tensor

from dgl_dmns.core import MOST_NODES, NO_LEVEL, Candidates, CandidateTable

SIZES = torch.tensor([3, 1, 4, 2, 3])  # groups of the rows of most tables here


def numbered(offset: int = 0) -> Candidates:
    """Groups whose ids tell their place; the level follows from the id."""
    ids = torch.arange(2 * int(SIZES.sum())).view(-1, 2) + offset
    return Candidates(ids, ids % 7)


def filled(offset: int = 0) -> CandidateTable:
    table = CandidateTable(SIZES, 2)
    table.write_at(torch.arange(table.groups), numbered(offset))
    table.publish()
    return table


def constant(table: CandidateTable, rows: Tensor, value: int) -> Candidates:
    """Rows of one number."""
    block = torch.full((len(rows), int(table.sizes(rows).max()), table.k), value)
    return Candidates(block, block % 15)


# Rows and look-ups.


def test_rows_lie_one_after_the_other() -> None:
    table = filled()
    assert (table.queries, table.groups, table.k) == (5, 13, 2)
    assert torch.equal(table.sizes(), SIZES)
    assert table.sizes(torch.tensor([[2, 1], [0, 2]])).tolist() == [[4, 1], [3, 4]]
    owner, place = table.spread(torch.tensor([3, 1, 2, 3]))
    assert owner.tolist() == [0, 0, 1, 2, 2, 2, 2, 3, 3]
    assert place.tolist() == [8, 9, 3, 4, 5, 6, 7, 8, 9]


def test_a_look_up_gives_whole_groups() -> None:
    table = filled(offset=5)
    place = torch.tensor([12, 0, 3, 3])
    found = table.look_up(place)
    assert (found.ids.dtype, found.level.dtype) == (torch.int64, torch.uint8)
    assert found.ids.tolist() == [[29, 30], [5, 6], [11, 12], [11, 12]]
    assert torch.equal(found.level.long(), found.ids % 7)
    assert torch.equal(table.ids_at(place), found.ids)
    none = torch.empty(0, dtype=torch.int64)
    assert table.look_up(none).ids.shape == table.ids_at(none).shape == (0, 2)


def test_ids_and_levels_of_all_sizes_share_a_cell() -> None:
    ids = torch.tensor([0, 1, MOST_NODES - 1]).repeat_interleave(16).view(-1, 2)
    level = torch.tensor([*range(15), NO_LEVEL]).repeat(3).view(-1, 2)
    table = CandidateTable(torch.tensor([len(ids)]), 2)
    table.write_at(torch.arange(len(ids)), Candidates(ids, level.byte()))
    table.publish()
    for found in (table.look_up(torch.arange(len(ids))), table.current()):
        assert torch.equal(found.ids.long(), ids)
        assert torch.equal(found.level.long(), level)
    assert torch.equal(table.ids_at(torch.arange(len(ids))), ids)
    other = CandidateTable(torch.tensor([len(ids)]), 2)
    other.restore(table.fields())
    assert torch.equal(other.cells, table.cells)
    assert (other.version, table.fields()["level"].dtype) == (1, torch.uint8)


def test_random_places_are_uniform_in_each_row_and_independent() -> None:
    table = filled()
    rows = torch.tensor([2, 0]).repeat(8000)
    place = table.random_places(rows, rng(2))
    assert torch.equal(place, table.random_places(rows, rng(2)))
    pairs = (place.view(-1, 2) - torch.tensor([4, 0])) @ torch.tensor([[3], [1]])
    assert_drawn_from(pairs, torch.ones(4 * 3))
    assert table.random_places(torch.tensor([[1, 1], [1, 1]]), None).tolist() == [[3, 3], [3, 3]]


def test_handed_out_groups_are_counted_by_version() -> None:
    table = filled()
    place = torch.arange(table.groups)
    table.look_up(place)
    table.ids_at(place.repeat(2))
    table.look_up(place, count=False)
    assert table.handed_out(1) == 3
    table.publish()
    assert (table.handed_out(1), table.handed_out(2)) == (3, 0)


def test_rows_may_be_written_in_any_order_and_in_parts() -> None:
    table, every = CandidateTable(SIZES, 2), numbered()
    for rows in (torch.tensor([3, 0]), torch.tensor([4, 1, 2])):
        block = torch.full((len(rows), 5, 2), -1)  # more groups than the longest row has
        owner, place = table.spread(rows)
        block[owner, place - table.start[rows][owner]] = every.ids[place]
        table.write(rows, Candidates(block, block % 7))
    table.publish()
    assert torch.equal(table.current().ids, every.ids.int())
    assert torch.equal(table.current().level.long(), every.level)


def test_a_version_that_differs_in_some_rows_only() -> None:
    table = filled()
    table.keep()
    table.write(torch.tensor([2]), constant(table, torch.tensor([2]), 99))
    table.publish()
    expected = numbered().ids.int()
    expected[4:8] = 99
    assert torch.equal(table.current().ids, expected)


# Two buffers.


def test_a_write_shows_only_once_it_is_published() -> None:
    table = filled()
    place = torch.arange(table.groups)
    assert not int(table.unfinished)
    table.write_at(place, numbered(offset=1000))
    assert (table.version, int(table.unfinished)) == (1, 1)
    assert torch.equal(table.look_up(place).ids, numbered().ids)
    table.publish()
    assert (table.version, int(table.unfinished)) == (2, 0)
    assert torch.equal(table.look_up(place).ids, numbered(offset=1000).ids)
    table.withdraw(1)
    assert (table.version, int(table.unfinished)) == (1, 1)
    assert torch.equal(table.ids_at(place), numbered().ids)


# Pairs that were drawn.


def test_pairs_of_the_live_version_and_of_the_one_before_are_held() -> None:
    table = CandidateTable(torch.tensor([2, 1]), 1)
    src, dst = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([1, 2, 3, 4, 3, 4])
    expected: list[list[bool]] = []
    for version in range(3):
        ids = torch.tensor([[1], [2], [3]]) + 10 * (version == 2)
        table.write_at(torch.arange(3), Candidates(ids, ids))
        if version == 1:  # what is unfinished may be overwritten, so it counts for nothing
            ids[0] = 4
            table.write_at(torch.arange(3), Candidates(ids, ids))
            assert table.holds(src, dst).tolist() == expected[-1]
        table.publish()
        expected.append(table.holds(src, dst).tolist())
    assert expected[0] == [True, True, False, False, True, False]
    assert expected[1] == [True, True, False, True, True, False]
    assert expected[2] == [False, True, False, True, True, False]  # 1 stood there too long ago


# Sharing and saving.


def test_all_tensors_are_buffers_in_shared_memory() -> None:
    table = filled()
    assert set(table.state_dict()) == {"start", "cells", "counter", "unfinished"}
    assert all(buffer.is_shared() for buffer in table.buffers())


def test_state_goes_through_a_file() -> None:
    table = filled()
    place = torch.arange(table.groups)
    table.write_at(place, numbered(offset=50))
    table.publish()
    file = io.BytesIO()
    torch.save(table.state_dict(), file)
    file.seek(0)
    other = CandidateTable(SIZES, 2)
    assert other.version == 0
    other.load_state_dict(torch.load(file, weights_only=True))
    assert repr(other) == "CandidateTable(queries=5, groups=13, k=2, version=2)"
    assert all(buffer.is_shared() for buffer in other.buffers())
    for mine, theirs in zip(table.look_up(place), other.look_up(place)):
        assert torch.equal(mine, theirs)
    assert bool(other.holds(torch.tensor([0]), torch.tensor([3])))  # of the version before
    copied = copy.deepcopy(table)
    table.publish()
    assert (table.version, copied.version) == (3, 2)


@pytest.mark.parametrize(("sizes", "k"), [([], 1), ([2, 0], 1), ([1], 0)])
def test_sizes(sizes: list[int], k: int) -> None:
    message = rf"sizes, k: .* got {len(sizes)} rows, the smallest of \[.*\], and k = {k}"
    with pytest.raises(ValueError, match=message):
        CandidateTable(torch.tensor(sizes, dtype=torch.int64), k)


@pytest.mark.parametrize("call", ["look_up", "ids_at"])
def test_a_look_up_that_two_refreshes_overtake_is_repeated(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = CandidateTable(torch.ones(6).long(), 2)
    rows = torch.arange(6)

    def write(value: int, some: Tensor) -> None:
        table.write(some, constant(table, some, value))

    write(1, rows)
    table.publish()
    own, calls = Tensor.index_select, []

    def overtaken(self: Tensor, *arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 1:  # between the look at the version and the one into its buffer
            write(2, rows)
            table.publish()
            write(3, rows[:3])  # into the buffer that is about to be read
        return own(self, *arguments)

    monkeypatch.setattr(Tensor, "index_select", overtaken)
    found = getattr(table, call)(rows)
    ids = found.ids if call == "look_up" else found
    assert torch.equal(ids, torch.full((6, 2), 2))
