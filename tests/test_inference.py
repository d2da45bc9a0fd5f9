"""Embeddings layer by layer, against a pass over the whole graph."""

from typing import Any

import dgl
import dgl.nn.pytorch as dglnn
import pytest
import torch
from torch import Tensor, nn

from dgl_dmns import Diffusion, DMNSSampler
from dgl_dmns.inference import layerwise_inference

NODES = 60


class Sage(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = dglnn.SAGEConv(5, 8, "mean")
        self.second = dglnn.SAGEConv(8, 4, "mean")
        self.dropout = nn.Dropout(0.5)

    def between(self, block, h):
        return self.dropout(self.first(block, h).relu())

    def forward(self, g, x):
        return self.second(g, self.between(g, x))


@pytest.fixture
def made():
    torch.manual_seed(0)
    dgl.seed(0)
    g = dgl.rand_graph(NODES, 300)
    return g, torch.randn(NODES, 5), Sage()


@pytest.mark.parametrize("idtype", [torch.int32, torch.int64])
def test_all_neighbours_give_the_embeddings_of_the_whole_graph(made, idtype):
    g, x, model = made
    layers = [model.between, model.second]
    h = layerwise_inference(g.astype(idtype), x, layers, batch_size=7, model=model)
    assert all(part.training for part in model.modules())
    assert not h.requires_grad
    model.eval()
    torch.testing.assert_close(h, model(g, x))


def test_a_fanout_estimates_them_without_bias(made):
    g, x, model = made
    model.eval()
    with torch.no_grad():
        exact = model.first(g, x)
    drawn = [layerwise_inference(g, x, [model.first], fanout=2) for _ in range(300)]
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(torch.stack(drawn).mean(0), exact, atol=0.25, rtol=0)


def test_node_types_of_a_heterogeneous_graph(made):
    ends = torch.randint(0, 20, (2, 90))
    g = dgl.heterograph({("u", "buys", "i"): tuple(ends), ("i", "sold", "u"): tuple(ends.flip(0))})
    x = {ntype: torch.randn(g.num_nodes(ntype), 5) for ntype in g.ntypes}
    layer = dglnn.HeteroGraphConv({e: dglnn.SAGEConv(5, 5, "mean") for e in g.etypes})
    h = layerwise_inference(g, x, [layer, layer], batch_size=6)
    with torch.no_grad():
        whole = layer(g, layer(g, x))
    assert h.keys() == whole.keys()
    for ntype in h:
        torch.testing.assert_close(h[ntype], whole[ntype])


def test_node_types_without_incoming_edges_drop_out(made):
    ends = torch.randint(0, 20, (2, 90))
    g = dgl.heterograph({("u", "buys", "i"): tuple(ends)}, num_nodes_dict={"u": 20, "i": 20})
    x = {ntype: torch.randn(20, 5) for ntype in g.ntypes}
    layer = dglnn.HeteroGraphConv({"buys": dglnn.SAGEConv(5, 3, "mean")})
    assert list(layerwise_inference(g, x, [layer])) == ["i"]


def test_as_the_encoder_of_a_sampler(made):
    g, x, model = made
    sampler = DMNSSampler(
        g,
        lambda: layerwise_inference(g, x, [model.between, model.second], model=model, fanout=3),
        k=2,
        diffusion=Diffusion(warmup_steps=3),
    )
    assert sampler.refresh().version == 1


def test_bad_input_is_named(made):
    g, x, model = made
    for arguments, message in (
        ((x, []), "layers: expected at least one"),
        ((x[:3], [model.first]), "features: expected a row for each node, got 3 for 60 nodes"),
        (({"other": x}, [model.first]), "got 60 for no nodes of type 'other'"),
        ((x, [dglnn.GATConv(5, 4, 2, allow_zero_in_degree=True)]), r"got \(60, 2, 4\); flatten"),
    ):
        with pytest.raises(ValueError, match=message):
            layerwise_inference(g, *arguments)
    for name in ("fanout", "batch_size"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
            layerwise_inference(g, x, [model.first], **{name: 0})


def buys() -> tuple[Any, dict[str, Tensor]]:
    user, item = torch.tensor([0, 1, 2, 3, 4, 5, 0, 2]), torch.tensor([0, 1, 2, 3, 4, 5, 1, 3])
    g = dgl.heterograph(
        {("user", "buys", "item"): (user, item), ("item", "bought-by", "user"): (item, user)},
        num_nodes_dict={"user": 10, "item": 6},
    )
    source = torch.Generator().manual_seed(3)
    return g, {t: torch.randn(g.num_nodes(t), 4, generator=source) for t in g.ntypes}


def without_empty_relations(block: Any, h: dict[str, Tensor]) -> dict[str, Tensor]:
    """As R-GCN layers that leave out relations without edges, with a bias on what is there."""
    out = {}
    for source, relation, destination in block.canonical_etypes:
        part = block[source, relation, destination]
        if part.num_edges():
            with part.local_scope():
                part.srcdata["h"] = h[source]
                part.update_all(dgl.function.copy_u("h", "m"), dgl.function.mean("m", "o"))
                out[destination] = part.dstdata["o"] + 3
    return out


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_nodes_left_out_by_a_layer_are_as_in_one_batch(batch_size: int) -> None:
    g, x = buys()
    layers = [without_empty_relations] * 2
    whole = layerwise_inference(g, x, layers, batch_size=100)
    parts = layerwise_inference(g, x, layers, batch_size=batch_size)
    assert bool((whole["user"][6:] == 3).all())
    assert whole.keys() == parts.keys()
    for ntype in whole:
        torch.testing.assert_close(parts[ntype], whole[ntype])


FIRST = torch.zeros(1, 4)


@pytest.mark.parametrize(
    ("rows_of", "message"),
    [
        (lambda ids: FIRST.to(torch.float64 if ids[0] == 0 else None), "float32.*'user'.*float64"),
        (lambda ids: FIRST[:, : 4 if ids[0] == 0 else 3], r"\[B, 3\].*\[B, 4\]"),
        (lambda ids: None if ids.max() >= 6 else FIRST, r"nodes \[6, 7\] of type 'user'"),
        (lambda ids: None, "no rows for any node"),
        (lambda ids: ids, "a dict of tensors by node type from each layer, got Tensor"),
    ],
    ids=["dtype", "width", "left out beside others", "never", "no dict"],
)
def test_rows_that_differ_between_batches_are_refused(rows_of: Any, message: str) -> None:
    g, x = buys()

    def layer(block: Any, h: dict[str, Tensor]) -> Any:
        ids = block.dstnodes["user"].data[dgl.NID]
        if not len(ids):
            return {}
        rows = rows_of(ids)
        if rows is None or rows is ids:
            return {} if rows is None else ids
        return {"user": rows.expand(len(ids), -1)}

    with pytest.raises(ValueError, match=message):
        layerwise_inference(g, x, [layer], batch_size=2)
