r"""Softmax cross-entropy of each positive against the negatives of the whole batch.

Symbols: B positives ``(v_b, u_b)`` with K candidates each; N nodes; ``s`` the score over the
temperature. A candidate is either **shared**, drawn at random, or **chosen** for its positive, as a
hard negative is.

The embeddings of all candidates are there, so every query can be scored against all S shared ones,
the pool P. By multiple importance sampling (the balance heuristic) with what the batch draws
together, ``r_j(u) = N q_j(u)`` being the ratio of the j-th draw to uniform draws,

    N / S sum over u in P of e^s(v_b, u) / rbar(u), rbar(u) = 1 / S sum_j r_j(u),

is an unbiased estimate of the sum of ``e^s(v_b, u)`` over all nodes u, known edges left out: for
every query at once, with one correction for each candidate.

The chosen candidates C_b of a positive were fixed before the shared ones were drawn, so they can be
summed as they are, and the others be estimated:

    Z_b = sum over u in C_b of e^s(v_b, u) + N / S sum over u in P, not in C_b of ... ,

which has the same mean however they were chosen. No distribution of theirs is needed, and none of
them counts more than once: where they hold what is large in the sum, its variance falls. The loss
is the mean of

    -s(v_b, u_b) + log(e^s(v_b, u_b) + Z_b),

that of the full softmax, whose negatives are all nodes but known ones.

With ``discount=a`` the gradient of a positive's own score is lowered by ``a`` times its loss over
``log N``, the loss of a model that knows nothing, at most to 0: edges that the model cannot fit, as
there are among purchases, pull less, and negatives are pushed away as before. So does the weight
``sigmoid((s - beta) / tau)`` of Yang et al., "Breaking the Top-K Barrier", KDD 2025 (SoftmaxLoss@K)
by its own gradient; this form has no quantile and no scale of the scores to choose.

With ``pool=m`` a random part of m shared candidates takes the place of P. With ``share="edge"``
nothing is shared, ``Z_b = N / K sum over own u of e^s(v_b, u) / r(u|v_b)``.
"""

from __future__ import annotations

import math
from typing import Literal, Union, get_args

import torch
from torch import Tensor

from dgl_dmns.checks import as_integer, as_number, check_tensor
from dgl_dmns.core import (
    Barred,
    KnownEdges,
    PairScores,
    Scorer,
    SharedPool,
    dot_score,
    pool_softmax,
)

__all__ = ["BothEnds", "Comparison", "checked_ends", "shared_places", "shared_softmax_loss"]

Comparison = Literal["batch", "edge"]
"""Whose candidates a positive is compared with: those of the batch, or its own."""

BothEnds = Union[Tensor, tuple[Tensor, Tensor]]
"""What source and destination nodes have; a pair of them where their types differ."""


