"""What negatives are chosen from at one refresh: embeddings, model, scorer, known edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dgl_dmns.core.generator import DiffusionGenerator
from dgl_dmns.core.known import KnownEdges

__all__ = ["Scorer", "Snapshot", "checked_scores", "dot_score", "rows_of"]

Scorer = Callable[[Tensor, Tensor], Tensor]
"""Scores of broadcastable embeddings: ([.., D], [.., D]) to [..]."""


def rows_of(h: Tensor, ids: Tensor) -> Tensor:
    """Rows [.., D] of embeddings [N, D] for ids [..]: ``h[ids]``, copied a row at a time."""
    return h.index_select(0, ids.flatten()).view(*ids.shape, h.shape[1])


def dot_score(h_query: Tensor, h_candidate: Tensor) -> Tensor:
    """Inner products of broadcastable embeddings, the default scorer."""
    return (h_query * h_candidate).sum(-1)


def checked_scores(score: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A scorer's scores, if there is one for each pair.

    Raises:
        ValueError: for another shape.
    """
    if score.shape != shape:
        raise ValueError(
            f"scorer: expected one score for each pair of embeddings, shape {tuple(shape)}, got "
            f"{tuple(score.shape)}; it is called with broadcastable embeddings [.., D] and leaves "
            "their last dimension out (after a linear layer, squeeze(-1))"
        )
    return score


@dataclass(frozen=True)
class Snapshot:
    """The embeddings of one refresh and what reads them.

    Args:
        h_query: source embeddings, shape [Nq, D].
        h_candidate: destination embeddings, shape [Nc, D].
        known: known edges from sources to destinations.
        scorer: scores of broadcastable embeddings, the inner product where None.
        model: the generator, None for rules that do without.
        z_query: the generator's conditions, source embeddings in its space, shape [Nq, W]; None
            without a model.
        z_candidate: destination embeddings in that space, shape [Nc, W].
        sharpness: factor on the scores in a rule's softmax, see `dgl_dmns.core.sharpness`.
    """

    h_query: Tensor
    h_candidate: Tensor
    known: KnownEdges
    scorer: Scorer | None = None
    model: DiffusionGenerator | None = None
    z_query: Tensor | None = None
    z_candidate: Tensor | None = None
    sharpness: float = 1.0

    @classmethod
    def take(
        cls,
        h_query: Tensor,
        h_candidate: Tensor,
        known: KnownEdges,
        scorer: Scorer | None,
        model: DiffusionGenerator | None,
    ) -> Snapshot:
        """A snapshot with the embeddings encoded once, if there is a model."""
        if model is None:
            return cls(h_query, h_candidate, known, scorer)
        z_query = model.space.encode(h_query)
        z_candidate = z_query if h_candidate is h_query else model.space.encode(h_candidate)
        conditions = model.conditions(z_query, z_candidate, known)
        return cls(h_query, h_candidate, known, scorer, model, conditions, z_candidate)

    def scores(self, query: Tensor, candidate: Tensor) -> Tensor:
        """Scores of chunks of queries with their pools.

        Args:
            query: source ids, shape [C, Q], int64.
            candidate: destination ids, shape [C, M], int64.

        Returns:
            Scores, shape [C, Q, M], float32.
        """
        h_query, h_pool = rows_of(self.h_query, query), rows_of(self.h_candidate, candidate)
        if self.scorer is None or self.scorer is dot_score:
            return h_query @ h_pool.transpose(1, 2)
        score = self.scorer(h_query.unsqueeze(2), h_pool.unsqueeze(1))
        return checked_scores(score, (*query.shape, candidate.shape[1])).float()
