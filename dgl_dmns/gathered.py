r"""The shared candidates of all ranks, with gradients, for the loss of a batch on each of them.

With P ranks of ``torch.distributed``, each draws and embeds candidates of its own: rank r has S_r
that are random, drawn with the ratio ``rbar_r`` to uniform draws. A positive of any rank is
compared with all of them, by the mean of the ranks' own estimates,

    Z = 1 / P sum over r of N / S_r sum over u in P_r of e^s(v, u) / rbar_r(u),

known edges of v left out, over those P ranks that have any. It is as unbiased as they are: each has
the mean ``sum of e^s(v, u)`` over the nodes that its queries could draw. With more than a few
queries a rank these are all; a node that all queries of a rank know is missed there.

A candidate's gradient goes back to the rank that has embedded it. It is the sum over the losses of
all ranks, so that the mean that ``DistributedDataParallel`` takes of the weights' gradients is the
gradient of the mean loss. There is one exchange of sizes, ids and weights, one of embeddings and,
in the backward pass, one of gradients, whatever the number of edge types. They have a process group
of their own, since those of ``DistributedDataParallel`` may come before or after them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, distributed

from dgl_dmns.core import SharedPool
from dgl_dmns.messages import first_line

__all__ = ["Gathered", "gathered", "part_of_pool", "ranks"]

_GROUPS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # by the default group


class Gathered(NamedTuple):
    """What all ranks have offered.

    Attributes:
        pools: their candidates by what was offered for, in the order of ranks.
        zero: a scalar of 0 to be added to the loss of each rank, so that all of them take part in
            the backward pass.
    """

    pools: dict[Any, SharedPool]
    zero: Tensor


class _Offer(NamedTuple):
    """What a rank says of its candidates of one kind; of none where it has none."""

    num_nodes: int
    ids: Any = None  # int64 [C], as an array of NumPy
    log_weight: Any = None  # float64 [C], likewise
    width: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def size(self) -> int:
        """How many candidates there are."""
        return 0 if self.ids is None else len(self.ids)


def ranks() -> tuple[int, int]:
    """The rank of this process, and how many there are.

    Raises:
        RuntimeError: if ``torch.distributed`` was not initialised.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise RuntimeError(
            "gather: the negatives of all ranks come by torch.distributed, which was not "
            "initialised; call torch.distributed.init_process_group(...) on each rank, or leave "
            "gather=True out"
        )
    return distributed.get_rank(), distributed.get_world_size()


def part_of_pool(pool: int) -> int:
    """How many of a pool of all ranks' candidates this rank may offer.

    Raises:
        ValueError: if there are fewer than ranks.
        RuntimeError: if ``torch.distributed`` was not initialised.
    """
    rank, count = ranks()
    if pool < count:
        raise ValueError(
            f"pool: with gather=True expected at least one candidate for each of {count} ranks, "
            f"got {pool}; raise pool"
        )
    return pool // count + (rank < pool % count)


def gathered(
    offer: Callable[[], Mapping[Any, SharedPool]],
    num_nodes: Mapping[Any, int],
    embedded: Sequence[Tensor],
) -> Gathered:
    """The shared candidates of all ranks; to be called on all of them, each time.

    Args:
        offer: returns the pools of this rank by kind, such as edge types, those with candidates.
        num_nodes: all kinds that there are, in an order that is the same on all ranks, and how many
            nodes the candidates of each are drawn from.
        embedded: what the model has returned for the batch, at least one tensor.

    Returns:
        The candidates of all ranks.

    Raises:
        RuntimeError: if another rank could not offer any, or has ended; if ranks differ in the
            kinds, in their embeddings or in whether these have gradients.
        Exception: what ``offer`` raises here.
    """
    error, pools, group = None, {}, _own_group()
    try:
        pools = dict(offer())
    except Exception as raised:
        error = raised
    said = None if error is None else first_line(error)
    offers = {kind: _offered(pools.get(kind), nodes) for kind, nodes in num_nodes.items()}
    sloped = torch.is_grad_enabled() and any(part.requires_grad for part in embedded)
    found: list[Any] = [None] * ranks()[1]
    try:
        distributed.all_gather_object(found, (said, offers, sloped), group=group)
    except Exception as gone:
        raise RuntimeError(
            f"loss: another rank has ended, or does not answer ({first_line(gone)}); end this run, "
            "and look at the first error that any rank has printed"
        ) from (error or gone)
    if error is not None:
        raise error
    _check([one for one, _, _ in found], [one for _, one, _ in found], [one for *_, one in found])
    every = [one for _, one, _ in found]
    dtypes = [one.dtype for offers in every for one in offers.values() if one.size]
    wide = reduce(torch.promote_types, dtypes, torch.float32)
    mine = [pool.h for pool in (pools.get(kind) for kind in num_nodes) if pool is not None]
    flat = torch.cat([part.flatten().to(wide) for part in (*mine, *(x[:0] for x in embedded))])
    sizes = [sum(one.size * one.width for one in offers.values()) for offers in every]
    apply: Any = _OfAll.apply
    whole = apply(flat, sizes, group)
    return Gathered(_pools(whole, every), whole[:0].sum())


