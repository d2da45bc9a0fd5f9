"""Known edges as CSR arrays, and the filter that keeps them out of the negatives.

Proposing negatives and rejecting known positives are separate concerns; this module is the second.
It needs two arrays and no graph object, so it serves workers and distributed graphs alike. Nearly
all pairs that a sampler asks about are no edges: one look into a hashed bitmap rules most of them
out, and the others are searched for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dgl_dmns.checks import check_pairs
from dgl_dmns.core.bitmap import PairBitmap
from dgl_dmns.core.sharing import Folder, Shareable

__all__ = ["KnownEdges"]

_MANY = 64  # rejected draws whose share tells that proposals are no use
_HASHED = 1 << 20  # numbers that are hashed at a time: a bounded working set
_FEW = 256  # pairs: a search in the keys costs less than a look at the bitmap
_KEYS = 1 << 24  # edges whose places are looked up by keys of 8 bytes each
_MOST = 2**31 - 1  # destination nodes: tables and known edges hold ids of 32 bits


class KnownEdges(Shareable):
    """The known destinations of every source node, sorted, without duplicates.

    Args:
        src: source ids, shape [E], integer.
        dst: destination ids, shape [E], integer.
        num_src: number of source nodes.
        num_dst: number of destination nodes; defaults to ``num_src``.
        exclude_self: treat the source itself as known (one node type at both ends).
        own: ids of the sources among the destinations, shape [num_src], int64, where sources are
            numbered otherwise, as rows of a part of them; defaults to equal numbers.

    Raises:
        ValueError: if the shapes differ, an id is out of range, or there are more destination nodes
            than 32 bits can number.
    """

    indptr: Tensor
    indices: Tensor
    keys: Tensor
    given: Tensor
    own: Tensor
    _there: tuple[torch.device, KnownEdges] | None = None

    def __init__(
        self,
        src: Tensor,
        dst: Tensor,
        num_src: int,
        num_dst: int | None = None,
        *,
        exclude_self: bool = True,
        own: Tensor | None = None,
    ) -> None:
        super().__init__()
        num_dst = num_src if num_dst is None else num_dst
        if num_dst > _MOST:
            raise ValueError(
                f"num_dst: expected at most {_MOST} nodes, whose ids fit 32 bits, got {num_dst}; "
                "leave nodes out that are no candidates"
            )
        check_pairs(src, dst, num_src, num_dst)
        keys = src.to(torch.int64) * num_dst + dst.to(torch.int64)
        given = keys[:0]
        if keys.numel() <= _KEYS:
            keys, given = torch.unique(keys, return_inverse=True)
        else:
            keys = torch.unique(keys)
        rows = torch.div(keys, num_dst, rounding_mode="floor")
        indptr = torch.zeros(num_src + 1, dtype=torch.int64, device=src.device)
        indptr[1:] = torch.cumsum(torch.bincount(rows, minlength=num_src), dim=0)
        self.register_buffer("indptr", indptr)
        self.register_buffer("indices", (keys - rows * num_dst).to(torch.int32))
        # One search among all edges is many times faster than one by halves in all rows at once.
        self.register_buffer("keys", keys if keys.numel() <= _KEYS else keys[:0].clone())
        self.register_buffer("own", keys.new_empty(0) if own is None else own)
        # And a look at the place that an edge got, by its number among those given, than a search.
        self.register_buffer("given", given.int())
        self.bitmap = PairBitmap(keys.numel() + exclude_self * num_src, src.device)
        self.bitmap.add(rows, self.indices)
        if exclude_self:
            every = torch.arange(num_src, device=src.device)
            self.bitmap.add(every, self.itself(every))
        self.num_src = num_src
        self.num_dst = num_dst
        self.exclude_self = exclude_self
        largest = int(self.degrees().max()) if num_src else 0
        self._rounds = largest.bit_length()
        self.crowded = 4 * (largest + exclude_self) > 3 * num_dst  # some know three quarters
        self._fingerprint = ""

    def on(self, device: torch.device) -> KnownEdges:
        """The same on a device; the last copy is kept."""
        if self._there is None or self._there[0] != device:
            self._there = device, super().on(device)
        return self._there[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_there": None}

    def share(self, what: str = "known edges take", folder: Folder | None = None) -> None:  # noqa: D102
        super().share(what, folder)
        self.bitmap.share(what, folder)

    @property
    def candidates(self) -> Tensor | None:
        """The destinations that may be drawn, if not all may, see `CandidateEdges`."""
        return None

    @property
    def num_candidates(self) -> int:
        """How many destinations may be drawn."""
        return self.num_dst if self.candidates is None else self.candidates.numel()

    def is_candidate(self, dst: Tensor) -> Tensor:
        """Whether destinations [..] may be drawn at all, bool."""
        return torch.ones_like(dst, dtype=torch.bool)

    def degrees(self) -> Tensor:
        """Number of distinct known destinations per source, shape [num_src], int64."""
        return self.indptr[1:] - self.indptr[:-1]

    def fingerprint(self) -> str:
        """A name of the edges, in whatever order they came: 16 hex digits of a SHA-256."""
        if not self._fingerprint:  # the edges never change
            digest = hashlib.sha256(f"{self.num_src},{self.num_dst}".encode())
            for array in (self.indptr, self.indices, self.own):
                for part in array.split(_HASHED):
                    digest.update(part.cpu().numpy().astype("<i8").tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def itself(self, src: Tensor) -> Tensor:
        """The ids that sources have among the destinations, int64."""
        return self.own[src] if self.own.numel() else src

    def neighbours(self, node: int) -> Tensor:
        """Sorted known destinations of one source, int32."""
        return self.indices[int(self.indptr[node]) : int(self.indptr[node + 1])]

    def contains(self, src: Tensor, dst: Tensor) -> Tensor:
        """Whether each pair is a known edge (or a self pair, if those are excluded).

        From integer ids of shapes that broadcast to booleans of the broadcast shape.
        """
        src, dst = src.to(torch.int64), dst.to(torch.int64)
        if not self._looks_first(torch.broadcast_shapes(src.shape, dst.shape).numel()):
            return self.knows(*torch.broadcast_tensors(src, dst))
        found = self.bitmap.may_contain(src, dst)
        left = found.nonzero(as_tuple=True)
        src, dst = torch.broadcast_tensors(src, dst)
        found[left] = self.knows(src[left], dst[left])
        return found

    def _looks_first(self, pairs: int) -> bool:
        """Whether a look at the bitmap pays for so many pairs."""
        return self.bitmap.useful and pairs > (_FEW if self.keys.numel() else 1)

    def knows(self, src: Tensor, dst: Tensor) -> Tensor:
        """Whether pairs of one shape, int64, are known edges, or self pairs if excluded."""
        found = self.contains_edges(src, dst)
        return found | (self.itself(src) == dst) if self.exclude_self else found

    def _barred(self, src: Tensor, dst: Tensor) -> Tensor:
        """Places of the pairs, int64 [P] each, that `contains` finds; int64, ascending."""
        if not self._looks_first(src.numel()):
            return self.knows(src, dst).nonzero().squeeze(1)
        left = self.bitmap.may_contain(src, dst).nonzero().squeeze(1)
        return left[self.knows(src[left], dst[left])]

    def contains_edges(self, src: Tensor, dst: Tensor) -> Tensor:
        """Whether pairs of one shape are stored edges."""
        return self.find(src, dst)[1]

    def find(self, src: Tensor, dst: Tensor, number: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Where pairs of one shape, int64, stand among all stored edges.

        They are looked up where the edges stand that were given with some ``number``, integer, and
        searched for if one does not stand there.

        Returns:
            Places, int64: of a pair that is no edge, where it would stand; and which pairs are
            edges, bool.
        """
        if not self.indices.numel():
            return self.indptr[src], torch.zeros(src.shape, dtype=torch.bool, device=src.device)
        last = self.indices.numel() - 1
        if self.keys.numel():
            key = src * self.num_dst + dst
            if number is not None and self.given.numel():
                place = self.given.index_select(0, number.clamp(max=self.given.numel() - 1)).long()
                found = self.keys.index_select(0, place) == key
                if bool(found.all()):
                    return place, found
            place = torch.searchsorted(self.keys, key)
            return place, self.keys[place.clamp(max=last)] == key
        place = self.places(src, lambda at: self.indices[at] < dst)
        found = (place < self.indptr[src + 1]) & (self.indices[place.clamp(max=last)] == dst)
        return place, found

    def places(self, src: Tensor, before: Callable[[Tensor], Tensor]) -> Tensor:
        """Where in the row of each source a property ends that holds for its first known edges.

        A binary search in all rows at once, about ``log2(largest degree)`` rounds: ``before`` says
        which places among all known edges have the property. The end of the row if all have it.
        """
        low = self.indptr[src]
        high = self.indptr[src + 1]
        last = self.indices.numel() - 1
        for _ in range(self._rounds):
            middle = torch.div(low + high, 2, rounding_mode="floor")
            below = before(middle.clamp(max=last)) & (middle < high)
            low = torch.where(below, middle + 1, low)
            high = torch.where(below, high, middle)
        return low

    def barred_of(self, src: Tensor) -> tuple[Tensor, Tensor]:
        """All destinations that must not be negatives of sources [B], int64, as pairs.

        Returns:
            Positions in ``src`` and destination ids, each of shape [P], int64: the known edges of
            each source, and the source itself if self pairs are excluded.
        """
        start = self.indptr[src]
        count = self.indptr[src + 1] - start
        here = torch.arange(src.numel(), device=src.device)
        owner = torch.repeat_interleave(here, count)
        within = torch.arange(owner.numel(), device=src.device) - (count.cumsum(0) - count)[owner]
        known = self.indices[start[owner] + within].long()
        if self.exclude_self:
            return torch.cat([owner, here]), torch.cat([known, self.itself(src)])
        return owner, known

    def barred_once(self, src: Tensor) -> tuple[Tensor, Tensor]:
        """The same, with a self loop among the known edges once."""
        row, node = self.barred_of(src)
        if not self.exclude_self:
            return row, node
        here = torch.arange(src.numel(), device=src.device)
        own = self.itself(src)
        other = (node != own[row]).nonzero().squeeze(1)
        return torch.cat([row[other], here]), torch.cat([node[other], own])

    def admissible_count(self, src: Tensor) -> Tensor:
        """Destinations of each source that are neither known nor itself, int64."""
        count: Tensor = self.num_dst - (self.indptr[src + 1] - self.indptr[src])
        if self.exclude_self:
            count -= (~self.contains_edges(src, self.itself(src))).long()
        return count

    def nth_admissible(self, src: Tensor, rank: Tensor) -> Tensor:
        """The admissible destination of each source that has a rank among them; none is listed.

        If ``x_0 < x_1 < ...`` are the known destinations, ``x_j - j`` nodes below ``x_j`` are not
        known, so a binary search finds how many known ones stand below the node of a rank.
        Ranks in ``0 .. admissible_count - 1``, int64, may have any shape that broadcasts.
        """
        start = self.indptr[src]
        if self.exclude_self:
            rank = rank + (rank >= self._own_rank(src))
        place = self.places(src, lambda at: self.indices[at] - (at - start) <= rank)
        return rank + (place - start)

    def admissible_rank(self, src: Tensor, dst: Tensor) -> Tensor:
        """The rank of admissible destinations, int64: what `nth_admissible` turns back.

        The rank of a destination that is not admissible is that of the next one.
        """
        rank = dst - (self.places(src, lambda at: self.indices[at] < dst) - self.indptr[src])
        return rank - (rank > self._own_rank(src)).long() if self.exclude_self else rank

    def _own_rank(self, src: Tensor) -> Tensor:
        """The rank of each source among the nodes it does not know; beyond all if it knows it."""
        own = self.itself(src)
        place = self.places(src, lambda at: self.indices[at] < own)
        return (own - (place - self.indptr[src])).masked_fill(self.contains_edges(src, own), _MOST)

    def uniform(
        self, src: Tensor, count: int, *, generator: torch.Generator | None = None, rounds: int = 8
    ) -> Tensor:
        """Uniform admissible destinations for every source, with replacement.

        A source without any admissible destination (see `saturated`) gets itself if self pairs are
        excluded as negatives otherwise, and any node if the two ends have different types.

        Args:
            src: source ids, shape [B], integer.
            count: draws per source.
            generator: source of randomness.
            rounds: rejection rounds, see `draw`.

        Returns:
            Destination ids, shape [B, count], int64.
        """
        src = src.to(torch.int64)
        if src.device.type != "cpu":  # nothing there waits for the device
            every = src.repeat_interleave(count)
            return self.uniform_by_rank(every, generator=generator).view(src.shape[0], count)

        def propose(number: int) -> Tensor:
            nodes = max(1, self.num_dst)  # without any, nothing is asked for
            return torch.randint(0, nodes, (number,), generator=generator, device=src.device)

        def by_rank(left: Tensor) -> Tensor:
            return self.uniform_by_rank(left, generator=generator)

        return self.draw(src, count, propose, by_rank, rounds=rounds)

    def uniform_by_rank(self, src: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One uniform admissible destination, as `uniform` has it, for each source, int64."""
        count = self.admissible_count(src)
        share = torch.rand(src.shape, generator=generator, dtype=torch.float64, device=src.device)
        rank = (share * count).long().minimum(count - 1)
        none = count <= 0
        drawn = self.nth_admissible(src, rank.clamp(min=0))
        instead = self.itself(src) if self.exclude_self else (share * self.num_dst).long()
        return torch.where(none, instead, drawn)

    def draw(
        self,
        src: Tensor,
        count: int,
        propose: Callable[[int], Tensor],
        exact: Callable[[Tensor], Tensor],
        *,
        rounds: int = 8,
    ) -> Tensor:
        """Proposals with the known edges rejected: bounded redrawing, then an exact draw.

        Args:
            src: source ids, shape [B], int64.
            count: draws per source.
            propose: draws that many destination ids, int64, the same distribution for every source.
            exact: a destination id, int64, for each of some sources [P], which repeat. It is asked
                when redraws have all been rejected, and at once for sources that know more than
                three quarters of the destinations.
            rounds: redraws before that; fewer if three quarters of many are rejected.

        Returns:
            Destination ids, shape [B, count], int64.
        """
        if self.crowded:
            few = 4 * self.admissible_count(src) < self.num_candidates
            if bool(few.any()):
                mixed = torch.zeros(src.shape[0], count, dtype=torch.int64, device=src.device)
                mixed[few] = exact(src[few].repeat_interleave(count)).view(int(few.sum()), count)
                if not bool(few.all()):
                    mixed[~few] = self._rejected(src[~few], count, propose, exact, rounds)
                return mixed
        return self._rejected(src, count, propose, exact, rounds)

    def _rejected(
        self,
        src: Tensor,
        count: int,
        propose: Callable[[int], Tensor],
        exact: Callable[[Tensor], Tensor],
        rounds: int,
    ) -> Tensor:
        rows = src.repeat_interleave(count)
        drawn = propose(rows.numel())
        bad = self._barred(rows, drawn)
        for _ in range(rounds):
            before = bad.numel()
            if not before:
                break
            fresh = propose(before)
            drawn[bad] = fresh
            bad = bad[self._barred(rows[bad], fresh)]
            if bad.numel() > _MANY and 4 * bad.numel() > 3 * before:
                break
        if bad.numel():
            drawn[bad] = exact(rows[bad])
        return drawn.view(src.shape[0], count)

    def saturated(self) -> Tensor:
        """Sources without any admissible destination, ascending, int64."""
        every = torch.arange(self.num_src, device=self.indices.device)
        return (self.admissible_count(every) <= 0).nonzero().squeeze(1)

    def extra_repr(self) -> str:  # noqa: D102
        return f"num_src={self.num_src}, num_dst={self.num_dst}, edges={self.indices.numel()}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"
