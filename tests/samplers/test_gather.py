"""`negatives.loss(..., gather=True)`: the candidates of all ranks, values and gradients.

What each rank had and what it got is compared here with sums over plain tensors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dgl
import pytest
import torch
from shared import WIDTH, make, refreshed, rng, said
from test_ddp import on_ranks
from torch import Tensor, distributed

from dgl_dmns.samplers.minibatch import pair_batches, weighed

N, K = 40, 4
TYPES = [("user", "buys", "item"), ("item", "likes", "user")]


def graph() -> Any:
    pairs = torch.randint(0, N, (2, 160), generator=rng())
    return dgl.graph((pairs[0], pairs[1]), num_nodes=N)


def market() -> Any:
    pairs = torch.randint(0, 30, (2, 120), generator=rng(3))
    ends = {TYPES[0]: (pairs[0], pairs[1]), TYPES[1]: (pairs[1], pairs[0])}
    return dgl.heterograph(ends, num_nodes_dict={"user": 30, "item": 30})


def batch(g: Any, sampler: Any, eids: Any, rank: int, dtype: torch.dtype = torch.float64) -> Any:
    """Embeddings of the nodes of a batch, as this rank has them, and its two graphs."""
    eids = eids if isinstance(eids, dict) else {g.canonical_etypes[0]: eids}
    rows: dict[str, list[Tensor]] = {ntype: [] for ntype in g.ntypes}
    ends = {}
    for etype, some in eids.items():
        drawn = sampler(g, {etype: some} if len(g.etypes) > 1 else some)
        drawn = drawn[etype] if isinstance(drawn, dict) else drawn
        ends[etype] = g.find_edges(some, etype=etype), drawn
        for pair in ends[etype]:
            for ntype, ids in zip(etype[::2], pair):
                rows[ntype].append(ids)
    nodes = {n: torch.cat([*parts, torch.arange(0)]).unique() for n, parts in rows.items()}
    graphs = []
    for which in range(2):
        edges = {
            etype: tuple(torch.searchsorted(nodes[n], x) for n, x in zip(etype[::2], pairs[which]))
            for etype, pairs in ends.items()
        }
        none = (torch.arange(0), torch.arange(0))
        data = {etype: edges.get(etype, none) for etype in g.canonical_etypes}
        made = dgl.heterograph(data, num_nodes_dict={n: len(ids) for n, ids in nodes.items()})
        for ntype, ids in nodes.items():
            made.nodes[ntype].data[dgl.NID] = ids
        graphs.append(made)
    h = {  # other embeddings of the same nodes
        n: torch.randn(len(ids), WIDTH, generator=rng(7 + rank), dtype=dtype).requires_grad_()
        for n, ids in nodes.items()
    }
    return (h if len(h) > 1 else h["_N"]), *graphs


def told(sampler: Any, batch: Any, loss: Tensor) -> Any:
    """What a rank had, by edge type, and what it got."""
    loss.backward()
    h = batch[0] if isinstance(batch[0], dict) else {"_N": batch[0]}
    parts = {}
    for one in pair_batches(*batch, list(sampler.known_by_type)).values():
        known = sampler.known_by_type[one.etype]
        if not len(one.src):
            continue
        ratio, chosen = weighed(sampler, one, "batch")
        queries, nodes = one.ids[0][one.src], one.ids[1]
        parts[one.etype] = {
            "rows": (one.src, one.dst, one.candidates),
            "ids": nodes,
            "known": known.contains(queries.unsqueeze(1), torch.arange(known.num_dst)),
            "ratio": ratio,
            "chosen": torch.zeros_like(ratio).bool() if chosen is None else chosen,
        }
    return {
        "h": {n: part.detach() for n, part in h.items()},
        "slope": {n: part.grad for n, part in h.items()},
        "parts": parts,
        "loss": loss.detach(),
    }


def reference(ranks: list[Any]) -> None:
    """Compare losses with sums over all ranks' candidates, and gradients with those of the sum."""
    h = [{n: part.clone().requires_grad_() for n, part in one["h"].items()} for one in ranks]
    total = torch.zeros((), dtype=torch.float64)
    for mine, own in zip(ranks, h):
        loss = torch.zeros((), dtype=torch.float64)
        for etype, part in mine["parts"].items():
            src, dst, candidates = part["rows"]
            at = torch.arange(len(src)).unsqueeze(1)
            barred = part["known"].clone()
            barred[at.squeeze(1), part["ids"][dst]] = True
            query, positive = own[etype[0]][src], own[etype[2]][dst]
            logits = [(query * positive).sum(1, keepdim=True)]
            hard = barred.clone()
            for row in range(len(src)):  # chosen ones, each once
                some = candidates[row][part["chosen"][row]].unique()
                some = some[~barred[row, part["ids"][some]]]
                hard[row, part["ids"][some]] = True
                score = own[etype[2]][candidates[row]] @ query[row]
                first = torch.tensor(
                    [
                        c in some and c not in candidates[row][:i][part["chosen"][row][:i]]
                        for i, c in enumerate(candidates[row])
                    ]
                )
                keep = first & part["chosen"][row]
                logits.append(score.masked_fill(~keep, -math.inf))
            rows = [torch.stack(logits[1:])]
            having = [
                (one, other)
                for one, other in zip(ranks, h)
                if etype in one["parts"] and not one["parts"][etype]["chosen"].all()
            ]
            for one, other in having:
                theirs = one["parts"][etype]
                drawn = theirs["rows"][2][~theirs["chosen"]]
                ratio = theirs["ratio"][~theirs["chosen"]]
                score = query @ other[etype[2]][drawn].t() - ratio
                count = len(drawn) * len(having)
                score = score + math.log(part["known"].shape[1] / count)
                rows.append(score.masked_fill(hard[:, theirs["ids"][drawn]], -math.inf))
            every = torch.cat([logits[0], *rows], dim=1)
            loss = loss + (every.logsumexp(1) - logits[0].squeeze(1)).mean()
        torch.testing.assert_close(mine["loss"], loss.detach())
        total = total + loss
    total.backward()
    for one, own in zip(ranks, h):
        for ntype, slope in one["slope"].items():
            mine = own[ntype].grad
            torch.testing.assert_close(slope, torch.zeros_like(slope) if mine is None else mine)


