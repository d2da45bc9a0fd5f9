"""What all sources of negatives share: embeddings of this epoch in, scores and weights out.

Symbols: N nodes, E training edges, K negatives an edge, D width.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from benchmarks.paper.config import Diffusion
from dgl_dmns.core import Levels, NoiseSchedule

__all__ = ["Source", "Terms", "levels_of", "real_scores", "schedule_of"]


class Terms(NamedTuple):
    """Negatives of all training edges.

    Args:
        score: inner products with the edge's query, shape [E, K].
        weight: of each term, shape [E, K] or [K]; None: all 1.
    """

    score: Tensor
    weight: Tensor | None


class Source(Protocol):
    """Anything that gives negatives for the training edges."""

    def terms(self, h: Tensor, epoch: int) -> Terms:
        """Negatives for embeddings [N, D], which carry gradients."""
        ...

    def statistics(self) -> dict[str, float]:
        """What the source has to say about its last call."""
        ...


def levels_of(settings: Diffusion) -> Levels:
    """The levels of diffusion settings."""
    return Levels(settings.fractions, settings.weights)


def schedule_of(settings: Diffusion) -> NoiseSchedule:
    """The noise schedule of diffusion settings."""
    if settings.schedule == "cosine":
        return NoiseSchedule.cosine(settings.steps)
    return NoiseSchedule.linear(settings.steps)


def real_scores(h: Tensor, query: Tensor, negatives: Tensor) -> Tensor:
    """Scores of real negatives [E, K] with their queries [E], differentiable at both ends.

    Column by column with `index_select`: a third of the time, forward and backward, of indexing all
    negatives at once.
    """
    h_query = h.index_select(0, query)
    columns = [(h_query * h.index_select(0, column)).sum(-1) for column in negatives.unbind(1)]
    return torch.stack(columns, dim=1)
