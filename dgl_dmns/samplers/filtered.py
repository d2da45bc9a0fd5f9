"""Uniform negatives, and the base of the samplers that know edges and follow no encoder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dgl_dmns.core import (
    EdgeName,
    EdgeType,
    Embeddings,
    FilteredDraws,
    KnownEdges,
    Look,
    Snapshot,
    canonical_edge_type,
    shielded,
)
from dgl_dmns.samplers.base import NegativeSampler
from dgl_dmns.samplers.candidates import Allowed, candidates_by_type
from dgl_dmns.samplers.embedder import check_embeddings
from dgl_dmns.samplers.graphs import (
    GraphIdentity,
    Pair,
    check_has_edges,
    known_edges,
    shared_memory_for,
)
from dgl_dmns.samplers.settings import checked_device
from dgl_dmns.samplers.shares import Share

__all__ = ["FilteredSampler", "UniformSampler"]


class FilteredSampler(NegativeSampler):
    """Base of the samplers that know the edges of a graph and follow no encoder.

    The known edges of every edge type are read once, at construction, into shared memory. A graph
    may have several node and edge types; self pairs are barred where both ends have one type. Of a
    `dgl.distributed.DistGraph` with several partitions `UniformSampler` reads those of its trainer
    alone, see `dgl_dmns.samplers.shares`; the others read all.

    Args:
        g: the training graph, of any number of types; its edges are the known positives.
        k: negatives per edge.
        candidates: ids of the destinations that may be drawn at all, int64 [C]; a dict of such by
            edge type or destination node type where there are several. Defaults to all nodes.

    Raises:
        ValueError, TypeError: for a graph without edges, no graph, or what are no ``candidates``;
            and as `NegativeSampler`.
    """

    uniform: ClassVar[bool] = False  # whether all negatives are
    shares: ClassVar[bool] = False  # whether a share of the sources is enough

    @shielded
    def __init__(self, g: Any, k: int = 1, *, candidates: Allowed | None = None) -> None:
        super().__init__(k)
        check_has_edges(g)
        some = candidates_by_type(candidates, g, g.canonical_etypes)
        types = [etype for etype in g.canonical_etypes if self.shares and g.num_edges(etype)]
        found = {etype: Share.of(g, etype, any_source=False) for etype in types}
        self._shares = {etype: one for etype, one in found.items() if one is not None}
        self._g = g if self._shares else None  # whose servers are asked
        with shared_memory_for(g.canonical_etypes):
            self._known = {
                etype: self._shares[etype].known_edges(g, None)
                if etype in self._shares
                else known_edges(g, etype, candidates=some.get(etype))
                for etype in g.canonical_etypes
            }
        self._identity = GraphIdentity(type(self).__name__, g, g.canonical_etypes)

    @shielded
    def look(  # noqa: D102
        self, etype: EdgeName | None = None, embeddings: Embeddings | None = None
    ) -> Look:
        held = canonical_edge_type(etype, list(self._known), "etype")
        if held in self._shares:
            self._shares[held].refuse("look")
        known, snapshot = self._known[held], None
        if embeddings is not None:
            h = check_embeddings(embeddings, {held[0]: known.num_src, held[2]: known.num_dst})
            snapshot = Snapshot(h[held[0]], h[held[2]], known, None, None)
        return Look(
            name=type(self).__name__,
            etype=held,
            known=known,
            version=0,
            snapshot=snapshot,
            rows=None,
            uniform=self.uniform,
            lam=1.0,
            behind=(None, None, None),
            chains=False,
            draw=lambda: self._drawing(held),
        )

    def known_of(self, g: Any, etype: EdgeType) -> KnownEdges:
        """The known edges of a type, if the graph has the types and nodes that it was made with."""
        known = self._known.get(etype)
        if known is None:
            raise ValueError(
                f"g: the sampler was made for edge types {list(self._known)}, got {etype}; make a "
                "new sampler for another graph"
            )
        counts = (int(g.num_nodes(etype[0])), int(g.num_nodes(etype[2])))
        own = known.num_src, known.num_dst
        if etype in self._shares:
            own = self._shares[etype].counts
        if counts != own:
            raise ValueError(
                f"g: the sampler was made for {own[0]} source and {own[1]} "
                f"destination nodes of {etype}, the graph has {counts[0]} and {counts[1]}; make a "
                "new sampler for another graph"
            )
        return known

    def known_of_batch(  # noqa: D102
        self, etype: EdgeType, src: Tensor, nodes: Tensor
    ) -> tuple[KnownEdges, Tensor]:
        if etype not in self._shares:
            return super().known_of_batch(etype, src, nodes)
        return self._shares[etype].batch(self._g, self._known[etype], src, nodes)

    def check_identity(self, g: Any, etype: EdgeType, pairs: Pair | None) -> None:  # noqa: D102
        if etype not in self._shares:
            super().check_identity(g, etype, pairs)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_g": None}


class UniformSampler(FilteredSampler):
    """Draws destinations uniformly, except for known neighbours of the source and itself.

    `dgl.dataloading.negative_sampler.Uniform` keeps the source as well but filters nothing;
    ``GlobalUniform`` filters, but replaces the source and may return fewer than ``k``. Draws are
    independent, so a destination may repeat. A node that is linked to all others has no true
    negative: the sampler warns of it at construction and returns the node itself.

    Args:
        g: as for `FilteredSampler`, like ``k`` and ``candidates``, and the errors.
        k: negatives per edge.
        candidates: ids of the destinations that may be drawn.
        device: where calls with edge ids on that device draw, as `Resources` has it.

    Examples:
        >>> import dgl, torch
        >>> g = dgl.graph(([0, 1, 2], [1, 2, 0]))
        >>> UniformSampler(g, k=2)(g, torch.tensor([0, 1]))
        (tensor([0, 0, 1, 1]), tensor([2, 2, 0, 0]))
    """

    uniform = True
    shares = True

    def __init__(
        self,
        g: Any,
        k: int = 1,
        *,
        candidates: Allowed | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(g, k, candidates=candidates)
        self.device = checked_device(device, bool(self._shares))

    def negatives(self, g: Any, src: Tensor, etype: EdgeType) -> Tensor:  # noqa: D102
        known = self.known_of(g, etype).on(src.device)
        generator = self._call_generator(src.device)

        def of_rows(row: Tensor, _: Tensor | None) -> Tensor:
            return known.uniform(row, self.k, generator=generator)

        if etype not in self._shares:
            return of_rows(src, None)
        return self._shares[etype].negatives(g, src, None, self.k, of_rows, generator)

    def _draws(self, etype: EdgeType, dst: Tensor) -> FilteredDraws:
        return FilteredDraws(self._known[etype])
