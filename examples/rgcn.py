"""Complete a knowledge graph: an R-GCN with a DistMult decoder, uniform and DMNS negatives.

Run ``python examples/rgcn.py``; people, works and the relations between them are generated on the
spot. For each triple (v, r, u) a sampler returns k other tails of the same node type such that the
triple is not known, and ``negatives.loss`` compares each triple with all tails of its relation in
the batch, by the decoder, which scores every relation with weights of its own. `DMNSSampler` holds
a diffusion model and a table for each relation, and learns what is hard from the decoder, too. The
difference between the two runs is one line, in `negative_sampler` below; the rest is DGL's usual
heterogeneous pipeline with sampled neighbours.

The table says how both fare, whoever wins.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import dgl
import pandas as pd
import torch
from dgl.dataloading import DataLoader, NeighborSampler, as_edge_prediction_sampler
from dgl.nn import GraphConv, HeteroGraphConv
from torch import Tensor, nn

from dgl_dmns import DMNSSampler, UniformSampler
from dgl_dmns.core import KnownEdges
from dgl_dmns.evaluate import ranking_metrics, ranks
from dgl_dmns.seeds import seed_all

SAMPLERS = ("uniform", "dmns")
RELATIONS = {
    "knows": ("person", "person"),
    "admires": ("person", "person"),
    "wrote": ("person", "work"),
    "reviewed": ("person", "work"),
    "cites": ("work", "work"),
    "adapts": ("work", "work"),
}
INVERSE = {name: f"{name} (inverse)" for name in RELATIONS}
REVERSE = {**INVERSE, **{inverse: name for name, inverse in INVERSE.items()}}


# 1. Entities, relations, and which triples hold. --------------------------------------------------


@dataclass
class Knowledge:
    """The triples of a knowledge graph, split for training, validation and test.

    Args:
        g: the training graph: a type for each relation and, with the same edge ids, its inverse;
            entities have no features, so that ``feat`` is their id, which the model looks up.
        val: held-out (head, tail) columns by relation, int64 [2, P].
        test: likewise.
        known: all triples by relation, which no ranking counts as mistakes.
    """

    g: Any
    val: dict[str, Tensor]
    test: dict[str, Tensor]
    known: dict[str, KnownEdges]


def generate(people: int, works: int, seed: int = 0, each: int = 8) -> Knowledge:
    """Entities are points; each relation looks at some of their coordinates, and likes agreement.

    Args:
        people: number of people.
        works: number of works.
        seed: seed of everything.
        each: triples of a relation and a head; one is for validation, one for the test.
    """
    rng = torch.Generator().manual_seed(seed)
    counts = {"person": people, "work": works}
    centres = torch.randn(12, 12, generator=rng)
    point = {}
    for ntype, count in counts.items():
        group = torch.randint(0, 12, (count,), generator=rng)
        point[ntype] = centres[group] + 0.7 * torch.randn(count, 12, generator=rng)
    train, val, test, known = {}, {}, {}, {}
    for name, (head, tail) in RELATIONS.items():
        looks_at = torch.randperm(12, generator=rng)[:4]
        weight = torch.exp(point[head][:, looks_at] @ point[tail][:, looks_at].T)
        if head == tail:
            weight.fill_diagonal_(0.0)
        tails = torch.multinomial(weight, each, generator=rng)
        tails = tails[:, torch.randperm(each, generator=rng)]  # the likeliest ones come first
        heads = torch.arange(counts[head]).unsqueeze(1).expand_as(tails)
        train[name], val[name], test[name] = (
            torch.stack([heads[:, a:b].flatten(), tails[:, a:b].flatten()])
            for a, b in ((0, each - 2), (each - 2, each - 1), (each - 1, each))
        )
        known[name] = KnownEdges(
            heads.flatten(), tails.flatten(), counts[head], counts[tail], exclude_self=head == tail
        )
    edges = {}
    for name, (head, tail) in RELATIONS.items():
        edges[head, name, tail] = tuple(train[name])
        edges[tail, INVERSE[name], head] = tuple(train[name].flip(0))
    g = dgl.heterograph(edges, num_nodes_dict=counts)
    for ntype in g.ntypes:
        g.nodes[ntype].data["feat"] = g.nodes(ntype)
    return Knowledge(g, val, test, known)


# 2. The model: an R-GCN embeds entities, DistMult scores triples. ---------------------------------


class RGCNLayer(nn.Module):
    """Messages along each relation with weights of its own, made of a few matrices they share.

    Source: Schlichtkrull et al., "Modeling Relational Data with Graph Convolutional Networks",
    ESWC 2018, with its basis decomposition.
    """

    def __init__(self, etypes: list[str], width: int, bases: int) -> None:
        super().__init__()
        self.etypes = etypes
        self.basis = nn.Parameter(torch.empty(bases, width, width))
        self.share = nn.Parameter(torch.empty(len(etypes), bases))
        self.own = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.basis)
        nn.init.xavier_uniform_(self.share)
        self.conv = HeteroGraphConv(
            {
                etype: GraphConv(
                    width, width, "right", weight=False, bias=False, allow_zero_in_degree=True
                )
                for etype in etypes
            }
        )

    def forward(self, block: Any, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Entities of the destination side by node type, shape [N, width] each."""
        weights = torch.einsum("rb,bij->rij", self.share, self.basis)
        arguments = {etype: {"weight": w} for etype, w in zip(self.etypes, weights)}
        received = self.conv(block, x, mod_kwargs=arguments)
        return {
            ntype: self.own(h[: block.num_dst_nodes(ntype)]) + received.get(ntype, 0.0)
            for ntype, h in x.items()
        }


