"""What samplers ask of a graph: its edges, known edges made of them; and what is no graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dgl_dmns._compat import is_distributed
from dgl_dmns.checks import type_name
from dgl_dmns.core import Folder, KnownEdges
from dgl_dmns.messages import warn

__all__ = [
    "KnownGraph",
    "check_graph",
    "check_has_edges",
    "edges_of",
    "ends_of",
    "is_homogeneous",
    "known_edges",
    "shared_memory_for",
]

_EDGES_A_TIME = 1 << 20  # asked of a graph's servers in one message
_ASKED = ("canonical_etypes", "ntypes", "num_nodes", "num_edges", "find_edges")
_FORMATS = ["coo", "csr", "csc"]


class KnownGraph:
    """Stands in for the graph where a pipeline has none: what samplers ask of it besides edge ids.

    Args:
        known_by_type: known edges by canonical edge type, as samplers hold them.
    """

    def __init__(self, known_by_type: dict[tuple[str, str, str], KnownEdges]) -> None:
        self.canonical_etypes = list(known_by_type)
        self._counts: dict[str, int] = {}
        for (source, _, destination), known in known_by_type.items():
            self._counts[source] = known.num_src
            self._counts[destination] = known.num_dst

    def num_nodes(self, ntype: str) -> int:
        """Number of nodes of a type."""
        return self._counts[ntype]


def is_homogeneous(g: Any) -> bool:
    """Whether a graph has one node type and one edge type."""
    return len(g.ntypes) == 1 and len(g.canonical_etypes) == 1


def check_graph(g: Any) -> None:
    """Refuse what is no graph of DGL.

    Raises:
        TypeError: for a data set, a tensor of edges, a graph of another library; it says what to
            write.
    """
    if isinstance(g, type) or not all(hasattr(g, name) for name in _ASKED):
        raise TypeError(f"g: expected a DGL graph, got {type_name(g)}; {_instead(g)}")


def check_has_edges(g: Any) -> None:
    """Refuse what is no training graph: no graph at all, a block, a graph without any edge.

    Raises:
        ValueError: if there is no edge.
        TypeError: for what is no graph, or a block.
    """
    check_graph(g)
    if getattr(g, "is_block", False):
        raise TypeError(
            "g: expected a DGL graph, got a block (message flow graph) of a loader, whose node ids "
            "are its own; pass the whole training graph"
        )
    if g.num_edges() == 0:
        raise ValueError("g: expected at least one edge, the known positives, got a graph without")


def _instead(g: Any) -> str:
    """What to write in place of something that is no graph of DGL."""
    module = type(g).__module__.partition(".")[0]
    first = g[0] if isinstance(g, (list, tuple)) and g else None
    if isinstance(g, Tensor):
        return "write dgl.graph((edge_index[0], edge_index[1]), num_nodes=...)"
    if isinstance(first, Tensor):
        return "write dgl.graph((src, dst), num_nodes=...)"
    if isinstance(first, Sequence) and not isinstance(first, str):
        return "dgl.load_graphs returns (graphs, labels): pass graphs[0]"
    if type(g).__module__.startswith("dgl.graphbolt"):
        return "make the sampler on the DGL graph that this one was made from"
    if module in ("networkx", "scipy"):
        return f"write dgl.from_{module}(g)"
    if hasattr(g, "edge_index"):
        return "write dgl.graph((data.edge_index[0], data.edge_index[1]), num_nodes=data.num_nodes)"
    if not isinstance(g, (type, str, bytes)) and hasattr(g, "__getitem__"):
        return "of a data set pass the graph in it, dataset[0]"
    return "pass the training graph, a dgl.DGLGraph or a DistGraph"


def edges_of(g: Any, etype: tuple[str, str, str]) -> tuple[Tensor, Tensor]:
    """All edges of a type, on the CPU; those of a `dgl.distributed.DistGraph` from its servers.

    Args:
        g: the graph; one that is restricted to some formats is read through a clone that is not.
        etype: canonical edge type.

    Returns:
        Source and destination ids, each of shape [E], of the graph's id type.
    """
    if not is_distributed(g, "DistGraph"):
        if not _allows(g, "coo"):
            g = g.formats(_FORMATS)
        src, dst = g.edges(etype=etype)
        return src.cpu(), dst.cpu()
    parts = [g.find_edges(e, etype) for e in torch.arange(g.num_edges(etype)).split(_EDGES_A_TIME)]
    src, dst = (torch.cat(ends) for ends in zip(*parts))
    return src, dst


def ends_of(g: Any, eids: Tensor, etype: tuple[str, str, str]) -> tuple[Tensor, Tensor]:
    """The ends of edges that are given by their ids, each of shape [B].

    Raises:
        ValueError: for a graph that is restricted to formats without an order of edge ids.
    """
    if eids.numel() and not is_distributed(g, "DistGraph"):
        try:
            src, dst = g.find_edges(eids, etype=etype)
        except Exception as error:
            if _allows(g, "coo"):
                raise
            raise ValueError(
                "g: this graph is restricted to formats without coo (csc or csr), in which DGL "
                f"cannot look up edges by their ids; pass g.formats({_FORMATS})"
            ) from error
        return src, dst
    src, dst = g.find_edges(eids, etype=etype)
    return src, dst


def _allows(g: Any, wanted: str) -> bool:
    """Whether a graph may be turned to a format of DGL; stand-ins of tests have none."""
    formats = g.formats() if callable(getattr(g, "formats", None)) else None
    if not isinstance(formats, dict):
        return True
    return any(wanted in names for names in formats.values())


@contextmanager
def shared_memory_for(etypes: Sequence[tuple[str, str, str]]) -> Iterator[None]:
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


def known_edges(g: Any, etype: tuple[str, str, str], folder: Folder | None = None) -> KnownEdges:
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