def work(rank: int, ranks: int) -> dict[str, Any]:
    g, shop = graph(), market()
    torch.manual_seed(rank)
    uniform, two = make("uniform", g, k=K), make("uniform", shop, k=K)
    dmns = refreshed("dmns", g, lambda: torch.randn(N, WIDTH, generator=rng(1)), k=K)
    eids, result = torch.randperm(g.num_edges()), {}
    for name, sampler in (("uniform", uniform), ("chosen", dmns)):
        for more, some in (("", eids[: 9 - 3 * rank]), (" empty", eids[: 5 * (1 - rank)])):
            one = batch(g, sampler, some, rank)
            result[name + more] = told(sampler, one, sampler.loss(*one, gather=True))
    bought, liked = eids[:6] % 100, eids[6:12] % 100
    some = {TYPES[0]: bought, TYPES[1]: liked} if rank else {TYPES[1]: liked}
    one = batch(shop, two, some, rank)
    result["types"] = told(two, one, two.loss(*one, gather=True))

    # In half precision, as those embeddings rounded.
    h, *graphs = batch(g, uniform, eids[:8], rank)
    rounded = h.detach().bfloat16().requires_grad_()
    losses = [uniform.loss(x, *graphs, gather=True) for x in (rounded, rounded.detach().float())]
    losses[0].backward()
    result["half"] = (losses, rounded.grad)

    # So many at most of all ranks.
    sizes: list[int] = []

    def scorer(a: Tensor, b: Tensor) -> Tensor:
        sizes.append(b.shape[-2])
        return (a * b).sum(-1)

    loss = uniform.loss(h, *graphs, gather=True, pool=5, scorer=scorer)
    (slope,) = torch.autograd.grad(loss, h)
    result["pool"] = (max(size for size in sizes[1:]), slope)
    with torch.no_grad():
        result["no gradient"] = uniform.loss(h, *graphs, gather=True)

    # What does not fit is told on all.
    other = graphs[1] if not rank else dgl.add_edges(graphs[1], 0, 0)
    narrow = h if not rank else h[:, 1:]
    alone = make("uniform", graph() if rank else dgl.add_nodes(graph(), 2), k=K)
    nan = h if rank else h * math.nan
    result["errors"] = {
        "neg_graph": said(lambda: uniform.loss(h, graphs[0], other, gather=True)),
        "h": said(lambda: uniform.loss(narrow, *graphs, gather=True)),
        "dtype": said(lambda: uniform.loss(h.float() if rank else h, *graphs, gather=True)),
        "gradient": said(lambda: uniform.loss(h.detach() if rank else h, *graphs, gather=True)),
        "nodes": said(lambda: alone.loss(h, *graphs, gather=True)),
        "NaN": said(lambda: uniform.loss(nan, *graphs, gather=True)),
        "pool": said(lambda: uniform.loss(h, *graphs, gather=True, pool=1)),
        "share": said(lambda: uniform.loss(h, *graphs, gather=True, share="edge")),
        "reduce": said(lambda: uniform.loss(h, *graphs, gather=True, reduce="none")),
        "twice": said(
            lambda: torch.autograd.grad(uniform.loss(h, *graphs, gather=True), h, create_graph=True)
        ),
    }
    result["after"] = uniform.loss(h, *graphs, gather=True).detach()  # they still meet
    return result


