"""The autoencoder, and one cell: the recipe's training loop with one sampler, stopped early.

A linear layer, propagation without weights, and a decoder of Hadamard products: Ma et al.,
"Reconsidering the Performance of GAE in Link Prediction", CIKM 2025, arXiv 2411.03845.

Symbols: N nodes, F features, D width.
"""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import dgl
import torch
from dgl.nn.pytorch import GraphConv
from torch import Tensor, nn
from torch.nn.functional import dropout

from benchmarks.common.rows import Cell, make_sampler
from benchmarks.common.run import Runner
from benchmarks.common.training import converged, log_ratios
from benchmarks.gae.problem import Problem, Recipe, load_problem
from dgl_dmns.evaluate import full_ranking, ranking_metrics
from dgl_dmns.losses import bce_loss
from dgl_dmns.samplers import RefreshingSampler
from dgl_dmns.seeds import seed_all

__all__ = ["HITS", "Decoder", "Encoder", "Run", "hits_at", "run_cell", "train"]

HITS = (10, 20, 100)

_ENTRIES = 2**23  # products [b, N, D] that the decoder forms at once


class Encoder(nn.Module):
    """``sum_l a_l x_l`` with ``x_0 = X W + b``, ``x_{l+1} = dropout(norm(A x_l))``.

    A is the symmetrically normalised adjacency without self loops, as in LightGCN; the shares a_l
    are a learned softmax.

    Args:
        in_feats: F.
        width: D.
        steps: of propagation.
        drop: probability of dropout.
    """

    def __init__(self, in_feats: int, width: int, steps: int, drop: float) -> None:
        super().__init__()
        self.linear = nn.Linear(in_feats, width)
        self.propagate = GraphConv(
            width, width, norm="both", weight=False, bias=False, allow_zero_in_degree=True
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(steps))
        self.shares = nn.Parameter(torch.zeros(steps + 1))
        self.drop = drop

    def forward(self, graph: Any, features: Tensor) -> Tensor:
        """Embeddings, shape [N, D], of features [N, F]."""
        x = self.linear(features)
        shares = torch.softmax(self.shares, dim=0)
        total: Tensor = shares[0] * x
        for share, norm in zip(shares[1:], self.norms):
            x = dropout(norm(self.propagate(graph, x)), self.drop, self.training)
            total = total + share * x
        return total


class Decoder(nn.Module):
    """Logits of pairs: residual layers on the product of both ends.

    Args:
        width: D.
        layers: linear ones, the last to a single logit.
        drop: probability of dropout.
    """

    def __init__(self, width: int, layers: int, drop: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Dropout(drop), nn.Linear(width, width))
            for _ in range(layers - 1)
        )
        self.last = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, h_query: Tensor, h_candidate: Tensor) -> Tensor:
        """Broadcastable embeddings [.., D] to logits [..]."""
        z = h_query * h_candidate
        for block in self.blocks:
            z = z + block(z)
        logit: Tensor = self.last(z).squeeze(-1)
        return logit


def hits_at(positive: Tensor, negative: Tensor, k: int) -> float:
    """Share of positives [P] above the k-th best of one list of negatives [Q] (OGB's Hits@K).

    With fewer than k negatives every positive is a hit.
    """
    if len(negative) < k:
        return 1.0
    return float((positive > negative.topk(k).values[-1]).double().mean())


