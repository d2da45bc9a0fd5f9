"""The contract of a DGL negative sampler, once, for all samplers of this package.

DGL calls ``sampler(g, eids)`` with edge ids and expects sources and destinations. Ours return
exactly ``k`` negatives per edge, grouped as ``src.repeat_interleave(k)`` (negative ``i`` belongs to
edge ``i // k``), with the id type of the graph, on the device of the edge ids.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dgl_dmns._compat import require_dgl
from dgl_dmns.checks import check_ids, check_object
from dgl_dmns.core import (
    CPU,
    Draw,
    EdgeName,
    EdgeType,
    FilteredDraws,
    KnownEdges,
    Look,
    Scorer,
    canonical_edge_type,
    generator_on,
    shielded,
)
from dgl_dmns.samplers.batchloss import loss_of_batch
from dgl_dmns.samplers.callables import Scorers
from dgl_dmns.samplers.graphs import GraphIdentity, KnownGraph, Pair, check_graph, ends_of
from dgl_dmns.samplers.settings import check_k
from dgl_dmns.samplers.streams import Stream
from dgl_dmns.shared_softmax import Comparison

if TYPE_CHECKING:
    import pandas as pd

    from dgl_dmns.core import Embeddings

_Base: Any = require_dgl().dataloading.negative_sampler._BaseNegativeSampler
_EDGES_OR_NODES = "a negative sampler takes edge ids, use for_queries() for node ids"

__all__ = ["NegativeSampler"]


class NegativeSampler(_Base):  # type: ignore[misc]
    """Base of all samplers here: k negatives for the source of every edge.

    A subclass implements `negatives` and, for a loader that trains on `loss`, `_draws`. Ids handed
    to the sampler itself are always taken as edge ids; `for_queries` takes query nodes.

    Args:
        k: negatives per edge.
        generator: source of draws in the main process; defaults to torch's global one (on ranks
            above 0, one seeded by it and the rank). Each loader worker has a seeded one.

    Raises:
        TypeError, ValueError: if ``k`` is no integer of at least 1.
    """

    device: torch.device = CPU  # where negatives are looked up for ids there

    def __init__(self, k: int, generator: torch.Generator | None = None) -> None:
        self.k = check_k(k)
        if generator is not None:
            check_object("generator", generator, torch.Generator, "torch.Generator()")
        self._generator = generator
        self._stream = Stream()
        self._identity = GraphIdentity(type(self).__name__)
        self._known: dict[EdgeType, KnownEdges] = {}  # replaced as a whole: copies share it

    # ---- what a subclass answers for --------------------------------------------------------

    @property
    def known_by_type(self) -> dict[EdgeType, KnownEdges]:
        """The known edges of every edge type that is held."""
        return self._known

    def negatives(self, g: Any, src: Tensor, etype: EdgeType) -> Tensor:
        """Negatives for source nodes.

        Args:
            g: the graph.
            src: source ids, shape [B], int64, on the CPU.
            etype: canonical edge type.

        Returns:
            Destination ids, shape [B, k], int64.
        """
        raise NotImplementedError

    def negatives_for_edges(self, g: Any, src: Tensor, dst: Tensor, etype: EdgeType) -> Tensor:
        """Negatives for edges with destinations ``dst`` [B]; what a call of the sampler asks for.

        By default only the source counts, see `negatives`. A sampler that needs the whole batch of
        positives overrides this one too.
        """
        return self.negatives(g, src, etype)

    def look(self, etype: EdgeName | None = None, embeddings: Embeddings | None = None) -> Look:
        """What the sampler holds now for an edge type, for whoever looks at its negatives.

        Args:
            etype: edge type; may be left out where the sampler holds one.
            embeddings: shape [N, D], or a dict of those by node type, to score negatives with;
                defaults to those of the sampler's encoder, if it has one.

        Raises:
            ValueError: if the edge type has to be named, or embeddings do not fit.
            RuntimeError: before the first refresh.
        """
        raise NotImplementedError

    def _draws(self, etype: EdgeType, dst: Tensor) -> FilteredDraws:
        """What the queries of a batch draw from, by its edge type and its destinations [B].

        Its known edges are those of `known_of_batch`.
        """
        raise ValueError(
            f"loss: {type(self).__name__} has no distribution of its negatives that this loss can "
            "correct for; take UniformSampler, or DMNSSampler with Blend(), Gate() or Density(), "
            "or dgl_dmns.losses.softmax_loss(pos, neg) for each positive with its own"
        )

    def chosen(self, etype: EdgeType, places: Tensor) -> Tensor | None:
        """Which negatives of edges were chosen for them, by what they are, and not at random.

        `loss` compares these with their own positives alone.

        Args:
            etype: canonical edge type.
            places: of the edges in the call that drew their negatives, shape [B], int64.

        Returns:
            Booleans, shape [B, K]; None for a sampler whose negatives are all random.
        """
        return None

    def known_of_batch(
        self, etype: EdgeType, src: Tensor, nodes: Tensor
    ) -> tuple[KnownEdges, Tensor]:
        """Known edges that hold the queries of a batch, and the rows of these in them.

        Args:
            etype: canonical edge type.
            src: ids of the queries, shape [B], int64.
            nodes: ids of destinations that are looked up, of any shape; edges to others may be
                missing.

        Returns:
            Known edges, and what they number the queries by, shape [B], int64.
        """
        return self.known_by_type[etype].on(src.device), src

    def batch_log_ratio(
        self,
        etype: EdgeType,
        src: Tensor,
        dst: Tensor,
        candidates: Tensor,
        share: Comparison = "batch",
    ) -> Tensor:
        """Log ratio to uniform draws of what the queries of a batch draw, for `loss`.

        It is that of all of them together, ``log rbar(u) = log(1 / B sum_j N q(u|v_j))`` with the N
        of the known edges' ``num_candidates``, over the batch's own queries, each as often as it
        stands there, known edges at 0. An unbiased estimate of ``1 / rbar(u)`` will do, and should
        not exceed a bound. With ``share="edge"`` it is ``log(N q(u|v))`` of a query's own draws.

        Args:
            etype: canonical edge type.
            src: ids of the positives' sources, the queries, shape [B], int64, on the CPU.
            dst: ids of their destinations, shape [B], int64.
            candidates: ids of what each of them has drawn, shape [B, K], int64.
            share: ``"batch"`` or ``"edge"``.

        Returns:
            Natural log ratios, shape [B, K], floating point; inf for a candidate that is to count
            nothing, -inf for one that cannot be drawn.

        Raises:
            ValueError: for a sampler whose draws have no tractable distribution.
        """
        known, row = self.known_of_batch(etype, src, candidates)
        draws = replace(self._draws(etype, dst), known=known)
        if share == "edge":
            return draws.own_log_ratio(row, candidates)
        nodes, place = candidates.unique(return_inverse=True)
        return draws.mixture_log_ratio(row, nodes)[place]

    def scorer_of(self, etype: EdgeType) -> Scorer | None:
        """The scorer that the sampler was made with, if any."""
        return None

    # ---- what a pipeline calls --------------------------------------------------------------

    def __call__(self, g: Any, eids: Any) -> Any:
        """Negatives for edges, as DGL's loaders ask for them.

        Args:
            g: the graph.
            eids: edge ids, shape [B], of the graph's id type, or a dict of those by edge type.

        Returns:
            Source and destination ids, shape [B * k] each; for a dict, a dict of those by canonical
            edge type.

        Raises:
            TypeError: for what is no graph, or ids that are no integers of the graph's id type.
            ValueError: for ids out of range, or a graph whose nodes have other numbers than those
                of the graph that the sampler was made for.
        """
        check_graph(g)
        return super().__call__(g, eids)

    @shielded
    def _generate(self, g: Any, eids: Tensor, canonical_etype: EdgeType) -> Pair:
        device = self.place_of(eids)
        _check_call_ids("eids", eids, g.num_edges(canonical_etype), "edge ids", g, device)
        ends = ends_of(g, eids, canonical_etype)
        src, dst, held = (ids.to(device, torch.int64) for ids in (*ends, eids))
        self.check_identity(g, canonical_etype, (src, dst))
        src, dst = self._pairs_for_edges(g, src, dst, canonical_etype, held)
        return src.to(eids.device, eids.dtype), dst.to(eids.device, eids.dtype)

    def place_of(self, ids: Any) -> torch.device:
        """Where negatives for ids are looked up."""
        return self.device if getattr(ids, "device", CPU) == self.device else CPU

    def _pairs_for_edges(
        self, g: Any, src: Tensor, dst: Tensor, etype: EdgeType, eids: Tensor
    ) -> Pair:
        """Negative pairs for B edges, k in a row for each: [B * k], int64."""
        chosen = self.negatives_for_edges(g, src, dst, etype)
        return src.repeat_interleave(chosen.shape[1]), chosen.flatten()

    @shielded
    def for_queries(self, g: Any, nodes: Tensor, etype: EdgeName | None = None) -> Tensor:
        """Negatives for query nodes.

        Args:
            g: the graph.
            nodes: ids of source nodes, shape [B], of the graph's id type.
            etype: edge type; may be left out where the graph has one.

        Returns:
            Destination ids, shape [B, k], of the dtype and on the device of ``nodes``.

        Raises:
            TypeError: for ids that are no integers of the graph's id type.
            ValueError: for ids that are no source nodes, an unknown ``etype``, or none where there
                are several.
        """
        check_graph(g)
        canonical = canonical_edge_type(etype, g.canonical_etypes, "etype")
        device = self.place_of(nodes)
        _check_call_ids("nodes", nodes, g.num_nodes(canonical[0]), "node ids", g)
        self.check_identity(g, canonical, None)
        chosen = self.negatives(g, nodes.to(device, torch.int64), canonical)
        return chosen.to(nodes.device, nodes.dtype)

    def loss(
        self,
        h: Any,
        pos_graph: Any,
        neg_graph: Any = None,
        *,
        scorer: Scorers | None = None,
        temperature: float = 1.0,
        share: Comparison = "batch",
        pool: int | None = None,
        filtered: bool = True,
        discount: float = 0.0,
        reduce: Literal["sum", "none"] = "sum",
        gather: bool = False,
    ) -> Any:
        """Softmax cross-entropy of each positive against all negatives of the batch.

        In place of scores and a loss of your own:

            h = model(blocks, blocks[0].srcdata["feat"])
            loss = negatives.loss(h, pos_graph, neg_graph)

        Each positive is compared with the random negatives of the batch and the hard ones of its
        own edge, which estimate all nodes without bias (`dgl_dmns.shared_softmax`).

        Args:
            h: embeddings of the batch's nodes, shape [n, D], in the order of
                ``pos_graph.ndata[dgl.NID]``: what the model returns. A dict for several node types.
            pos_graph: the positive graph from the loader; or a GraphBolt minibatch.
            neg_graph: the negative graph; left out with a minibatch.
            scorer: scores of broadcastable embeddings, or a dict of such by edge type; defaults to
                the one that the sampler was made with, or else the inner product.
            temperature: positive; scores are divided by it.
            share: ``"batch"``, or ``"edge"`` to compare each positive with its own negatives alone.
            pool: most shared negatives that each positive is compared with; defaults to all.
            filtered: whether known edges are left out of the sum; False is the softmax over all
                nodes (with ``share="batch"``), for queries that have many answers.
            discount: share in [0, 1] by which a positive pulls less where the model ranks it no
                better than chance, in proportion to its loss; 0.25 suits purchases.
            reduce: with several edge types, ``"sum"`` of their losses, or ``"none"``: a dict by
                canonical edge type (by the keys of a minibatch).
            gather: whether the random negatives of all ranks of ``torch.distributed`` are shared,
                see `dgl_dmns.gathered`; ``pool`` then bounds those of all ranks together. All ranks
                have to call it after the same step, with an empty batch, too.

        Returns:
            The mean loss over the positives, a scalar, float32; 0 for an empty batch.

        Raises:
            ValueError: if the sampler draws no random negatives (``uniform_share`` of 0), or with
                ``share="edge"`` has no tractable distribution; if arguments or scores do not fit.
            TypeError: if an argument is of another kind.
            RuntimeError: with ``share="edge"``, if the graph of a sampler that follows an encoder
                has changed, and there was no refresh since. With ``gather=True``, if
                ``torch.distributed`` was not initialised, or another rank cannot take part.
        """
        return loss_of_batch(
            self,
            (h, pos_graph, neg_graph),
            scorer=scorer,
            temperature=temperature,
            share=share,
            pool=pool,
            filtered=filtered,
            discount=discount,
            reduce=reduce,
            gather=gather,
            generator=self._call_generator(),
        )

    @shielded
    def stats(self, **arguments: Any) -> pd.DataFrame:
        """How hard, how varied and how false the negatives are that the sampler holds now.

        Arguments, table and errors are those of `dgl_dmns.diagnostics.negative_statistics`; a
        sampler without an encoder needs ``embeddings``.
        """
        from dgl_dmns.diagnostics import negative_statistics

        return negative_statistics(self, **arguments)

    def export(self, path: Any, **arguments: Any) -> int:
        """Write the negatives of every known edge to a CSV or Parquet file; its number of rows.

        Arguments, columns and errors are those of `dgl_dmns.samplers.export.export_negatives`.
        """
        from dgl_dmns.samplers.export import export_negatives

        return export_negatives(self, path, **arguments)

    def check_identity(self, g: Any, etype: EdgeType, pairs: Pair | None) -> None:
        """Refuse a graph that numbers its nodes otherwise, see `dgl_dmns.samplers.graphs`."""
        known = self.known_by_type.get(etype)
        if known is not None:
            self._identity.check(known, g, etype, pairs)

    # ---- randomness and copies --------------------------------------------------------------

    def _call_generator(self, device: torch.device = CPU) -> torch.Generator | None:
        """The source of draws in this process; None is torch's global generator."""
        # A generator copied into workers would give all of them the same stream.
        own = self._generator is not None and get_worker_info() is None
        return generator_on(device, self._generator if own else self._stream.generator())

    def __getstate__(self) -> dict[str, Any]:
        """What workers and spawned processes get."""
        return {**self.__dict__, "_generator": None, "device": CPU}

    def _drawing(self, etype: EdgeType) -> Draw:
        """A function that draws as a call does; a copy draws, so that no trace is left."""
        copied, graph = copy.deepcopy(self), KnownGraph(self.known_by_type)

        def draw(src: Tensor, dst: Tensor | None) -> Tensor:
            if dst is None:
                return copied.negatives(graph, src, etype)
            return copied.negatives_for_edges(graph, src, dst, etype)

        return draw

    def __repr__(self) -> str:
        return f"{type(self).__name__}(k={self.k})"


def _check_call_ids(
    name: str, ids: Any, count: int, what: str, g: Any, place: torch.device = CPU
) -> None:
    """Refuse what are no ids of the graph of a call, in its id type."""
    looked_at = None if place != CPU else count  # on a device DGL refuses them
    check_ids(name, ids, looked_at, what, advice=_EDGES_OR_NODES)
    if ids.dtype != g.idtype:
        raise TypeError(
            f"{name}: the graph has ids of {g.idtype}, got {ids.dtype}; "
            f"convert with .to({g.idtype}) or call g.int() / g.long()"
        )
