"""What negatives are chosen from at one refresh: embeddings, model, scorer, known edges."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Union

import torch
from torch import Tensor, nn

from dgl_dmns.core.choice import distinct_pools
from dgl_dmns.core.fetched import FetchedRows
from dgl_dmns.core.generator import DiffusionGenerator
from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.modes import in_float32, shielded
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
    """

    h_query: Tensor
    h_candidate: Rows
    known: KnownEdges
    scorer: Scorer | None = None
    model: DiffusionGenerator | None = None

    @cached_property
    @shielded
    @in_float32
    def encoded(self) -> tuple[Tensor, Rows]:
        """Conditions [Nq, W] of the queries and destinations [Nc, W] in the model's space.

        They are made when they are first asked for, and kept. Only with a diffusion model.
        """
        assert self.model is not None
        encode = self.model.space.encode
        z_query = encode(self.h_query)
        if isinstance(self.h_candidate, FetchedRows):
            return z_query, self.h_candidate.mapped(encode)
        z_candidate = z_query if self.h_candidate is self.h_query else encode(self.h_candidate)
        return self.model.conditions(z_query, z_candidate, self.known), z_candidate

    @property
    def z_query(self) -> Tensor:
        """What the negatives of each query are conditioned on, shape [Nq, W]."""
        return self.encoded[0]

    @property
    def z_candidate(self) -> Rows:
        """Destination embeddings in the model's space, shape [Nc, W]."""
        return self.encoded[1]

    def on(self, device: torch.device) -> Snapshot:
        """The same on a device, with copies of the model and of a module as scorer there."""
        if self.h_query.device == device:
            return self
        assert isinstance(self.h_candidate, Tensor)
        h_query = self.h_query.to(device)
        one_type, scorer = self.h_candidate is self.h_query, self.scorer
        return Snapshot(
            h_query,
            h_query if one_type else self.h_candidate.to(device),
            self.known.on(device),
            copy.deepcopy(scorer).to(device) if isinstance(scorer, nn.Module) else scorer,
            None if self.model is None else copy.deepcopy(self.model).moved(device),
        )

    def pools(self, chunks: int, size: int, generator: torch.Generator | None) -> Tensor:
        """Uniform pools [C, min(M, N)] of distinct destinations, int64.

        Of nodes of which some are held, or are candidates, pools are of these.
        """
        device = self.h_query.device
        if isinstance(self.h_candidate, FetchedRows):
            held = self.h_candidate.ids
            return held[distinct_pools(chunks, size, held.numel(), generator, device)]
        nodes = self.known.num_candidates
        pool = distinct_pools(chunks, size, nodes, generator, device)
        return pool if self.known.candidates is None else self.known.candidates[pool]

    def scores(self, query: Tensor, candidate: Tensor) -> Tensor:
        """Scores [C, Q, M], float32, of chunks of queries [C, Q] with their pools [C, M]."""
        return self._scores(rows_of(self.h_query, query), rows_of(self.h_candidate, candidate))

    def _scores(self, h_query: Tensor, h_pool: Tensor) -> Tensor:
        """Scores [C, Q, M] of embeddings [C, Q, D] with [C, M, D]."""
        if self.scorer is None or self.scorer is dot_score:
            return h_query @ h_pool.transpose(1, 2)
        score = called_scorer(self.scorer, h_query.unsqueeze(2), h_pool.unsqueeze(1))
        return checked_scores(score, (*h_query.shape[:2], h_pool.shape[1])).float()
