"""The loss of shared negatives: exact values and gradients, no bias, precision, and bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import gradcheck

from dgl_dmns.core import KnownEdges
from dgl_dmns.core import softmax as chunks
from dgl_dmns.losses import shared_softmax_loss

N, D, K = 24, 3, 4


def graph(seed: int = 0) -> tuple[Tensor, Tensor, KnownEdges]:
    """Edges of a small graph, self loops and twins among them, and what is known of it."""
    generator = torch.Generator().manual_seed(seed)
    src, dst = torch.randint(N, (2, 70), generator=generator)
    src, dst = torch.cat([src, torch.tensor([3, 3, 5])]), torch.cat([dst, torch.tensor([3, 7, 7])])
    return src, dst, KnownEdges(src, dst, N)


def embeddings(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, D, generator=generator, dtype=torch.float64).requires_grad_()


def exact(
    h: Tensor, src: Tensor, dst: Tensor, known: KnownEdges, temperature: float = 1.0
) -> Tensor:
    """The full softmax's loss over all nodes that are not known, by a matrix of all scores."""
    everyone = torch.arange(N)
    score = h @ h.t() / temperature
    barred = known.contains(everyone.unsqueeze(1), everyone)
    row = score[src].masked_fill(barred[src], -math.inf)
    positive = score[src, dst].unsqueeze(1)
    return (torch.cat([positive, row], 1).logsumexp(1) - positive.squeeze(1)).mean()


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def drawn(count: int, seed: int) -> Tensor:
    return torch.randint(N, (count, K), generator=torch.Generator().manual_seed(seed))


# ---- values and gradients -----------------------------------------------------------------------


@pytest.mark.parametrize("scorer", [None, dot])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_all_nodes_as_candidates_are_the_full_softmax(scorer: Any, temperature: float) -> None:
    src, dst, known = graph()
    h = embeddings()
    mine = shared_softmax_loss(
        h,
        src,
        dst,
        torch.arange(N),
        num_nodes=N,
        known=known,
        scorer=scorer,
        temperature=temperature,
    )
    full = exact(h, src, dst, known, temperature)
    torch.testing.assert_close(mine, full)
    for one, other in zip(torch.autograd.grad(mine, h), torch.autograd.grad(full, h)):
        torch.testing.assert_close(one, other)


def by_hand(
    h: Tensor, src: Tensor, dst: Tensor, candidates: Tensor, known: KnownEdges, ratio: Tensor
) -> Tensor:
    """The estimate written out, twins of a node one by one."""
    flat, weight = candidates.flatten(), -ratio.flatten() + math.log(N / candidates.numel())
    score = h[src] @ h[flat].t() + weight
    barred = known.contains(src.unsqueeze(1), flat) | (flat == dst.unsqueeze(1))
    positive = (h[src] * h[dst]).sum(1, keepdim=True)
    logits = torch.cat([positive, score.masked_fill(barred, -math.inf)], 1)
    return (logits.logsumexp(1) - positive.squeeze(1)).mean()


def test_candidates_count_as_often_as_they_are_drawn_and_ratios_are_taken_off() -> None:
    src, dst, known = graph()
    h, candidates = embeddings(), drawn(len(src), 2)
    ratio = torch.randn(candidates.shape, dtype=torch.float64)
    mine = shared_softmax_loss(h, src, dst, candidates, num_nodes=N, known=known, log_ratio=ratio)
    torch.testing.assert_close(mine, by_hand(h, src, dst, candidates, known, ratio))
    without = shared_softmax_loss(h, src, dst, candidates, num_nodes=N, known=known)
    assert not torch.allclose(mine, without)
    ratio[ratio > 0.5] = math.inf  # such candidates count nothing
    mine = shared_softmax_loss(h, src, dst, candidates, num_nodes=N, known=known, log_ratio=ratio)
    torch.testing.assert_close(mine, by_hand(h, src, dst, candidates, known, ratio))


def test_own_candidates_alone() -> None:
    src, dst, known = graph()
    h, candidates = embeddings(), drawn(len(src), 3)
    ratio = torch.randn(candidates.shape, dtype=torch.float64)
    mine = shared_softmax_loss(
        h, src, dst, candidates, num_nodes=N, known=known, log_ratio=ratio, share="edge"
    )
    barred = known.contains(src.unsqueeze(1), candidates)
    score = (h[src].unsqueeze(1) * h[candidates]).sum(-1) - ratio + math.log(N / K)
    positive = (h[src] * h[dst]).sum(1, keepdim=True)
    logits = torch.cat([positive, score.masked_fill(barred, -math.inf)], 1)
    torch.testing.assert_close(mine, (logits.logsumexp(1) - positive.squeeze(1)).mean())


