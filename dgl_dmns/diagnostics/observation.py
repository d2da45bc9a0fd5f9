"""A look at the negatives of one moment: scores of a sample of queries, level by level.

The same seeded queries are looked at each time, so that one look can be compared with the next. A
look reads the live table and draws with a generator of its own: training goes on as it would have
without it.

Symbols: Q queries, C negatives a query, P positives a query, R random nodes a query, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dgl_dmns.checks import as_integer
from dgl_dmns.core import (
    NO_LEVEL,
    AffineNoisePredictor,
    KnownEdges,
    Snapshot,
    dot_score,
    fit_seed,
    level_gaussians,
    psi_distance,
    sample_neighbours,
    shielded,
)
from dgl_dmns.diagnostics.measures import percentiles
from dgl_dmns.files import read_arrays, write_arrays

if TYPE_CHECKING:
    from dgl_dmns.samplers import NegativeSampler
    from dgl_dmns.samplers.base import EdgeName, EdgeType
    from dgl_dmns.samplers.encoder import Embeddings

__all__ = ["Observation", "observe"]

_POSITIVES = 5
_RANDOM = 100


@dataclass(frozen=True, eq=False)
class Observation:
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
        psi_share: float32 [L], share of latents with Psi >= 0 (`psi_distance`); NaN likewise.
        log_density: float32 [L + 1, Q, R], log densities of the random nodes under the model of the
            positives (first) and the levels, in the generator's space; empty without a closed form.
        num_dst: number of destination nodes.
    """

    etype: tuple[str, str, str]
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
        found = {name: self.level == index for index, name in enumerate(self.levels)}
        if self.levels:
            found["no level"] = self.level == NO_LEVEL
        found["all"] = torch.ones_like(self.level, dtype=torch.bool)
        return found

    def save(self, path: str | Path) -> None:
        """Write a NumPy archive (``.npz``)."""
        with Path(path).open("wb") as file:
            write_arrays(file, vars(self))

    @classmethod
    def load(cls, path: str | Path) -> Observation:
        """Read what `save` wrote; nothing in the file is executed."""
        values: dict[str, Any] = {
            name: value.item() if value.ndim == 0 else value
            for name, value in read_arrays(Path(path)).items()
        }
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                names = value.dtype.kind == "U" or name in ("levels", "etype")
                values[name] = tuple(value.tolist()) if names else torch.from_numpy(value)
        return cls(**values)


