"""Negatives that are drawn once, kept in a file, and ranked by every model alike.

Two models that each draw their own negatives cannot be compared: the better one may have drawn the
easier ones. `FixedNegatives` holds P held-out pairs with n negatives each at L levels of hardness,
and says which graph they were drawn on.

Symbols: P pairs (query, positive), L levels, n negatives a level.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Union

import torch
from torch import Tensor

from dgl_dmns.checks import as_integer
from dgl_dmns.core import (
    EdgeName,
    EdgeType,
    Embeddings,
    KnownEdges,
    Look,
    Looked,
    draw_by_level,
    fit_seed,
    in_float32,
    look_at,
    restricted,
    shielded,
)
from dgl_dmns.evaluate.files import read, write
from dgl_dmns.evaluate.ranking import (
    Score,
    candidate_ranking,
    check_ids,
    check_shape,
    ranking_metrics,
    ranks,
)

__all__ = ["FixedNegatives", "Model", "fixed_negatives"]

Model = Union[Tensor, tuple[Tensor, Tensor], Callable[[Tensor, Tensor], Tensor]]
"""Embeddings, embeddings of sources and of destinations, or scores of node ids."""

_ROUNDS = 8  # in which a sampler may replace known edges among its draws


@dataclass(frozen=True, eq=False)
class FixedNegatives:
    """Held-out pairs, and negatives of known hardness for each; made by `fixed_negatives`.

    Attributes:
        queries: int64 [P], source nodes.
        positives: int64 [P], their held-out neighbours.
        negatives: int64 [P, L, n], destination nodes, none of them the pair's positive.
        levels: L names, in the order of ``negatives``: ``"0.1T"`` is the level at a tenth of the
            diffusion steps, ``"uniform"`` uniform nodes.
        seed: that they were drawn with.
        fingerprint: of the training graph's edges (`KnownEdges.fingerprint`).
        num_nodes: number of source and of destination nodes.
        etype: canonical edge type.

    Raises:
        ValueError: if a shape does not fit, or an id is out of range.
        TypeError: if ids are not integers.
    """

    queries: Tensor
    positives: Tensor
    negatives: Tensor
    levels: tuple[str, ...]
    seed: int
    fingerprint: str
    num_nodes: tuple[int, int]
    etype: EdgeType

    def __post_init__(self) -> None:
        check_shape("queries", self.queries, (None,), "[P]")
        pairs, levels = len(self.queries), len(self.levels)
        check_shape("positives", self.positives, (pairs,))
        shape = (pairs, max(1, levels), None)
        check_shape("negatives", self.negatives, shape, f"[{pairs}, {levels}, n]", least=1)
        check_ids("queries", self.queries, self.num_nodes[0])
        check_ids("positives", self.positives, self.num_nodes[1])
        check_ids("negatives", self.negatives, self.num_nodes[1])

    @torch.no_grad()
    def evaluate(
        self,
        model: Model,
        score: Score | None = None,
        *,
        hits: Sequence[int] = (1, 10, 50),
        batch: int = 1024,
    ) -> dict[str, dict[str, float]]:
        """Rank each positive among its negatives, a level at a time.

        Args:
            model: embeddings, float [N, D]; or, for two node types, those of the sources and of the
                destinations as a tuple; or a function of queries, int64 [b], and candidates, int64
                [b, 1 + n], both on the CPU, that returns scores [b, 1 + n].
            score: with embeddings, maps h_q [b, 1, D] and h_c [b, 1 + n, D] to scores [b, 1 + n];
                None: dot product.
            hits: the n of Hits@n.
            batch: b, pairs scored at once.

        Returns:
            The metrics of `ranking_metrics` by level.

        Raises:
            ValueError: if embeddings are not those of the graph, there is no pair, a score is NaN
                or of another shape, or ``batch`` is below 1.
        """
        batch = as_integer("batch", batch, 1)
        rank_of = self._ranking(model, score)
        result = {}
        for level, name in enumerate(self.levels):
            every = torch.cat([self.positives.unsqueeze(1), self.negatives[:, level]], dim=1)
            parts = zip(self.queries.split(batch), every.split(batch))
            rank = torch.cat([rank_of(query, candidates) for query, candidates in parts])
            result[name] = ranking_metrics(rank, hits)
        return result

    def _ranking(self, model: Model, score: Score | None) -> Callable[[Tensor, Tensor], Tensor]:
        """A function from queries [b] and candidates [b, 1 + n] to the ranks of column 0."""
        if not isinstance(model, (Tensor, tuple)):

            def rank_by(query: Tensor, candidates: Tensor) -> Tensor:
                values = model(query, candidates)
                check_shape("model", values, candidates.shape)
                return ranks(values[:, 0], values[:, 1:])

            return rank_by
        ends = model if isinstance(model, tuple) else (model, model)
        for h, count, end in zip(ends, self.num_nodes, ("source", "destination")):
            if h.dim() != 2 or len(h) != count:
                raise ValueError(
                    f"model: expected embeddings [{count}, D] of the {end} nodes, got "
                    f"{list(h.shape)}; pass those of the graph that the negatives were drawn on (a "
                    "tuple for two node types)"
                )
        if isinstance(model, Tensor):
            return lambda query, candidates: candidate_ranking(model, query, candidates, score)
        every, offset = torch.cat(ends), len(ends[0])  # the destinations behind the sources
        return lambda query, candidates: candidate_ranking(every, query, candidates + offset, score)

    def check_graph(self, src: Tensor, dst: Tensor) -> None:
        """Refuse a training graph other than the one that these negatives were drawn on.

        Args:
            src: source ids of its edges, integer [E], in any order.
            dst: destination ids of its edges, integer [E].

        Raises:
            ValueError: if the edges differ.
        """
        own = KnownEdges(src.cpu(), dst.cpu(), *self.num_nodes).fingerprint()
        if own != self.fingerprint:
            raise ValueError(
                f"graph: expected fingerprint {self.fingerprint}, got {own}: these negatives were "
                "drawn on another training graph, whose held-out edges may be known here; draw "
                "them anew with fixed_negatives, or use the same split"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file: ``.npz``, or ``.parquet`` where pyarrow is installed.

        A file of that name is replaced, and only once the new one is complete.

        Raises:
            ValueError: for another suffix.
            ImportError: for Parquet without pyarrow.
        """
        write(Path(path), vars(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FixedNegatives:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is another kind of file, truncated, or does not fit together.
            ImportError: for Parquet without pyarrow.
        """
        return read(Path(path), cls)

    def __repr__(self) -> str:
        pairs, levels, n = self.negatives.shape
        return (
            f"{type(self).__name__}(pairs={pairs}, levels={levels}, n={n}, seed={self.seed}, "
            f"fingerprint={self.fingerprint!r})"
        )


@torch.no_grad()
@in_float32
@shielded
def fixed_negatives(
    sampler: Looked,
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
    and where both ends have one node type, the reverses of the latter two; nor what is no candidate
    of the sampler.

    Args:
        sampler: a sampler of this package; refreshed, if it follows an encoder.
        pairs: int64 [2, P], held-out (query, positive) columns.
        n: negatives per pair and level.
        known: int64 [2, E], further true edges, for example those of validation.
        etype: edge type; may be left out where the sampler holds one.
        embeddings: as in `DMNSSampler.refresh`; defaults to those of the sampler's encoder, if it
            has one.
        seed: of all draws.

    Returns:
        The pairs with their negatives; the same for the same arguments and state of the sampler,
        which is left as it was.

    Raises:
        ValueError: if a shape does not fit, an id is out of range, ``n`` is below 1, the edge type
            has to be named, or a query has no admissible node.
        TypeError: if ids are not integers, or for a sampler of another package.
        RuntimeError: if the sampler has not been refreshed, or is a copy, which has no encoder.
    """
    n = as_integer("n", n, 1, "negatives per pair and level")
    seed = fit_seed(as_integer("seed", seed))
    look = look_at(sampler, etype, embeddings)
    training = look.known
    query, positive = _checked_pairs("pairs", pairs, training)
    barred = _all_known(training, torch.stack([query, positive]), known)
    full = barred.saturated()
    full = full[torch.isin(full, query)]
    if full.numel():
        raise ValueError(
            f"pairs: {full.numel()} queries, for example {int(full[0])}, are joined to every node, "
            "so that they have no negatives; leave them out"
        )
    generator = torch.Generator().manual_seed(seed)
    levels: dict[str, Tensor] = {}
    if look.diffusion is not None:
        own = draw_by_level(*look.diffusion, barred, query, n, lam=look.lam, generator=generator)
        levels = dict(zip(look.levels, own.unbind(1)))
    elif not look.uniform:
        levels[look.name] = _own_draws(look, query, positive, n, barred, generator)
    levels["uniform"] = barred.uniform(query, n, generator=generator)
    return FixedNegatives(
        queries=query,
        positives=positive,
        negatives=torch.stack(list(levels.values()), dim=1),
        levels=tuple(levels),
        seed=seed,
        fingerprint=training.fingerprint(),
        num_nodes=(training.num_src, training.num_dst),
        etype=look.etype,
    )


def _checked_pairs(name: str, pairs: Tensor, known: KnownEdges) -> tuple[Tensor, Tensor]:
    check_shape(name, pairs, (2, None), "[2, P]")
    src, dst = pairs.cpu().unbind(0)
    check_ids(f"{name}[0]", src, known.num_src)
    check_ids(f"{name}[1]", dst, known.num_dst)
    return src.long(), dst.long()


def _all_known(training: KnownEdges, pairs: Tensor, known: Tensor | None) -> KnownEdges:
    """Training edges, held-out pairs and further known ones, the latter two in both directions."""
    parts = [pairs]
    if known is not None:
        parts.append(torch.stack(_checked_pairs("known", known, training)))
    own = training.exclude_self
    if own:
        parts += [part.flip(0) for part in parts]
    src = torch.repeat_interleave(torch.arange(training.num_src), training.degrees())
    parts.append(torch.stack([src, training.indices.long()]))
    src, dst = torch.cat(parts, dim=1).unbind(0)
    every = KnownEdges(src, dst, training.num_src, training.num_dst, exclude_self=own)
    return restricted(every, training.candidates)


def _own_draws(
    look: Look,
    query: Tensor,
    positive: Tensor,
    n: int,
    barred: KnownEdges,
    generator: torch.Generator,
) -> Tensor:
    """What a sampler gives to training, [P, n]; draws that are barred are drawn again.

    They come from torch's global generator, which is set here for a while. What is still barred
    after some rounds becomes uniform.
    """
    draw_k = look.draw()

    def draw() -> Tensor:
        parts: list[Tensor] = []
        while sum(part.shape[1] for part in parts) < n:
            parts.append(draw_k(query, positive))
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
