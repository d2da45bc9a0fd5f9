"""Train the same link predictor three times: DGL's recipe, then one line for the loss, then ours.

Run ``python examples/quickstart.py`` for a graph generated on the spot, or, for example,
``python examples/quickstart.py --dataset cora --data-dir ~/.dgl``. The first run has DGL's uniform
negatives and binary cross-entropy. In the second the batch shares its uniform negatives, one for
each edge: that is the line in `loss_of` below. The third has the negatives of the diffusion model:
the line in `negative_sampler`. At the end it prints a table, and writes it (CSV and JSON) with the
learning curves and the hardness of the negatives (PNG) to the output folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dgl
import pandas as pd
import torch
from dgl.dataloading import DataLoader, NeighborSampler, as_edge_prediction_sampler
from dgl.dataloading import (
    negative_sampler as dgl_negatives,
)
from dgl.nn import SAGEConv
from torch import Tensor, nn
from torch.nn.functional import softplus
from tqdm import tqdm

from dgl_dmns import DMNSSampler
from dgl_dmns.core import Levels
from dgl_dmns.data import EdgeSplit, GraphData, load_dataset, split_pairs
from dgl_dmns.evaluate import candidate_ranking, full_ranking, ranking_metrics
from dgl_dmns.samplers import UniformSampler
from dgl_dmns.seeds import seed_all

DATASETS = ("embedded", "cora", "citeseer", "coauthor-cs", "actor")
RUNS = {
    "dgl": "DGL's uniform, its loss",
    "uniform": "uniform, shared",
    "dmns": "DMNS, shared",
}


# 1. The model: nothing here knows which negatives it will be trained with. ------------------------


class SAGE(nn.Module):
    """Two GraphSAGE layers; called with blocks in training and with the whole graph elsewhere."""

    def __init__(self, in_feats: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [SAGEConv(in_feats, hidden, "mean"), SAGEConv(hidden, hidden, "mean")]
        )

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        """Embeddings of the output nodes, shape [N, hidden]."""
        blocks = graph if isinstance(graph, list) else [graph, graph]
        for block, layer in zip(blocks, self.layers):
            x = layer(block, x)
            if layer is not self.layers[-1]:
                x = torch.relu(x)
        return x


# 2. The two lines that differ. --------------------------------------------------------------------


def negative_sampler(kind: str, g: Any, model: nn.Module, args: argparse.Namespace) -> Any:
    """DGL's own uniform sampler, our uniform one, whose batches can share, or the diffusion model.

    Only the first needs several negatives for each edge.
    """
    if kind == "dgl":
        return dgl_negatives.PerSourceUniform(args.k)
    if kind == "uniform":
        return UniformSampler(g, k=args.shared_k)
    return DMNSSampler(g, model, k=args.shared_k)


def loss_of(kind: str, negatives: Any, h: Tensor, pos_graph: Any, neg_graph: Any) -> Tensor:
    """Binary cross-entropy, or each positive against all negatives of the batch."""
    if kind == "dgl":
        positive, negative = edge_score(pos_graph, h), edge_score(neg_graph, h)
        # Both parts averaged: k negatives do not outweigh their positive.
        return softplus(-positive).mean() + softplus(negative).mean()
    shared: Tensor = negatives.loss(h, pos_graph, neg_graph)
    return shared


# 3. The usual DGL training loop. ------------------------------------------------------------------


@dataclass
class Run:
    """What one training run leaves behind."""

    kind: str
    seed: int
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    hardness: list[dict[str, float]] = field(default_factory=list)


def training_graph(data: GraphData, split: EdgeSplit, width: int = 256) -> tuple[Any, Tensor]:
    """The graph of the training edges, in both directions, and the id of each edge's reverse."""
    src, dst = split.message_edges()
    g = dgl.graph((src, dst), num_nodes=data.num_nodes)
    key, twin = src * data.num_nodes + dst, dst * data.num_nodes + src
    order = key.argsort()
    reverse = order[torch.searchsorted(key[order], twin)]
    x = data.features
    if x.shape[1] > width:  # principal directions: small inputs for a small demonstration
        torch.manual_seed(0)
        u, s, _ = torch.pca_lowrank(x, q=width, niter=4)
        x = u * s
    g.ndata["feat"] = nn.functional.normalize(x, dim=1)
    return g, reverse


