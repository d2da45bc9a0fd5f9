"""Which random stream a process draws from, where several processes sample at once.

torch gives its loader workers a seed each, and a single process draws from the global generator.
Two cases are left. The ranks of a distributed training are often seeded alike, so that they start
from the same weights: each would repeat the draws of the others on other edges. The sampler
processes of DGL's distributed loader are not seeded at all: no run could be repeated.
"""

from __future__ import annotations

import random
import sys
from multiprocessing import current_process

import torch
from torch import distributed

__all__ = ["Stream"]


class Stream:
    """The source of draws of a sampler in the process that asks for it.

    A copy remembers the seed and rank of the process that made it, since the process that gets it
    may know neither.
    """

    def __init__(self, seed: int = 0, rank: int = 0) -> None:
        self._seed = seed
        self._rank = rank
        self._own = torch.Generator()
        self._base: torch.Generator | None = None

    def generator(self) -> torch.Generator | None:
        """The generator to draw from; None, torch's global one, on rank 0 and in its workers.

        Elsewhere each call seeds one by a draw from torch's global generator (in a sampler process,
        from one with the trainer's seed), by the rank and by the sampler process.
        """
        rank = self._current_rank()
        process = _sampler_process()
        if not rank and not process:
            return None
        if process and self._base is None:
            self._base = torch.Generator().manual_seed(self._seed)
        base = int(torch.randint(1 << 62, (), generator=self._base))
        return self._own.manual_seed(random.Random(repr((base, rank, process))).getrandbits(63))

    def _current_rank(self) -> int:
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank()
        return self._rank

    def __reduce__(self) -> tuple[type[Stream], tuple[int, int]]:
        """A copy gets no generator: it would repeat this one's draws."""
        return Stream, (torch.initial_seed(), self._current_rank())


def _sampler_process() -> str:
    """The name of a sampler process of DGL's distributed loader, unlike any other of its trainer.

    Empty in other processes, and so wherever ``dgl.distributed`` was not imported.
    """
    roles = sys.modules.get("dgl.distributed.role")
    return current_process().name if roles is not None and roles.get_role() == "sampler" else ""
