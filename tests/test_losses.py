"""Losses: hand values, gradients, stability, errors, and where their optima lie."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.gradcheck import gradcheck
from torch.nn import functional
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from dgl_dmns.core import Levels
from dgl_dmns.losses import bce_loss, bpr_loss, multilevel_loss, softmax_loss

SAMPLED: list[Callable[..., Tensor]] = [bce_loss, softmax_loss, bpr_loss]
MULTILEVEL: dict[str, Any] = {
    "pos": torch.zeros(2),
    "latent": torch.zeros(4, 2),
    "real": torch.zeros(2),
}


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def batch(rows: int = 6, k: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits and log ratios of positives and negatives: pos, neg, ratio, pos_ratio."""
    generator = torch.Generator().manual_seed(0)
    pos, pos_ratio = torch.randn(2, rows, generator=generator, dtype=torch.float64)
    neg, ratio = torch.randn(2, rows, k, generator=generator, dtype=torch.float64)
    return pos, neg, ratio, pos_ratio


# ---- values -------------------------------------------------------------------------------------


def test_bce_is_that_of_dgl_s_examples() -> None:
    pos, neg, _, _ = batch()
    score = torch.cat([pos, neg.flatten()])
    label = torch.cat([torch.ones(6), torch.zeros(24)]).double()
    expected = binary_cross_entropy_with_logits(score, label)
    torch.testing.assert_close(bce_loss(pos, neg), expected)


def test_balanced_bce_weighs_both_parts_alike() -> None:
    pos, neg, _, _ = batch()
    expected = (functional.softplus(-pos).mean() + functional.softplus(neg).mean()) / 2
    torch.testing.assert_close(bce_loss(pos, neg, balanced=True), expected)
    assert float((bce_loss(pos, neg) - expected).abs()) > 1e-3  # the other form is another loss
    one = neg[:, :1]  # one negative an edge: both are the same
    torch.testing.assert_close(bce_loss(pos, one, balanced=True), bce_loss(pos, one))


def test_softmax_by_hand() -> None:
    pos, neg = torch.tensor([1.0]), torch.tensor([[0.0, 2.0]])
    expected = math.log(math.e + 1 + math.e**2) - 1
    assert float(softmax_loss(pos, neg)) == pytest.approx(expected, rel=1e-6)
    # N = 10: each negative stands for 5 nodes.
    expected = math.log(math.e + 5 * (1 + math.e**2)) - 1
    assert float(softmax_loss(pos, neg, num_nodes=10)) == pytest.approx(expected, rel=1e-6)
    # K of N = K nodes stand for themselves.
    assert float(softmax_loss(pos, neg, num_nodes=2)) == float(softmax_loss(pos, neg))


