"""What a sampler takes of the machine: working set, budgets, files, parts, observed embeddings."""

from __future__ import annotations

import copy
import io
import os
import pickle
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import dgl
import numpy as np
import pytest
import torch
from dgl.dataloading import DataLoader, NeighborSampler, as_edge_prediction_sampler
from states import same
from torch import Tensor
from torch import multiprocessing as mp

from dgl_dmns import (
    AdversarialSampler,
    DMNSSampler,
    DynamicSampler,
    MCNSSampler,
    Resources,
    SelfAdversarialSampler,
)
from dgl_dmns.core import Nearest
from dgl_dmns.samplers import refreshing
from dgl_dmns.samplers import resources as limits

NODES = 300
SMALL: dict[str, Any] = {"warmup_steps": 5, "fit_steps": 3, "batch_pairs": 64, "groups": 4}


@pytest.fixture(scope="module")
def g() -> Any:
    source = torch.Generator().manual_seed(1)
    return dgl.graph(tuple(torch.randint(0, NODES, (2, 1500), generator=source)), num_nodes=NODES)


def embeddings(seed: int = 0) -> Tensor:
    return torch.randn(NODES, 8, generator=torch.Generator().manual_seed(seed))


def made(g: Any, k: int = 2, **arguments: Any) -> DMNSSampler:
    return DMNSSampler(g, embeddings, k, **{**SMALL, **arguments})


def queries(sampler: Any) -> Tensor:
    """The query of each group of the table, shape [S]."""
    query: Tensor = sampler.table.spread(torch.arange(sampler.table.queries))[0]
    return query


# ---- working set ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [None, Nearest(pool=20)])
def test_a_smaller_working_set_draws_negatives_as_hard(g: Any, rule: Any) -> None:
    tables = []
    for chunk_bytes in (1 << 28, 1):
        sampler = made(g, rule=rule, resources=Resources(chunk_bytes=chunk_bytes))
        blocks: list[int] = []
        fill = sampler._fill

        def watched(relation: Any, snapshot: Any, nodes: Any, on_rows: Any) -> Any:
            return fill(relation, snapshot, nodes, blocks.append)  # noqa: B023

        sampler._fill = watched  # type: ignore[method-assign]
        sampler.refresh()
        assert sum(blocks) == NODES
        assert (max(blocks) > 64) == (chunk_bytes > 1)  # a block has rows of about one length
        query, ids = queries(sampler).unsqueeze(1), sampler.table.current().ids.long()
        assert not sampler.known.contains(query, ids).any()
        h = embeddings()
        tables.append((h[query] * h[ids]).sum(-1))
    first, second = tables
    noise = (first.var() / first.numel() + second.var() / second.numel()).sqrt()
    assert abs(first.mean() - second.mean()) < 6 * noise


# ---- budgets ----------------------------------------------------------------------------------


def test_a_budget_shortens_rows_evenly(g: Any) -> None:
    needed = made(g, groups=100).known.degrees().clamp(min=1)
    one = 10 * NODES  # a group of one hard candidate for each node
    for groups in (1, 2, 4, 9):
        resources = Resources(table_bytes=groups * one + 5)
        sampler = made(g, groups=100, resources=resources)
        held = (sampler.table.ids, sampler.table.level)
        assert sum(part.numel() * part.element_size() for part in held) <= groups * one
        assert sampler.table.ids.dtype == torch.int32
        # Of what a row needs beside its first group, each gets the same share, rounded down.
        room = min(1.0, (groups - 1) * NODES / int((needed - 1).sum()))
        lost = (needed - 1) * room - (sampler.table.sizes() - 1)
        assert -1e-6 < float(lost.min()) <= float(lost.max()) < 1
        assert (room == 1) == (groups == 9)
    message = r"one group for each source node take 3000 bytes, got a budget of 2999 bytes"
    with pytest.raises(ValueError, match=message):
        made(g, resources=Resources(table_bytes=one - 1))


