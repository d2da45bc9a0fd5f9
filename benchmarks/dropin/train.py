"""One cell: DGL's usual minibatch training with one sampler, stopped early, then tested."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import dgl
import torch
from dgl.dataloading import (
    DataLoader,
    MultiLayerFullNeighborSampler,
    NeighborSampler,
    as_edge_prediction_sampler,
)
from torch import Tensor, nn

from benchmarks.common import measured
from benchmarks.dropin.config import Cell, Recipe, Shared
from benchmarks.dropin.measure import false_negatives, mrr, ranking
from benchmarks.dropin.model import DotScorer, Encoder, make_scorer
from benchmarks.dropin.negatives import calibration, make_sampler, negatives_per_edge
from benchmarks.dropin.problem import Problem, load_problem
from dgl_dmns.core import RefreshReport
from dgl_dmns.losses import bce_loss, bpr_loss, softmax_loss
from dgl_dmns.samplers import RefreshingSampler
from dgl_dmns.seeds import seed_all

__all__ = ["Watch", "objective", "run_cell", "train"]

Watch = Callable[[RefreshingSampler], object]
"""What looks at a sampler's refreshes, such as one that makes a `Monitor`."""


def run_cell(cell: Cell, folder: str | None, threads: int = 1) -> dict[str, Any]:
    """Run a cell from its configuration.

    Args:
        cell: what to run.
        folder: DGL's cache; None: its own.
        threads: torch's threads.

    Returns:
        ``val`` and ``test`` metrics, the learning curve, cost, and what the negatives were like;
        plain values.
    """
    return measured(
        lambda: load_problem(cell.dataset, cell.recipe, cell.seed, folder),
        lambda problem: train(problem, cell),
        threads,
    )


def objective(
    recipe: Recipe,
    positive: Tensor,
    negative: Tensor,
    log_ratio: Tensor | None,
    pos_log_ratio: Tensor | None,
    num_nodes: int,
) -> Tensor:
    """The loss of a recipe.

    Args:
        recipe: names the loss.
        positive: logits, shape [B].
        negative: logits, shape [B, K].
        log_ratio: log ratios of the negatives, shape [B, K], or None.
        pos_log_ratio: log ratios of the positives, shape [B], or None.
        num_nodes: N, for the full softmax.

    Returns:
        The mean loss, a scalar.
    """
    ratios: dict[str, Any] = {"log_ratio": log_ratio, "pos_log_ratio": pos_log_ratio}
    if recipe.loss == "cross-entropy":
        classes = num_nodes if recipe.full_softmax else None
        return softmax_loss(positive, negative, num_nodes=classes, **ratios)
    if recipe.loss == "bpr":
        return bpr_loss(positive, negative, **ratios)
    return bce_loss(positive, negative, balanced=recipe.loss == "bce", **ratios)


