r"""Link prediction losses that know what distribution the negatives came from.

Symbols: a batch of B positives with K negatives each; ``s`` a logit; ``p(u|v)`` the distribution of
the positives of query ``v``; ``q(u|v)`` that of its negatives over N nodes; and the **log ratio**
``w(u|v) = log q(u|v) - log uniform(u)``, which samplers with a tractable rule report.

Negatives from ``q`` move the optimum. For free logits it lies at

    s = log p - log q + const(v)

under `bce_loss` (where the constant is ``-log K``, or 0 with ``balanced=True``), `softmax_loss` and
`bpr_loss`: the logits fall by ``w`` just where candidates are likely, and a ranking by logits
suffers. Calibration replaces a logit by ``s - w`` inside the loss, so that the optimum moves back
to ``s = log p - log uniform + const(v)``. There are three ways to use it:

- ``log_ratio`` and ``pos_log_ratio``, the log ratios of negatives and positives. The correction is
  then exact under all three losses and for every K (it is noise-contrastive estimation).
- ``log_ratio`` alone, for samplers that know the ratio only of what they drew. It undoes part of
  the shift. Under `bce_loss`, with ``r = p / (K q)`` (``p / q`` with ``balanced=True``), the
  optimum ``x = e^s`` is the positive root of ``x^2 + (1 - r) x - r e^w = 0``. It lies strictly
  between the uncalibrated ``r`` and the calibrated ``r e^w``: near the latter where positives are
  rare beside uniform negatives (``r e^w`` small), near the former where they abound. The push on a
  negative becomes
  ``q sigmoid(s - w) = uniform / (e^-w + e^-s)``, about ``uniform`` times the smaller of ``e^w``
  and ``e^s``: a likely candidate is pushed hard only while its score is high, too.
- `softmax_loss` with ``log_ratio`` and ``num_nodes``, where the positive needs no ratio: with many
  negatives this is the full softmax over all nodes.

One side alone, other than in the last of these ways, leaves a shift, which the losses say once. Not
under `softmax_loss`: the log ratio of self-adversarial negatives. It is their logit, but for a
constant of the query, so that nothing is left to push down, and training diverges; calibrate them
under `bce_loss`, or not at all.

`shared_softmax_loss` compares each positive with the negatives of the whole batch. It takes
embeddings in place of logits; ``negatives.loss(...)`` of a sampler calls it.

`multilevel_loss` is the paper's own loss for latent negatives (DMNS, equations 10 and 11). Log
ratios are constants: no gradient flows through them. Everything here is plain torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from dgl_dmns.checks import as_flag, as_integer, check_tensor
from dgl_dmns.messages import warn
from dgl_dmns.shared_softmax import shared_softmax_loss

__all__ = ["bce_loss", "bpr_loss", "multilevel_loss", "shared_softmax_loss", "softmax_loss"]

_SAID: set[tuple[str, str]] = set()  # warnings that were given, in this process


def bce_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    log_ratio: Tensor | None = None,
    pos_log_ratio: Tensor | None = None,
    balanced: bool = False,
) -> Tensor:
    """Binary cross-entropy with logits, the loss of DGL's link prediction examples.

    The mean runs over all ``B + B * K`` logits alike, as in those examples, so that a positive
    weighs as much as one negative. With ``balanced`` it is the mean of two means, of the positives
    and of the negatives, and the optimum is ``s = log p - log q`` for every K, without ``-log K``.

    Args:
        pos: logits of the positives, shape [B] or [B, 1], floating point.
        neg: logits of the negatives, shape [B, K], floating point.
        log_ratio: log ratios of the negatives (natural log), shape [B, K]; defaults to 0.
        pos_log_ratio: log ratios of the positives under the same ``q``, shape [B] or [B, 1];
            defaults to 0.
        balanced: whether both parts weigh the same.

    Returns:
        The mean loss, a scalar.

    Raises:
        TypeError: if a tensor is not floating point.
        ValueError: if shapes disagree, a batch is empty, or a log ratio is not finite.

    >>> neg = torch.tensor([[0.0, 1.0]])
    >>> ratio = torch.tensor([[0.0, 1.0]])  # the second was drawn e times as often as uniformly
    >>> round(bce_loss(torch.zeros(1), neg, log_ratio=ratio).item(), 4) == round(math.log(2), 4)
    True
    """
    pos, neg = _calibrated("bce_loss", pos, neg, log_ratio, pos_log_ratio)
    of_pos, of_neg = logsigmoid(pos), logsigmoid(-neg).flatten()
    if as_flag("balanced", balanced, "bce_loss(..., balanced=True)"):
        return -(of_pos.mean() + of_neg.mean()) / 2
    return -torch.cat([of_pos, of_neg]).mean()


def softmax_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    log_ratio: Tensor | None = None,
    num_nodes: int | None = None,
    pos_log_ratio: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the positive against its own K negatives (sampled softmax, InfoNCE).

    With ``num_nodes`` the K negatives stand for all N candidates: ``log(N / K)`` is added to each
    negative's logit, so that with the log ratio subtracted, the negatives' part of the denominator
    is an unbiased estimate of the sum of ``e^s`` over those N, and the loss one of the full
    softmax. Where negatives are never the positive itself, N is the number of the other nodes.

    Args:
        pos: as in `bce_loss`, like ``neg``, ``log_ratio`` and ``pos_log_ratio``.
        neg: logits of the negatives, shape [B, K].
        log_ratio: log ratios of the negatives, shape [B, K].
        num_nodes: number N of nodes that the negatives were drawn from; None to weigh each negative
            as one class.
        pos_log_ratio: log ratios of the positives, shape [B] or [B, 1].

    Returns:
        The mean loss over the positives, a scalar.

    Raises:
        TypeError: if a tensor is not floating point, or ``num_nodes`` no integer.
        ValueError: as `bce_loss`; if ``num_nodes < 1``, or it comes with ``pos_log_ratio`` (the
            full softmax has the positive as it is).
    """
    whole = num_nodes is not None
    pos, neg = _calibrated("softmax_loss", pos, neg, log_ratio, pos_log_ratio, whole=whole)
    if num_nodes is not None:
        num_nodes = as_integer("num_nodes", num_nodes, least=1)
        if pos_log_ratio is not None:
            raise ValueError(
                "pos_log_ratio: does not go with num_nodes, since the full softmax has the "
                "positive's logit uncorrected; leave out one of the two"
            )
        neg = neg + math.log(num_nodes / neg.shape[1])
    logits = torch.cat([pos.unsqueeze(1), neg], dim=1)
    return cross_entropy(logits, torch.zeros_like(pos, dtype=torch.int64))


