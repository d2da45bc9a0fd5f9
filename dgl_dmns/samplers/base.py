"""The contract of a DGL negative sampler, once, for all samplers of this package.

DGL calls ``sampler(g, eids)`` with edge ids (a tensor, or a dict by edge type) and expects
``(src, dst)`` or a dict of those by canonical edge type. Ours return exactly ``k`` negatives per
edge, grouped as ``src.repeat_interleave(k)`` (negative ``i`` belongs to edge ``i // k``), with the
id type of the graph, on the device of the edge ids.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dgl_dmns._compat import is_distributed, require_dgl
from dgl_dmns.core.known import KnownEdges
from dgl_dmns.samplers.shared_loss import SharedLoss
from dgl_dmns.samplers.streams import Stream

if TYPE_CHECKING:
    import pandas as pd

_dgl = require_dgl()
_Base: Any = _dgl.dataloading.negative_sampler._BaseNegativeSampler
_EDGES_A_TIME = 1 << 20  # asked of a graph's servers in one message

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
    """Return ``k`` if it is an integer of at least 1.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is below 1.
    """
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k: expected an integer, the negatives per edge, got {k!r}")
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
        self._generator = generator
        self._stream = Stream()

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
        if etype is None:
            if len(g.canonical_etypes) != 1:
                raise ValueError(
                    f"etype: the graph has edge types {g.canonical_etypes}; name one of them"
                )
            etype = g.canonical_etypes[0]
        canonical = canonical_edge_type(etype, g.canonical_etypes, "etype")
        _check_ids("nodes", nodes, g.num_nodes(canonical[0]), "node", g)
        chosen = self.negatives(g, nodes.to("cpu", torch.int64), canonical)
        return chosen.to(nodes.device, nodes.dtype)

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

    def _generate(self, g: Any, eids: Tensor, canonical_etype: EdgeType) -> tuple[Tensor, Tensor]:
        _check_ids("eids", eids, g.num_edges(canonical_etype), "edge", g)
        src, dst = g.find_edges(eids, etype=canonical_etype)
        src, dst = self._pairs_for_edges(
            g, src.to("cpu", torch.int64), dst.to("cpu", torch.int64), canonical_etype
        )
        return src.to(eids.device, eids.dtype), dst.to(eids.device, eids.dtype)

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

    def __init__(self, g: Any, k: int = 1) -> None:
        super().__init__(k)
        check_has_edges(g)
        with shared_memory_for(g.canonical_etypes):
            self.known_by_type = {etype: known_edges(g, etype) for etype in g.canonical_etypes}

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


class KnownGraph:
    """Stands in for the graph where a pipeline has none: what samplers ask of it besides edge ids.

    Args:
        known_by_type: known edges by canonical edge type, as samplers hold them.
    """

    def __init__(self, known_by_type: dict[EdgeType, KnownEdges]) -> None:
        self.canonical_etypes = list(known_by_type)
        self._counts: dict[str, int] = {}
        for (source, _, destination), known in known_by_type.items():
            self._counts[source] = known.num_src
            self._counts[destination] = known.num_dst

    def num_nodes(self, ntype: str) -> int:
        """Number of nodes of a type."""
        return self._counts[ntype]


def check_has_edges(g: Any) -> None:
    """Refuse a graph without any edge.

    Raises:
        ValueError: if there is none.
    """
    if g.num_edges() == 0:
        raise ValueError("g: expected at least one edge, the known positives, got a graph without")


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
            f"g: what is held for {len(etypes)} edge types takes up to 7 tensors in shared memory "
            "each, more than this process may have open files; raise that limit (ulimit -n 8192), "
            "call torch.multiprocessing.set_sharing_strategy('file_system') before, or pass a "
            "graph or etypes=... with fewer"
        ) from error


def edges_of(g: Any, etype: EdgeType) -> tuple[Tensor, Tensor]:
    """All edges of a type, on the CPU; those of a `dgl.distributed.DistGraph` from its servers.

    Args:
        g: the graph.
        etype: canonical edge type.

    Returns:
        Source and destination ids, each of shape [E], of the graph's id type.
    """
    if not is_distributed(g, "DistGraph"):
        src, dst = g.edges(etype=etype)
        return src.cpu(), dst.cpu()
    parts = [g.find_edges(e, etype) for e in torch.arange(g.num_edges(etype)).split(_EDGES_A_TIME)]
    src, dst = (torch.cat(ends) for ends in zip(*parts))
    return src, dst


def known_edges(g: Any, etype: EdgeType) -> KnownEdges:
    """The known edges of an edge type, on the CPU in shared memory, with a warning where needed.

    Self pairs are barred where both ends have one type.
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
    known.indptr.share_memory_()
    known.indices.share_memory_()
    known.bitmap.taken.share_memory_()
    _warn_saturated(known)
    return known


def _warn_saturated(known: KnownEdges) -> None:
    """Warn of sources that are linked to every destination, so that no true negative exists.

    The warning names the line that made the sampler: the nearest one outside this package.
    """
    saturated = known.saturated()
    if saturated.numel():
        instead = "the query itself (v, v)" if known.exclude_self else "any node"
        other = "every other node" if known.exclude_self else "every destination"
        warnings.warn(
            f"{saturated.numel()} node(s), for example {int(saturated[0])}, are linked to {other}: "
            f"no true negative exists for them, so they get {instead}",
            stacklevel=_level_outside(),
        )


def _level_outside() -> int:
    """The caller's ``stacklevel`` that points to the nearest frame outside this package."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("dgl_dmns."):
        frame = frame.f_back
        level += 1
    return level


def _check_ids(name: str, ids: Tensor, count: int, what: str, g: Any) -> None:
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name}: expected a tensor of {what} ids, got {type(ids).__name__}")
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f"{name}: expected {what} ids of dtype {g.idtype} (the graph's), got {ids.dtype}; "
            f"convert with .to({g.idtype})"
        )
    if ids.dtype != g.idtype:
        raise TypeError(
            f"{name}: the graph has ids of {g.idtype}, got {ids.dtype}; "
            f"convert with .to({g.idtype}) or call g.int() / g.long()"
        )
    if ids.dim() != 1:
        raise ValueError(f"{name}: expected shape [B], got {tuple(ids.shape)}")
    if ids.numel():
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or high >= count:
            raise ValueError(
                f"{name}: expected {what} ids in 0 .. {count - 1}, got {low} .. {high}; a negative "
                "sampler takes edge ids, use for_queries() for node ids"
            )