class _Run:
    """Model, sampler and loader of one cell, and what its epochs add up to."""

    def __init__(self, problem: Problem, cell: Cell, watch: Watch | None = None) -> None:
        recipe = cell.recipe
        seed_all(cell.seed)
        self.problem, self.recipe = problem, recipe
        self.shared = cell.row.method if isinstance(cell.row.method, Shared) else None
        self.calibrated = calibration(cell.row.method)
        self.k = negatives_per_edge(cell.row.method, recipe.k)
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
        self.model = nn.ModuleList([self.encoder, self.scorer])
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.sampler = make_sampler(
            cell.row.method,
            self.k,
            problem.graph,
            self.embed,
            None if isinstance(self.scorer, DotScorer) else self.scorer,
            cell.seed,
        )
        neighbours = (
            MultiLayerFullNeighborSampler(recipe.layers)
            if recipe.fanout is None
            else NeighborSampler([recipe.fanout] * recipe.layers)
        )
        self.loader = DataLoader(
            problem.messages,
            torch.arange(problem.graph.num_edges()),
            as_edge_prediction_sampler(
                neighbours,
                exclude="reverse_id",
                reverse_eids=problem.reverse,
                negative_sampler=self.sampler,
            ),
            batch_size=recipe.batch_size,
            shuffle=True,
        )
        self.seconds = self.refresh_seconds = 0.0
        self.epochs = self.batches = self.input_nodes = 0
        self.random = torch.Generator().manual_seed(cell.seed)  # of the rows that are rebuilt
        self.mean_score: dict[str, float] = {}
        if isinstance(self.sampler, RefreshingSampler):
            if watch is not None:
                watch(self.sampler)
            started = time.perf_counter()
            if recipe.refresh_share < 1:
                self.sampler.refresh()
            else:
                self.sampler.attach(self.optimizer, every=recipe.refresh_every * len(self.loader))
            self.seconds += time.perf_counter() - started
            report = self._last_refresh()
            assert report is not None
            self.refresh_seconds += report.seconds

    @torch.no_grad()
    def embed(self) -> Tensor:
        """Embeddings of all nodes, float32 [N, D]; the training mode stays as it was."""
        mode = self.model.training
        self.model.eval()
        h: Tensor = self.encoder(self.problem.messages, self.problem.features)
        self.model.train(mode)
        return h

    def _last_refresh(self) -> RefreshReport | None:
        return self.sampler.report if isinstance(self.sampler, RefreshingSampler) else None

    def _scores(self, graph: Any, h: Tensor) -> Tensor:
        """Scores along the edges of a pair graph, shape [edges]."""
        src, dst = graph.edges()
        score: Tensor = self.scorer(h[src], h[dst])
        return score

    def _loss(self, h: Tensor, pos_graph: Any, neg_graph: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of a batch, and the scores of its positives and of its negatives."""
        if self.shared is not None:
            with torch.no_grad():
                scores = self._scores(pos_graph, h), self._scores(neg_graph, h)
            return self._shared_loss(self.shared, h, pos_graph, neg_graph), *scores
        positive = self._scores(pos_graph, h)
        negative = self._scores(neg_graph, h).view(-1, self.k)
        ratio = of_positives = None
        if self.calibrated != "no":
            ratio = self.sampler.log_ratio(neg_graph).view_as(negative)
        if self.calibrated == "both" and not self.recipe.full_softmax:
            of_positives = self.sampler.positive_log_ratio(pos_graph)
        nodes = self.problem.data.num_nodes
        loss = objective(self.recipe, positive, negative, ratio, of_positives, nodes)
        return loss, positive, negative

    def _shared_loss(self, method: Shared, h: Tensor, pos_graph: Any, neg_graph: Any) -> Tensor:
        scorer = None if isinstance(self.scorer, DotScorer) else self.scorer
        count = pos_graph.num_edges()
        if method.queries is None:
            whole: Tensor = self.sampler.loss(h, pos_graph, neg_graph, scorer=scorer)
            return whole
        parts: list[Tensor] = []
        for edges in torch.arange(count).split(method.queries):
            own = (edges.unsqueeze(1) * self.k + torch.arange(self.k)).flatten()
            graphs = [
                dgl.edge_subgraph(graph, rows, relabel_nodes=False)
                for graph, rows in ((pos_graph, edges), (neg_graph, own))
            ]
            parts.append(self.sampler.loss(h, *graphs, scorer=scorer) * len(edges))
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
            if self.recipe.observe and isinstance(self.sampler, RefreshingSampler):
                self.sampler.observe(blocks[-1].dstdata[dgl.NID], h)
            loss, positive, negative = self._loss(h, pos_graph, neg_graph)
            self.optimizer.zero_grad()
            loss.backward()
            before = self._last_refresh()
            self.optimizer.step()  # refreshes the sampler, when it is time
            report = self._last_refresh()
            if report is not None and report is not before:
                self.refresh_seconds += report.seconds
            self.batches += 1
            self.input_nodes += len(input_nodes)
            edges += len(positive)
            total += torch.stack(
                [positive.detach().sum(), negative.detach().mean() * len(positive)]
            )
        self.epochs += 1
        if self.recipe.refresh_share < 1 and self.epochs % self.recipe.refresh_every == 0:
            self._refresh_part()
        self.seconds += time.perf_counter() - started
        self.mean_score = dict(zip(("positive score", "negative score"), (total / edges).tolist()))

    def _refresh_part(self) -> None:
        """Rebuild the recipe's share of the rows, if the sampler follows the encoder."""
        if isinstance(self.sampler, RefreshingSampler):
            nodes = self.problem.data.num_nodes
            rows = torch.randperm(nodes, generator=self.random)
            rows = rows[: math.ceil(self.recipe.refresh_share * nodes)]
            self.refresh_seconds += self.sampler.refresh(nodes=rows).seconds

    def state(self) -> dict[str, Any]:
        """A copy of what the tests after training need."""
        follows = isinstance(self.sampler, RefreshingSampler)
        return {
            "model": copy.deepcopy(self.model.state_dict()),
            "sampler": self.sampler.state_dict() if follows else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.model.load_state_dict(state["model"])
        if state["sampler"] is not None:
            self.sampler.load_state_dict(state["sampler"])


def train(problem: Problem, cell: Cell, watch: Watch | None = None) -> dict[str, Any]:
    """Train on a problem that is already loaded; see `run_cell`.

    Args:
        problem: the data.
        cell: what to train.
        watch: called with the sampler before its first refresh, if it follows the encoder; what it
            does then counts as time of the training.

    Returns:
        ``val`` and ``test`` (metrics at the best epoch), ``curve`` (validation MRR of each epoch),
        ``best epoch``, ``epochs``, ``seconds per epoch`` (training and refreshes, the first
        refresh included; no validation), ``refresh share`` of them, ``input nodes`` (distinct ones
        a batch, on average), ``positive score`` and ``negative score`` (means over the last epoch)
        and ``negatives`` (see `false_negatives`, at the best epoch).
    """
    run = _Run(problem, cell, watch)
    curve: list[float] = []
    best, best_epoch, best_state = -math.inf, -1, run.state()
    for epoch in range(cell.recipe.epochs):
        run.epoch()
        curve.append(mrr(problem, run.embed(), run.scorer))
        if curve[-1] > best:
            best, best_epoch, best_state = curve[-1], epoch, run.state()
        elif epoch - best_epoch >= cell.recipe.patience:
            break
    run.restore(best_state)
    h = run.embed()
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
        "negatives": false_negatives(problem, h, run.scorer, run.sampler, run.calibrated != "no"),
    }
