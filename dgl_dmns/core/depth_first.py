r"""The proposal of a Markov chain over nodes: half uniform, half from a depth-first walk.

Source: Yang et al., "Understanding Negative Sampling in Graph Representation Learning" (MCNS),
KDD 2020. A chain in state ``x`` proposes ``y`` from

    q(y|x) = 1/2 * 1/N + 1/2 * w_x(y),

where ``w_x`` weighs the list of nodes that a depth-first walk from ``x`` meets first, ``x`` and its
neighbours left out. A node with an empty list proposes uniformly, ``q(y|x) = 1/N``. The acceptance
of a proposal needs ``q(x|y) / q(y|x)``, which is looked up here rather than worked out.
"""

from __future__ import annotations

import random
from typing import Literal

import torch
from torch import Tensor

from dgl_dmns.core.bitmap import PairBitmap
from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.sharing import Folder, Shareable

__all__ = ["DepthFirstProposal", "ListWeights"]

ListWeights = Literal["gaussian", "uniform"]

_BLOCK = 16384  # pairs whose ratios are worked out at a time
_SCAN = 100  # neighbours looked at per list entry before a walk gives up


class DepthFirstProposal(Shareable):
    """The chain's proposal: half uniform, half from the depth-first list of the state.

    Lists follow edges in both directions, neighbours in an order shuffled once. They are built in
    plain Python at construction: 1 to 2 seconds per 10,000 nodes, and ``20 * width`` bytes per
    node (and up to 16 MiB). A walk also ends after looking at ``100 * width`` neighbours, so that
    dense neighbourhoods cannot stall it; the list is shorter then, and the proposal's density still
    exact.

    Args:
        edges: edges of a graph with one node type.
        width: the longest list.
        weights: ``"gaussian"`` (over list positions, mean ``width / 2``, deviation ``width / 10``)
            or ``"uniform"``.
        seed: of the order of neighbours.
        folder: where the lists lie in files if shared memory has no room for them.

    Raises:
        ValueError: if ``width`` is below 1 or ``weights`` is unknown.
        MemoryError: if shared memory has no room, and there is no folder.
    """

    lists: Tensor
    lengths: Tensor
    weight: Tensor
    total: Tensor
    list_total: Tensor
    elsewhere: Tensor
    ratios: Tensor
    pair_keys: Tensor
    pair_ratios: Tensor

    def __init__(
        self,
        edges: KnownEdges,
        *,
        width: int = 100,
        weights: ListWeights = "gaussian",
        seed: int = 0,
        folder: Folder | None = None,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width: expected a list of at least 1 node, got {width}")
        if weights not in ("gaussian", "uniform"):
            raise ValueError(f"weights: expected 'gaussian' or 'uniform', got {weights!r}")
        self.num_nodes = edges.num_dst
        self.lists, self.lengths = _depth_first_lists(edges, width, seed)
        place = torch.arange(width, dtype=torch.float64)
        if weights == "gaussian":
            self.weight = torch.exp(-0.5 * ((place - width / 2) / (width / 10)) ** 2)
        else:
            self.weight = torch.ones_like(place)
        # total[l]: weight of the first l places, so that a list of length l sums to one.
        self.total = torch.cat([self.weight.new_zeros(1), self.weight.cumsum(0)])
        self.list_total = self.total[self.lengths.long()]
        # The density at nodes outside the list.
        self.elsewhere = torch.where(self.lengths == 0, 1.0, 0.5).div(self.num_nodes).float()
        # q(x|y) / q(y|x) for the members y of a list, and by pair, smaller id first.
        state, place = torch.nonzero(self.lists >= 0, as_tuple=True)
        member = self.lists[state, place].long()
        parts = zip(state.split(_BLOCK), member.split(_BLOCK))
        ratio = torch.cat([self._ratio(*part) for part in parts])
        self.ratios = torch.zeros(self.lists.shape, dtype=torch.float32)
        self.ratios[state, place] = ratio
        first, second = torch.minimum(state, member), torch.maximum(state, member)
        keys, order = (first * self.num_nodes + second).sort()
        self.pair_keys = keys
        self.pair_ratios = torch.where(state < member, ratio, 1 / ratio)[order]
        self.pairs = PairBitmap(first.numel())
        self.pairs.add(first, second)
        for name, field in list(vars(self).items()):
            if isinstance(field, Tensor):
                delattr(self, name)
                self.register_buffer(name, field)
        for part in (self, self.pairs):
            part.share("depth-first lists take", folder)

    def propose(
        self, x: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """One proposal ``y`` per state ``x`` [M], int64, and ``q(x|y) / q(y|x)``, float32 [M]."""
        # One number tells the half of the mixture and, stretched over its half, what comes of it.
        # Strictly below 1, it stays strictly below the list's total when multiplied by it.
        dice = torch.rand(x.shape, generator=generator, dtype=torch.float64).mul_(2)
        total = self.list_total.index_select(0, x)
        along = (dice < 1) & (total > 0)
        y = (dice.frac() * self.num_nodes).long()
        ratio = self.elsewhere.index_select(0, y).div_(self.elsewhere.index_select(0, x))
        if self.pair_keys.numel():
            self._correct(x, y, ratio)
        here = along.nonzero().squeeze(1)
        target = dice.index_select(0, here) * total.index_select(0, here)
        place = torch.searchsorted(self.total[1:], target, right=True)
        entry = x.index_select(0, here) * self.lists.shape[1] + place
        y.index_copy_(0, here, self.lists.view(-1).index_select(0, entry).long())
        ratio.index_copy_(0, here, self.ratios.view(-1).index_select(0, entry))
        return y, ratio

    def _correct(self, x: Tensor, y: Tensor, ratio: Tensor) -> None:
        """Put in the ratios of those pairs [M] of which one stands in the list of the other."""
        first, second = torch.minimum(x, y), torch.maximum(x, y)
        if self.pairs.useful:
            where = self.pairs.may_contain(first, second).nonzero().squeeze(1)
            first, second = first.index_select(0, where), second.index_select(0, where)
        else:
            where = torch.arange(x.numel())
        key = first * self.num_nodes + second
        at = torch.searchsorted(self.pair_keys, key).clamp_(max=self.pair_keys.numel() - 1)
        found = (self.pair_keys.index_select(0, at) == key).nonzero().squeeze(1)
        where = where.index_select(0, found)
        exact = self.pair_ratios.index_select(0, at.index_select(0, found))
        rising = x.index_select(0, where) < y.index_select(0, where)
        ratio.index_copy_(0, where, torch.where(rising, exact, 1 / exact))

    def density(self, x: Tensor, y: Tensor) -> Tensor:
        """The density ``q(y|x)`` of nodes and states [M], float64, by whole lists."""
        hit, place = (self.lists.index_select(0, x) == y.int().unsqueeze(1)).max(dim=1)
        total = self.list_total.index_select(0, x)
        uniform = 1.0 / self.num_nodes
        weight = self.weight.index_select(0, place) * hit / total.clamp(min=1e-300)
        return torch.where(total > 0, 0.5 * uniform + 0.5 * weight, uniform)

    def _ratio(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.density(y, x) / self.density(x, y)).float()


def _depth_first_lists(edges: KnownEdges, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """The first ``width`` nodes of a depth-first walk from each node, its neighbours left out.

    Lists [N, width], int32, filled up with -1, and their lengths [N], int32.
    """
    nodes = edges.num_src
    adjacency = _neighbour_lists(edges, seed)
    lists = torch.full((nodes, width), -1, dtype=torch.int32)
    lengths = torch.zeros(nodes, dtype=torch.int32)
    for root in range(nodes):
        found = _depth_first(adjacency, root, width)
        if found:
            lists[root, : len(found)] = torch.tensor(found, dtype=torch.int32)
            lengths[root] = len(found)
    return lists, lengths


def _depth_first(adjacency: list[list[int]], root: int, width: int) -> list[int]:
    scans = _SCAN * width
    near = {root, *adjacency[root]}
    width = min(width, len(adjacency) - len(near))  # there are no more
    if not width:
        return []
    seen = {root}
    found: list[int] = []
    stack = [iter(adjacency[root])]
    while stack:
        for node in stack[-1]:
            scans -= 1
            if node not in seen:
                seen.add(node)
                if node not in near:
                    found.append(node)
                stack.append(iter(adjacency[node]))
                break
        else:
            stack.pop()
        if len(found) == width or scans <= 0:
            break
    return found


def _neighbour_lists(edges: KnownEdges, seed: int) -> list[list[int]]:
    """Neighbours of every node along edges of either direction, each list in a random order."""
    nodes = edges.num_src
    source = torch.repeat_interleave(torch.arange(nodes), edges.degrees())
    target = edges.indices.long()
    keys = torch.unique(torch.cat([source * nodes + target, target * nodes + source]))
    rows = torch.div(keys, nodes, rounding_mode="floor")
    counts = torch.bincount(rows, minlength=nodes).tolist()
    columns = (keys - rows * nodes).tolist()
    shuffle = random.Random(seed).shuffle
    adjacency = []
    start = 0
    for count in counts:
        mine = columns[start : start + count]
        shuffle(mine)
        adjacency.append(mine)
        start += count
    return adjacency
