"""What negatives are chosen from at one refresh: embeddings, model, scorer, known edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union

import torch
from torch import Tensor

from dgl_dmns.core.choice import distinct_pools
from dgl_dmns.core.fetched import FetchedRows
from dgl_dmns.core.generator import DiffusionGenerator
from dgl_dmns.core.known import KnownEdges
from dgl_dmns.messages import first_line

__all__ = [
    "Rows",
    "Scorer",
    "Snapshot",
    "called_scorer",
    "checked_scores",
    "dot_score",
    "rows_of",
]

Rows = Union[Tensor, FetchedRows]
"""Embeddings [N, D] by node id: of all nodes, or of some, beside which others are fetched."""

Scorer = Callable[[Tensor, Tensor], Tensor]
"""Scores of broadcastable embeddings: ([.., D], [.., D]) to [..]."""


def rows_of(h: Rows, ids: Tensor) -> Tensor:
    """Rows [.., D] of embeddings [N, D] for ids [..]: ``h[ids]``, copied a row at a time."""
    if isinstance(h, FetchedRows):
        return h.rows(ids)
    return h.index_select(0, ids.flatten()).view(*ids.shape, h.shape[1])


def dot_score(h_query: Tensor, h_candidate: Tensor) -> Tensor:
    """Inner products of broadcastable embeddings, the default scorer."""
    return (h_query * h_candidate).sum(-1)


def called_scorer(scorer: Scorer, h_query: Tensor, h_candidate: Tensor) -> Tensor:
    """What a scorer returns.

    Raises:
        TypeError, AttributeError, RuntimeError: of the scorer, with how it was called.
    """
    try:
        return scorer(h_query, h_candidate)
    except torch.cuda.OutOfMemoryError:
        raise
    except (TypeError, AttributeError, RuntimeError) as error:
        kind = next(k for k in (TypeError, AttributeError, RuntimeError) if isinstance(error, k))
        raise kind(
            f"scorer: called with embeddings of shapes {tuple(h_query.shape)} and "
            f"{tuple(h_candidate.shape)}, which failed: {first_line(error)}; it takes "
            "broadcastable embeddings [.., D], for example lambda h_v, h_u: mlp(torch.cat("
            "torch.broadcast_tensors(h_v, h_u), -1)).squeeze(-1)"
        ) from error


def checked_scores(score: Any, shape: tuple[int, ...]) -> Tensor:
    """A scorer's scores, if there is one for each pair.

    Raises:
        ValueError: for another shape, or what is no tensor.
    """
    if not isinstance(score, Tensor) or score.shape != shape:
        given = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise ValueError(
            f"scorer: expected one score for each pair of embeddings, shape {tuple(shape)}, got "
            f"{given}; it is called with broadcastable embeddings [.., D] and leaves "
            "their last dimension out (after a linear layer, squeeze(-1))"
        )
    return score


@dataclass(frozen=True)
class Snapshot:
    """The embeddings of one refresh and what reads them.

    Args:
        h_query: source embeddings, shape [Nq, D].
        h_candidate: destination embeddings, shape [Nc, D]; pools are of those that are held.
        known: known edges from sources to destinations.
        scorer: scores of broadcastable embeddings; None for the inner product.
        model: the diffusion model, None for rules that do without.
        z_query: its conditions, source embeddings in its space, shape [Nq, W]; None without it.
        z_candidate: destination embeddings in that space, shape [Nc, W].
    """

    h_query: Tensor
    h_candidate: Rows
    known: KnownEdges
    scorer: Scorer | None = None
    model: DiffusionGenerator | None = None
    z_query: Tensor | None = None
    z_candidate: Rows | None = None

    @classmethod
    def take(
        cls,
        h_query: Tensor,
        h_candidate: Rows,
        known: KnownEdges,
        scorer: Scorer | None,
        model: DiffusionGenerator | None,
    ) -> Snapshot:
        """A snapshot with the embeddings encoded once, if there is a model."""
        if model is None:
            return cls(h_query, h_candidate, known, scorer)
        z_query = model.space.encode(h_query)
        if isinstance(h_candidate, FetchedRows):
            z = h_candidate.mapped(model.space.encode)
            return cls(h_query, h_candidate, known, scorer, model, z_query, z)
        z_candidate = z_query if h_candidate is h_query else model.space.encode(h_candidate)
        conditions = model.conditions(z_query, z_candidate, known)
        return cls(h_query, h_candidate, known, scorer, model, conditions, z_candidate)

    def pools(self, chunks: int, size: int, generator: torch.Generator | None) -> Tensor:
        """Uniform pools [C, min(M, N)] of distinct destinations, int64.

        Of nodes of which some are held, pools are of these.
        """
        device = self.h_query.device
        if isinstance(self.h_candidate, FetchedRows):
            held = self.h_candidate.ids
            return held[distinct_pools(chunks, size, held.numel(), generator, device)]
        return distinct_pools(chunks, size, self.known.num_dst, generator, device)

    def scores(self, query: Tensor, candidate: Tensor) -> Tensor:
        """Scores [C, Q, M], float32, of chunks of queries [C, Q] with their pools [C, M]."""
        h_query, h_pool = rows_of(self.h_query, query), rows_of(self.h_candidate, candidate)
        if self.scorer is None or self.scorer is dot_score:
            return h_query @ h_pool.transpose(1, 2)
        score = called_scorer(self.scorer, h_query.unsqueeze(2), h_pool.unsqueeze(1))
        return checked_scores(score, (*query.shape, candidate.shape[1])).float()