def shared_softmax_loss(
    h: BothEnds,
    pos_src: Tensor,
    pos_dst: Tensor,
    candidates: Tensor,
    *,
    num_nodes: int,
    known: KnownEdges | Tensor | None = None,
    ids: BothEnds | None = None,
    log_ratio: Tensor | None = None,
    chosen: Tensor | None = None,
    scorer: Scorer | None = None,
    temperature: float = 1.0,
    share: Comparison = "batch",
    pool: int | None = None,
    discount: float = 0.0,
    generator: torch.Generator | None = None,
    shared: SharedPool | None = None,
) -> Tensor:
    """Softmax cross-entropy of each positive against candidates that the batch shares.

    For the samplers of this package, ``negatives.loss(h, pos_graph, neg_graph)`` does all of it.
    With DGL's own ``Uniform(k)``:

        known = KnownEdges(*g.edges(), g.num_nodes())  # of dgl_dmns.core, once
        h = model(blocks, blocks[0].srcdata["feat"])
        loss = shared_softmax_loss(
            h, *pos_graph.edges(), neg_graph.edges()[1],
            num_nodes=g.num_nodes(), known=known, ids=pos_graph.ndata[dgl.NID],
        )  # fmt: skip

    Embeddings in half precision, and autocast, are fine: scores are summed in float32. Gradients
    of the inner product are made by hand, in chunks of queries, so that memory does not grow with
    B M; second derivatives are not supported. Another scorer is computed twice, chunk by chunk.

    Args:
        h: embeddings of the batch's nodes, shape [n, D], floating point and finite; a pair
            ``(of sources, of destinations)`` where their types differ.
        pos_src: rows of the positives' sources in ``h``, shape [B], integer.
        pos_dst: rows of their destinations, shape [B], integer.
        candidates: rows of the negatives, shape [M] or [B, K], integer. Candidate i is positive
            ``i // K``'s own, as in DGL; where all are shared M can be any number. A node that is
            drawn twice counts twice.
        num_nodes: N, how many nodes the negatives are drawn from.
        known: what is no negative: known edges (then ``ids`` are needed, unless the rows of ``h``
            are all nodes in order), or booleans of shape [B, M] ([B, K] with ``share="edge"``),
            True where a candidate is to be left out. A positive's own destination always is.
        ids: ids of the nodes that the rows of ``h`` belong to, shape [n], integer; a pair like
            ``h``.
        log_ratio: natural log of ``rbar(u)`` (of ``r(u|v)`` with ``share="edge"``) of each
            candidate, in the shape of ``candidates``; inf leaves one out; defaults to 0, as for
            uniform draws. Those of chosen candidates do not count.
        chosen: booleans in the shape of ``candidates``, True for one that was chosen for its own
            positive, in whatever way: it is compared with that one alone. Defaults to none.
        scorer: scores of broadcastable embeddings, ([.., D], [.., D]) to [..]; defaults to the
            inner product.
        temperature: positive; scores are divided by it.
        share: ``"batch"``: shared candidates for all positives; ``"edge"``: its own for each.
        pool: at most so many of the shared candidates, random ones, are scored; None for all.
        discount: share in [0, 1] by which a positive pulls less where its loss is ``log N``, in
            proportion to its loss; the value of the loss stays. Defaults to none.
        generator: source of that choice, on the CPU; defaults to torch's global one.
        shared: what takes the place of the shared ones among ``candidates``, as
            `dgl_dmns.gathered` makes it of all ranks; then ``ids`` are needed, and ``known`` is no
            mask.

    Returns:
        The mean loss over the positives, a scalar, float32 (float64 for such embeddings). 0 with
        gradients of 0 for an empty batch.

    Raises:
        TypeError: if embeddings or log ratios are not floating point, or ids no integers.
        ValueError: for shapes, ids, devices or numbers that do not fit, and for NaN or infinity in
            embeddings or scores.
    """
    if share not in get_args(Comparison):
        raise ValueError(f"share: expected 'batch' or 'edge', got {share!r}")
    if not (math.isfinite(as_number("temperature", temperature)) and temperature > 0):
        raise ValueError(f"temperature: expected a positive, finite number, got {temperature}")
    if not isinstance(temperature, Tensor):  # which may be learned
        temperature = as_number("temperature", temperature)
    discount = as_number("discount", discount)
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount: expected a share between 0 and 1, got {discount}")
    num_nodes = as_integer("num_nodes", num_nodes, least=1)
    of_src, of_dst = checked_ends(h)
    src = _rows("pos_src", pos_src, of_src)
    dst = _rows("pos_dst", pos_dst, of_dst)
    if src.shape != dst.shape or src.dim() != 1:
        raise ValueError(
            f"pos_src, pos_dst: expected two tensors of one shape [B], got {tuple(src.shape)} and "
            f"{tuple(dst.shape)}"
        )
    way = PairScores(None if scorer is dot_score else scorer, temperature)
    if not src.numel():
        return way.pairs(of_src[src], of_dst[dst]).sum()
    drawn = _rows("candidates", candidates, of_dst).flatten()
    ratio = _log_ratio(log_ratio, drawn)
    own = None if chosen is None else _chosen(chosen, candidates, share).to(drawn.device)
    if shared is not None and (ids is None or isinstance(known, Tensor) or share == "edge"):
        raise ValueError(
            "shared: its candidates are known by ids, so pass ids=..., known edges in place of a "
            "mask, and share='batch'"
        )
    places = shared_places(drawn, len(src), own, share, pool, generator)
    names = torch.arange(len(of_dst), device=of_dst.device)
    if isinstance(known, KnownEdges) or shared is not None:
        of_edges = None if isinstance(known, Tensor) else known
        ids_src, ids_dst = _ids(ids, (of_src, of_dst), of_edges)
        names = ids_dst.to(of_dst.device)
    if isinstance(known, KnownEdges):
        barred = Barred.of_edges(known, ids_src[src.to(ids_src.device)], names[dst])
    else:
        columns = len(drawn) // len(src) if share == "edge" else len(drawn)
        barred = Barred.of_mask(known, names[dst], places, columns)

    positive = way.pairs(of_src[src], of_dst[dst])
    log_weight = math.log(num_nodes) - ratio
    other, apart = positive, (src[:0], src[:0])
    if shared is None:
        shared = SharedPool.of(of_dst, names, drawn[places], log_weight[places])
    if share == "edge":
        rows = drawn.view(len(src), -1)
        at = torch.arange(rows.shape[1], device=rows.device).expand(rows.shape)
        weight = log_weight.view(rows.shape) - math.log(rows.shape[1])
        other = way.beside(positive, of_src[src], of_dst, rows, barred.own(at, names[rows]), weight)
    elif own is not None:
        at, filled = _places(own)
        rows = drawn[at]
        node = names[rows]
        out = ~filled | barred.own(at, node)
        out |= ((node.unsqueeze(2) == node.unsqueeze(1)) & ~out.unsqueeze(1)).tril(-1).any(2)
        other = way.beside(positive, of_src[src], of_dst, rows, out)
        row, slot = (~out).nonzero(as_tuple=True)
        place, column = shared.find(node[row, slot])
        apart = row[place], column
    excess = (other - positive).sum()
    each = (other - positive).detach()
    if len(shared.nodes):
        queries, query_of, corrections = barred.among(shared, src, apart)
        total, added = pool_softmax(
            of_src.index_select(0, src[queries]),
            shared.h,
            shared.log_weight,
            other,
            corrections,
            way.scorer,
            temperature,
            query_of,
        )
        excess, each = excess + total, each + added
    if discount:
        lower = discount / math.log(max(2, num_nodes)) * each
        lower = torch.minimum(lower, -torch.expm1(-each))  # at most the whole pull
        excess = excess + (lower * (positive - positive.detach())).sum()
    loss = excess / len(src)
    if not bool(loss.isfinite()):
        raise ValueError(
            f"h: the scores of the batch are not finite (loss {float(loss)}); lower the learning "
            "rate or clip gradients if training has diverged, or raise the temperature"
        )
    return loss


