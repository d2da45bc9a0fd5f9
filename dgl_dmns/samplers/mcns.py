r"""`MCNSSampler`: negatives from a Markov chain over nodes (Metropolis-Hastings).

Source: Yang et al., "Understanding Negative Sampling in Graph Representation Learning" (MCNS),
KDD 2020. Negatives should follow the positives' distribution sub-linearly: ``p_n(u|v)``
proportional to ``p_d(u|v)^alpha``, ``0 < alpha < 1``. The encoder's own scores stand for ``p_d``
(self-contrast):

    pi_v(y) = sigmoid(max(h_v . h_y, 0)^alpha), alpha = 0.25.

A chain in state ``x`` proposes ``y``, half uniformly and half from a depth-first walk
(`dgl_dmns.core.depth_first`), and accepts with ``min(1, pi_v(y) q(x|y) / (pi_v(x) q(y|x)))``.

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

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dgl_dmns.checks import as_integer, as_number
from dgl_dmns.core import (
    NO_LEVEL,
    Candidates,
    DepthFirstProposal,
    EdgeName,
    KnownEdges,
    ListWeights,
    Rule,
    TableReport,
    share,
    shielded,
)
from dgl_dmns.messages import warn
from dgl_dmns.samplers.embedder import Encoder
from dgl_dmns.samplers.method import Ends, Method, OnRows, check_width
from dgl_dmns.samplers.refreshing import RefreshingSampler
from dgl_dmns.samplers.relation import Relation
from dgl_dmns.samplers.settings import Pools, check_k

__all__ = ["MCNSSampler", "SelfContrast"]

_HELD = "embeddings beside the chains take"
_BLOCK = 16384  # chains that walk together: their working set stays in the cache


@dataclass(frozen=True)
class SelfContrast(Rule):
    """The chain's target, ``pi_v(y) = sigmoid(max(s, 0)^alpha)``, up to a constant per query.

    Args:
        alpha: exponent in (0, 1].
    """

    alpha: float = 0.25

    tractable = False  # a draw's probability needs the sum over all nodes

    def __post_init__(self) -> None:
        if not 0.0 < as_number("alpha", self.alpha) <= 1.0:
            raise ValueError(f"alpha: expected an exponent in (0, 1], got {self.alpha}")

    def logits(self, score: Tensor | None, log_ratio: Tensor | None = None) -> Tensor:
        """Log of the unnormalised target, of the shape of ``score``."""
        assert score is not None
        return logsigmoid(score.clamp(min=0).pow(self.alpha))


class ChainMethod(Method):
    """Chains of every query, and the embeddings that they walk by."""

    rebuilds_rows: ClassVar[bool] = False  # chains go on by themselves

    def __init__(
        self, known: KnownEdges, target: SelfContrast, steps: int, lists: dict[str, Any]
    ) -> None:
        self.known = known
        self.target = target
        self.steps = steps
        self.proposal = DepthFirstProposal(known, **lists)
        self._lists = lists
        self.walked: Tensor | None = None  # [2, N, D], shared: of the live version, and the other

    def walk(self, src: Tensor, x: Tensor, h: Tensor, generator: torch.Generator | None) -> Tensor:
        """States after ``steps`` steps from states ``x`` [B, k], for queries [B]; int64."""
        k = x.shape[1]
        rows = max(1, _BLOCK // k)
        parts = [
            self._walk_block(query.repeat_interleave(k), state.flatten(), h, generator)
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
            dice = torch.rand(x.shape, generator=generator, dtype=torch.float32)
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

    def fill(self, ends: Ends, nodes: Tensor | None, on_rows: OnRows) -> TableReport:
        table, h = ends.table, ends.h_query  # both ends have one type
        count, width = h.shape
        longest = float(h.double().norm(dim=1).max())
        if longest**2 > torch.finfo(torch.float32).max:
            raise ValueError(
                f"encoder: embeddings of length {longest:.3g} have inner products beyond the range "
                "of numbers; normalise them (the last table stays in use)"
            )
        if self.walked is None:
            self.walked = share(torch.zeros(2, count, width, dtype=torch.float32), _HELD)
        check_width(self.walked.shape[2], width)
        everyone, groups, k = torch.arange(count), table.groups // count, table.k
        if table.version == 0:
            states = self.known.uniform(everyone, groups * k, generator=ends.random)
        else:
            states = table.current().ids.long()
        self.walked[(table.version + 1) % 2].copy_(h)
        states = states.view(count, groups, k)
        blank = torch.full(states.shape, NO_LEVEL, dtype=torch.uint8)
        table.write(everyone, Candidates(states, blank))
        # One group stands for all in the statistics: their chains are alike.
        score = torch.stack([(h * h[slot]).sum(-1).mean() for slot in states[:, 0].unbind(1)])
        return TableReport(
            filtered=0.0,
            fallback=int(self.known.saturated().numel()),
            level_score={"no level": float(score.mean())},
        )

    def on(self, known: KnownEdges) -> ChainMethod:
        """The same for a graph that has grown: chains go on, new nodes score 0 with all nodes."""
        made = ChainMethod(known, self.target, self.steps, self._lists)
        if self.walked is not None:
            walked = self.walked.new_zeros(2, known.num_src, self.walked.shape[2])
            made.walked = share(walked, _HELD)
            made.walked[:, : self.walked.shape[1]] = self.walked
        return made

    def state(self, version: int) -> dict[str, Any]:
        live = None if self.walked is None else self.walked[version % 2]
        # A clone, since a view would bring the other buffer along.
        return {"snapshot": None if live is None else live.clone()}

    def width_of(self, state: dict[str, Any]) -> int | None:
        return None if state["snapshot"] is None else int(state["snapshot"].shape[1])

    def restored(self, state: dict[str, Any], version: int) -> ChainMethod:
        snapshot = state["snapshot"]
        if snapshot is not None:
            if self.walked is None:
                zeros = torch.zeros(2, *snapshot.shape, dtype=snapshot.dtype)
                self.walked = share(zeros, _HELD)
            self.walked.copy_(snapshot.expand_as(self.walked))  # in place: workers see it
        return self

    def sent(self) -> ChainMethod:
        """Workers walk the chains themselves."""
        return self


class MCNSSampler(RefreshingSampler):
    """MCNS: Metropolis-Hastings chains for each query, carried on from draw to draw.

    A query has ``groups`` groups of k chains. A draw picks a group for each of its B edges,
    advances the chains of all picked groups by ``steps`` steps together and returns their states.
    Edges of one query that pick the same group get the same negatives. States live in shared memory
    (the candidate table), beside a snapshot of the embeddings that a refresh replaces. Where loader
    workers meet the same group at once, the state that is written last is kept.

    Embeddings are read at draw time. A loader's workers see them only if the first refresh comes
    before the loader is started (`attach` sees to it); a worker that was started earlier warns and
    draws filtered uniform negatives.

    Args:
        g: the training graph (one node type, one edge type); its edges are the known positives.
        encoder: see `RefreshingSampler`, like ``k``. Scores are inner products.
        alpha: the sub-linear exponent, in (0, 1].
        steps: steps of a chain per draw.
        width: longest depth-first list.
        weights: ``"gaussian"`` or ``"uniform"`` weights over list positions.
        groups: groups of k chains per query.
        **options: ``feat``, ``seed`` (also of the lists and the first states), ``generator``,
            ``resources`` of `RefreshingSampler`.

    Raises:
        ValueError, TypeError, MemoryError: as `RefreshingSampler` says.
    """

    shares = False  # a walk goes on from nodes of any trainer
    takes = ("feat", "seed", "generator", "resources")  # a walk has to stay among candidates

    @shielded
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
        **options: Any,
    ) -> None:
        self._check_taken(options)
        self.steps = as_integer("steps", steps)
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1 step per draw, got {steps}")
        self._width, self._weights = as_integer("width", width), weights
        # A rule of its own: it scores chain states, and no pool is ever built.
        rule, pools = SelfContrast(alpha), Pools(pool=check_k(k), groups=groups)
        super().__init__(g, encoder, k, rule=rule, pools=pools, **options)

    def _method(self, known: KnownEdges, seed: int) -> ChainMethod:
        folder = self.resources.table_folder
        lists = {"width": self._width, "weights": self._weights, "seed": seed, "folder": folder}
        assert isinstance(self.rule, SelfContrast)
        return ChainMethod(known, self.rule, self.steps, lists)

    @shielded
    def draw(
        self, src: Tensor, etype: EdgeName | None = None, *, dst: Tensor | None = None
    ) -> Candidates:
        """Advance the chains of source nodes and return their states, of no level; see `Tables`."""
        generator, method = self._call_generator(), self.relation().method
        assert isinstance(method, ChainMethod)
        if method.walked is None:
            warn(
                "MCNSSampler: this worker was started before the first refresh and draws uniform "
                "negatives; call refresh() or attach() before iterating over the loader"
            )
            ids = self.known.uniform(src, self.k, generator=generator)
        else:
            table, live = self.table, self.version % 2
            place = table.random_places(src, generator)
            chains, row = torch.unique(place, return_inverse=True)
            groups = table.groups // table.queries  # all rows are alike
            query = torch.div(chains, groups, rounding_mode="floor")
            states = table.current(chains).ids.long()
            moved = method.walk(query, states, method.walked[live], generator)
            blank = torch.full(moved.shape, NO_LEVEL, dtype=torch.uint8)
            table.overwrite(chains, Candidates(moved, blank))
            ids = moved[row]
        return Candidates(ids, torch.full(ids.shape, NO_LEVEL, dtype=torch.uint8))

    def _draw_ids(
        self, relation: Relation, src: Tensor, dst: Tensor | None, eids: Tensor | None
    ) -> Tensor:
        return self.draw(src).ids
