"""What is asked of tables: negatives, and the log ratios of what they were drawn from.

Negatives are looked up in loader workers, too; distributions are known where refreshes are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from dgl_dmns.core import (
    Candidates,
    CandidateTable,
    DiffusionGenerator,
    EdgeName,
    EdgeType,
    Embeddings,
    KnownEdges,
    Look,
    NodeDistribution,
    PoolSettings,
    Rule,
    Snapshot,
    canonical_edge_type,
    check_tractable,
    shielded,
)
from dgl_dmns.samplers.graphs import Pair
from dgl_dmns.samplers.method import TableMethod
from dgl_dmns.samplers.minibatch import checked_pairs, is_minibatch, negative_pairs
from dgl_dmns.samplers.misuse import Asked
from dgl_dmns.samplers.refresher import Refresher
from dgl_dmns.samplers.relation import Relation, version_of

if TYPE_CHECKING:
    import pandas as pd

    from dgl_dmns.samplers.base import NegativeSampler as _Sampler
else:
    _Sampler = object

__all__ = ["Source", "Tables"]

Source = Literal["edge", "uniform"]
"""Where the source of a negative comes from: its positive edge, or all nodes alike."""


class Tables(_Sampler):
    """The part of `RefreshingSampler` that reads the tables; it has no life of its own."""

    relations: dict[EdgeType, Relation]
    rule: Rule
    settings: PoolSettings
    source: Source
    asked: Asked
    refresher: Refresher | None
    takes: ClassVar[tuple[str, ...]]

    def _original(self, call: str) -> Refresher:
        """The refresher, which copies have none of."""
        if self.refresher is None:
            raise RuntimeError(
                f"{call}: this is a copy of a sampler (pickled, or from copy.copy or deepcopy); a "
                "copy looks up negatives, and has no encoder, graph or generator; use the sampler "
                "it was made from, or make a new one"
            )
        return self.refresher

    @property
    def known_by_type(self) -> dict[EdgeType, KnownEdges]:
        """The known edges of every edge type that is held."""
        return {etype: relation.known for etype, relation in self.relations.items()}

    def relation(self, etype: EdgeName | None = None) -> Relation:
        """What is held for an edge type: ``known``, ``table``, ``model``.

        Args:
            etype: canonical edge type, or the relation alone; may be left out where there is one.

        Raises:
            ValueError: if no table is held for it, or it has to be named.
        """
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
        """The diffusion model of the only edge type, None before a refresh or without one."""
        return self.relation().model

    @property
    def version(self) -> int:
        """How many refreshes the negatives that are drawn now have seen; readable in workers."""
        return version_of(self.relations)

    @shielded
    def look(  # noqa: D102
        self, etype: EdgeName | None = None, embeddings: Embeddings | None = None
    ) -> Look:
        refresher = self._original("look")
        relation = self.relation(etype)
        if relation.share is not None:
            relation.share.refuse("look")
        if relation.table.version == 0:
            raise RuntimeError(
                "sampler: it has not been refreshed, so that its negatives are uniform; call "
                "refresh() or attach() first"
            )
        ends = relation.ends(refresher.embedder.embeddings(embeddings))
        behind = refresher.staleness
        return Look(
            name=type(self).__name__,
            etype=relation.etype,
            known=relation.known,
            version=relation.table.version,
            snapshot=Snapshot(
                ends.h_query, ends.h_candidate, ends.known, ends.scorer, relation.model
            ),
            rows=relation.rows,
            uniform=False,
            lam=self.settings.lam,
            behind=(behind.refreshes, behind.steps, behind.age),
            chains=not relation.method.rebuilds_rows,
            draw=lambda: self._drawing(relation.etype),
        )

    @shielded
    def draw(
        self, src: Tensor, etype: EdgeName | None = None, *, dst: Tensor | None = None
    ) -> Candidates:
        """Negatives with their levels for source nodes (after a refresh): [B, k].

        Args:
            src: source ids, shape [B], int64, on the CPU.
            etype: edge type; may be left out where one is held.
            dst: destinations of the positive edges, shape [B], int64, for the groups whose turn it
                is; defaults to random groups of the rows.
        """
        relation = self.relation(etype)
        if relation.share is not None:
            relation.share.refuse("draw")
        return relation.rows.draw(src, dst, generator=self._call_generator())

    def stats(self, **arguments: Any) -> pd.DataFrame:  # noqa: D102
        self._original("stats")
        return super().stats(**arguments)

    def negatives(self, g: Any, src: Tensor, etype: EdgeType) -> Tensor:  # noqa: D102
        return self.negatives_for_edges(g, src, None, etype)

    def negatives_for_edges(  # noqa: D102
        self,
        g: Any,
        src: Tensor,
        dst: Tensor | None,
        etype: EdgeType,
        eids: Tensor | None = None,  # where they are known: edges are found faster
    ) -> Tensor:
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
            self.asked.before_a_refresh(src.numel())

        def of_rows(row: Tensor, dst: Tensor | None) -> Tensor:
            if relation.table.version == 0:
                known, generator = relation.known.on(row.device), self._call_generator(row.device)
                return known.uniform(row, relation.k, generator=generator)
            numbers = eids if relation.share is None and row.device.type == "cpu" else None
            return self._draw_ids(relation, row, dst, numbers)

        if relation.share is None:
            return of_rows(src, dst)
        self.asked.of_share(relation.share.rows(src)[1])
        return relation.share.negatives(
            g, src, dst, relation.k, of_rows, generator=self._call_generator()
        )

    def _draw_ids(
        self, relation: Relation, src: Tensor, dst: Tensor | None, eids: Tensor | None
    ) -> Tensor:
        """The ids of `draw`, shape [B, k], int64, without what a call has no use for."""
        generator = self._call_generator(src.device)
        return relation.rows_on(src.device).draw_ids(src, dst, eids, generator=generator)

    def _pairs_for_edges(
        self, g: Any, src: Tensor, dst: Tensor, etype: EdgeType, eids: Tensor
    ) -> Pair:
        if self.source == "edge" or not src.numel():
            chosen = self.negatives_for_edges(g, src, dst, etype, eids)
            return src.repeat_interleave(chosen.shape[1]), chosen.flatten()
        relation = self.relation(etype)
        count = src.numel() * relation.k
        # A loader of a graph that has grown since draws among the nodes that its graph has.
        nodes = min(relation.known.num_src, int(g.num_nodes(etype[0])))
        generator = self._call_generator(src.device)
        drawn = torch.randint(0, nodes, (count,), generator=generator, device=src.device)
        # Each negative has a source of its own; the first of a group has the exact distribution.
        if relation.table.version == 0:
            return drawn, self.negatives(g, drawn, etype)[:, 0]
        relation.check_call(g, drawn)
        return drawn, relation.rows_on(src.device).draw_one(drawn, generator=generator)

    @shielded
    def log_ratio(self, negatives: Any) -> Any:
        """Log ratio ``log q(u|v) - log uniform(u)`` of each negative edge, in closed form.

        ``q`` is the mixture of the uniform share and of what the rule draws, by the embeddings of
        the last refresh: it is known in the process that refreshes (not in loader workers). A
        warning says, once, where pairs are another sampler's negatives or the positive graph's.

        Args:
            negatives: the negative graph a loader returned; or a GraphBolt minibatch; or a pair
                ``(src, dst)`` of node id tensors of the whole graph, shape [P]; or a dict of such
                pairs by edge type.

        Returns:
            Log ratios, shape [P], float32, in the order of the edges; 0 before the first refresh.
            For a heterogeneous graph or a dict, a dict of those by canonical edge type (by the keys
            of a minibatch), with every edge type that is held and in ``negatives``.

        Raises:
            RuntimeError: as for `distribution`, after the first refresh.
            ValueError: if the rule's distribution is not tractable, no table is held for an edge
                type that has negatives, a minibatch has none yet, or ids are out of range.
            TypeError: if ``negatives`` is none of these, or ids are no integers.
        """
        return self._ratios("negatives", negatives, self.asked.for_ratios)

    @shielded
    def positive_log_ratio(self, positives: Any) -> Any:
        """Log ratio that positive edges have under the distribution of the negatives.

        For ``pos_log_ratio=`` of `dgl_dmns.losses`, beside ``log_ratio=`` for the negatives: what
        the rule would have given them as candidates, see `dgl_dmns.core.distribution`. Pairs that
        are mostly no known edges, such as those of the negative graph, give a warning.

        Args:
            positives: the positive graph a loader returned; or pairs as for `log_ratio`.

        Returns:
            Log ratios in the form of `log_ratio`, shape [P], float32.

        Raises:
            RuntimeError: as for `distribution`.
            ValueError, TypeError: as for `log_ratio`; also for a minibatch.
        """
        if is_minibatch(positives):
            raise TypeError(
                "positives: a GraphBolt minibatch holds positives and negatives; pass the ids of "
                "its positive pairs in the whole graph, (src, dst)"
            )
        return self._ratios("positives", positives, self.asked.for_positives)

    def _ratios(self, name: str, given: Any, judge: Callable[[Relation, Pair], None]) -> Any:
        """Log ratios of pairs in any form, by edge type where they are; ``judge`` may warn."""
        check_tractable(self.rule)

        def of(relation: Relation, pair: Pair) -> Tensor:
            pairs = checked_pairs(name, pair, relation.counts, relation.etype)

            def of_rows(row: Tensor, dst: Tensor) -> Tensor:
                judge(relation, (row, dst))
                if relation.table.version == 0 and name == "negatives":  # those are uniform
                    return torch.zeros(row.shape, dtype=torch.float32)
                return self._distribution(relation).log_ratio(row, dst)

            return relation.over(of_rows, *pairs).to(pair[0].device)

        pairs = negative_pairs(given, list(self.relations))
        if isinstance(pairs, tuple):
            return of(self.relation(), pairs)
        return {key: of(self.relation(etype), pair) for key, (etype, pair) in pairs.items()}

    def distribution(self, etype: EdgeName | None = None) -> NodeDistribution:
        """The distribution that the last refresh drew from: it samples, and it has densities.

        Args:
            etype: edge type; may be left out where one is held.

        Raises:
            RuntimeError: before the first refresh, and after the graph has changed, until the next
                one; or if this is a copy.
            ValueError: if the rule's distribution is not tractable, or the edge type has to be
                named.
        """
        self._original("distribution")
        relation = self.relation(etype)
        if relation.share is not None:
            relation.share.refuse("distribution")
        return self._distribution(relation)

    def _distribution(self, relation: Relation) -> NodeDistribution:
        """The same of any relation; of a share by row."""
        h = self._original("distribution").embedder.last
        check_tractable(self.rule)
        method = relation.method
        if method.distribution is None and h is not None and isinstance(method, TableMethod):
            method.know_again(relation.ends(h))  # of a state that was loaded
        if method.distribution is None:
            raise RuntimeError(
                "distribution: there was no refresh yet, or none since the graph has changed; call "
                "refresh() or attach()"
            )
        return method.distribution

    def check_identity(self, g: Any, etype: EdgeType, pairs: Pair | None) -> None:  # noqa: D102
        relation = self.relations.get(etype)
        if relation is None or relation.share is None:  # of a share all has come from the servers
            super().check_identity(g, etype, pairs)
