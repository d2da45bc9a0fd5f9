"""One cell: train an encoder with one source of negatives, stop early, report the test figures."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import measured
from benchmarks.paper.config import Cell
from benchmarks.paper.encoders import Encoder
from benchmarks.paper.negatives import make_source
from benchmarks.paper.objective import objective
from benchmarks.paper.probe import probe_accuracy
from benchmarks.paper.problem import Folders, Problem, load_problem
from benchmarks.paper.terms import real_scores

__all__ = ["run_cell", "train"]


def run_cell(cell: Cell, folders: Folders, threads: int = 1) -> dict[str, Any]:
    """Run a cell from its configuration.

    Args:
        cell: what to run.
        folders: where data and splits lie.
        threads: torch's threads.

    Returns:
        ``val`` and ``test`` metrics, cost, and what the source of negatives says; plain values.
    """
    return measured(
        lambda: load_problem(cell.dataset, cell.row.training, cell.seed, cell.official, folders),
        lambda problem: train(problem, cell),
        threads,
    )


def train(problem: Problem, cell: Cell) -> dict[str, Any]:
    """Train on a problem that is already loaded; see `run_cell`."""
    settings = cell.row.training
    torch.manual_seed(cell.seed)
    encoder = Encoder(
        settings.encoder,
        problem.features,
        settings.hidden,
        settings.dropout,
        settings.activation,
    )
    optimizer = torch.optim.Adam(
        encoder.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    source = make_source(problem, cell.row.method, cell.seed)
    best: dict[str, Any] = {}
    best_map, best_epoch, epoch = -math.inf, -1, 0
    best_h: Tensor | None = None
    seconds = 0.0
    for epoch in range(settings.epochs):
        started = time.perf_counter()
        encoder.train()
        h = encoder(problem.messages)
        positive = real_scores(h, problem.query, problem.positive.unsqueeze(1)).squeeze(1)
        negative = source.terms(h, epoch)
        loss = objective(positive, negative, form=settings.loss, scale=settings.scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds += time.perf_counter() - started
        encoder.eval()
        with torch.no_grad():
            h = encoder(problem.messages)
        val = problem.metrics(h, "val")
        if val["MAP"] > best_map:
            best_map, best_epoch, best_h = val["MAP"], epoch, h
            best = {"val": val, "statistics": source.statistics()}
        elif epoch - best_epoch >= settings.patience:
            break
    assert best_h is not None
    return {
        **best,
        "test": problem.metrics(best_h, "test"),
        "probe": probe_accuracy(best_h, problem.labels, cell.seed),
        "best epoch": best_epoch,
        "epochs": epoch + 1,
        "seconds per epoch": seconds / (epoch + 1),
    }