@torch.no_grad()
@shielded
def observe(
    sampler: NegativeSampler,
    *,
    embeddings: Embeddings | None = None,
    etype: EdgeName | None = None,
    queries: int = 1000,
    seed: int = 0,
) -> Observation:
    """Look at the negatives that a sampler holds now.

    Args:
        sampler: a sampler of this package; one that follows an encoder has to be refreshed.
        embeddings: shape [N, D], or a dict of those by node type; of the sampler's encoder where
            not given. A sampler without an encoder needs them.
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
    from dgl_dmns.samplers.base import FilteredSampler, canonical_edge_type
    from dgl_dmns.samplers.refreshing import RefreshingSampler

    if not isinstance(sampler, (FilteredSampler, RefreshingSampler)):
        raise TypeError(
            f"sampler: expected a sampler of dgl_dmns, got {type(sampler).__name__}; "
            "UniformSampler(g, k) draws as DGL's uniform one does, less the known edges"
        )
    queries, seed = as_integer("queries", queries), as_integer("seed", seed)
    if queries < 1:
        raise ValueError(f"queries: expected at least 1 query, got {queries}; raise it")
    held = list(sampler.known_by_type)
    if etype is None and len(held) != 1:
        raise ValueError(f"etype: the sampler holds edge types {held}; name one of them")
    canonical = held[0] if etype is None else canonical_edge_type(etype, held, "etype")
    known = sampler.known_by_type[canonical]
    generator = torch.Generator().manual_seed(fit_seed(seed))
    query = _sample_queries(known, queries, generator)
    if isinstance(sampler, RefreshingSampler):
        relation = sampler.relation(canonical)
        if relation.table.version == 0:
            raise RuntimeError(
                "sampler: it has not been refreshed, so that its negatives are uniform; call "
                "refresh() or attach() first"
            )
        h = sampler._embeddings(embeddings)
        negative, level = relation.rows.look(query, generator)
        scorer, model = relation.frozen().scorer, relation.model
    else:
        h = _given_embeddings(embeddings, canonical, known)
        negative = _draws(sampler, query, canonical, seed)
        level = torch.full(negative.shape, NO_LEVEL, dtype=torch.uint8)
        scorer = model = None
    snapshot = Snapshot.take(h[canonical[0]], h[canonical[2]], known, scorer, model)
    positive = torch.stack(
        [sample_neighbours(known, query, generator=generator) for _ in range(_POSITIVES)], dim=1
    )
    random = known.uniform(query, max(_RANDOM, negative.shape[1]), generator=generator)

    def scores(ids: Tensor) -> Tensor:
        return snapshot.scores(query.unsqueeze(1), ids).squeeze(1)

    expected, auc, psi, density = _closed_form(snapshot, query, positive, random, generator)
    return Observation(
        etype=canonical,
        levels=() if model is None else tuple(f"{f:g}T" for f in model.levels.fractions),
        query=query,
        negative=negative,
        level=level,
        score=scores(negative),
        positive_score=scores(positive),
        random=random,
        random_score=scores(random),
        expected_score=expected,
        density_auc=auc,
        psi_share=psi,
        log_density=density,
        num_dst=known.num_dst,
    )


def _sample_queries(known: KnownEdges, count: int, generator: torch.Generator) -> Tensor:
    linked = known.degrees().nonzero().squeeze(1)
    return linked[torch.randperm(len(linked), generator=generator)[:count]].sort().values


def _given_embeddings(
    embeddings: Embeddings | None, etype: EdgeType, known: KnownEdges
) -> dict[str, Tensor]:
    from dgl_dmns.samplers.encoder import check_embeddings

    if embeddings is None:
        raise ValueError(
            "embeddings: this sampler follows no encoder; pass the embeddings [N, D] to score its "
            "negatives with (a dict by node type for a heterogeneous graph)"
        )
    counts = {etype[0]: known.num_src, etype[2]: known.num_dst}
    return check_embeddings(embeddings, counts, homogeneous=len(counts) == 1)


def _draws(sampler: Any, query: Tensor, etype: EdgeType, seed: int) -> Tensor:
    """Ten calls' worth of negatives, drawn from torch's global generator, set back afterwards."""
    from dgl_dmns.samplers.base import KnownGraph

    graph = KnownGraph(sampler.known_by_type)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(fit_seed(seed))
        return torch.cat([sampler.negatives(graph, query, etype) for _ in range(10)], dim=1)


def _closed_form(
    snapshot: Snapshot, query: Tensor, positive: Tensor, random: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Expected scores, AUC of the densities, shares of Psi >= 0, log densities [L + 1, Q, R]."""
    model = snapshot.model
    if model is None:
        return torch.empty(0), torch.empty(0), torch.empty(0), torch.empty(0)
    nothing = torch.full((len(model.levels),), torch.nan, dtype=torch.float32)
    if not isinstance(model.predictor, AffineNoisePredictor):
        return nothing, nothing, nothing, torch.empty(0)
    assert snapshot.z_query is not None
    assert snapshot.z_candidate is not None
    z = snapshot.z_query[query]
    every = level_gaussians(model.predictor, model.schedule, z, (0, *model.steps))
    latents = every.sample(generator)[1:]
    expected = nothing
    if snapshot.scorer is None or snapshot.scorer is dot_score:
        mean = model.space.decode(every.mean[1:])
        expected = (mean * snapshot.h_query[query]).sum(-1).mean(1)
    alpha_bar = model.schedule.alpha_bar[list(model.steps)]
    psi = psi_distance(latents, snapshot.z_candidate[positive[:, 0]], every.mean[0], alpha_bar)
    density, true = (
        every.pool_log_prob(snapshot.z_candidate[ids]).squeeze(2) for ids in (random, positive)
    )
    auc = torch.stack([percentiles(*pair).mean() for pair in zip(true[1:], density[1:])])
    return expected, auc, (psi >= 0).float().mean(1), density
