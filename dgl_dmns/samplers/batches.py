"""What the loss over negatives that a batch shares asks of tables."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgl_dmns.core import EdgeType, FilteredDraws, KnownEdges, Scorer, check_tractable
from dgl_dmns.samplers.tables import Tables
from dgl_dmns.shared_softmax import Comparison

__all__ = ["Batches"]


class Batches(Tables):
    """The part of `RefreshingSampler` that its loss asks; it has no life of its own."""

    _last: tuple[EdgeType, Tensor, KnownEdges, Tensor] | None = None  # of a share, for one batch

    def scorer_of(self, etype: EdgeType) -> Scorer | None:  # noqa: D102
        return self.relations[etype].scorer

    def _draws(self, etype: EdgeType, dst: Tensor) -> FilteredDraws:
        return FilteredDraws(self.relations[etype].known)

    def chosen(self, etype: EdgeType, places: Tensor) -> Tensor | None:
        """See `NegativeSampler.chosen`: those of the table.

        Raises:
            ValueError: if all are.
        """
        rows = self.relations[etype].rows
        if not rows.uniform_share:
            advice = "make it with pools=Pools(uniform_share=0.5), or take share='edge'"
            if "pools" not in self.takes:
                advice = "take UniformSampler or DMNSSampler"
            raise ValueError(
                f"uniform_share: a batch shares its uniform negatives, and {type(self).__name__} "
                f"draws none; {advice}"
            )
        return rows.chosen(places)

    def known_of_batch(  # noqa: D102
        self, etype: EdgeType, src: Tensor, nodes: Tensor
    ) -> tuple[KnownEdges, Tensor]:
        relation = self.relations[etype]
        if relation.share is None:
            return relation.known.on(src.device), src
        last = self._last
        if last is not None and last[0] == etype and torch.equal(last[1], src):
            return last[2], last[3]
        g = self._original("loss").embedder.g
        known, row = relation.share.batch(g, relation.known, src, nodes)
        if bool(relation.share.rows(src)[1].all()):  # all of their edges are among these
            self._last = etype, src.clone(), known, row
        return known, row

    def batch_log_ratio(
        self,
        etype: EdgeType,
        src: Tensor,
        dst: Tensor,
        candidates: Tensor,
        share: Comparison = "batch",
    ) -> Tensor:
        """See `NegativeSampler.batch_log_ratio`; in a batch, of the uniform draws alone.

        Raises:
            ValueError: with ``share="edge"``, if the rule has no tractable distribution, or if all
                negatives are chosen by the score alone.
        """
        uniform = super().batch_log_ratio(etype, src, dst, candidates, share)
        if share == "batch":
            return uniform
        check_tractable(self.rule)
        relation = self.relations[etype]
        fresh = relation.rows.uniform_share
        if relation.table.version == 0 or fresh == 1:
            return uniform
        if not fresh and not self.rule.uses_generator:
            raise ValueError(
                "share='edge': the log ratio of negatives that the score alone has chosen is the "
                "score itself, so that nothing is left to learn; make the sampler with "
                "pools=Pools(uniform_share=0.5)"
            )
        # Of N q(u|v) of what the rule draws; a query without an admissible node has none.
        known, row = self.known_of_batch(etype, src, candidates)
        draws = self._distribution(relation)
        query = src.repeat_interleave(candidates.shape[1])
        asked = query.cpu(), candidates.flatten().cpu()
        hard = relation.over(draws.hard_log_ratio, *asked).view(candidates.shape).to(src.device)
        left = known.admissible_count(row).unsqueeze(1)
        hard = hard.double() + math.log(known.num_candidates) - left.clamp(min=1).double().log()
        hard = hard.exp().masked_fill(left <= 0, 0.0)
        ratio = torch.log(fresh * uniform.exp() + (1 - fresh) * hard)
        return ratio.masked_fill(left <= 0, 0.0)
