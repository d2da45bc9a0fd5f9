"""DGL's distributed graph: servers, trainers and sampler processes, compared with the whole graph.

The processes run `distributed_job`; what they drew is checked here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dgl
import distributed_job as job
import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.slow
K = 3


MACHINES = [
    1,
    pytest.param(
        2,
        marks=pytest.mark.skipif(
            not job.own_shared_memory(), reason="needs user namespaces (unshare)"
        ),
    ),
]


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


@pytest.mark.parametrize("samplers", [0, 2])
@pytest.mark.parametrize("machines", MACHINES)
def test_a_partitioned_graph(machines: int, samplers: int, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("samplers", [0, 1])
def test_a_partitioned_graph_of_several_types(samplers: int, tmp_path: Path) -> None:
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
    partition(g, 1, tmp_path)
    (result,) = job.run("market", tmp_path, machines=1, trainers=1, samplers=samplers)
    ids = result["ids"]
    for batch in result["after"]:
        assert torch.equal(batch["src"], batch["query"].repeat_interleave(K))
        users, items = ids["user"][batch["src"]], ids["item"][batch["dst"]]
        assert not g.has_edges_between(users, items, etype="buys").any()
    assert sum(len(batch["query"]) for batch in result["after"]) == 90
