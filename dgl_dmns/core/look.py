"""`Look`: what a sampler holds now for one edge type, for whoever looks at its negatives.

Statistics, plots, reports and fixed negatives read this one value; none of them knows a sampler.
What they ask of one is in `Looked` and `Refreshed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Union

import torch
from torch import Tensor

from dgl_dmns.core.generator import DiffusionGenerator
from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.predictor import AffineNoisePredictor
from dgl_dmns.core.rows import RowDraws
from dgl_dmns.core.snapshot import Snapshot
from dgl_dmns.core.table import NO_LEVEL, Candidates

__all__ = [
    "Draw",
    "EdgeName",
    "EdgeType",
    "Embeddings",
    "Look",
    "Looked",
    "Refreshed",
    "canonical_edge_type",
    "look_at",
]

_CALLS = 10  # of a sampler without a table

EdgeType = tuple[str, str, str]
"""A canonical edge type: source node type, relation, destination node type."""

EdgeName = Union[str, EdgeType]
"""An edge type by its relation alone, where that is unique, or in full."""

Embeddings = Union[Tensor, Mapping[str, Tensor]]
"""Embeddings [N, D] of the only node type, or by node type, all of one width D."""

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
        chains: whether the rows are chains that go on by themselves, so that no refresh draws them
            anew.
        draw: makes a function that draws like a call, from torch's global generator, and leaves no
            trace in the sampler.
    """

    name: str
    etype: EdgeType
    known: KnownEdges
    version: int
    snapshot: Snapshot | None
    rows: RowDraws | None
    uniform: bool
    lam: float
    behind: tuple[float | None, float | None, float | None]
    chains: bool
    draw: Callable[[], Draw]

    @property
    def diffusion(self) -> tuple[DiffusionGenerator, Tensor, Tensor] | None:
        """The diffusion model, with sources [Nq, W] and destinations [Nc, W] in its space."""
        snapshot = self.snapshot
        if snapshot is None or snapshot.model is None:
            return None
        assert isinstance(snapshot.z_candidate, Tensor)
        return snapshot.model, snapshot.z_query, snapshot.z_candidate

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the hardness levels, hardest first; none without a diffusion model.

        ``"0.1T"`` is the level at a tenth of the diffusion steps.
        """
        if self.diffusion is None:
            return ()
        return tuple(f"{fraction:g}T" for fraction in self.diffusion[0].levels.fractions)

    @property
    def closed_form(self) -> bool:
        """Whether there is a diffusion model whose levels are Gaussians."""
        model = None if self.diffusion is None else self.diffusion[0]
        return model is not None and isinstance(model.predictor, AffineNoisePredictor)

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

    def negatives(
        self, src: Tensor, dst: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Negatives of known edges as the first call after a refresh draws them; takes no turn.

        Args:
            src: source ids of the edges, shape [B], int64.
            dst: their destination ids, shape [B], int64.
            generator: source of the draws, see `sample`.

        Returns:
            Destination ids, int64 [B, k]; indices of their levels, uint8 [B, k], 255 for none; and
            which were chosen for their edge, bool [B, k]: the others are uniform.
        """
        if self.rows is not None:
            ids, level = self.rows.first_turns(src, dst, generator)
            return ids, level, self.rows.chosen(torch.arange(src.numel()))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            ids = self.draw()(src, dst)
        level = torch.full(ids.shape, NO_LEVEL, dtype=torch.uint8)
        return ids, level, torch.full(ids.shape, not self.uniform)


class Looked(Protocol):
    """A sampler whose negatives can be looked at."""

    @property
    def known_by_type(self) -> Mapping[EdgeType, KnownEdges]:
        """The known edges of each edge type."""

    def look(self, etype: EdgeName | None = None, embeddings: Embeddings | None = None) -> Look:
        """What it holds now for an edge type, see `look_at`."""


class Refreshed(Looked, Protocol):
    """A sampler that follows an encoder."""

    @property
    def version(self) -> int:
        """Refreshes so far."""

    def on_refresh(self, callback: Callable[[Any, dict[str, Tensor]], None]) -> Any:
        """Call a function after every refresh, with its report and embeddings by node type."""


def look_at(
    sampler: Looked, etype: EdgeName | None = None, embeddings: Embeddings | None = None
) -> Look:
    """What a sampler holds now for an edge type.

    Args:
        sampler: a sampler of this package; one that follows an encoder has to be refreshed.
        etype: edge type; may be left out where the sampler holds one.
        embeddings: shape [N, D], or a dict of those by node type, to score negatives with; defaults
            to those of the sampler's encoder, if it has one.

    Raises:
        TypeError: for a sampler of another package.
        ValueError: if the edge type has to be named, or embeddings do not fit.
        RuntimeError: before the first refresh.
    """
    if not hasattr(sampler, "look"):
        raise TypeError(
            f"sampler: expected a sampler of dgl_dmns, got {type(sampler).__name__}; "
            "UniformSampler(g, k) draws as DGL's uniform one does, less the known edges"
        )
    return sampler.look(etype, embeddings)


def canonical_edge_type(
    name: EdgeName | None, etypes: Sequence[EdgeType], argument: str
) -> EdgeType:
    """The canonical edge type that a name stands for.

    Args:
        name: the relation alone, or the canonical edge type; None for the only one.
        etypes: the canonical edge types to choose from.
        argument: the argument that an error message speaks of.

    Raises:
        ValueError: if none or several of the edge types have this name.
    """
    if name is None:
        if len(etypes) != 1:
            raise ValueError(f"{argument}: there are edge types {list(etypes)}; name one of them")
        return etypes[0]
    found = [e for e in etypes if name == e or (isinstance(name, str) and name == e[1])]
    if len(found) != 1:
        what = "several edge types" if found else "no edge type"
        raise ValueError(
            f"{argument}: {what} of name {name!r} in {found or list(etypes)}; name one as (source "
            "node type, relation, destination node type)"
        )
    return found[0]