class RGCN(nn.Module):
    """Two layers over embeddings that are looked up; called with blocks or with the whole graph."""

    def __init__(self, g: Any, width: int = 32, bases: int = 4) -> None:
        super().__init__()
        self.entity = nn.ModuleDict({n: nn.Embedding(g.num_nodes(n), width) for n in g.ntypes})
        self.layers = nn.ModuleList(RGCNLayer(g.etypes, width, bases) for _ in range(2))

    def forward(self, graph: Any, ids: dict[str, Tensor]) -> dict[str, Tensor]:
        """Embeddings of the output entities by node type, shape [N, width] each."""
        blocks = graph if isinstance(graph, list) else [graph, graph]
        x = {ntype: self.entity[ntype](number) for ntype, number in ids.items()}
        for block, layer in zip(blocks, self.layers):
            x = layer(block, x)
            if layer is not self.layers[-1]:
                x = {ntype: torch.relu(h) for ntype, h in x.items()}
        return x


class DistMult(nn.Module):
    """The score of a triple: an inner product weighted by the relation (Yang et al., ICLR 2015)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.weight = nn.ParameterDict({name: torch.ones(width) for name in RELATIONS})

    def forward(self, relation: str, head: Tensor, tail: Tensor) -> Tensor:
        """Scores of broadcastable embeddings [.., width]."""
        score: Tensor = (head * self.weight[relation] * tail).sum(-1)
        return score


# 3. The one line that differs. --------------------------------------------------------------------


def negative_sampler(kind: str, g: Any, model: RGCN, decoder: DistMult, k: int, seed: int) -> Any:
    """Uniform or ours; inverses only carry messages, so they have no table."""
    if kind == "uniform":
        return UniformSampler(g, k)
    return DMNSSampler(g, model, k=k, etypes=list(RELATIONS), scorer=scorers(decoder), seed=seed)


def scorers(decoder: DistMult) -> dict[str, Any]:
    """The decoder's scores of each relation, for the loss and for what is hard."""
    return {name: partial(decoder, name) for name in RELATIONS}


# 4. The usual DGL training loop. ------------------------------------------------------------------