def checked_ends(h: BothEnds) -> tuple[Tensor, Tensor]:
    """Embeddings of the nodes of both ends, if they are fine."""
    both = tuple(h) if isinstance(h, (tuple, list)) else (h, h)
    if len(both) != 2:
        raise ValueError(
            f"h: expected embeddings, or a pair (of sources, of destinations), got {len(both)} of "
            "them; pass one or two"
        )
    for part in both[:1] if isinstance(h, Tensor) else both:
        check_tensor("h", part, "embeddings")
        if not part.is_floating_point():
            raise TypeError(f"h: expected floating-point embeddings, got {part.dtype}")
        if part.dim() != 2:
            raise ValueError(f"h: expected embeddings of shape [n, D], got {tuple(part.shape)}")
        if part.device != both[0].device or part.dtype != both[0].dtype:
            raise ValueError(
                f"h: expected both ends on one device in one dtype, got {both[0].dtype} on "
                f"{both[0].device} and {part.dtype} on {part.device}"
            )
        bad = int((~part.detach().isfinite()).any(dim=1).sum())
        if bad:
            raise ValueError(
                f"h: NaN or infinity in {bad} of {len(part)} rows; lower the learning rate or clip "
                "gradients if training has diverged"
            )
    if both[0].shape[1] != both[1].shape[1]:
        raise ValueError(
            f"h: expected one width D for both ends, got {both[0].shape[1]} and {both[1].shape[1]}"
        )
    return both[0], both[1]


def _rows(name: str, rows: Tensor, h: Tensor) -> Tensor:
    """Rows of ``h`` as int64 on its device, if they are."""
    _check_integers(name, rows)
    if rows.numel():
        low, high = (int(end) for end in rows.aminmax())
        if low < 0 or high >= len(h):
            raise ValueError(
                f"{name}: expected rows of h, 0 .. {len(h) - 1}, got {low} .. {high}; h holds the "
                "nodes of the batch in the order of pos_graph.ndata[dgl.NID]"
            )
    return rows.to(h.device, torch.int64).contiguous()


def _check_integers(name: str, ids: Tensor) -> None:
    check_tensor(name, ids, "integers")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {ids.dtype}")


