"""Which random stream a process draws from, where several processes sample at once.

torch gives its loader workers a seed each, and a single process draws from the global generator.
Two cases are left: the ranks of a distributed training, which are often seeded alike (so that they
start from the same weights), and the sampler processes of DGL's distributed loader, which all start
from torch's default seed. Without a stream of its own, each of them would repeat the draws of the
others on other edges.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import distributed

from dgl_dmns._compat import require_dgl

__all__ = ["Stream"]

_roles: Any = require_dgl().distributed.role


class Stream:
    """The source of draws of a sampler in the process that asks for it.

    A copy remembers the seed and rank of the process that made it, since the process that gets it
    may know neither.

    Args:
        seed: torch's seed in the process that this is a copy from.
        rank: the rank of that process.
    """

    def __init__(self, seed: int | None = None, rank: int = 0) -> None:
        self._seed = seed
        self._rank = rank
        self._key: tuple[int, int, int] | None = None
        self._own = torch.Generator()

    def generator(self) -> torch.Generator | None:
        """The generator to draw from; None, torch's global one, on rank 0 and in its workers.

        Reproducible: it depends on torch's seed (of the loader worker, where in one), on the rank,
        and on the number of the sampler process.
        """
        rank = self._current_rank()
        process = _sampler_process()
        if not rank and not process:
            return None
        seed = self._seed if process and self._seed is not None else torch.initial_seed()
        key = (seed, rank, process)
        if key != self._key:  # the first draw, or seeded anew
            self._own.manual_seed(random.Random(repr(key)).getrandbits(63))
            self._key = key
        return self._own

    def _current_rank(self) -> int:
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank()
        return self._rank

    def __reduce__(self) -> tuple[type[Stream], tuple[int, int]]:
        """A copy gets no generator: it would repeat this one's draws."""
        return Stream, (torch.initial_seed(), self._current_rank())


def _sampler_process() -> int:
    """The number, from 1, of a sampler process of DGL's distributed loader; 0 elsewhere."""
    return 1 + int(_roles.get_rank("sampler")) if _roles.get_role() == "sampler" else 0
