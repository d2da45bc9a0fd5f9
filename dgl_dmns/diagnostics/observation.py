"""A look at the negatives of one moment: scores of a sample of queries, or one query in the plane.

The same seeded queries are looked at each time, so that one look can be compared with the next. A
look reads the live table and draws with a generator of its own: training goes on as it would have
without it.

Symbols: Q queries, C negatives a query, P positives a query, R random nodes a query, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dgl_dmns.checks import as_integer
from dgl_dmns.core import (
    NO_LEVEL,
    AffineNoisePredictor,
    EdgeName,
    EdgeType,
    Embeddings,
    Look,
    Looked,
    Snapshot,
    dot_score,
    fit_seed,
    level_gaussians,
    look_at,
    sample_neighbours,
    shielded,
)
from dgl_dmns.diagnostics.measures import percentiles, psi_distance
from dgl_dmns.files import read_arrays, write_arrays

__all__ = ["Observation", "QueryView", "observe", "observe_look", "view_look", "view_query"]

_POSITIVES = 5
_RANDOM = 100
_BACKGROUND = 2000

Array = np.ndarray[Any, Any]
_Kept = TypeVar("_Kept", bound="_Archived")


class _Archived:
    """What can be kept in a NumPy archive: names in tuples, numbers, and arrays."""

    def save(self, path: str | Path) -> None:
        """Write a NumPy archive (``.npz``)."""
        with Path(path).open("wb") as file:
            write_arrays(file, vars(self))

    @classmethod
    def load(cls: type[_Kept], path: str | Path) -> _Kept:
        """Read what `save` wrote; nothing in the file is executed."""
        return cls(**{name: cls._value(name, v) for name, v in read_arrays(Path(path)).items()})

    @classmethod
    def _value(cls, name: str, array: Array) -> Any:
        if name in ("levels", "etype"):
            return tuple(array.tolist())
        return array if array.ndim else array.item()


@dataclass(frozen=True, eq=False)
class Observation(_Archived):
    """Negatives of a sample of queries beside their positives and random nodes.

    Attributes:
        etype: canonical edge type.
        levels: names of the L levels, hardest first: ``"0.1T"`` is the level at a tenth of the
            diffusion steps; empty for a sampler without a generator.
        query: int64 [Q], source nodes with at least one known edge.
        negative: int64 [Q, C], what eight calls hand out for them: of a table, the first groups of
            each row, and uniform ones.
        level: uint8 [Q, C], index of the level each came from; 255 for none.
        score: float32 [Q, C], scores of the negatives.
        positive_score: float32 [Q, P], of random known neighbours.
        random: int64 [Q, R], random nodes that are no known neighbours.
        random_score: float32 [Q, R].
        expected_score: float32 [L], mean inner product of the query and a latent of the level; NaN
            for another scorer and without a closed form.
        density_auc: float32 [L], probability that the level's density is larger at a positive than
            at a random node; 0.5 for a generator that has not learned its condition; NaN likewise.
        psi_share: float32 [L], share of latents with Psi >= 0, see `dgl_dmns.diagnostics.measures`;
            NaN likewise.
        log_density: float32 [L + 1, Q, R], log densities of the random nodes under the model of the
            positives (first) and the levels, in the generator's space; empty without a closed form.
        num_dst: number of destination nodes.
    """

    etype: EdgeType
    levels: tuple[str, ...]
    query: Tensor
    negative: Tensor
    level: Tensor
    score: Tensor
    positive_score: Tensor
    random: Tensor
    random_score: Tensor
    expected_score: Tensor
    density_auc: Tensor
    psi_share: Tensor
    log_density: Tensor
    num_dst: int

    def groups(self) -> dict[str, Tensor]:
        """The levels by name, with a mask [Q, C] of their negatives; ``"all"`` comes last.

        ``"no level"`` stands between, where there is a generator.
        """
        return level_masks(self.levels, self.level, unclaimed=bool(self.levels))

    @classmethod
    def _value(cls, name: str, array: Array) -> Any:
        value = super()._value(name, array)
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def level_masks(levels: tuple[str, ...], level: Tensor, *, unclaimed: bool) -> dict[str, Tensor]:
    """Masks of the negatives of each level, of no level (if ``unclaimed``), and of all."""
    found = {name: level == index for index, name in enumerate(levels)}
    if unclaimed:
        found["no level"] = level == NO_LEVEL
    found["all"] = torch.ones_like(level, dtype=torch.bool)
    return found


def observe(
    sampler: Looked,
    *,
    embeddings: Embeddings | None = None,
    etype: EdgeName | None = None,
    queries: int = 1000,
    seed: int = 0,
) -> Observation:
    """Look at the negatives that a sampler holds now.

    Args:
        sampler: a sampler of this package; one that follows an encoder has to be refreshed.
        embeddings: shape [N, D], or a dict of those by node type; defaults to those of the
            sampler's encoder. A sampler without an encoder needs them.
        etype: edge type; may be left out where the sampler holds one.
        queries: at most this many source nodes.
        seed: of the choice of queries, positives and random nodes.

    Returns:
        The observation; the sampler is left as it was.

    Raises:
        ValueError: if the edge type has to be named, ``queries`` is below 1, or embeddings are
            missing or do not fit.
        RuntimeError: before the first refresh.
        TypeError: for a sampler of another package.
    """
    queries = as_integer("queries", queries, 1)
    return observe_look(look_at(sampler, etype, embeddings), queries, as_integer("seed", seed))


@torch.no_grad()
@shielded
def observe_look(look: Look, queries: int, seed: int) -> Observation:
    """`observe` for what a sampler holds; ValueError without embeddings."""
    known, snapshot = look.known, look.snapshot
    if snapshot is None:
        raise ValueError(
            "embeddings: this sampler follows no encoder; pass the embeddings [N, D] to score its "
            "negatives with (a dict by node type for a heterogeneous graph)"
        )
    generator = torch.Generator().manual_seed(fit_seed(seed))
    linked = known.degrees().nonzero().squeeze(1)
    chosen = torch.randperm(len(linked), generator=generator)[:queries]
    query = linked[chosen].sort().values
    negative, level = look.sample(query, generator)
    positive = torch.stack(
        [sample_neighbours(known, query, generator=generator) for _ in range(_POSITIVES)], dim=1
    )
    random = known.uniform(query, max(_RANDOM, negative.shape[1]), generator=generator)
    score, positive_score, random_score = (
        snapshot.scores(query.unsqueeze(1), ids).squeeze(1) for ids in (negative, positive, random)
    )
    expected, auc, psi, density = _closed_form(look, snapshot, query, positive, random, generator)
    return Observation(
        etype=look.etype,
        levels=look.levels,
        query=query,
        negative=negative,
        level=level,
        score=score,
        positive_score=positive_score,
        random=random,
        random_score=random_score,
        expected_score=expected,
        density_auc=auc,
        psi_share=psi,
        log_density=density,
        num_dst=known.num_dst,
    )


def _closed_form(
    look: Look,
    snapshot: Snapshot,
    query: Tensor,
    positive: Tensor,
    random: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Expected scores, AUC of the densities, shares of Psi >= 0, log densities [L + 1, Q, R]."""
    nothing = torch.full((len(look.levels),), torch.nan, dtype=torch.float32)
    if look.diffusion is None or not look.closed_form:
        return nothing, nothing, nothing, torch.empty(0)
    model, z_query, z_candidate = look.diffusion
    assert isinstance(model.predictor, AffineNoisePredictor)
    every = level_gaussians(model.predictor, model.schedule, z_query[query], (0, *model.steps))
    latents = every.sample(generator)[1:]
    expected = nothing
    if snapshot.scorer is None or snapshot.scorer is dot_score:
        mean = model.space.decode(every.mean[1:])
        expected = (mean * snapshot.h_query[query]).sum(-1).mean(1)
    alpha_bar = model.schedule.alpha_bar[list(model.steps)]
    psi = psi_distance(latents, z_candidate[positive[:, 0]], every.mean[0], alpha_bar)
    density, true = (every.pool_log_prob(z_candidate[ids]).squeeze(2) for ids in (random, positive))
    auc = torch.stack([percentiles(*pair).mean() for pair in zip(true[1:], density[1:])])
    return expected, auc, (psi >= 0).float().mean(1), density


