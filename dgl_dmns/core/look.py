"""`Look`: what a sampler holds now for one edge type, for whoever looks at its negatives.

Statistics, plots, reports and fixed negatives read this one value; none of them knows a sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.rows import RowDraws
from dgl_dmns.core.snapshot import Snapshot
from dgl_dmns.core.table import NO_LEVEL, Candidates

__all__ = ["Draw", "Look"]

_CALLS = 10  # of a sampler without a table

Draw = Callable[[Tensor, "Tensor | None"], Tensor]
"""From sources [B], and destinations where positives are known, to negatives [B, k]."""


@dataclass(frozen=True, eq=False)
class Look:
    """What a sampler holds now for one edge type.

    Attributes:
        name: of the sampler's class.
        etype: canonical edge type.
        known: the known edges.
        version: refreshes so far; 0 for a sampler that follows no encoder.
        snapshot: embeddings, scorer and diffusion model; None where there are no embeddings.
        rows: what negatives are drawn from; None for a sampler without a table.
        uniform: whether all negatives are uniform.
        lam: exponent on the densities of the diffusion model.
        behind: refreshes, steps and observations that the negatives lie behind the training; None
            for what does not apply.
        draw: makes a function that draws like a call, from torch's global generator, and leaves no
            trace in the sampler.
    """

    name: str
    etype: tuple[str, str, str]
    known: KnownEdges
    version: int
    snapshot: Snapshot | None
    rows: RowDraws | None
    uniform: bool
    lam: float
    behind: tuple[float | None, float | None, float | None]
    draw: Callable[[], Draw]

    def sample(self, query: Tensor, generator: torch.Generator) -> Candidates:
        """Negatives of queries as several calls hand them out, without taking any turn.

        Args:
            query: source ids, shape [Q], int64.
            generator: source of the draws; torch's global one is set by its seed for a while where
                there is no table.

        Returns:
            Candidates of shape [Q, C].
        """
        if self.rows is not None:
            return self.rows.look(query, generator)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator.initial_seed())
            draw = self.draw()
            ids = torch.cat([draw(query, None) for _ in range(_CALLS)], dim=1)
        return Candidates(ids, torch.full(ids.shape, NO_LEVEL, dtype=torch.uint8))
