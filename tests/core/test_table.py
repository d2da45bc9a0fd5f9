"""The candidate table: look-ups, two buffers, shared memory, and a writer that races readers."""

from __future__ import annotations

import copy
import io
import math
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from scipy.stats import chisquare
from torch import Tensor

from dgl_dmns.core import NO_LEVEL, Candidates, CandidateTable


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(queries: int, groups: int, k: int, offset: int = 0) -> Candidates:
    """Candidates whose id tells their place; log ratio and level follow from the id."""
    ids = torch.arange(queries * groups * k).view(queries, groups, k) + offset
    return Candidates(ids, ids / 8, ids % 7)


def filled(queries: int = 5, groups: int = 3, k: int = 2, offset: int = 0) -> CandidateTable:
    table = CandidateTable(queries, groups, k)
    table.write(torch.arange(queries), numbered(queries, groups, k, offset))
    table.publish()
    return table


# Look-ups.


def test_a_draw_is_one_whole_group_of_the_row() -> None:
    table = filled(5, 3, 2)
    rows = torch.tensor([4, 0, 0, 2]).repeat(50)
    drawn = table.draw(rows, generator=rng(1))
    assert drawn.ids.shape == drawn.log_ratio.shape == drawn.level.shape == (200, 2)
    assert (drawn.ids.dtype, drawn.log_ratio.dtype, drawn.level.dtype) == (
        torch.int64,
        torch.float16,
        torch.uint8,
    )
    assert torch.equal(drawn.ids[:, 0] // 6, rows)
    assert bool((drawn.ids[:, 0] % 2 == 0).all())
    assert torch.equal(drawn.ids[:, 1], drawn.ids[:, 0] + 1)
    assert torch.equal(drawn.log_ratio.double(), drawn.ids / 8.0)
    assert torch.equal(drawn.level.long(), drawn.ids % 7)


def test_ids_alone_are_those_of_a_draw() -> None:
    table = filled(7, 4, 3, offset=5)
    rows = torch.tensor([6, 0, 3, 3]).repeat(20)
    ids = table.draw_ids(rows, generator=rng(3))
    assert ids.dtype == torch.int64
    assert torch.equal(ids, table.draw(rows, generator=rng(3)).ids)


def test_groups_are_equally_likely_and_independent() -> None:
    groups = 4
    table = filled(2, groups, 1)
    drawn = table.draw(torch.zeros(2, 8000, dtype=torch.int64).flatten(), generator=rng(2)).ids
    assert chisquare(torch.bincount(drawn.flatten(), minlength=groups)).pvalue > 1e-4
    pairs = drawn.view(-1, 2) @ torch.tensor([[groups], [1]])
    assert chisquare(torch.bincount(pairs.flatten(), minlength=groups**2)).pvalue > 1e-4


def test_one_seed_one_draw() -> None:
    table = filled()
    rows = torch.tensor([1, 1, 3])
    first, again = (table.draw(rows, generator=rng(3)) for _ in range(2))
    assert torch.equal(first.ids, again.ids)


def test_no_rows_no_draws() -> None:
    assert filled().draw(torch.empty(0, dtype=torch.int64)).ids.shape == (0, 2)


def test_rows_may_be_written_in_any_order_and_in_parts() -> None:
    table = CandidateTable(5, 3, 2)
    all_rows = numbered(5, 3, 2)
    for rows in (torch.tensor([3, 0]), torch.tensor([4, 1, 2])):
        table.write(rows, Candidates(*(part[rows] for part in all_rows)))
    table.publish()
    assert torch.equal(table.current().ids, all_rows.ids.int())


# Two buffers.


def test_a_write_shows_only_once_it_is_published() -> None:
    table = filled(offset=0)
    table.write(torch.arange(5), numbered(5, 3, 2, offset=1000))
    assert table.version == 1
    assert int(table.current().ids.max()) < 1000
    assert int(table.draw(torch.arange(5)).ids.max()) < 1000
    table.publish()
    assert table.version == 2
    assert int(table.current().ids.min()) >= 1000
    assert int(table.draw(torch.arange(5)).ids.min()) >= 1000


def test_versions_count_from_zero() -> None:
    table = CandidateTable(2, 1, 1)
    assert table.version == 0
    for expected in (1, 2, 3):
        table.publish()
        assert table.version == expected


def writer_of_versions(table: CandidateTable, draws: list[int], stop: threading.Event) -> None:
    """Refreshes without a pause until all readers have drawn often; 200 s at most.

    Each fills all rows with the version that it is about to publish.
    """
    queries, groups, k = table.shape
    rows = torch.arange(queries)
    deadline = time.monotonic() + 200
    while min(*draws, table.version) < 200 and not stop.is_set() and time.monotonic() < deadline:
        value = torch.full((queries, groups, k), table.version + 1)
        for part in rows.split(max(1, queries // 4)):
            table.write(part, Candidates(value[part], value[part] % 1000, value[part] % 200))
        table.publish()
    stop.set()


def test_a_draw_never_mixes_versions() -> None:
    """Readers in threads, as a prefetcher is one, against refreshes that follow each other."""
    table = CandidateTable(2000, 2, 8)
    ready = Candidates(*(torch.ones(2000, 2, 8, dtype=torch.int64) for _ in range(3)))
    table.write(torch.arange(2000), ready)
    table.publish()
    stop = threading.Event()
    mixed: list[list[int]] = []
    draws = [0, 0]

    def read(reader: int) -> None:
        rows = torch.randint(0, 2000, (4000,), generator=rng(reader))
        generator = rng(10 + reader)
        while not stop.is_set():
            before = table.version
            drawn = table.draw(rows, generator=generator)
            after = table.version
            draws[reader] += 1
            seen = drawn.ids.unique().tolist()
            value = seen[0]
            if (
                len(seen) != 1
                or not before <= value <= after
                or drawn.log_ratio.float().unique().tolist() != [value % 1000]
                or drawn.level.unique().tolist() != [value % 200]
            ):
                mixed.append([before, *seen, after])

    def read_or_stop(reader: int) -> None:
        try:
            read(reader)
        finally:
            stop.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # many changes of threads: within an operation or two
    try:
        with ThreadPoolExecutor() as pool:
            readers = [pool.submit(read_or_stop, i) for i in range(2)]
            writer_of_versions(table, draws, stop)
            for reader in readers:
                reader.result()
    finally:
        sys.setswitchinterval(interval)
    assert mixed == []
    assert min(draws) >= 200
    assert table.version >= 200


# Log ratios of pairs.


def test_log_ratio_of_the_current_version() -> None:
    table = CandidateTable(2, 2, 2)
    ids = torch.tensor([[[1, 2], [3, 4]], [[5, 6], [1, 2]]])
    table.write(torch.arange(2), Candidates(ids, ids / 4, torch.zeros_like(ids)))
    table.publish()
    found = table.find_log_ratio(torch.tensor([0, 0, 1, 1, 0]), torch.tensor([4, 1, 6, 1, 6]))
    assert found.dtype == torch.float32
    assert found.tolist() == [1.0, 0.25, 1.5, 0.25, 0.0]  # 6 is no candidate of query 0


def test_log_ratio_of_the_version_before_and_no_older_one() -> None:
    table = CandidateTable(1, 1, 2)
    for ids, ratios in (([1, 2], [0.5, 1.0]), ([3, 2], [1.5, 2.0]), ([4, 5], [2.5, 3.0])):
        table.write(
            torch.tensor([0]),
            Candidates(torch.tensor([[ids]]), torch.tensor([[ratios]]), torch.zeros(1, 1, 2)),
        )
        table.publish()
        if table.version == 2:
            src = torch.zeros(3, dtype=torch.int64)
            # 1 only stands in the version before; 2 in both, and the live one counts.
            assert table.find_log_ratio(src, torch.tensor([1, 2, 3])).tolist() == [0.5, 2.0, 1.5]
    src = torch.zeros(5, dtype=torch.int64)
    found = table.find_log_ratio(src, torch.tensor([1, 2, 3, 4, 5])).tolist()
    assert found == [0.0, 2.0, 1.5, 2.5, 3.0]


def test_log_ratios_beyond_half_precision_stay_finite() -> None:
    table = CandidateTable(1, 1, 3)
    ids = torch.tensor([[[1, 2, 3]]])
    ratio = torch.tensor([[[-1e6, 1e9, math.nan]]])  # a rule without ratios has NaN
    table.write(torch.tensor([0]), Candidates(ids, ratio, torch.zeros_like(ids)))
    table.publish()
    found = table.find_log_ratio(torch.zeros(3).long(), ids.flatten()).tolist()
    assert found[:2] == [-65504.0, 65504.0]
    assert math.isnan(found[2])


def test_log_ratio_before_the_first_refresh_is_that_of_uniform() -> None:
    table = CandidateTable(3, 2, 2)
    assert table.find_log_ratio(torch.arange(3), torch.tensor([0, 1, 0])).tolist() == [0.0] * 3


def test_log_ratios_of_all_that_was_drawn() -> None:
    table = filled(5, 3, 2)
    rows = torch.arange(5).repeat(20)
    drawn = table.draw(rows, generator=rng(4))
    found = table.find_log_ratio(rows.repeat_interleave(2), drawn.ids.flatten())
    assert torch.equal(found, drawn.log_ratio.float().flatten())


def test_log_ratios_keep_three_digits() -> None:
    values = torch.cat([torch.linspace(-12, 12, 4000), torch.tensor([0.0, 1e-3, -1e-3])])
    count = values.numel()
    table = CandidateTable(1, 1, count)
    ids = torch.arange(count).view(1, 1, -1)
    table.write(torch.tensor([0]), Candidates(ids, values.view(1, 1, -1), ids % 5))
    table.publish()
    found = table.find_log_ratio(torch.zeros(count, dtype=torch.int64), ids.flatten())
    assert torch.allclose(found, values, rtol=2**-11, atol=1e-7)


def test_a_rule_without_a_distribution_keeps_nan() -> None:
    table = CandidateTable(1, 1, 1)
    one = torch.ones(1, 1, 1)
    table.write(torch.tensor([0]), Candidates(one, one * torch.nan, one * NO_LEVEL))
    table.publish()
    assert bool(table.draw(torch.tensor([0])).log_ratio.isnan())
    assert int(table.draw(torch.tensor([0])).level) == NO_LEVEL


# Sharing and saving.


def test_all_tensors_are_buffers_in_shared_memory() -> None:
    table = filled()
    assert set(table.state_dict()) == {"ids", "log_ratio", "level", "counter", "unfinished"}
    assert all(buffer.is_shared() for buffer in table.buffers())


def _draw_in_a_process(table: CandidateTable, done: Tensor, results: Tensor) -> None:
    for step in range(2):
        while table.version <= step:
            time.sleep(0.002)
        results[step, 0] = table.version
        results[step, 1] = int(table.draw(torch.zeros(1, dtype=torch.int64)).ids)
        done.fill_(step + 1)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_another_process_sees_what_is_published_later(start: str) -> None:
    table = CandidateTable(1, 1, 1)
    one = torch.ones(1, 1, 1)
    done = torch.zeros(1, dtype=torch.int64).share_memory_()
    results = torch.zeros((2, 2), dtype=torch.int64).share_memory_()
    process = mp.get_context(start).Process(
        target=_draw_in_a_process, args=(table, done, results), daemon=True
    )
    process.start()
    deadline = time.monotonic() + 200
    for step in range(2):
        table.write(torch.tensor([0]), Candidates(one * (step + 40), one, one))
        table.publish()
        while int(done) <= step and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
    process.join(timeout=60)
    assert process.exitcode == 0
    assert results.tolist() == [[1, 40], [2, 41]]


def test_state_goes_through_a_file() -> None:
    table = filled()
    table.write(torch.arange(5), numbered(5, 3, 2, offset=50))
    table.publish()
    file = io.BytesIO()
    torch.save(table.state_dict(), file)
    file.seek(0)
    other = CandidateTable(5, 3, 2)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.version == 2
    assert all(buffer.is_shared() for buffer in other.buffers())
    rows = torch.arange(5)
    for mine, theirs in zip(table.draw(rows, generator=rng(5)), other.draw(rows, generator=rng(5))):
        assert torch.equal(mine, theirs)
    assert float(other.find_log_ratio(torch.tensor([0]), torch.tensor([3]))) == 0.375  # before


def test_a_copy_is_its_own_table() -> None:
    table = filled()
    other = copy.deepcopy(table)
    table.publish()
    assert (table.version, other.version) == (2, 1)


def test_shape_and_repr() -> None:
    table = filled(5, 3, 2)
    assert table.shape == (5, 3, 2)
    assert repr(table) == "CandidateTable(queries=5, groups=3, k=2, version=1)"


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_sizes(sizes: tuple[int, int, int]) -> None:
    message = "queries, groups, k: expected at least 1, got {}, {}, {}".format(*sizes)
    with pytest.raises(ValueError, match=message):
        CandidateTable(*sizes)


@pytest.mark.parametrize("call", ["draw", "draw_ids"])
def test_a_look_up_that_two_refreshes_overtake_is_repeated(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = CandidateTable(6, 1, 2)
    rows = torch.arange(6)

    def write(value: int, some: Tensor) -> None:
        filled = torch.full((len(some), 1, 2), value)
        table.write(some, Candidates(filled, filled, filled))

    write(1, rows)
    table.publish()
    own, calls = CandidateTable._look_up, []

    def overtaken(self: CandidateTable, *arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 1:  # between the look at the version and the one into its buffer
            write(2, rows)
            table.publish()
            write(3, rows[:3])  # into the buffer that is about to be read
        return own(self, *arguments)

    monkeypatch.setattr(CandidateTable, "_look_up", overtaken)
    found = getattr(table, call)(rows)
    assert torch.equal(found.ids if call == "draw" else found, torch.full((6, 2), 2))
