"""The loss of shared negatives: exact values and gradients, no bias, precision, and bad input."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import gradcheck

from dgl_dmns.core import KnownEdges, pool_softmax
from dgl_dmns.losses import shared_softmax_loss

N, D, K = 24, 3, 4
EVERYONE = torch.arange(N)
CHUNKS = sys.modules[pool_softmax.__module__]


def graph() -> tuple[Tensor, Tensor]:
    """Edges of a small graph, self loops and twins among them."""
    src, dst = torch.randint(N, (2, 70), generator=torch.Generator().manual_seed(0))
    return torch.cat([src, torch.tensor([3, 3, 5])]), torch.cat([dst, torch.tensor([3, 7, 7])])


SRC, DST = graph()
KNOWN = KnownEdges(SRC, DST, N)
CHOSEN = (torch.arange(73 * K) % 5 < 2).view(73, K)
WAYS: list[dict[str, Any]] = [{}, {"pool": 20}, {"share": "edge"}, {"chosen": CHOSEN, "pool": 9}]


def embeddings(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def drawn(seed: int = 0) -> Tensor:
    return torch.randint(N, (len(SRC), K), generator=torch.Generator().manual_seed(seed))


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def loss_of(h: Any, **changes: Any) -> Tensor:
    """The loss of embeddings for all edges of the graph with K candidates each."""
    arguments = {
        "pos_src": SRC,
        "pos_dst": DST,
        "candidates": drawn(),
        "num_nodes": N,
        "known": KNOWN,
        "generator": torch.Generator().manual_seed(5),
        **changes,
    }
    return shared_softmax_loss(h, **arguments)


def cross_entropy(positive: Tensor, score: Tensor, barred: Tensor) -> Tensor:
    """The mean loss of positives [B] beside scores [B, M], some of them left out."""
    logits = torch.cat([positive.unsqueeze(1), score.masked_fill(barred, -math.inf)], 1)
    return (logits.logsumexp(1) - positive).mean()


def exact(h: Tensor, temperature: float = 1.0) -> Tensor:
    """The full softmax's loss over all nodes that are not known, by a matrix of all scores."""
    score = h @ h.t() / temperature
    return cross_entropy(score[SRC, DST], score[SRC], KNOWN.contains(SRC.unsqueeze(1), EVERYONE))


def gradient(loss: Tensor, h: Tensor) -> Tensor:
    return torch.autograd.grad(loss, h)[0]


# ---- values and gradients -----------------------------------------------------------------------


@pytest.mark.parametrize("scorer", [None, dot])
def test_a_discount_lowers_the_pull_of_each_positive_by_its_loss(scorer: Any) -> None:
    h, same = embeddings(), {"candidates": EVERYONE, "scorer": scorer, "temperature": 0.5}
    score = h @ h.t() / 0.5
    barred = KNOWN.contains(SRC.unsqueeze(1), EVERYONE)
    positive = score[SRC, DST]
    logits = torch.cat([positive.unsqueeze(1), score[SRC].masked_fill(barred, -math.inf)], 1)
    each = logits.logsumexp(1) - positive
    loss = loss_of(h, discount=0.3, **same)
    torch.testing.assert_close(loss, each.mean())  # its value stays
    pull = 1 - torch.exp(-each.detach())
    lower = (0.3 * each.detach() / math.log(N)).minimum(pull)  # none pushes itself away
    assert 0.1 < float(lower.mean()) < float(lower.max())
    assert (lower == pull).any()
    expected = gradient((each + lower * positive).mean(), h)
    torch.testing.assert_close(gradient(loss, h), expected)


def test_a_discount_where_nothing_is_shared() -> None:
    h = embeddings()
    ones = [
        loss_of(h, pos_src=SRC[i : i + 1], pos_dst=DST[i : i + 1], candidates=drawn()[i : i + 1],
                share="edge")
        for i in range(len(SRC))
    ]  # fmt: skip
    each, positive = torch.stack(ones), dot(h[SRC], h[DST])
    loss = loss_of(h, share="edge", discount=0.2)
    lower = (0.2 / math.log(N) * each.detach()).minimum(1 - torch.exp(-each.detach()))
    expected = gradient((each + lower * positive).mean(), h)
    torch.testing.assert_close(gradient(loss, h), expected)