@dataclass(frozen=True, eq=False)
class QueryView(_Archived):
    """A query, its neighbours and negatives, and its level Gaussians, projected to the plane.

    A space of width 1 has no plane: then each 2 below is a 1.

    Attributes:
        query: id of the source node.
        levels: names of the L levels, hardest first.
        point: the query, shape [2].
        neighbours: its known neighbours, shape [P, 2].
        negatives: the candidates that the table holds for it, shape [C, 2].
        negative_level: index of their levels, 255 for none, shape [C].
        mean: of the level Gaussians, shape [L, 2].
        covariance: of the same, shape [L, 2, 2].
        background: at most 2000 of all destination nodes, shape [M, 2].
    """

    query: int
    levels: tuple[str, ...]
    point: Array
    neighbours: Array
    negatives: Array
    negative_level: Array
    mean: Array
    covariance: Array
    background: Array


def view_query(
    sampler: Looked,
    node: int | None = None,
    *,
    embeddings: Embeddings | None = None,
    etype: EdgeName | None = None,
) -> QueryView:
    """Project a query and what belongs to it to the plane, for `dgl_dmns.plots.plot_query`.

    The projection is linear (the two leading principal directions of the destination nodes in the
    generator's space), so that a level Gaussian remains one.

    Args:
        sampler: a `DMNSSampler` after a refresh.
        node: the query; defaults to a node of middling degree, the first of the degree nearest to
            12.
        embeddings: shape [N, D], or a dict of those by node type; defaults to those of the
            sampler's encoder.
        etype: edge type; may be left out where the sampler holds one.

    Returns:
        The view.

    Raises:
        ValueError: for a sampler without a generator in closed form, or a node that does not exist
            or has no known neighbour.
        RuntimeError: before the first refresh.
        TypeError: for a sampler of another package.
    """
    return view_look(look_at(sampler, etype, embeddings), node)


