"""DGL's distributed graph: servers, trainers and sampler processes, compared with the whole graph.

The processes run `distributed_job`; what they drew is checked here.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import dgl
import distributed_job as job
import pytest
import torch
from torch import Tensor

K = 3


def needs_namespaces() -> None:
    """Skip a test of several machines where none can be made of this one."""
    if not job.own_shared_memory():
        pytest.skip("needs user namespaces (unshare)")


def random_graph() -> Any:
    source = torch.Generator().manual_seed(1)
    pairs = torch.randint(0, 60, (2, 400), generator=source).unique(dim=1)
    g = dgl.graph(tuple(pairs), num_nodes=60)
    g.ndata["id"] = g.nodes()
    return g


def partition(g: Any, parts: int, folder: Path) -> None:
    dgl.distributed.partition_graph(g, "graph", parts, str(folder), part_method="metis")


def check_epoch(g: Any, ids: Tensor, batches: list[dict[str, Tensor]], k: int = K) -> int:
    """Exactly k a query, grouped, no known edge, in the ids before partitioning; the edges seen."""
    for batch in batches:
        assert torch.equal(batch["src"], batch["query"].repeat_interleave(k))
        src, dst = ids[batch["src"]], ids[batch["dst"]]
        assert not g.has_edges_between(src, dst).any()
        assert (src != dst).all()
    return sum(len(batch["query"]) for batch in batches)


def apart(batches: list[dict[str, Tensor]]) -> bool:
    """Whether no two batches repeat each other's draws: equal destinations are rare."""
    draws = [batch["dst"] for batch in batches if len(batch["dst"]) == 20 * K]
    assert len(draws) > 8
    agreeing = [
        float((one == other).double().mean()) for i, one in enumerate(draws) for other in draws[:i]
    ]
    return max(agreeing) < 0.3  # of one stream, nearly all agree


@pytest.mark.slow
@pytest.mark.parametrize("samplers", [0, 2])
@pytest.mark.parametrize("machines", [1, 2])
def test_a_partitioned_graph(machines: int, samplers: int, tmp_path: Path) -> None:
    if machines > 1:
        needs_namespaces()
    g = random_graph()
    partition(g, machines, tmp_path)
    results = job.run("homogeneous", tmp_path, machines=machines, trainers=2, samplers=samplers)
    ids = results[0]["ids"]
    assert torch.equal(ids.sort().values, g.nodes())
    for name in ("UniformSampler", "PopularitySampler", "InBatchSampler", "before", "after"):
        # Every edge once, over all trainers.
        assert sum(check_epoch(g, ids, one[name]) for one in results) >= g.num_edges()
    assert apart([batch for one in results for batch in one["UniformSampler"]])
    for one in results:  # batches may come in another order
        seeded, again = (
            sorted([*b["src"].tolist(), *b["dst"].tolist()] for b in one[name])
            for name in ("seeded", "seeded again")
        )
        assert seeded == again
    # The epoch after a refresh draws from the new table, in every sampler process.
    for one in results:
        if machines == 1:
            assert torch.equal(one["table"], results[0]["table"])
            assert torch.equal(one["random"], results[0]["random"])
        assert all(held.view(-1, K)[:, 0].all() for held in one["held"])  # half are uniform
        for ratio in one["ratios"]:
            assert ratio.isfinite().all()
            assert (ratio != 0).any()
        for star in (3, 30):
            batches = one[f"star {star}"]
            check_epoch(g, ids, batches, k=1)
            src, dst = (torch.cat([batch[end] for batch in batches]) for end in ("src", "dst"))
            everywhere = torch.full_like(src, int(ids[star]))
            barred = g.has_edges_between(ids[src], everywhere) | (src == star)
            assert dst[~barred].unique().tolist() == [star]
        assert one["error"].startswith("encoder: Linear cannot be called on a partitioned graph;")


