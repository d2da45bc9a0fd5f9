"""One cell: calls, loader passes, training passes, refreshes and memory, ours and uniform in turn.

The two take turns within a cell, and a ratio is the median of the ratios of neighbouring turns, so
that other work on the machine meets both alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from dgl.dataloading import DataLoader, NeighborSampler, as_edge_prediction_sampler
from dgl.dataloading.negative_sampler import Uniform

from benchmarks.common import measured, peak_memory_mb, reset_peak_memory
from benchmarks.dropin.model import Encoder
from benchmarks.speed.config import CLOCKS, Cell, Row, Setting
from benchmarks.speed.problem import Problem, load_problem
from benchmarks.speed.without import WITHOUT, replaced
from dgl_dmns.core import Stopwatch
from dgl_dmns.losses import bce_loss
from dgl_dmns.samplers import (
    DMNSSampler,
    RefreshingSampler,
    Resources,
    SelfAdversarialSampler,
    UniformSampler,
)
from dgl_dmns.seeds import seed_all

__all__ = ["make_sampler", "run_cell"]

CALLS = 50  # timed calls of each source of negatives


def run_cell(cell: Cell, context: Any = None, threads: int = 1) -> dict[str, Any]:
    """Run a cell from its configuration.

    Args:
        cell: what to run.
        context: not used; what `benchmarks.common.run_cells` passes on.
        threads: torch's threads.

    Returns:
        ``edges``, ``batches per epoch``; ``call``, ``loader`` and ``training`` with seconds per
        call or batch of ``uniform`` and ``own`` and their ``ratio``; ``refresh`` with ``first``,
        ``later`` and its parts in seconds; ``epoch`` with seconds of both, refresh included,
        ``ratio`` and ``refresh share``; ``memory`` in MB; ``table MB``.
    """
    without = cell.row.without
    background = dict(cell.row.resources).get("background", False)
    if background and cell.setting.clock == "cpu":
        raise ValueError("clock: cpu counts what is done in the background, too; use wall")
    clock = CLOCKS[cell.setting.clock]
    with WITHOUT[without]() if without else nullcontext(), replaced(Stopwatch, "clock", clock):
        return measured(
            lambda: load_problem(cell.setting, cell.seed), lambda p: _measure(p, cell), threads
        )


def make_sampler(row: Row, k: int, graph: Any, encoder: Callable[[], Any], seed: int) -> Any:
    """The sampler of a row.

    Args:
        row: what to make.
        k: negatives per edge.
        graph: the training graph.
        encoder: returns the embeddings of all nodes, float32 [N, D].
        seed: of the samplers that follow the encoder.

    Raises:
        ValueError: for an unknown sampler.
    """
    arguments: dict[str, Any] = dict(row.arguments)
    if row.sampler == "filtered":
        return UniformSampler(graph, k)
    if row.sampler == "self-adversarial":
        return SelfAdversarialSampler(graph, encoder, k, seed=seed, **arguments)
    if row.sampler != "dmns":
        raise ValueError(
            f"sampler: expected 'filtered', 'self-adversarial' or 'dmns', got {row.sampler!r}"
        )
    options: dict[str, Any] = dict(row.resources)
    resources = Resources(**options)
    sampler = DMNSSampler(graph, encoder, k, seed=seed, resources=resources, **arguments)
    sampler.settings = replace(sampler.settings, **dict(row.pools))
    return sampler


def _in_turn(
    uniform: Callable[[], float], own: Callable[[], float], rounds: int
) -> dict[str, float]:
    """Median seconds of both and of the ratios of neighbouring turns, after one turn to warm up."""
    uniform()
    own()
    pairs = [(uniform(), own()) for _ in range(rounds)]
    return {
        "uniform": statistics.median(a for a, _ in pairs),
        "own": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(b / a for a, b in pairs),
    }


class _Recipe:
    """DGL's usual minibatch link prediction on one set of batches."""

    def __init__(self, problem: Problem, setting: Setting, seed: int) -> None:
        seed_all(seed)
        self.problem, self.setting = problem, setting
        self.clock = CLOCKS[setting.clock]
        self.encoder = Encoder("sage", setting.features, setting.width, 2, 0.0)
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), lr=3e-3)
        edges = problem.graph.num_edges()
        pairs = edges // 2
        self.batches_per_epoch = -(-pairs // setting.batch_size)
        batches = min(setting.batches, self.batches_per_epoch)
        count = min(pairs, batches * setting.batch_size)
        self.eids = torch.randint(0, pairs, (count,)).to(problem.graph.idtype)

    @torch.no_grad()
    def embeddings(self) -> torch.Tensor:
        h: torch.Tensor = self.encoder(self.problem.graph, self.problem.features)
        return h

    def loader(self, sampler: Any) -> Any:
        fanout = self.setting.fanout
        edge_sampler = as_edge_prediction_sampler(
            NeighborSampler([fanout, fanout]),
            exclude="reverse_id",
            reverse_eids=self.problem.reverse,
            negative_sampler=sampler,
        )
        return DataLoader(
            self.problem.graph,
            self.eids,
            edge_sampler,
            batch_size=self.setting.batch_size,
            shuffle=True,
            num_workers=self.setting.workers,
        )

    def call(self, sampler: Any) -> float:
        """Seconds of one call for a batch of random edges."""
        pairs = self.problem.graph.num_edges() // 2
        eids = torch.randint(0, pairs, (self.setting.batch_size,)).to(self.problem.graph.idtype)
        started = self.clock()
        sampler(self.problem.graph, eids)
        return self.clock() - started

    def whole_pass(self, sampler: Any, refresh: bool) -> float:
        """Seconds of a pass of training, with or without a refresh beside it from its start."""
        started = self.clock()
        if refresh:
            sampler.refresh()
        self.passed(sampler, train=True)
        sampler.wait()
        return self.clock() - started

    def passed(self, sampler: Any, train: bool) -> float:
        """Seconds per batch of a pass over the loader, its start-up left out."""
        batches = 0
        started = self.clock()
        for batch in self.loader(sampler):
            if train:
                self._step(*batch)
            batches += 1
            if batches == 1:
                started = self.clock()
        return (self.clock() - started) / max(1, batches - 1)

    def _step(self, input_nodes: Any, pos_graph: Any, neg_graph: Any, blocks: Any) -> None:
        h = self.encoder(blocks, self.problem.features[input_nodes.long()])
        scores = []
        for graph in (pos_graph, neg_graph):
            src, dst = graph.edges()
            scores.append((h[src.long()] * h[dst.long()]).sum(1))
        loss = bce_loss(scores[0], scores[1].view(-1, self.setting.k))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def _measure(problem: Problem, cell: Cell) -> dict[str, Any]:
    setting = cell.setting
    memory = {"graph and features": peak_memory_mb()}
    recipe = _Recipe(problem, setting, cell.seed)
    uniform = Uniform(setting.k)
    reset_peak_memory()
    recipe.passed(uniform, train=True)
    memory["uniform"] = peak_memory_mb()
    reset_peak_memory()
    started = recipe.clock()
    own = make_sampler(cell.row, setting.k, problem.graph, recipe.embeddings, cell.seed)
    made = recipe.clock() - started
    memory["made"] = peak_memory_mb()
    refresh = _refreshes(own, recipe)
    call = _in_turn(lambda: recipe.call(uniform), lambda: recipe.call(own), CALLS)
    passes = {
        name: _in_turn(
            lambda: recipe.passed(uniform, train),  # noqa: B023 - used within the turn
            lambda: recipe.passed(own, train),  # noqa: B023
            setting.rounds,
        )
        for name, train in (("loader", False), ("training", True))
    }
    memory["own"] = peak_memory_mb()
    batches, training = recipe.batches_per_epoch, passes["training"]
    seconds = {"uniform": batches * training["uniform"], "own": batches * training["own"]}
    seconds["own"] += refresh["later"]
    share = refresh["later"] / seconds["own"]
    return {
        "edges": problem.graph.num_edges(),
        "batches per epoch": batches,
        "seconds to make": made,
        "call": call,
        **passes,
        "refresh": refresh,
        "epoch": {
            **seconds,
            "ratio": training["ratio"] + refresh["later"] / seconds["uniform"],
            "refresh share": share,
        },
        "memory": memory,
        "table MB": _table_mb(own),
    }


def _refreshes(sampler: Any, recipe: _Recipe) -> dict[str, Any]:
    """Seconds of the first refresh and of later ones, with the parts of those.

    A refresh in the background costs what it adds to a pass of training that it runs beside.
    """
    if not isinstance(sampler, RefreshingSampler):
        return {"first": 0.0, "later": 0.0, "parts": {}}
    first = sampler.refresh().seconds
    count = recipe.setting.refreshes
    if not sampler.resources.background:
        best = min((sampler.refresh() for _ in range(count)), key=lambda report: report.seconds)
        return {"first": first, "later": best.seconds, "parts": dict(best.seconds_by_part)}
    added = []
    for _ in range(count):
        alone, beside = (recipe.whole_pass(sampler, refresh) for refresh in (False, True))
        added.append(beside - alone)
    report: Any = sampler.wait()
    return {"first": first, "later": min(added), "parts": dict(report.seconds_by_part)}


def _table_mb(sampler: Any) -> float:
    if not isinstance(sampler, RefreshingSampler):
        return 0.0
    buffers = sampler.table.buffers()
    return sum(buffer.numel() * buffer.element_size() for buffer in buffers) / 1e6
