"""One cell: DGL's usual minibatch training with one sampler, stopped early, then tested."""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import dgl
import torch
from dgl.dataloading import MultiLayerFullNeighborSampler, NeighborSampler
from torch import Tensor, nn

from benchmarks.common.rows import Cell, make_sampler
from benchmarks.common.run import Runner
from benchmarks.common.samplers import OWN
from benchmarks.common.training import converged, edge_loader, log_ratios
from benchmarks.dropin.config import Recipe
from benchmarks.dropin.measure import false_negatives, mrr, ranking
from benchmarks.dropin.model import DotScorer, Encoder, make_scorer
from benchmarks.dropin.problem import Problem, load_problem
from dgl_dmns.losses import bce_loss, bpr_loss, softmax_loss
from dgl_dmns.samplers import RefreshingSampler
from dgl_dmns.seeds import seed_all

__all__ = ["objective", "run_cell", "train"]


def objective(
    recipe: Recipe, positive: Tensor, negative: Tensor, num_nodes: int, **ratios: Tensor
) -> Tensor:
    """The loss of a recipe for logits [B] and [B, K], a scalar.

    ``ratios`` are ``log_ratio`` [B, K] of the negatives and ``pos_log_ratio`` [B] of the positives.
    """
    if recipe.loss == "cross-entropy":
        classes = num_nodes if recipe.full_softmax else None
        return softmax_loss(positive, negative, num_nodes=classes, **ratios)
    if recipe.loss == "bpr":
        return bpr_loss(positive, negative, **ratios)
    return bce_loss(positive, negative, balanced=recipe.loss == "bce", **ratios)