@pytest.mark.parametrize("discount", [0.25, 1, np.array([0.5]), torch.tensor(0.5)])
@pytest.mark.parametrize("num_nodes", [1, 2, 3, 1000])
def test_a_discount_never_pushes_a_positive_away(num_nodes: int, discount: Any) -> None:
    query, first = torch.ones(1, 1), torch.zeros(1).long()
    for score in (-30.0, -2.0, 0.0, 5.0):
        item = torch.tensor([[score], [0.0]], requires_grad=True)
        loss = shared_softmax_loss(
            (query, item), first, first, first + 1, num_nodes=num_nodes, discount=discount
        )
        positive, negative = gradient(loss, item)
        assert float(positive) <= 1e-6
        assert float(negative) > 0


def test_a_temperature_may_be_learned_or_of_numpy() -> None:
    h, one = embeddings().detach(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    loss, step = loss_of(h, temperature=one), 1e-5
    ends = [loss_of(h, temperature=np.array(0.7 + at)) for at in (step, -step)]
    torch.testing.assert_close(gradient(loss, one), (ends[0] - ends[1]) / (2 * step))


@pytest.mark.parametrize("scorer", [None, dot])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_all_nodes_as_candidates_are_the_full_softmax(scorer: Any, temperature: float) -> None:
    h = embeddings()
    mine = loss_of(h, candidates=EVERYONE, scorer=scorer, temperature=temperature)
    full = exact(h, temperature)
    torch.testing.assert_close(mine, full)
    torch.testing.assert_close(gradient(mine, h), gradient(full, h))


@pytest.mark.parametrize("share", ["batch", "edge"])
def test_candidates_count_as_often_as_they_are_drawn_and_ratios_are_taken_off(share: str) -> None:
    h, candidates = embeddings(), drawn(2)
    ratio = torch.randn(candidates.shape, dtype=torch.float64)
    for ratios in (ratio, ratio.masked_fill(ratio > 0.5, math.inf)):  # inf: counts nothing
        if share == "edge":
            ids = candidates
            score = dot(h[SRC].unsqueeze(1), h[ids]) - ratios + math.log(N / K)
        else:
            ids = candidates.flatten()
            score = h[SRC] @ h[ids].t() - ratios.flatten() + math.log(N / ids.numel())
        barred = KNOWN.contains(SRC.unsqueeze(1), ids) | (ids == DST.unsqueeze(1))
        mine = loss_of(h, candidates=candidates, log_ratio=ratios, share=share)
        torch.testing.assert_close(mine, cross_entropy(dot(h[SRC], h[DST]), score, barred))
    assert not torch.allclose(mine, loss_of(h, candidates=candidates, share=share))


@pytest.mark.parametrize("more", [*WAYS, {"pool": 2 * K}])
def test_gradients_made_by_hand_are_those_of_autograd(more: Any) -> None:
    h = embeddings()
    assert gradcheck(lambda x: loss_of(x, **more), (h,))
    by_hand, by_autograd = (loss_of(h, scorer=way, **more) for way in (None, dot))
    torch.testing.assert_close(by_hand, by_autograd)
    torch.testing.assert_close(gradient(by_hand, h), gradient(by_autograd, h))


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    h, found = embeddings(), []
    for step in (1, 7, 1000):
        monkeypatch.setattr(CHUNKS, "_CHUNK", step)
        for scorer in (None, dot):
            loss = loss_of(h, scorer=scorer)
            found.append((loss.detach(), gradient(loss, h)))
    for loss, slope in found:
        torch.testing.assert_close(loss, found[0][0])
        torch.testing.assert_close(slope, found[0][1])


def test_no_matrix_of_all_scores_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = torch.Tensor.exp_
    monkeypatch.setattr(CHUNKS, "_ENTRIES", 4 * N)
    monkeypatch.setattr(
        torch.Tensor, "exp_", lambda self: (sizes.append(self.numel()), plain(self))[1]
    )
    loss_of(embeddings()).backward()
    assert sizes
    assert max(sizes) <= 4 * N < len(SRC) * N


def test_gradients_cannot_be_differentiated_again() -> None:
    h = embeddings()
    (slope,) = torch.autograd.grad(loss_of(h), h, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again; pass scorer="):
        torch.autograd.grad(slope.sum(), h)
    (slope,) = torch.autograd.grad(loss_of(h, scorer=dot), h, create_graph=True)
    assert gradient(slope.square().sum(), h).any()


def test_a_scorer_with_weights_learns() -> None:
    layer, h = nn.Linear(D, 1, dtype=torch.float64), embeddings()

    def score(a: Tensor, b: Tensor) -> Tensor:
        return layer(a * b).squeeze(-1)

    mine = loss_of(h, candidates=EVERYONE, scorer=score)
    row = score(h[SRC].unsqueeze(1), h.unsqueeze(0))
    barred = KNOWN.contains(SRC.unsqueeze(1), EVERYONE)
    full = cross_entropy(score(h[SRC], h[DST]), row, barred)
    torch.testing.assert_close(*(gradient(loss, layer.weight) for loss in (mine, full)))


# ---- no bias ------------------------------------------------------------------------------------


def sums(h: Tensor, src: Tensor, dst: Tensor, candidates: Tensor, **more: Any) -> Tensor:
    """The estimate Z of each positive, [B]: from its loss where all others' candidates are out."""
    found = []
    for at in range(len(src)):
        others = (torch.arange(len(src)) != at).unsqueeze(1)
        mask = KNOWN.contains(src.unsqueeze(1), candidates.flatten()) | others
        generator = torch.Generator().manual_seed(int(candidates.sum()))  # one pool for all
        loss = shared_softmax_loss(
            h, src, dst, candidates, num_nodes=N, known=mask, generator=generator, **more
        )
        found.append(dot(h[src[at]], h[dst[at]]).exp() * torch.expm1(len(src) * loss))
    return torch.stack(found)


@pytest.mark.parametrize("pool", [None, 5, 9])
def test_the_pool_is_an_unbiased_estimate_of_all_nodes_and_so_is_its_gradient(
    pool: int | None,
) -> None:
    src, dst = SRC[[0, 8, 0]], DST[[0, 8, 0]]  # one query twice
    h = embeddings()
    generator = torch.Generator().manual_seed(7)
    weight = torch.rand(N, generator=generator, dtype=torch.float64) + 0.3
    ratio = (N * weight / weight.sum()).log()
    barred = KNOWN.contains(src.unsqueeze(1), EVERYONE)
    full = (h[src] @ h.t()).exp().masked_fill(barred, 0.0).sum(1)
    values, slopes, rounds = [], [], 100
    for _ in range(rounds):
        candidates = torch.multinomial(weight, 3 * K, True, generator=generator).view(3, K)
        of = sums(h, src, dst, candidates, log_ratio=ratio[candidates], pool=pool)
        values.append(of.detach())
        slopes.append(gradient(of.sum(), h).flatten())
    for found, truth in ((values, full), (slopes, gradient(full.sum(), h).flatten())):
        mean, error = torch.stack(found).mean(0), torch.stack(found).std(0) / math.sqrt(rounds)
        assert ((mean - truth).abs() <= 4.5 * error + 1e-9).all()
    assert torch.stack(values).mean(0).sub(full).abs().max() < 0.2 * full.max()


@pytest.mark.parametrize("known", [KNOWN, None])
@pytest.mark.parametrize("hard", [CHOSEN, torch.ones_like(CHOSEN), torch.zeros_like(CHOSEN)])
def test_chosen_candidates_count_once_and_for_their_own_positive(known: Any, hard: Tensor) -> None:
    """Against the sums of their definition; nodes are chosen twice, and shared as well."""
    h, candidates = embeddings(), drawn()
    candidates[:9, 1] = candidates[:9, 0]
    others = candidates[~hard]
    loss = loss_of(h, candidates=candidates, chosen=hard, known=known)
    score = (h[SRC] @ h.t()).exp()
    own = torch.zeros(len(SRC), N, dtype=torch.bool)
    own[hard.nonzero()[:, 0], candidates[hard]] = True
    out = torch.zeros_like(own) if known is None else KNOWN.contains(SRC.unsqueeze(1), EVERYONE)
    out[torch.arange(len(SRC)), DST] = True
    weight = torch.bincount(others, minlength=N) * (N / max(1, len(others)))
    total = torch.where(own, 1.0, weight.expand(own.shape)).masked_fill(out, 0.0)
    positive = score[torch.arange(len(SRC)), DST]
    expected = ((positive + (score * total).sum(1)) / positive).log().mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, h), gradient(expected, h))


