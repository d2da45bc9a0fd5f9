"""One cell: train an encoder with one source of negatives, stop early, report the test figures."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.common.rows import Cell, Row
from benchmarks.common.run import Runner
from benchmarks.common.training import converged
from benchmarks.paper.config import Latent, Training
from benchmarks.paper.encoders import Encoder
from benchmarks.paper.latents import LatentSource
from benchmarks.paper.negatives import SampledSource, objective, real_scores
from benchmarks.paper.problem import Problem, load_problem

__all__ = ["make_source", "probe_accuracy", "run_cell", "train"]

_RIDGE = 1e-4
_PROBE_STEPS = 60


def make_source(problem: Problem, row: Row, seed: int) -> LatentSource | SampledSource:
    """The source of a row's negatives."""
    if row.sampler == "latent":
        return LatentSource(problem, Latent(**row.options), seed)
    return SampledSource(problem, row, seed)


class _Run:
    """Encoder and source of negatives of one cell; an epoch is one step on all training edges."""

    def __init__(self, problem: Problem, cell: Cell) -> None:
        settings: Training = cell.recipe
        torch.manual_seed(cell.seed)
        self.problem, self.settings = problem, settings
        self.encoder = Encoder(
            settings.encoder,
            problem.features,
            settings.hidden,
            settings.dropout,
            settings.activation,
        )
        self.optimizer = torch.optim.Adam(
            self.encoder.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.source = make_source(problem, cell.row, cell.seed)
        self.epochs = 0
        self.seconds = 0.0
        self.h = self.embed()

    def embed(self) -> Tensor:
        """Embeddings of all nodes, float32 [N, D]."""
        self.encoder.eval()
        with torch.no_grad():
            h: Tensor = self.encoder(self.problem.messages)
        return h

    def epoch(self) -> None:
        """One step, and embeddings after it."""
        started = time.perf_counter()
        self.encoder.train()
        problem = self.problem
        h = self.encoder(problem.messages)
        positive = real_scores(h, problem.query, problem.positive.unsqueeze(1)).squeeze(1)
        negative = self.source.terms(h, self.epochs)
        form, scale = self.settings.loss, self.settings.scale
        loss = objective(positive, negative, form=form, scale=scale)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.epochs += 1
        self.seconds += time.perf_counter() - started
        self.h = self.embed()


def train(problem: Problem, cell: Cell) -> dict[str, Any]:
    """Train on a problem that is already loaded."""
    run = _Run(problem, cell)
    curve, best_epoch, (h, statistics) = converged(
        cell.recipe.epochs,
        cell.recipe.patience,
        run.epoch,
        lambda: problem.metrics(run.h, "val")["MAP"],
        lambda: (run.h, run.source.statistics()),
    )
    return {
        "val": problem.metrics(h, "val"),
        "test": problem.metrics(h, "test"),
        "probe": probe_accuracy(h, problem.labels, cell.seed),
        "best epoch": best_epoch,
        "epochs": len(curve),
        "seconds per epoch": run.seconds / len(curve),
        **statistics,
    }


def probe_accuracy(h: Tensor, labels: Tensor, seed: int, train: float = 0.5) -> float:
    """A linear probe: do embeddings that were trained for links tell the nodes' classes?

    Test accuracy of multinomial logistic regression on frozen embeddings [N, D] with ``labels``,
    int64 [N]; ``seed`` says which nodes are for training, ``train`` their share.
    """
    order = torch.randperm(len(h), generator=torch.Generator().manual_seed(seed))
    count = int(train * len(h))
    fit, test = order[:count], order[count:]
    h = h.detach()
    h = (h - h[fit].mean(0)) / h[fit].std(0).clamp(min=1e-6)
    model = nn.Linear(h.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=_PROBE_STEPS, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = cross_entropy(model(h[fit]), labels[fit]) + _RIDGE * model.weight.square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    with torch.no_grad():
        found = model(h[test]).argmax(dim=1)
    return float((found == labels[test]).float().mean())


run_cell = Runner(load_problem, train)
