r"""The mixture that a batch's negatives come from, where each query draws by filtered weights.

Symbols: B queries ``v_j``; weights ``a(u) >= 0`` of the N destination nodes that may be drawn at
all (the others count as known to everyone); ``A_j``, their sum over the nodes that are admissible
for ``v_j``, neither known nor itself. Query ``v_j`` draws with

    q(u|v_j) = a(u) / A_j where u is admissible, 0 where it is not;

uniformly among its admissible nodes where ``A_j = 0``; and where it has none, itself (any node, if
sources and destinations differ in type). What all queries draw together has the mixture's ratio
to uniform draws,

    rbar(u) = N / B sum_j q(u|v_j) = N / B a(u) (sum over j that do not know u of 1 / A_j).

Queries come from edges, so those that know a popular node are many: `mixture_log_ratio` counts the
batch's own, exactly. Known edges are looked up for the nodes in question only.

A **shared pool** holds S draws of a batch, C distinct nodes, which all queries are scored against;
or those of the batches of several ranks, each of which has embedded the nodes that it drew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.softmax import Corrections

__all__ = ["Barred", "FilteredDraws", "SharedPool", "known_among"]

_PAIRS = 1 << 20  # known edges that are looked through at a time: a bounded working set


def known_among(known: KnownEdges, queries: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Which distinct, ascending nodes [C] are known to which queries [B]; forms no matrix [B, C].

    Returns:
        Positions in ``queries`` and in ``nodes``, each of shape [P], int64: known pairs, self pairs
        if those are excluded, and nodes that are no candidates with each query; each pair once, the
        queries' positions not in order.
    """
    empty = queries.new_empty(0)
    if not nodes.numel():
        return empty, empty
    size = 1 << (8 * nodes.numel()).bit_length()  # nodes share flags: few, at 8 to 16 for each
    flags = torch.zeros(size, dtype=torch.bool, device=nodes.device)
    flags[nodes & (size - 1)] = True
    rows, columns = [empty], [empty]
    if known.candidates is not None:
        out = (~known.is_candidate(nodes)).nonzero().squeeze(1)
        every = torch.arange(queries.numel(), device=nodes.device)
        rows.append(every.repeat_interleave(out.numel()))
        columns.append(out.repeat(queries.numel()))
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
        row, node = known.barred_once(part)
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
        return density.log() + math.log(self.known.num_candidates / queries.numel())

    def own_log_ratio(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Log of the ratio ``N q(u|v)`` of candidates [B, K] that queries [B] have drawn.

        Returns:
            Natural log ratios, shape [B, K], float64; 0 for queries without an admissible node.
        """
        rate, even, none = self._rates(queries)
        density = rate.unsqueeze(1).expand(candidates.shape)
        if self.weight is not None:
            density = density * self.weight(candidates.flatten()).view(candidates.shape)
        ratio = (density + even.unsqueeze(1)).log() + math.log(self.known.num_candidates)
        return ratio.masked_fill(none.unsqueeze(1), 0.0)

    def _rates(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each query ``1 / A_j`` (or 0), what takes its place if A_j is 0, and if neither is.

        Returns:
            float64 [B]; one over the number of admissible nodes if ``A_j = 0``, else 0, float64
            [B]; whether no node is admissible, bool [B].
        """
        count = torch.full(queries.shape, float(self.known.num_candidates), dtype=torch.float64)
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
            each = queries.numel() / self.known.num_candidates
            return self.known.is_candidate(nodes).double() * each
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
    """What is scored against all queries.

    Attributes:
        h: embeddings, shape [C, D].
        nodes: whose they are, as ids or, without these, as rows, shape [C], int64, on the device of
            ``h``. A node stands there once for each rank that has drawn it.
        log_weight: of each in the sum over all nodes, of all its draws, shape [C], float64.
        column: where each of the batch's own draws stands in it, shape [S], int64.
    """

    h: Tensor
    nodes: Tensor
    log_weight: Tensor
    column: Tensor

    @classmethod
    def of(cls, h: Tensor, names: Tensor, drawn: Tensor, log_weight: Tensor) -> SharedPool:
        """The pool of draws [S], rows of ``h`` that have names, with the log ``N / r`` of each."""
        rows, column = drawn.unique(return_inverse=True)
        weight = log_weight.exp() / len(drawn)
        total = weight.new_zeros(len(rows)).index_add_(0, column, weight)
        nodes = names[rows]
        if nodes.unique().numel() < len(nodes):
            raise ValueError(
                "ids: expected distinct nodes, got one for several rows of h; give each node of "
                "the batch one row"
            )
        return cls(h.index_select(0, rows), nodes, total.log(), column)

    @cached_property
    def ordered(self) -> tuple[Tensor, Tensor]:
        """The nodes in ascending order, and the columns that they stand in, int64 [C] each."""
        nodes, order = self.nodes.sort()
        return nodes, order

    def find(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Where some nodes [P] stand in it: places among these, and columns, each once."""
        ordered, order = self.ordered
        first, end = (torch.searchsorted(ordered, nodes, right=right) for right in (False, True))
        times = end - first
        place = torch.arange(len(nodes), device=nodes.device).repeat_interleave(times)
        nth = torch.arange(len(place), device=nodes.device) - (times.cumsum(0) - times)[place]
        return place, order[first[place] + nth]


@dataclass(frozen=True, eq=False)
class Barred:
    """What is no negative of which positive, its own destination among it.

    Attributes:
        dst: the positives' destinations, as a shared pool names them, shape [B], int64.
        alike: which positives of one source bar the same but for what they say apart, bool [B].
        is_own: which candidates, in columns [B, H] of a mask and of names [B, H], are no negatives.
        is_among: positions (positives out of some [Q], columns) of what are none in a shared pool.
    """

    dst: Tensor
    alike: Tensor
    is_own: Callable[[Tensor, Tensor], Tensor]
    is_among: Callable[[Tensor, SharedPool], tuple[Tensor, Tensor]]

    @classmethod
    def of_edges(cls, known: KnownEdges, queries: Tensor, dst: Tensor) -> Barred:
        """By known edges, of queries [B] on their device, with destinations [B]: ids, int64."""
        device = queries.device

        def is_own(at: Tensor, names: Tensor) -> Tensor:
            return known.contains(queries.unsqueeze(1), names.to(device)).to(dst.device)

        def is_among(some: Tensor, shared: SharedPool) -> tuple[Tensor, Tensor]:
            nodes = shared.ordered[0].unique_consecutive()
            row, column = known_among(known, queries[some.to(device)], nodes.to(device))
            place, at = shared.find(nodes[column.to(nodes.device)])
            return row.to(nodes.device)[place], at

        alike = known.contains(queries, dst.to(device)).to(dst.device)
        return cls(dst, alike, is_own, is_among)

    @classmethod
    def of_mask(cls, mask: Tensor | None, dst: Tensor, chosen: Tensor, columns: int) -> Barred:
        """By a mask of candidates' nodes, bool [B, columns]; None bars nothing but positives.

        The draws of a shared pool are those at the places ``chosen`` [S].

        Raises:
            ValueError: for another shape or dtype.
        """
        shape = (len(dst), columns)
        if mask is None:
            mask = torch.zeros(len(dst), 1, dtype=torch.bool).expand(shape)
        if mask.dtype != torch.bool or mask.shape != shape:
            raise ValueError(
                f"known: expected KnownEdges, or booleans of shape {list(shape)}, got {mask.dtype} "
                f"of shape {tuple(mask.shape)}"
            )
        barred = mask.to(dst.device)

        def is_own(at: Tensor, names: Tensor) -> Tensor:
            return barred.gather(1, at)

        def is_among(some: Tensor, shared: SharedPool) -> tuple[Tensor, Tensor]:
            row, at = barred[some][:, chosen].nonzero(as_tuple=True)
            return row, shared.column[at]

        return cls(dst, torch.zeros_like(dst, dtype=torch.bool), is_own, is_among)

    def own(self, at: Tensor, names: Tensor) -> Tensor:
        """Which candidates, of columns and names [B, H], are no negatives, bool [B, H]."""
        return self.is_own(at, names) | (names == self.dst.unsqueeze(1))

    def among(
        self, shared: SharedPool, src: Tensor, apart: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Corrections]:
        """Who is scored against a shared pool, and corrections that leave out what is barred.

        Positives of one source are one query where they bar the same.

        Args:
            shared: the pool.
            src: rows of the positives' sources, shape [B].
            apart: further pairs (positives, columns) to leave out.

        Returns:
            The positives [Q] that stand for queries; the query of each positive, shape [B]; and
            corrections of these queries.
        """
        every = torch.arange(len(src), device=src.device)
        alike = self.alike.index_fill(0, apart[0], False)
        alone = int(src.max()) + 1 + every
        sources, query_of = torch.where(alike, src, alone).unique(return_inverse=True)
        queries = torch.empty_like(sources)
        queries[query_of] = every  # any of a source will do
        own = (~self.alike).nonzero().squeeze(1)
        place, column = shared.find(self.dst[own])
        row, at = self.is_among(queries, shared)
        row = torch.cat([query_of[own[place]], query_of[apart[0]], row])
        at = torch.cat([column, apart[1], at])
        left_out = torch.full(row.shape, -math.inf, dtype=torch.float64, device=row.device)
        return queries, query_of, Corrections(row, at, left_out)