@pytest.mark.slow
@pytest.mark.parametrize(("machines", "samplers"), [(1, 0), (1, 1), (2, 1)])
def test_a_partitioned_graph_of_several_types(machines: int, samplers: int, tmp_path: Path) -> None:
    if machines > 1:
        needs_namespaces()
    source = torch.Generator().manual_seed(2)
    pairs = torch.stack([torch.randint(0, n, (90,), generator=source) for n in (30, 20)])
    g = dgl.heterograph(
        {
            ("user", "buys", "item"): tuple(pairs),
            ("item", "bought by", "user"): tuple(pairs.flip(0)),
        },
        num_nodes_dict={"user": 30, "item": 20},
    )
    for ntype in g.ntypes:
        g.nodes[ntype].data["id"] = g.nodes(ntype)
    partition(g, machines, tmp_path)
    for result in job.run("market", tmp_path, machines=machines, trainers=1, samplers=samplers):
        ids = result["ids"]
        for batch in result["after"]:
            assert torch.equal(batch["src"], batch["query"].repeat_interleave(K))
            users, items = ids["user"][batch["src"]], ids["item"][batch["dst"]]
            assert not g.has_edges_between(users, items, etype="buys").any()
        assert sum(len(batch["query"]) for batch in result["after"]) == 90
        if machines > 1:  # so that others were asked for, too
            assert len(result["held"]) < len(g.edges(etype="buys")[0].unique())


def large_graph() -> Any:
    source = torch.Generator().manual_seed(4)
    pairs = torch.randint(0, 600, (2, 2400), generator=source)
    near = (pairs[0] + torch.randint(1, 20, (2400,), generator=source)) % 600  # mostly one part
    g = dgl.graph((pairs[0], torch.where(pairs[1] < 500, near, pairs[1])), num_nodes=600)
    g.ndata["id"] = g.nodes()
    return g


@pytest.mark.parametrize(
    ("machines", "trainers"),
    [
        (2, 1),
        pytest.param(2, 2, marks=pytest.mark.slow),
        pytest.param(4, 1, marks=pytest.mark.slow),
    ],
)
def test_each_trainer_holds_its_share(machines: int, trainers: int, tmp_path: Path) -> None:
    needs_namespaces()
    g = large_graph()
    partition(g, machines, tmp_path)
    results = job.run("shares", tmp_path, machines=machines, trainers=trainers, samplers=0)
    for rank, one in enumerate(results):
        check_share(g, one)
        # Each trainer knows what the refresh was for all of them.
        assert one["by rank"] == results[0]["by rank"]
        for reports, rows in zip(one["by rank"], (len(one["held"]), one["part"])):
            assert len(reports) == len(results)
            own = reports[rank]
            assert (own.sources, own.rows) == (len(one["held"]), rows)
            assert own.seconds_by_part.keys() == {"embed", "fit", "table"}
            assert own.held_bytes > sum(part.nbytes for part in one["known"])
        # One model, and one error.
        assert all(torch.equal(one["model"][n], v) for n, v in results[0]["model"].items())
        assert one["failed"] == results[0]["failed"]
        assert one["NaN"].partition("trainer")[0] == results[0]["NaN"].partition("trainer")[0]
    last = len(results) - 1
    assert results[0]["failed"].startswith(
        f"RuntimeError: refresh: 1 of {last + 1} trainers could not make it, trainer {last} for "
        "one (ValueError: no memory left here); no trainer has changed its tables"
    )
    samples = [one["states"][0] for one in results]
    assert not torch.equal(samples[0][:50], samples[-1][:50])


def check_share(g: Any, one: Any) -> None:
    ids, held = one["ids"], one["held"]
    assert torch.isin(one["mine"], held).all()
    assert len(held) < 0.8 * g.num_nodes()  # halo sources among them
    indptr, indices = one["known"]
    src = torch.repeat_interleave(held, indptr.diff())
    found = torch.stack([ids[src], ids[indices.long()]]).unique(dim=1)
    mine = torch.isin(g.edges()[0], ids[held])
    assert torch.equal(found, torch.stack(g.edges())[:, mine].unique(dim=1))

    # Held queries, a sample of 64 pools of 4, and pairs of fitting: 4 steps of 64.
    assert sum(one["reads"]) <= len(held) + 256 + 256
    for name in ("before", "after", "elsewhere", "again"):
        check_epoch(g, ids, one[name])
    assert one["uniform"] == len(held)
    *ours, whole = torch.tensor(one["losses"]).mean(0)  # half the pool is the hard ones' own
    for loss in ours:
        torch.testing.assert_close(loss, whole, rtol=0.08, atol=0.0)
    assert torch.stack(one["trained"]).isfinite().all()
    assert any(not ours.all() for ours, _, _ in one["ratios"])
    for ours, ratio, stands in one["ratios"]:
        assert (ratio[~ours] == 0).all()
        assert (ratio[ours] != 0).any()
        assert not stands[~ours].any()
        hard = stands.view(-1, K).sum(1)[ours.view(-1, K)[:, 0]]
        assert (hard >= 1).all()  # half are uniform
    src = torch.arange(g.num_nodes()).repeat_interleave(K)
    assert not g.has_edges_between(ids[src], ids[one["queries"].flatten()]).any()
    assert one["arrived"].shape == (4, K)
    assert torch.equal(*one["states"])
    assert one["version"] == 2
    assert "NaN or infinity in" in one["NaN"]
    kinds = {"look": "ValueError", "state": "RuntimeError"}
    for name, text in one["errors"].items():
        kind = kinds.get(name, "ValueError")
        start = "distribution" if name == "state" else name.split()[0]
        assert text.startswith(f"{kind}: {start}: "), (name, text)


