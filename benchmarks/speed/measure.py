"""One cell: calls, loader passes, training passes, refreshes and memory, ours and uniform in turn.

The two take turns within a cell, and a ratio is the median of the ratios of neighbouring turns, so
that other work on the machine meets both alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from dgl.dataloading import NeighborSampler
from dgl.dataloading.negative_sampler import Uniform

from benchmarks.common.rows import Cell, make_sampler
from benchmarks.common.run import Runner, peak_memory_mb, reset_peak_memory
from benchmarks.common.training import edge_loader
from benchmarks.dropin.model import Encoder
from benchmarks.speed.config import CLOCKS, Setting
from benchmarks.speed.problem import Problem, load_problem
from benchmarks.speed.without import WITHOUT, replaced
from dgl_dmns.core import Stopwatch
from dgl_dmns.inference import layerwise_inference
from dgl_dmns.losses import bce_loss
from dgl_dmns.samplers import RefreshingSampler, Resources
from dgl_dmns.seeds import seed_all

__all__ = ["measure", "run_cell"]

CALLS = 50  # timed calls of each source of negatives


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
        h: torch.Tensor
        graph, features = self.problem.graph, self.problem.features
        if self.setting.layerwise:
            first, last = self.encoder.layers
            layers = [lambda block, x: first(block, x).relu(), last]
            h = layerwise_inference(graph, features, layers, model=self.encoder)
        else:
            h = self.encoder(graph, features)
        return h

    def loader(self, sampler: Any) -> Any:
        return edge_loader(
            self.problem.graph,
            self.eids,
            NeighborSampler([self.setting.fanout] * 2),
            self.problem.reverse,
            sampler,
            self.setting.batch_size,
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


def measure(problem: Problem, cell: Cell) -> dict[str, Any]:
    """The result of a cell.

    Returns:
        Size of the graph and the recipe; ``call``, ``loader`` and ``training`` with seconds per
        call or batch of ``uniform`` and ``own`` and their ``ratio``; ``refresh`` with ``first``,
        ``later`` and its parts in seconds; ``epoch`` with seconds of both, refresh included, and
        their ``ratio``; ``refresh share``; peak ``memory`` and ``table MB``.
    """
    clock, resources = cell.recipe.clock, cell.row.options.get("resources", Resources())
    if resources.background and clock == "cpu":
        raise ValueError("clock: cpu counts what is done in the background, too; use wall")
    without = WITHOUT.get(cell.row.title, nullcontext)
    with without(), replaced((Stopwatch, "clock", CLOCKS[clock])):
        return _measured(problem, cell)


def _measured(problem: Problem, cell: Cell) -> dict[str, Any]:
    setting: Setting = cell.recipe
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
    loader, training = (
        _in_turn(
            lambda: recipe.passed(uniform, train),  # noqa: B023 - used within the turn
            lambda: recipe.passed(own, train),  # noqa: B023
            setting.rounds,
        )
        for train in (False, True)
    )
    memory["own"] = peak_memory_mb()
    batches, later = recipe.batches_per_epoch, refresh["later"]
    epoch = {
        "uniform": batches * training["uniform"],
        "own": batches * training["own"] + later,
    }
    epoch["ratio"] = training["ratio"] + later / epoch["uniform"]
    size = {name: getattr(setting, name) for name in ("nodes", "width", "k", "workers")}
    return {
        **size,
        "edges": problem.graph.num_edges(),
        "batches per epoch": batches,
        "seconds to make": made,
        "call": call,
        "loader": loader,
        "training": training,
        "refresh": refresh,
        "epoch": epoch,
        "refresh share": later / epoch["own"],
        "memory": memory,
        "table MB": _table_mb(own),
    }


def _refreshes(sampler: Any, recipe: _Recipe) -> dict[str, Any]:
    """Seconds of the first refresh and of later ones, with the parts of those.

    A refresh in the background costs what it adds to a pass of training that it runs beside.
    """
    if not isinstance(sampler, RefreshingSampler):
        return {"first": 0.0, "later": 0.0}
    first = sampler.refresh().seconds
    count = recipe.setting.refreshes
    if not sampler.resources.background:
        best = min((sampler.refresh() for _ in range(count)), key=lambda report: report.seconds)
        return {"first": first, "later": best.seconds, **best.seconds_by_part}
    added = []
    for _ in range(count):
        alone, beside = (recipe.whole_pass(sampler, refresh) for refresh in (False, True))
        added.append(beside - alone)
    report: Any = sampler.wait()
    return {"first": first, "later": min(added), **report.seconds_by_part}


def _table_mb(sampler: Any) -> float:
    if not isinstance(sampler, RefreshingSampler):
        return 0.0
    buffers = sampler.table.buffers()
    return sum(buffer.numel() * buffer.element_size() for buffer in buffers) / 1e6


run_cell = Runner(load_problem, measure)