def shared_places(
    drawn: Tensor,
    positives: int,
    own: Tensor | None,
    share: Comparison,
    pool: int | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Places of the draws [M] that are shared, int64 [S]."""
    if not drawn.numel():
        raise ValueError("candidates: expected at least one, got none")
    if pool is not None and as_integer("pool", pool, what="candidates") < 1:
        raise ValueError(f"pool: expected at least 1, or None for all candidates, got {pool}")
    if share == "edge" and pool is not None:
        raise ValueError(
            f"pool: with share='edge' nothing is pooled, got {pool}; leave out one of the two"
        )
    if (share == "edge" or own is not None) and len(drawn) % positives:
        raise ValueError(
            f"candidates: expected K for each of the {positives} positives, got {len(drawn)}; "
            "which are a positive's own matters with chosen=... and share='edge'"
        )
    every = torch.arange(len(drawn), device=drawn.device)
    if share == "edge":
        return every[:0]
    if own is not None:
        every = every[~own.flatten()]
    if pool is not None and pool < len(every):
        every = every[torch.randperm(len(every), generator=generator)[:pool].to(every.device)]
    return every


def _chosen(chosen: Tensor, candidates: Tensor, share: Comparison) -> Tensor:
    """Which candidates [B, K] were chosen for their positives, if that can be."""
    check_tensor("chosen", chosen, "booleans")
    if chosen.dtype != torch.bool or chosen.shape != candidates.shape or chosen.dim() != 2:
        raise ValueError(
            f"chosen: expected booleans in the shape [B, K] of the candidates, "
            f"{tuple(candidates.shape)}, got {chosen.dtype} of shape {tuple(chosen.shape)}"
        )
    if share == "edge":
        raise ValueError(
            "chosen: with share='edge' all candidates are a positive's own; leave out "
            "one of the two"
        )
    return chosen


def _places(own: Tensor) -> tuple[Tensor, Tensor]:
    """Places among all draws of each positive's own ones [B, H], and which are there."""
    k = own.shape[1]
    most = int(own.sum(1).max())
    slot = own.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    first = torch.arange(len(own), device=own.device).unsqueeze(1) * k
    return first + slot, own.gather(1, slot)


def _log_ratio(log_ratio: Tensor | None, drawn: Tensor) -> Tensor:
    """Log ratios [M], float64, on the device of the candidates."""
    if log_ratio is None:
        return torch.zeros_like(drawn, dtype=torch.float64)
    check_tensor("log_ratio", log_ratio, "log ratios")
    if not log_ratio.is_floating_point():
        raise TypeError(f"log_ratio: expected a floating-point tensor, got {log_ratio.dtype}")
    ratio = log_ratio.detach().flatten().to(drawn.device, torch.float64)
    if ratio.shape != drawn.shape:
        raise ValueError(
            f"log_ratio: expected one for each of the {len(drawn)} candidates, got "
            f"{ratio.numel()}"
        )
    if not bool((ratio > -math.inf).all()):  # of NaN, too
        raise ValueError(
            "log_ratio: expected numbers above -inf, got NaN or -inf, that of a candidate that "
            "cannot be drawn"
        )
    return ratio


def _ids(
    ids: BothEnds | None, h: tuple[Tensor, Tensor], known: KnownEdges | None
) -> tuple[Tensor, Tensor]:
    """Node ids of the rows of both ends, int64, on the device of the known edges, if any."""
    device = h[0].device if known is None else known.indices.device
    counts = (None, None) if known is None else (known.num_src, known.num_dst)
    if ids is None:
        if known is None or tuple(map(len, h)) != counts:
            raise ValueError(
                f"ids: needed beside known edges unless h has a row for each of the {counts[1]} "
                f"nodes, got {len(h[1])} rows; pass pos_graph.ndata[dgl.NID]"
            )
        ids = torch.arange(len(h[0]), device=device), torch.arange(len(h[1]), device=device)
    both = (ids, ids) if isinstance(ids, Tensor) else ids
    found = []
    for part, rows, count in zip(both, h, counts):
        _check_integers("ids", part)
        if part.shape != (len(rows),):
            raise ValueError(
                f"ids: expected one for each of the {len(rows)} rows of h, got shape "
                f"{tuple(part.shape)}"
            )
        if part.numel() and count and not (int(part.min()) >= 0 and int(part.max()) < count):
            raise ValueError(
                f"ids: expected node ids in 0 .. {count - 1}, as in the known edges, got "
                f"{int(part.min())} .. {int(part.max())}"
            )
        found.append(part.to(device, torch.int64))
    return found[0], found[1]