def test_a_large_pool_has_the_full_softmax_s_gradient() -> None:
    h = embeddings()
    candidates = torch.randint(N, (20000,), generator=torch.Generator().manual_seed(8))
    one, other = (gradient(loss, h) for loss in (loss_of(h, candidates=candidates), exact(h)))
    assert (one - other).norm() < 0.03 * other.norm()


# ---- what the batch may look like ---------------------------------------------------------------


def test_positives_and_known_edges_are_no_negatives() -> None:
    h, first = embeddings(), {"pos_src": SRC[:1], "pos_dst": DST[:1]}
    assert float(loss_of(h, **first, candidates=DST[:1].view(1, 1), known=None)) == 0.0
    barred = KNOWN.contains(SRC[:1].unsqueeze(1), EVERYONE).nonzero()[:, 1].view(1, -1)
    for share in ("batch", "edge"):
        loss = loss_of(h, **first, candidates=barred, share=share)
        assert float(loss) == 0.0  # its pool is all known
        assert gradient(loss, h).abs().max() < 1e-20


@pytest.mark.parametrize("more", WAYS)
def test_a_mask_does_what_known_edges_do(more: Any) -> None:
    h, candidates = embeddings(), drawn()
    mask = KNOWN.contains(SRC.unsqueeze(1), candidates if "share" in more else candidates.flatten())
    torch.testing.assert_close(loss_of(h, **more), loss_of(h, known=mask, **more))


