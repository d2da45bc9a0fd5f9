"""The contract of a DGL negative sampler, once, for all samplers of this package.

DGL calls ``sampler(g, eids)`` with edge ids (a tensor, or a dict by edge type) and expects
``(src, dst)`` or a dict of those by canonical edge type. Ours return exactly ``k`` negatives per
edge, grouped as ``src.repeat_interleave(k)`` (negative ``i`` belongs to edge ``i // k``), with the
id type of the graph, on the device of the edge ids.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Union

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dgl_dmns._compat import require_dgl
from dgl_dmns.checks import as_integer, check_ids, check_object
from dgl_dmns.core import Draw, Folder, KnownEdges, Look, Snapshot, shielded
from dgl_dmns.messages import warn
from dgl_dmns.samplers.encoder import Embeddings, check_embeddings
from dgl_dmns.samplers.graphs import KnownGraph, check_graph, check_has_edges, edges_of, ends_of
from dgl_dmns.samplers.identity import GraphIdentity
from dgl_dmns.samplers.shared_loss import SharedLoss
from dgl_dmns.samplers.streams import Stream

if TYPE_CHECKING:
    import pandas as pd

_dgl = require_dgl()
_Base: Any = _dgl.dataloading.negative_sampler._BaseNegativeSampler
_EDGES_OR_NODES = "a negative sampler takes edge ids, use for_queries() for node ids"

__all__ = [
    "EdgeName",
    "EdgeType",
    "FilteredSampler",
    "KnownGraph",
    "NegativeSampler",
    "canonical_edge_type",
    "check_has_edges",
    "check_k",
    "edges_of",
    "known_edges",
    "shared_memory_for",
]

EdgeType = tuple[str, str, str]
"""A canonical edge type: source node type, relation, destination node type."""

EdgeName = Union[str, EdgeType]
"""An edge type by its relation alone, where that is unique, or in full."""


def canonical_edge_type(name: EdgeName, etypes: Sequence[EdgeType], argument: str) -> EdgeType:
    """The canonical edge type that a name stands for.

    Args:
        name: the relation alone, or the canonical edge type.
        etypes: the canonical edge types to choose from.
        argument: the argument that an error message speaks of.

    Raises:
        ValueError: if none or several of the edge types have this name.
    """
    found = [e for e in etypes if name == e or (isinstance(name, str) and name == e[1])]
    if len(found) != 1:
        what = "several edge types" if found else "no edge type"
        raise ValueError(
            f"{argument}: {what} of name {name!r} in {found or list(etypes)}; name one as (source "
            "node type, relation, destination node type)"
        )
    return found[0]


def check_k(k: int) -> int:
    """Return ``k``, of NumPy or torch as well, if it is an integer of at least 1.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is below 1.
    """
    k = as_integer("k", k, what="negatives per edge")
    if k < 1:
        raise ValueError(f"k: expected at least 1 negative per edge, got {k}")
    return k


class NegativeSampler(SharedLoss, _Base):  # type: ignore[misc]
    """Base of all samplers here: k negatives for the source of every edge.

    A subclass implements `negatives`. Call `for_queries` to get negatives for query nodes instead
    of edges: ids handed to the sampler itself are always taken as edge ids.

    Args:
        k: negatives per edge.
        generator: source of the draws in the main process; where not given, torch's global one, and
            on ranks above 0 of a distributed training one that is seeded by it and by the rank.
            Loader workers always have a seeded one each.

    Raises:
        TypeError: if ``k`` is not an integer.
        ValueError: if ``k`` is below 1.
    """

    known_by_type: dict[EdgeType, KnownEdges]

    def __init__(self, k: int, generator: torch.Generator | None = None) -> None:
        self.k = check_k(k)
        if generator is not None:
            check_object("generator", generator, torch.Generator, "torch.Generator()")
        self._generator = generator
        self._stream = Stream()
        self._identity = GraphIdentity(type(self).__name__)

    def __call__(self, g: Any, eids: Any) -> Any:
        """Negatives for edges, as DGL's loaders ask for them.

        Args:
            g: the graph.
            eids: edge ids, shape [B], of the graph's id type, or a dict of those by edge type.

        Returns:
            Source and destination ids, shape [B * k] each, k in a row for each edge; for a dict, a
            dict of those by canonical edge type.

        Raises:
            TypeError: for what is no graph, or ids that are no integers of the graph's id type.
            ValueError: for ids out of range, or a graph whose nodes have other numbers than those
                of the graph that the sampler was made for.
        """
        check_graph(g)
        return super().__call__(g, eids)

    def _call_generator(self) -> torch.Generator | None:
        """The source of draws in this process; None is torch's global generator."""
        # A generator copied into workers would give all of them the same stream.
        if self._generator is not None and get_worker_info() is None:
            return self._generator
        return self._stream.generator()

    def __getstate__(self) -> dict[str, Any]:
        """What workers and spawned processes get."""
        return {**self.__dict__, "_generator": None}

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
        """Negatives for edges; what a call of the sampler asks for.

        By default only the source counts. A sampler that needs the whole batch of positives
        overrides this one too.

        Args:
            g: the graph.
            src: source ids of the edges, shape [B], int64, on the CPU.
            dst: destination ids of the edges, shape [B], int64, on the CPU.
            etype: canonical edge type.

        Returns:
            Destination ids, shape [B, k], int64.
        """
        return self.negatives(g, src, etype)

    @shielded
    def for_queries(self, g: Any, nodes: Tensor, etype: EdgeName | None = None) -> Tensor:
        """Negatives for query nodes.

        Args:
            g: the graph.
            nodes: ids of source nodes, shape [B], of the graph's id type.
            etype: edge type, canonical or by its relation alone; the only one of the graph where
                not given.

        Returns:
            Destination ids, shape [B, k], of the dtype and on the device of ``nodes``.

        Raises:
            TypeError: for ids that are no integers of the graph's id type.
            ValueError: for ids that are no source nodes, an unknown ``etype``, or none where there
                are several.
        """
        check_graph(g)
        if etype is None:
            if len(g.canonical_etypes) != 1:
                raise ValueError(
                    f"etype: the graph has edge types {g.canonical_etypes}; name one of them"
                )
            etype = g.canonical_etypes[0]
        canonical = canonical_edge_type(etype, g.canonical_etypes, "etype")
        _check_call_ids("nodes", nodes, g.num_nodes(canonical[0]), "node ids", g)
        self._check_identity(g, canonical, None)
        chosen = self.negatives(g, nodes.to("cpu", torch.int64), canonical)
        return chosen.to(nodes.device, nodes.dtype)

    def look(self, etype: EdgeName | None = None, embeddings: Embeddings | None = None) -> Look:
        """What the sampler holds now for an edge type, for whoever looks at its negatives.

        Args:
            etype: edge type; may be left out where the sampler holds one.
            embeddings: shape [N, D], or a dict of those by node type, to score negatives with; of
                the sampler's encoder, if it has one, where not given.

        Raises:
            ValueError: if the edge type has to be named, or embeddings do not fit.
            RuntimeError: before the first refresh.
        """
        raise NotImplementedError

    def _held(self, etype: EdgeName | None) -> EdgeType:
        """The canonical name of an edge type that is held."""
        held = list(self.known_by_type)
        if etype is None and len(held) != 1:
            raise ValueError(f"etype: the sampler holds edge types {held}; name one of them")
        return held[0] if etype is None else canonical_edge_type(etype, held, "etype")

    def _drawing(self, etype: EdgeType) -> Draw:
        """A function that draws as a call does; a copy draws, so that no trace is left."""
        copied = copy.deepcopy(self)
        graph = KnownGraph(self.known_by_type)

        def draw(src: Tensor, dst: Tensor | None) -> Tensor:
            if dst is None:
                return copied.negatives(graph, src, etype)
            return copied.negatives_for_edges(graph, src, dst, etype)

        return draw

    @shielded
    def stats(self, **arguments: Any) -> pd.DataFrame:
        """How hard, how varied and how false the negatives are that the sampler holds now.

        Args:
            **arguments: of `dgl_dmns.diagnostics.negative_statistics`: ``embeddings`` (which a
                sampler without an encoder needs), ``held_out`` pairs, ``etype``, ``queries``,
                ``seed``.

        Returns:
            A row for each hardness level, for all negatives, and, to compare with, for random nodes
            and for positives; the columns are explained there.

        Raises:
            RuntimeError: before the first refresh.
            ValueError: for an argument that does not fit.
        """
        from dgl_dmns.diagnostics import negative_statistics

        return negative_statistics(self, **arguments)

    @shielded
    def _generate(self, g: Any, eids: Tensor, canonical_etype: EdgeType) -> tuple[Tensor, Tensor]:
        _check_call_ids("eids", eids, g.num_edges(canonical_etype), "edge ids", g)
        ends = ends_of(g, eids, canonical_etype)
        src, dst = (end.to("cpu", torch.int64) for end in ends)
        self._check_identity(g, canonical_etype, (src, dst))
        src, dst = self._pairs_for_edges(g, src, dst, canonical_etype)
        return src.to(eids.device, eids.dtype), dst.to(eids.device, eids.dtype)

    def _check_identity(self, g: Any, etype: EdgeType, pairs: tuple[Tensor, Tensor] | None) -> None:
        """Refuse a graph that numbers its nodes otherwise, see `dgl_dmns.samplers.identity`."""
        known = getattr(self, "known_by_type", {}).get(etype)
        if known is not None:
            self._identity.check(known, g, etype, pairs)

    def check_pairs(self, src: Tensor, dst: Tensor, etype: EdgeType) -> None:
        """Warn, once, where pairs of a pipeline without a graph are mostly no known edges.

        Args:
            src: source ids, shape [B], int64, on the CPU.
            dst: destination ids, likewise.
            etype: canonical edge type.
        """
        self._identity.check_pairs(self.known_by_type[etype], (src, dst), etype)

    def _pairs_for_edges(
        self, g: Any, src: Tensor, dst: Tensor, etype: EdgeType
    ) -> tuple[Tensor, Tensor]:
        """Negative pairs for B edges, k in a row for each: two tensors [B * k], int64."""
        chosen = self.negatives_for_edges(g, src, dst, etype)
        return src.repeat_interleave(chosen.shape[1]), chosen.flatten()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(k={self.k})"


