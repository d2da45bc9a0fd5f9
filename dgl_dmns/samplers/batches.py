"""What the loss over negatives that a batch shares asks of tables: their mixture's log ratios."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgl_dmns.core import EdgeType, FilteredDraws, KnownEdges, Scorer
from dgl_dmns.samplers.relation import Relation
from dgl_dmns.samplers.tables import Tables
from dgl_dmns.shared_softmax import Share

__all__ = ["Batches"]

_DEFENSIVE = 0.5  # share of uniform negatives, from which on no weight exceeds two
_QUERIES = 64  # of a batch, whose mean stands for that of the others


class Batches(Tables):
    """The part of `RefreshingSampler` that its loss asks; it has no life of its own."""

    _last: tuple[EdgeType, Tensor, KnownEdges, Tensor] | None = None  # of a share, for one batch

    def scorer_of(self, etype: EdgeType) -> Scorer | None:  # noqa: D102
        return self.relations[etype].scorer

    def _draws(self, etype: EdgeType, dst: Tensor) -> FilteredDraws:
        if not self.rule.tractable:
            return super()._draws(etype, dst)  # says what to take
        return FilteredDraws(self.relations[etype].known)

    def known_of_batch(  # noqa: D102
        self, etype: EdgeType, src: Tensor, nodes: Tensor
    ) -> tuple[KnownEdges, Tensor]:
        relation = self.relations[etype]
        if relation.share is None:
            return relation.known, src
        last = self._last
        if last is not None and last[0] == etype and torch.equal(last[1], src):
            return last[2], last[3]
        queries, row = src.unique(return_inverse=True)
        g = self._original("loss").embedder.g
        known = relation.share.batch(g, relation.known, queries, nodes.flatten())
        if bool(relation.share.rows(queries)[1].all()):  # all of their edges are among these
            self._last = etype, src.clone(), known, row
        return known, row

    def batch_log_ratio(
        self, etype: EdgeType, src: Tensor, dst: Tensor, candidates: Tensor, share: Share = "batch"
    ) -> Tensor:
        """See `NegativeSampler.batch_log_ratio`: exact for uniform draws and a query's own.

        The other queries of the batch are represented by some of them.

        Raises:
            ValueError: if less than half of the negatives are uniform, so that a candidate could
                weigh more than two uniform ones; with ``share="edge"``, if all are chosen by the
                score alone.
        """
        uniform = super().batch_log_ratio(etype, src, dst, candidates, share)
        relation = self.relations[etype]
        fresh = relation.rows.uniform_share
        if relation.table.version == 0 or fresh == 1:
            return uniform
        if share == "batch" and fresh < _DEFENSIVE:
            raise ValueError(
                f"uniform_share: where the batch shares its negatives at least {_DEFENSIVE:g} of "
                f"them have to be uniform, so that none weighs too much, got {fresh:g}; make the "
                f"sampler with pools=Pools(uniform_share={_DEFENSIVE:g}), or take share='edge'"
            )
        if share == "edge" and not fresh and not self.rule.uses_generator:
            raise ValueError(
                "share='edge': the log ratio of negatives that the score alone has chosen is the "
                "score itself, so that nothing is left to learn; make the sampler with "
                "pools=Pools(uniform_share=0.5)"
            )
        # Of N q(u|v) of what the rule draws; a query without an admissible node has none.
        known, row = self.known_of_batch(etype, src, candidates)
        draws = self._distribution(relation)
        query = src.repeat_interleave(candidates.shape[1])
        hard = relation.over(draws.hard_log_ratio, query, candidates.flatten()).view_as(candidates)
        left = known.admissible_count(row).unsqueeze(1)
        hard = (hard.double() + _admissible_share(known, row).unsqueeze(1)).exp()
        hard = hard.masked_fill(left <= 0, 0.0)
        if share == "edge":
            ratio = torch.log(fresh * uniform.exp() + (1 - fresh) * hard)
            return ratio.masked_fill(left <= 0, 0.0)
        mean = self._mean_of_batch(relation, (known, row), src, candidates, hard)
        return torch.logaddexp(uniform + math.log(fresh), mean.log() + math.log1p(-fresh))

    def _mean_of_batch(
        self,
        relation: Relation,
        known_of: tuple[KnownEdges, Tensor],
        src: Tensor,
        candidates: Tensor,
        own: Tensor,
    ) -> Tensor:
        """The mean of ``N q(u|v)`` over the queries of a batch, given that of each one's own."""
        known, row = known_of
        count = len(src)
        if count == 1:
            return own
        some = torch.arange(count)
        if count > _QUERIES:
            some = torch.randperm(count, generator=self._call_generator())[:_QUERIES]
        nodes, place = candidates.unique(return_inverse=True)
        draws = self._distribution(relation)
        hard = relation.over(lambda rows: draws.hard_log_ratios(rows, nodes), src[some]).double()
        if relation.share is not None:  # those that are not held draw no known edges, either
            barred = known.contains(row[some].unsqueeze(1), nodes)
            hard = hard.masked_fill(barred, -math.inf)
        hard = (hard + _admissible_share(known, row[some]).unsqueeze(1)).exp_()
        total = hard.sum(0)[place]
        others = torch.full((count, 1), float(len(some)), dtype=torch.float64)
        # A query is no other of its own.
        total[some] -= hard.gather(1, place[some])
        others[some] -= 1
        return (own + total.clamp(min=0) / others.clamp(min=1) * (count - 1)) / count


def _admissible_share(known: KnownEdges, src: Tensor) -> Tensor:
    """Log of all nodes over the admissible ones of some sources, float64: ``N / A``."""
    count = known.admissible_count(src).clamp(min=1).double()
    left: Tensor = math.log(known.num_dst) - count.log()
    return left
