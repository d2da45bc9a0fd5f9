"""Recommend items to users, with uniform and with DMNS negatives.

Run ``python examples/recommend.py``; purchases are generated on the spot. For each purchase a
sampler returns k items that the user has not bought, and ``negatives.loss`` compares the purchase
with those of the whole batch. The difference between the two runs is one line, in
`negative_sampler`. The table says how both fare, whoever wins: on data as smooth as these, hard
negatives are often likely items, and uniform ones are hard to beat.
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
from dgl_dmns.data import generated_shop, shop_graph
from dgl_dmns.evaluate import recommendation_metrics
from dgl_dmns.models import LightGCN, edge_loader
from dgl_dmns.seeds import seed_all


def negative_sampler(kind: str, g: Any, model: LightGCN, k: int, seed: int) -> Any:
    """Uniform or ours; only ``to``, from a user to an item, is predicted."""
    if kind == "uniform":
        return UniformSampler(g, k)
    return DMNSSampler(g, model, k=k, etypes=["to"], seed=seed)


def train(kind: str, purchases: Tensor, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """One run with early stopping on the validation NDCG; test metrics."""
    count = purchases.shape[1]
    parts = purchases.tensor_split([int(0.7 * count), int(0.8 * count)], dim=1)
    (user, item), val, test = parts
    g = shop_graph(user, item, args.users, args.items)
    bought = KnownEdges(user, item, args.users, args.items, exclude_self=False)
    seed_all(seed)
    model = LightGCN(g, temperature=0.2)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    negatives = negative_sampler(kind, g, model, args.k, seed)
    loader = edge_loader(model, g, negatives, batch_size=args.batch_size)
    if kind == "dmns":
        negatives.attach(optimizer, every=len(loader))  # once an epoch

    @torch.no_grad()
    def evaluate(pairs: Tensor) -> dict[str, float]:
        """Recall@20 and NDCG@20 among all items that the user has not bought in training."""
        h = model.eval()(g, g.ndata["feat"])
        return recommendation_metrics(h["query"], h["item"], pairs, bought, n=20)

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
        ndcg = evaluate(val)["NDCG@20"]
        if ndcg > best:
            best, best_epoch, best_state = ndcg, epoch, copy.deepcopy(model.state_dict())
        elif epoch - best_epoch >= args.patience:
            break
    model.load_state_dict(best_state)
    return {**evaluate(test), "epochs": epoch + 1.0, "seconds/epoch": seconds / (epoch + 1)}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=600)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds")
    parser.add_argument("--epochs", type=int, default=200, help="at most this many")
    parser.add_argument("--patience", type=int, default=20, help="epochs without improvement")
    parser.add_argument("--k", type=int, default=1, help="negatives per purchase, for both")
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=1e-2)
    args = parser.parse_args(argv)
    for name in ("users", "items", "seeds", "epochs", "patience", "k", "batch_size"):
        least = 20 if name == "items" else 1
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')}: expected at least {least}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Train with both samplers and print the table."""
    args = arguments(argv)
    torch.set_num_threads(1)  # the fastest for matrices as small as these
    rows = []
    for seed in range(args.seeds):
        purchases = generated_shop(args.users, args.items, seed)
        rows += [
            {"sampler": kind, **train(kind, purchases, seed, args)} for kind in ("uniform", "dmns")
        ]
    print(f"{args.users} users, {args.items} items; mean over {args.seeds} seed(s):\n")
    result = pd.DataFrame(rows).groupby("sampler", sort=False).mean()
    print(result.to_string(float_format=lambda v: f"{v:.3f}"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
