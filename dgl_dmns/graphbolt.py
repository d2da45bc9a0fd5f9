"""The samplers as stages of a GraphBolt pipeline.

    datapipe = gb.ItemSampler(item_set, batch_size=1024, shuffle=True)
    datapipe = datapipe.sample_dmns_negative(sampler)  # in place of sample_uniform_negative
    datapipe = datapipe.sample_neighbor(graph, fanouts)

Only importing this module imports GraphBolt and registers the two stages' functional names.

GraphBolt has had two protocols, and a stage answers in the one it is asked in, by what it is
handed (never by DGL's version), for B positive edges and K negatives each:

* ``node_pairs`` (DGL 2.1): ``negative_dsts`` of shape [B, K]; ``negative_srcs`` is None, the
  sources being those of the positives.
* ``seeds`` (optional in DGL 2.1, the only one later): ``seeds`` of shape [B + B K, 2], positives
  first; ``labels``, bool where the flag of DGL 2.1 comes along and float32 otherwise;
  ``indexes``, int64, which tell the positive that an edge belongs to.

What reads the negatives in workers and prefetch threads is the candidate table in shared memory, so
a refresh reaches them, and their next batches, though GraphBolt keeps its workers for the whole
training. Batches that were prefetched before it stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import functional_datapipe

from dgl_dmns._compat import require_graphbolt
from dgl_dmns.checks import as_integer, check_ids
from dgl_dmns.core import shielded
from dgl_dmns.samplers.base import NegativeSampler
from dgl_dmns.samplers.dmns import DMNSSampler
from dgl_dmns.samplers.filtered import FilteredSampler
from dgl_dmns.samplers.graphs import KnownGraph
from dgl_dmns.samplers.minibatch import edge_type_of_key
from dgl_dmns.samplers.refreshing import RefreshingSampler

_Base: Any = require_graphbolt().NegativeSampler

__all__ = ["DMNSNegativeSampler", "GraphBoltNegativeSampler"]


@functional_datapipe("sample_negative_with")
class GraphBoltNegativeSampler(_Base):  # type: ignore[misc]
    """A stage that draws negatives with any sampler of this package.

    Functional name: ``sample_negative_with``. The sampler is made on the training graph as a DGL
    graph, whose node ids (by type) have to be those of the item set; refresh it outside of the
    pipeline, by ``sampler.attach(optimizer)`` or ``sampler.refresh()``. Log ratios of a minibatch:
    ``sampler.log_ratio(minibatch)``.

    Args:
        datapipe: the stage before, whose minibatches have ``node_pairs`` or ``seeds`` of positive
            edges; dicts of those by ``"source:relation:destination"`` for several edge types.
        sampler: a sampler of this package.
        negative_ratio: negatives per edge, the sampler's own ``k``; may be left out.

    Raises:
        TypeError: if ``sampler`` is not one of this package that knows its edges.
        ValueError: if ``negative_ratio`` is not ``k``, or ``k`` differs between edge types.
    """

    def __init__(
        self, datapipe: Any, sampler: NegativeSampler, negative_ratio: int | None = None
    ) -> None:
        super().__init__(datapipe, _check_ratio(sampler, negative_ratio))
        self.sampler = sampler
        self._graph = KnownGraph(sampler.known_by_type)

    def _sample_with_etype(
        self, pairs: Any, etype: str | None = None, use_seeds: bool | None = None
    ) -> tuple[Any, ...]:
        if not isinstance(pairs, Tensor):
            src, dst = pairs
            return None, self._negatives(src, dst, etype).flatten()
        if pairs.dim() != 2 or pairs.shape[1] != 2:
            raise ValueError(
                f"seeds: expected pairs of nodes, shape [B, 2], got {tuple(pairs.shape)}; negatives"
                " belong to edges"
            )
        src, dst = pairs.unbind(1)
        chosen = self._negatives(src, dst, etype)
        ratio, positive = chosen.shape[1], torch.arange(len(pairs), device=pairs.device)
        negative = torch.stack([src.repeat_interleave(ratio), chosen.flatten()], dim=1)
        seeds = torch.cat([pairs, negative])
        # The protocol that passes a flag has boolean labels, the one without has numbers.
        dtype = torch.float32 if use_seeds is None else torch.bool
        labels = torch.zeros(len(seeds), dtype=dtype, device=pairs.device)
        labels[: len(pairs)] = 1
        return seeds, labels, torch.cat([positive, positive.repeat_interleave(ratio)])

    @shielded
    def _negatives(self, src: Tensor, dst: Tensor, key: str | None) -> Tensor:
        """Negatives [B, K] of positive edges, of the dtype and on the device of ``src``."""
        held = self._graph.canonical_etypes
        if key is None and len(held) > 1:
            raise ValueError(
                f"seeds: the sampler holds edge types {held}, got pairs without one; use an "
                'item set by edge type, with keys such as "source:relation:destination"'
            )
        etype = held[0] if key is None else edge_type_of_key(key, held, "seeds")
        advice = "make the sampler on the graph that the item set was made from"
        for ids, ntype in ((src, etype[0]), (dst, etype[2])):
            count, what = self._graph.num_nodes(ntype), f"ids of nodes of type {ntype!r}"
            check_ids("seeds", ids, count, what, advice=advice)
        ends = src.to("cpu", torch.int64), dst.to("cpu", torch.int64)
        self.sampler.check_identity(self._graph, etype, ends)
        chosen = self.sampler.negatives_for_edges(self._graph, *ends, etype)
        return chosen.to(src.device, src.dtype)


@functional_datapipe("sample_dmns_negative")
class DMNSNegativeSampler(GraphBoltNegativeSampler):
    """A stage that draws negatives with a `DMNSSampler`.

    Functional name: ``sample_dmns_negative``. For everything else, see `GraphBoltNegativeSampler`.

    Raises:
        TypeError: if ``sampler`` is another one.
        ValueError: if ``negative_ratio`` is not ``k``, or ``k`` differs between edge types.
    """

    def __init__(
        self, datapipe: Any, sampler: DMNSSampler, negative_ratio: int | None = None
    ) -> None:
        if not isinstance(sampler, DMNSSampler):
            raise TypeError(
                f"sampler: expected a DMNSSampler, got {type(sampler).__name__}; use "
                "GraphBoltNegativeSampler for the other samplers"
            )
        super().__init__(datapipe, sampler, negative_ratio)


def _check_ratio(sampler: Any, negative_ratio: int | None) -> int:
    if not isinstance(sampler, (FilteredSampler, RefreshingSampler)):
        raise TypeError(
            "sampler: expected a sampler of dgl_dmns, such as DMNSSampler(g, encoder, k=5), got "
            f"{type(sampler).__name__}; for DGL's uniform one use gb.UniformNegativeSampler"
        )
    numbers: set[int] = {sampler.k}
    if isinstance(sampler, RefreshingSampler):
        if sampler.source != "edge":
            raise ValueError(
                f"sampler: GraphBolt's negatives keep the sources of their positives, got "
                f"source={sampler.source!r}; make the sampler with source='edge'"
            )
        numbers = {relation.k for relation in sampler.relations.values()}
    if len(numbers) > 1:
        raise ValueError(
            f"sampler: GraphBolt takes one number of negatives per edge for all edge types, got k "
            f"of {sorted(numbers)}; make the sampler with one k"
        )
    if negative_ratio is not None and {as_integer("negative_ratio", negative_ratio)} != numbers:
        raise ValueError(
            f"negative_ratio: expected the sampler's k = {sampler.k}, got {negative_ratio}; leave "
            "it out, or make the sampler with that k"
        )
    return numbers.pop()
