"""A graph small enough to list the distributions of its negatives."""

from __future__ import annotations

from typing import Any

import torch
from small import alike, build, normal, rng
from torch import Tensor

from dgl_dmns.core import (
    Blend,
    Candidates,
    CandidateTable,
    Density,
    DiffusionGenerator,
    Gate,
    KnownEdges,
    Levels,
    PoolSettings,
    Rule,
    SelfAdversarial,
    dot_score,
)

NODES = 12
WIDTH = 3
EVERY = torch.arange(NODES)
H = 0.8 * normal(NODES, WIDTH, seed=1)
SRC = torch.tensor([0, 0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 8, 9, 10, 10, 10, 10])
DST = torch.tensor([1, 2, 5, 0, 3, 2, 3, 9, 4, 7, 6, 1, 0, 8, 0, 1, 2, 3])  # 11 is isolated
KNOWN = KnownEdges(SRC, DST, NODES)
SHARES = Levels((0.1, 0.25, 0.5, 1.0), shares=(0.5, 0.3, 0.2, 0.0))


def of_rows(table: CandidateTable) -> Candidates:
    """What stands in a table of rows that are alike, [N, G, K]."""
    return Candidates(*(part.view(table.queries, -1, table.k) for part in table.current()))


def distance_score(h_query: Tensor, h_candidate: Tensor) -> Tensor:
    """A scorer that is no inner product."""
    return 2 - (h_query - h_candidate).square().sum(-1)


def copies(count: int) -> tuple[Tensor, KnownEdges]:
    """Every query ``count`` times, as a type of its own: row ``v * count + r`` is query ``v``."""
    src = torch.cat([SRC, torch.arange(NODES)])  # self pairs are barred by hand here
    dst = torch.cat([DST, torch.arange(NODES)])
    rows = (src.unsqueeze(1) * count + torch.arange(count)).flatten()
    known = KnownEdges(rows, dst.repeat_interleave(count), NODES * count, NODES, exclude_self=False)
    return H.repeat_interleave(count, dim=0), known


def fill(
    rule: Rule,
    pools: PoolSettings,
    k: int,
    groups: int = 1,
    *,
    count: int = 1,
    seed: int = 3,
    **arguments: Any,
) -> CandidateTable:
    h_query, known = copies(count)
    table = alike(NODES * count, groups, k)
    build(table, rule, pools, known, h_query, H, generator=rng(seed), **arguments)
    assert table.version == 1
    return table


def admissible(query: int) -> list[int]:
    taken = {u for v, u in zip(SRC.tolist(), DST.tolist()) if v == query} | {query}
    return [u for u in range(NODES) if u not in taken]


class Exact:
    """The distributions of one query, in float64, straight from the definitions."""

    def __init__(
        self, model: DiffusionGenerator, query: int, lam: float = 1.0, scorer: Any = dot_score
    ) -> None:
        self.nodes = admissible(query)
        candidates = H[self.nodes].double()
        gaussians = model.gaussians(H[query : query + 1])
        shares = torch.tensor(model.levels.mixture_shares, dtype=torch.float64)
        parts = []
        for mean, std in zip(gaussians.mean[:, 0].double(), gaussians.std[:, 0].double()):
            log_prob = torch.distributions.Normal(mean, std).log_prob(candidates).sum(-1)
            parts.append((lam * log_prob).softmax(-1) * len(self.nodes))
        self.levels = shares.unsqueeze(1) * torch.stack(parts)  # of e^w, [L, A]
        self.w = self.levels.sum(0).log()
        self.s = scorer(H[query].double(), candidates)

    def parts(self, rule: Rule) -> tuple[Tensor, Tensor]:
        """Shares of the nodes that come from the generator, and of those that do not; [A] each."""
        s, w = self.s, self.w
        gate = (s.exp() + 1) / ((s - w).exp() + 1)
        gate = gate / gate.sum()
        none = torch.zeros_like(w)
        if isinstance(rule, Density):
            return w.softmax(-1), none
        if isinstance(rule, Gate):
            return gate, none
        if isinstance(rule, Blend):
            share = rule.score_share
            return (1 - share) * gate, share * (rule.sharpness * s).softmax(-1)
        assert isinstance(rule, SelfAdversarial)
        return none, (s / rule.temperature).softmax(-1)

    def chances(self, rule: Rule) -> Tensor:
        return sum(self.parts(rule), torch.zeros(()))

    def joint(self, rule: Rule) -> Tensor:
        """Chances of a level and a node together, those of no level last; [L + 1, A]."""
        levelled, other = self.parts(rule)
        return torch.cat([levelled * self.levels / self.levels.sum(0), other.unsqueeze(0)])
