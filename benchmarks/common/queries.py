"""Train models of queries and items with each row, for the benchmarks recommend and knowledge.

A row of ``bpr``, ``self-adversarial`` or ``plain`` (balanced binary cross-entropy) has a loss of
single negatives. The others have the sampler's, whose negatives stand for all items: ``softmax``
per edge, ``shared`` by the batch, and the full softmax over every item, which both estimate.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmarks.common.command import Command, benchmark_parser, chosen, with_settings
from benchmarks.common.report import (
    Section,
    cells_of,
    mean,
    ratio,
    setting,
    table,
    write_report,
)
from benchmarks.common.rows import Cell, Row, make_sampler
from benchmarks.common.run import Runner
from benchmarks.common.training import EveryNode, converged
from dgl_dmns.data import QueryGraph
from dgl_dmns.losses import bce_loss, bpr_loss
from dgl_dmns.models import edge_loader, make_model
from dgl_dmns.samplers import RefreshingSampler
from dgl_dmns.seeds import seed_all

__all__ = ["ROWS", "Benchmark", "Problem", "Recipe", "main", "train"]

_FOLLOWS = {"etypes": ["to"]}

_TUNED = ("learning rate", "temperature", "dropout", "regularization")

ROWS: dict[str, Row] = {
    "bpr": Row("uniform, BPR", "uniform", {}, "bpr"),
    "softmax": Row("uniform, softmax per edge", "uniform", {}, "softmax"),
    "uniform-shared": Row("uniform, shared, one an edge", "uniform", {}, "shared"),
    "in-batch": Row("in-batch, popularity corrected", "in-batch", {}, "shared"),
    "dynamic": Row("dynamic (DNS), BPR", "dynamic", _FOLLOWS, "bpr"),
    "self-adversarial": Row("self-adversarial", "uniform", {}, "self-adversarial"),
    "dmns": Row("DMNS (5), softmax per edge", "dmns", {"k": 5, **_FOLLOWS}, "softmax"),
    "dmns-bce": Row("DMNS (5), BCE", "dmns", {"k": 5, **_FOLLOWS}),
    "dmns-shared": Row("DMNS, shared, one an edge", "dmns", _FOLLOWS, "shared"),
    "dmns-shared-2": Row("DMNS, shared, two an edge", "dmns", {"k": 2, **_FOLLOWS}, "shared"),
    "dmns-shared-80": Row(
        "DMNS, shared, four fifths uniform", "dmns", {"uniform_share": 0.8, **_FOLLOWS}, "shared"
    ),
    "full-softmax": Row("full softmax over all items", "every node", _FOLLOWS, "shared"),
}
"""By command-line names; ratios are taken to the first that is run."""


@dataclass(frozen=True)
class Recipe:
    """The model and its training."""

    model: str  # of `dgl_dmns.models.MODELS`
    width: int = 64
    learning_rate: float = 3e-3  # of Adam
    temperature: Optional[float] = None  # noqa: UP007 - read at run time, in Python 3.9 too
    dropout: float = 0.0
    regularization: float = 0.0  # times `Model.squares` of the positives
    k: int = 16  # negatives of an edge under ``softmax`` and ``self-adversarial``; 1 elsewhere
    batch_size: int = 2048  # positives in a batch
    fanout: int = -1  # neighbours for each node and hop, of models that read any; -1 for all
    epochs: int = 200  # at most this many
    patience: int = 10  # epochs without a better validation figure before training stops
    refresh_every: int = 1  # epochs between refreshes of the samplers that follow the model
    # whether a query's known items are left out of the sums of ``shared`` and of the full softmax
    filtered: bool = True
    discount: float = 0.0  # of `dgl_dmns.losses.shared_softmax_loss`


@dataclass(frozen=True, eq=False)
class Problem:
    """A data set made ready.

    ``rank(query, item, score, part)`` returns the metrics of ``val`` or ``test`` for embeddings [Q,
    D] and [N, D] of all queries and items; ``score`` is None for the inner product.
    """

    graph: Any  # of `dgl_dmns.data`, with the training edges
    queries: Optional[QueryGraph]  # noqa: UP007 - of a knowledge graph
    rank: Callable[[Tensor, Tensor, Any, str], dict[str, float]]
    watched: str  # the metric that validation goes by


def self_adversarial_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """``-log sigmoid(s) - sum_i p_i log sigmoid(-s_i)``, p the softmax of scores [B, K], detached.

    Source: Sun et al., "RotatE", ICLR 2019, equation 5, for scores without a margin.
    """
    weight = negative.detach().softmax(1)
    return -(logsigmoid(positive) + (weight * logsigmoid(-negative)).sum(1)).mean() / 2


class _Run:
    """Model, sampler and loader of one cell."""

    def __init__(self, problem: Problem, cell: Cell) -> None:
        recipe: Recipe = cell.recipe
        seed_all(cell.seed)
        self.problem, self.row, self.recipe = problem, cell.row, recipe
        self.model = make_model(
            recipe.model,
            problem.graph,
            problem.queries,
            width=recipe.width,
            temperature=recipe.temperature,
            dropout=recipe.dropout,
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=recipe.learning_rate)
        self.seconds = 0.0
        started = time.perf_counter()
        self.sampler = make_sampler(
            cell.row,
            recipe.k if cell.row.loss in ("softmax", "self-adversarial") else 1,
            problem.graph,
            self.embed,
            cell.seed,
            scorer=self.model.scorer,
            own={"every node": EveryNode},
        )
        self.loader = edge_loader(
            self.model, problem.graph, self.sampler, recipe.fanout, batch_size=recipe.batch_size
        )
        if isinstance(self.sampler, RefreshingSampler):
            self.sampler.attach(self.optimizer, every=recipe.refresh_every * len(self.loader))
            self.seconds = time.perf_counter() - started

    @torch.no_grad()
    def embed(self) -> dict[str, Tensor]:
        """Embeddings of all queries and items for tests and refreshes."""
        mode, g = self.model.training, self.problem.graph
        self.model.eval()
        h: dict[str, Tensor] = self.model(g, g.ndata["feat"])
        self.model.train(mode)
        return h

    def rank(self, part: str) -> dict[str, float]:
        """Metrics of ``val`` or ``test``."""
        h = self.embed()
        return self.problem.rank(h["query"], h["item"], self.model.scorer, part)

    def _loss(self, h: dict[str, Tensor], pos_graph: Any, neg_graph: Any) -> Tensor:
        if self.row.loss in ("shared", "softmax"):
            how: dict[str, Any] = {"scorer": self.model.scorer, "discount": self.recipe.discount}
            if self.row.loss == "softmax":
                how["share"] = "edge"
            else:
                how["filtered"] = self.recipe.filtered
            own: Tensor = self.sampler.loss(h, pos_graph, neg_graph, **how)
            return own
        positive, negative = (self.model.scores(h, graph) for graph in (pos_graph, neg_graph))
        negative = negative.view(len(positive), -1)
        if self.row.loss == "bpr":
            return bpr_loss(positive, negative)
        if self.row.loss == "plain":
            return bce_loss(positive, negative, balanced=True)
        return self_adversarial_loss(positive, negative)

    def epoch(self) -> None:
        """One pass over the training edges, refreshes included."""
        started = time.perf_counter()
        self.model.train()
        for input_nodes, pos_graph, neg_graph, blocks in self.loader:
            h = self.model(blocks, input_nodes)
            loss = self._loss(h, pos_graph, neg_graph)
            if self.recipe.regularization:
                loss = loss + self.recipe.regularization * self.model.squares(h, pos_graph)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.seconds += time.perf_counter() - started


def train(problem: Problem, cell: Cell) -> dict[str, Any]:
    """Train with early stopping, then test the weights of the best epoch.

    Returns:
        ``val`` and ``test``, ``curve`` (the watched metric of each epoch), ``best epoch``,
        ``epochs``, ``seconds per epoch`` (refreshes included, the first among them; no validation),
        and the settings of the recipe that were tuned.
    """
    run, recipe = _Run(problem, cell), cell.recipe
    curve, best_epoch, weights = converged(
        recipe.epochs,
        recipe.patience,
        run.epoch,
        lambda: run.rank("val")[problem.watched],
        lambda: copy.deepcopy(run.model.state_dict()),
    )
    run.model.load_state_dict(weights)
    return {
        "val": run.rank("val"),
        "test": run.rank("test"),
        "curve": curve,
        "best epoch": best_epoch,
        "epochs": len(curve),
        "seconds per epoch": run.seconds / len(curve),
        "learning rate": recipe.learning_rate,
        "temperature": recipe.temperature,
        "dropout": recipe.dropout,
        "regularization": recipe.regularization,
    }


# ---- the command line ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Benchmark:
    """What differs between the two benchmarks."""

    name: str
    title: str
    recipe: Recipe
    grid: Mapping[str, Sequence[Any]]  # fields of the recipe that ``--tune`` goes through
    load: Callable[[str, Recipe, int, Any], Problem]
    metrics: Sequence[str]  # the watched one first
    protocol: str
    published: Mapping[str, str]  # by name of the data folder


def main(benchmark: Benchmark, argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the report.

    Returns:
        0, or 1 if a cell failed.
    """
    command = Command(_parser(benchmark), argv)
    recipe = command.made(
        lambda given: with_settings(
            replace(benchmark.recipe, epochs=given.epochs, patience=given.patience), given.set
        )
    )
    options = command.arguments
    rows = command.made(lambda given: chosen(given.rows, ROWS, benchmark.name))
    folder: Path | None = options.data_dir
    dataset = "generated" if folder is None else folder.name
    run, watched = Runner(benchmark.load, train), benchmark.metrics[0]
    recipes, sections = dict.fromkeys(rows, recipe), []
    if options.tune:
        values = itertools.product(*benchmark.grid.values())
        settings = [dict(zip(benchmark.grid, one)) for one in values]
        trials = {
            name: [Cell(dataset, replace(recipe, **setting), row, 0) for setting in settings]
            for name, row in rows.items()
        }
        command.run([cell for cells in trials.values() for cell in cells], run, folder)
        for name, cells in trials.items():
            results = [(command.store.load(cell), cell) for cell in cells]
            done = [(result["val"][watched], cell.recipe) for result, cell in results if result]
            if done:
                recipes[name] = max(done, key=lambda one: float(one[0]))[1]
        by_title = {
            f"{ROWS[name].title}: {', '.join(f'{k} {v}' for k, v in setting.items())}": [cell]
            for name, cells in trials.items()
            for setting, cell in zip(settings, cells)
        }
        sections = [Section("settings", dataset, by_title, "")]
    seeds = range(options.seeds)
    final = {
        row.title: [Cell(dataset, recipes[name], row, seed) for seed in seeds]
        for name, row in rows.items()
    }
    note = benchmark.published.get(dataset, "")
    first = next(iter(rows.values())).title
    sections.insert(0, Section(recipe.model, dataset, final, first, note))
    command.run(cells_of(sections[:1]), run, folder)
    columns = (
        *(
            mean(f"{m} ({part})", f"{part} {m}", 4)
            for part in ("test", "val")
            for m in benchmark.metrics
        ),
        ratio(f"{watched}, ratio", f"test {watched}"),
        *(mean(cost, cost, 2) for cost in ("seconds per epoch", "epochs")),
        *map(setting, _TUNED),
    )
    heading = command.heading(
        benchmark.title,
        benchmark.protocol,
        "Recipe: " + ", ".join(f"{name} {value}" for name, value in asdict(recipe).items()),
    )
    return command.end(
        write_report(
            sections,
            command.store,
            command.out,
            heading,
            lambda section, found: table(found, section.reference, columns),
        )
    )


def _parser(benchmark: Benchmark) -> argparse.ArgumentParser:
    parser = benchmark_parser(benchmark.name, benchmark.title, recipe=benchmark.recipe, seeds=3)
    parser.add_argument("--data-dir", type=Path, help="folder of the data set (default: generated)")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument(
        "--tune", action="store_true", help="choose settings of each row by seed 0 and validation"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="another field of the recipe (benchmarks/common/queries.py), such as model=lightgcn; "
        "may be given more than once",
    )
    return parser
