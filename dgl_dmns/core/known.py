"""Known edges as CSR arrays, and the filter that keeps them out of the negatives.

Proposing negatives and rejecting known positives are separate concerns; this module is the second.
It needs two arrays and no graph object, so it serves workers and distributed graphs alike. Beside
them stands a bitmap of the edges, which spares most pairs the search.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

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
        num_dst: number of destination nodes; ``num_src`` where not given.
        exclude_self: treat the source itself as known (one node type at both ends).

    Raises:
        ValueError: if the shapes differ, an id lies outside its range, or there are more
            destination nodes than 32 bits can number.
    """

    indptr: Tensor
    indices: Tensor
    keys: Tensor

    def __init__(
        self,
        src: Tensor,
        dst: Tensor,
        num_src: int,
        num_dst: int | None = None,
        *,
        exclude_self: bool = True,
    ) -> None:
        super().__init__()
        num_dst = num_src if num_dst is None else num_dst
        if src.shape != dst.shape or src.dim() != 1:
            raise ValueError(
                f"src, dst: expected two tensors of one shape [E], got {tuple(src.shape)} and "
                f"{tuple(dst.shape)}"
            )
        if num_dst > _MOST:
            raise ValueError(
                f"num_dst: expected at most {_MOST} nodes, whose ids fit 32 bits, got {num_dst}; "
                "leave nodes out that are no candidates"
            )
        for name, ids, count in (("src", src, num_src), ("dst", dst, num_dst)):
            if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < count):
                raise ValueError(
                    f"{name}: expected ids in 0 .. {count - 1}, got "
                    f"{int(ids.min())} .. {int(ids.max())}"
                )
        keys = torch.unique(src.to(torch.int64) * num_dst + dst.to(torch.int64))
        rows = torch.div(keys, num_dst, rounding_mode="floor")
        indptr = torch.zeros(num_src + 1, dtype=torch.int64, device=src.device)
        indptr[1:] = torch.cumsum(torch.bincount(rows, minlength=num_src), dim=0)
        self.register_buffer("indptr", indptr)
        self.register_buffer("indices", (keys - rows * num_dst).to(torch.int32))
        # One search among all edges is many times faster than one by halves in all rows at once.
        self.register_buffer("keys", keys if keys.numel() <= _KEYS else keys[:0].clone())
        self.bitmap = PairBitmap(rows, keys - rows * num_dst)
        self.num_src = num_src
        self.num_dst = num_dst
        self.exclude_self = exclude_self
        largest = int(self.degrees().max()) if num_src else 0
        self._rounds = largest.bit_length()
        self.crowded = 4 * (largest + exclude_self) > 3 * num_dst  # some know three quarters
        self._fingerprint = ""

    def share(self, what: str = "known edges take", folder: Folder | None = None) -> None:  # noqa: D102
        super().share(what, folder)
        self.bitmap.share(what, folder)

    def degrees(self) -> Tensor:
        """Number of distinct known destinations per source, shape [num_src], int64."""
        return self.indptr[1:] - self.indptr[:-1]

    def fingerprint(self) -> str:
        """A short name of the edges: equal for equal ones, in whatever order they came.

        Returns:
            16 hexadecimal digits of a SHA-256 of the node counts and the edges as CSR arrays.
        """
        if not self._fingerprint:  # the edges never change
            digest = hashlib.sha256(f"{self.num_src},{self.num_dst}".encode())
            for array in (self.indptr, self.indices):
                for part in array.split(_HASHED):
                    digest.update(part.cpu().numpy().astype("<i8").tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def neighbours(self, node: int) -> Tensor:
        """Sorted known destinations of one source, int32."""
        return self.indices[int(self.indptr[node]) : int(self.indptr[node + 1])]

    def contains(self, src: Tensor, dst: Tensor) -> Tensor:
        """Whether each pair is a known edge (or a self pair, where those are excluded).

        A binary search, about ``log2(largest degree)`` rounds, in the rows of those pairs that a
        bitmap does not rule out.

        Args:
            src: source ids, any shape, integer.
            dst: destination ids, a shape that broadcasts with ``src``, integer.

        Returns:
            Booleans of the broadcast shape.
        """
        src, dst = src.to(torch.int64), dst.to(torch.int64)
        pairs = torch.broadcast_shapes(src.shape, dst.shape).numel()
        if self.bitmap.useful and pairs > (_FEW if self.keys.numel() else 1):
            found = self.bitmap.may_contain(src, dst)
            left = found.nonzero(as_tuple=True)
            src, dst = torch.broadcast_tensors(src, dst)
            found[left] = self.contains_edges(src[left], dst[left])
        else:
            found = self.contains_edges(*torch.broadcast_tensors(src, dst))
        return found | (src == dst) if self.exclude_self else found

    def contains_edges(self, src: Tensor, dst: Tensor) -> Tensor:
        """Whether pairs of one shape are stored edges, by a binary search in all rows at once."""
        return self.find(src, dst)[1]

    def find(self, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor]:
        """Where stored edges stand among all of them.

        Args:
            src: source ids, any shape, int64.
            dst: destination ids of that shape, int64.

        Returns:
            Places, int64: of a pair that is no edge, where it would stand; and which pairs are
            edges, bool.
        """
        if not self.indices.numel():
            return self.indptr[src], torch.zeros(src.shape, dtype=torch.bool, device=src.device)
        last = self.indices.numel() - 1
        if self.keys.numel():
            key = src * self.num_dst + dst
            place = torch.searchsorted(self.keys, key)
            return place, self.keys[place.clamp(max=last)] == key
        place = self.places(src, lambda at: self.indices[at] < dst)
        found = (place < self.indptr[src + 1]) & (self.indices[place.clamp(max=last)] == dst)
        return place, found

    def places(self, src: Tensor, before: Callable[[Tensor], Tensor]) -> Tensor:
        """Where in the row of each source a property ends that holds for its first known edges.

        Args:
            src: source ids, any shape, int64.
            before: whether places among all known edges, int64, have the property.

        Returns:
            Places, of the shape of what ``before`` returns; the end of the row where all have it.
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
        """All destinations that must not be negatives of some sources, as pairs.

        Args:
            src: source ids, shape [B], int64.

        Returns:
            Positions in ``src`` and destination ids, each of shape [P], int64: the known edges of
            each source, and the source itself where self pairs are excluded.
        """
        start = self.indptr[src]
        count = self.indptr[src + 1] - start
        here = torch.arange(src.numel(), device=src.device)
        owner = torch.repeat_interleave(here, count)
        within = torch.arange(owner.numel(), device=src.device) - (count.cumsum(0) - count)[owner]
        known = self.indices[start[owner] + within].long()
        if self.exclude_self:
            return torch.cat([owner, here]), torch.cat([known, src])
        return owner, known

    def admissible_count(self, src: Tensor) -> Tensor:
        """Destinations of each source that are neither known nor itself.

        Args:
            src: source ids, any shape, int64.

        Returns:
            Numbers of that shape, int64; 0 for the `saturated`.
        """
        count: Tensor = self.num_dst - (self.indptr[src + 1] - self.indptr[src])
        return count - (~self.contains_edges(src, src)).long() if self.exclude_self else count

    def admissible(self, node: int) -> Tensor:
        """All destinations that are not known for one source (nor itself), ascending, int64."""
        source = torch.tensor(node, device=self.indices.device)
        count = int(self.admissible_count(source))
        return self.nth_admissible(source, torch.arange(count, device=source.device))

    def nth_admissible(self, src: Tensor, rank: Tensor) -> Tensor:
        """The admissible destination of each source that has a rank among them; none is listed.

        If ``x_0 < x_1 < ...`` are the known destinations, ``x_j - j`` nodes below ``x_j`` are not
        known, so that a binary search finds how many known ones stand below the node of a rank.

        Args:
            src: source ids, int64.
            rank: ranks from 0 to `admissible_count` - 1, int64, a shape that broadcasts.

        Returns:
            Destination ids of the broadcast shape, int64, ascending with the rank.
        """
        start = self.indptr[src]
        if self.exclude_self:
            rank = rank + (rank >= self._own_rank(src))
        place = self.places(src, lambda at: self.indices[at] - (at - start) <= rank)
        return rank + (place - start)

    def admissible_rank(self, src: Tensor, dst: Tensor) -> Tensor:
        """The rank of admissible destinations: what `nth_admissible` turns back.

        Args:
            src: source ids, int64.
            dst: destination ids, int64, a shape that broadcasts; of one that is not admissible the
                rank is that of the next one.

        Returns:
            Ranks of the broadcast shape, int64.
        """
        rank = dst - (self.places(src, lambda at: self.indices[at] < dst) - self.indptr[src])
        return rank - (rank > self._own_rank(src)).long() if self.exclude_self else rank

    def _own_rank(self, src: Tensor) -> Tensor:
        """The rank of each source among the nodes it does not know; beyond all if it knows it."""
        place = self.places(src, lambda at: self.indices[at] < src)
        return (src - (place - self.indptr[src])).masked_fill(self.contains_edges(src, src), _MOST)

    def uniform(
        self, src: Tensor, count: int, *, generator: torch.Generator | None = None, rounds: int = 8
    ) -> Tensor:
        """Uniform admissible destinations for every source, with replacement.

        Proposals that hit a known edge are redrawn, for at most ``rounds`` rounds; what is left is
        drawn by its rank among the admissible nodes, as is everything for sources that know more
        than three quarters of them. A source without any
        admissible destination (linked to all nodes) gets itself where self pairs are excluded as
        negatives otherwise, and any node where the two ends have different types: see
        `saturated`.

        Args:
            src: source ids, shape [B], integer.
            count: draws per source.
            generator: source of randomness.
            rounds: rejection rounds.

        Returns:
            Destination ids, shape [B, count], int64.
        """
        src = src.to(torch.int64)

        def propose(number: int) -> Tensor:
            nodes = max(1, self.num_dst)  # without any, nothing is asked for
            return torch.randint(0, nodes, (number,), generator=generator, device=src.device)

        def by_rank(left: Tensor) -> Tensor:
            return self.uniform_by_rank(left, generator=generator)

        return self.draw(src, count, propose, by_rank, rounds=rounds)

    def uniform_by_rank(self, src: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One uniform admissible destination for each source, without proposals.

        Args:
            src: source ids, any shape, int64, repeated as often as needed.
            generator: source of randomness.

        Returns:
            Destination ids of that shape, int64; for `saturated` sources as `uniform` says.
        """
        count = self.admissible_count(src)
        share = torch.rand(src.shape, generator=generator, dtype=torch.float64, device=src.device)
        rank = (share * count).long().minimum(count - 1)
        none = count <= 0
        drawn = self.nth_admissible(src, rank.clamp(min=0))
        instead = src if self.exclude_self else (share * self.num_dst).long()
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
            exact: a destination id, int64, for each of some sources, shape [P], which repeat; asked
                where redraws have all been rejected, and at once for sources that know more than
                three quarters of the destinations. None of them may be known while an admissible
                one exists.
            rounds: redraws before that; fewer where three quarters of many are rejected.

        Returns:
            Destination ids, shape [B, count], int64.
        """
        if self.crowded:
            few = 4 * self.admissible_count(src) < self.num_dst
            if bool(few.any()):
                mixed = torch.zeros(src.shape[0], count, dtype=torch.int64, device=src.device)
                mine = exact(src[few].repeat_interleave(count))
                mixed[few] = mine.view(-1, count)
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
        rows = src.unsqueeze(1).expand(src.shape[0], count)
        drawn = propose(rows.numel()).view(rows.shape)
        bad = self.contains(rows, drawn).nonzero(as_tuple=True)
        for _ in range(rounds):
            if not bad[0].numel():
                return drawn
            fresh = propose(bad[0].numel())
            drawn[bad] = fresh
            still = self.contains(rows[bad], fresh)
            bad = (bad[0][still], bad[1][still])
            left = bad[0].numel()
            if left > _MANY and 4 * left > 3 * still.numel():
                break
        if bad[0].numel():
            drawn[bad] = exact(rows[bad])
        return drawn

    def saturated(self) -> Tensor:
        """Sources without any admissible destination, ascending, int64."""
        if not self.exclude_self:
            return (self.degrees() >= self.num_dst).nonzero().squeeze(1)
        own = self.contains_self_as_known()
        return (self.degrees() + (~own).long() >= self.num_dst).nonzero().squeeze(1)

    def contains_self_as_known(self) -> Tensor:
        """Whether each source has a stored self-loop, shape [num_src], bool."""
        own = torch.zeros(self.num_src, dtype=torch.bool, device=self.indices.device)
        rows = torch.repeat_interleave(
            torch.arange(self.num_src, device=own.device), self.degrees()
        )
        own[rows[rows == self.indices]] = True
        return own

    def extra_repr(self) -> str:  # noqa: D102
        return f"num_src={self.num_src}, num_dst={self.num_dst}, edges={self.indices.numel()}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"
