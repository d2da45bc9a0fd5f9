"""Complete a knowledge graph: an R-GCN with a DistMult decoder, uniform and DMNS negatives.

Run ``python examples/rgcn.py``; triples are generated on the spot. A query is an entity and a
relation: (head, relation) asks for tails, (tail, inverse of the relation) for heads, so that one
sampler, one table and one diffusion model serve all relations. For each triple a sampler returns k
entities for both sides such that the triple is not known, and ``negatives.loss`` compares it with
those of the whole batch. The difference between the two runs is one line, in `negative_sampler`.
The table says how both fare, whoever wins.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from dgl_dmns import DMNSSampler, UniformSampler
from dgl_dmns.core import KnownEdges
from dgl_dmns.data import QueryGraph, generated_triples
from dgl_dmns.evaluate import filtered_ranking, ranking_metrics
from dgl_dmns.models import RGCN, edge_loader
from dgl_dmns.seeds import seed_all


def negative_sampler(kind: str, g: Any, model: RGCN, k: int, seed: int) -> Any:
    """Uniform or ours; only ``to``, from a query to an entity, is predicted."""
    if kind == "uniform":
        return UniformSampler(g, k)
    return DMNSSampler(g, model, k=k, etypes=["to"], seed=seed)


def train(kind: str, triples: Tensor, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """One run with early stopping on the validation MRR; test metrics."""
    heads, kinds, tails = triples
    queries = QueryGraph.from_triples(heads, kinds, tails, args.entities, args.relations)
    count = triples.shape[1]
    parts = triples.tensor_split([int(0.8 * count), int(0.9 * count)], dim=1)
    training, val, test = (queries.pairs(*part) for part in parts)
    g = queries.graph(training)
    every = torch.cat([training, val, test], dim=1)  # no ranking counts known triples as mistakes
    known = KnownEdges(every[0], every[1], queries.num_queries, args.entities, exclude_self=False)
    seed_all(seed)
    model = RGCN(queries, width=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    negatives = negative_sampler(kind, g, model, args.k, seed)
    loader = edge_loader(model, g, negatives, args.fanout, batch_size=args.batch_size)
    if kind == "dmns":
        negatives.attach(optimizer, every=len(loader))  # once an epoch

    @torch.no_grad()
    def evaluate(pairs: Tensor) -> dict[str, float]:
        """Each held-out tail and head among all entities that make no known triple."""
        h = model.eval()(g, g.ndata["feat"])
        ranks = filtered_ranking(h["query"], h["item"], pairs, known)
        return ranking_metrics(ranks, hits=(1, 10))

    best, best_epoch, best_state, seconds = -1.0, 0, {}, 0.0
    for epoch in range(args.epochs):
        started = time.perf_counter()
        model.train()
        for input_nodes, pos_graph, neg_graph, blocks in loader:
            loss = negatives.loss(model(blocks, input_nodes), pos_graph, neg_graph)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds += time.perf_counter() - started
        mrr = evaluate(val)["MRR"]
        if mrr > best:
            best, best_epoch, best_state = mrr, epoch, copy.deepcopy(model.state_dict())
        elif epoch - best_epoch >= args.patience:
            break
    model.load_state_dict(best_state)
    return {**evaluate(test), "epochs": epoch + 1.0, "seconds/epoch": seconds / (epoch + 1)}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--entities", type=int, default=400)
    parser.add_argument("--relations", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds")
    parser.add_argument("--epochs", type=int, default=200, help="at most this many")
    parser.add_argument("--patience", type=int, default=20, help="epochs without improvement")
    parser.add_argument("--k", type=int, default=1, help="negatives per triple and side, for both")
    parser.add_argument("--fanout", type=int, default=10, help="triples of an entity that are read")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=1e-2)
    args = parser.parse_args(argv)
    names = ("entities", "relations", "seeds", "epochs", "patience", "k", "fanout", "batch_size")
    for name in names:
        least = 10 if name == "entities" else 1
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')}: expected at least {least}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Train with both samplers and print the table."""
    args = arguments(argv)
    torch.set_num_threads(1)  # the fastest for matrices as small as these
    rows = []
    for seed in range(args.seeds):
        triples = generated_triples(args.entities, args.relations, seed)
        rows += [
            {"sampler": kind, **train(kind, triples, seed, args)} for kind in ("uniform", "dmns")
        ]
    sizes = f"{args.entities} entities, {args.relations} relations"
    print(f"{sizes}; mean over {args.seeds} seed(s):\n")
    result = pd.DataFrame(rows).groupby("sampler", sort=False).mean()
    print(result.to_string(float_format=lambda v: f"{v:.3f}"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