def test_no_room_is_said_before_anything_is_allocated(g: Any, monkeypatch: Any) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("allocated")

    monkeypatch.setattr("dgl_dmns.samplers.stateful.Relation", never)
    with pytest.raises(AssertionError, match="allocated"):  # with room, it is what is built
        made(g)
    for where, message in (
        ("free_memory", r"take 12000 bytes, and there are 100 bytes free of memory; lower groups"),
        ("free_in", r"there are 100 bytes free in shared memory \(/dev/shm.*--shm-size"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(limits, where, lambda *_: 100.0)
            with pytest.raises(MemoryError, match=message):
                made(g)


def test_no_room_on_the_disk(g: Any, tmp_path: Path, monkeypatch: Any) -> None:
    state = namedtuple("state", ["f_bavail", "f_frsize"])
    monkeypatch.setattr(os, "statvfs", lambda _: state(1, 4096))
    with pytest.raises(MemoryError, match=r"there are 4096 bytes free on the disk of"):
        made(g, resources=Resources(table_folder=tmp_path))
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


def test_a_table_in_a_file_is_the_same_table(g: Any, tmp_path: Path) -> None:
    sampler = made(g, resources=Resources(table_folder=tmp_path))
    plain = made(g)
    for one in (sampler, plain):
        one.refresh()
        one.refresh()
    assert same(sampler.state_dict(), plain.state_dict())
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == 10 * sampler.table.groups * sampler.table.k
    for copied in (pickle.loads(pickle.dumps(sampler)), copy.deepcopy(sampler)):
        assert torch.equal(copied.table.ids, sampler.table.ids)
    loaded = made(g, resources=Resources(table_folder=tmp_path))
    loaded.load_state_dict(plain.state_dict())
    assert same(loaded.state_dict(), plain.state_dict())
    sampler.update_graph(g)
    assert not file.exists()
    del sampler, loaded, copied
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Dataloader CPU affinity")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_see_refreshes_of_a_table_in_a_file(g: Any, tmp_path: Path, start: str) -> None:
    sampler = made(g, uniform_share=0.0, resources=Resources(table_folder=tmp_path))
    sampler.refresh()
    loader = DataLoader(
        g,
        torch.arange(200),
        as_edge_prediction_sampler(NeighborSampler([1]), negative_sampler=sampler),
        batch_size=100,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context=mp.get_context(start),
    )
    for _ in range(2):
        live = torch.zeros(NODES, NODES, dtype=torch.bool)
        live[queries(sampler).unsqueeze(1), sampler.table.current().ids.long()] = True
        batches = list(loader)
        assert len(batches) == 2
        for batch in batches:
            src, dst = (batch[2].ndata[dgl.NID][end] for end in batch[2].edges())
            assert live[src, dst].all()
        sampler.refresh()


# ---- parts of a table -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cls", [DMNSSampler, DynamicSampler, SelfAdversarialSampler, AdversarialSampler]
)
def test_a_refresh_of_some_nodes_leaves_the_others(g: Any, cls: Any) -> None:
    sampler = cls(g, embeddings, 3)
    sampler.refresh()
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


def test_new_rows_are_those_of_the_new_embeddings(g: Any) -> None:
    from dgl_dmns.core import Hardest

    sampler = made(g, 1, rule=Hardest(), pool=NODES)
    sampler.refresh(torch.ones(NODES, 8))
    star = torch.ones(NODES, 8)
    star[11] = 9
    some = torch.tensor([n for n in range(40) if n != 11])
    some = some[~sampler.known.contains(some, torch.tensor([11]))]
    sampler.refresh(star, nodes=some)
    ids, query = sampler.table.current().ids, queries(sampler)
    assert (ids[torch.isin(query, some)] == 11).all()
    assert (ids[query >= 100] != 11).any()


def test_parts_by_node_type() -> None:
    ends = torch.randint(0, 20, (2, 60), generator=torch.Generator().manual_seed(0))
    g = dgl.heterograph({("u", "buys", "i"): tuple(ends), ("i", "sold", "u"): tuple(ends.flip(0))})
    counts = {ntype: g.num_nodes(ntype) for ntype in g.ntypes}
    h = {ntype: torch.randn(count, 4) for ntype, count in counts.items()}
    sampler = DMNSSampler(g, lambda: h, 2, **SMALL)
    sampler.refresh()
    tables = [sampler.relation(e).table for e in ("buys", "sold")]
    before = [table.current().ids.clone() for table in tables]
    report = sampler.refresh(nodes={"u": torch.arange(5)})
    assert sampler.version == 2
    buys, sold = (table.current().ids for table in tables)
    assert torch.equal(sold, before[1])
    others = queries(sampler.relation("buys")) >= 5
    assert torch.equal(buys[others], before[0][others])
    assert not torch.equal(buys[~others], before[0][~others])
    assert report.by_type["i", "sold", "u"].fit is None
    with pytest.raises(ValueError, match=r"nodes: expected a dict of ids by source node type"):
        sampler.refresh(nodes=torch.arange(5))
    with pytest.raises(ValueError, match=r"of \['i', 'u'\], got \['x'\]"):
        sampler.refresh(nodes={"x": torch.arange(5)})


def test_bad_parts_are_refused_before_any_work(g: Any) -> None:
    sampler = made(g)
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
    chains = MCNSSampler(g, embeddings, 2)
    chains.refresh()
    with pytest.raises(ValueError, match="nodes: MCNSSampler keeps chains"):
        chains.refresh(nodes=torch.arange(3))


# ---- observed embeddings ----------------------------------------------------------------------


def test_observed_rows_stand_in_for_the_encoder(g: Any) -> None:
    calls: list[int] = []

    def encoder() -> Tensor:
        calls.append(1)
        return embeddings()

    sampler = DMNSSampler(g, encoder, 2, **SMALL)
    seen: list[Tensor] = []
    sampler.on_refresh(lambda report, h: seen.append(next(iter(h.values()))))
    sampler.refresh()
    expected = embeddings()
    new = torch.randn(3, 8, requires_grad=True)
    ids = torch.tensor([5, 0, 299], dtype=torch.int32)
    sampler.observe(ids, new)
    sampler.observe(torch.tensor([5]), torch.ones(1, 8))
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
    sampler.observe(torch.tensor([7]), torch.full((1, 8), 3.0))
    assert torch.equal(seen[1], expected)  # a refresh keeps what it was made from
    sampler.refresh(observed=False)
    assert len(calls) == 2
    assert torch.equal(seen[2], embeddings())
    assert int(sampler.embedding_age().max()) == 0
    sampler.update_graph(g)
    sampler.refresh()
    assert len(calls) == 3


def test_observed_rows_are_saved(g: Any, tmp_path: Path) -> None:
    one, other = made(g), made(g)
    one.refresh()
    one.observe(torch.arange(50), torch.ones(50, 8))
    one.save(tmp_path / "state")
    other.load(tmp_path / "state")
    assert torch.equal(other.embedding_age(), one.embedding_age())
    for sampler in (one, other):
        sampler.observe(torch.arange(9), torch.full((9, 8), 2.0))
        sampler.refresh()
    assert same(one.state_dict(), other.state_dict())
    smaller = made(dgl.graph(([0, 1, 2], [1, 2, 0])))
    with pytest.raises(ValueError, match="state: made for 300 nodes"):
        smaller.load_state_dict(one.state_dict())


def test_observed_rows_by_node_type() -> None:
    ends = torch.randint(0, 20, (2, 60), generator=torch.Generator().manual_seed(0))
    g = dgl.heterograph({("u", "buys", "i"): tuple(ends)}, num_nodes_dict={"u": 20, "i": 20})
    h = {ntype: torch.randn(20, 4) for ntype in g.ntypes}
    sampler = DMNSSampler(g, lambda: h, 2, **SMALL)
    sampler.refresh()
    ids = {"u": torch.tensor([1]), "i": torch.tensor([2, 3])}
    sampler.observe(ids, {"u": torch.ones(1, 4), "i": torch.ones(2, 4)})
    sampler.refresh()
    assert sampler.embedding_age("u")[:2].tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"ntype: expected one of \['i', 'u'\], got None"):
        sampler.embedding_age()
    with pytest.raises(ValueError, match="expected two dicts with the same node types"):
        sampler.observe(torch.tensor([1]), torch.ones(1, 4))