@torch.no_grad()
@shielded
def view_look(look: Look, node: int | None = None) -> QueryView:
    """`view_query` for what a sampler holds."""
    if look.diffusion is None or look.rows is None:
        raise ValueError(f"sampler: {look.name} has no generator to show; use a DMNSSampler")
    model, z_query, z = look.diffusion
    degrees = look.known.degrees()
    middling = (degrees - 12).abs().masked_fill(degrees == 0, 1 << 40).argmin()
    query = as_integer("node", middling if node is None else node)
    if not 0 <= query < len(degrees) or not int(degrees[query]):
        raise ValueError(
            f"node: expected a source node with a known neighbour, in 0 .. {len(degrees) - 1}, got "
            f"{query}"
        )
    try:
        gaussians = model.gaussians(z_query[query : query + 1])
    except TypeError as error:
        raise ValueError(f"sampler: it has no level Gaussians to show ({error})") from error
    centre = z.mean(0)
    _, vectors = torch.linalg.eigh((z - centre).T @ (z - centre))
    plane = vectors[:, -2:].flip(1)
    table = look.rows.table
    held = table.look_up(table.spread(torch.tensor([query]))[1], count=False)
    variance = gaussians.std[:, 0].square()

    def project(points: Tensor) -> Array:
        flat: Array = ((points - centre) @ plane).numpy()
        return flat

    return QueryView(
        query=query,
        levels=look.levels,
        point=project(z_query[query : query + 1])[0],
        neighbours=project(z[look.known.neighbours(query).long()]),
        negatives=project(z[held.ids.flatten()]),
        negative_level=held.level.flatten().numpy().copy(),
        mean=project(gaussians.mean[:, 0]),
        covariance=(plane.T @ (variance.unsqueeze(-1) * plane)).numpy(),
        background=project(z[:: max(1, -(-len(z) // _BACKGROUND))]),
    )