def test_each_positive_sees_the_candidates_of_all_ranks(tmp_path: Path) -> None:
    results = on_ranks(work, 2, tmp_path)
    for name in ("uniform", "chosen", "uniform empty", "chosen empty", "types"):
        reference([one[name] for one in results])
    chosen = [one["chosen"]["parts"]["_N", "_E", "_N"]["chosen"] for one in results]
    assert all(part.any() and not part.all() for part in chosen)
    assert all(len(one["types"]["parts"]) == 1 + rank for rank, one in enumerate(results))
    empty = results[1]["uniform empty"]
    assert not float(empty["loss"])
    assert results[0]["uniform empty"]["loss"] > 0
    for one in results:
        (half, whole), slope = one["half"]
        torch.testing.assert_close(half, whole)
        assert slope.dtype == torch.bfloat16
        assert slope.any()
        most, slope = one["pool"]
        assert most == 5
        assert slope.any()
        assert math.isfinite(float(one["no gradient"]))
        assert one["after"] == one["no gradient"]
    first, second = (one["errors"] for one in results)
    other = "could not offer their candidates, rank {} for one (ValueError: {}"
    assert second["neg_graph"].startswith("ValueError: neg_graph: expected K negatives for each")
    assert other.format(1, "neg_graph: expected K") in first["neg_graph"]
    assert first["NaN"].startswith("ValueError: h: NaN or infinity in")
    assert other.format(0, "h: NaN") in second["NaN"]
    for name, start in (
        ("h", "RuntimeError: h: ranks differ in the embeddings of candidates of ('_N', '_E', '_N'"),
        ("dtype", "RuntimeError: h: ranks differ in the embeddings"),
        ("gradient", "RuntimeError: h: embeddings have a gradient on ranks [0] alone; with"),
        ("nodes", "RuntimeError: gather: ranks differ in edge types and numbers of nodes: rank 0"),
        ("pool", "ValueError: pool: with gather=True expected at least one candidate for each of"),
        ("share", "ValueError: gather: shares the negatives of all ranks, and share='edge'"),
        ("reduce", "ValueError: reduce: with gather=True the losses of all edge types are one sum"),
        ("twice", "RuntimeError: gather: gradients that come from other ranks cannot be"),
    ):
        assert first[name].startswith(start), first[name]
        assert first[name] == second[name]


@pytest.fixture
def _alone(tmp_path: Path) -> Any:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("_alone")
def test_one_rank_alone_has_the_loss_of_its_batch() -> None:
    g = graph()
    sampler = make("uniform", g, k=K)
    h, *graphs = batch(g, sampler, torch.arange(12), 0)
    for more in ({}, {"pool": 20}, {"filtered": False}, {"temperature": 0.5}):
        found = []
        for gather in (False, True):
            torch.manual_seed(2)
            loss = sampler.loss(h, *graphs, gather=gather, **more)
            found.append((loss.detach(), torch.autograd.grad(loss, h)[0]))
        for one, other in zip(*found):
            torch.testing.assert_close(one, other)


def test_ranks_have_to_be_able_to_talk() -> None:
    g = graph()
    sampler = make("uniform", g, k=K)
    one = batch(g, sampler, torch.arange(12), 0)
    with pytest.raises(RuntimeError, match="gather: .*call torch.distributed.init_process_group"):
        sampler.loss(*one, gather=True)
