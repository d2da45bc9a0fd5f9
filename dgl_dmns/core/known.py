"""Known edges as CSR arrays, and the filter that keeps them out of the negatives.

Proposing negatives and rejecting known positives are separate concerns; this module is the second.
It needs two arrays and no graph object, so it serves workers and distributed graphs alike. Beside
them stands a bitmap of the edges, which spares most pairs the search.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dgl_dmns.core.bitmap import PairBitmap

__all__ = ["KnownEdges"]

_HASHED = 1 << 20  # numbers that are hashed at a time: a bounded working set
_MOST = 2**31 - 1  # destination nodes: tables and known edges hold ids of 32 bits


class KnownEdges(nn.Module):
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
        self.bitmap = PairBitmap(rows, keys - rows * num_dst)
        self.num_src = num_src
        self.num_dst = num_dst
        self.exclude_self = exclude_self
        self._rounds = int(self.degrees().max()).bit_length() if num_src else 0
        self._fingerprint = ""

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
        if self.bitmap.useful and (src.dim() > 0 or dst.dim() > 0):
            found = self.bitmap.may_contain(src, dst)
            left = found.nonzero(as_tuple=True)
            src, dst = torch.broadcast_tensors(src, dst)
            found[left] = self._search(src[left], dst[left])
        else:
            found = self._search(*torch.broadcast_tensors(src, dst))
        return found | (src == dst) if self.exclude_self else found

    def _search(self, src: Tensor, dst: Tensor) -> Tensor:
        """Whether pairs of one shape are stored edges, by a binary search in all rows at once."""
        if not self.indices.numel():
            return torch.zeros(src.shape, dtype=torch.bool, device=src.device)
        low, end = self.indptr[src], self.indptr[src + 1]
        high = end
        last = self.indices.numel() - 1
        for _ in range(self._rounds):
            middle = torch.div(low + high, 2, rounding_mode="floor")
            below = (self.indices[middle.clamp(max=last)] < dst) & (middle < high)
            low = torch.where(below, middle + 1, low)
            high = torch.where(below, high, middle)
        return (low < end) & (self.indices[low.clamp(max=last)] == dst)

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

    def admissible(self, node: int) -> Tensor:
        """All destinations that are not known for one source (nor itself), ascending, int64.

        Costs one pass over the destinations; used only where random proposals keep failing.
        """
        allowed = torch.ones(self.num_dst, dtype=torch.bool, device=self.indices.device)
        allowed[self.neighbours(node).long()] = False
        if self.exclude_self:
            allowed[node] = False
        return allowed.nonzero().squeeze(1)

    def uniform(
        self, src: Tensor, count: int, *, generator: torch.Generator | None = None, rounds: int = 8
    ) -> Tensor:
        """Uniform admissible destinations for every source, with replacement.

        Proposals that hit a known edge are redrawn, for at most ``rounds`` rounds; what is left is
        drawn from the listed admissible nodes, so the loop always ends. A source without any
        admissible destination (linked to all nodes) gets itself where self pairs are excluded as
        negatives otherwise, and any node where the two ends have different types: see
        `saturated`.

        Args:
            src: source ids, shape [B], integer.
            count: draws per source.
            generator: source of randomness.
            rounds: rejection rounds before listing.

        Returns:
            Destination ids, shape [B, count], int64.
        """
        src = src.to(torch.int64)

        def propose(number: int) -> Tensor:
            nodes = max(1, self.num_dst)  # without any, nothing is asked for
            return torch.randint(0, nodes, (number,), generator=generator, device=src.device)

        def listed(node: int, number: int) -> Tensor:
            return self._fallback(node, number, generator)

        return self.draw(src, count, propose, listed, rounds=rounds)

    def draw(
        self,
        src: Tensor,
        count: int,
        propose: Callable[[int], Tensor],
        listed: Callable[[int, int], Tensor],
        *,
        rounds: int = 8,
    ) -> Tensor:
        """Proposals with the known edges rejected: bounded redrawing, then a listing.

        Args:
            src: source ids, shape [B], int64.
            count: draws per source.
            propose: draws that many destination ids, int64, the same distribution for every source.
            listed: destination ids, int64, for a source and a count; asked where ``rounds`` redraws
                have all been rejected. It has to return that many, none of them known while an
                admissible one exists.
            rounds: redraws before listing.

        Returns:
            Destination ids, shape [B, count], int64.
        """
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
        for node in torch.unique(rows[bad]).tolist():
            mine = rows[bad] == node
            drawn[bad[0][mine], bad[1][mine]] = listed(node, int(mine.sum()))
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

    def _fallback(self, node: int, count: int, generator: torch.Generator | None) -> Tensor:
        pool = self.admissible(node)
        device = pool.device
        if pool.numel():
            pick = torch.randint(0, pool.numel(), (count,), generator=generator, device=device)
            return pool[pick]
        if self.exclude_self:
            return torch.full((count,), node, dtype=torch.int64, device=device)
        return torch.randint(0, self.num_dst, (count,), generator=generator, device=device)

    def extra_repr(self) -> str:  # noqa: D102
        return f"num_src={self.num_src}, num_dst={self.num_dst}, edges={self.indices.numel()}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"
