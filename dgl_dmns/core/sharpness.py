r"""How sharp a softmax of scores has to be: a factor on them that is measured at each refresh.

Scores of one size tell edges well in one model and hardly at all in another, so their size does not
say how hard a softmax of them is. Known edges tell: with the scores of a query times a factor
``b``, a node ``u`` is drawn ``e^(b s(v, u)) / mean e^(b s(v, .))`` times as often as a uniform one,
the mean over admissible nodes. The factor sought is the least from 1 on with which known edges, had
they stood in a pool, would be drawn ``ratio`` times as often on (geometric) average:

    f(b) = E_edges [ b s(v, u+) - log mean_u e^(b s(v, u)) ] = log ratio.

``f`` is concave, and 0 at ``b = 0``. If it never gets there, scores cannot tell edges, and the
factor is bounded by the spread alone, ``b <= 4 / (standard deviation of the scores of a query)``.
Scores that are sharp enough stay as they are (``b = 1``).

Sharp negatives can make the scores themselves shrink, from refresh to refresh, where a loss has
positives and their many negatives in one mean; a warning says when it looks like that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dgl_dmns.core.snapshot import Snapshot
from dgl_dmns.messages import warn

__all__ = ["measured_sharpness"]

_CHUNKS, _QUERIES, _POOL = 4, 64, 128  # known edges are weighed in chunks that share a pool
_STEEPEST = 4.0  # standard deviations
_HALVINGS = 12  # of the interval that holds the factor
_LEARNED, _FLAT = 20, 1000.0  # refreshes by which scores should need no such factor


@torch.no_grad()
def measured_sharpness(
    snapshot: Snapshot,
    ratio: float,
    *,
    refreshes: int = 0,
    generator: torch.Generator | None = None,
) -> float:
    """The least factor from 1 on under which known edges are drawn ``ratio`` times as often.

    From the twentieth refresh on, scores that hardly differ give a warning.

    Args:
        snapshot: embeddings, scorer and known edges.
        ratio: how many times as often as a uniform node, more than 1.
        refreshes: how many there were before.
        generator: source of the edges and pools that are looked at.

    Returns:
        A factor of at least 1; 1 if there is nothing to measure.
    """
    known = snapshot.known
    if not known.indices.numel():
        return 1.0
    device = known.indices.device
    shape = (_CHUNKS, _QUERIES)
    edge = torch.randint(known.indices.numel(), shape, generator=generator, device=device)
    src = torch.searchsorted(known.indptr, edge, right=True) - 1
    dst = known.indices[edge].long()
    pool = snapshot.pools(_CHUNKS, _POOL, generator)
    score = snapshot.scores(src, pool).flatten(0, 1)
    edge_score = snapshot.scores(src.view(-1, 1), dst.view(-1, 1)).flatten()
    usable = ~known.contains(src.unsqueeze(2), pool.unsqueeze(1)).flatten(0, 1)
    some = usable.any(-1)
    factor = max(1.0, _least_factor(edge_score[some], score[some], usable[some], ratio))
    if refreshes >= _LEARNED and factor > _FLAT:
        warn(
            f"scores hardly differ after {refreshes} refreshes (sharpness {factor:.0f}): negatives "
            "this hard seem to keep the model from learning; average positives and negatives apart "
            "(dgl_dmns.losses.bce_loss with balanced=True), or leave edge_ratio out"
        )
    return factor


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

    def rises(factor: float) -> bool:
        drawn = (factor * others).softmax(-1)
        return bool(edge.mean() > (drawn * deviation).sum(-1).mean() / spread)

    def falls_short(factor: float) -> bool:
        log_ratio = factor * edge - (factor * others).logsumexp(-1) + count.float().log()
        return not bool(log_ratio.mean() >= goal)

    # The mean is concave: first to its maximum, then to the goal on the way there.
    most = _STEEPEST
    if not rises(most):
        most = _bisect(rises, most)
    if falls_short(most):
        return _STEEPEST / spread
    return _bisect(falls_short, most) / spread


def _bisect(holds: Callable[[float], bool], high: float) -> float:
    """Where a property ends that holds from 0 on and no longer at ``high``, a little beyond."""
    low = 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return high
