"""What samplers ask of a graph: edges, known edges made of them, and whose node ids it has.

A sampler knows edges as pairs of node ids. A graph whose nodes were renumbered on the way, as
``dgl.edge_subgraph`` and ``dgl.reorder_graph`` do, has other nodes under these ids, and its edges
would come as negatives. The edges of both tell: where a sample of the graph's edges are all known
(the graph is a part), or a sample of the known edges are all edges of the graph (it is larger), the
ids are the same. Otherwise the edges that are asked for decide: as long as all of them are known
there is nothing to say.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dgl_dmns._compat import is_distributed
from dgl_dmns.checks import type_name
from dgl_dmns.core import MOST_NODES, EdgeType, Folder, KnownEdges, restricted
from dgl_dmns.messages import warn

__all__ = [
    "GraphIdentity",
    "KnownGraph",
    "Pair",
    "check_graph",
    "check_has_edges",
    "check_ids_fit",
    "edges_of",
    "ends_of",
    "is_homogeneous",
    "known_edges",
    "shared_memory_for",
]

Pair = tuple[Tensor, Tensor]
"""Source and destination ids, each of shape [P]."""

_EDGES_A_TIME = 1 << 20  # asked of a graph's servers in one message
_ASKED = ("canonical_etypes", "ntypes", "num_nodes", "num_edges", "find_edges")
_FORMATS = ["coo", "csr", "csc"]


class KnownGraph:
    """Stands in for a graph where a pipeline has none: what samplers ask besides edge ids."""

    def __init__(self, known_by_type: dict[EdgeType, KnownEdges]) -> None:
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
    """Refuse what is no graph of DGL: a data set, a tensor of edges, another library's graph."""
    if isinstance(g, type) or not all(hasattr(g, name) for name in _ASKED):
        raise TypeError(f"g: expected a DGL graph, got {type_name(g)}; {_instead(g)}")


def check_has_edges(g: Any) -> None:
    """Refuse what is no training graph: no graph at all, a block, a graph without any edge."""
    check_graph(g)
    if getattr(g, "is_block", False):
        raise TypeError(
            "g: expected a DGL graph, got a block (message flow graph) of a loader, whose node ids "
            "are its own; pass the whole training graph"
        )
    if g.num_edges() == 0:
        raise ValueError("g: expected at least one edge, the known positives, got a graph without")


def check_ids_fit(g: Any, etypes: Iterable[EdgeType]) -> None:
    """Refuse more destinations than a candidate table can number."""
    for etype in etypes:
        if int(g.num_nodes(etype[2])) > MOST_NODES:
            raise ValueError(
                f"g: expected at most {MOST_NODES} nodes of type {etype[2]!r}, whose ids fit a "
                f"table, got {g.num_nodes(etype[2])}; leave nodes out that are no candidates"
            )


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


def edges_of(g: Any, etype: EdgeType) -> Pair:
    """Source and destination ids [E] of all edges of a type, on the CPU, of the graph's id type.

    Those of a `dgl.distributed.DistGraph` come from its servers; a graph that is restricted to some
    formats is read through a clone that is not.
    """
    if not is_distributed(g, "DistGraph"):
        if not _allows(g, "coo"):
            g = g.formats(_FORMATS)
        src, dst = g.edges(etype=etype)
        return src.cpu(), dst.cpu()
    src, dst = (torch.cat(ends) for ends in zip(*edges_in_parts(g, etype, 0, g.num_edges(etype))))
    return src, dst


def edges_in_parts(g: Any, etype: EdgeType, first: int, end: int) -> Iterator[Pair]:
    """The ends of the edges from one id to another, from the servers of a distributed graph."""
    for start in range(first, end, _EDGES_A_TIME):
        src, dst = g.find_edges(torch.arange(start, min(start + _EDGES_A_TIME, end)), etype)
        yield src, dst


def edges_from(g: Any, etype: EdgeType, held: Tensor) -> Pair:
    """The edges from some ascending sources: their places among these, and destinations, [P] each.

    Of a distributed graph all edges are read in parts, and those from other sources dropped.
    """
    rows, nodes = [held[:0]], [held[:0]]
    for src, dst in edges_in_parts(g, etype, 0, int(g.num_edges(etype))):
        row = torch.searchsorted(held, src).clamp(max=held.numel() - 1)
        ours = held[row] == src
        rows.append(row[ours])
        nodes.append(dst[ours])
    return torch.cat(rows), torch.cat(nodes)


