"""What a sampler takes of the machine: working set, budgets, files, parts, observed embeddings."""

from __future__ import annotations

import inspect
import io
import os
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tqdm
from shared import (
    BUYS,
    WIDTH,
    check,
    graph,
    loader,
    make,
    negatives,
    normal,
    pickled,
    refreshed,
    same,
    shop,
    star,
)
from torch import Tensor
from torch import multiprocessing as mp

from dgl_dmns import Resources
from dgl_dmns.core import CandidateTable, Hardest, Nearest
from dgl_dmns.samplers import settings as limits
from dgl_dmns.samplers.graphs import check_ids_fit

NODES = 300
G = graph(NODES, 1500)


def embeddings(seed: int = 0) -> Tensor:
    return normal(NODES, WIDTH, seed=seed)


def made(k: int = 2, **arguments: Any) -> Any:
    return make("dmns", G, embeddings, k, **{"groups": 4, **arguments})


def queries(sampler: Any) -> Tensor:
    """The query of each group of the table, shape [S]."""
    query: Tensor = sampler.table.spread(torch.arange(sampler.table.queries))[0]
    return query


# ---- working set ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [None, Nearest(pool=20)])
def test_a_smaller_working_set_draws_negatives_as_hard(rule: Any, monkeypatch: Any) -> None:
    tables, h = [], embeddings()
    for chunk_bytes in (1 << 28, 1):
        sampler = made(rule=rule, resources=Resources(chunk_bytes=chunk_bytes))
        blocks: list[int] = []
        monkeypatch.setattr(tqdm.tqdm, "update", lambda bar, n: blocks.append(n))  # noqa: B023
        sampler.refresh()
        assert sum(blocks) == NODES
        assert (max(blocks) > 64) == (chunk_bytes > 1)  # a block has rows of about one length
        query, ids = queries(sampler).unsqueeze(1), sampler.table.current().ids.long()
        check(G, query.expand_as(ids).flatten(), ids.flatten())
        tables.append((h[query] * h[ids]).sum(-1))
    first, second = tables
    noise = (first.var() / first.numel() + second.var() / second.numel()).sqrt()
    assert abs(first.mean() - second.mean()) < 6 * noise


# ---- budgets ----------------------------------------------------------------------------------


def test_a_budget_shortens_rows_evenly() -> None:
    needed = made(groups=100).known.degrees().clamp(min=1)
    one = 8 * NODES  # a group of one hard candidate for each node
    for groups in (1, 2, 4, 9):
        resources = Resources(table_bytes=groups * one + 5)
        sampler = made(groups=100, resources=resources)
        assert sampler.table.cells.dtype == torch.int32
        assert sampler.table.cells.numel() * 4 <= groups * one
        # Of what a row needs beside its first group, each gets the same share, rounded down.
        room = min(1.0, (groups - 1) * NODES / int((needed - 1).sum()))
        lost = (needed - 1) * room - (sampler.table.sizes() - 1)
        assert -1e-6 < float(lost.min()) <= float(lost.max()) < 1
        assert (room == 1) == (groups == 9)
    message = r"one group for each source node take 2400 bytes, got a budget of 2399 bytes"
    with pytest.raises(ValueError, match=message):
        made(resources=Resources(table_bytes=one - 1))