@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_ids_say_which_nodes_the_rows_are(kind: torch.dtype) -> None:
    h = embeddings()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    place = order.argsort().to(kind)
    named = {"pos_src": SRC, "pos_dst": DST, "candidates": drawn()}
    moved = {name: place[rows] for name, rows in named.items()}
    torch.testing.assert_close(loss_of(h[order], **moved, ids=order.to(kind)), loss_of(h))


def test_two_node_types() -> None:
    generator = torch.Generator().manual_seed(3)
    src, dst = torch.randint(6, (15,)), torch.randint(9, (15,))
    users, items = torch.randn(6, D, generator=generator), torch.randn(9, D, generator=generator)
    known, everything = KnownEdges(src, dst, 6, 9, exclude_self=False), torch.arange(9)
    mine = shared_softmax_loss((users, items), src, dst, everything, num_nodes=9, known=known)
    barred = known.contains(src.unsqueeze(1), everything)
    expected = cross_entropy(dot(users[src], items[dst]), users[src] @ items.t(), barred)
    torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("scorer", [None, dot])
def test_an_empty_batch_is_zero_with_a_gradient(scorer: Any) -> None:
    h, none = embeddings(), torch.zeros(0, dtype=torch.int64)
    loss = loss_of(h, pos_src=none, pos_dst=none, candidates=none, scorer=scorer)
    assert float(loss) == 0.0
    assert not gradient(loss, h).any()


@pytest.mark.parametrize("scorer", [None, dot])
def test_validation_needs_no_gradient(scorer: Any) -> None:
    h = embeddings()
    with torch.no_grad():
        again = loss_of(h, scorer=scorer)
    assert torch.equal(loss_of(h, scorer=scorer), again)
    assert not again.requires_grad


# ---- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("more", WAYS)
def test_half_precision_is_summed_in_float32(dtype: torch.dtype, more: Any) -> None:
    h = (4 * embeddings().detach()).to(dtype).requires_grad_()
    found = []
    for part in (h, h.detach().float().requires_grad_()):
        loss = loss_of(part, **more)
        assert loss.dtype == torch.float32
        slope = gradient(loss, part)
        assert slope.dtype == part.dtype
        found.append((loss.detach(), slope.float()))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("more", WAYS)
def test_autocast_does_not_round_scores(more: Any) -> None:
    h = embeddings(torch.float32)
    plain = loss_of(h, **more)
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss_of(h, **more)
    assert torch.equal(plain, cast)
    assert torch.equal(gradient(plain, h), gradient(cast, h))


def test_a_half_precision_model_keeps_its_scorer() -> None:
    layer = nn.Linear(D, 1).bfloat16()
    loss = loss_of(embeddings(torch.bfloat16), scorer=lambda a, b: layer(a * b).squeeze(-1))
    assert loss.dtype == torch.float32
    assert gradient(loss, layer.weight).abs().sum() > 0


