r"""Regions of embeddings, from which a pool gets nodes that its queries are likely to score high.

A pool of M uniform nodes holds one of the best ``N / M``. So that hard negatives stay hard on large
graphs, a share ``a`` of a pool can come from **regions**: the embeddings are halved again and
again, along leading directions, into at most 1024 regions of 64 nodes or more. For a query in
region ``g`` the regions are ranked by the score of the mean query of ``g`` with the mean of the
region, and one is drawn with probability ``p(c|g)`` in proportion to one over its rank: as many
from the best one as from the next two, or from the next four. A node is uniform within its region.
The **rate** of a node is how often it is proposed, relative to uniform proposals,

    ``rho(u|v) = 1 - a + a N p(c|g) / n_c``, with the ``n_c`` nodes of its region ``c``,

never below ``1 - a``. Weights over a pool are divided by it, so that draws have the distribution
that a larger uniform pool would give them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["Regions"]

_LEAST = 64  # nodes in a region on average, at least
_MOST = 10  # halvings
_SAMPLE = 32  # nodes of each region that the halves are measured with
_ROWS = 1 << 14  # embeddings that are sent through the halves at a time


@dataclass(frozen=True, eq=False)
class Regions:
    """Which nodes are proposed to which queries.

    Attributes:
        of_query: the region of each query, shape [Nq], int16.
        of_node: the region of each destination, shape [Nc], int16.
        members: destinations that may be drawn, in the order of their regions, [N], int32.
        start: where each region begins there, shape [C + 1], int64.
        order: the regions by rank for queries of each region, shape [C, C], int16.
        log_share: log of ``p(c|g)``, shape [C, C], float32; -inf for an empty region.
        total: sums of the shares of the first ranks, without those of empty regions, float64.
    """

    of_query: Tensor
    of_node: Tensor
    members: Tensor
    start: Tensor
    order: Tensor
    log_share: Tensor
    total: Tensor

    def on(self, device: torch.device) -> Regions:
        """The same on a device."""
        return Regions(**{name: one.to(device) for name, one in vars(self).items()})

    def draw(self, queries: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
        """Nodes [C, R] for chunks of queries [C, Q], each for one of them in turn, int64."""
        chunks, many = queries.shape
        slot = torch.arange(count, device=queries.device) % many
        group = self.of_query[queries[:, slot]].long()
        point = torch.rand(2, chunks, count, generator=generator, dtype=torch.float64)
        point = point.to(queries.device)
        rank = torch.searchsorted(self.total, point[0] * self.total[-1], right=True)
        rank.clamp_(max=len(self.total) - 1)
        region = self.order[group, rank].long()
        size = self.start[region + 1] - self.start[region]
        within = (point[1] * size).long().clamp(max=size - 1)
        return self.members[self.start[region] + within].long()

    def log_rate(self, queries: Tensor, nodes: Tensor, share: float) -> Tensor:
        """Log of ``rho(u|v)`` of queries and nodes of broadcastable shapes, float32 [..]."""
        region = self.of_node[nodes].long()
        excess = self.log_share[self.of_query[queries].long(), region] - self._log_even(region)
        even = excess.new_tensor(1 - share).log()
        rate: Tensor = torch.logaddexp(excess + math.log(share), even)
        return rate

    def log_rate_of_pools(self, queries: Tensor, pools: Tensor, reached: int) -> Tensor:
        """The same of pools [C, M] of chunks of queries [C, Q], whose last members `draw` gave.

        A pool is for all queries of a chunk, so this is the mean over those it was drawn for.
        """
        slot = torch.arange(reached, device=queries.device) % queries.shape[1]
        group, times = slot.unique(return_counts=True)
        of_group = self.of_query[queries[:, group]].long()
        region = self.of_node[pools].long()
        share = self.log_share[of_group.unsqueeze(2), region.unsqueeze(1)].exp_()
        mean = (share * (times / reached).view(1, -1, 1)).sum(1)
        part = reached / pools.shape[1]
        rate: Tensor = (1 - part + part * mean / self._log_even(region).exp()).log()
        return rate

    def _log_even(self, region: Tensor) -> Tensor:
        """Log of the share of all destinations that regions hold."""
        size = (self.start[1:] - self.start[:-1]).clamp(min=1).float().log()
        return size[region] - math.log(self.members.numel())

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        h_query: Tensor,
        h_candidate: Tensor,
        score: Callable[[Tensor, Tensor], Tensor],
        generator: torch.Generator | None = None,
        allowed: Tensor | None = None,
    ) -> Regions | None:
        """Regions of embeddings [Nq, D] and [Nc, D]; None for fewer than 128 destinations.

        ``score`` is called with mean embeddings [C, D] of the queries and of the destinations of
        each region, and returns scores [C, C]. Ids ``allowed``, int64, are of the destinations that
        may be drawn; None for all.
        """
        device = h_candidate.device
        nodes = torch.arange(h_candidate.shape[0], device=device) if allowed is None else allowed
        halvings = min(_MOST, int(math.log2(max(1, len(nodes) / _LEAST))))
        if not halvings:
            return None
        some = torch.randperm(len(nodes), generator=generator)[: _SAMPLE << halvings].to(device)
        some = nodes[some]
        halves = _halved(normalize(h_candidate[some].float(), dim=1), halvings)
        of_node = _sent_through(h_candidate, halves)
        of_query = of_node if h_query is h_candidate else _sent_through(h_query, halves)
        of_allowed = of_node[nodes]
        count = of_allowed.long().bincount(minlength=1 << halvings)
        start = torch.cat([count.new_zeros(1), count.cumsum(0)])
        means = _means(h_query, of_query, len(count)), _means(h_candidate, of_node, len(count))
        scores = score(*means).float().masked_fill(count == 0, -math.inf)
        order = scores.argsort(dim=1, descending=True, stable=True)
        full = int((count > 0).sum())  # empty ones have the last ranks
        share = torch.zeros(len(count), device=device).double()
        share[:full] = _shares(full, device)
        total = share[:full].cumsum(0)
        log_share = torch.empty_like(scores)
        log_share.scatter_(1, order, share.log().float().expand_as(scores).contiguous())
        members = nodes[of_allowed.argsort(stable=True)].to(torch.int32)
        return cls(of_query, of_node, members, start, order.to(torch.int16), log_share, total)


class _Half(NamedTuple):
    """How G groups are halved."""

    direction: Tensor  # [G, D]
    threshold: Tensor  # of what lies along it, [G]


def _shares(regions: int, device: torch.device) -> Tensor:
    """One over the rank of each region, as shares that sum to 1, float64 [C]."""
    share = torch.arange(1, regions + 1, dtype=torch.float64, device=device).reciprocal()
    return share / share.sum()


def _halved(x: Tensor, halvings: int) -> list[_Half]:
    """How embeddings [G 2^halvings, D] are halved along leading directions, again and again."""
    halves = []
    groups = x.unsqueeze(0)
    for _ in range(halvings):
        centred = groups - groups.mean(1, keepdim=True)
        direction = centred[:, :1]
        for _ in range(3):  # of power iteration, towards the leading direction
            direction = normalize(direction @ centred.mT @ centred, dim=2)
        along = (groups * direction).sum(2)
        order = along.argsort(dim=1)
        middle = along.shape[1] // 2
        ranked = along.gather(1, order)
        threshold = (ranked[:, middle - 1] + ranked[:, middle]) / 2
        halves.append(_Half(direction.squeeze(1), threshold))
        sorted_groups = groups.gather(1, order.unsqueeze(2).expand_as(groups))
        groups = sorted_groups.view(2 * len(groups), middle, -1)
    return halves


def _sent_through(h: Tensor, halves: list[_Half]) -> Tensor:
    """The region of each embedding [N, D], int16 [N]."""
    found = torch.empty(h.shape[0], dtype=torch.int16, device=h.device)
    for part, place in zip(h.split(_ROWS), found.split(_ROWS)):
        x = normalize(part.float(), dim=1)
        group = torch.zeros(len(x), dtype=torch.int64, device=h.device)
        for half in halves:
            above = (x * half.direction[group]).sum(1) > half.threshold[group]
            group = 2 * group + above
        place.copy_(group)
    return found


def _means(h: Tensor, region: Tensor, regions: int) -> Tensor:
    """Mean embeddings [C, D] of the rows [N, D] in each region; 0 for an empty one."""
    total = h.new_zeros(regions, h.shape[1], dtype=torch.float32)
    total.index_add_(0, region.long(), h.float())
    return total / region.long().bincount(minlength=regions).clamp(min=1).unsqueeze(1)
