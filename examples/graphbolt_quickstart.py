"""Link prediction with a GraphBolt pipeline: negatives that the batch shares, uniform and DMNS.

Run ``python examples/graphbolt_quickstart.py``; the graph is generated on the spot. The loss is one
call, of either sampler. At the end it prints the test metrics of both.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import dgl
import torch
from dgl import graphbolt as gb
from torch import Tensor, nn

import dgl_dmns.graphbolt  # noqa: F401  (registers sample_negative_with)
from dgl_dmns import DMNSSampler, UniformSampler
from dgl_dmns.data import EdgeSplit, GraphData, embedded_graph, split_pairs
from dgl_dmns.evaluate import full_ranking, ranking_metrics
from dgl_dmns.models import GraphSAGE
from dgl_dmns.seeds import fit_seed, seed_all

KINDS = ("uniform", "dmns")


# 1. The pipeline. ---------------------------------------------------------------------------------


def pipeline(g: Any, negatives: Any, args: argparse.Namespace) -> Any:
    """Edges of the training graph in minibatches, with negatives, neighbours and features.

    Items are ``seeds``, pairs of nodes: GraphBolt from DGL 2.1 on knows them.
    """
    graph = gb.from_dglgraph(g, is_homogeneous=True)
    edges = gb.ItemSet(torch.stack(g.edges(), dim=1), names="seeds")
    feature = gb.TorchBasedFeature(g.ndata["feat"])
    features = gb.BasicFeatureStore({("node", None, "feat"): feature})

    datapipe = gb.ItemSampler(edges, batch_size=args.batch_size, shuffle=True)
    datapipe = datapipe.sample_negative_with(negatives)
    datapipe = datapipe.sample_neighbor(graph, [10, 10])
    # An encoder that sees an edge while it is asked for it learns nothing: hide it, both ways.
    datapipe = datapipe.transform(partial(gb.exclude_seed_edges, include_reverse_edges=True))
    datapipe = datapipe.fetch_feature(features, node_feature_keys=["feat"])
    return gb.DataLoader(datapipe, num_workers=args.workers)


# 2. Training. -------------------------------------------------------------------------------------


def training_graph(data: GraphData, split: EdgeSplit) -> Any:
    """The graph of the training edges, in both directions."""
    g = dgl.graph(split.message_edges(), num_nodes=data.num_nodes)
    g.ndata["feat"] = nn.functional.normalize(data.features, dim=1)
    return g


def train(kind: str, data: GraphData, split: EdgeSplit, args: argparse.Namespace) -> dict[str, Any]:
    """One run; the test metrics are those of the epoch with the best validation MRR."""
    seed_all(args.seed)
    gb.seed(fit_seed(args.seed, bits=31))
    g = training_graph(data, split)
    model = GraphSAGE(data.num_nodes, features=g.ndata["feat"].shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    if kind == "dmns":
        negatives = DMNSSampler(g, model, k=args.k, seed=args.seed)
        negatives.attach(optimizer, every=-(-g.num_edges() // args.batch_size))  # once an epoch
    else:
        negatives = UniformSampler(g, k=args.k)
    loader = pipeline(g, negatives, args)
    known = data.csr()
    best, result, started = 0.0, {}, time.perf_counter()
    for _ in range(args.epochs):
        model.train()
        for minibatch in loader:
            h = model(minibatch.blocks, minibatch.node_features["feat"])
            loss = negatives.loss(h, minibatch)  # each positive against all negatives
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        h = embed(model, g)
        mrr = ranking_metrics(full_ranking(h, split.val, known))["MRR"]
        if mrr > best:
            best = mrr
            result = ranking_metrics(full_ranking(h, split.test, known), hits=(10, 50))
    return {**result, "seconds/epoch": (time.perf_counter() - started) / args.epochs}


@torch.no_grad()
def embed(model: nn.Module, g: Any) -> Tensor:
    """Embeddings of all nodes."""
    model.eval()
    h: Tensor = model(g, g.ndata["feat"])
    return h


# 4. The command. ----------------------------------------------------------------------------------


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", type=int, default=2500, help="of the generated graph")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--k", type=int, default=1, help="negatives per edge, for both")
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=0, help="processes that sample")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    least_of = {"nodes": 50, "epochs": 1, "k": 1, "batch_size": 1}
    for name, least in least_of.items():
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')}: expected at least {least}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Train with both kinds of negatives and print the table."""
    args = arguments(argv)
    data = embedded_graph(num_nodes=args.nodes)
    split = split_pairs(data, seed=args.seed)
    print(f"{data}; {args.k} negatives per edge, {args.epochs} epochs")
    results = {kind: train(kind, data, split, args) for kind in KINDS}
    print("".join(f"{name:>15}" for name in ("negatives", *results["dmns"])))
    for kind, result in results.items():
        print(f"{kind:>15}" + "".join(f"{value:15.3f}" for value in result.values()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
