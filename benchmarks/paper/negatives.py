"""Sources of negatives, and the loss that they go into.

Real nodes come from one of the package's samplers, asked as any DGL loader does, ``sampler(g,
eids)``; gradients then reach both ends of a negative. Latent negatives are in
`benchmarks.paper.latents`.

The loss is the paper's multi-level one on scores, ``L = (L_pos + L_neg) / 2``; ``L_pos`` is the
mean of ``f(s)`` over the training edges, ``L_neg`` that of ``w f(-s')`` over their K negatives: the
weighted sum divided by the number of terms.  The paper writes ``f = -log sigmoid``; the authors'
code uses ``f = -sigmoid``.  `dgl_dmns.losses.multilevel_loss` is this with one weight a level; here
a weight may differ from edge to edge.

Symbols: N nodes, E training edges, K negatives an edge, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmarks.common.rows import Row, make_sampler
from benchmarks.paper.problem import Problem
from dgl_dmns.core import NO_LEVEL
from dgl_dmns.samplers import DMNSSampler, RefreshingSampler

__all__ = ["K", "SampledSource", "Terms", "objective", "real_scores"]

K = 5  # negatives per edge of every row that does not name its own number

_FORMS = {"sigmoid": torch.sigmoid, "logsigmoid": logsigmoid}


class Terms(NamedTuple):
    """Negatives of all training edges."""

    score: Tensor  # inner products with the edge's query, shape [E, K]
    weight: Tensor | None  # of each term, shape [E, K] or [K]; None: all 1


def real_scores(h: Tensor, query: Tensor, negatives: Tensor) -> Tensor:
    """Scores of real negatives [E, K] with their queries [E], differentiable at both ends.

    Column by column with `index_select`: a third of the time, forward and backward, of indexing all
    negatives at once.
    """
    h_query = h.index_select(0, query)
    columns = [(h_query * h.index_select(0, column)).sum(-1) for column in negatives.unbind(1)]
    return torch.stack(columns, dim=1)


def objective(positive: Tensor, negative: Terms, *, form: str, scale: float = 1.0) -> Tensor:
    """The loss of one epoch, a scalar: ``form`` is a key of `_FORMS`, ``scale`` a factor of scores.

    Raises:
        ValueError: for another form.
    """
    if form not in _FORMS:
        raise ValueError(f"loss: expected one of {', '.join(_FORMS)}, got {form!r}")
    gain: Any = _FORMS[form]
    wrong = -gain(-scale * negative.score)
    if negative.weight is not None:
        wrong = wrong * negative.weight
    loss: Tensor = 0.5 * (wrong.mean() - gain(scale * positive).mean())
    return loss


class SampledSource:
    """Real nodes from a sampler of the package; those of DMNS have the weight of their level.

    A sampler that follows the encoder is refreshed in every epoch. Row ``fixed`` is uniform, and
    the negatives of the first epoch are kept.
    """

    def __init__(self, problem: Problem, row: Row, seed: int) -> None:
        self.problem = problem
        self.fixed = row.sampler == "fixed"
        self.kept: Tensor | None = None
        if self.fixed:
            row = replace(row, sampler="uniform")
        if row.sampler == "dmns":  # small graphs have fewer nodes than a pool wants
            row = row.with_options(pool=min(row.options["pool"], problem.graph.num_nodes()))
        self.sampler = make_sampler(row, K, problem.graph, _never_called, seed)

    def terms(self, h: Tensor, epoch: int) -> Terms:
        """Negatives for embeddings [N, D], which carry gradients."""
        query = self.problem.query
        if isinstance(self.sampler, RefreshingSampler):
            self.sampler.refresh(embeddings=h.detach())
        if isinstance(self.sampler, DMNSSampler):
            drawn = self.sampler.draw(query)
            weights = self.sampler.levels.loss_weights
            by_level = torch.ones(NO_LEVEL + 1)
            by_level[: len(weights)] = torch.tensor(weights)
            return Terms(real_scores(h, query, drawn.ids), by_level[drawn.level.long()])
        negatives = self.kept
        if negatives is None:
            _, dst = self.sampler(self.problem.graph, self.problem.eids)
            negatives = dst.view(len(query), -1)
            self.kept = negatives if self.fixed else None
        return Terms(real_scores(h, query, negatives), None)

    def statistics(self) -> dict[str, float]:
        """What the source has to say about its last call: mean scores of the levels."""
        if not isinstance(self.sampler, DMNSSampler) or self.sampler.report is None:
            return {}
        scores = self.sampler.report.table.level_score
        return {f"score of level {name}": value for name, value in scores.items()}


def _never_called() -> Tensor:
    raise RuntimeError("encoder: the benchmark hands embeddings to refresh(); this is a mistake")
