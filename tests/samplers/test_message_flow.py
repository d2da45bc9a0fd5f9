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
from dgl.dataloading import MultiLayerFullNeighborSampler, NeighborSampler
from shared import BUYS, check, ends, loader, pairs, refreshed
from torch import Tensor

NODES, K = 30, 3
SOLD = ("item", "sold to", "user")


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


def check_negatives(g: Any, etype: Any, positive: Any, negative: Any) -> None:
    src, dst = ends(negative, etype)
    assert torch.equal(src, ends(positive, etype)[0].repeat_interleave(K))
    check(g, src, dst, etype)


def messages(blocks: list[Any], etype: Any) -> Tensor:
    """The ids of all edges that carry a message."""
    return torch.cat([block.edges[etype].data[dgl.EID] for block in blocks])


@pytest.mark.parametrize(
    ("flow", "idtype", "workers"),
    [
        (MultiLayerFullNeighborSampler(2), torch.int64, 0),
        (NeighborSampler([4, 4]), torch.int32, 2),
    ],
)
@pytest.mark.parametrize("exclude", [None, "self", "reverse_id"])
@pytest.mark.parametrize("kind", HALVES)
def test_predicted_edges_carry_no_messages(
    kind: str, exclude: Any, flow: Any, idtype: torch.dtype, workers: int
) -> None:
    g, reverse = graph(HALVES[kind], idtype)
    more = {"reverse_eids": reverse} if exclude == "reverse_id" else {}
    seeds = torch.arange(g.num_edges(), dtype=idtype)
    etype = g.canonical_etypes[0]
    seen, carried = [], torch.zeros(2, dtype=torch.int64)
    batches = loader(g, refreshed("dmns", g), workers, flow=flow, exclude=exclude, **more)
    for inputs, positive, negative, blocks in batches:
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


@pytest.mark.parametrize("exclude", [None, "self", "reverse_types"])
def test_predicted_edges_of_several_types(exclude: Any) -> None:
    """Parallel purchases, users and items without any, and a reverse type for the messages."""
    user, item = (ids.repeat(2) for ids in pairs(20, 12, 40))
    g = dgl.heterograph({BUYS: (user, item), SOLD: (item, user)}, {"user": 25, "item": 15})
    more = {"reverse_etypes": {"buys": "sold to", "sold to": "buys"}}
    batches = loader(
        g,
        refreshed("dmns", g, etypes=["buys"]),
        eids={"buys": torch.arange(g.num_edges("buys"))},
        flow=MultiLayerFullNeighborSampler(2),
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
        flow = MultiLayerFullNeighborSampler(1)
        batches = loader(g, refreshed("dmns", g), flow=flow, exclude=exclude)
        for _, positive, negative, blocks in batches:
            used = messages(blocks, g.canonical_etypes[0])
            leaked[name] += int(torch.isin(used, all_between(positive.edata[dgl.EID])).sum())
            check_negatives(g, g.canonical_etypes[0], positive, negative)
    assert leaked["function"] == 0
    assert leaked["self"] > 0