def test_bpr_by_hand() -> None:
    pos, neg = torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 2.0], [-1.0, 3.0]])
    expected = sum(softplus(d) for d in (-1.0, 1.0, -1.0, 3.0)) / 4
    assert float(bpr_loss(pos, neg)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", SAMPLED)
def test_ratios_are_subtracted_from_their_logits(loss: Callable[..., Tensor]) -> None:
    pos, neg, ratio, pos_ratio = batch()
    both = loss(pos, neg, log_ratio=ratio, pos_log_ratio=pos_ratio)
    torch.testing.assert_close(both, loss(pos - pos_ratio, neg - ratio))
    torch.testing.assert_close(loss(pos, neg, log_ratio=ratio), loss(pos, neg - ratio))
    assert torch.equal(loss(pos, neg, log_ratio=torch.zeros_like(neg)), loss(pos, neg))


@pytest.mark.parametrize("loss", SAMPLED)
def test_columns_of_positives(loss: Callable[..., Tensor]) -> None:
    pos, neg, ratio, pos_ratio = batch(rows=3, k=3)
    flat = loss(pos, neg, log_ratio=ratio, pos_log_ratio=pos_ratio)
    column = loss(pos.view(3, 1), neg, log_ratio=ratio, pos_log_ratio=pos_ratio.view(3, 1))
    assert flat.shape == ()
    assert torch.equal(flat, column)


def test_multilevel_by_hand() -> None:
    # Two levels of weights 1 and .5 and a real negative: three terms.
    pos, real = torch.tensor([1.0, 3.0]), torch.tensor([0.0, -1.0])
    latent = torch.tensor([[0.5, 1.0], [-2.0, 0.0]])
    positive = (softplus(-1) + softplus(-3)) / 2
    levels = (softplus(0.5) + softplus(1)) / 2 + 0.5 * (softplus(-2) + softplus(0)) / 2
    uniform = (softplus(0) + softplus(-1)) / 2
    got = multilevel_loss(pos, latent, real=real, weights=(1.0, 0.5))
    assert float(got) == pytest.approx((positive + (levels + uniform) / 3) / 2, rel=1e-6)
    got = multilevel_loss(pos, latent, weights=(1.0, 0.5))
    assert float(got) == pytest.approx((positive + levels / 2) / 2, rel=1e-6)


def test_multilevel_by_hand_in_the_form_of_the_code() -> None:
    pos, real = torch.tensor([0.9]), torch.tensor([-0.1])
    latent = torch.tensor([[0.8], [0.6], [0.4], [0.2]])
    charge = torch.tensor([0.1, -0.8, -0.6, -0.4, -0.2]).sigmoid()
    weights = torch.tensor([1.0, *Levels().loss_weights])  # of the paper, and the default
    expected = -(pos.sigmoid() + (weights * charge).sum() / 5) / 2
    got = multilevel_loss(pos, latent, real=real, form="sigmoid")
    torch.testing.assert_close(got, expected.squeeze())


@pytest.mark.parametrize("form", ["log_sigmoid", "sigmoid"])
def test_multilevel_counts_all_real_negatives_as_one_term(form: Any) -> None:
    pos, real, _, _ = batch(rows=5, k=3)
    latent = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    single = [multilevel_loss(pos, latent, real=real[:, i], form=form) for i in range(3)]
    together = multilevel_loss(pos, latent, real=real, form=form)
    torch.testing.assert_close(together, torch.stack(single).mean())
    column = multilevel_loss(pos.view(5, 1), latent, real=real[:, :1], form=form)
    torch.testing.assert_close(column, single[0])


# ---- gradients and stability --------------------------------------------------------------------


def has_descent(*logits: Tensor) -> None:
    """Descent raises the positives, which come first, and lowers the others."""
    for sign, x in zip((-1, 1, 1), logits):
        assert x.grad is not None
        assert bool((sign * x.grad > 0).all())


@pytest.mark.parametrize("loss", SAMPLED)
def test_gradients(loss: Callable[..., Tensor]) -> None:
    pos, neg, ratio, pos_ratio = (x.requires_grad_() for x in batch(rows=3, k=2))

    def calibrated(p: Tensor, n: Tensor) -> Tensor:
        return loss(p, n, log_ratio=ratio, pos_log_ratio=pos_ratio)

    assert gradcheck(calibrated, (pos, neg))
    calibrated(pos, neg).backward()
    has_descent(pos, neg)
    assert ratio.grad is None
    assert pos_ratio.grad is None


def test_gradient_on_a_negative_is_the_documented_push() -> None:
    pos, neg, ratio, _ = batch(rows=2, k=3)
    neg = neg.requires_grad_()
    bce_loss(pos, neg, log_ratio=ratio).backward()
    # For candidates drawn from q = e^w / N: q sigmoid(s - w) = (1 / N) / (e^-w + e^-s).
    assert neg.grad is not None
    push = 1 / ((-ratio).exp() + (-neg.detach()).exp())
    torch.testing.assert_close(ratio.exp() * neg.grad * 8, push)


@pytest.mark.parametrize("form", ["log_sigmoid", "sigmoid"])
def test_multilevel_gradients(form: Any) -> None:
    pos, real, _, _ = batch(rows=3, k=2)
    latent = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for x in (pos, latent, real):
        x.requires_grad_()

    def loss(p: Tensor, n: Tensor, r: Tensor) -> Tensor:
        return multilevel_loss(p, n, real=r, form=form)

    assert gradcheck(loss, (pos, latent, real))
    loss(pos, latent, real).backward()
    has_descent(pos, latent, real)


@pytest.mark.parametrize("size", [1e2, -1e4, 1e30, -1e30])
@pytest.mark.parametrize(
    "loss",
    [
        bce_loss,
        softmax_loss,
        bpr_loss,
        lambda p, n: softmax_loss(p, n, num_nodes=10**9),
        lambda p, n: multilevel_loss(p, n.T, real=n[:, 0], weights=(1.0, 0.9)),
        lambda p, n: multilevel_loss(p, n.T, real=n, weights=(1.0, 0.9), form="sigmoid"),
    ],
)
def test_large_logits_stay_finite(loss: Callable[..., Tensor], size: float) -> None:
    pos = torch.tensor([size, 0.0]).requires_grad_()
    neg = torch.tensor([[-size, 1.0], [size, -size]]).requires_grad_()
    value = loss(pos, neg)
    for part in (value, *torch.autograd.grad(value, (pos, neg))):
        assert bool(part.isfinite().all())


@pytest.mark.parametrize("loss", SAMPLED)
def test_a_mistake_is_charged_linearly_and_success_nothing(loss: Callable[..., Tensor]) -> None:
    pos, neg = torch.tensor([1e4]), torch.tensor([[-1e4]])
    assert float(loss(pos, neg)) == 0.0
    share = {bce_loss: 1e4}.get(loss, 2e4)
    assert float(loss(-pos, -neg)) == pytest.approx(share)


# ---- errors -------------------------------------------------------------------------------------


POS, NEG = torch.zeros(2), torch.zeros(2, 3)
NEGATIVES = r"neg: expected shape \[B, K\] with B = 2 and K >= 1"
FLOATS = "expected a floating-point tensor, got torch.int64"


@pytest.mark.parametrize("loss", SAMPLED)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos": torch.zeros(0)}, r"pos: expected shape \[B\] or \[B, 1\] with B >= 1, got \(0,\)"),
        ({"pos": torch.zeros(2, 2)}, r"pos: expected shape \[B\] or \[B, 1\] .* got \(2, 2\)"),
        ({"pos": torch.zeros(())}, r"pos: expected shape \[B\] or \[B, 1\]"),
        ({"neg": torch.zeros(6)}, rf"{NEGATIVES}, got \(6,\)"),
        ({"neg": torch.zeros(6, 1)}, r"got \(6, 1\); DGL's .* K in a row .* with .view\(2, -1\)"),
        ({"neg": torch.zeros(2, 0)}, NEGATIVES),
        ({"neg": torch.zeros(2, 1, 1)}, NEGATIVES),
        ({"log_ratio": torch.zeros(6)}, r"log_ratio: .* shape \(2, 3\), got \(6,\); reshape"),
        ({"pos_log_ratio": torch.zeros(3)}, r"pos_log_ratio: .* shape \(2,\), got \(3,\)"),
        ({"pos_log_ratio": NEG}, r"pos_log_ratio: expected shape \[B\] or \[B, 1\]"),
        ({"log_ratio": NEG + math.nan}, r"log_ratio: expected finite numbers.*\(Nearest, Hardest"),
        ({"log_ratio": NEG + math.inf}, "log_ratio: expected finite numbers"),
        ({"pos_log_ratio": POS + math.nan}, "pos_log_ratio: expected finite numbers"),
        ({"pos": POS.long()}, f"pos: {FLOATS}"),
        ({"neg": NEG.long()}, f"neg: {FLOATS}"),
        ({"log_ratio": NEG.long()}, f"log_ratio: {FLOATS}"),
        ({"pos_log_ratio": POS.long()}, f"pos_log_ratio: {FLOATS}"),
    ],
)
def test_logits_and_ratios_that_do_not_fit(
    loss: Callable[..., Tensor], changes: dict[str, Tensor], message: str
) -> None:
    arguments = {"pos": POS, "neg": NEG, "log_ratio": NEG, "pos_log_ratio": POS, **changes}
    error = TypeError if FLOATS in message else ValueError
    with pytest.raises(error, match=f"^{message}" if message[0] in "pnl" else message):
        loss(**arguments)