def test_large_scores_stay_finite() -> None:
    h = (60 * embeddings(torch.float32).detach()).requires_grad_()
    loss = loss_of(h)
    assert math.isfinite(float(loss))
    assert gradient(loss, h).isfinite().all()


# ---- bad input ----------------------------------------------------------------------------------

ONES, ZEROS = torch.ones(N, D), torch.zeros(N)


def with_one(value: float) -> Tensor:
    h = embeddings().detach()
    h[4, 1] = value
    return h


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"h": ONES.numpy()}, TypeError, r"h: expected a tensor of .*write torch.from_numpy\(h\)"),
        ({"h": (ONES, None)}, TypeError, "h: expected a tensor of embeddings, got NoneType"),
        ({"h": (ONES, ONES, ONES)}, ValueError, "h: expected embeddings, or a pair .*got 3"),
        ({"pos_src": [0, 1]}, TypeError, r"pos_src: expected .*write torch.tensor\(pos_src\)"),
        ({"log_ratio": 0.0}, TypeError, "log_ratio: expected a tensor"),
        ({"chosen": True}, TypeError, "chosen: expected a tensor"),
        ({"h": ONES.long()}, TypeError, "h: expected floating-point"),
        ({"h": ZEROS}, ValueError, "h: expected embeddings of shape"),
        ({"h": with_one(math.nan)}, ValueError, "h: NaN or infinity in 1 of 24 rows"),
        ({"h": with_one(math.inf)}, ValueError, "h: NaN or infinity in 1 of 24 rows"),
        ({"h": 1e30 * ONES}, ValueError, "h: the scores of the batch are not finite"),
        ({"h": (ONES, ONES.to("meta"))}, ValueError, "h: expected both ends on one device"),
        ({"h": (ONES, ONES.half())}, ValueError, "h: expected both ends"),
        ({"h": (ONES, ONES[:, :2])}, ValueError, "h: expected one width"),
        ({"h": ONES[:20]}, ValueError, r"rows of h, 0 .. 19, got"),
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
        ({"ids": EVERYONE[1:]}, ValueError, "ids: expected one for each of the 24 rows"),
        ({"ids": EVERYONE + 1}, ValueError, r"ids: expected node ids in 0 .. 23"),
        ({"ids": ZEROS}, TypeError, "ids: expected integers"),
        ({"ids": ZEROS.long()}, ValueError, "ids: expected distinct nodes"),
        ({"known": KnownEdges(EVERYONE[:1], EVERYONE[1:2], 30)}, ValueError, "ids: needed"),
        ({"known": torch.zeros(73, 5).bool()}, ValueError, "known: expected KnownEdges"),
        ({"log_ratio": torch.zeros(5)}, ValueError, "log_ratio: expected one for each of the 292"),
        ({"log_ratio": torch.zeros(73, K).long()}, TypeError, "log_ratio: expected a floating"),
        ({"log_ratio": torch.full((73, K), math.nan)}, ValueError, "log_ratio: expected numbers"),
        ({"log_ratio": torch.full((73, K), -math.inf)}, ValueError, "log_ratio: expected numbers"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a positive"),
        ({"temperature": math.nan}, ValueError, "temperature: expected a positive"),
        ({"share": "graph"}, ValueError, "share: expected 'batch' or 'edge', got 'graph'"),
        ({"pool": 0}, ValueError, "pool: expected at least 1"),
        ({"discount": 1.5}, ValueError, "discount: expected a share"),
        ({"chosen": torch.zeros(73, K)}, ValueError, "chosen: expected booleans in the shape"),
        ({"chosen": torch.zeros(K, 73).bool()}, ValueError, "chosen: expected booleans in the"),
        (
            {"chosen": torch.zeros(73, K).bool(), "share": "edge"},
            ValueError,
            "chosen: with share='edge'",
        ),
        ({"pool": 9, "share": "edge"}, ValueError, "pool: with share='edge'"),
        ({"scorer": lambda a, b: a * b}, ValueError, "scorer: expected one score for each pair"),
    ],
)
def test_bad_input(changes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        loss_of(**{"h": embeddings(), **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("more", WAYS)
def test_a_gpu_gives_the_same(more: Any) -> None:
    h = embeddings()
    torch.testing.assert_close(loss_of(h, **more), loss_of(h.cuda(), **more).cpu())
