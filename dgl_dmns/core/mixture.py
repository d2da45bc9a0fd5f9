r"""The mixture that a batch's negatives come from, where each query draws by filtered weights.

Symbols: B queries ``v_j``; weights ``a(u) >= 0`` of the N destination nodes; ``A_j``, their sum
over the nodes that are admissible for ``v_j``, neither known nor itself. Query ``v_j`` draws with

    ``q(u|v_j) = a(u) / A_j`` where u is admissible, 0 where it is not;

uniformly among its admissible nodes where ``A_j = 0``; and where it has none, itself (any node, if
sources and destinations differ in type). What all queries draw together has the mixture's ratio
to uniform draws,

    ``rbar(u) = N / B sum_j q(u|v_j) = N / B a(u) (sum over j that do not know u of 1 / A_j)``.

Queries come from edges, so those that know a popular node are many: `mixture_log_ratio` counts the
batch's own, exactly. Known edges are looked up for the nodes in question only.

With K candidates a query, the batch has M = B K in all; a **shared pool** holds S of them, C
distinct nodes, which all queries are scored against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.softmax import Corrections

__all__ = ["Barred", "FilteredDraws", "SharedPool", "known_among"]

_PAIRS = 1 << 20  # known edges that are looked through at a time: a bounded working set


def known_among(known: KnownEdges, queries: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Which distinct, ascending nodes [C] are known to which queries [B]; forms no matrix [B, C].

    Returns:
        Positions in ``queries`` and in ``nodes``, each of shape [P], int64: known pairs, and self
        pairs if those are excluded; each once, the queries' positions not in order.
    """
    empty = queries.new_empty(0)
    if not nodes.numel():
        return empty, empty
    size = 1 << (8 * nodes.numel()).bit_length()  # nodes share flags: few, at 8 to 16 for each
    flags = torch.zeros(size, dtype=torch.bool, device=nodes.device)
    flags[nodes & (size - 1)] = True
    rows, columns = [empty], [empty]
    for row, node in _barred(known, queries):
        hit = flags[node & (size - 1)].nonzero().squeeze(1)
        row, node = row[hit], node[hit]
        column = torch.searchsorted(nodes, node).clamp(max=nodes.numel() - 1)
        found = nodes[column] == node
        rows.append(row[found])
        columns.append(column[found])
    return torch.cat(rows), torch.cat(columns)