def ends_of(g: Any, eids: Tensor, etype: EdgeType) -> Pair:
    """The ends of edges that are given by their ids, each of shape [B]."""
    try:
        src, dst = g.find_edges(eids, etype=etype)
    except Exception as error:
        if is_distributed(g, "DistGraph") or _allows(g, "coo"):
            raise
        raise ValueError(
            "g: this graph is restricted to formats without coo (csc or csr), in which DGL "
            f"cannot look up edges by their ids; pass g.formats({_FORMATS})"
        ) from error
    return src, dst


def _allows(g: Any, wanted: str) -> bool:
    """Whether a graph may be turned to a format of DGL; stand-ins of tests have none."""
    formats = g.formats() if callable(getattr(g, "formats", None)) else None
    if not isinstance(formats, dict):
        return True
    return any(wanted in names for names in formats.values())


@contextmanager
def shared_memory_for(etypes: Sequence[EdgeType]) -> Iterator[None]:
    """Say what to do where many edge types need more shared tensors than files may be open."""
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


def known_edges(
    g: Any,
    etype: EdgeType,
    folder: Folder | None = None,
    held: Tensor | None = None,
    candidates: Tensor | None = None,
) -> KnownEdges:
    """The known edges of an edge type, on the CPU; self pairs are barred where ends have one type.

    Those of all sources, or of some of a distributed graph, ascending ids [Q], by their places
    among these. They lie in shared memory, or where that has no room in files of the folder. Draws
    are among all destinations, or some ``candidates``, ascending ids [C]. A warning names sources
    that are linked to all of these.
    """
    src, dst = edges_of(g, etype) if held is None else edges_from(g, etype, held)
    one_type = etype[0] == etype[2]
    counts = [int(g.num_nodes(ntype)) for ntype in etype[::2]]
    if held is not None:
        counts[0] = held.numel()
    own = held if one_type else None
    known = KnownEdges(src, dst, *counts, exclude_self=one_type, own=own)
    known = restricted(known, candidates)
    known.share(folder=folder)
    saturated = known.saturated()
    if saturated.numel():
        any_node = "any node" if candidates is None else "any candidate"
        instead = "the query itself (v, v)" if one_type else any_node
        other = "every other node" if one_type else "every destination"
        other = other if candidates is None else "every other candidate"
        one = int(saturated[0] if held is None else held[saturated[0]])
        warn(
            f"{saturated.numel()} node(s), for example {one}, are linked to {other}: "
            f"no true negative exists for them, so they get {instead}"
        )
    return known


_SAMPLE = 1000  # edges of either side that are looked up in the other
_LIKELY = 0.5  # share of edges in common above which ids are probably the same


