"""What a refresh makes of one edge type: a fit, and a table that is filled from a snapshot.

It works on relations that are `apart` (see `dgl_dmns.samplers.relation`); what it makes is swapped
in by `dgl_dmns.samplers.refreshing`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dgl_dmns.core import FitReport, NodeDistribution, Rule, Snapshot, TableReport, fill_table
from dgl_dmns.samplers.relation import Relation
from dgl_dmns.samplers.stateful import StatefulSampler

__all__ = ["FillingSampler"]


class FillingSampler(StatefulSampler):
    """Base of `RefreshingSampler`: fits and fills; subclasses have their own ways of either."""

    def _fit(self, relation: Relation, h_query: Tensor, h_candidate: Tensor) -> FitReport | None:
        """Fit what the sampler learns, if anything; rules without a generator learn nothing.

        The embeddings [N, D] of both ends are one tensor where both ends have one type.
        """
        return None

    def _snapshot(self, relation: Relation, h_query: Tensor, h_candidate: Tensor) -> Snapshot:
        """What the rule chooses from."""
        model = relation.model if self.rule.uses_generator else None
        return Snapshot.take(h_query, h_candidate, relation.known, relation.scorer, model)

    def _rebuild(
        self,
        relation: Relation,
        h_query: Tensor,
        h_candidate: Tensor,
        nodes: Tensor | None,
        on_rows: Callable[[int], object],
    ) -> TableReport:
        snapshot = self._snapshot(relation, h_query, h_candidate)
        rule = self.rule.measured(snapshot, refreshes=self.version, generator=relation.random)
        relation.sharpness = rule.measures().get("sharpness", 1.0)
        return self._fill(relation, snapshot, nodes, on_rows)

    def _fill(
        self,
        relation: Relation,
        snapshot: Snapshot,
        nodes: Tensor | None,
        on_rows: Callable[[int], object],
    ) -> TableReport:
        """Fill the hidden table of an edge type, and keep the distribution that it drew from."""
        report, norms = fill_table(
            relation.table,
            self._rule(relation),
            self.settings,
            snapshot,
            nodes=nodes,
            chunk_bytes=self.resources.chunk_bytes,
            on_rows=on_rows,
            generator=relation.random,
        )
        relation.norms = norms
        relation.distribution = self._distribution(relation, snapshot)
        return report

    def _distribution(self, relation: Relation, snapshot: Snapshot) -> NodeDistribution | None:
        if not self.rule.tractable:
            return None
        rule = self._rule(relation)
        return NodeDistribution(rule, self.settings, snapshot, relation.norms, seed=relation.seed)

    def _rule(self, relation: Relation) -> Rule:
        """The rule with what the last refresh measured."""
        return self.rule.with_measures({"sharpness": relation.sharpness})
