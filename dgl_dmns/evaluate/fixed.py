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
from dgl_dmns.core import KnownEdges
from dgl_dmns.evaluate.checks import Score, check_ids, check_shape, check_tensors
from dgl_dmns.evaluate.ranking import candidate_ranking, ranking_metrics, ranks

__all__ = ["FixedNegatives", "Model", "graph_fingerprint"]

Model = Union[Tensor, tuple[Tensor, Tensor], Callable[[Tensor, Tensor], Tensor]]
"""Embeddings, embeddings of sources and of destinations, or scores of node ids."""


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
        fingerprint: of the training graph's edges (`graph_fingerprint`).
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
    etype: tuple[str, str, str]

    def __post_init__(self) -> None:
        check_tensors(queries=self.queries, positives=self.positives, negatives=self.negatives)
        pairs, level_count = len(self.queries), len(self.levels)
        check_shape("queries", self.queries, "[P]", self.queries.dim() == 1)
        check_shape("positives", self.positives, f"[{pairs}]", self.positives.shape == (pairs,))
        shape = tuple(self.negatives.shape)
        fits = len(shape) == 3 and shape[:2] == (pairs, level_count) and shape[2] > 0
        fits = fits and level_count > 0
        check_shape("negatives", self.negatives, f"[{pairs}, {level_count}, n]", fits)
        check_ids("queries", self.queries, self.num_nodes[0])
        check_ids("positives", self.positives, self.num_nodes[1])
        check_ids("negatives", self.negatives, self.num_nodes[1])

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
        batch = as_integer("batch", batch)
        if batch < 1:
            raise ValueError(f"batch: expected at least 1, got {batch}; raise it")
        offset, scorer = 0, None
        if isinstance(model, tuple):
            self._check_embeddings(*model)
            h = torch.cat(model)  # the destinations behind the sources
            offset = self.num_nodes[0]
        elif isinstance(model, Tensor):
            self._check_embeddings(model, model)
            h = model
        else:
            scorer = model
        result = {}
        for level, name in enumerate(self.levels):
            parts = []
            for part in torch.arange(len(self.queries)).split(batch):
                query = self.queries[part]
                candidates = torch.cat(
                    [self.positives[part].unsqueeze(1), self.negatives[part, level]], dim=1
                )
                if scorer is None:
                    parts.append(candidate_ranking(h, query, candidates + offset, score))
                else:
                    parts.append(_rank_by(scorer, query, candidates))
            rank = torch.cat(parts) if parts else torch.empty(0)
            result[name] = ranking_metrics(rank, hits)
        return result

    def _check_embeddings(self, *model: Tensor) -> None:
        for h, count, end in zip(model, self.num_nodes, ("source", "destination")):
            if h.dim() != 2 or len(h) != count:
                raise ValueError(
                    f"model: expected embeddings [{count}, D] of the {end} nodes, got "
                    f"{list(h.shape)}; pass those of the graph that the negatives were drawn on (a "
                    "tuple for two node types)"
                )

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
        """Write a file: ``.npz``, or ``.parquet`` where pandas finds an engine for it.

        A file of that name is replaced, and only once the new one is complete.

        Raises:
            ValueError: for another suffix.
            ImportError: for Parquet without an engine.
        """
        from dgl_dmns.evaluate.files import write

        write(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FixedNegatives:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is another kind of file, truncated, or does not fit together.
            ImportError: for Parquet without an engine.
        """
        from dgl_dmns.evaluate.files import read

        return read(Path(path), cls)

    def __repr__(self) -> str:
        pairs, levels, n = self.negatives.shape
        return (
            f"{type(self).__name__}(pairs={pairs}, levels={levels}, n={n}, seed={self.seed}, "
            f"fingerprint={self.fingerprint!r})"
        )


def graph_fingerprint(known: KnownEdges) -> str:
    """A short name of a set of edges, see `KnownEdges.fingerprint`.

    Args:
        known: the edges.
    """
    return known.fingerprint()


@torch.no_grad()
def _rank_by(
    scorer: Callable[[Tensor, Tensor], Tensor], query: Tensor, candidates: Tensor
) -> Tensor:
    values = scorer(query, candidates)
    check_shape("model", values, str(list(candidates.shape)), values.shape == candidates.shape)
    return ranks(values[:, 0], values[:, 1:])
