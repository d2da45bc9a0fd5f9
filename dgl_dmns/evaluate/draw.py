"""Draw fixed negatives for held-out pairs with a sampler: its levels, and uniform ones beside."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgl_dmns.checks import as_integer
from dgl_dmns.core import KnownEdges, fit_seed, shielded
from dgl_dmns.evaluate.checks import check_ids, check_shape, check_tensors
from dgl_dmns.evaluate.fixed import FixedNegatives

if TYPE_CHECKING:
    from dgl_dmns.samplers import NegativeSampler
    from dgl_dmns.samplers.embedder import Embeddings
    from dgl_dmns.samplers.etypes import EdgeName, EdgeType

__all__ = ["fixed_negatives"]

_ROUNDS = 8  # in which a sampler may replace known edges among its draws


@torch.no_grad()
@shielded
def fixed_negatives(
    sampler: NegativeSampler,
    pairs: Tensor,
    n: int = 50,
    *,
    known: Tensor | None = None,
    etype: EdgeName | None = None,
    embeddings: Embeddings | None = None,
    seed: int = 0,
) -> FixedNegatives:
    """Negatives of every hardness level for held-out pairs, to be saved and used for all models.

    A `DMNSSampler` draws n distinct nodes of each of its levels, over all nodes
    (`DMNSSampler.negatives_by_level`). Other samplers are one level, under the name of their class:
    n of what they would give to training, which may repeat. Last come n uniform nodes, the level
    ``"uniform"``. Each model is to be ranked by the same file, also the one whose embeddings made
    it, and that one may find its own hard negatives the hardest.

    Never drawn for a query: itself, its training edges, the positives of ``pairs`` and ``known``,
    and where both ends have one node type, the reverses of the latter two.

    Args:
        sampler: a sampler of this package; refreshed, if it follows an encoder.
        pairs: int64 [2, P], held-out (query, positive) columns.
        n: negatives per pair and level.
        known: int64 [2, E], further true edges, for example those of validation; none where not
            given.
        etype: edge type; may be left out where the sampler holds one.
        embeddings: as in `DMNSSampler.refresh`, for a `DMNSSampler` alone.
        seed: of all draws.

    Returns:
        The pairs with their negatives; the same for the same arguments and state of the sampler,
        which is left as it was.

    Raises:
        ValueError: if a shape does not fit, an id is out of range, ``n`` is below 1, the edge type
            has to be named, or a query has no admissible node.
        TypeError: if ids are not integers, or for a sampler of another package.
        RuntimeError: if the sampler has not been refreshed.
    """
    from dgl_dmns.samplers.dmns import DMNSSampler
    from dgl_dmns.samplers.plain import FilteredSampler, UniformSampler
    from dgl_dmns.samplers.refreshing import RefreshingSampler

    if not isinstance(sampler, (FilteredSampler, RefreshingSampler)):
        raise TypeError(
            f"sampler: expected a sampler of dgl_dmns, got {type(sampler).__name__}; use "
            "UniformSampler(g) for uniform negatives alone"
        )
    if isinstance(sampler, RefreshingSampler) and sampler.version == 0:
        raise RuntimeError(
            "sampler: it has not been refreshed, so that its negatives are uniform; call refresh()"
        )
    n, seed = as_integer("n", n), as_integer("seed", seed)
    if n < 1:
        raise ValueError(f"n: expected at least 1 negative per pair and level, got {n}; raise it")
    canonical = _edge_type(sampler, etype)
    training = sampler.known_by_type[canonical]
    query, positive = _checked_pairs("pairs", pairs, training)
    barred = _all_known(training, torch.stack([query, positive]), known)
    full = barred.saturated()
    full = full[torch.isin(full, query)]
    if full.numel():
        raise ValueError(
            f"pairs: {full.numel()} queries, for example {int(full[0])}, are joined to every node, "
            "so that they have no negatives; leave them out"
        )
    generator = torch.Generator().manual_seed(fit_seed(seed))
    levels: dict[str, Tensor] = {}
    if isinstance(sampler, DMNSSampler):
        drawn = sampler.negatives_by_level(
            query, n, etype=canonical, known=barred, embeddings=embeddings, generator=generator
        )
        names = (f"{fraction:g}T" for fraction in sampler.levels.fractions)
        levels = dict(zip(names, drawn.unbind(1)))
    elif not isinstance(sampler, UniformSampler):
        levels[type(sampler).__name__] = _own_draws(
            sampler, query, positive, n, barred, canonical, generator
        )
    levels["uniform"] = barred.uniform(query, n, generator=generator)
    return FixedNegatives(
        queries=query,
        positives=positive,
        negatives=torch.stack(list(levels.values()), dim=1),
        levels=tuple(levels),
        seed=fit_seed(seed),
        fingerprint=training.fingerprint(),
        num_nodes=(training.num_src, training.num_dst),
        etype=canonical,
    )


def _edge_type(sampler: NegativeSampler, etype: EdgeName | None) -> EdgeType:
    from dgl_dmns.samplers.etypes import canonical_edge_type

    held = list(sampler.known_by_type)
    if etype is None and len(held) != 1:
        raise ValueError(f"etype: the sampler holds edge types {held}; name the one of the pairs")
    return held[0] if etype is None else canonical_edge_type(etype, held, "etype")


def _checked_pairs(name: str, pairs: Tensor, known: KnownEdges) -> tuple[Tensor, Tensor]:
    check_tensors(**{name: pairs})
    check_shape(name, pairs, "[2, P]", pairs.dim() == 2 and pairs.shape[0] == 2)
    src, dst = pairs.cpu().unbind(0)
    check_ids(f"{name}[0]", src, known.num_src)
    check_ids(f"{name}[1]", dst, known.num_dst)
    return src.long(), dst.long()


def _all_known(training: KnownEdges, pairs: Tensor, known: Tensor | None) -> KnownEdges:
    """Training edges, held-out pairs and further known ones, the latter two in both directions."""
    parts = [pairs]
    if known is not None:
        parts.append(torch.stack(_checked_pairs("known", known, training)))
    if training.exclude_self:
        parts += [part.flip(0) for part in parts]
    src = torch.repeat_interleave(torch.arange(training.num_src), training.degrees())
    parts.append(torch.stack([src, training.indices.long()]))
    src, dst = torch.cat(parts, dim=1).unbind(0)
    return KnownEdges(
        src,
        dst,
        training.num_src,
        training.num_dst,
        exclude_self=training.exclude_self,
    )


def _own_draws(
    sampler: Any,
    query: Tensor,
    positive: Tensor,
    n: int,
    barred: KnownEdges,
    etype: EdgeType,
    generator: torch.Generator,
) -> Tensor:
    """What a sampler gives to training, [P, n]; draws that are barred are drawn again.

    A deep copy draws: from torch's global generator, set here for a while, and without a trace in
    the sampler. What is still barred after some rounds becomes uniform.
    """
    from dgl_dmns.samplers.graphs import KnownGraph

    sampler = copy.deepcopy(sampler)
    graph = KnownGraph(sampler.known_by_type)

    def draw() -> Tensor:
        parts: list[Tensor] = []
        while sum(part.shape[1] for part in parts) < n:
            parts.append(sampler.negatives_for_edges(graph, query, positive, etype))
        return torch.cat(parts, dim=1)[:, :n]

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        chosen = draw()
        for _ in range(_ROUNDS):
            bad = barred.contains(query.unsqueeze(1), chosen)
            if not bool(bad.any()):
                return chosen
            chosen = torch.where(bad, draw(), chosen)
    bad = barred.contains(query.unsqueeze(1), chosen)
    return torch.where(bad, barred.uniform(query, n, generator=generator), chosen)