class GraphIdentity:
    """What a sampler has found out about the graphs it is called with; a copy starts anew.

    ``g`` is the graph that its known edges of some types come from, if there is one.
    """

    def __init__(self, name: str, g: Any = None, etypes: Iterable[EdgeType] = ()) -> None:
        self._name = name
        self._seen: dict[EdgeType, tuple[Any, int, float | None]] = {
            etype: (weakref.ref(g), int(g.num_edges(etype)), 1.0) for etype in etypes
        }
        self._trusted: set[EdgeType] = set()  # by pairs alone
        self._warned = False

    def check(self, known: KnownEdges, g: Any, etype: EdgeType, pairs: Pair | None) -> None:
        """Warn, once, where edges that are asked for are not among the known ones, and why.

        The first call with a graph looks at a sample of edges; later ones cost nothing where ids
        are the same, and a look-up of the pairs [B] where that is open; None for queries. If the
        graph also has other node counts there is no doubt, and it is refused. Where there is no
        graph the first pairs decide.
        """
        if self._warned or (pairs is not None and not pairs[0].numel()):
            return
        shared = None if isinstance(g, KnownGraph) else self._shared(known, g, etype)
        if shared is None:  # the pairs are all that there is to look at
            if pairs is not None:
                self._check_pairs(known, pairs, etype)
            return
        if shared == 1.0 or (pairs is None and shared > _LIKELY):
            return
        asked = ""
        if pairs is not None:
            strange = _unknown(known, pairs)
            if not strange:
                return
            asked = f"{strange} of the {pairs[0].numel()} edges asked for are unknown to it, and "
        counts = (int(g.num_nodes(etype[0])), int(g.num_nodes(etype[2])))
        own = (known.num_src, known.num_dst)
        found = (
            f"{asked}no more than {shared:.0%} of its known edges are edges of this graph, or the "
            f"other way round (edge type {etype[1]!r}"
        )
        advice = (
            "cut training graphs out with relabel_nodes=False, make the sampler on the loader's "
            "graph, or call update_graph(g), where it has that, for a graph that has grown"
        )
        if counts != own and shared < _LIKELY:
            raise ValueError(
                f"g: {found}; {counts[0]} and {counts[1]} nodes, the sampler was made for {own[0]} "
                f"and {own[1]}): this graph seems to number its nodes otherwise, so that known "
                f"edges would come as negatives; {advice}"
            )
        self._warn(
            f"{found}): this graph seems to number its nodes otherwise than the one that the "
            "sampler was made for, or to have other edges, and known edges may come as negatives; "
            f"{advice}; nothing is wrong with held-out edges under the same ids"
        )

    def _check_pairs(self, known: KnownEdges, pairs: Pair, etype: EdgeType) -> None:
        if etype in self._trusted:
            return
        strange = _unknown(known, pairs)
        if 2 * strange <= pairs[0].numel():
            self._trusted.add(etype)
            return
        self._warn(
            f"{strange} of the {pairs[0].numel()} pairs asked for are unknown to it (edge type "
            f"{etype[1]!r}): if these are no held-out pairs, the item set has other node numbers "
            "than the graph that the sampler was made on, and known edges may come as negatives; "
            "make both from one graph"
        )

    def _warn(self, message: str) -> None:
        self._warned = True
        worker = get_worker_info()
        if worker is None or worker.id == 0:  # one word is enough
            warn(f"{self._name}: {message}")

    def _shared(self, known: KnownEdges, g: Any, etype: EdgeType) -> float | None:
        """The share of edges in common, kept for each graph; None for one that is pinned."""
        edges = int(g.num_edges(etype))
        seen = self._seen.get(etype)
        if seen is None or seen[0]() is not g or seen[1] != edges:
            pinned = callable(getattr(g, "is_pinned", None)) and g.is_pinned()
            shared = None if pinned else _common(known, g, etype, edges)
            self._seen[etype] = seen = (weakref.ref(g), edges, shared)
        return seen[2]

    def __reduce__(self) -> tuple[type[GraphIdentity], tuple[str]]:
        return GraphIdentity, (self._name,)


def _common(known: KnownEdges, g: Any, etype: EdgeType, edges: int) -> float:
    """The larger share: of the graph's edges that are known, or of the known ones in the graph."""
    source = torch.Generator().manual_seed(0)  # the draws of the training stay what they are
    shares = [0.0]
    if edges:
        eids = _some(edges, source)
        src, dst = (ends.cpu().long() for ends in ends_of(g, eids.to(g.device, g.idtype), etype))
        shares.append(1 - _unknown(known, (src, dst)) / len(eids))
    total = known.indices.numel()
    if shares[-1] < 1.0 and total and callable(getattr(g, "has_edges_between", None)):
        pick = _some(total, source)
        src = torch.searchsorted(known.indptr, pick, right=True) - 1
        dst = known.indices[pick].long()
        inside = (src < g.num_nodes(etype[0])) & (dst < g.num_nodes(etype[2]))
        ends = (ends[inside].to(g.device, g.idtype) for ends in (src, dst))
        shares.append(float(g.has_edges_between(*ends, etype=etype).sum()) / len(pick))
    return max(shares)


def _unknown(known: KnownEdges, pairs: Pair) -> int:
    """How many pairs are no known edges, nodes that are unknown included."""
    src, dst = (ids.cpu() for ids in pairs)
    inside = (src < known.num_src) & (dst < known.num_dst)
    return src.numel() - int(known.knows(src[inside], dst[inside]).sum())


def _some(count: int, source: torch.Generator) -> Tensor:
    if count <= _SAMPLE:
        return torch.arange(count)
    return torch.randint(0, count, (_SAMPLE,), generator=source)