def test_trainers_share_their_candidates(tmp_path: Path) -> None:
    needs_namespaces()
    partition(large_graph(), 2, tmp_path)
    results = job.run("gathering", tmp_path, machines=2, trainers=1, samplers=0)
    for one, other in zip(results, reversed(results)):
        assert one["version"] == 4
        assert all(torch.equal(w, other["weights"][name]) for name, w in one["weights"].items())
        assert sum(one["losses"][-2:]) < sum(one["losses"][:2])
        assert torch.isin(other["drawn"], one["asked"]).all()
        ours, whole = one["compared"]
        assert ours == pytest.approx(whole, rel=0.05)


def test_refreshes_in_the_background(tmp_path: Path) -> None:
    needs_namespaces()
    g = large_graph()
    partition(g, 2, tmp_path)
    results = job.run("background", tmp_path, machines=2, trainers=1, samplers=0)
    for rank, one in enumerate(results):
        assert one["versions"] == [1, 4, 5]
        assert one["threads"] == {"MainThread"}
        assert one["reads"]
        model = results[0]["model"]
        assert all(torch.equal(value, model[name]) for name, value in one["model"].items())
        # Each is told, and the last tables stay in use.
        fetch, other = one["errors"]
        start = "RuntimeError: refresh: the one in the background failed (RuntimeError: "
        assert fetch.startswith(start)
        assert "encoder: a refresh in the background asked for 3 rows that it does not" in fetch
        assert other == one["waited"]
        assert other.startswith(
            f"{start}refresh: 1 of 2 trainers could not make it, trainer 1 for one (ValueError: no "
            "memory left here); no trainer has changed its tables, the last ones stay in use); "
            "negatives are those of version 4, the last good one"
        )
        assert one["share"].startswith("ValueError: share: got 0.1, and trainers that share")
        assert one["nodes"].startswith("ValueError: nodes: ")
        assert [report.rows for report in one["by rank"]] == [20, 0]
        assert one["by rank"][rank].seconds_by_part.keys() == {"wait", "embed", "fit", "table"}
        assert one["apart"] == (
            "RuntimeError: refresh: trainers have tables of different versions, [5, 6], by rank; "
            "load states of one checkpoint on all of them, or make the samplers anew"
        )


@pytest.mark.slow
def test_a_trainer_that_is_killed_in_a_refresh_ends_the_run(tmp_path: Path) -> None:
    needs_namespaces()
    partition(large_graph(), 2, tmp_path)
    with pytest.raises(AssertionError, match="a process has failed"):
        job.run("killed", tmp_path, machines=2, trainers=1, samplers=0)
    text = (tmp_path / "0.txt").read_text()
    assert text.startswith("refresh: another trainer has ended, or does not answer (RuntimeError: ")
    assert "start again from a checkpoint" in text
    assert not (tmp_path / "1.txt").exists()
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            assert str(tmp_path).encode() not in one.read_bytes()


def test_a_trainer_is_told_that_most_queries_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    import dgl_dmns.samplers.misuse as misuse

    monkeypatch.setattr(misuse, "_ASKED", 4)
    asked = misuse.Asked("DMNSSampler")
    asked.of_share(torch.tensor([True, True, False]))
    with pytest.warns(UserWarning, match="DMNSSampler: 3 of 5 queries are not of this trainer's"):
        asked.of_share(torch.tensor([False, False]))
    asked.of_share(torch.tensor([False, False]))  # once
