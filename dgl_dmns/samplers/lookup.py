"""The hot path of the samplers that keep tables: negatives and their log ratios by a look-up.

All that is here is there in loader workers, too. What fills the tables is in
`dgl_dmns.samplers.refreshing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, overload

import torch
from torch import Tensor

from dgl_dmns.core.generator import DiffusionGenerator
from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.modes import shielded
from dgl_dmns.core.rules import Rule
from dgl_dmns.core.table import Candidates, CandidateTable
from dgl_dmns.samplers.asked import Asked, checked_pairs
from dgl_dmns.samplers.base import EdgeName, EdgeType, NegativeSampler, canonical_edge_type
from dgl_dmns.samplers.negative_pairs import negative_pairs
from dgl_dmns.samplers.relation import Relation

__all__ = ["Source", "TableSampler"]

Source = Literal["edge", "uniform"]
"""Where the source of a negative comes from: its positive edge, or all nodes alike."""


class TableSampler(NegativeSampler):
    """Base of the samplers whose negatives stand in tables; a subclass makes ``relations``.

    Before a table is filled for the first time, negatives are filtered uniform.
    """

    relations: dict[EdgeType, Relation]
    rule: Rule
    source: Source
    asked: Asked

    def relation(self, etype: EdgeName | None = None) -> Relation:
        """What is held for an edge type: ``known``, ``table``, ``model``.

        Args:
            etype: canonical edge type, or the relation alone; may be left out where there is one.

        Raises:
            ValueError: if no table is held for it, or it has to be named.
        """
        if etype is None:
            if len(self.relations) != 1:
                raise ValueError(
                    f"etype: the sampler holds edge types {list(self.relations)}; name one, for "
                    "example in sampler.relation(etype).table"
                )
            return next(iter(self.relations.values()))
        return self.relations[canonical_edge_type(etype, list(self.relations), "etype")]

    @property
    def known(self) -> KnownEdges:
        """The known edges of the only edge type; otherwise, see `relation`."""
        return self.relation().known

    @property
    def table(self) -> CandidateTable:
        """The candidate table of the only edge type; otherwise, see `relation`."""
        return self.relation().table

    @property
    def model(self) -> DiffusionGenerator | None:
        """The generator of the only edge type, None before a refresh or where the rule needs none.

        For several edge types, see `relation`.
        """
        return self.relation().model

    @property
    def version(self) -> int:
        """How many refreshes the negatives that are drawn now have seen; readable in workers."""
        return min(relation.table.version for relation in self.relations.values())

    @shielded
    def draw(self, src: Tensor, etype: EdgeName | None = None) -> Candidates:
        """Negatives with their log ratios and levels for source nodes (after a refresh).

        Args:
            src: source ids, shape [B], int64, on the CPU.
            etype: edge type; may be left out where one is held.

        Returns:
            Candidates of shape [B, k].
        """
        return self.relation(etype).table.draw(src, generator=self._call_generator())

    def negatives(self, g: Any, src: Tensor, etype: EdgeType) -> Tensor:  # noqa: D102
        relation = self.relations.get(etype)
        if relation is None:
            if not src.numel():
                return src.new_empty(0, 1)
            raise ValueError(
                f"etype: no negatives for {etype}; the sampler holds {list(self.relations)}; name "
                "it in etypes=..., or in k if that is a dict (an edge type without edges has none)"
            )
        relation.check_call(g, src)
        if relation.table.version == 0:
            self.asked.before_a_refresh(type(self).__name__, src.numel())
            return relation.known.uniform(
                src, relation.table.shape[2], generator=self._call_generator()
            )
        return self._draw_ids(relation, src)

    def _draw_ids(self, relation: Relation, src: Tensor) -> Tensor:
        """The ids of `draw`, shape [B, k], int64, without what a call has no use for."""
        return relation.table.draw_ids(src, generator=self._call_generator())

    def _pairs_for_edges(
        self, g: Any, src: Tensor, dst: Tensor, etype: EdgeType
    ) -> tuple[Tensor, Tensor]:
        if self.source == "edge" or not src.numel():
            return super()._pairs_for_edges(g, src, dst, etype)
        count = src.numel() * self.relation(etype).table.shape[2]
        # A loader of a graph that has grown since draws among the nodes that its graph has.
        nodes = min(self.relation(etype).known.num_src, int(g.num_nodes(etype[0])))
        drawn = torch.randint(0, nodes, (count,), generator=self._call_generator())
        # Each negative has a source of its own; the first of a group has the exact distribution.
        return drawn, self.negatives(g, drawn, etype)[:, 0]

    @overload
    def log_ratio(self, negatives: tuple[Tensor, Tensor]) -> Tensor: ...

    @overload
    def log_ratio(
        self, negatives: Mapping[Any, tuple[Tensor, Tensor]]
    ) -> dict[EdgeType, Tensor]: ...

    @shielded
    def log_ratio(self, negatives: Any) -> Any:
        """Log ratio ``log q(u|v) - log uniform(u)`` of each negative edge.

        Args:
            negatives: the negative graph a loader returned; or a GraphBolt minibatch; or a pair
                ``(src, dst)`` of node id tensors of the whole graph, shape [P]; or a dict of such
                pairs by edge type.

        Returns:
            Log ratios, shape [P], float32, in the order of the edges; for a heterogeneous graph or
            a dict, a dict of those by canonical edge type (by the keys of a minibatch), with every
            edge type that is held and in ``negatives``. They belong to the table's live version or
            the one before; 0 for pairs that stand in neither, which is right for those drawn before
            the first refresh. Where it is not, as for another sampler's negatives or the positive
            graph, a warning says so, once.

        Raises:
            ValueError: if the rule's distribution is not tractable, no table is held for an edge
                type that has negatives, a minibatch has none yet, or ids are out of range.
            TypeError: if ``negatives`` is none of these, or ids are no integers.
        """
        if not self.rule.tractable:
            raise ValueError(
                f"rule: {type(self.rule).__name__} has no tractable distribution, so no log ratio; "
                "use a sampler with rule=Density() or Gate() for a calibrated loss"
            )
        pairs = negative_pairs(negatives, list(self.relations))
        if isinstance(pairs, tuple):
            return self._find_log_ratio(None, *pairs)
        return {key: self._find_log_ratio(etype, *pair) for key, (etype, pair) in pairs.items()}

    def _find_log_ratio(self, etype: EdgeType | None, src: Tensor, dst: Tensor) -> Tensor:
        relation = self.relation(etype)
        pairs = checked_pairs("negatives", (src, dst), relation.known, relation.etype)
        ratio, found = relation.table.look_for(*pairs)
        left = (~found).nonzero().squeeze(1)
        if left.numel():
            strange = (pairs[0][left], pairs[1][left])
            self.asked.for_ratios(type(self).__name__, relation, strange, len(found))
        return ratio.to(src.device)

    def _check_positives(self, etype: EdgeType | None, src: Tensor, dst: Tensor) -> None:
        """Warn, once, where pairs handed over as positives are mostly no known edges."""
        relation = self.relation(etype)
        pairs = checked_pairs("positives", (src, dst), relation.known, relation.etype)
        self.asked.for_positives(type(self).__name__, relation, pairs)
