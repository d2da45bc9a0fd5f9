"""Recommend items to users: a bipartite graph, trained with uniform and with DMNS negatives.

Run ``python examples/recommend.py``; users, items and purchases are generated on the spot. For each
purchase a sampler returns k items for the same user: DGL's any items, ours such that the user has
not bought. The difference between the two runs is one line, in `negative_sampler` below; the rest
is DGL's usual heterogeneous pipeline: a GraphSAGE with one convolution for each edge type,
minibatches, and the reverse of the edges that are being predicted taken out of the messages.

The table says how both fare, whoever wins: on data as smooth as these, hard negatives are often
likely items, and uniform ones are hard to beat. ``--loss cross-entropy`` trains both with a softmax
cross-entropy, calibrated for ours: the log ratios of its negatives and positives are taken off, so
that what is drawn often is not pushed down for it.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from typing import Any

import dgl
import pandas as pd
import torch
from dgl.dataloading import (
    DataLoader,
    MultiLayerFullNeighborSampler,
    as_edge_prediction_sampler,
)
from dgl.dataloading import (
    negative_sampler as dgl_negatives,
)
from dgl.nn import HeteroGraphConv, SAGEConv
from torch import Tensor, nn

from dgl_dmns import DMNSSampler
from dgl_dmns.core import KnownEdges
from dgl_dmns.evaluate import recommendation_metrics
from dgl_dmns.losses import softmax_loss
from dgl_dmns.seeds import seed_all

SAMPLERS = ("uniform", "dmns")
REVERSE = {"buys": "bought by", "bought by": "buys"}


# 1. Users, items, and who bought what. ------------------------------------------------------------


@dataclass
class Shop:
    """The purchases of a shop, split for training, validation and test.

    Args:
        g: the training graph: types ``user`` and ``item`` with features ``feat``, edges ``buys``
            and, with the same edge ids, ``bought by``.
        val: held-out (user, item) columns, int64 [2, P].
        test: likewise.
    """

    g: Any
    val: Tensor
    test: Tensor

    def bought(self) -> tuple[Tensor, Tensor]:
        """The training items of each user as CSR, which no ranking counts."""
        users, items = (self.g.num_nodes(ntype) for ntype in ("user", "item"))
        user, item = self.g.edges(etype="buys")
        known = KnownEdges(user, item, users, items, exclude_self=False)
        return known.indptr, known.indices


def generate(users: int, items: int, seed: int = 0, each: int = 20, width: int = 32) -> Shop:
    """Tastes and kinds of goods are points on a sphere; popular and fitting items sell.

    Args:
        users: number of users.
        items: number of items.
        seed: seed of everything.
        each: purchases of a user; a tenth is for validation, a fifth for the test.
        width: of the features, which are noisy views of the points.
    """
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(12, 8, generator=rng)
    point = {}
    for ntype, count in (("user", users), ("item", items)):
        group = torch.randint(0, 12, (count,), generator=rng)
        scatter = torch.randn(count, 8, generator=rng)
        point[ntype] = nn.functional.normalize(centres[group] + 0.7 * scatter, dim=1)
    popular = torch.rand(items, generator=rng).clamp(min=1e-3).pow(-0.5)
    weight = popular * torch.exp(8.0 * point["user"] @ point["item"].T)
    item = torch.multinomial(weight, each, generator=rng)
    item = item[:, torch.randperm(each, generator=rng)]  # the best-fitting ones come first
    user = torch.arange(users).unsqueeze(1).expand_as(item)
    val, test = each - each // 10 - each // 5, each - each // 5
    parts = [(0, val), (val, test), (test, each)]
    train, *held = [torch.stack([user[:, a:b], item[:, a:b]]).flatten(1) for a, b in parts]
    g = dgl.heterograph(
        {
            ("user", "buys", "item"): (train[0], train[1]),
            ("item", "bought by", "user"): (train[1], train[0]),
        },
        num_nodes_dict={"user": users, "item": items},
    )
    for ntype, x in point.items():
        view = x @ torch.randn(8, width, generator=rng)
        g.nodes[ntype].data["feat"] = view + 1.0 * torch.randn(view.shape, generator=rng)
    return Shop(g, *held)


# 2. The model: a convolution for each edge type, embeddings by node type. -------------------------


class HeteroSAGE(nn.Module):
    """Two GraphSAGE layers; called with blocks in training and with the whole graph elsewhere."""

    def __init__(self, in_feats: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            HeteroGraphConv({etype: SAGEConv(width, hidden, "mean") for etype in REVERSE})
            for width in (in_feats, hidden)
        )

    def forward(self, graph: Any, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Embeddings of the output nodes by node type, shape [N, hidden] each."""
        blocks = graph if isinstance(graph, list) else [graph, graph]
        for block, layer in zip(blocks, self.layers):
            x = layer(block, x)
            if layer is not self.layers[-1]:
                x = {ntype: torch.relu(h) for ntype, h in x.items()}
        return x


# 3. The one line that differs. --------------------------------------------------------------------


