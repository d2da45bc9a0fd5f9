r"""The pool that a batch's queries share: its nodes, their weights, and who may not see which.

Symbols: B queries with K candidates each, M = B K in all, of which the pool holds S; C distinct
nodes in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.mixture import known_among
from dgl_dmns.core.pool_softmax import Corrections

__all__ = ["Barred", "SharedPool"]


@dataclass(frozen=True, eq=False)
class SharedPool:
    """The nodes that are scored against all queries, each once.

    Attributes:
        nodes: rows of ``h``, distinct and ascending, shape [C], int64.
        log_weight: of each, summed over its draws, shape [C], float64.
        own: corrections that take a query's own draws out, which are counted elsewhere.
        shift: log of what the pool counts for, beside own draws: ``(M - K) / m_b`` with the
            ``m_b`` members of S that are not the query's own; shape [B], or [] and 0; float64.
        column: where each candidate stands in the pool, shape [M], int64; -1 where it is not in it.
    """

    nodes: Tensor
    log_weight: Tensor
    own: Corrections
    shift: Tensor
    column: Tensor

    @classmethod
    def of_all(cls, drawn: Tensor, log_weight: Tensor) -> SharedPool:
        """The pool of all candidates [M], rows of ``h``, with their log weights, float64 [M]."""
        nodes, column = drawn.unique(return_inverse=True)
        weight = log_weight.exp()
        total = weight.new_zeros(len(nodes)).index_add_(0, column, weight)
        nothing = Corrections(drawn[:0], drawn[:0], weight[:0])
        return cls(nodes, total.log(), nothing, weight.new_zeros(()), column)

    @classmethod
    def of_some(cls, drawn: Tensor, log_weight: Tensor, k: int, chosen: Tensor) -> SharedPool:
        """The pool of chosen candidates, beside which each query's own K are counted.

        Args:
            drawn: the candidates' rows of ``h``, K in a row for each query, shape [M], int64.
            log_weight: of all of them, shape [M], float64.
            k: K.
            chosen: distinct positions of S, shape [S], int64, more than K.
        """
        row = torch.div(chosen, k, rounding_mode="floor")
        nodes, at = drawn[chosen].unique(return_inverse=True)
        column = torch.full_like(drawn, -1)
        column[chosen] = at
        weight = log_weight[chosen].exp()
        total = weight.new_zeros(len(nodes)).index_add_(0, at, weight)
        # A node in S may have been drawn several times, by the query among others.
        key, pair = (row * len(nodes) + at).unique(return_inverse=True)
        query, node = torch.div(key, len(nodes), rounding_mode="floor"), key % len(nodes)
        mine = weight.new_zeros(len(key)).index_add_(0, pair, weight)
        alone = torch.bincount(pair) == torch.bincount(at)[node]
        # Of draws without weight nothing is left, either.
        rest = (1 - mine / total[node]).nan_to_num(0.0).clamp(min=0.0).masked_fill(alone, 0.0)
        others = len(chosen) - torch.bincount(row, minlength=len(drawn) // k)
        shift = ((len(drawn) - k) / others.double()).log()
        return cls(nodes, total.log(), Corrections(query, node, rest.log()), shift, column)


@dataclass(frozen=True, eq=False)
class Barred:
    """What is no negative of which query, its own positive among it.

    Attributes:
        dst: rows of the positives' destinations, shape [B], int64.
        is_own: whether own candidates, rows [B, K], are no negatives: bool [B, K].
        is_among: positions (queries, columns) of what are none in a shared pool.
    """

    dst: Tensor
    is_own: Callable[[Tensor], Tensor]
    is_among: Callable[[SharedPool], tuple[Tensor, Tensor]]

    @classmethod
    def of_edges(
        cls, known: KnownEdges, ids: tuple[Tensor, Tensor], src: Tensor, dst: Tensor
    ) -> Barred:
        """By known edges.

        Args:
            known: the known edges.
            ids: node ids of the rows of both ends' embeddings, int64, on the device of ``known``.
            src: rows of the queries, shape [B], int64.
            dst: rows of the positives' destinations, shape [B], int64.
        """
        queries = ids[0][src.to(ids[0].device)]

        def is_own(own: Tensor) -> Tensor:
            return known.contains(queries.unsqueeze(1), ids[1][own.to(ids[1].device)])

        def is_among(shared: SharedPool) -> tuple[Tensor, Tensor]:
            nodes, order = ids[1][shared.nodes.to(ids[1].device)].sort()
            if bool((nodes[1:] == nodes[:-1]).any()):
                raise ValueError(
                    "ids: expected distinct nodes, got one for several rows of h; give each node "
                    "of the batch one row"
                )
            row, column = known_among(known, queries, nodes)
            return row, order[column]

        return cls(dst, is_own, is_among)

    @classmethod
    def of_mask(cls, mask: Tensor | None, dst: Tensor, drawn: Tensor, *, own_only: bool) -> Barred:
        """By a mask of candidates' nodes, bool [B, M], or [B, K] with ``own_only``.

        None bars nothing but positives.

        Raises:
            ValueError: for another shape or dtype.
        """
        queries = len(dst)
        shape = (queries, len(drawn) // queries if own_only else len(drawn))
        if mask is None:
            return cls(dst, torch.zeros_like, lambda shared: (shared.nodes[:0], shared.nodes[:0]))
        if mask.dtype != torch.bool or mask.shape != shape:
            raise ValueError(
                f"known: expected KnownEdges, or booleans of shape {list(shape)}, got {mask.dtype} "
                f"of shape {tuple(mask.shape)}"
            )
        barred = mask.to(dst.device)

        def is_own(own: Tensor) -> Tensor:
            if own_only:
                return barred
            at = torch.arange(len(drawn), device=barred.device).view(own.shape)
            return barred.gather(1, at)

        def is_among(shared: SharedPool) -> tuple[Tensor, Tensor]:
            inside = (shared.column >= 0).nonzero().squeeze(1)
            row, at = barred[:, inside].nonzero(as_tuple=True)
            return row, shared.column[inside[at]]

        return cls(dst, is_own, is_among)

    def own(self, own: Tensor) -> Tensor:
        """Which own candidates [B, K] are no negatives, bool [B, K]."""
        return self.is_own(own).to(own.device).bool() | (own == self.dst.unsqueeze(1))

    def among(self, shared: SharedPool) -> Corrections:
        """Corrections that leave them out of a shared pool, with the pool's own ones."""
        column = torch.searchsorted(shared.nodes, self.dst).clamp(max=len(shared.nodes) - 1)
        row = (shared.nodes[column] == self.dst).nonzero().squeeze(1)
        rows, columns = self.is_among(shared)
        out = (
            torch.cat([row, rows.to(row.device)]),
            torch.cat([column[row], columns.to(row.device)]),
        )
        value = shared.own.value
        return Corrections(
            torch.cat([shared.own.row, out[0]]),
            torch.cat([shared.own.column, out[1]]),
            torch.cat([value, value.new_full(out[0].shape, -math.inf)]),
        )