def train(kind: str, data: Knowledge, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """One run with early stopping on the validation MRR; test metrics."""
    seed_all(seed)
    g = data.g
    model, decoder = RGCN(g), DistMult()
    both = nn.ModuleList([model, decoder])
    optimizer = torch.optim.Adam(both.parameters(), lr=args.lr)
    negatives = negative_sampler(kind, g, model, decoder, args.k, seed)
    loader = DataLoader(
        g,
        {name: torch.arange(g.num_edges(name)) for name in RELATIONS},
        as_edge_prediction_sampler(
            NeighborSampler(
                [args.fanout, args.fanout],
                prefetch_node_feats={ntype: ["feat"] for ntype in g.ntypes},
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

    best, best_epoch, best_state = -1.0, 0, copy.deepcopy(both.state_dict())
    seconds = 0.0
    for epoch in range(args.epochs):
        started = time.perf_counter()
        model.train()
        for _, pos_graph, neg_graph, blocks in loader:
            h = model(blocks, blocks[0].srcdata["feat"])
            loss = negatives.loss(h, pos_graph, neg_graph, scorer=scorers(decoder))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds += time.perf_counter() - started
        mrr = evaluate(model, decoder, data, data.val)["MRR"]
        if mrr > best:
            best, best_epoch, best_state = mrr, epoch, copy.deepcopy(both.state_dict())
        elif epoch - best_epoch >= args.patience:
            break
    both.load_state_dict(best_state)
    return {
        **evaluate(model, decoder, data, data.test),
        "epochs": float(epoch + 1),
        "seconds/epoch": seconds / (epoch + 1),
    }


@torch.no_grad()
def evaluate(
    model: RGCN, decoder: DistMult, data: Knowledge, held_out: dict[str, Tensor]
) -> dict[str, float]:
    """Each held-out tail among all entities of its type that make no known triple."""
    model.eval()
    h = model(data.g, data.g.ndata["feat"])
    rank = []
    for name, (v, u) in held_out.items():
        head, tail = RELATIONS[name]
        values = decoder(name, h[head][v].unsqueeze(1), h[tail].unsqueeze(0))
        everyone = torch.arange(values.shape[1])
        rival = ~data.known[name].contains(v.unsqueeze(1), everyone)
        rank.append(ranks(values.gather(1, u.unsqueeze(1)).squeeze(1), values, rival))
    return ranking_metrics(torch.cat(rank), hits=(1, 10))


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--people", type=int, default=400)
    parser.add_argument("--works", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds")
    parser.add_argument("--epochs", type=int, default=300, help="at most this many")
    parser.add_argument("--patience", type=int, default=40, help="epochs without improvement")
    parser.add_argument("--k", type=int, default=1, help="negatives per triple, for both samplers")
    parser.add_argument("--fanout", type=int, default=5, help="neighbours per relation and layer")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=1e-2)
    args = parser.parse_args(argv)
    least = {"people": 10, "works": 10}
    for name in ("people", "works", "seeds", "epochs", "patience", "k", "fanout", "batch_size"):
        if getattr(args, name) < least.get(name, 1):
            option = name.replace("_", "-")
            parser.error(f"--{option}: expected at least {least.get(name, 1)}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Train with both samplers and print the table."""
    args = arguments(argv)
    torch.set_num_threads(1)  # the fastest for matrices as small as these
    rows = []
    for seed in range(args.seeds):
        data = generate(args.people, args.works, seed)
        rows += [{"sampler": kind, **train(kind, data, seed, args)} for kind in SAMPLERS]
    result = pd.DataFrame(rows).groupby("sampler", sort=False).mean()
    print(
        f"{args.people} people, {args.works} works, {len(RELATIONS)} relations, {args.k} negatives "
        f"a triple; mean over {args.seeds} seed(s):\n"
    )
    print(result.to_string(float_format=lambda v: f"{v:.3f}"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