class FilteredSampler(NegativeSampler):
    """Base of the samplers that know the edges of a graph and follow no encoder.

    The known edges of every edge type are read once, at construction, into shared memory. A graph
    may have several node and edge types; self pairs are barred where both ends have one type.

    Args:
        g: the training graph; its edges are the known positives.
        k: negatives per edge.

    Raises:
        ValueError: if the graph has no edge, or ``k`` is below 1.
        TypeError: if ``k`` is not an integer.
    """

    @shielded
    def __init__(self, g: Any, k: int = 1) -> None:
        super().__init__(k)
        check_has_edges(g)
        with shared_memory_for(g.canonical_etypes):
            self.known_by_type = {etype: known_edges(g, etype) for etype in g.canonical_etypes}
        self._identity.made_for(g, g.canonical_etypes)

    _uniform: ClassVar[bool] = False  # whether all negatives are

    @shielded
    def look(  # noqa: D102
        self, etype: EdgeName | None = None, embeddings: Embeddings | None = None
    ) -> Look:
        held = self._held(etype)
        known = self.known_by_type[held]
        snapshot = None
        if embeddings is not None:
            counts = {held[0]: known.num_src, held[2]: known.num_dst}
            plain = len(counts) == 1 and not isinstance(embeddings, Mapping)
            h = check_embeddings(embeddings, counts, homogeneous=plain)
            snapshot = Snapshot.take(h[held[0]], h[held[2]], known, None, None)
        return Look(
            name=type(self).__name__,
            etype=held,
            known=known,
            version=0,
            snapshot=snapshot,
            rows=None,
            uniform=self._uniform,
            lam=1.0,
            behind=(None, None, None),
            chains=False,
            draw=lambda: self._drawing(held),
        )

    def known_of(self, g: Any, etype: EdgeType) -> KnownEdges:
        """The known edges of a type, if the graph is still the one the sampler was made for.

        Raises:
            ValueError: for an edge type or a node count the sampler was not made for.
        """
        known = self.known_by_type.get(etype)
        if known is None:
            raise ValueError(
                f"g: the sampler was made for edge types {list(self.known_by_type)}, got {etype}; "
                "make a new sampler for another graph"
            )
        counts = (int(g.num_nodes(etype[0])), int(g.num_nodes(etype[2])))
        if counts != (known.num_src, known.num_dst):
            raise ValueError(
                f"g: the sampler was made for {known.num_src} source and {known.num_dst} "
                f"destination nodes of {etype}, the graph has {counts[0]} and {counts[1]}; make a "
                "new sampler for another graph"
            )
        return known