def bpr_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    log_ratio: Tensor | None = None,
    pos_log_ratio: Tensor | None = None,
) -> Tensor:
    """Bayesian personalised ranking: the mean of ``softplus(neg - pos)`` over all B * K pairs.

    Source: Rendle et al., UAI 2009. Arguments, result and errors are those of `bce_loss`.
    """
    pos, neg = _calibrated("bpr_loss", pos, neg, log_ratio, pos_log_ratio)
    return -logsigmoid(pos.unsqueeze(1) - neg).mean()


def multilevel_loss(
    pos: Tensor,
    latent: Tensor,
    *,
    real: Tensor | None = None,
    weights: Sequence[float] = (1.0, 0.9, 0.8, 0.7),
    form: Literal["log_sigmoid", "sigmoid"] = "log_sigmoid",
) -> Tensor:
    """The paper's loss over latent negatives of L levels and uniform real ones.

    With ``f(s) = -log sigmoid(s)`` it is ``(L_pos + L_neg) / 2``, where ``L_pos`` is the mean of
    ``f(pos)`` and ``L_neg`` that of ``sum_l weights_l f(-latent_l) + f(-real)``, divided by the
    number of terms (L, or L + 1 with ``real``). The paper prints this form; its authors' published
    code has ``f(s) = -sigmoid(s)`` on inner products of L2-normalised embeddings. Which of the two
    is used matters for the result, so say so when reporting one.

    Args:
        pos: logits of the positives, shape [B] or [B, 1], floating point.
        latent: logits of the query with its latent negatives, shape [L, B], hardest level first.
        real: logits of uniform real negatives, shape [B] or [B, K]; K of them are averaged and
            count as one term of weight 1. None leaves the term out.
        weights: L positive weights of the levels, as in ``Levels.loss_weights``.
        form: ``"log_sigmoid"`` (the paper) or ``"sigmoid"`` (its code).

    Returns:
        The loss, a scalar: non-negative for ``"log_sigmoid"``, in [-1, 0] for ``"sigmoid"`` with
        weights of at most 1.

    Raises:
        TypeError: if a tensor is not floating point.
        ValueError: if shapes disagree, a batch is empty, a weight is not positive and finite, or
            ``form`` is another word.
    """
    if form not in ("log_sigmoid", "sigmoid"):
        raise ValueError(f"form: expected 'log_sigmoid' or 'sigmoid', got {form!r}")
    pos = _column("pos", pos)
    _check_float("latent", latent)
    batch = pos.shape[0]
    if latent.dim() != 2 or latent.shape[0] < 1 or latent.shape[1] != batch:
        raise ValueError(
            f"latent: expected shape [L, B] = [L, {batch}] with L >= 1, got {tuple(latent.shape)}"
        )
    if len(weights) != latent.shape[0]:
        raise ValueError(
            f"weights: expected one for each of the {latent.shape[0]} levels, got {len(weights)}"
        )
    if not all(0 < w < math.inf for w in weights):
        raise ValueError(f"weights: expected positive, finite numbers, got {tuple(weights)}")
    terms = [w * _push(-level, form).mean() for w, level in zip(weights, latent)]
    if real is not None:
        _check_float("real", real)
        if real.dim() not in (1, 2) or real.shape[0] != batch or not real.numel():
            raise ValueError(
                f"real: expected shape [B] or [B, K] with B = {batch} and K >= 1, got "
                f"{tuple(real.shape)}; reshape B * K logits with .view({batch}, -1)"
            )
        terms.append(_push(-real, form).mean())
    return (_push(pos, form).mean() + torch.stack(terms).sum() / len(terms)) / 2