def _offered(pool: SharedPool | None, num_nodes: int) -> _Offer:
    if pool is None or not len(pool.nodes):
        return _Offer(num_nodes)
    ids, weight = (part.detach().cpu().numpy() for part in (pool.nodes, pool.log_weight))
    return _Offer(num_nodes, ids, weight, pool.h.shape[1], pool.h.dtype)


def _check(said: list[str | None], every: list[dict[Hashable, _Offer]], sloped: list[bool]) -> None:
    """Refuse, on all ranks alike, what does not fit together."""
    failed = {rank: one for rank, one in enumerate(said) if one is not None}
    if failed:
        rank, why = next(iter(failed.items()))
        raise RuntimeError(
            f"loss: {len(failed)} of {len(said)} ranks could not offer their candidates, rank "
            f"{rank} for one ({why}); see the error of that rank"
        )
    kinds = [{kind: one.num_nodes for kind, one in offers.items()} for offers in every]
    other = next((rank for rank, one in enumerate(kinds) if one != kinds[0]), None)
    if other is not None:
        raise RuntimeError(
            f"gather: ranks differ in edge types and numbers of nodes: rank 0 has {kinds[0]}, rank "
            f"{other} has {kinds[other]}; make the same sampler on each rank"
        )
    for kind in kinds[0]:
        forms = [
            (rank, f"D = {offers[kind].width}, {offers[kind].dtype}")
            for rank, offers in enumerate(every)
            if offers[kind].size
        ]
        for rank, form in forms:
            if form != forms[0][1]:
                raise RuntimeError(
                    f"h: ranks differ in the embeddings of candidates of {kind}: rank "
                    f"{forms[0][0]} has {forms[0][1]}, rank {rank} has {form}; use the same model "
                    "and autocast on each rank"
                )
    if len(set(sloped)) > 1:
        raise RuntimeError(
            f"h: embeddings have a gradient on ranks {[r for r, one in enumerate(sloped) if one]} "
            "alone; with gather=True all ranks train, or none does (see torch.no_grad())"
        )


def _pools(whole: Tensor, every: list[dict[Any, _Offer]]) -> dict[Any, SharedPool]:
    """The pools by kind, out of the embeddings of all ranks one after the other."""
    parts: dict[Any, list[Tensor]] = {kind: [] for kind in every[0]}
    start = 0
    for offers in every:
        for kind, one in offers.items():
            if one.size:
                end = start + one.size * one.width
                parts[kind].append(whole[start:end].view(one.size, one.width).to(one.dtype))
                start = end
    made, device = {}, whole.device
    for kind, of_ranks in parts.items():
        if of_ranks:
            some = [offers[kind] for offers in every if offers[kind].size]
            ids = torch.cat([torch.from_numpy(one.ids) for one in some]).to(device)
            weight = torch.cat([torch.from_numpy(one.log_weight) for one in some]).to(device)
            weight -= math.log(len(some))
            made[kind] = SharedPool(torch.cat(of_ranks), ids, weight, ids[:0])
    return made


def _own_group() -> Any:
    """The process group of this module, made at its first use on all ranks."""
    ranks()
    world: Any = distributed.group.WORLD
    if world not in _GROUPS:
        _GROUPS[world] = distributed.new_group()
    return _GROUPS[world]


class _OfAll(torch.autograd.Function):
    """Numbers of all ranks one after the other; slopes go back to where each comes from."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int], group: Any) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        if not max(sizes):
            return own.new_empty(0)
        padded = own.new_zeros(max(sizes))
        padded[: len(own)] = own
        padded = _where_sent(padded, group)
        found = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(found, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(found, sizes)]).to(own.device)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "gather: gradients that come from other ranks cannot be differentiated again; "
                "leave create_graph=True out, or gather=True"
            )
        slope, rank = slopes[0], distributed.get_rank(ctx.group)
        if len(slope):
            total = _where_sent(slope.clone(memory_format=torch.contiguous_format), ctx.group)
            distributed.all_reduce(total, group=ctx.group)
            slope = total.to(slope.device)
        start = sum(ctx.sizes[:rank])
        return slope[start : start + ctx.sizes[rank]], None, None


def _where_sent(tensor: Tensor, group: Any) -> Tensor:
    """A tensor where a group sends it from: gloo gathers on the CPU alone."""
    return tensor.cpu() if distributed.get_backend(group) == "gloo" else tensor
