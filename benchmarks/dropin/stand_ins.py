r"""Generators that learn nothing, in the place of the diffusion model: what it has to beat.

Each has level Gaussians ``N(sqrt(abar_t) c, (1 - abar_t) I)``, a centre ``c`` noised forward by the
``t`` steps of a level, in the same space, and goes through the same pools, rule and calibration:

- ``query``: the query's own embedding.
- ``mean``: the mean of its neighbours' embeddings.
- ``neighbour``: one neighbour's, drawn anew at every refresh ("noised positives").

A node without neighbours is its own centre.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from dgl_dmns.core import (
    DiffusionGenerator,
    FitReport,
    KnownEdges,
    LevelGaussians,
    sample_neighbours,
)
from dgl_dmns.samplers import DMNSSampler

__all__ = ["Centre", "NoisedCentre", "StandInSampler"]

Centre = Literal["query", "mean", "neighbour"]


class NoisedCentre(DiffusionGenerator):
    """Level Gaussians around a centre; arguments as for `DiffusionGenerator`, and ``centre``."""

    def __init__(self, width: int, *, centre: Centre, seed: int = 0, **arguments: Any) -> None:
        super().__init__(width, seed=seed, **arguments)
        self.centre = centre
        self.random = torch.Generator().manual_seed(seed)

    def fit(self, *_: Any, **__: Any) -> FitReport:
        """Nothing to fit."""
        return FitReport((), 0, 0.0)

    def conditions(self, z_query: Tensor, z_candidate: Tensor, edges: KnownEdges) -> Tensor:
        """The centres, shape [Nq, W]."""
        if self.centre == "query":
            return z_query
        rows = torch.arange(edges.num_src)
        if self.centre == "neighbour":
            return z_candidate[sample_neighbours(edges, rows, generator=self.random)]
        degree = edges.degrees()
        total = torch.zeros_like(z_query)
        total.index_add_(0, rows.repeat_interleave(degree), z_candidate[edges.indices.long()])
        mean = total / degree.clamp(min=1).unsqueeze(1)
        return torch.where(degree.unsqueeze(1) > 0, mean, z_query)

    def gaussians(self, z: Tensor) -> LevelGaussians:
        """The level Gaussians of centres [B, W]."""
        kept = self.schedule.alpha_bar[torch.tensor(self.steps)].view(-1, 1, 1)
        return LevelGaussians(kept.sqrt() * z, (1 - kept).sqrt().expand(-1, *z.shape))


class StandInSampler(DMNSSampler):
    """`DMNSSampler` with a `NoisedCentre` for its generator."""

    def __init__(self, *arguments: Any, centre: Centre, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._models.make = partial(NoisedCentre, centre=centre)