@pytest.mark.parametrize("more", [{}, {"pool": 30}, {"pool": 2 * K}, {"share": "edge"}])
def test_gradients_made_by_hand_are_those_of_autograd(more: Any) -> None:
    src, dst, known = graph()
    candidates = drawn(len(src), 4)

    def loss(h: Tensor, scorer: Any = None) -> Tensor:
        return shared_softmax_loss(
            h,
            src,
            dst,
            candidates,
            num_nodes=N,
            known=known,
            scorer=scorer,
            generator=torch.Generator().manual_seed(5),
            **more,
        )

    h = embeddings()
    assert gradcheck(loss, (h,))
    torch.testing.assert_close(loss(h), loss(h, dot))
    (one,), (other,) = (torch.autograd.grad(loss(h, way), h) for way in (None, dot))
    torch.testing.assert_close(one, other)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    src, dst, known = graph()
    h, candidates = embeddings(), drawn(len(src), 6)
    losses, gradients = [], []
    for step in (1, 7, 1000):
        monkeypatch.setattr(chunks, "_CHUNK", step)
        for scorer in (None, dot):
            loss = shared_softmax_loss(
                h, src, dst, candidates, num_nodes=N, known=known, scorer=scorer
            )
            losses.append(loss.detach())
            gradients.append(torch.autograd.grad(loss, h)[0])
    for loss, gradient in zip(losses, gradients):
        torch.testing.assert_close(loss, losses[0])
        torch.testing.assert_close(gradient, gradients[0])


def test_no_matrix_of_all_scores_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = torch.Tensor.exp_
    monkeypatch.setattr(chunks, "_ENTRIES", 4 * N)
    monkeypatch.setattr(
        torch.Tensor, "exp_", lambda self: (sizes.append(self.numel()), plain(self))[1]
    )
    src, dst, known = graph()
    h = embeddings()
    shared_softmax_loss(h, src, dst, drawn(len(src), 0), num_nodes=N, known=known).backward()
    assert sizes
    assert max(sizes) <= 4 * N < len(src) * N


def test_gradients_cannot_be_differentiated_again() -> None:
    src, dst, known = graph()
    h = embeddings()
    loss = shared_softmax_loss(h, src, dst, drawn(len(src), 0), num_nodes=N, known=known)
    (gradient,) = torch.autograd.grad(loss, h, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again; pass scorer="):
        torch.autograd.grad(gradient.sum(), h)
    loss = shared_softmax_loss(
        h, src, dst, drawn(len(src), 0), num_nodes=N, known=known, scorer=dot
    )
    (gradient,) = torch.autograd.grad(loss, h, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), h)[0].any()


def test_a_scorer_with_weights_learns() -> None:
    src, dst, known = graph()
    layer = nn.Linear(D, 1, dtype=torch.float64)

    def score(a: Tensor, b: Tensor) -> Tensor:
        return layer(a * b).squeeze(-1)

    h = embeddings()
    shared_softmax_loss(
        h, src, dst, torch.arange(N), num_nodes=N, known=known, scorer=score
    ).backward()
    mine = layer.weight.grad.clone()
    layer.zero_grad()
    everyone = torch.arange(N)
    row = score(h[src].unsqueeze(1), h.unsqueeze(0))
    row = row.masked_fill(known.contains(src.unsqueeze(1), everyone), -math.inf)
    positive = score(h[src], h[dst]).unsqueeze(1)
    logits = torch.cat([positive, row], 1)
    (logits.logsumexp(1) - positive.squeeze(1)).mean().backward()
    torch.testing.assert_close(mine, layer.weight.grad)


# ---- no bias ------------------------------------------------------------------------------------


