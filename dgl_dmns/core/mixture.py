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
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dgl_dmns.core.known import KnownEdges

__all__ = ["FilteredDraws", "known_among"]

_PAIRS = 1 << 20  # known edges that are looked through at a time: a bounded working set


def known_among(known: KnownEdges, queries: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Which of some nodes are known to which queries; no matrix [B, C] is formed.

    Flags of the nodes rule most known edges out, the rest is searched for.

    Args:
        known: the known edges.
        queries: source ids, shape [B], int64.
        nodes: distinct destination ids in ascending order, shape [C], int64.

    Returns:
        Positions in ``queries`` and in ``nodes``, each of shape [P], int64: known pairs, and self
        pairs where those are excluded; each once, the queries' positions not in order.
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
            other = (node != part[row]).nonzero().squeeze(1)
            here = torch.arange(part.numel(), device=part.device)
            row, node = torch.cat([row[other], here]), torch.cat([node[other], part])
        yield row + start, node
        start = end


@dataclass(frozen=True, eq=False)
class FilteredDraws:
    """Draws with replacement among the nodes that are admissible for a query, by weights.

    Args:
        known: the known edges.
        weight: weights of destination ids [P]: float64 [P], finite and at least 0; None: uniform.
        total: sum of the weights of all nodes; without meaning where ``weight`` is None.
        positive: number of nodes with a weight above 0; likewise.
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
        """Log of the ratio ``N q(u|v)`` of each query's own candidates.

        Args:
            queries: source ids, shape [B], int64.
            candidates: destination ids that they have drawn, shape [B, K], int64.

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
        """Of each query ``1 / A_j``, what takes its place where A_j is 0, and whether neither is.

        Returns:
            float64 [B], 0 where ``A_j = 0``; float64 [B], one over the number of admissible nodes
            where ``A_j = 0``, else 0; bool [B], where no node is admissible.
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
        column = torch.searchsorted(nodes, queries).clamp(max=nodes.numel() - 1)
        return times.index_add_(0, column, (nodes[column] == queries).double())


def _left(rate: Tensor, knows: Tensor) -> Tensor:
    """The rates of those that do not know a node: never less than the smallest of all."""
    some = rate[rate > 0]
    if not some.numel():
        return torch.zeros_like(knows)
    rest = rate.sum() - knows
    # A difference that rounding could have made: nobody is left.
    return torch.where(rest > 0.5 * some.min(), rest, 0.0)
