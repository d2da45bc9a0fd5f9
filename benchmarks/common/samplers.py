r"""What rows draw from besides the samplers of the package: every node, and untrained generators.

The generators learn nothing and stand in the place of the diffusion model: what it has to beat.
Each has level Gaussians ``N(sqrt(abar_t) c, (1 - abar_t) I)``, a centre ``c`` noised forward by the
``t`` steps of a level, in the same space, and goes through the same pools, rule and calibration:

- ``query``: the query's own embedding.
- ``mean``: the mean of its neighbours' embeddings.
- ``neighbour``: one neighbour's, drawn anew at every refresh ("noised positives").

A node without neighbours is its own centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.common.training import EveryNode
from dgl_dmns.core import (
    DiffusionGenerator,
    FitReport,
    KnownEdges,
    LevelGaussians,
    Levels,
    sample_neighbours,
)
from dgl_dmns.samplers import Diffusion, DMNSSampler
from dgl_dmns.samplers.registry import in_families
from dgl_dmns.seeds import fit_seed

__all__ = ["OWN", "NoisedCentre", "StandInSampler"]

Centre = Literal["query", "mean", "neighbour"]


class NoisedCentre(DiffusionGenerator):
    """Level Gaussians around a centre; arguments as for `DiffusionGenerator`, and ``centre``."""

    def __init__(self, width: int, *, centre: Centre, seed: int = 0, **arguments: Any) -> None:
        super().__init__(width, seed=seed, **arguments)
        self.centre = centre
        self.seed, self.draws = seed, 0

    def fit(self, *_: Any, **__: Any) -> FitReport:
        """Nothing to fit; neighbours are drawn anew."""
        self.draws += 1  # in place of a torch.Generator, which a refresh could not copy
        return FitReport((), 0, 0.0)

    def conditions(self, z_query: Tensor, z_candidate: Tensor, edges: KnownEdges) -> Tensor:
        """The centres, shape [Nq, W]."""
        if self.centre == "query":
            return z_query
        rows = torch.arange(edges.num_src)
        if self.centre == "neighbour":
            random = torch.Generator().manual_seed(fit_seed(self.seed, self.draws))
            return z_candidate[sample_neighbours(edges, rows, generator=random)]
        degree = edges.degrees()
        total = torch.zeros_like(z_query)
        total.index_add_(0, rows.repeat_interleave(degree), z_candidate[edges.indices.long()])
        mean = total / degree.clamp(min=1).unsqueeze(1)
        return torch.where(degree.unsqueeze(1) > 0, mean, z_query)

    def gaussians(self, z: Tensor) -> LevelGaussians:
        """The level Gaussians of centres [B, W]."""
        kept = self.schedule.alpha_bar[torch.tensor(self.steps)].view(-1, 1, 1)
        return LevelGaussians(kept.sqrt() * z, (1 - kept).sqrt().expand(-1, *z.shape))


@dataclass(frozen=True)
class _Centred(Diffusion):
    """A `NoisedCentre` in the place of the diffusion model."""

    centre: Centre = "query"

    def make(self, width: int, levels: Levels, seed: int) -> DiffusionGenerator:
        return NoisedCentre(
            width,
            centre=self.centre,
            levels=levels,
            schedule=self.schedule,
            space=self.space,
            compact_width=self.compact_width,
            seed=seed,
        )


class StandInSampler(DMNSSampler):
    """`DMNSSampler` with a `NoisedCentre` for its diffusion model."""

    def __init__(self, *arguments: Any, centre: Centre, **options: Any) -> None:
        options = in_families(DMNSSampler, options)
        super().__init__(*arguments, diffusion=_Centred(centre=centre), **options)


OWN = {"every node": EveryNode, "stand-in": StandInSampler}
"""By the names that rows have for them."""