def _push(logit: Tensor, form: str) -> Tensor:
    """What the loss charges for a logit that should be large."""
    return -logsigmoid(logit) if form == "log_sigmoid" else -logit.sigmoid()


def _calibrated(
    name: str,
    pos: Tensor,
    neg: Tensor,
    log_ratio: Tensor | None,
    pos_log_ratio: Tensor | None,
    *,
    whole: bool = False,
) -> tuple[Tensor, Tensor]:
    """Checked logits with their log ratios subtracted: [B] and [B, K].

    One side without the other is said once, unless the negatives stand for the ``whole``.
    """
    if (log_ratio is None) != (pos_log_ratio is None) and not whole:
        given, lacks = ("log_ratio", "pos_log_ratio")[:: 1 if pos_log_ratio is None else -1]
        if (name, given) not in _SAID:
            _SAID.add((name, given))
            warn(
                f"{name}: {given} without {lacks} corrects one side only, so that the optimum is "
                "still shifted where negatives are likely; pass "
                "log_ratio=sampler.log_ratio(neg_graph) and "
                "pos_log_ratio=sampler.positive_log_ratio(pos_graph), in the shapes of the logits"
            )
    pos = _column("pos", pos)
    _check_float("neg", neg)
    batch = pos.shape[0]
    if neg.dim() != 2 or neg.shape[0] != batch or neg.shape[1] < 1:
        raise ValueError(
            f"neg: expected shape [B, K] with B = {batch} and K >= 1, got {tuple(neg.shape)}; "
            "DGL's negatives come K in a row for each positive: reshape them with "
            f".view({batch}, -1)"
        )
    if log_ratio is not None:
        neg = neg - _ratio("log_ratio", log_ratio, neg)
    if pos_log_ratio is not None:
        pos = pos - _ratio("pos_log_ratio", _column("pos_log_ratio", pos_log_ratio), pos)
    return pos, neg


def _column(name: str, value: Tensor) -> Tensor:
    """A tensor of shape [B] from [B] or [B, 1], B at least 1."""
    _check_float(name, value)
    if value.dim() == 2 and value.shape[1] == 1:
        value = value.squeeze(1)
    if value.dim() != 1 or not value.numel():
        raise ValueError(
            f"{name}: expected shape [B] or [B, 1] with B >= 1, got {tuple(value.shape)}"
        )
    return value


def _ratio(name: str, ratio: Tensor, logits: Tensor) -> Tensor:
    """Log ratios of some logits, without gradient."""
    _check_float(name, ratio)
    if ratio.shape != logits.shape:
        raise ValueError(
            f"{name}: expected one for each logit, shape {tuple(logits.shape)}, got "
            f"{tuple(ratio.shape)}; reshape it in the same way as the logits"
        )
    if not bool(torch.isfinite(ratio).all()):
        raise ValueError(
            f"{name}: expected finite numbers, got NaN or infinity; a rule without a tractable "
            "distribution (Nearest, Hardest) has no log ratio, so leave it out"
        )
    return ratio.detach()


def _check_float(name: str, value: Tensor) -> None:
    check_tensor(name, value, "floating-point numbers")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