def _barred(known: KnownEdges, queries: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions in ``queries`` and what they must not draw, each pair once, some at a time."""
    total = (known.indptr[queries + 1] - known.indptr[queries]).cumsum(0)
    start = 0
    while start < queries.numel():
        before = int(total[start - 1]) if start else 0
        end = max(start + 1, int(torch.searchsorted(total, before + _PAIRS, right=True)))
        part = queries[start:end]
        row, node = known.barred_of(part)
        if known.exclude_self:  # a self loop among the known edges would count twice
            own = known.itself(part)
            other = (node != own[row]).nonzero().squeeze(1)
            here = torch.arange(part.numel(), device=part.device)
            row, node = torch.cat([row[other], here]), torch.cat([node[other], own])
        yield row + start, node
        start = end


@dataclass(frozen=True, eq=False)
class FilteredDraws:
    """Draws with replacement among the nodes that are admissible for a query, by weights.

    Args:
        known: the known edges.
        weight: weights of destination ids [P]: float64 [P], finite and at least 0; None: uniform.
        total: sum of the weights of all nodes, if there are weights.
        positive: number of nodes with a weight above 0, likewise.
    """

    known: KnownEdges
    weight: Callable[[Tensor], Tensor] | None = None
    total: float = 0.0
    positive: int = 0

    def mixture_log_ratio(self, queries: Tensor, nodes: Tensor) -> Tensor:
        """Log of ``rbar(u)``, the ratio of what all queries draw together to uniform draws.

        Args:
            queries: source ids, shape [B], int64, B at least 1.
            nodes: distinct destination ids in ascending order, shape [C], int64.

        Returns:
            Natural log ratios, shape [C], float64; -inf for a node that no query can draw.
        """
        rate, even, none = self._rates(queries)
        rows, columns = known_among(self.known, queries, nodes)
        knows = torch.zeros(nodes.numel(), 2, dtype=torch.float64, device=nodes.device)
        knows.index_add_(0, columns, torch.stack([rate, even], 1)[rows])
        barred = torch.bincount(columns, minlength=nodes.numel())
        weighted = _left(rate, knows[:, 0])
        if self.weight is not None:
            weighted = weighted * self.weight(nodes)
        density = (weighted + _left(even, knows[:, 1])).masked_fill(barred == queries.numel(), 0.0)
        if bool(none.any()):
            density += self._of_saturated(queries[none], nodes)
        return density.log() + math.log(self.known.num_dst / queries.numel())

    def own_log_ratio(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Log of the ratio ``N q(u|v)`` of candidates [B, K] that queries [B] have drawn.

        Returns:
            Natural log ratios, shape [B, K], float64; 0 for queries without an admissible node.
        """
        rate, even, none = self._rates(queries)
        density = rate.unsqueeze(1).expand(candidates.shape)
        if self.weight is not None:
            density = density * self.weight(candidates.flatten()).view(candidates.shape)
        ratio = (density + even.unsqueeze(1)).log() + math.log(self.known.num_dst)
        return ratio.masked_fill(none.unsqueeze(1), 0.0)

    def _rates(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each query ``1 / A_j`` (or 0), what takes its place if A_j is 0, and if neither is.

        Returns:
            float64 [B]; one over the number of admissible nodes if ``A_j = 0``, else 0, float64
            [B]; whether no node is admissible, bool [B].
        """
        count = torch.full(queries.shape, float(self.known.num_dst), dtype=torch.float64)
        count = count.to(queries.device)
        mass, left = torch.full_like(count, self.total), torch.full_like(count, self.positive)
        for row, node in _barred(self.known, queries):
            count.index_add_(0, row, count.new_full(row.shape, -1.0))
            if self.weight is not None:
                of_node = self.weight(node)
                mass.index_add_(0, row, -of_node)
                left.index_add_(0, row, -(of_node > 0).double())
        if self.weight is None:
            mass = left = count
        mass = mass.clamp(min=1e-15 * self.total)  # what rounding may have left of it
        none, weighted = count <= 0, left > 0  # counts are exact, differences of weights are not
        rate = torch.where(weighted, 1.0 / mass, 0.0)
        return rate, torch.where(weighted | none, 0.0, 1.0 / count), none

    def _of_saturated(self, queries: Tensor, nodes: Tensor) -> Tensor:
        """What queries without an admissible node add to the sum of densities, shape [C]."""
        if not self.known.exclude_self:
            return torch.full(nodes.shape, queries.numel() / self.known.num_dst).double()
        times = torch.zeros(nodes.numel(), dtype=torch.float64, device=nodes.device)
        own = self.known.itself(queries)
        column = torch.searchsorted(nodes, own).clamp(max=nodes.numel() - 1)
        return times.index_add_(0, column, (nodes[column] == own).double())


def _left(rate: Tensor, knows: Tensor) -> Tensor:
    """The rates of those that do not know a node: never less than the smallest of all."""
    some = rate[rate > 0]
    if not some.numel():
        return torch.zeros_like(knows)
    rest = rate.sum() - knows
    # A difference that rounding could have made: nobody is left.
    return torch.where(rest > 0.5 * some.min(), rest, 0.0)


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
            chosen: distinct positions of them, shape [S], int64, more than K.
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
        dst: rows of the positives' destinations, shape [B], int64; -1 leaves none out by itself.
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
        """By known edges, between rows ``src`` and ``dst`` [B], int64.

        ``ids`` are node ids of the rows of both ends' embeddings, on the device of ``known``.
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