class _Run:
    """Model, sampler and loader of one cell, and what its epochs add up to."""

    def __init__(self, problem: Problem, cell: Cell) -> None:
        recipe: Recipe = cell.recipe
        seed_all(cell.seed)
        self.problem, self.recipe, self.row = problem, recipe, cell.row
        self.k = cell.row.k(recipe.k)
        self.encoder = Encoder(
            recipe.encoder,
            problem.data.features.shape[1] and problem.features.shape[1],
            recipe.hidden,
            recipe.layers,
            recipe.dropout,
            recipe.temperature,
            problem.data.num_nodes,
        )
        self.scorer = make_scorer(recipe.scorer, recipe.hidden)
        self.own_scorer = None if isinstance(self.scorer, DotScorer) else self.scorer
        self.model = nn.ModuleList([self.encoder, self.scorer])
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.sampler = make_sampler(
            cell.row,
            recipe.k,
            problem.graph,
            self.embed,
            cell.seed,
            scorer=self.own_scorer,
            own=OWN,
        )
        self.refreshing = self.sampler if isinstance(self.sampler, RefreshingSampler) else None
        self.loader = edge_loader(
            problem.messages,
            torch.arange(problem.graph.num_edges()),
            MultiLayerFullNeighborSampler(recipe.layers)
            if recipe.fanout is None
            else NeighborSampler([recipe.fanout] * recipe.layers),
            problem.reverse,
            self.sampler,
            recipe.batch_size,
            shuffle=True,
        )
        self.seconds = self.refresh_seconds = 0.0
        self.epochs = self.batches = self.input_nodes = 0
        self.random = torch.Generator().manual_seed(cell.seed)  # of the rows that are rebuilt
        self.mean_score: dict[str, float] = {}
        if self.refreshing is not None:
            self._refresh_first(self.refreshing)

    def _refresh_first(self, sampler: RefreshingSampler) -> None:
        started = time.perf_counter()
        if self.recipe.refresh_share < 1:
            sampler.refresh()
        else:
            sampler.attach(self.optimizer, every=self.recipe.refresh_every * len(self.loader))
        self.seconds += time.perf_counter() - started
        assert sampler.report is not None
        self.refresh_seconds += sampler.report.seconds

    @torch.no_grad()
    def embed(self) -> Tensor:
        """Embeddings of all nodes, float32 [N, D]; the training mode stays as it was."""
        mode = self.model.training
        self.model.eval()
        h: Tensor = self.encoder(self.problem.messages, self.problem.features)
        self.model.train(mode)
        return h

    def _scores(self, graph: Any, h: Tensor) -> Tensor:
        """Scores along the edges of a pair graph, shape [edges]."""
        src, dst = graph.edges()
        score: Tensor = self.scorer(h[src], h[dst])
        return score

    def loss(self, h: Tensor, pos_graph: Any, neg_graph: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of a batch, and the scores of its positives and of its negatives."""
        if self.row.loss == "shared":
            with torch.no_grad():
                scores = self._scores(pos_graph, h), self._scores(neg_graph, h)
            return self._shared_loss(h, pos_graph, neg_graph), *scores
        positive = self._scores(pos_graph, h)
        negative = self._scores(neg_graph, h).view(-1, self.k)
        positives = None if self.recipe.full_softmax else pos_graph
        ratios = log_ratios(self.row, self.sampler, positives, neg_graph, self.k)
        nodes = self.problem.data.num_nodes
        return objective(self.recipe, positive, negative, nodes, **ratios), positive, negative

    def _shared_loss(self, h: Tensor, pos_graph: Any, neg_graph: Any) -> Tensor:
        """The sampler's own loss: the mean over the parts of a batch that share their negatives."""
        count = pos_graph.num_edges()
        if self.row.queries is None:
            whole: Tensor = self.sampler.loss(h, pos_graph, neg_graph, scorer=self.own_scorer)
            return whole
        parts: list[Tensor] = []
        for edges in torch.arange(count).split(self.row.queries):
            own = (edges.unsqueeze(1) * self.k + torch.arange(self.k)).flatten()
            graphs = [
                dgl.edge_subgraph(graph, rows, relabel_nodes=False)
                for graph, rows in ((pos_graph, edges), (neg_graph, own))
            ]
            parts.append(self.sampler.loss(h, *graphs, scorer=self.own_scorer) * len(edges))
        mean: Tensor = torch.stack(parts).sum() / count
        return mean

    def epoch(self) -> None:
        """One pass over the training edges."""
        started = time.perf_counter()
        self.model.train()
        total = torch.zeros(2, dtype=torch.float64)
        edges = 0
        for input_nodes, pos_graph, neg_graph, blocks in self.loader:
            h = self.encoder(blocks, self.problem.features[input_nodes])
            if self.recipe.observe and self.refreshing is not None:
                self.refreshing.observe(blocks[-1].dstdata[dgl.NID], h)
            loss, positive, negative = self.loss(h, pos_graph, neg_graph)
            self.optimizer.zero_grad()
            loss.backward()
            before = self.refreshing and self.refreshing.report
            self.optimizer.step()  # refreshes the sampler, when it is time
            report = self.refreshing and self.refreshing.report
            if report is not None and report is not before:
                self.refresh_seconds += report.seconds
            self.batches += 1
            self.input_nodes += len(input_nodes)
            edges += len(positive)
            total += torch.stack(
                [positive.detach().sum(), negative.detach().mean() * len(positive)]
            )
        self.epochs += 1
        partly = self.recipe.refresh_share < 1 and self.epochs % self.recipe.refresh_every == 0
        if partly and self.refreshing is not None:
            nodes = self.problem.data.num_nodes
            rows = torch.randperm(nodes, generator=self.random)
            rows = rows[: math.ceil(self.recipe.refresh_share * nodes)]
            self.refresh_seconds += self.refreshing.refresh(nodes=rows).seconds
        self.seconds += time.perf_counter() - started
        self.mean_score = dict(zip(("positive score", "negative score"), (total / edges).tolist()))

    def state(self) -> tuple[Any, Any]:
        """A copy of the weights, and of the sampler's state, which the tests need."""
        weights = copy.deepcopy(self.model.state_dict())
        return weights, self.refreshing and self.refreshing.state_dict()


def train(problem: Problem, cell: Cell) -> dict[str, Any]:
    """Train on a problem that is already loaded.

    Returns:
        ``val`` and ``test`` (metrics at the best epoch), ``curve`` (validation MRR of each epoch),
        ``best epoch``, ``epochs``, ``seconds per epoch`` (training and refreshes, the first
        included; no validation), ``refresh share`` of them, ``input nodes`` (distinct ones a batch,
        on average), ``positive score`` and ``negative score`` (means over the last epoch), and what
        `false_negatives` has, at the best epoch.
    """
    run = _Run(problem, cell)
    curve, best_epoch, (weights, state) = converged(
        cell.recipe.epochs,
        cell.recipe.patience,
        run.epoch,
        lambda: mrr(problem, run.embed(), run.scorer),
        run.state,
    )
    run.model.load_state_dict(weights)
    if run.refreshing is not None:
        run.refreshing.load_state_dict(state)
    h = run.embed()
    calibrated = "calibrated" in cell.row.loss
    return {
        "val": ranking(problem, h, run.scorer, "val"),
        "test": ranking(problem, h, run.scorer, "test"),
        "curve": curve,
        "best epoch": best_epoch,
        "epochs": len(curve),
        "seconds per epoch": run.seconds / len(curve),
        "refresh share": run.refresh_seconds / run.seconds,
        "input nodes": run.input_nodes / run.batches,
        **run.mean_score,
        **false_negatives(problem, h, run.scorer, run.sampler, calibrated),
    }


run_cell = Runner(load_problem, train)