class Run:
    """Model, sampler and batches of one cell."""

    def __init__(self, problem: Problem, cell: Cell) -> None:
        recipe: Recipe = cell.recipe
        seed_all(cell.seed)
        self.problem, self.recipe, self.row = problem, recipe, cell.row
        features = problem.data.features
        self.encoder = Encoder(features.shape[1], recipe.hidden, recipe.steps, recipe.dropout)
        self.decoder = Decoder(recipe.hidden, recipe.decoder_layers, recipe.dropout)
        self.model = nn.ModuleList([self.encoder, self.decoder])
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.seconds = 0.0
        self.sampler = make_sampler(
            cell.row, recipe.k, problem.graph, self.embed, cell.seed, scorer=self.decoder
        )
        if isinstance(self.sampler, RefreshingSampler):
            batches = math.ceil(len(problem.forward) / recipe.batch_size)
            self.sampler.attach(self.optimizer, every=recipe.refresh_every * batches)

    @torch.no_grad()
    def embed(self) -> Tensor:
        """Embeddings of all nodes for tests and refreshes, float32 [N, D]."""
        self.model.eval()
        h: Tensor = self.encoder(self.problem.graph, self.problem.data.features)
        return h

    def epoch(self) -> None:
        """One pass over the training pairs, each in one direction or the other.

        Negatives that keep the source of a pair are of both its ends, over the epochs.
        """
        started = time.perf_counter()
        problem, recipe = self.problem, self.recipe
        pairs = problem.forward[torch.randperm(len(problem.forward))]
        pairs = torch.where(torch.rand(len(pairs)) < 0.5, pairs, problem.reverse[pairs])
        for eids in pairs.split(recipe.batch_size):
            self.model.train()  # a refresh leaves the model in its evaluation mode
            rest = dgl.remove_edges(problem.graph, torch.cat([eids, problem.reverse[eids]]))
            h = self.encoder(rest, problem.data.features)
            src, dst = problem.graph.find_edges(eids)
            neg_src, neg_dst = self._negatives(eids)
            ratios = log_ratios(self.row, self.sampler, (src, dst), (neg_src, neg_dst), recipe.k)
            loss = bce_loss(
                self.decoder(h[src], h[dst]),
                self.decoder(h[neg_src], h[neg_dst]).view(-1, recipe.k),
                balanced=True,
                **ratios,
            )
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
            self.optimizer.step()  # refreshes the sampler, when it is time
        self.seconds += time.perf_counter() - started

    def _negatives(self, eids: Tensor) -> tuple[Tensor, Tensor]:
        """K for each edge; where `GlobalUniform` returns fewer, it is asked again."""
        wanted = self.recipe.k * len(eids)
        src, dst = self.sampler(self.problem.graph, eids)
        while len(src) < wanted:
            more = self.sampler(self.problem.graph, eids)
            src, dst = torch.cat([src, more[0]]), torch.cat([dst, more[1]])
        return src[:wanted], dst[:wanted]

    def hits(self, h: Tensor, part: str) -> dict[str, float]:
        """Hits@K of the pairs of ``val`` or ``test`` against its non-edges."""
        with torch.no_grad():
            scores = [
                self.decoder(h[src], h[dst])
                for src, dst in (getattr(self.problem.split, part), self.problem.non_edges[part])
            ]
        return {f"Hits@{k}": hits_at(scores[0], scores[1], k) for k in HITS}

    def mrr(self, h: Tensor, part: str) -> float:
        """MRR over all nodes, known edges left out; both ends of a pair are queries."""
        pairs = getattr(self.problem.split, part)
        pairs = torch.cat([pairs, pairs.flip(0)], dim=1)
        batch = max(1, _ENTRIES // h.numel())
        rank = full_ranking(h, pairs, self.problem.data.csr(), self.decoder, batch)
        return ranking_metrics(rank)["MRR"]


def train(problem: Problem, cell: Cell) -> dict[str, Any]:
    """Train on a problem that is already loaded.

    Returns:
        ``test`` (Hits@K and MRR at the best epoch), ``val`` (Hits@K there), ``curve`` (validation
        Hits@100 of each epoch), ``best epoch``, ``epochs``, ``seconds per epoch`` (training and
        refreshes; no validation).
    """
    run = Run(problem, cell)
    curve, best_epoch, weights = converged(
        cell.recipe.epochs,
        cell.recipe.patience,
        run.epoch,
        lambda: run.hits(run.embed(), "val")["Hits@100"],
        lambda: copy.deepcopy(run.model.state_dict()),
    )
    run.model.load_state_dict(weights)
    h = run.embed()
    return {
        "val": run.hits(h, "val"),
        "test": {**run.hits(h, "test"), "MRR": run.mrr(h, "test")},
        "curve": curve,
        "best epoch": best_epoch,
        "epochs": len(curve),
        "seconds per epoch": run.seconds / len(curve),
    }


run_cell = Runner(load_problem, train)
