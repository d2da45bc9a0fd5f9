"""One run: an encoder of smoothed features, trained with the shared loss and a bounded pool."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import dgl
import torch
from dgl.dataloading import DataLoader, as_edge_prediction_sampler
from torch import Tensor, nn

from benchmarks.common.rows import Cell, make_sampler
from benchmarks.common.run import Runner
from benchmarks.common.samplers import OWN
from benchmarks.common.training import converged
from benchmarks.scale.problem import Problem, load_problem
from dgl_dmns.core import KnownEdges
from dgl_dmns.evaluate import full_ranking, ranking_metrics
from dgl_dmns.models import block_sampler
from dgl_dmns.samplers import RefreshingSampler
from dgl_dmns.seeds import seed_all

__all__ = ["Recipe", "run_cell", "train"]

_LOOKED_AT = 1000  # training edges whose hard negatives are looked at


@dataclass(frozen=True)
class Recipe:
    """How a model is trained."""

    share: float = 1.0  # of the nodes that a positive is compared with, in the shared pool
    hidden: int = 128
    width: int = 64  # of the embeddings
    batch_size: int = 2048  # positives in a batch
    learning_rate: float = 3e-3  # of Adam
    epochs: int = 400  # at most this many
    patience: int = 40  # epochs without a better validation MRR
    steps: int = 500  # batches between looks at the validation edges, and refreshes, at most

    def pool(self, nodes: int) -> int:
        """Shared negatives that each positive is compared with, at most."""
        return max(1, round(self.share * nodes))


class _Encoder(nn.Sequential):
    """Two layers on the smoothed features, which take the place of neighbours."""

    num_layers = 0


class _Run:
    def __init__(self, problem: Problem, cell: Cell) -> None:
        seed_all(cell.seed)
        self.problem, self.recipe = problem, cell.recipe
        recipe: Recipe = cell.recipe
        self.model = _Encoder(
            nn.Linear(problem.features.shape[1], recipe.hidden),
            nn.ReLU(),
            nn.Linear(recipe.hidden, recipe.width),
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=recipe.learning_rate)
        self.g = g = dgl.graph((problem.src, problem.dst), num_nodes=problem.num_nodes)
        self.sampler = make_sampler(cell.row, 1, g, self.embed, cell.seed, own=OWN)
        edges = as_edge_prediction_sampler(block_sampler(self.model), negative_sampler=self.sampler)
        ids = torch.arange(g.num_edges())
        self.loader = DataLoader(g, ids, edges, batch_size=recipe.batch_size, shuffle=True)
        self.batches = iter(self.loader)
        self.seconds = self.refresh_seconds = 0.0

    @torch.no_grad()
    def embed(self) -> Tensor:
        """Embeddings of all nodes, float32 [N, D]."""
        parts = self.problem.features.split(1 << 16)
        return torch.cat([self.model(part) for part in parts])

    def round(self) -> None:
        """A refresh, and batches until the next: a pass, or as many as the recipe says."""
        started = time.perf_counter()
        if isinstance(self.sampler, RefreshingSampler):
            self.refresh_seconds += self.sampler.refresh().seconds
        pool = self.recipe.pool(self.problem.num_nodes)
        for _ in range(min(self.recipe.steps, len(self.loader))):
            batch = next(self.batches, None)
            if batch is None:
                self.batches = iter(self.loader)
                batch = next(self.batches)
            input_nodes, pos_graph, neg_graph, _ = batch
            h = self.model(self.problem.features[input_nodes])
            loss = self.sampler.loss(h, pos_graph, neg_graph, pool=pool)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.seconds += time.perf_counter() - started

    def rank(self, pairs: Tensor) -> dict[str, float]:
        """Filtered ranks of pairs among all nodes."""
        ranks = full_ranking(self.embed(), pairs, self.problem.csr)
        return ranking_metrics(ranks, hits=(10, 50))

    def false_negatives(self) -> dict[str, float]:
        """Held-out pairs among the hard negatives after a refresh: their share, and their weight.

        A negative weighs its probability under the softmax over all nodes, which is its pull in the
        loss; the weight is the share of the held-out ones in the sum. Nothing without a refresh.
        """
        if not isinstance(self.sampler, RefreshingSampler):
            return {}
        self.sampler.refresh()
        problem, eids = self.problem, torch.randint(len(self.problem.src), (_LOOKED_AT,))
        query, drawn = (ends.view(_LOOKED_AT, -1) for ends in self.sampler(self.g, eids))
        hard = self.sampler.chosen(self.sampler.relation().etype, torch.arange(_LOOKED_AT))
        held = torch.cat([problem.split.val, problem.split.test], dim=1)
        src, dst = torch.cat([held, held.flip(0)], dim=1)
        known = KnownEdges(src, dst, problem.num_nodes, exclude_self=False)
        false = known.contains(query, drawn)[hard]
        h = self.embed()
        score = h[query[:, 0]] @ h.t()
        weight = score.softmax(1).gather(1, drawn)[hard]
        return {
            "false share": float(false.float().mean()),
            "false weight": float(weight[false].sum() / weight.sum()),
        }


def train(problem: Problem, cell: Cell) -> dict[str, Any]:
    """Train until the validation MRR rises no more; test metrics of the best weights."""
    run = _Run(problem, cell)
    curve, best, weights = converged(
        cell.recipe.epochs,
        cell.recipe.patience,
        run.round,
        lambda: run.rank(problem.split.val)["MRR"],
        lambda: copy.deepcopy(run.model.state_dict()),
    )
    run.model.load_state_dict(weights)
    return {
        "val": run.rank(problem.split.val),
        "test": run.rank(problem.split.test),
        "curve": curve,
        "best round": best,
        "rounds": len(curve),
        "pool": cell.recipe.pool(problem.num_nodes),
        "seconds per round": run.seconds / len(curve),
        "refresh share": run.refresh_seconds / run.seconds,
        **run.false_negatives(),
    }


run_cell = Runner(load_problem, train)
