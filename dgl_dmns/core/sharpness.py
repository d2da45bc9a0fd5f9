r"""How sharp a softmax of scores has to be: a factor on them that is measured at each refresh.

Scores of one size tell edges well in one model and hardly at all in another, so their size does not
say how hard a softmax of them is. What matters is what the softmax draws. Known edges tell: with
the scores of a query times a factor ``b``, a node ``u`` is drawn
``e^(b s(v, u)) / mean e^(b s(v, .))`` times as often as a uniform one, the mean over admissible
nodes. The factor sought is the least from 1 on with which known edges, had they stood in a pool,
would be drawn ``ratio`` times as often on (geometric) average:

    ``f(b) = E_edges [ b s(v, u+) - log mean_u e^(b s(v, u)) ] = log ratio``.

``f`` is concave, and 0 at ``b = 0``. Where it never gets there, scores cannot tell edges, so that
the hardest nodes are no likelier to be missing edges than others: the factor is then bounded by the
spread alone, ``b <= 4 / (standard deviation of the scores of a query)``. Scores that are sharp
enough stay as they are (``b = 1``), since a calibrated loss can use harder negatives than the ratio
asks for.

Sharp negatives can make the scores themselves shrink, from refresh to refresh, where a loss has
positives and their many negatives in one mean: `sharpened` warns when it looks like that.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dgl_dmns.core.bisection import bisect
from dgl_dmns.core.choice import distinct_pools
from dgl_dmns.core.rules import Rule
from dgl_dmns.core.snapshot import Snapshot
from dgl_dmns.messages import warn

__all__ = ["sharpened", "sharpness_for"]

_CHUNKS, _QUERIES, _POOL = 4, 64, 128  # known edges are weighed in chunks that share a pool
_STEEPEST = 4.0  # standard deviations
_HALVINGS = 12  # of the interval that holds the factor
_LEARNED, _FLAT = 20, 1000.0  # refreshes by which scores should need no such factor


def sharpened(
    snapshot: Snapshot,
    rule: Rule,
    *,
    refreshes: int = 0,
    generator: torch.Generator | None = None,
) -> Snapshot:
    """A snapshot with the factor that a rule's ``edge_ratio`` asks for; as it is without one.

    Args:
        snapshot: embeddings, scorer and known edges.
        rule: the selection rule.
        refreshes: how many there were before; from the twentieth on, scores of one query within
            some thousandths of one another give a warning.
        generator: source of the edges and pools that are looked at.
    """
    if rule.edge_ratio is None:
        return snapshot
    factor = sharpness_for(snapshot, rule.edge_ratio, generator=generator)
    if refreshes >= _LEARNED and factor > _FLAT:
        warn(
            f"scores hardly differ after {refreshes} refreshes (sharpness {factor:.0f}): negatives "
            "this hard seem to keep the model from learning; average positives and negatives apart "
            "(dgl_dmns.losses.bce_loss with balanced=True), or leave edge_ratio out",
        )
    return replace(snapshot, sharpness=factor)


@torch.no_grad()
def sharpness_for(
    snapshot: Snapshot, ratio: float, *, generator: torch.Generator | None = None
) -> float:
    """The least factor from 1 on under which known edges are drawn ``ratio`` times as often.

    Args:
        snapshot: embeddings, scorer and known edges.
        ratio: how many times as often as a uniform node, more than 1.
        generator: source of the edges and pools that are looked at.

    Returns:
        A factor of at least 1; 1 where there is nothing to measure (no known edges, or scores that
        are equal or not finite, which filling a table refuses).
    """
    known = snapshot.known
    if not known.indices.numel():
        return 1.0
    device = known.indices.device
    shape = (_CHUNKS, _QUERIES)
    edge = torch.randint(known.indices.numel(), shape, generator=generator, device=device)
    src = torch.searchsorted(known.indptr, edge, right=True) - 1
    dst = known.indices[edge].long()
    pool = distinct_pools(_CHUNKS, _POOL, known.num_dst, generator, device)
    score = snapshot.scores(src, pool).flatten(0, 1)
    edge_score = snapshot.scores(src.view(-1, 1), dst.view(-1, 1)).flatten()
    usable = ~known.contains(src.unsqueeze(2), pool.unsqueeze(1)).flatten(0, 1)
    some = usable.any(-1)
    return max(1.0, _least_factor(edge_score[some], score[some], usable[some], ratio))


def _least_factor(edge_score: Tensor, score: Tensor, usable: Tensor, ratio: float) -> float:
    """The factor for scores [P] of edges and [P, M] of the usable members of their pools."""
    count = usable.sum(-1)
    mean = score.masked_fill(~usable, 0.0).sum(-1) / count
    deviation = (score - mean.unsqueeze(1)).masked_fill(~usable, 0.0)
    spread = float((deviation.square().sum(-1) / count).sqrt().mean())
    if not 0.0 < spread < float("inf"):
        return 1.0
    # Only differences to the mean of a query matter, and the spread is the unit.
    edge = (edge_score - mean) / spread
    others = (deviation / spread).masked_fill(~usable, -torch.inf)
    goal = edge.new_tensor(ratio).log()

    def mean_log_ratio(factor: float) -> Tensor:
        return (factor * edge - (factor * others).logsumexp(-1) + count.float().log()).mean()

    def rises(factor: float) -> bool:
        drawn = (factor * others).softmax(-1)
        return bool(edge.mean() > (drawn * deviation).sum(-1).mean() / spread)

    def falls_short(factor: float) -> bool:
        return not bool(mean_log_ratio(factor) >= goal)

    # The mean is concave: first to its maximum, then to the goal on the way there.
    most = _STEEPEST
    if not rises(most):
        _, most = bisect(rises, 0.0, most, _HALVINGS)
    if falls_short(most):
        return _STEEPEST / spread
    _, least = bisect(falls_short, 0.0, most, _HALVINGS)
    return least / spread
