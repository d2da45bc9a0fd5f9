"""Edges that are predicted carry no messages, whatever the graph looks like; negatives stay right.

DGL takes the edges of a batch (and their reverses) out of the messages, and looks up the neighbours
of the ends of positives and negatives alike. Here that is done with our samplers, on graphs with
parallel edges, self-loops and isolated nodes, and compared with what is in the blocks.
"""

from __future__ import annotations

from typing import Any, Callable

import dgl
import pytest
import torch
from dgl.dataloading import (
    DataLoader,
    MultiLayerFullNeighborSampler,
    NeighborSampler,
    as_edge_prediction_sampler,
)
from torch import Tensor

from dgl_dmns.samplers import DMNSSampler, UniformSampler

pytestmark = pytest.mark.filterwarnings("ignore:Dataloader CPU affinity")

NODES, K = 30, 3
SMALL: dict[str, Any] = {"warmup_steps": 4, "fit_steps": 2, "batch_pairs": 64, "groups": 3}
BUYS, SOLD = ("user", "buys", "item"), ("item", "sold to", "user")


def pairs(sources: int, destinations: int, count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, sources, (count,), generator=source),
        torch.randint(0, destinations, (count,), generator=source),
    )


def multigraph() -> tuple[Tensor, Tensor]:
    src, dst = pairs(NODES, NODES, 60)
    return src.repeat(2), dst.repeat(2)


def self_loops() -> tuple[Tensor, Tensor]:
    src, dst = pairs(NODES, NODES, 60)
    return torch.cat([src, torch.arange(NODES)]), torch.cat([dst, torch.arange(NODES)])


def isolated() -> tuple[Tensor, Tensor]:
    return pairs(12, 12, 50)  # 18 nodes without an edge


HALVES = {"parallel edges": multigraph, "self-loops": self_loops, "isolated nodes": isolated}


def graph(half: Callable[[], Any], idtype: torch.dtype = torch.int64) -> tuple[Any, Tensor]:
    """A graph with edges both ways, edge e's reverse being e + E/2, and the ids of the reverses."""
    src, dst = half()
    g = dgl.graph((torch.cat([src, dst]), torch.cat([dst, src])), num_nodes=NODES).astype(idtype)
    return g, torch.arange(g.num_edges(), dtype=idtype).roll(len(src))


def sampler_for(g: Any, **more: Any) -> DMNSSampler:
    def embed(graph: Any) -> Any:
        source = torch.Generator().manual_seed(3)
        h = {n: torch.randn(graph.num_nodes(n), 6, generator=source) for n in graph.ntypes}
        return h if len(h) > 1 else next(iter(h.values()))

    sampler = DMNSSampler(g, embed, K, **SMALL, **more)
    sampler.refresh()
    return sampler


def loader(g: Any, seeds: Any, flow: Any, sampler: Any, workers: int, **exclude: Any) -> Any:
    return DataLoader(
        g,
        seeds,
        as_edge_prediction_sampler(flow, negative_sampler=sampler, **exclude),
        batch_size=16,
        shuffle=True,
        num_workers=workers,
    )


def whole_ids(graph: Any, etype: Any) -> tuple[Tensor, Tensor]:
    """Ends of the edges of a pair graph, as ids of the whole graph."""
    src, dst = graph.edges(etype=etype)
    return (
        graph.nodes[etype[0]].data[dgl.NID][src.long()].long(),
        graph.nodes[etype[2]].data[dgl.NID][dst.long()].long(),
    )


def check_negatives(g: Any, etype: Any, positive: Any, negative: Any) -> None:
    barred = torch.zeros(g.num_nodes(etype[0]), g.num_nodes(etype[2]), dtype=torch.bool)
    if etype[0] == etype[2]:
        barred.fill_diagonal_(True)
    src, dst = (end.long() for end in g.edges(etype=etype))
    barred[src, dst] = True
    src, dst = whole_ids(negative, etype)
    assert torch.equal(src, whole_ids(positive, etype)[0].repeat_interleave(K))
    assert not barred[src, dst].any()


def messages(blocks: list[Any], etype: Any) -> Tensor:
    """The ids of all edges that carry a message."""
    return torch.cat([block.edges[etype].data[dgl.EID] for block in blocks])


