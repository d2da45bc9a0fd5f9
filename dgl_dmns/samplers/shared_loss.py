"""`SharedLoss`: the loss that fits a sampler's negatives, for a batch as its loader returned it.

What a sampler has to know is one thing: the ratio of what a batch's queries draw to uniform draws.
A subclass of `NegativeSampler` answers for it in `SharedLoss._draws`, if its queries draw by
filtered weights, or else in `SharedLoss._mixture_log_ratio` and `SharedLoss._own_log_ratio`. Those
without a distribution answer for nothing, and the loss says what to take instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dgl_dmns.core import FilteredDraws, KnownEdges
from dgl_dmns.shared_softmax import Share, shared_softmax_loss

if TYPE_CHECKING:
    from dgl_dmns.core import Scorer
    from dgl_dmns.samplers.base import EdgeType
    from dgl_dmns.samplers.batches import PairBatch
    from dgl_dmns.samplers.relation import Scorers

__all__ = ["SharedLoss"]

_FEW = 16  # negatives that say nothing


class SharedLoss:
    """Softmax cross-entropy against the negatives of the whole batch, as a method of samplers."""

    known_by_type: dict[EdgeType, KnownEdges]
    _call_generator: Callable[[], torch.Generator | None]

    def loss(
        self,
        h: Any,
        pos_graph: Any,
        neg_graph: Any = None,
        *,
        scorer: Scorers | None = None,
        temperature: float = 1.0,
        share: Share = "batch",
        pool: int | None = None,
        reduce: Literal["sum", "none"] = "sum",
    ) -> Any:
        """The loss of a minibatch: softmax cross-entropy of each positive against all negatives.

        In place of scores and a loss of your own::

            for input_nodes, pos_graph, neg_graph, blocks in loader:
                h = model(blocks, blocks[0].srcdata["feat"])
                loss = negatives.loss(h, pos_graph, neg_graph)

        Every negative of the batch is compared with every positive, except for known edges, and
        weighed so that the sum over them is an unbiased estimate of that over all nodes that are
        not known to the query: see `dgl_dmns.shared_softmax`.

        Args:
            h: embeddings of the batch's nodes, shape [n, D], in the order of
                ``pos_graph.ndata[dgl.NID]``: what the model returns for the blocks. A dict by node
                type for several.
            pos_graph: the positive graph that a loader returned with this sampler's negatives, also
                one of a ``DistGraph``; or a GraphBolt minibatch.
            neg_graph: the negative graph; left out with a minibatch.
            scorer: scores of broadcastable embeddings, or a dict of such by edge type; where not
                given the one that the sampler was made with, or else the inner product.
            temperature: positive; scores are divided by it.
            share: ``"batch"``, or ``"edge"`` to compare each positive with its own negatives alone.
            pool: at most so many of the batch's negatives, drawn at random, are scored against all
                positives, and each positive's own besides; None for all.
            reduce: with several edge types, ``"sum"`` of their losses, or ``"none"``: a dict of
                them by canonical edge type (by the keys of a minibatch).

        Returns:
            The mean loss over the positives, a scalar, float32; with several edge types see
            ``reduce``. 0 for an empty batch.

        Raises:
            ValueError: if the sampler's negatives have no tractable distribution, if embeddings,
                graphs or arguments do not fit, or if a score is NaN or infinite.
            TypeError: if an argument is of another kind.
            RuntimeError: of a sampler that follows an encoder, after its graph has changed, until
                the next refresh.
        """
        from dgl_dmns.samplers.batches import pair_batches
        from dgl_dmns.samplers.relation import scorers_by_type

        if reduce not in ("sum", "none"):
            raise ValueError(f"reduce: expected 'sum' or 'none', got {reduce!r}")
        held = list(self.known_by_type)
        batches = pair_batches(h, pos_graph, neg_graph, held)
        scorer_of = scorers_by_type(scorer, [batch.etype for batch in batches.values()], held)
        if scorer is None:
            scorer_of = self._scorer_of
        losses = {
            key: self._loss_of(batch, scorer_of(batch.etype), temperature, share, pool)
            for key, batch in batches.items()
        }
        if reduce == "none":
            return losses
        if not losses:
            parts = h.values() if hasattr(h, "values") else [h]
            return torch.stack([(part[:0].float()).sum() for part in parts]).sum()
        return torch.stack(list(losses.values())).sum()

    def _scorer_of(self, etype: EdgeType) -> Scorer | None:
        """The scorer that the sampler was made with, if any."""
        return None

    def _loss_of(
        self,
        batch: PairBatch,
        scorer: Scorer | None,
        temperature: float,
        share: Share,
        pool: int | None,
    ) -> Tensor:
        return shared_softmax_loss(
            batch.h,
            batch.src,
            batch.dst,
            batch.candidates,
            num_nodes=self.known_by_type[batch.etype].num_dst,
            known=self.known_by_type[batch.etype],
            ids=batch.ids,
            log_ratio=self._log_ratio_of(batch, share) if len(batch.src) else None,
            scorer=scorer,
            temperature=temperature,
            share=share,
            pool=pool,
            generator=self._call_generator(),
        )

    def _log_ratio_of(self, batch: PairBatch, share: Share) -> Tensor:
        """Log ratios of the candidates [B, K], float64, on the CPU."""
        src, dst = batch.ids[0][batch.src.cpu()], batch.ids[1][batch.dst.cpu()]
        candidates = batch.ids[1][batch.candidates.cpu()]
        self._check_negatives(batch.etype, src, candidates)
        ratio_of = self._own_log_ratio if share == "edge" else self._mixture_log_ratio
        ratio = ratio_of(batch.etype, src, dst, candidates)
        impossible = int((ratio == -torch.inf).sum())
        if impossible:
            raise ValueError(
                f"neg_graph: {impossible} negatives are none that {type(self).__name__} draws for "
                "these positives; pass a batch whose negatives this sampler drew"
            )
        return ratio

    def _check_negatives(self, etype: EdgeType, src: Tensor, candidates: Tensor) -> None:
        """Refuse positives in the place of negatives, which known edges are masked among.

        Raises:
            ValueError: if most of the candidates are known edges of their own queries.
        """
        known = self.known_by_type[etype]
        free = known.admissible_count(src) > 0
        own = known.contains(src[free].unsqueeze(1), candidates[free])
        if own.numel() >= _FEW and 2 * int(own.sum()) > own.numel():
            raise ValueError(
                f"neg_graph: {int(own.sum())} of {own.numel()} negatives are known edges of their "
                "sources; pass the positive graph first, and the negative graph that this sampler "
                "drew for it"
            )

    def _mixture_log_ratio(
        self, etype: EdgeType, src: Tensor, dst: Tensor, candidates: Tensor
    ) -> Tensor:
        """Log ratio to uniform draws of what the queries of a batch draw together.

        It is ``log rbar(u) = log(1 / B sum_j N q(u|v_j))`` with the N of the known edges'
        ``num_dst``, over the batch's own queries, each as often as it stands there, known edges at
        0. An unbiased estimate of ``1 / rbar(u)`` will do, and should not exceed a bound.

        Args:
            etype: canonical edge type.
            src: ids of the positives' sources, the queries, shape [B], int64, on the CPU.
            dst: ids of their destinations, shape [B], int64.
            candidates: ids of what each of them has drawn, shape [B, K], int64.

        Returns:
            Natural log ratios, shape [B, K], floating point; inf for a candidate that is to count
            nothing, -inf for one that cannot be drawn.

        Raises:
            ValueError: for a sampler whose draws have no tractable distribution.
        """
        nodes, place = candidates.unique(return_inverse=True)
        return self._draws(etype, dst).mixture_log_ratio(src, nodes)[place]

    def _own_log_ratio(
        self, etype: EdgeType, src: Tensor, dst: Tensor, candidates: Tensor
    ) -> Tensor:
        """Log ratio ``log(N q(u|v))`` of each query's own candidates, for ``share="edge"``.

        Arguments, result and errors as for `_mixture_log_ratio`, but ``candidates`` of shape
        [B, K], for each of which one is returned.
        """
        return self._draws(etype, dst).own_log_ratio(src, candidates)

    def _draws(self, etype: EdgeType, dst: Tensor) -> FilteredDraws:
        """What the queries of a batch draw from, by its edge type and its destinations [B].

        Raises:
            ValueError: for a sampler whose draws have no tractable distribution.
        """
        raise ValueError(
            f"loss: {type(self).__name__} has no distribution of its negatives that this loss can "
            "correct for; take UniformSampler, or DMNSSampler with Blend(), Gate() or Density(), "
            "or dgl_dmns.losses.softmax_loss(pos, neg) for each positive with its own"
        )