def test_bad_observations_are_refused(g: Any) -> None:
    sampler = made(g)
    with pytest.raises(RuntimeError, match="observe: call refresh"):
        sampler.observe(torch.tensor([0]), torch.ones(1, 8))
    sampler.refresh()
    with pytest.raises(RuntimeError, match="embedding_age: nothing was observed"):
        sampler.embedding_age()
    for ids, h, message in (
        (torch.tensor([0, 1]), torch.ones(1, 8), r"embeddings \[B, 8\].*got \(2,\)"),
        (torch.tensor([0]), torch.ones(1, 7), r"and \(1, 7\)"),
        (torch.tensor([NODES]), torch.ones(1, 8), r"in 0 \.\. 299, got 300.*dgl.NID"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.observe(ids, h)
    with pytest.raises(TypeError, match="node_ids: .*torch.float32"):
        sampler.observe(torch.tensor([0.0]), torch.ones(1, 8))
    sampler.observe(torch.tensor([0]), torch.full((1, 8), float("nan")))
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 300 rows"):
        sampler.refresh()


# ---- progress ---------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("patience", "shown"), [(0.0, True), (60.0, False)])
def test_a_long_refresh_shows_its_progress_on_a_terminal(
    g: Any, monkeypatch: Any, patience: float, shown: bool
) -> None:
    monkeypatch.setattr(refreshing, "_PATIENCE", patience)
    for stream, expected in ((Terminal(), shown), (io.StringIO(), False)):
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", stream)
            made(g).refresh()
        assert ("refresh:" in stream.getvalue()) == expected
