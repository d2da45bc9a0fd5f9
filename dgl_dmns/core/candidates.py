"""Known edges of which only some destinations may be drawn: those in stock, of a kind, seen before.

A draw among C candidates is a draw among known edges to C nodes. So what bars a candidate, its
known edges and the query itself, is held a second time, by the candidates' ranks: draws, counts and
ranks are those of these edges, turned back into ids. All other nodes count as barred.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from dgl_dmns.core.bitmap import PairBitmap
from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.sharing import Folder, Shareable

__all__ = ["CandidateEdges", "candidates_fingerprint", "restricted"]

_BUFFERS = ("indptr", "indices", "keys", "given", "own")
_SETTINGS = ("num_src", "num_dst", "exclude_self", "_rounds", "_fingerprint")


def restricted(known: KnownEdges, candidates: Tensor | None) -> KnownEdges:
    """The known edges, with draws among some destinations alone: ids [C], int64; None for all."""
    return known if candidates is None else CandidateEdges(known, candidates)


def candidates_fingerprint(known: KnownEdges) -> str:
    """A name of the candidates: 16 hex digits of a SHA-256; none where all nodes are."""
    if known.candidates is None:
        return ""
    numbers = known.candidates.cpu().numpy().astype("<i8").tobytes()
    return hashlib.sha256(numbers).hexdigest()[:16]


class CandidateEdges(KnownEdges):
    """Known edges that draw among C of the N destinations.

    Edges to other destinations are held, found and counted in degrees as before. It takes 4 bytes a
    destination, and those of the edges to candidates again.

    Args:
        known: the known edges.
        candidates: ids of destinations, distinct and ascending, shape [C], int64, C at least 1.
    """

    allowed: Tensor
    below: Tensor

    def __init__(self, known: KnownEdges, candidates: Tensor) -> None:
        Shareable.__init__(self)
        for name in _BUFFERS:
            self.register_buffer(name, getattr(known, name))
        for name in _SETTINGS:
            setattr(self, name, getattr(known, name))
        self.bitmap = PairBitmap(0)  # the one of `barring` is looked at
        mine = torch.zeros(known.num_dst, dtype=torch.int32, device=candidates.device)
        mine[candidates] = 1
        self.register_buffer("allowed", candidates)
        self.register_buffer("below", (mine.cumsum(0) - mine).int())
        every = torch.arange(known.num_src, device=candidates.device)
        src, dst = torch.repeat_interleave(every, known.degrees()), known.indices.long()
        if known.exclude_self:
            src, dst = torch.cat([src, every]), torch.cat([dst, known.itself(every)])
        rank, is_one = self._rank(dst)
        self.barring = KnownEdges(
            src[is_one], rank[is_one], known.num_src, candidates.numel(), exclude_self=False
        )
        self.crowded = self.barring.crowded
        self._saturated = bool(self.barring.saturated().numel())

    def _rank(self, dst: Tensor) -> tuple[Tensor, Tensor]:
        """How many candidates are below destinations [..], int64; and which are candidates."""
        rank = self.below[dst].long()
        last = self.allowed.numel() - 1
        return rank, self.allowed[rank.clamp(max=last)] == dst

    @property
    def candidates(self) -> Tensor:
        """Ids of the destinations that may be drawn, ascending, shape [C], int64."""
        return self.allowed

    def is_candidate(self, dst: Tensor) -> Tensor:  # noqa: D102
        return self._rank(dst)[1]

    def share(self, what: str = "known edges take", folder: Folder | None = None) -> None:  # noqa: D102
        super().share(what, folder)
        self.barring.share(what, folder)

    def contains(self, src: Tensor, dst: Tensor) -> Tensor:
        """Whether each pair is a known edge, a self pair if excluded, or of no candidate."""
        rank, is_one = self._rank(dst.to(torch.int64))
        last = self.allowed.numel() - 1
        return ~is_one | self.barring.contains(src, rank.clamp(max=last))

    def _barred(self, src: Tensor, dst: Tensor) -> Tensor:
        return self.contains(src, dst).nonzero().squeeze(1)

    def barred_of(self, src: Tensor) -> tuple[Tensor, Tensor]:
        """As of `KnownEdges`, of the candidates alone, each pair once."""
        owner, rank = self.barring.barred_of(src)
        return owner, self.allowed[rank]

    barred_once = barred_of

    def admissible_count(self, src: Tensor) -> Tensor:  # noqa: D102
        return self.barring.admissible_count(src)

    def nth_admissible(self, src: Tensor, rank: Tensor) -> Tensor:  # noqa: D102
        last = self.allowed.numel() - 1  # beyond it, as for all nodes, there is nothing
        return self.allowed[self.barring.nth_admissible(src, rank).clamp(max=last)]

    def admissible_rank(self, src: Tensor, dst: Tensor) -> Tensor:  # noqa: D102
        return self.barring.admissible_rank(src, self._rank(dst)[0])

    def uniform(  # noqa: D102
        self, src: Tensor, count: int, *, generator: torch.Generator | None = None, rounds: int = 8
    ) -> Tensor:
        rank = self.barring.uniform(src, count, generator=generator, rounds=rounds)
        return self._or_itself(src.long().unsqueeze(1), self.allowed[rank])

    def uniform_by_rank(self, src: Tensor, *, generator: torch.Generator | None = None) -> Tensor:  # noqa: D102
        rank = self.barring.uniform_by_rank(src, generator=generator)
        return self._or_itself(src, self.allowed[rank])

    def _or_itself(self, src: Tensor, drawn: Tensor) -> Tensor:
        """Draws, but the source itself where it has no admissible candidate and is a node too."""
        if not (self._saturated and self.exclude_self):
            return drawn
        return torch.where(self.admissible_count(src) <= 0, self.itself(src), drawn)

    def extra_repr(self) -> str:  # noqa: D102
        return f"{super().extra_repr()}, candidates={self.allowed.numel()}"
