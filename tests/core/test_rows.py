"""Rows by need: whose turn it is, even shortening, and the uniform share drawn in the call."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from shared import assert_drawn_from
from small import rng
from torch import Tensor

from dgl_dmns.core import (
    MOST_PASSES,
    NO_LEVEL,
    Candidates,
    CandidateTable,
    KnownEdges,
    PoolSettings,
    RowDraws,
    Turns,
    row_sizes,
)

NODES = 40
HARD = 1000  # ids from here on stand in the table


ENDS = torch.randint(0, NODES, (2, 200), generator=rng(1))
KNOWN = KnownEdges(ENDS[0], ENDS[1], NODES)
DST = KNOWN.indices.long()
SRC = torch.arange(NODES).repeat_interleave(KNOWN.degrees())
EDGES = DST.numel()


def made(passes: int = 1, k: int = 1, share: float = 0.0, most: int = 1 << 20) -> RowDraws:
    """Rows for so many passes, whose ids tell the place of their group."""
    table = CandidateTable(
        row_sizes(KNOWN.degrees() * passes, most), PoolSettings(uniform_share=share).hard(k)
    )
    ids = HARD + torch.arange(table.groups).unsqueeze(1).expand(-1, table.k)
    table.write_at(torch.arange(table.groups), Candidates(ids, ids % 3))
    table.publish()
    return RowDraws(KNOWN, table, Turns(KNOWN, passes), k, share)


def passed(readers: list[RowDraws], seed: int) -> Tensor:
    """The place that each edge gets in a pass of shuffled batches, dealt to readers in turn."""
    place = torch.full((EDGES,), -1)
    for number, batch in enumerate(torch.randperm(EDGES, generator=rng(seed)).split(17)):
        drawn = readers[number % len(readers)].draw_ids(SRC[batch], DST[batch])
        place[batch] = drawn[:, 0] - HARD
    return place


def test_each_group_is_handed_out_once_before_any_twice() -> None:
    rows = made(passes=3)
    needed = KNOWN.degrees() > 0  # rows without edges have a group all the same
    owner = torch.arange(NODES).repeat_interleave(rows.table.sizes())
    places = torch.cat([passed([rows], seed) for seed in range(3)])
    times = torch.bincount(places, minlength=rows.table.groups)
    assert torch.equal(times, needed[owner].long())
    assert torch.equal(owner[places], SRC.repeat(3))
    assert torch.equal(passed([rows], 3), places[:EDGES])  # and over again


def test_workers_and_the_order_of_batches_change_nothing() -> None:
    alone, shared = made(passes=2), made(passes=2)
    assert shared.turns is not None
    shared.turns.share("the turns of edges take")
    assert shared.turns.asked.is_shared()
    workers = [shared, dataclasses.replace(shared)]
    for seed in range(3):
        assert torch.equal(passed([alone], seed), passed(workers, 10 + seed))


def test_shortened_rows_are_handed_out_evenly() -> None:
    rows = made(passes=4, most=2 * NODES)
    assert rows.table.groups <= 2 * NODES < 4 * EDGES
    places = torch.cat([passed([rows], seed) for seed in range(4)])
    times = torch.bincount(places, minlength=rows.table.groups)
    for query in (KNOWN.degrees() > 0).nonzero().flatten():
        mine = times[rows.table.spread(query.view(1))[1]]
        assert int(mine.max() - mine.min()) <= 1


def test_other_pairs_get_a_random_group_and_take_no_turn() -> None:
    rows = made(passes=2)
    query = int(KNOWN.degrees().argmax())
    other = KNOWN.uniform(torch.full((4000,), query), 1, generator=rng(2)).flatten()
    places = rows.table.spread(torch.tensor([query]))[1]
    weight = torch.zeros(rows.table.groups)
    weight[places] = 1
    for dst in (other, None):
        drawn = rows.draw_ids(torch.full((4000,), query), dst, generator=rng(3)) - HARD
        assert_drawn_from(drawn, weight)
    assert rows.turns is not None
    assert not rows.turns.asked[:-1].any()


def test_passes_are_counted_in_a_byte() -> None:
    turns = Turns(KnownEdges(torch.tensor([0]), torch.tensor([1]), 2), 1000)
    assert turns.passes == MOST_PASSES
    pair = torch.tensor([0]), torch.tensor([1])
    taken = [int(turns.take(*pair)[0]) for _ in range(MOST_PASSES + 2)]
    assert taken == [*range(MOST_PASSES), 0, 1]
    assert Turns(KNOWN).asked.numel() == 0  # one pass: nothing to count


@pytest.mark.parametrize("k", [1, 5])
def test_the_uniform_share_holds_on_average(k: int) -> None:
    rows = made(k=k, share=0.5)
    src, dst = SRC.repeat(30), DST.repeat(30)
    drawn = rows.draw(src, dst, generator=rng(4))
    assert torch.equal(rows.draw_ids(src, dst, generator=rng(4)), drawn.ids)
    hard = drawn.ids >= HARD
    assert torch.equal(drawn.level == NO_LEVEL, ~hard)
    assert torch.equal(drawn.level[hard].long(), drawn.ids[hard] % 3)
    count = hard.sum(1)
    assert torch.equal(hard, torch.arange(k) < count.unsqueeze(1))  # they come first
    assert count.unique().tolist() == [k // 2, k // 2 + 1]
    assert abs(int(count.sum()) - len(src) * k / 2) < 4  # evenly, not by chance
    places = torch.randperm(len(src), generator=rng(6))
    assert torch.equal(rows.chosen(places), hard[places])
    one = rows.draw_one(src, generator=rng(5)) >= HARD
    assert float(one.double().mean()) == pytest.approx(0.5, abs=2.5 / len(src) ** 0.5)


def test_uniform_ones_are_fresh_in_each_call_and_filtered() -> None:
    rows, generator = made(k=4, share=0.5), rng(6)
    first, second = (rows.draw_ids(SRC, DST, generator=generator) for _ in range(2))
    assert torch.equal(first[:, :2], second[:, :2])
    assert bool((first[:, :2] >= HARD).all())
    assert float((first[:, 2:] != second[:, 2:]).double().mean()) > 0.9
    query = torch.full((2000,), int(KNOWN.degrees().argmax()))
    weight = (~KNOWN.contains(query[:NODES], torch.arange(NODES))).float()
    assert_drawn_from(rows.draw_ids(query, generator=generator)[:, 2:], weight)


def test_a_look_takes_no_turn_and_counts_as_no_draw() -> None:
    rows = made(passes=2, k=3, share=0.4)
    query = torch.arange(NODES)
    found = rows.look(query, rng(7))
    assert found.ids.shape == found.level.shape == (NODES, 24)
    places = rows.first_places(query)
    assert torch.equal(found.ids[:, ::3], HARD + places)  # 1.8 of 3 are hard: always the first
    size = rows.table.sizes().clamp(max=8)
    assert [row.unique().numel() for row in places] == size.tolist()
    assert rows.table.handed_out(1) == 0
    assert rows.turns is not None
    assert not rows.turns.asked[:-1].any()


def test_row_sizes_are_what_is_needed_or_evenly_less() -> None:
    need = torch.cat([torch.zeros(5), torch.randint(0, 300, (200,), generator=rng(8))]).long()
    enough = int(need.clamp(min=1).sum())
    assert torch.equal(row_sizes(need, enough), need.clamp(min=1))
    for most in (205, 300, 1000, enough - 1):
        size = row_sizes(need, most)
        assert int(size.min()) == 1
        assert int(size.sum()) <= most
        extra = (need - 1).clamp(min=0).double()
        even = extra * (most - len(need)) / extra.sum()
        assert float((even - (size - 1)).abs().max()) < 1 + 1e-9
