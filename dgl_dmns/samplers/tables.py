"""What is asked of tables: negatives, and the log ratios of what they were drawn from.

Negatives are looked up in loader workers, too; distributions are known where refreshes are made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dgl_dmns.core import (
    Candidates,
    CandidateTable,
    DiffusionGenerator,
    EdgeName,
    EdgeType,
    Embeddings,
    FilteredDraws,
    KnownEdges,
    Look,
    NodeDistribution,
    PoolSettings,
    Rule,
    Scorer,
    Snapshot,
    canonical_edge_type,
    check_tractable,
    shielded,
)
from dgl_dmns.samplers.method import TableMethod
from dgl_dmns.samplers.minibatch import checked_pairs, negative_pairs
from dgl_dmns.samplers.misuse import Asked
from dgl_dmns.samplers.refresher import Refresher
from dgl_dmns.samplers.relation import Relation, version_of

if TYPE_CHECKING:
    from dgl_dmns.samplers.base import NegativeSampler as _Sampler
else:
    _Sampler = object

__all__ = ["Source", "Tables"]

_DEFENSIVE = 0.5  # share of uniform negatives, from which on no weight exceeds two
_QUERIES = 64  # of a batch, whose mean stands for that of the others

Source = Literal["edge", "uniform"]
"""Where the source of a negative comes from: its positive edge, or all nodes alike."""


class Tables(_Sampler):
    """The part of `RefreshingSampler` that reads the tables; it has no life of its own."""

    relations: dict[EdgeType, Relation]
    rule: Rule
    settings: PoolSettings
    homogeneous: bool
    source: Source
    asked: Asked

    def _original(self, call: str) -> Refresher:
        """The refresher, which copies have none of."""
        raise NotImplementedError

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
        if relation.table.version == 0:
            raise RuntimeError(
                "sampler: it has not been refreshed, so that its negatives are uniform; call "
                "refresh() or attach() first"
            )
        if isinstance(embeddings, Mapping) and self.homogeneous:
            (embeddings,) = embeddings.values()
        ends = relation.ends(refresher.embedder.embeddings(embeddings))
        behind = refresher.staleness
        return Look(
            name=type(self).__name__,
            etype=relation.etype,
            known=relation.known,
            version=relation.table.version,
            snapshot=Snapshot.take(
                ends.h_query, ends.h_candidate, ends.known, ends.scorer, relation.model
            ),
            rows=relation.rows,
            uniform=False,
            lam=self.settings.lam,
            behind=(behind.refreshes, behind.steps, behind.age),
            chains=not relation.method.rebuilds_rows,
            draw=lambda: self._drawing(relation.etype),
        )

    # ---- negatives: all that workers do -----------------------------------------------------

    @shielded
    def draw(
        self, src: Tensor, etype: EdgeName | None = None, *, dst: Tensor | None = None
    ) -> Candidates:
        """Negatives with their levels for source nodes (after a refresh).

        Args:
            src: source ids, shape [B], int64, on the CPU.
            etype: edge type; may be left out where one is held.
            dst: destinations of the positive edges, shape [B], int64, for the groups whose turn it
                is; defaults to random groups of the rows.

        Returns:
            Candidates of shape [B, k].
        """
        return self.relation(etype).rows.draw(src, dst, generator=self._call_generator())

    def negatives(self, g: Any, src: Tensor, etype: EdgeType) -> Tensor:  # noqa: D102
        return self._drawn(g, src, None, etype)

    def negatives_for_edges(  # noqa: D102
        self, g: Any, src: Tensor, dst: Tensor, etype: EdgeType
    ) -> Tensor:
        # Each known edge gets the group of its source whose turn it is.
        return self._drawn(g, src, dst, etype)

    def _drawn(self, g: Any, src: Tensor, dst: Tensor | None, etype: EdgeType) -> Tensor:
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
            return relation.known.uniform(src, relation.k, generator=self._call_generator())
        return self._draw_ids(relation, src, dst)

    def _draw_ids(self, relation: Relation, src: Tensor, dst: Tensor | None) -> Tensor:
        """The ids of `draw`, shape [B, k], int64, without what a call has no use for."""
        return relation.rows.draw_ids(src, dst, generator=self._call_generator())

    def _pairs_for_edges(
        self, g: Any, src: Tensor, dst: Tensor, etype: EdgeType
    ) -> tuple[Tensor, Tensor]:
        if self.source == "edge" or not src.numel():
            return super()._pairs_for_edges(g, src, dst, etype)
        relation = self.relation(etype)
        count = src.numel() * relation.k
        # A loader of a graph that has grown since draws among the nodes that its graph has.
        nodes = min(relation.known.num_src, int(g.num_nodes(etype[0])))
        drawn = torch.randint(0, nodes, (count,), generator=self._call_generator())
        # Each negative has a source of its own; the first of a group has the exact distribution.
        if relation.table.version == 0:
            return drawn, self.negatives(g, drawn, etype)[:, 0]
        relation.check_call(g, drawn)
        return drawn, relation.rows.draw_one(drawn, generator=self._call_generator())

    # ---- log ratios -------------------------------------------------------------------------

    @shielded
    def log_ratio(self, negatives: Any) -> Any:
        """Log ratio ``log q(u|v) - log uniform(u)`` of each negative edge, in closed form.

        ``q`` is the mixture of the uniform share and of what the rule draws, by the embeddings of
        the last refresh, so that it is known in the process that refreshes (not in loader workers).

        Args:
            negatives: the negative graph a loader returned; or a GraphBolt minibatch; or a pair
                ``(src, dst)`` of node id tensors of the whole graph, shape [P]; or a dict of such
                pairs by edge type.

        Returns:
            Log ratios, shape [P], float32, in the order of the edges; for a heterogeneous graph or
            a dict, a dict of those by canonical edge type (by the keys of a minibatch), with every
            edge type that is held and in ``negatives``. 0 before the first refresh, whose negatives
            are uniform. A warning says, once, where the pairs are another sampler's negatives or
            the positive graph's.

        Raises:
            RuntimeError: as for `distribution`, after the first refresh.
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
            return self._of_negatives(self.relation(), *pairs)
        of = self._of_negatives
        return {key: of(self.relation(etype), *pair) for key, (etype, pair) in pairs.items()}

    @shielded
    def positive_log_ratio(self, positives: Any) -> Any:
        """Log ratio that positive edges have under the distribution of the negatives.

        For ``pos_log_ratio=`` of `dgl_dmns.losses`, beside ``log_ratio=`` for the negatives: what
        the rule would have given them as candidates, see `dgl_dmns.core.distribution`. Pairs that
        are mostly no known edges, such as those of the negative graph, give a warning.

        Args:
            positives: the positive graph a loader returned; or a pair ``(src, dst)`` of node id
                tensors of the whole graph, shape [P]; or a dict of such pairs by edge type.

        Returns:
            Log ratios in the form of `log_ratio`, shape [P], float32.

        Raises:
            RuntimeError: as for `distribution`.
            ValueError: if the rule's distribution is not tractable, no table is held for an edge
                type that has edges, or ids are out of range.
            TypeError: if ``positives`` is none of these, or ids are no integers.
        """
        if hasattr(positives, "seeds") or hasattr(positives, "node_pairs"):
            raise TypeError(
                "positives: a GraphBolt minibatch holds positives and negatives; pass the ids of "
                "its positive pairs in the whole graph, (src, dst)"
            )
        pairs = negative_pairs(positives, list(self.relations))
        of = self._of_positives
        if isinstance(pairs, tuple):
            return of(self.relation(), *pairs)
        return {key: of(self.relation(etype), *pair) for key, (etype, pair) in pairs.items()}

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
        return self._distribution(self.relation(etype))

    def _distribution(self, relation: Relation) -> NodeDistribution:
        embedder = self._original("distribution").embedder
        check_tractable(self.rule)
        method, h = relation.method, embedder.last
        if method.distribution is None and h is not None and isinstance(method, TableMethod):
            method.know_again(relation.ends(h))  # of a state that was loaded
        if method.distribution is None:
            raise RuntimeError(
                "distribution: there was no refresh yet, or none since the graph has changed; call "
                "refresh() or attach()"
            )
        return method.distribution

    def _of_negatives(self, relation: Relation, src: Tensor, dst: Tensor) -> Tensor:
        pairs = checked_pairs("negatives", (src, dst), relation.known, relation.etype)
        self.asked.for_ratios(type(self).__name__, relation, pairs)
        if relation.table.version == 0:
            return torch.zeros(src.shape, dtype=torch.float32, device=src.device)
        return self._distribution(relation).log_ratio(*pairs).to(src.device)

    def _of_positives(self, relation: Relation, src: Tensor, dst: Tensor) -> Tensor:
        pairs = checked_pairs("positives", (src, dst), relation.known, relation.etype)
        self.asked.for_positives(type(self).__name__, relation, pairs)
        return self._distribution(relation).log_ratio(*pairs).to(src.device)

    def scorer_of(self, etype: EdgeType) -> Scorer | None:  # noqa: D102
        return self.relations[etype].scorer

    def mixture_log_ratio(
        self, etype: EdgeType, src: Tensor, dst: Tensor, candidates: Tensor
    ) -> Tensor:
        """See `NegativeSampler.mixture_log_ratio`: exact for uniform draws and a query's own.

        The other queries of the batch are represented by some of them.

        Raises:
            ValueError: if less than half of the negatives are uniform, so that a candidate could
                weigh more than two uniform ones.
        """
        if not self.rule.tractable:
            return super().mixture_log_ratio(etype, src, dst, candidates)  # says what to take
        relation = self.relations[etype]
        share = relation.rows.uniform_share
        nodes, place = candidates.unique(return_inverse=True)
        uniform = FilteredDraws(relation.known).mixture_log_ratio(src, nodes)[place]
        if relation.table.version == 0 or share == 1:
            return uniform
        if share < _DEFENSIVE:
            raise ValueError(
                f"uniform_share: where the batch shares its negatives at least {_DEFENSIVE:g} of "
                f"them have to be uniform, so that none weighs too much, got {share:g}; make the "
                f"sampler with pools=Pools(uniform_share={_DEFENSIVE:g}), or take share='edge'"
            )
        count = len(src)
        own = self._hard_log_ratio(relation, src, candidates).exp() / count
        if count > 1:
            some = torch.arange(count)
            if count > _QUERIES:
                some = torch.randperm(count, generator=self._call_generator())[:_QUERIES]
            hard = self._distribution(relation).hard_log_ratios(src[some], nodes).double()
            hard = (hard + _admissible_share(relation.known, src[some]).unsqueeze(1)).exp_()
            total = hard.sum(0)[place]
            others = torch.full((count, 1), float(len(some)), dtype=torch.float64)
            # A query is no other of its own.
            total[some] -= hard.gather(1, place[some])
            others[some] -= 1
            own += total.clamp(min=0) / others.clamp(min=1) * ((count - 1) / count)
        return torch.logaddexp(uniform + math.log(share), own.log() + math.log1p(-share))

    def own_log_ratio(
        self, etype: EdgeType, src: Tensor, dst: Tensor, candidates: Tensor
    ) -> Tensor:
        """See `NegativeSampler.own_log_ratio`: in closed form.

        Raises:
            ValueError: if all negatives are chosen by the score alone.
        """
        if not self.rule.tractable:
            return super().own_log_ratio(etype, src, dst, candidates)
        relation = self.relations[etype]
        if relation.table.version == 0:
            return FilteredDraws(relation.known).own_log_ratio(src, candidates)
        share = relation.rows.uniform_share
        if not share and not self.rule.uses_generator:
            raise ValueError(
                "share='edge': the log ratio of negatives that the score alone has chosen is the "
                "score itself, so that nothing is left to learn; make the sampler with "
                "pools=Pools(uniform_share=0.5)"
            )
        hard = self._hard_log_ratio(relation, src, candidates)
        uniform = _admissible_share(relation.known, src).exp().unsqueeze(1)
        ratio = torch.log(share * uniform + (1 - share) * hard.exp())
        return ratio.masked_fill((relation.known.admissible_count(src) <= 0).unsqueeze(1), 0.0)

    def _hard_log_ratio(self, relation: Relation, src: Tensor, candidates: Tensor) -> Tensor:
        """Log of ``N q(u|v)`` of what the rule draws, of own candidates [B, K]; float64.

        Queries without an admissible node, who get themselves, or any node, have none: -inf.
        """
        query = src.repeat_interleave(candidates.shape[1])
        ratio = self._distribution(relation).hard_log_ratio(query, candidates.flatten())
        ratio = ratio.double() + _admissible_share(relation.known, query)
        none = relation.known.admissible_count(query) <= 0
        return ratio.masked_fill(none, -torch.inf).view_as(candidates)


def _admissible_share(known: KnownEdges, src: Tensor) -> Tensor:
    """Log of all nodes over the admissible ones of some sources, float64: ``N / A``."""
    count = known.admissible_count(src).clamp(min=1).double()
    left: Tensor = math.log(known.num_dst) - count.log()
    return left