def sums(h: Tensor, src: Tensor, dst: Tensor, candidates: Tensor, known: KnownEdges, **more: Any):
    """The estimate Z of each positive, [B]: from its loss where all others' candidates are out."""
    found = []
    for at in range(len(src)):
        others = (torch.arange(len(src)) != at).unsqueeze(1)
        mask = known.contains(src.unsqueeze(1), candidates.flatten()) | others
        generator = torch.Generator().manual_seed(int(candidates.sum()))  # one pool for all
        loss = shared_softmax_loss(
            h, src, dst, candidates, num_nodes=N, known=mask, generator=generator, **more
        )
        positive = (h[src[at]] * h[dst[at]]).sum()
        found.append(positive.exp() * torch.expm1(len(src) * loss))
    return torch.stack(found)


@pytest.mark.parametrize("pool", [None, 5, 9])
def test_the_pool_is_an_unbiased_estimate_of_all_nodes_and_so_is_its_gradient(
    pool: int | None,
) -> None:
    src, dst, known = graph()
    src, dst = src[[0, 8, 0]], dst[[0, 8, 0]]  # one query twice
    h = embeddings()
    generator = torch.Generator().manual_seed(7)
    weight = torch.rand(N, generator=generator, dtype=torch.float64) + 0.3
    ratio = (N * weight / weight.sum()).log()
    barred = known.contains(src.unsqueeze(1), torch.arange(N))
    full = (h[src] @ h.t()).exp().masked_fill(barred, 0.0).sum(1)
    values, slopes, rounds = [], [], 100
    for _ in range(rounds):
        candidates = torch.multinomial(weight, 3 * K, True, generator=generator).view(3, K)
        of = sums(h, src, dst, candidates, known, log_ratio=ratio[candidates], pool=pool)
        values.append(of.detach())
        slopes.append(torch.autograd.grad(of.sum(), h)[0].flatten())
    for found, truth in ((values, full), (slopes, torch.autograd.grad(full.sum(), h)[0].flatten())):
        mean, error = torch.stack(found).mean(0), torch.stack(found).std(0) / math.sqrt(rounds)
        assert ((mean - truth).abs() <= 4.5 * error + 1e-9).all()
    assert torch.stack(values).mean(0).sub(full).abs().max() < 0.2 * full.max()


def test_a_large_pool_has_the_full_softmax_s_gradient() -> None:
    src, dst, known = graph()
    h = embeddings()
    candidates = torch.randint(N, (20000,), generator=torch.Generator().manual_seed(8))
    mine = shared_softmax_loss(h, src, dst, candidates, num_nodes=N, known=known)
    (one,), (other,) = (torch.autograd.grad(loss, h) for loss in (mine, exact(h, src, dst, known)))
    assert (one - other).norm() < 0.03 * other.norm()


# ---- what the batch may look like ---------------------------------------------------------------


def test_positives_and_known_edges_are_no_negatives() -> None:
    src, dst, known = graph()
    h = embeddings()
    own = dst.unsqueeze(1)
    assert float(shared_softmax_loss(h, src[:1], dst[:1], own[:1], num_nodes=N)) == 0.0
    barred = known.contains(src[:1].unsqueeze(1), torch.arange(N)).nonzero()[:, 1]
    arguments: dict[str, Any] = {"num_nodes": N, "known": known}
    for more in ({}, {"share": "edge"}):
        loss = shared_softmax_loss(h, src[:1], dst[:1], barred.view(1, -1), **arguments, **more)
        assert float(loss) == 0.0  # its pool is all known
        assert torch.autograd.grad(loss, h)[0].abs().max() < 1e-20


def test_a_mask_does_what_known_edges_do() -> None:
    src, dst, known = graph()
    h, candidates = embeddings(), drawn(len(src), 9)
    for more in ({}, {"pool": 20}, {"share": "edge"}):
        share = candidates if "share" in more else candidates.flatten()
        one, other = (
            shared_softmax_loss(
                h,
                src,
                dst,
                candidates,
                num_nodes=N,
                known=what,
                generator=torch.Generator().manual_seed(1),
                **more,
            )
            for what in (known, known.contains(src.unsqueeze(1), share))
        )
        torch.testing.assert_close(one, other)


def test_ids_say_which_nodes_the_rows_are() -> None:
    src, dst, known = graph()
    h, candidates = embeddings(), drawn(len(src), 10)
    whole = shared_softmax_loss(h, src, dst, candidates, num_nodes=N, known=known)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    place = order.argsort()
    for kind in (torch.int64, torch.int32):
        moved = shared_softmax_loss(
            h[order],
            place[src].to(kind),
            place[dst].to(kind),
            place[candidates].to(kind),
            num_nodes=N,
            known=known,
            ids=order.to(kind),
        )
        torch.testing.assert_close(moved, whole)