def test_no_room_is_said_before_anything_is_allocated(monkeypatch: Any) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("allocated")

    monkeypatch.setattr(CandidateTable, "__init__", never)
    with pytest.raises(AssertionError, match="allocated"):  # with room, it is what is built
        made()
    for where, message in (
        ("free_memory", r"take 9600 bytes, and there are 100 bytes free of memory; lower groups"),
        ("free_in", r"there are 100 bytes free in shared memory \(/dev/shm.*--shm-size"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(limits, where, lambda *_: 100.0)
            with pytest.raises(MemoryError, match=message):
                made()


def test_more_nodes_than_a_table_can_name(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.modules[check_ids_fit.__module__], "MOST_NODES", NODES - 1)
    with pytest.raises(ValueError, match="at most 299 nodes of type '_N', whose ids .* got 300;"):
        made()


def test_no_room_on_the_disk(tmp_path: Path, monkeypatch: Any) -> None:
    state = namedtuple("state", ["f_bavail", "f_frsize"])
    monkeypatch.setattr(os, "statvfs", lambda _: state(1, 4096))
    with pytest.raises(MemoryError, match=r"there are 4096 bytes free on the disk of"):
        made(resources=Resources(table_folder=tmp_path))
    assert not list(tmp_path.iterdir())


def test_limits_are_checked(tmp_path: Path) -> None:
    for name in ("chunk_bytes", "table_bytes"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 1 byte"):
            Resources(**{name: 0})
        for bad in (1.5, "1 GB", True):
            with pytest.raises(TypeError, match=f"^{name}: expected an integer, the bytes"):
                Resources(**{name: bad})
    assert Resources(table_bytes=np.int64(5)).table_bytes == 5
    with pytest.raises(TypeError, match="^background: expected True or False, got 'yes'"):
        Resources(background="yes")
    with pytest.raises(TypeError, match="^table_folder: expected the path of a folder, got int"):
        Resources(table_folder=5)
    with pytest.raises(ValueError, match="table_folder: there is no folder"):
        Resources(table_folder=tmp_path / "none")


# ---- tables in files --------------------------------------------------------------------------


def test_a_table_in_a_file_is_the_same_table(tmp_path: Path) -> None:
    sampler = made(resources=Resources(table_folder=tmp_path))
    plain = made()
    for one in (sampler, plain):
        one.refresh()
        one.refresh()
    assert same(sampler.state_dict(), plain.state_dict())
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == 8 * sampler.table.groups * sampler.table.k
    copied = pickled(sampler)
    assert torch.equal(copied.table.cells, sampler.table.cells)
    loaded = made(resources=Resources(table_folder=tmp_path))
    loaded.load_state_dict(plain.state_dict())
    assert same(loaded.state_dict(), plain.state_dict())
    sampler.update_graph(G)
    assert not file.exists()
    del sampler, loaded, copied
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_see_refreshes_of_a_table_in_a_file(tmp_path: Path, start: str) -> None:
    sampler = made(uniform_share=0.0, resources=Resources(table_folder=tmp_path))
    sampler.refresh()
    lasting = {"persistent_workers": True, "multiprocessing_context": mp.get_context(start)}
    batches = loader(G, sampler, 1, torch.arange(200), batch_size=100, **lasting)
    for _ in range(2):
        live = torch.zeros(NODES, NODES, dtype=torch.bool)
        live[queries(sampler).unsqueeze(1), sampler.table.current().ids.long()] = True
        src, dst = negatives(batches)
        assert len(src) == 400
        assert live[src, dst].all()
        sampler.refresh()


# ---- parts of a table -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dmns", "dynamic", "self-adversarial", "adversarial"])
def test_a_refresh_of_some_nodes_leaves_the_others(name: str) -> None:
    sampler = refreshed(name, G, embeddings)
    before = [field.clone() for field in sampler.table.current()]
    some = torch.tensor([7, 4, 200, 4], dtype=torch.int32)
    report = sampler.refresh(embeddings(5), nodes=some)
    assert report.version == sampler.version == 2
    after = sampler.table.current()
    query = queries(sampler)
    drawn = torch.isin(query, some)
    for old, new in zip(before, after):
        assert torch.equal(old[~drawn], new[~drawn])
    changed = query[(before[0] != after.ids).any(-1)]
    assert changed.unique().tolist() == [4, 7, 200]
    # Log ratios of all rows are found, by the new embeddings.
    if sampler.rule.tractable:
        pairs = torch.arange(NODES), torch.arange(NODES).roll(1)
        assert sampler.distribution().log_ratio(*pairs).isfinite().all()


def test_new_rows_are_those_of_the_new_embeddings() -> None:
    sampler = made(1, rule=Hardest(), pool=NODES)
    sampler.refresh(torch.ones(NODES, 1))
    some = torch.tensor([n for n in range(40) if n != 11])
    some = some[~sampler.known.contains(some, torch.tensor([11]))]
    sampler.refresh(star(NODES, 11), nodes=some)
    ids, query = sampler.table.current().ids, queries(sampler)
    assert (ids[torch.isin(query, some)] == 11).all()
    assert (ids[query >= 100] != 11).any()


def test_parts_by_node_type() -> None:
    sampler = refreshed("dmns", shop(), etypes=["buys", "bought by"])
    tables = [sampler.relation(e).table for e in ("buys", "bought by")]
    before = [table.current().ids.clone() for table in tables]
    report = sampler.refresh(nodes={"user": torch.arange(5)})
    assert sampler.version == 2
    buys, bought_by = (table.current().ids for table in tables)
    assert torch.equal(bought_by, before[1])
    others = queries(sampler.relation("buys")) >= 5
    assert torch.equal(buys[others], before[0][others])
    assert not torch.equal(buys[~others], before[0][~others])
    assert report.by_type["item", "bought by", "user"].fit is None
    with pytest.raises(ValueError, match=r"nodes: expected a dict of ids by source node type"):
        sampler.refresh(nodes=torch.arange(5))
    with pytest.raises(ValueError, match=r"of \['item', 'user'\], got a dict of \['x'\]"):
        sampler.refresh(nodes={"x": torch.arange(5)})


def test_bad_parts_are_refused_before_any_work() -> None:
    sampler = made()
    with pytest.raises(RuntimeError, match="nodes: the first refresh fills the whole table"):
        sampler.refresh(nodes=torch.arange(3))
    sampler.refresh()
    for nodes, message in (
        (torch.tensor([NODES]), r"in 0 \.\. 299, got 300 \.\. 300"),
        (torch.tensor([-1, 3]), r"got -1 \.\. 3"),
        (torch.ones(NODES, dtype=torch.bool), "for a mask, pass mask.nonzero"),
        (torch.zeros(2, 2, dtype=torch.int64), r"shape \[B\], got \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.refresh(nodes=nodes)
    assert sampler.version == 1
    sampler.refresh(nodes=torch.empty(0, dtype=torch.int64))
    assert sampler.version == 2
    chains = refreshed("mcns", G)
    with pytest.raises(ValueError, match="nodes: MCNSSampler keeps chains"):
        chains.refresh(nodes=torch.arange(3))


# ---- observed embeddings ----------------------------------------------------------------------


def test_observed_rows_stand_in_for_the_encoder() -> None:
    calls: list[int] = []

    def encoder() -> Tensor:
        calls.append(1)
        return embeddings()

    sampler = make("dmns", G, encoder)
    seen: list[Tensor] = []
    sampler.on_refresh(lambda report, h: seen.append(next(iter(h.values()))))
    sampler.refresh()
    expected = embeddings()
    new = torch.randn(3, WIDTH, requires_grad=True)
    ids = torch.tensor([5, 0, 299], dtype=torch.int32)
    sampler.observe(ids, new)
    sampler.observe(torch.tensor([5]), torch.ones(1, WIDTH))
    sampler.refresh()
    expected[ids.long()] = new.detach()
    expected[5] = 1
    assert torch.equal(seen[1], expected)
    assert not seen[1].requires_grad
    assert len(calls) == 1
    age = sampler.embedding_age()
    assert (age[5], age[0], age[299], age[1]) == (0, 1, 1, 2)
    assert sampler.staleness.age == pytest.approx(float(age.double().mean()))
    assert sampler.stats()["embedding_age"].tolist()[0] == pytest.approx(sampler.staleness.age)
    assert len(calls) == 1  # statistics read them, too
    sampler.observe(torch.tensor([7]), torch.full((1, WIDTH), 3.0))
    assert torch.equal(seen[1], expected)  # a refresh keeps what it was made from
    sampler.refresh(observed=False)
    assert len(calls) == 2
    assert torch.equal(seen[2], embeddings())
    assert int(sampler.embedding_age().max()) == 0
    sampler.update_graph(G)
    sampler.refresh()
    assert len(calls) == 3


def test_observed_rows_are_saved(tmp_path: Path) -> None:
    one, other = made(), made()
    one.refresh()
    one.observe(torch.arange(50), torch.ones(50, WIDTH))
    one.save(tmp_path / "state")
    other.load(tmp_path / "state")
    assert torch.equal(other.embedding_age(), one.embedding_age())
    for sampler in (one, other):
        sampler.observe(torch.arange(9), torch.full((9, WIDTH), 2.0))
        sampler.refresh()
    assert same(one.state_dict(), other.state_dict())
    smaller = make("dmns", graph())
    with pytest.raises(ValueError, match="state: made for 300 nodes"):
        smaller.load_state_dict(one.state_dict())


def test_observed_rows_by_node_type() -> None:
    sampler = refreshed("dmns", shop(), etypes=[BUYS])
    ids = {"user": torch.tensor([1]), "item": torch.tensor([2, 3])}
    sampler.observe(ids, {n: torch.ones(len(i), WIDTH) for n, i in ids.items()})
    sampler.refresh()
    assert sampler.embedding_age("user")[:2].tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"ntype: expected one of \['item', 'user'\], got None"):
        sampler.embedding_age()
    with pytest.raises(ValueError, match="expected two dicts with the same node types"):
        sampler.observe(torch.tensor([1]), torch.ones(1, WIDTH))


def test_bad_observations_are_refused() -> None:
    sampler = made()
    with pytest.raises(RuntimeError, match="observe: call refresh"):
        sampler.observe(torch.tensor([0]), torch.ones(1, WIDTH))
    sampler.refresh()
    with pytest.raises(RuntimeError, match="embedding_age: nothing was observed"):
        sampler.embedding_age()
    for ids, h, message in (
        (torch.tensor([0, 1]), torch.ones(1, WIDTH), r"embeddings \[B, 6\].*got \(2,\)"),
        (torch.tensor([0]), torch.ones(1, 5), r"and \(1, 5\)"),
        (torch.tensor([NODES]), torch.ones(1, WIDTH), r"in 0 \.\. 299, got 300.*dgl.NID"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.observe(ids, h)
    with pytest.raises(TypeError, match="node_ids: .*torch.float32"):
        sampler.observe(torch.tensor([0.0]), torch.ones(1, WIDTH))
    sampler.observe(torch.tensor([0]), torch.full((1, WIDTH), float("nan")))
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 300 rows"):
        sampler.refresh()


# ---- progress ---------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("patient", [True, False])
def test_a_long_refresh_shows_its_progress_on_a_terminal(monkeypatch: Any, patient: bool) -> None:
    own = tqdm.tqdm.__init__

    def bar(self: Any, *arguments: Any, delay: float, **named: Any) -> None:
        assert delay == 10
        own(self, *arguments, delay=delay if patient else 0, **named)

    monkeypatch.setattr(tqdm.tqdm, "__init__", bar)
    for stream, terminal in ((Terminal(), True), (io.StringIO(), False)):
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", stream)
            made().refresh()
        assert ("refresh:" in stream.getvalue()) == (terminal and not patient)


# ---- bytes ------------------------------------------------------------------------------------


def kept_bytes(thing: Any, seen: dict[int, int], skipped: set[int]) -> dict[int, int]:
    """Bytes of the tensors that an object holds, by where they lie; graphs are left out."""
    if id(thing) in skipped or isinstance(thing, type) or type(thing).__module__.startswith("dgl."):
        return seen
    skipped.add(id(thing))
    parts: Any = ()
    if isinstance(thing, Tensor):
        storage = thing.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
    elif isinstance(thing, dict):
        parts = thing.values()
    elif isinstance(thing, (list, tuple, set)):
        parts = thing
    elif not inspect.isroutine(thing):
        parts = getattr(thing, "__dict__", {}).values()
    for part in parts:
        kept_bytes(part, seen, skipped)
    return seen


@pytest.mark.parametrize(("k", "width"), [(1, 32), (5, 64)])
def test_memory_is_as_the_page_about_scaling_counts_it(k: int, width: int) -> None:
    nodes = 4000
    g = graph(nodes, 5 * nodes)
    weight = normal(nodes, width)
    sampler = make("dmns", g, lambda: weight, k)
    sampler.refresh()
    known, table = sampler.relation().known, sampler.table
    edges = known.indices.numel() / nodes
    hard = -(-k // 2)
    assert table.k == hard
    groups = table.groups / nodes
    assert 1 <= groups <= 90 * k // (8 * hard)
    each = 8 * hard * groups + 8 + 4 * (4 + 2)  # four levels and two parts of the rule
    each += 8 + 4 * edges + 4 * width
    beside = 8 * known.indices.numel() + 4 * g.num_edges()  # search keys, places
    beside += known.bitmap.taken.numel()

    def kept() -> int:
        model = sum(kept_bytes(sampler.model, {}, set()).values())
        return sum(kept_bytes(sampler, {}, set()).values()) - beside - model

    assert kept() == pytest.approx(each * nodes, rel=0.02)
    assert kept() < 600 * nodes
    sampler.log_ratio(sampler(g, torch.arange(5)))
    assert kept() == pytest.approx((each + 4 * 16) * nodes, rel=0.02)