FLOWS = {
    "all neighbours": lambda: MultiLayerFullNeighborSampler(2),
    "some neighbours": lambda: NeighborSampler([4, 4]),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("idtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("exclude", [None, "self", "reverse_id"])
@pytest.mark.parametrize("kind", HALVES)
def test_predicted_edges_carry_no_messages(
    kind: str, exclude: Any, flow: str, idtype: torch.dtype, workers: int
) -> None:
    g, reverse = graph(HALVES[kind], idtype)
    more = {"reverse_eids": reverse} if exclude == "reverse_id" else {}
    seeds = torch.arange(g.num_edges(), dtype=idtype)
    etype = g.canonical_etypes[0]
    seen, carried = [], torch.zeros(2, dtype=torch.int64)
    for inputs, positive, negative, blocks in loader(
        g, seeds, FLOWS[flow](), sampler_for(g), workers, exclude=exclude, **more
    ):
        asked = positive.edata[dgl.EID].long()
        seen.append(asked)
        used = messages(blocks, etype).long()
        for at, hidden in enumerate((asked, reverse.long()[asked])):
            carried[at] += int(torch.isin(used, hidden).sum())
        # Embeddings come for the very nodes that positives and negatives join.
        assert torch.equal(blocks[-1].dstdata[dgl.NID], positive.ndata[dgl.NID])
        assert torch.equal(negative.ndata[dgl.NID], positive.ndata[dgl.NID])
        assert torch.equal(inputs, blocks[0].srcdata[dgl.NID])
        assert negative.idtype == idtype
        check_negatives(g, etype, positive, negative)
    assert torch.equal(torch.cat(seen).sort().values, seeds.long())
    # What is to be hidden is hidden; what is not, is there (or this test could not fail).
    assert (carried == 0).tolist() == [exclude is not None, exclude == "reverse_id"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("exclude", [None, "self", "reverse_types"])
def test_predicted_edges_of_several_types(exclude: Any, workers: int) -> None:
    """Parallel purchases, users and items without any, and a reverse type for the messages."""
    user, item = (ids.repeat(2) for ids in pairs(20, 12, 40))
    g = dgl.heterograph({BUYS: (user, item), SOLD: (item, user)}, {"user": 25, "item": 15})
    more = {"reverse_etypes": {"buys": "sold to", "sold to": "buys"}}
    batches = loader(
        g,
        {"buys": torch.arange(g.num_edges("buys"))},
        MultiLayerFullNeighborSampler(2),
        sampler_for(g, etypes=["buys"]),
        workers,
        exclude=exclude,
        **(more if exclude == "reverse_types" else {}),
    )
    seen, carried = [], {BUYS: 0, SOLD: 0}
    for _, positive, negative, blocks in batches:
        asked = positive.edges["buys"].data[dgl.EID]
        seen.append(asked)
        for etype in carried:
            carried[etype] += int(torch.isin(messages(blocks, etype), asked).sum())
        assert negative.num_edges("sold to") == 0
        check_negatives(g, BUYS, positive, negative)
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(80))
    assert [n == 0 for n in carried.values()] == [exclude is not None, exclude == "reverse_types"]


def test_parallel_edges_of_the_predicted_one_have_to_be_named() -> None:
    """DGL hides edges by id: the twin of a predicted edge still carries its message.

    A function as ``exclude`` hides twins too, and the sampler has nothing to do with either.
    """
    g, _ = graph(multigraph)
    src, dst = g.edges()
    twins: dict[Any, list[int]] = {}
    for eid, pair in enumerate(zip(src.tolist(), dst.tolist())):
        twins.setdefault(tuple(sorted(pair)), []).append(eid)

    def all_between(eids: Tensor) -> Tensor:
        ends = zip(src[eids].tolist(), dst[eids].tolist())
        return torch.tensor([eid for pair in ends for eid in twins[tuple(sorted(pair))]])

    leaked = {}
    for name, exclude in (("self", "self"), ("function", all_between)):
        leaked[name] = 0
        batches = loader(
            g,
            torch.arange(g.num_edges()),
            MultiLayerFullNeighborSampler(1),
            sampler_for(g),
            0,
            exclude=exclude,
        )
        for _, positive, negative, blocks in batches:
            used = messages(blocks, g.canonical_etypes[0])
            leaked[name] += int(torch.isin(used, all_between(positive.edata[dgl.EID])).sum())
            check_negatives(g, g.canonical_etypes[0], positive, negative)
    assert leaked["function"] == 0
    assert leaked["self"] > 0


@pytest.mark.parametrize("make", [sampler_for, lambda g: UniformSampler(g, K)])
def test_isolated_nodes_are_candidates_and_may_be_queries(make: Any) -> None:
    g, _ = graph(isolated)
    sampler = make(g)
    alone = torch.arange(12, NODES)
    drawn = torch.cat([sampler(g, torch.arange(g.num_edges()))[1] for _ in range(20)])
    assert torch.isin(alone, drawn).all()
    chosen = sampler.for_queries(g, alone)
    assert chosen.shape == (len(alone), K)
    assert (chosen != alone.unsqueeze(1)).all()


def test_refreshes_in_the_middle_of_an_epoch_change_no_message() -> None:
    g, reverse = graph(multigraph)
    sampler = sampler_for(g)
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    handle = sampler.attach(optimizer, every=2)
    etype = g.canonical_etypes[0]
    for _, positive, negative, blocks in loader(
        g,
        torch.arange(g.num_edges()),
        NeighborSampler([4, 4]),
        sampler,
        2,
        exclude="reverse_id",
        reverse_eids=reverse,
    ):
        weight.square().backward()
        optimizer.step()
        asked = positive.edata[dgl.EID]
        assert not torch.isin(messages(blocks, etype), torch.cat([asked, reverse[asked]])).any()
        check_negatives(g, etype, positive, negative)
    handle.remove()
    assert sampler.version == 2 + 15 // 2