def test_two_node_types() -> None:
    generator = torch.Generator().manual_seed(3)
    src, dst = torch.randint(6, (15,)), torch.randint(9, (15,))
    users, items = torch.randn(6, D, generator=generator), torch.randn(9, D, generator=generator)
    known = KnownEdges(src, dst, 6, 9, exclude_self=False)
    mine = shared_softmax_loss((users, items), src, dst, torch.arange(9), num_nodes=9, known=known)
    row = (users[src] @ items.t()).masked_fill(
        known.contains(src.unsqueeze(1), torch.arange(9)), -math.inf
    )
    positive = (users[src] * items[dst]).sum(1, keepdim=True)
    expected = (torch.cat([positive, row], 1).logsumexp(1) - positive.squeeze(1)).mean()
    torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("scorer", [None, dot])
def test_an_empty_batch_is_zero_with_a_gradient(scorer: Any) -> None:
    h, none = embeddings(), torch.zeros(0, dtype=torch.int64)
    loss = shared_softmax_loss(h, none, none, none, num_nodes=N, scorer=scorer)
    assert float(loss) == 0.0
    (gradient,) = torch.autograd.grad(loss, h)
    assert not gradient.any()


def test_validation_needs_no_gradient() -> None:
    src, dst, known = graph()
    h, candidates = embeddings(), drawn(len(src), 11)
    for scorer in (None, dot):
        loss = shared_softmax_loss(h, src, dst, candidates, num_nodes=N, known=known, scorer=scorer)
        with torch.no_grad():
            again = shared_softmax_loss(
                h, src, dst, candidates, num_nodes=N, known=known, scorer=scorer
            )
        assert torch.equal(loss, again)
        assert not again.requires_grad


# ---- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("more", [{}, {"pool": 20}, {"share": "edge"}])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype, more: Any) -> None:
    src, dst, known = graph()
    h = (4 * embeddings().detach()).to(dtype).requires_grad_()
    candidates = drawn(len(src), 12)
    found = []
    for part in (h, h.detach().float().requires_grad_()):
        loss = shared_softmax_loss(
            part,
            src,
            dst,
            candidates,
            num_nodes=N,
            known=known,
            generator=torch.Generator().manual_seed(0),
            **more,
        )
        assert loss.dtype == torch.float32
        loss.backward()
        assert part.grad is not None
        assert part.grad.dtype == part.dtype
        found.append((loss.detach(), part.grad.float()))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("more", [{}, {"pool": 20}, {"share": "edge"}])
def test_autocast_does_not_round_scores(more: Any) -> None:
    src, dst, known = graph()
    h, candidates = embeddings().detach().float().requires_grad_(), drawn(len(src), 13)

    def loss() -> Tensor:
        return shared_softmax_loss(
            h,
            src,
            dst,
            candidates,
            num_nodes=N,
            known=known,
            generator=torch.Generator().manual_seed(0),
            **more,
        )

    plain = loss()
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss()
    assert torch.equal(plain, cast)
    (one,), (other,) = torch.autograd.grad(plain, h), torch.autograd.grad(cast, h)
    assert torch.equal(one, other)


def test_a_half_precision_model_keeps_its_scorer() -> None:
    src, dst, known = graph()
    layer = nn.Linear(D, 1).bfloat16()
    h = embeddings().detach().bfloat16().requires_grad_()
    loss = shared_softmax_loss(
        h,
        src,
        dst,
        drawn(len(src), 14),
        num_nodes=N,
        known=known,
        scorer=lambda a, b: layer(a * b).squeeze(-1),
    )
    loss.backward()
    assert loss.dtype == torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0


def test_large_scores_stay_finite() -> None:
    src, dst, known = graph()
    h = (60 * embeddings().detach()).float().requires_grad_()
    loss = shared_softmax_loss(h, src, dst, drawn(len(src), 15), num_nodes=N, known=known)
    assert math.isfinite(float(loss))
    assert torch.autograd.grad(loss, h)[0].isfinite().all()


# ---- bad input ----------------------------------------------------------------------------------


def call(**changes: Any) -> Tensor:
    src, dst, known = graph()
    arguments = {
        "h": embeddings(),
        "pos_src": src,
        "pos_dst": dst,
        "candidates": drawn(len(src), 0),
        "num_nodes": N,
        "known": known,
        **changes,
    }
    return shared_softmax_loss(**arguments)