def negative_sampler(kind: str, g: Any, model: nn.Module, k: int, seed: int) -> Any:
    """DGL's own uniform sampler, or ours; only ``buys`` is predicted, so only it has a table."""
    if kind == "uniform":
        return dgl_negatives.PerSourceUniform(k)
    return DMNSSampler(g, model, k=k, etypes=["buys"], seed=seed)


# 4. The usual DGL training loop. ------------------------------------------------------------------


def train(kind: str, shop: Shop, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """One run with early stopping on the validation NDCG; test metrics."""
    seed_all(seed)
    g = shop.g
    model = HeteroSAGE(g.nodes["user"].data["feat"].shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    negatives = negative_sampler(kind, g, model, args.k, seed)
    loader = DataLoader(
        g,
        {"buys": torch.arange(g.num_edges("buys"))},
        as_edge_prediction_sampler(
            MultiLayerFullNeighborSampler(
                2, prefetch_node_feats={"user": ["feat"], "item": ["feat"]}
            ),
            exclude="reverse_types",
            reverse_etypes=REVERSE,
            negative_sampler=negatives,
        ),
        batch_size=args.batch_size,
        shuffle=True,
    )
    if isinstance(negatives, DMNSSampler):
        negatives.attach(optimizer, every=len(loader))  # once an epoch

    best, best_epoch, best_state = -1.0, 0, copy.deepcopy(model.state_dict())
    seconds = 0.0
    for epoch in range(args.epochs):
        started = time.perf_counter()
        model.train()
        for _, pos_graph, neg_graph, blocks in loader:
            h = model(blocks, blocks[0].srcdata["feat"])
            positive, negative = edge_score(pos_graph, h), edge_score(neg_graph, h)
            if args.loss == "cross-entropy":
                loss = cross_entropy(negatives, pos_graph, neg_graph, positive, negative)
            else:
                score = torch.cat([positive, negative])
                label = torch.zeros_like(score)
                label[: len(positive)] = 1.0
                loss = nn.functional.binary_cross_entropy_with_logits(score, label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds += time.perf_counter() - started
        ndcg = evaluate(model, shop, shop.val)["NDCG@20"]
        if ndcg > best:
            best, best_epoch, best_state = ndcg, epoch, copy.deepcopy(model.state_dict())
        elif epoch - best_epoch >= args.patience:
            break
    model.load_state_dict(best_state)
    return {
        **evaluate(model, shop, shop.test),
        "epochs": float(epoch + 1),
        "seconds/epoch": seconds / (epoch + 1),
    }


def cross_entropy(
    negatives: Any, pos_graph: Any, neg_graph: Any, positive: Tensor, negative: Tensor
) -> Tensor:
    """Softmax cross-entropy of each positive among its k negatives; calibrated for our sampler."""
    negative = negative.view(len(positive), -1)
    if not isinstance(negatives, DMNSSampler):
        return softmax_loss(positive, negative)
    buys = ("user", "buys", "item")
    return softmax_loss(
        positive,
        negative,
        log_ratio=negatives.log_ratio(neg_graph)[buys].view_as(negative),
        pos_log_ratio=negatives.positive_log_ratio(pos_graph)[buys],
    )


def edge_score(graph: Any, h: dict[str, Tensor]) -> Tensor:
    """Inner products along the purchases of a pair graph."""
    user, item = graph.edges(etype="buys")
    return (h["user"][user] * h["item"][item]).sum(-1)


@torch.no_grad()
def evaluate(model: nn.Module, shop: Shop, pairs: Tensor) -> dict[str, float]:
    """Recall@20 and NDCG@20 among all items that the user has not bought in training."""
    model.eval()
    h = model(shop.g, shop.g.ndata["feat"])
    return recommendation_metrics(h["user"], h["item"], pairs, shop.bought(), n=20)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=600)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds")
    parser.add_argument("--epochs", type=int, default=400, help="at most this many")
    parser.add_argument("--patience", type=int, default=30, help="epochs without improvement")
    parser.add_argument("--loss", choices=("bce", "cross-entropy"), default="bce")
    parser.add_argument("--k", type=int, default=5, help="negatives per purchase, for both")
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=1e-2)
    args = parser.parse_args(argv)
    for name, least in (("users", 1), ("items", 20), ("seeds", 1), ("epochs", 1), ("patience", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name}: expected at least {least}")
    for name in ("k", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Train with both samplers and print the table."""
    args = arguments(argv)
    torch.set_num_threads(1)  # the fastest for matrices as small as these
    rows = []
    for seed in range(args.seeds):
        shop = generate(args.users, args.items, seed)
        rows += [{"sampler": kind, **train(kind, shop, seed, args)} for kind in SAMPLERS]
    result = pd.DataFrame(rows).groupby("sampler", sort=False).mean()
    print(
        f"{args.users} users, {args.items} items, {args.k} negatives a purchase; "
        f"mean over {args.seeds} seed(s):\n"
    )
    print(result.to_string(float_format=lambda v: f"{v:.3f}"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
