"""The paper's multi-level loss on scores, in the two forms that are in use.

``L = (L_pos + L_neg) / 2``; ``L_pos`` is the mean of ``f(s)`` over the training edges, ``L_neg``
that of ``w f(-s')`` over their K negatives: the weighted sum divided by the number of terms.  The
paper writes ``f = -log sigmoid``; the authors' code uses ``f = -sigmoid``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmarks.paper.terms import Terms

__all__ = ["objective"]


def objective(positive: Tensor, negative: Terms, *, form: str, scale: float = 1.0) -> Tensor:
    """The loss of one epoch.

    Args:
        positive: scores of the training edges, shape [E].
        negative: scores and weights of their negatives, shape [E, K].
        form: ``sigmoid`` or ``logsigmoid``.
        scale: factor of all scores.

    Returns:
        A scalar.

    Raises:
        ValueError: for another form.
    """
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "sigmoid": torch.sigmoid,
        "logsigmoid": logsigmoid,
    }
    if form not in forms:
        raise ValueError(f"loss: expected one of {', '.join(forms)}, got {form!r}")
    gain = forms[form]
    wrong = -gain(-scale * negative.score)
    if negative.weight is not None:
        wrong = wrong * negative.weight
    return 0.5 * (wrong.mean() - gain(scale * positive).mean())