def with_one(value: float) -> Tensor:
    h = embeddings().detach()
    h[4, 1] = value
    return h


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"h": torch.ones(N, D, dtype=torch.int64)}, TypeError, "h: expected floating-point"),
        ({"h": torch.ones(N)}, ValueError, "h: expected embeddings of shape"),
        ({"h": with_one(math.nan)}, ValueError, "h: NaN or infinity in 1 of 24 rows"),
        ({"h": with_one(math.inf)}, ValueError, "h: NaN or infinity in 1 of 24 rows"),
        ({"h": torch.full((N, D), 1e30)}, ValueError, "h: the scores of the batch are not finite"),
        (
            {"h": (torch.ones(N, D), torch.ones(N, D, device="meta"))},
            ValueError,
            "h: expected both ends on one device",
        ),
        ({"h": (torch.ones(N, D), torch.ones(N, D).half())}, ValueError, "h: expected both ends"),
        ({"h": (torch.ones(N, D), torch.ones(N, 2))}, ValueError, "h: expected one width"),
        ({"h": embeddings()[:20]}, ValueError, r"rows of h, 0 .. 19, got"),
        ({"pos_src": torch.zeros(73)}, TypeError, "pos_src: expected integers"),
        ({"pos_src": torch.zeros(4).long()}, ValueError, "pos_src, pos_dst: expected two"),
        ({"pos_dst": torch.full((73,), -1)}, ValueError, "pos_dst: expected rows of h, 0 .. 23"),
        ({"candidates": torch.full((73, 2), N)}, ValueError, "candidates: expected rows of h"),
        ({"candidates": torch.zeros(73, 0).long()}, ValueError, "candidates: expected at least"),
        (
            {"candidates": torch.zeros(75).long(), "share": "edge"},
            ValueError,
            "candidates: expected K for each of the 73 positives, got 75",
        ),
        ({"num_nodes": 0}, ValueError, "num_nodes: expected at least 1"),
        ({"ids": torch.arange(N - 1)}, ValueError, "ids: expected one for each of the 24 rows"),
        ({"ids": torch.arange(N) + 1}, ValueError, r"ids: expected node ids in 0 .. 23"),
        ({"ids": torch.zeros(N)}, TypeError, "ids: expected integers"),
        ({"ids": torch.zeros(N).long()}, ValueError, "ids: expected distinct nodes"),
        (
            {"known": KnownEdges(torch.tensor([0]), torch.tensor([1]), 30)},
            ValueError,
            "ids: needed",
        ),
        ({"known": torch.zeros(73, 5).bool()}, ValueError, "known: expected KnownEdges"),
        ({"log_ratio": torch.zeros(5)}, ValueError, "log_ratio: expected one for each of the 292"),
        ({"log_ratio": torch.zeros(73, K).long()}, TypeError, "log_ratio: expected a floating"),
        ({"log_ratio": torch.full((73, K), math.nan)}, ValueError, "log_ratio: expected numbers"),
        ({"log_ratio": torch.full((73, K), -math.inf)}, ValueError, "log_ratio: expected numbers"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a positive"),
        ({"temperature": math.nan}, ValueError, "temperature: expected a positive"),
        ({"share": "graph"}, ValueError, "share: expected 'batch' or 'edge', got 'graph'"),
        ({"pool": 0}, ValueError, "pool: expected at least 1"),
        ({"pool": K}, ValueError, "pool: expected more than the 4 candidates"),
        ({"pool": 9, "share": "edge"}, ValueError, "pool: with share='edge'"),
        ({"scorer": lambda a, b: a * b}, ValueError, "scorer: expected one score for each pair"),
    ],
)
def test_bad_input(changes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("more", [{}, {"pool": 20}, {"share": "edge"}])
def test_a_gpu_gives_the_same(more: Any) -> None:
    src, dst, known = graph()
    h, candidates = embeddings(), drawn(len(src), 0)
    losses = [
        shared_softmax_loss(
            part,
            src,
            dst,
            candidates,
            num_nodes=N,
            known=known,
            generator=torch.Generator().manual_seed(0),
            **more,
        )
        for part in (h, h.cuda())
    ]
    torch.testing.assert_close(losses[0], losses[1].cpu())