@pytest.mark.parametrize("loss", [*SAMPLED, multilevel_loss])
def test_only_the_logits_are_positional(loss: Callable[..., Tensor]) -> None:
    """Of two ratios in a row the second was taken for a number of nodes."""
    with pytest.raises(TypeError, match="positional"):
        loss(POS, NEG[:, :2], NEG[:, :2])
    with pytest.raises(TypeError, match=r"^pos: .* got list; write torch\.tensor"):
        loss([0.0, 0.0], NEG)


@pytest.mark.parametrize("loss", SAMPLED)
def test_one_side_alone_is_said_once(
    loss: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgl_dmns.losses._SAID", set())
    for sides in ({"log_ratio": NEG}, {"pos_log_ratio": POS}):
        with pytest.warns(UserWarning, match=f"{loss.__name__}: .*without (pos_)?log_ratio") as got:
            for _ in range(2):
                loss(POS, NEG, **sides)
        assert len(got) == 1
        assert got[0].filename == __file__


def test_both_sides_or_all_nodes_give_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgl_dmns.losses._SAID", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bce_loss(POS, NEG)
        bce_loss(POS, NEG, log_ratio=NEG, pos_log_ratio=POS)
        softmax_loss(POS, NEG, log_ratio=NEG, num_nodes=9)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_nodes": 9.5}, TypeError, r"^num_nodes: expected an integer, got 9\.5"),
        ({"num_nodes": 0}, ValueError, "num_nodes: expected at least 1, got 0"),
        ({"num_nodes": 9, "pos_log_ratio": POS}, ValueError, "pos_log_ratio: does not go with num"),
    ],
)
def test_softmax_arguments(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        softmax_loss(POS, NEG, log_ratio=NEG, **arguments)


LATENT = r"latent: expected shape \[L, B\] = \[L, 2\] with L >= 1"
REAL = r"real: expected shape \[B\] or \[B, K\] with B = 2 and K >= 1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pos": torch.zeros(0)}, r"pos: expected shape \[B\] or \[B, 1\] with B >= 1"),
        *(({"latent": torch.zeros(shape)}, LATENT) for shape in ((2, 4), (2,), (0, 2))),
        ({"latent": torch.zeros(3, 2)}, "weights: expected one for each of the 3 levels, got 4"),
        *(
            ({"weights": (1.0, 1.0, 1.0, bad)}, "weights: expected positive, finite numbers, got")
            for bad in (0.0, math.nan, math.inf)
        ),
        *(({"real": torch.zeros(shape)}, REAL) for shape in ((3,), (2, 0), ())),
        ({"form": "hinge"}, "form: expected 'log_sigmoid' or 'sigmoid', got 'hinge'"),
        *(({name: value.long()}, f"^{name}: {FLOATS}") for name, value in MULTILEVEL.items()),
    ],
)
def test_multilevel_arguments(arguments: dict[str, Any], message: str) -> None:
    multilevel_loss(**MULTILEVEL)
    with pytest.raises(TypeError if FLOATS in message else ValueError, match=message):
        multilevel_loss(**{**MULTILEVEL, **arguments})


