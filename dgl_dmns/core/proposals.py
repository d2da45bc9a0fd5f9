"""Pools of candidates: uniform nodes and likely ones, and which of them are known edges."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from dgl_dmns.core.snapshot import Snapshot

__all__ = ["Proposals", "ProposedPools"]


class ProposedPools(NamedTuple):
    """Pools of M nodes for C chunks.

    Attributes:
        ids: shape [C, M], int64.
        log_rate: log of how often each is proposed beside uniform proposals, less that of how often
            it stands there, float32 [C, M]; None for distinct uniform nodes.
        again: which stand in their pool before, bool [C, M]; None if none does.
    """

    ids: Tensor
    log_rate: Tensor | None = None
    again: Tensor | None = None

    def of(self, chunks: slice) -> ProposedPools:
        """Those of some chunks."""
        return ProposedPools(
            self.ids[chunks], None if self.log_rate is None else self.log_rate[chunks]
        )

    def with_each_once(self) -> ProposedPools:
        """The same, where a node that stands in a pool more than once counts at its first place."""
        ordered, order = self.ids.sort(dim=1, stable=True)
        repeats = ordered[:, 1:] == ordered[:, :-1]
        if not bool(repeats.any()):
            return self
        again = pad(repeats, (1, 0))
        run = (~again).cumsum(1) - 1
        times = torch.zeros_like(run).scatter_add_(1, run, torch.ones_like(run)).gather(1, run)
        assert self.log_rate is not None
        log_rate = self.log_rate - torch.empty_like(times).scatter_(1, order, times).float().log()
        return ProposedPools(self.ids, log_rate, torch.empty_like(again).scatter_(1, order, again))


class Proposals:
    """Proposes nodes to chunks of queries that share a pool.

    Args:
        snapshot: known edges, and regions if there are any.
        size: members M of a pool.
        reached: how many of them come from regions.
        queries: ids, shape [C, Q], int64.
    """

    def __init__(self, snapshot: Snapshot, size: int, reached: int, queries: Tensor) -> None:
        self.snapshot, self.size, self.reached, self.queries = snapshot, size, reached, queries
        known, rows = snapshot.known, queries.flatten()
        pairs = int((known.indptr[rows + 1] - known.indptr[rows]).sum())
        # Queries that know more nodes than a pool has members: these are looked up instead.
        few = pairs <= 4 * rows.numel() * min(size, known.num_dst)
        self.barred_pairs = known.barred_of(rows) if few else None

    def draw(self, generator: torch.Generator | None) -> ProposedPools:
        """A pool for each chunk."""
        chunks, size, regions = self.queries.shape[0], self.size, self.snapshot.regions
        reached = self.reached
        if regions is None or not reached or size >= self.snapshot.known.num_candidates:
            return ProposedPools(self.snapshot.pools(chunks, size, generator))
        uniform = self.snapshot.pools(chunks, size - reached, generator)
        likely = regions.draw(self.queries, reached, generator)
        ids = torch.cat([uniform, likely], dim=1)
        log_rate = regions.log_rate_of_pools(self.queries, ids, reached)
        return ProposedPools(ids, log_rate).with_each_once()

    def barred(self, pool: ProposedPools) -> Tensor:
        """Which pool members are known edges: ascending places among C Q M cells, int64.

        With them those that stand in their pool before. If they are few, the block's known edges
        are looked up in its sorted pools.
        """
        known = self._known_in(pool.ids)
        if pool.again is None:
            return known
        many, size = self.queries.shape[1], pool.ids.shape[1]
        chunk, member = pool.again.nonzero(as_tuple=True)
        query = torch.arange(many, device=chunk.device)
        twice = ((chunk.unsqueeze(1) * many + query) * size + member.unsqueeze(1)).flatten()
        cells: Tensor = torch.cat([known, twice]).unique()
        return cells

    def _known_in(self, pool: Tensor) -> Tensor:
        chunks, size = pool.shape
        if self.barred_pairs is None:
            known = self.snapshot.known.contains(self.queries.unsqueeze(2), pool.unsqueeze(1))
            return known.flatten().nonzero().squeeze(1)
        nodes = self.snapshot.known.num_dst
        base = torch.arange(chunks, device=pool.device).unsqueeze(1) * nodes
        # Of a node that stands there twice the first place is found, the other is barred anyway.
        members, order = (pool + base).flatten().sort(stable=self.snapshot.regions is not None)
        owner, node = self.barred_pairs
        wanted = torch.div(owner, self.queries.shape[1], rounding_mode="floor") * nodes + node
        place = torch.searchsorted(members, wanted).clamp(max=members.numel() - 1)
        hit = (members[place] == wanted).nonzero().squeeze(1)
        cells: Tensor = (owner[hit] * size + order[place[hit]] % size).unique()
        return cells
