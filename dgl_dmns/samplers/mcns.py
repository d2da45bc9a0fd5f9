r"""`MCNSSampler`: negatives from a Markov chain over nodes (Metropolis-Hastings).

Source: Yang et al., "Understanding Negative Sampling in Graph Representation Learning" (MCNS),
KDD 2020. Negatives should follow the positives' distribution sub-linearly: ``p_n(u|v)``
proportional to ``p_d(u|v)^alpha``, ``0 < alpha < 1``. The encoder's own scores stand for ``p_d``
(self-contrast):

    ``pi_v(y) = sigmoid(max(h_v . h_y, 0)^alpha)``, ``alpha = 0.25``.

A chain in state ``x`` proposes ``y`` from the mixture

    ``q(y|x) = 1/2 * 1/N + 1/2 * w_x(y)``,

where ``w_x`` weighs the list of up to 100 nodes that a depth-first walk from ``x`` meets first,
``x`` and its neighbours left out; it accepts with
``min(1, pi_v(y) q(x|y) / (pi_v(x) q(y|x)))``. A node with an empty list proposes uniformly,
``q(y|x) = 1/N``.

Where this corrects the published code: the choice of the component, the proposal and the
acceptance each use a uniform number of their own, and the ratio ``q(x|y) / q(y|x)`` is that of the
true mixture density in both directions. Without either, a chain has another distribution.

Where it goes beyond the paper: ``pi_v`` is 0 for known edges of ``v`` and for ``v`` itself, so a
chain that starts at an admissible node stays among them, without rejected draws. ``pi_v`` differs
by a factor of at most 2 between admissible nodes, and half of the proposals are uniform, so each
step forgets its past with probability ``a / 4`` or more, ``a`` being the admissible share of the
nodes. The distance to ``pi_v`` (total variation) is thus at most ``(1 - a / 4)^n`` after n steps:
0.06 for the 10 steps of one draw in a sparse graph, from any start.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dgl_dmns.core.bitmap import PairBitmap
from dgl_dmns.core.engine import TableReport
from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.pools import PoolSettings
from dgl_dmns.core.rules import Rule
from dgl_dmns.core.table import UNIFORM_LEVEL, Candidates
from dgl_dmns.samplers.base import EdgeName, check_k
from dgl_dmns.samplers.refreshing import Encoder, RefreshingSampler
from dgl_dmns.samplers.relation import Relation
from dgl_dmns.samplers.resources import Resources

__all__ = ["DepthFirstProposal", "MCNSSampler", "SelfContrast"]

ListWeights = Literal["gaussian", "uniform"]

_BLOCK = 16384  # chains that walk together: their working set stays in the cache
_CELLS = 4096  # of the guide to list places
_SCAN = 100  # neighbours looked at per list entry before a walk gives up


@dataclass(frozen=True)
class SelfContrast:
    """The chain's target, ``pi_v(y) = sigmoid(max(s, 0)^alpha)``, up to a constant per query.

    Args:
        alpha: exponent in (0, 1].

    Raises:
        ValueError: if ``alpha`` lies outside.
    """

    alpha: float = 0.25

    uses_generator = False
    uses_scores = True
    tractable = False  # a draw's probability needs the sum over all nodes

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha <= 1.0:
            raise ValueError(f"alpha: expected an exponent in (0, 1], got {self.alpha}")

    def logits(self, score: Tensor | None, log_ratio: Tensor | None = None) -> Tensor:
        """Log of the unnormalised target, of the shape of ``score``."""
        assert score is not None
        return logsigmoid(score.clamp(min=0).pow(self.alpha))


class DepthFirstProposal:
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

    Raises:
        ValueError: if ``width`` is below 1 or ``weights`` is unknown.
    """

    def __init__(
        self,
        edges: KnownEdges,
        *,
        width: int = 100,
        weights: ListWeights = "gaussian",
        seed: int = 0,
    ) -> None:
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
        self.guide = _guide(self.total)
        # The density at nodes outside the list.
        self.elsewhere = torch.where(self.lengths == 0, 1.0, 0.5).div(self.num_nodes).float()
        # q(x|y) / q(y|x) for the members y of a list, and by pair, smaller id first.
        state, place = torch.nonzero(self.lists >= 0, as_tuple=True)
        member = self.lists[state, place].long()
        ratio = torch.cat([self._ratio(*part) for part in zip(*_blocks(state, member))])
        self.ratios = torch.zeros(self.lists.shape)
        self.ratios[state, place] = ratio
        first, second = torch.minimum(state, member), torch.maximum(state, member)
        keys, order = (first * self.num_nodes + second).sort()
        self.pair_keys = keys
        self.pair_ratios = torch.where(state < member, ratio, 1 / ratio)[order]
        self.pairs = PairBitmap(first, second)
        for shared in (*vars(self).values(), self.pairs.taken):
            if isinstance(shared, Tensor):
                shared.share_memory_()

    def propose(
        self, x: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """One proposal per state, and what it weighs in the acceptance.

        Args:
            x: states, shape [M], int64.
            generator: source of randomness.

        Returns:
            Proposals ``y``, int64, and ``q(x|y) / q(y|x)``, float32, of shape [M].
        """
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
        place = self._place(dice.index_select(0, here) * total.index_select(0, here))
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

    def _place(self, target: Tensor) -> Tensor:
        """List places at which the running weight exceeds a target; int64 [M]."""
        cells = self.guide.numel()
        cell = (target * (cells / float(self.total[-1]))).long().clamp_(max=cells - 1)
        place = self.guide.index_select(0, cell).long()
        vague = (place < 0).nonzero().squeeze(1)
        place[vague] = torch.searchsorted(self.total[1:], target[vague], right=True)
        return place

    def density(self, x: Tensor, y: Tensor) -> Tensor:
        """The mixture density ``q(y|x)``, float64, of states and nodes of shape [M], int64.

        It compares with whole lists: the reference for the ratios that `propose` looks up.
        """
        hit, place = (self.lists.index_select(0, x) == y.int().unsqueeze(1)).max(dim=1)
        total = self.list_total.index_select(0, x)
        uniform = 1.0 / self.num_nodes
        weight = self.weight.index_select(0, place) * hit / total.clamp(min=1e-300)
        return torch.where(total > 0, 0.5 * uniform + 0.5 * weight, uniform)

    def _ratio(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.density(y, x) / self.density(x, y)).float()


class MCNSSampler(RefreshingSampler):
    """MCNS: Metropolis-Hastings chains for each query, carried on from draw to draw.

    A query has ``groups`` groups of k chains. A draw picks a group for each of its B edges,
    advances the chains of all picked groups by ``steps`` steps together and returns their states
    (about 0.03 s on one core for B = 1024, k = 5, 10 steps, N = 20,000, D = 64). Edges of one query
    that pick the same group get the same negatives. States live in shared memory (the candidate
    table), beside a snapshot of the embeddings that a refresh replaces. Where loader workers meet
    the same group at once, both start from one state, and the state that is written last is kept.

    Embeddings are read at draw time. A loader's workers see them only if the first refresh comes
    before the loader is started (`attach` sees to it); a worker that was started earlier warns and
    draws filtered uniform negatives. A node linked to all others returns itself, see the warning
    at construction.

    Args:
        g: the training graph (one node type, one edge type); its edges are the known positives.
        encoder: an ``nn.Module`` called as ``encoder(g, g.ndata[feat])``, or a callable that
            returns embeddings [N, D]. Scores are inner products.
        k: negatives per edge.
        alpha: the sub-linear exponent, in (0, 1].
        steps: steps of a chain per draw.
        width: longest depth-first list.
        weights: ``"gaussian"`` or ``"uniform"`` weights over list positions.
        groups: groups of k chains per query.
        feat: name of the node features, for an ``nn.Module`` encoder.
        seed: seed of the lists and of the first states.
        generator: source of the draws in the main process; torch's global one where not given.
        resources: limits of memory, and refreshes in the background; see `Resources`.

    Raises:
        ValueError: for a value out of range, an unsuitable graph, or a missing feature.
        TypeError: for ``k`` or ``encoder`` of a wrong type.
    """

    takes_several_types: ClassVar[bool] = False  # a walk has to stay among candidates
    rebuilds_rows: ClassVar[bool] = False  # chains go on by themselves

    def __init__(
        self,
        g: Any,
        encoder: Encoder,
        k: int = 1,
        *,
        alpha: float = 0.25,
        steps: int = 10,
        width: int = 100,
        weights: ListWeights = "gaussian",
        groups: int = 8,
        feat: str = "feat",
        seed: int = 0,
        generator: torch.Generator | None = None,
        resources: Resources | None = None,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps: expected at least 1 step per draw, got {steps}")
        target = SelfContrast(alpha)
        super().__init__(
            g,
            encoder,
            k,
            # A rule of its own: it scores chain states, and no pool is ever built.
            rule=cast(Rule, target),
            settings=PoolSettings(pool=check_k(k), groups=groups),
            feat=feat,
            seed=seed,
            generator=generator,
            resources=resources,
        )
        self.target = target
        self.steps = steps
        self._lists: dict[str, Any] = {"width": width, "weights": weights, "seed": seed}
        self.proposal = DepthFirstProposal(self.known, **self._lists)
        self._snapshot: Tensor | None = None

    def draw(self, src: Tensor, etype: EdgeName | None = None) -> Candidates:
        """Advance the chains of source nodes and return their states (after a refresh).

        Args:
            src: source ids, shape [B], int64, on the CPU.
            etype: the only edge type, which need not be named.

        Returns:
            Candidates of shape [B, k]; log ratios are NaN, since ``pi_v`` is not normalised.
        """
        generator = self._call_generator()
        if self._snapshot is None:
            warnings.warn(
                "MCNSSampler: this worker was started before the first refresh and draws uniform "
                "negatives; call refresh() or attach() before iterating over the loader",
                stacklevel=2,
            )
            ids = self.known.uniform(src, self.k, generator=generator)
        else:
            live = self.version % 2
            _, groups, k = self.table.shape
            states = self.table.ids[live].view(-1, k)
            pick = torch.randint(0, groups, src.shape, generator=generator)
            chains, row = torch.unique(src * groups + pick, return_inverse=True)
            query = torch.div(chains, groups, rounding_mode="floor")
            moved = self._walk(query, states[chains].long(), self._snapshot[live], generator)
            states[chains] = moved.to(torch.int32)
            ids = moved[row]
        return Candidates(
            ids,
            torch.full(ids.shape, torch.nan, dtype=torch.float16),
            torch.full(ids.shape, UNIFORM_LEVEL, dtype=torch.uint8),
        )

    def update_graph(self, g: Any) -> None:
        """Go on with a graph that has grown, see `RefreshingSampler.update_graph`.

        The lists are built anew. Chains go on where they are; until the next refresh, new nodes
        have the score 0 with all nodes.
        """
        super().update_graph(g)
        self.proposal = DepthFirstProposal(self.known, **self._lists)
        if self._snapshot is not None:
            before = self._snapshot
            self._snapshot = before.new_zeros(2, self.known.num_src, before.shape[2])
            self._snapshot.share_memory_()[:, : before.shape[1]] = before

    def _draw_ids(self, relation: Relation, src: Tensor) -> Tensor:
        return self.draw(src).ids

    def _walk(self, src: Tensor, x: Tensor, h: Tensor, generator: torch.Generator | None) -> Tensor:
        """States after ``steps`` steps from states ``x`` [B, k], for queries [B]; int64."""
        rows = max(1, _BLOCK // self.k)
        parts = [
            self._walk_block(query.repeat_interleave(self.k), state.flatten(), h, generator)
            for query, state in zip(src.split(rows), x.split(rows))
        ]
        return torch.cat(parts).view_as(x) if parts else x

    @torch.no_grad()
    def _walk_block(
        self, query: Tensor, x: Tensor, h: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """States after ``steps`` steps, from states [M] for queries [M]; int64."""
        x = x.clone()
        pi = self._pi(query, x, h)
        for _ in range(self.steps):
            y, ratio = self.proposal.propose(x, generator=generator)
            dice = torch.rand(x.shape, generator=generator)
            # Scores are needed only where a target twice that of the state would do.
            hope = (dice < 2 * ratio).nonzero().squeeze(1)
            mine, new = query.index_select(0, hope), y.index_select(0, hope)
            pi_new = self._pi(mine, new, h)
            chance = pi_new / pi.index_select(0, hope) * ratio.index_select(0, hope)
            accept = (dice.index_select(0, hope) < chance) & ~self.known.contains(mine, new)
            taken = accept.nonzero().squeeze(1)
            hope = hope.index_select(0, taken)
            x.index_copy_(0, hope, new.index_select(0, taken))
            pi.index_copy_(0, hope, pi_new.index_select(0, taken))
        return x

    def _pi(self, query: Tensor, x: Tensor, h: Tensor) -> Tensor:
        """The target of states [M] for queries [M], without filter or constant; float32."""
        score = (h.index_select(0, query) * h.index_select(0, x)).sum(-1)
        return self.target.logits(score).exp_()

    def _rebuild(
        self,
        relation: Relation,
        h_query: Tensor,
        h_candidate: Tensor,
        nodes: Tensor | None,
        on_rows: Callable[[int], object],
    ) -> TableReport:
        h = h_query  # both ends have one type
        count, width = h.shape
        longest = float(h.double().norm(dim=1).max())
        if longest**2 > torch.finfo(torch.float32).max:
            raise ValueError(
                f"encoder: embeddings of length {longest:.3g} have inner products beyond the range "
                "of numbers; normalise them (the last table stays in use)"
            )
        everyone = torch.arange(count)
        if self._snapshot is None:
            self._snapshot = torch.zeros(2, count, width).share_memory_()
        elif self._snapshot.shape[2] != width:
            raise ValueError(
                f"encoder: expected embeddings of width {self._snapshot.shape[2]}, as at the first "
                f"refresh, got {width}; make a new sampler for another encoder"
            )
        _, groups, k = self.table.shape
        if self.version == 0:
            states = self.known.uniform(everyone, groups * k, generator=relation.random)
            states = states.view(count, groups, k)
        else:
            states = self.table.current().ids.long()
        self._snapshot[(self.version + 1) % 2].copy_(h)
        blank = torch.zeros(states.shape)
        self.table.write(everyone, Candidates(states, blank * torch.nan, blank + UNIFORM_LEVEL))
        # One group stands for all in the statistics: their chains are alike.
        score = torch.stack([(h * h[slot]).sum(-1).mean() for slot in states[:, 0].unbind(1)])
        return TableReport(
            filtered=0.0,
            fallback=int(self.known.saturated().numel()),
            level_score={"uniform": float(score.mean())},
        )

    def _own_state(self, relation: Relation) -> dict[str, Any]:
        snapshot = self._snapshot
        # A clone, since a view would bring the other buffer along.
        return {"snapshot": None if snapshot is None else snapshot[self.version % 2].clone()}

    def _load_own_state(self, states: list[tuple[Relation, dict[str, Any]]]) -> None:
        snapshot = states[0][1]["snapshot"]
        if snapshot is None:
            return
        if self._snapshot is None:
            self._snapshot = torch.zeros(2, *snapshot.shape).share_memory_()
        elif self._snapshot.shape[1:] != snapshot.shape:
            raise ValueError(
                f"state: made for embeddings of width {snapshot.shape[1]}, this sampler's encoder "
                f"gives {self._snapshot.shape[2]}; load it beside the encoder it was made with"
            )
        self._snapshot.copy_(snapshot.expand_as(self._snapshot))

    def __repr__(self) -> str:
        return (
            f"MCNSSampler(k={self.k}, target={self.target}, steps={self.steps}, "
            f"version={self.version})"
        )


def _blocks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return [tensor.split(_BLOCK) for tensor in tensors]


def _guide(total: Tensor) -> Tensor:
    """The place that each of many equal cells of the running weight belongs to; -1: to several.

    Args:
        total: running weight, zero first, shape [W + 1], float64.

    Returns:
        Places, shape [cells], int32.
    """
    edge = torch.arange(_CELLS, dtype=torch.float64) / _CELLS
    margin = 1e-3 / _CELLS  # far above rounding
    first, last = (
        torch.searchsorted(total[1:], at * total[-1], right=True)
        for at in (edge - margin, edge + 1 / _CELLS + margin)
    )
    return torch.where(first == last, first, -1).to(torch.int32)


def _depth_first_lists(edges: KnownEdges, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """The first ``width`` nodes of a depth-first walk from each node, its neighbours left out.

    Returns:
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
    near = {root, *adjacency[root]}
    seen = {root}
    found: list[int] = []
    scans = _SCAN * width
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