@contextmanager
def shared_memory_for(etypes: Sequence[EdgeType]) -> Iterator[None]:
    """Say what to do where many edge types need more shared tensors than files may be open.

    Raises:
        RuntimeError: in place of torch's own error.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if "Too many open files" not in str(error):
            raise
        raise RuntimeError(
            f"g: what is held for {len(etypes)} edge types takes up to 8 tensors in shared memory "
            "each, more than this process may have open files; raise that limit (ulimit -n 8192), "
            "call torch.multiprocessing.set_sharing_strategy('file_system') before, or pass a "
            "graph or etypes=... with fewer"
        ) from error


def known_edges(g: Any, etype: EdgeType, folder: Folder | None = None) -> KnownEdges:
    """The known edges of an edge type, on the CPU in shared memory, with a warning where needed.

    Self pairs are barred where both ends have one type. Where shared memory has no room they lie in
    files of the folder, if one is given.

    Raises:
        MemoryError: if shared memory has no room, and there is no folder.
    """
    src, dst = edges_of(g, etype)
    source, _, destination = etype
    known = KnownEdges(
        src,
        dst,
        int(g.num_nodes(source)),
        int(g.num_nodes(destination)),
        exclude_self=source == destination,
    )
    known.share(folder=folder)
    _warn_saturated(known)
    return known


def _warn_saturated(known: KnownEdges) -> None:
    """Warn of sources that are linked to every destination, so that no true negative exists."""
    saturated = known.saturated()
    if saturated.numel():
        instead = "the query itself (v, v)" if known.exclude_self else "any node"
        other = "every other node" if known.exclude_self else "every destination"
        warn(
            f"{saturated.numel()} node(s), for example {int(saturated[0])}, are linked to {other}: "
            f"no true negative exists for them, so they get {instead}"
        )


def _check_call_ids(name: str, ids: Any, count: int, what: str, g: Any) -> None:
    """Refuse what are no ids of the graph of a call, in its id type."""
    check_ids(name, ids, count, what, advice=_EDGES_OR_NODES)
    if ids.dtype != g.idtype:
        raise TypeError(
            f"{name}: the graph has ids of {g.idtype}, got {ids.dtype}; "
            f"convert with .to({g.idtype}) or call g.int() / g.long()"
        )
