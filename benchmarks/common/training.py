"""What the trainings of the benchmarks have in common: data, DGL's loader, ratios, convergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import dgl
import torch
from dgl.dataloading import DataLoader, as_edge_prediction_sampler
from torch import Tensor

from benchmarks.common.rows import Row
from dgl_dmns.core import KnownEdges
from dgl_dmns.data import GraphData, embedded_graph, load_dataset
from dgl_dmns.losses import shared_softmax_loss

__all__ = ["EveryNode", "benchmark_data", "converged", "edge_loader", "log_ratios", "reverse_ids"]

_TINY_NODES = 120

Kept = TypeVar("Kept")


@lru_cache(maxsize=1)
def benchmark_data(dataset: str, folder: str | None) -> GraphData:
    """A data set, kept for the cells that one process runs in a row.

    ``tiny`` is a small generated graph for tests; the other names are those of
    `dgl_dmns.data.load_dataset`. ``folder`` is DGL's cache, by default its own.
    """
    if dataset == "tiny":
        return embedded_graph(_TINY_NODES, words=64)
    return load_dataset(dataset, folder)


def reverse_ids(src: Tensor, dst: Tensor, num_nodes: int) -> Tensor:
    """The id of the reverse of each edge, int64 [E], of edges that are ordered by (src, dst)."""
    # Ordered by (dst, src), the i-th is the reverse of edge i.
    return torch.argsort(dst * num_nodes + src)


def edge_loader(
    graph: Any,
    eids: Tensor,
    neighbours: Any,
    reverse: Tensor,
    negatives: Any,
    batch_size: int,
    **options: Any,
) -> Any:
    """DGL's usual loader for link prediction: an edge and its reverse carry no messages.

    ``graph`` is what messages run on, ``eids`` [E'] the edges to predict, ``reverse`` [E] the id of
    each edge's reverse; ``options`` are further ones of DGL's loader.
    """
    sampler = as_edge_prediction_sampler(
        neighbours, exclude="reverse_id", reverse_eids=reverse, negative_sampler=negatives
    )
    return DataLoader(graph, eids, sampler, batch_size=batch_size, **options)


class EveryNode:
    """All nodes as negatives, once a batch, beside the source of its first edge: full softmax.

    Args:
        graph: the training graph; its edges are the known positives.
        *_: what the other samplers take.
        etypes: the predicted edge type, where there are several.
        **__: what the other samplers take.
    """

    def __init__(self, graph: Any, *_: Any, etypes: Any = None, **__: Any) -> None:
        (self.etype,) = map(graph.to_canonical_etype, etypes or graph.etypes)
        source, destination = self.etype[::2]
        src, dst = graph.edges(etype=self.etype)
        sources, nodes = graph.num_nodes(source), graph.num_nodes(destination)
        self.known = KnownEdges(src, dst, sources, nodes, exclude_self=source == destination)

    def __call__(self, g: Any, eids: Any) -> Any:
        several = isinstance(eids, Mapping)
        given = next(iter(eids.values())) if several else eids
        src, _ = g.find_edges(given[:1], etype=self.etype)
        destination = self.etype[2]
        pairs = src.repeat(g.num_nodes(destination)), g.nodes(destination)
        return {self.etype: pairs} if several else pairs

    def loss(
        self, h: Any, pos_graph: Any, neg_graph: Any, *, filtered: bool = True, **options: Any
    ) -> Tensor:
        """The loss of a batch, for every positive the sum over all nodes, known ones or not.

        Further options are those of `shared_softmax_loss`.
        """
        source, destination = self.etype[::2]
        src, dst = pos_graph.edges(etype=self.etype)
        ids = [pos_graph.nodes[ntype].data[dgl.NID] for ntype in (source, destination)]
        return shared_softmax_loss(
            h if isinstance(h, Tensor) else (h[source], h[destination]),
            src,
            dst,
            neg_graph.edges(etype=self.etype)[1],
            num_nodes=self.known.num_dst,
            known=self.known if filtered else None,
            ids=(ids[0], ids[1]),
            **options,
        )


def log_ratios(row: Row, sampler: Any, positives: Any, negatives: Any, k: int) -> dict[str, Tensor]:
    """What a row's loss takes off the logits, as arguments of `dgl_dmns.losses`.

    Positives and negatives are graphs or pairs; positives are None where the loss has them as they
    are.
    """
    ratios: dict[str, Tensor] = {}
    if row.loss in ("calibrated", "negatives calibrated"):
        ratios["log_ratio"] = sampler.log_ratio(negatives).view(-1, k)
    if row.loss == "calibrated" and positives is not None:
        ratios["pos_log_ratio"] = sampler.positive_log_ratio(positives)
    return ratios


def converged(
    epochs: int,
    patience: int,
    epoch: Callable[[], object],
    validate: Callable[[], float],
    keep: Callable[[], Kept],
) -> tuple[list[float], int, Kept]:
    """Train until the validation figure has not risen for ``patience`` epochs.

    Args:
        epochs: at most this many.
        patience: see above.
        epoch: trains for one epoch.
        validate: the figure after it.
        keep: what of the best epoch is needed later, such as weights.

    Returns:
        The figure of each epoch, the number of the best epoch, and what was kept of it.
    """
    curve: list[float] = []
    best, best_epoch, kept = -math.inf, -1, keep()
    while len(curve) < epochs:
        epoch()
        curve.append(validate())
        if curve[-1] > best:
            best, best_epoch, kept = curve[-1], len(curve) - 1, keep()
        elif len(curve) - 1 - best_epoch >= patience:
            break
    return curve, best_epoch, kept