# ---- calibration --------------------------------------------------------------------------------
#
# One query, N = 4 nodes, p and q given by whole numbers. A batch lists every combination of a
# positive and its negatives exactly as often as it is expected, so that a loss over it *is* the
# expected loss, without noise. Minimised over free logits, one per node, it shows its optimum.

N = 4
P = torch.tensor([8, 6, 4, 2])  # of 20
Q = torch.tensor([5, 1, 2, 2])  # of 10: not uniform, and not proportional to p
LOG_P = (P / P.sum()).double().log()
LOG_Q = (Q / Q.sum()).double().log()
RATIO = LOG_Q + math.log(N)


def pool_of(counts: Tensor) -> Tensor:
    """Each node as often as its count says."""
    return torch.arange(counts.numel()).repeat_interleave(counts)


def tuples(k: int) -> tuple[Tensor, Tensor]:
    """All (positive, k independent negatives), by expected frequency; ids [B] and [B, k]."""
    table = torch.cartesian_prod(pool_of(P // 2), *[pool_of(Q)] * k)
    return table[:, 0], table[:, 1:]


def optimum(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The logits that minimise a loss of [N] logits."""
    logits = torch.zeros(N, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits],
        max_iter=2000,
        tolerance_grad=1e-11,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = loss(logits)
        value.backward()
        return float(value.detach())

    optimizer.step(closure)
    closure()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-7
    return logits.detach()


def centred(x: Tensor) -> Tensor:
    return x - x.mean()


def assert_near(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2])
def test_bce_optimum_uncalibrated_is_off_by_the_ratio(k: int) -> None:
    u, negatives = tuples(k)
    got = optimum(lambda s: bce_loss(s[u], s[negatives]))
    target = LOG_P + math.log(N) - math.log(k)  # log p - log uniform - log K
    assert_near(got, target - RATIO)
    balanced = optimum(lambda s: bce_loss(s[u], s[negatives], balanced=True))
    assert_near(balanced, LOG_P - LOG_Q)  # for every K
    assert float(RATIO.abs().min()) > 0.1


@pytest.mark.parametrize("k", [1, 2])
def test_bce_optimum_calibrated_on_both_sides_is_exact(k: int) -> None:
    u, negatives = tuples(k)
    got = optimum(
        lambda s: bce_loss(s[u], s[negatives], log_ratio=RATIO[negatives], pos_log_ratio=RATIO[u])
    )
    assert_near(got, LOG_P + math.log(N) - math.log(k))
    # The same as with negatives that are uniform in fact.
    uniform = torch.arange(N).view(1, N).expand(int(P.sum()), N)
    each = pool_of(P)
    fair = optimum(lambda s: bce_loss(s[each], s[uniform]))  # K = N
    assert_near(centred(got), centred(fair))


@pytest.mark.parametrize("k", [1, 2])
def test_bce_optimum_with_the_negatives_ratio_alone(k: int) -> None:
    u, negatives = tuples(k)
    got = optimum(lambda s: bce_loss(s[u], s[negatives], log_ratio=RATIO[negatives])).exp()
    # The documented root, strictly between the uncalibrated and the calibrated optimum.
    r = LOG_P.exp() / (k * LOG_Q.exp())
    full = r * RATIO.exp()
    root = ((r - 1) + ((r - 1).square() + 4 * full).sqrt()) / 2
    assert_near(got, root)
    assert bool((torch.minimum(r, full) < got).all())
    assert bool((got < torch.maximum(r, full)).all())


def test_negatives_ratio_alone_comes_near_where_positives_are_rare() -> None:
    # K = 1000 negatives a positive: r e^w = p N / K is small, and little of the shift remains.
    k = 1000
    u = pool_of(P)
    negatives = pool_of(Q).repeat(k // 10).expand(u.numel(), k)
    target = LOG_P + math.log(N) - math.log(k)
    plain = optimum(lambda s: bce_loss(s[u], s[negatives])) - target
    partly = optimum(lambda s: bce_loss(s[u], s[negatives], log_ratio=RATIO[negatives])) - target
    assert_near(plain, -RATIO)
    assert bool((partly.abs() < 0.02 * RATIO.abs()).all())


@pytest.mark.parametrize("loss", [softmax_loss, bpr_loss])
@pytest.mark.parametrize("k", [1, 2])
def test_ranking_optima(loss: Callable[..., Tensor], k: int) -> None:
    u, negatives = tuples(k)
    plain = optimum(lambda s: loss(s[u], s[negatives]))
    both = optimum(
        lambda s: loss(s[u], s[negatives], log_ratio=RATIO[negatives], pos_log_ratio=RATIO[u])
    )
    alone = optimum(lambda s: loss(s[u], s[negatives], log_ratio=RATIO[negatives]))
    assert_near(centred(plain), centred(LOG_P - LOG_Q))
    assert_near(centred(plain), centred(both - RATIO))
    assert_near(centred(both), centred(LOG_P))
    # The negatives' ratio alone undoes a part only.
    error = (centred(alone) - centred(LOG_P)).abs().max()
    assert 0.01 < float(error) < float(centred(RATIO).abs().max())


def others(u: int, length: int = 360) -> tuple[Tensor, Tensor]:
    """Negatives of positive u, never u itself: [length] ids by expected frequency, log ratios."""
    counts = Q.clone()
    counts[u] = 0
    ids = pool_of(counts * (length // int(counts.sum())))
    assert ids.numel() == length
    q = (counts / counts.sum()).double()
    return ids, q[ids].log() + math.log(N - 1)


def test_calibrated_softmax_is_the_full_softmax() -> None:
    u = pool_of(P)
    drawn = [others(i) for i in range(N)]
    negatives = torch.stack([drawn[i][0] for i in u.tolist()])
    ratio = torch.stack([drawn[i][1] for i in u.tolist()])

    def calibrated(s: Tensor) -> Tensor:
        return softmax_loss(s[u], s[negatives], log_ratio=ratio, num_nodes=N - 1)

    s = torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(calibrated(s), cross_entropy(s.expand(u.numel(), N), u))
    assert_near(centred(optimum(calibrated)), centred(LOG_P))

    def uncalibrated(s: Tensor) -> Tensor:
        return softmax_loss(s[u], s[negatives], num_nodes=N - 1)

    assert not torch.allclose(uncalibrated(s), calibrated(s), atol=1e-2)
    error = centred(optimum(uncalibrated)) - centred(LOG_P)
    assert float(error.abs().max()) > 0.1


def test_calibrated_negatives_stand_for_all_nodes() -> None:
    # Negatives from q over all nodes, in exact proportion: e^pos + sum over N of e^s.
    s = torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    negatives = pool_of(Q).view(1, -1)
    got = softmax_loss(s[:1], s[negatives], log_ratio=RATIO[negatives], num_nodes=N)
    expected = (s[0].exp() + s.exp().sum()).log() - s[0]
    torch.testing.assert_close(got, expected)