def train(kind: str, data: GraphData, split: EdgeSplit, seed: int, args: argparse.Namespace) -> Run:
    """One run to convergence: early stopping on the validation MRR."""
    g, reverse = training_graph(data, split)
    seed_all(seed)
    model = SAGE(g.ndata["feat"].shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    negatives = negative_sampler(kind, g, model, args)
    loader = DataLoader(
        g,
        torch.arange(g.num_edges()),
        as_edge_prediction_sampler(
            NeighborSampler([args.fanout] * 2, prefetch_node_feats=["feat"]),
            exclude="reverse_id",
            reverse_eids=reverse,
            negative_sampler=negatives,
        ),
        batch_size=args.batch_size,
        shuffle=True,
    )
    seconds = 0.0
    if isinstance(negatives, DMNSSampler):
        started = time.perf_counter()
        negatives.attach(optimizer, every=len(loader))  # once an epoch
        seconds = time.perf_counter() - started

    run = Run(kind, seed)
    known = data.csr()
    best, best_epoch, best_state = -1.0, 0, model.state_dict()
    bar = tqdm(range(args.epochs), desc=f"{kind:8s} seed {seed}", file=sys.stderr)
    for epoch in bar:
        started = time.perf_counter()
        model.train()
        for _, pos_graph, neg_graph, blocks in loader:
            h = model(blocks, blocks[0].srcdata["feat"])
            loss = loss_of(kind, negatives, h, pos_graph, neg_graph)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds += time.perf_counter() - started
        if isinstance(negatives, DMNSSampler) and negatives.report is not None:
            run.hardness.append(negatives.report.table.level_score)
        mrr = ranking_metrics(full_ranking(embed(model, g), split.val, known))["MRR"]
        run.curve.append(mrr)
        run.seconds.append(seconds)
        bar.set_postfix(mrr=f"{mrr:.3f}", best=f"{best:.3f}")
        if mrr > best:
            best, best_epoch = mrr, epoch
            best_state = {k: v.clone() for k, v in model.state_dict().items()}
        elif epoch - best_epoch >= args.patience:
            break
    bar.close()
    model.load_state_dict(best_state)
    run.metrics = evaluate(embed(model, g), data, split, seed)
    run.metrics["seconds/epoch"] = seconds / len(run.curve)
    run.metrics["epochs"] = float(len(run.curve))
    return run


def edge_score(graph: Any, h: Tensor) -> Tensor:
    """Inner products along the edges of a pair graph."""
    src, dst = graph.edges()
    return (h[src] * h[dst]).sum(-1)


@torch.no_grad()
def embed(model: nn.Module, g: Any) -> Tensor:
    """Embeddings of all nodes."""
    model.eval()
    h: Tensor = model(g, g.ndata["feat"])
    return h


def evaluate(h: Tensor, data: GraphData, split: EdgeSplit, seed: int) -> dict[str, float]:
    """Test metrics: full ranking with known edges filtered, and MAP over 9 uniform negatives."""
    full = ranking_metrics(full_ranking(h, split.test, data.csr()), hits=(10, 50))
    generator = torch.Generator().manual_seed(seed)
    nine = torch.randint(0, data.num_nodes, (split.test.shape[1], 9), generator=generator)
    candidates = torch.cat([split.test[1].unsqueeze(1), nine], dim=1)
    among = ranking_metrics(candidate_ranking(h, split.test[0], candidates))
    return {
        "MRR": full["MRR"],
        "Hits@10": full["Hits@10"],
        "Hits@50": full["Hits@50"],
        "MAP@9": among["MRR"],
    }


# 4. The report. -----------------------------------------------------------------------------------


def table(runs: list[Run]) -> pd.DataFrame:
    """Mean over seeds of every metric, a row for each kind of run.

    The last column has the seconds of training (refreshes included) until the validation MRR
    reaches the best one of DGL's recipe at the same seed; NaN if it never does.
    """
    rows = []
    for r in runs:
        best = max(next(one.curve for one in runs if (one.kind, one.seed) == ("dgl", r.seed)))
        there = [s for mrr, s in zip(r.curve, r.seconds) if mrr >= best]
        reached = there[0] if there else float("nan")
        rows.append({"kind": r.kind, "seed": r.seed, **r.metrics, "seconds to DGL's best": reached})
    return pd.DataFrame(rows).groupby("kind", sort=False).mean().drop(columns="seed")


def plot(runs: list[Run], path: Path) -> None:
    """Learning curves, and the mean score of the negatives of every level over training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), constrained_layout=True)
    colours = {"dgl": "tab:gray", "uniform": "tab:green", "dmns": "tab:blue"}
    seeds = sorted({run.seed for run in runs})
    for run in runs:
        label = RUNS[run.kind] if run.seed == seeds[0] else None
        left.plot(run.curve, color=colours[run.kind], alpha=0.8, label=label)
    title = f"Learning curves, a line for each of {len(seeds)} seed(s)"
    left.set(xlabel="epoch", ylabel="validation MRR (all nodes)", title=title)
    left.legend()
    hardness = next(r.hardness for r in runs if r.kind == "dmns")
    shades = ("#8b0a50", "#c1443c", "#e07b39", "#f0b04c", "#56b4e9")  # dark is hard
    for name, colour in zip((*"0123", "no level"), shades):
        label = f"level {Levels().fractions[int(name)]:g}T" if name.isdigit() else name
        right.plot([h.get(name, float("nan")) for h in hardness], color=colour, label=label)
    right.set(
        xlabel="refresh",
        ylabel="mean score of the negatives",
        title="DMNS negatives by level of hardness, first seed",
    )
    right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", choices=DATASETS, default="embedded")
    parser.add_argument("--data-dir", help="DGL's cache folder; downloaded into where absent")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds")
    parser.add_argument("--epochs", type=int, default=500, help="at most this many")
    parser.add_argument("--patience", type=int, default=30, help="epochs without improvement")
    parser.add_argument("--k", type=int, default=5, help="negatives per edge of DGL's recipe")
    parser.add_argument("--shared-k", type=int, default=1, help="of those that the batch shares")
    parser.add_argument("--fanout", type=int, default=-1, help="neighbours per layer; -1 is all")
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1, help="of torch; 1 is best if small")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    args = parser.parse_args(argv)
    for name in ("seeds", "epochs", "patience", "k", "shared_k", "batch_size", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1")
    if args.fanout < 1 and args.fanout != -1:
        parser.error("--fanout: expected at least 1, or -1 for all neighbours")
    return args


def main(argv: list[str] | None = None) -> int:
    """Train all three, print the table, write the files."""
    args = arguments(argv)
    try:
        data = load_dataset(args.dataset, args.data_dir)
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    print(
        f"{data}; {args.k} negatives per edge in DGL's recipe, {args.shared_k} where the batch "
        f"shares them, {args.seeds} seed(s)"
    )
    runs = []
    for seed in range(args.seeds):
        split = split_pairs(data, seed=seed)
        runs += [train(kind, data, split, seed, args) for kind in RUNS]
    result = table(runs)
    print(f"\nTest edges of {args.dataset}, mean over {args.seeds} seed(s):\n")
    print(result.rename(index=RUNS).to_string(float_format=lambda v: f"{v:.3f}"))
    first = result.loc["dgl"]
    for kind in ("uniform", "dmns"):
        ratio = result.loc[kind] / first
        print(
            f"{RUNS[kind]}, over {RUNS['dgl']}: {ratio['MRR']:.2f} times the MRR, "
            f"{ratio['MAP@9']:.2f} times the MAP, {ratio['seconds/epoch']:.2f} times the seconds "
            f"an epoch, at its best after {ratio.iloc[-1]:.2f} times the seconds"
        )
    result.to_csv(args.out / "table.csv")
    details = [vars(r) for r in runs]
    (args.out / "runs.json").write_text(json.dumps(details, indent=1))
    plot(runs, args.out / "curves.png")
    print(f"Written: {args.out / 'table.csv'}, {args.out / 'runs.json'}, {args.out / 'curves.png'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
