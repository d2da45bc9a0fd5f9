"""What a trainer holds of a graph that lies on several machines.

Each trainer holds the known edges, the rows of the table and the embeddings of the sources of its
own edges: those of its partition, dealt out as ``dgl.distributed.edge_split`` does by default.
Sources of other partitions that its edges begin at, the halo, are among them. All of these are
numbered by **row**, their place among the held ones; destinations keep their ids.

A source that is not held has uniform negatives. Whether a pair is a known edge is then asked of the
servers, which store the edges that lead to a node together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgl_dmns._compat import is_distributed, require_dgl
from dgl_dmns.core import CPU, EdgeType, FetchedRows, KnownEdges, distinct_pools, share
from dgl_dmns.samplers.graphs import Pair, edges_from, edges_in_parts, known_edges

if TYPE_CHECKING:
    from dgl_dmns.samplers.stored import StoredRows

__all__ = ["Share"]

_ROUNDS = 8  # of redraws, before the edges of a source are looked for among all
_POOLS = 64  # whose members are held, at least
_QUERIES = 8  # for one candidate that is held


@dataclass(frozen=True, eq=False)
class Share:
    """The sources of one edge type that a trainer holds.

    Attributes:
        etype: canonical edge type.
        ids: ids of the sources, ascending, shape [Q], int64, in shared memory.
        counts: number of source and of destination nodes in the graph.
    """

    etype: EdgeType
    ids: Tensor
    counts: tuple[int, int]

    @classmethod
    def of(cls, g: Any, etype: EdgeType, any_source: bool) -> Share | None:
        """The share of this trainer; None for a graph that lies on one machine, which is held.

        Raises:
            ValueError: for sources drawn among all nodes, which no share has.
        """
        if not is_distributed(g, "DistGraph"):
            return None
        book = g.get_partition_book()
        parts, edges = book.num_partitions(), int(g.num_edges(etype))
        if parts == 1:
            return None
        if any_source:
            raise ValueError(
                "source: 'uniform' draws sources among all nodes, of which a trainer of a "
                "distributed graph holds its share; take source='edge'"
            )
        size, more = divmod(edges, parts)
        first = book.partid * size + min(book.partid, more)
        end = first + size + (book.partid < more)
        if not size:  # few edges are held by all
            first, end = 0, edges
        ids = torch.empty(0, dtype=torch.int64)
        for src, _ in edges_in_parts(g, etype, first, end):
            ids = torch.cat([ids, src]).unique()
        counts = int(g.num_nodes(etype[0])), int(g.num_nodes(etype[2]))
        return cls(etype, share(ids, "ids of sources take"), counts)

    def rows(self, src: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of sources, int64, of any shape; and which are held, bool: others have no row."""
        row = torch.searchsorted(self.ids, src).clamp(max=self.ids.numel() - 1)
        return row, self.ids[row] == src

    def over(self, function: Callable[..., Tensor], src: Tensor, *others: Tensor) -> Tensor:
        """What a function makes of rows and other tensors [P, ..], and 0 for sources not held."""
        row, held = self.rows(src)
        if bool(held.all()):
            return function(row, *others)
        made = function(row[held], *(other[held] for other in others))
        result = made.new_zeros(src.numel(), *made.shape[1:])
        result[held] = made
        return result

    def refuse(self, call: str) -> None:
        """Refuse what numbers queries by their ids, where rows are those of a trainer's share."""
        raise ValueError(
            f"{call}: this trainer holds {self.ids.numel()} of the {self.counts[0]} sources of a "
            "distributed graph; call the sampler itself, for_queries(), log_ratio() or loss(), "
            "which ask for the others, and look at negatives with a sampler of a graph on one "
            "machine"
        )

    def known_edges(self, g: Any, folder: Any) -> KnownEdges:
        """The known edges, from rows to ids."""
        return known_edges(g, self.etype, folder, self.ids)

    def embeddings(
        self, source: StoredRows, destination: StoredRows, pool: int, random: torch.Generator
    ) -> tuple[Tensor, FetchedRows]:
        """Embeddings of the held sources, [Q, D], and of a uniform sample of destinations.

        Of destinations there are one for eight sources, and as many as 64 pools have at least.
        """
        nodes = self.counts[1]
        size = min(nodes, max(_POOLS * pool, self.ids.numel() // _QUERIES))
        ids = distinct_pools(1, size, nodes, random, CPU)[0].sort().values
        candidates = FetchedRows(ids, destination.rows(ids), destination.rows)
        return source.rows(self.ids), candidates

    def negatives(
        self,
        g: Any,
        src: Tensor,
        dst: Tensor | None,
        k: int,
        of_rows: Callable[[Tensor, Tensor | None], Tensor],
        generator: torch.Generator | None,
    ) -> Tensor:
        """Negatives [B, k], int64: of sources that are held what a function of rows returns.

        Those of the others are uniform.
        """
        row, held = self.rows(src)
        if bool(held.all()):
            return of_rows(row, dst)
        drawn = of_rows(row, dst)  # all of them: which are hard follows from places in the call
        other = src[~held].repeat_interleave(k)
        drawn[~held] = self._uniform(g, other, generator).view(-1, k)
        return drawn

    def _uniform(self, g: Any, src: Tensor, generator: torch.Generator | None) -> Tensor:
        """One uniform admissible destination for each of some sources [P], held or not."""
        nodes = self.counts[1]
        drawn = torch.randint(0, nodes, src.shape, generator=generator)
        bad = torch.arange(src.numel())
        for _ in range(_ROUNDS):
            bad = bad[self._known(g, src[bad], drawn[bad])]
            if not bad.numel():
                return drawn
            drawn[bad] = torch.randint(0, nodes, bad.shape, generator=generator)
        bad = bad[self._known(g, src[bad], drawn[bad])]
        some, row = src[bad].unique(return_inverse=True)
        exact = self._edges_of(*edges_from(g, self.etype, some), some)
        drawn[bad] = exact.uniform_by_rank(row, generator=generator)
        return drawn

    def _known(self, g: Any, src: Tensor, dst: Tensor) -> Tensor:
        """Which pairs [P] are known edges, or self pairs of one type; bool [P]."""
        nodes = self.counts[1]
        from_, to = self.edges_into(g, dst.unique())
        found = torch.isin(src * nodes + dst, from_ * nodes + to)
        return found | (src == dst) if self.etype[0] == self.etype[2] else found

    def edges_into(self, g: Any, dst: Tensor) -> Pair:
        """The known edges that lead to some distinct destinations, from the servers: [P] each."""
        if not dst.numel():
            return dst, dst
        # All neighbours; `dgl.distributed.in_subgraph` fails on other machines up to DGL 2.1.
        found = require_dgl().distributed.sample_neighbors(g, {self.etype[2]: dst}, -1)
        src, dst = found.edges(etype=self.etype)
        return src, dst

    def batch(
        self, g: Any, known: KnownEdges, src: Tensor, dst: Tensor
    ) -> tuple[KnownEdges, Tensor]:
        """The known edges of some sources [B], each once, and the row of each of them, [B].

        Those of sources that are not held only as far as they lead to destinations, of any shape.
        """
        src, number = src.unique(return_inverse=True)
        row, held = self.rows(src)
        owner, node = known.barred_of(row[held])
        owner = held.nonzero().squeeze(1)[owner]
        if not bool(held.all()):
            from_, to = self.edges_into(g, dst.unique())
            place = torch.searchsorted(src, from_).clamp(max=src.numel() - 1)
            other = (src[place] == from_) & ~held[place]
            owner, node = torch.cat([owner, place[other]]), torch.cat([node, to[other]])
        return self._edges_of(owner, node, src), number

    def _edges_of(self, row: Tensor, dst: Tensor, src: Tensor) -> KnownEdges:
        one_type = self.etype[0] == self.etype[2]
        nodes = self.counts[1]
        return KnownEdges(
            row, dst, src.numel(), nodes, exclude_self=one_type, own=src if one_type else None
        )
