"""`build_table` against the exact distributions of a graph small enough to list them.

With a pool of all nodes the estimate over a pool is exact, so the first slot of a group follows the
rule's weights over all admissible nodes, and log ratios and level tags have closed forms. To get
many groups from different pools at once, every query of the graph is repeated: R copies of each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import assert_counts
from torch import Tensor
from torch.nn.functional import normalize

from dgl_dmns.core import (
    NO_LEVEL,
    Blend,
    Candidates,
    CandidateTable,
    Density,
    DiffusionGenerator,
    Gate,
    Hardest,
    KnownEdges,
    Levels,
    MLPPredictor,
    Nearest,
    NodeDistribution,
    PoolDraw,
    PoolSettings,
    Rule,
    SelfAdversarial,
    Snapshot,
    build_table,
    dot_score,
    fill_table,
)

NODES = 12
WIDTH = 3
EVERY = torch.arange(NODES)
assert_frequencies = partial(assert_counts, least=1e-4)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=rng(seed))


H = 0.8 * normal(NODES, WIDTH, seed=1)
SRC = torch.tensor([0, 0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 8, 9, 10, 10, 10, 10])
DST = torch.tensor([1, 2, 5, 0, 3, 2, 3, 9, 4, 7, 6, 1, 0, 8, 0, 1, 2, 3])  # 11 is isolated
KNOWN = KnownEdges(SRC, DST, NODES)
SHARES = Levels((0.1, 0.25, 0.5, 1.0), shares=(0.5, 0.3, 0.2, 0.0))


def alike(queries: int, groups: int, k: int) -> CandidateTable:
    """A table whose rows have the same number of groups."""
    return CandidateTable(torch.full((queries,), groups), k)


def of_rows(table: CandidateTable) -> Candidates:
    """What stands in a table of rows that are alike, [N, G, K]."""
    return Candidates(*(part.view(table.queries, -1, table.k) for part in table.current()))


def distance_score(h_query: Tensor, h_candidate: Tensor) -> Tensor:
    """A scorer that is no inner product."""
    return 2 - (h_query - h_candidate).square().sum(-1)


@pytest.fixture(scope="module")
def model() -> DiffusionGenerator:
    made = DiffusionGenerator(WIDTH, levels=SHARES, space="raw", batch_pairs=256)
    made.fit(H, H, KNOWN, 60, generator=rng(2))
    return made


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
    build_table(table, rule, pools, known, h_query, H, generator=rng(seed), **arguments)
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
            factor = 1.0 if rule.edge_ratio is None else SHARPNESS
            share = rule.score_share
            return (1 - share) * gate, share * (factor * s).softmax(-1)
        assert isinstance(rule, SelfAdversarial)
        return none, (s / rule.temperature).softmax(-1)

    def chances(self, rule: Rule) -> Tensor:
        return sum(self.parts(rule), torch.zeros(()))

    def joint(self, rule: Rule) -> Tensor:
        """Chances of a level and a node together, those of no level last; [L + 1, A]."""
        levelled, other = self.parts(rule)
        return torch.cat([levelled * self.levels / self.levels.sum(0), other.unsqueeze(0)])


CASES = [
    pytest.param(Density(), 1.0, None, id="density"),
    pytest.param(Density(), 0.3, None, id="density-tempered"),
    pytest.param(Gate(), 1.0, None, id="gate"),
    pytest.param(Gate(), 0.3, distance_score, id="gate-scorer"),
    pytest.param(Blend(), 1.0, distance_score, id="blend"),
    pytest.param(Blend(0.3, edge_ratio=8.0), 1.0, distance_score, id="blend-sharpened"),
    pytest.param(SelfAdversarial(), 1.0, None, id="self-adversarial"),
    pytest.param(SelfAdversarial(3.0), 1.0, dot_score, id="self-adversarial-warm"),
    pytest.param(SelfAdversarial(0.7), 1.0, distance_score, id="self-adversarial-scorer"),
]
COUNT = 1500
SHARPNESS = 1.7


@pytest.mark.parametrize(("rule", "lam", "scorer"), CASES)
def test_the_first_slot_follows_the_exact_distribution(
    model: DiffusionGenerator, rule: Rule, lam: float, scorer: Any
) -> None:
    # The uniform share is drawn in the call and has no part in what a table holds.
    pools = PoolSettings(pool=NODES, uniform_share=0.4, lam=lam)
    sharpness = 1.0 if rule.edge_ratio is None else SHARPNESS
    table = fill(rule, pools, 3, count=COUNT, model=model, scorer=scorer, sharpness=sharpness)
    drawn = table.current()
    ids = drawn.ids.view(NODES, COUNT, 3).long()
    levels = drawn.level.view(NODES, COUNT, 3)
    snapshot = Snapshot.take(H, H, KNOWN, scorer, model if rule.uses_generator else None)
    snapshot = replace(snapshot, sharpness=sharpness)
    ratios = NodeDistribution(rule, pools, snapshot).hard_log_ratios(EVERY, EVERY).double()
    for query in range(NODES):
        exact = Exact(model, query, lam, scorer or dot_score)
        assert set(ids[query].unique().tolist()) <= set(exact.nodes)
        place = torch.full((NODES,), -1)
        place[exact.nodes] = torch.arange(len(exact.nodes))
        seen = place[ids[query]]
        chances = exact.chances(rule)

        # The node, and the level that it came from given the node.
        slot = torch.bincount(seen[:, 0], minlength=len(exact.nodes))
        assert_frequencies(slot, chances)
        tag = levels[query, :, 0].long()
        tag = torch.where(tag == NO_LEVEL, len(SHARES), tag)
        joint = torch.zeros(len(SHARES) + 1, len(exact.nodes), dtype=torch.int64)
        joint.index_put_((tag, seen[:, 0]), torch.ones(COUNT, dtype=torch.int64), True)
        assert_frequencies(joint, exact.joint(rule))

        # Without replacement: given the first, the second has the rest of the weights.
        assert bool((ids[query].sort(dim=-1).values.diff(dim=-1) > 0).all())
        pair = torch.bincount(seen[:, 0] * len(chances) + seen[:, 1], minlength=len(chances) ** 2)
        second = chances.unsqueeze(1) * chances / (1 - chances).unsqueeze(1)
        assert_frequencies(pair, second.fill_diagonal_(0).flatten())

        # The log ratio, in closed form.
        truth = (chances * len(chances)).log()
        torch.testing.assert_close(ratios[query, exact.nodes], truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [1, 7, 600])
def test_groups_of_one_refresh_are_drawn_alike_with_one_node_type(
    model: DiffusionGenerator, shared: int
) -> None:
    """The shape samplers use: source and destination are the same nodes, many groups in a row."""
    pools = PoolSettings(pool=NODES, draws_per_pool=shared)
    table = CandidateTable(600 + EVERY, 2)  # and rows of different length
    build_table(table, Gate(), pools, KNOWN, H, H, model=model, generator=rng(4))
    ids = table.current().ids.long()
    for query in range(NODES):
        exact = Exact(model, query)
        mine = ids[table.start[query] : table.start[query + 1]]
        seen = torch.bincount(mine[:, 0], minlength=NODES)
        assert set(mine.unique().tolist()) <= set(exact.nodes)
        assert_frequencies(seen[exact.nodes], exact.chances(Gate()))


def test_the_gates_calibration_holds_for_what_is_drawn(model: DiffusionGenerator) -> None:
    """Gated draws under the plain loss push like generator draws under the calibrated one."""
    count = 4000
    table = fill(Gate(), PoolSettings(pool=NODES), 1, count=count, model=model)
    ids = table.current().ids.view(NODES, count).long()
    for query in range(NODES):
        exact = Exact(model, query)
        push = torch.bincount(ids[query], minlength=NODES)[exact.nodes] / count * exact.s.sigmoid()
        calibrated = exact.chances(Density()) * (exact.s - exact.w).sigmoid()
        assert torch.allclose(push / push.sum(), calibrated / calibrated.sum(), atol=0.03)


def test_one_type_of_all_zero_share_is_never_drawn(model: DiffusionGenerator) -> None:
    levels = fill(Density(), PoolSettings(), 3, count=200, model=model).current().level
    assert sorted(levels.unique().tolist()) == [0, 1, 2]  # the fourth level has no share


# Pools smaller than the graph.

FLAT = SelfAdversarial(1e9)  # equal weights


@pytest.mark.parametrize("pool", [3, 4, 7])  # 3: few enough to redraw twins; 4, 7: random keys
def test_small_pools_keep_draws_by_equal_weights_uniform(pool: int) -> None:
    count = 1500
    table = fill(FLAT, PoolSettings(pool=pool, queries_per_pool=2), 2, count=count)
    ids = table.current().ids.view(NODES, count, 2).long()
    for query in range(NODES):
        allowed = admissible(query)
        pairs = Counter(tuple(sorted(pair)) for pair in ids[query].tolist())
        assert all(a != b for a, b in pairs)
        assert {u for pair in pairs for u in pair} <= set(allowed)
        for slot in range(2):
            seen = torch.bincount(ids[query, :, slot], minlength=NODES)[allowed]
            assert_frequencies(seen, torch.ones(len(allowed)))


@pytest.mark.parametrize(("pool", "nodes"), [(2, 5), (2, 3), (5, 30), (6, 30), (30, 30), (40, 30)])
def test_pools_are_uniform_sets_of_distinct_nodes(pool: int, nodes: int) -> None:
    """Seen through a rule that takes the whole pool: k = pool, nothing known."""
    queries = 12_000
    k = min(pool, nodes - 1)
    none = torch.empty(0, dtype=torch.int64)
    known = KnownEdges(none, none, queries, nodes, exclude_self=False)
    table = alike(queries, 1, k)
    settings_ = PoolSettings(pool=pool, queries_per_pool=1)
    h = torch.zeros(queries, 1)
    build_table(table, SelfAdversarial(), settings_, known, h, h[:nodes], generator=rng(5))
    ids = table.current().ids.long().sort(dim=-1).values
    assert bool((ids.diff(dim=-1) > 0).all())
    assert_frequencies(torch.bincount(ids.flatten(), minlength=nodes), torch.ones(nodes))
    if k == 2:
        seen = torch.bincount(ids[:, 0] * nodes + ids[:, 1], minlength=nodes**2)
        assert_frequencies(seen, torch.ones(nodes, nodes).triu(1).flatten())


def test_queries_of_a_chunk_share_a_pool_and_chunks_do_not() -> None:
    queries, nodes, pool = 64, 500, 5
    none = torch.empty(0, dtype=torch.int64)
    known = KnownEdges(none, none, queries, nodes, exclude_self=False)
    table = alike(queries, 1, pool)
    pools = PoolSettings(pool=pool, queries_per_pool=16)
    h = torch.zeros(nodes, 1)
    build_table(table, SelfAdversarial(), pools, known, h[:queries], h, generator=rng(6))
    sets = Counter(tuple(row) for row in table.current().ids.sort(dim=-1).values.tolist())
    assert sorted(sets.values()) == [16] * 4


# Hardest and nearest.


@pytest.mark.parametrize("scorer", [None, distance_score])
def test_hardest_is_the_exact_top_k(scorer: Any) -> None:
    drawn = of_rows(fill(Hardest(), PoolSettings(pool=NODES), 4, 2, count=2, scorer=scorer))
    for row in range(2 * NODES):
        query = row // 2
        score = (scorer or dot_score)(H[query], H)
        best = sorted(admissible(query), key=lambda u: -float(score[u]))[:4]
        assert drawn.ids[row].tolist() == [best, best]
    assert drawn.level.unique().tolist() == [NO_LEVEL]


class Pointing(DiffusionGenerator):
    """A generator whose latents are a known function of the query and the level."""

    def latent_draws(self, z: Tensor) -> Callable[[torch.Generator | None], Tensor]:
        turns = torch.stack([torch.eye(WIDTH).roll(level, 1) for level in range(len(self.levels))])
        return lambda generator: 3 * z @ turns


def nearest_by_brute_force(query: int, levels: list[int]) -> list[int]:
    """The slots of a group one after the other: never a known, own or taken node."""
    taken: list[int] = []
    for level in levels:
        latent = H[query].roll(level)
        cosine = {u: float(normalize(H[u], dim=0) @ latent) for u in admissible(query)}
        taken.append(max((u for u in cosine if u not in taken), key=lambda u: cosine[u]))
    return taken


def test_nearest_is_the_nearest_admissible_by_brute_force() -> None:
    model = Pointing(WIDTH, levels=Levels((0.1, 0.3, 0.6)), space="raw")
    drawn = of_rows(fill(Nearest(), PoolSettings(), 4, 3, count=20, model=model))
    for row in range(20 * NODES):
        for ids, levels in zip(drawn.ids[row].tolist(), drawn.level[row].tolist()):
            assert ids == nearest_by_brute_force(row // 20, levels)
    assert_frequencies(torch.bincount(drawn.level.flatten().long()), torch.ones(3))


def test_nearest_levels_come_in_their_shares() -> None:
    model = Pointing(WIDTH, levels=Levels((0.1, 0.3, 0.6), shares=(3, 1, 0)), space="raw")
    # The uniform share is drawn in the call and has no part in what a table holds.
    drawn = fill(Nearest(), PoolSettings(uniform_share=0.25), 1, count=1500, model=model).current()
    seen = torch.bincount(drawn.level.flatten().long(), minlength=3)
    assert_frequencies(seen, torch.tensor([3.0, 1.0, 0.0]))


def test_nearest_draws_a_group_without_replacement() -> None:
    model = Pointing(WIDTH, levels=Levels((0.1, 0.3, 0.6)), space="raw")
    ids = fill(Nearest(), PoolSettings(), 5, 2, count=200, model=model).current().ids
    assert bool((ids.sort(dim=-1).values.diff(dim=-1) > 0).all())


def test_nearest_of_a_pool_of_one_is_uniform() -> None:
    model = Pointing(WIDTH, levels=Levels((0.1, 0.3, 0.6)), space="raw")
    # A small block of queries shares the pool, so few copies and many groups.
    ids = of_rows(fill(Nearest(1), PoolSettings(), 1, 800, model=model)).ids.long()
    for query in range(NODES):
        seen = torch.bincount(ids[query].flatten(), minlength=NODES)[admissible(query)]
        assert int(seen.sum()) == 800
        assert_frequencies(seen, torch.ones(len(seen)))


def test_nearest_looks_past_many_known_nodes() -> None:
    """A hub whose 60 nearest nodes are all known: the search has to widen."""
    nodes = 90
    h = torch.stack([torch.linspace(0, 3, nodes).cos(), torch.linspace(0, 3, nodes).sin()], dim=1)
    known = KnownEdges(torch.zeros(60, dtype=torch.int64), torch.arange(1, 61), nodes)

    class Same(DiffusionGenerator):
        def latent_draws(self, z: Tensor) -> Callable[[torch.Generator | None], Tensor]:
            return lambda generator: z.expand(len(self.levels), -1, -1)

    model = Same(2, space="raw")
    table = alike(nodes, 1, 3)
    build_table(table, Nearest(), PoolSettings(), known, h, h, model=model, generator=rng(7))
    ids = table.current().ids.tolist()
    assert ids[0] == [61, 62, 63]
    assert sorted(ids[40]) in ([38, 39, 41], [39, 41, 42])


def test_nearest_works_with_a_predictor_that_is_not_affine() -> None:
    model = DiffusionGenerator(WIDTH, space="raw", predictor=MLPPredictor(WIDTH))
    table = fill(Nearest(), PoolSettings(), 3, 2, model=model)
    for query, ids in enumerate(of_rows(table).ids.tolist()):
        assert {u for group in ids for u in group} <= set(admissible(query))


# Known edges, fallbacks, small graphs.

ALL_RULES: list[Rule] = [
    Density(),
    Gate(),
    SelfAdversarial(),
    Hardest(),
    Nearest(),
    Nearest(pool=3),
]


@settings(max_examples=40, deadline=None)
@given(
    nodes=st.integers(2, 9),
    picks=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=50),
    rule=st.sampled_from(ALL_RULES),
    k=st.integers(1, 10),
    extra=st.integers(0, 4),
    chunk=st.integers(1, 5),
)
def test_any_graph_gets_k_admissible_nodes_in_each_group(
    nodes: int,
    picks: list[tuple[int, int]],
    rule: Rule,
    k: int,
    extra: int,
    chunk: int,
) -> None:
    src = torch.tensor([v % nodes for v, _ in picks], dtype=torch.int64)
    dst = torch.tensor([u % nodes for _, u in picks], dtype=torch.int64)
    known = KnownEdges(src, dst, nodes)
    h = normal(nodes, WIDTH, seed=8)
    model = DiffusionGenerator(WIDTH, space="raw")
    table = CandidateTable(1 + torch.arange(nodes) % 3, k)
    pools = PoolSettings(pool=k + extra, queries_per_pool=chunk)
    done = build_table(table, rule, pools, known, h, h, model=model, generator=rng(9))
    free = [known.admissible(v).tolist() for v in range(nodes)]
    for v in range(nodes):
        for group in table.current().ids[table.start[v] : table.start[v + 1]].tolist():
            assert set(group) <= set(free[v] or [v])
            # Distinct as far as there are nodes for it.
            assert len(set(group)) == min(k, len(free[v]) or 1)
    short = sum(len(nodes_left) < k for nodes_left in free)
    if not isinstance(rule, Nearest):  # it finds them in all nodes
        assert short <= int(done.fallback) <= nodes
        if k + extra >= nodes:  # the pool is the whole graph
            assert done.fallback == short


@pytest.mark.parametrize("rule", [Density(), Gate(), SelfAdversarial()])
def test_the_fallback_is_uniform_and_says_so(model: DiffusionGenerator, rule: Rule) -> None:
    # k is larger than what node 0 may take: 4 of 12.
    src = torch.zeros(7, dtype=torch.int64)
    known = KnownEdges(src, torch.arange(1, 8), NODES)
    table = alike(NODES, 300, 6)
    pools = PoolSettings(pool=NODES)
    done = build_table(table, rule, pools, known, H, H, model=model, generator=rng(10))
    assert done.fallback == 1
    ids, levels = (part[0] for part in of_rows(table))
    assert ids.unique().tolist() == [8, 9, 10, 11]
    assert all(sorted(set(group)) == [8, 9, 10, 11] for group in ids.tolist())
    # The four that the pool could give come first and carry its levels; the repeats are uniform.
    assert bool((ids[:, :4].sort(dim=-1).values == torch.tensor([8, 9, 10, 11])).all())
    assert bool((levels[:, 4:] == NO_LEVEL).all())
    assert bool((levels[:, :4] != NO_LEVEL).all()) == rule.uses_generator
    assert_frequencies(torch.bincount(ids[:, 4:].flatten().long() - 8), torch.ones(4))


def test_a_pool_that_is_mostly_known_is_filled_up_without_repeats() -> None:
    # A pool of k = 3 nodes holds known ones nearly always; seven nodes remain to fill up from.
    known = KnownEdges(torch.zeros(4, dtype=torch.int64), torch.arange(1, 5), NODES)
    table = alike(NODES, 1000, 3)
    build_table(table, FLAT, PoolSettings(pool=3), known, H, H, generator=rng(11))
    ids = of_rows(table).ids[0].long().sort(dim=-1).values
    assert bool((ids.diff(dim=-1) > 0).all())
    assert_frequencies(torch.bincount(ids.flatten(), minlength=NODES)[5:], torch.ones(7))


def test_a_graph_with_fewer_nodes_than_k() -> None:
    known = KnownEdges(torch.tensor([0]), torch.tensor([1]), 3)
    h = normal(3, WIDTH, seed=12)
    model = DiffusionGenerator(WIDTH, space="raw")
    for rule in ALL_RULES:
        table = alike(3, 2, 5)
        pools = PoolSettings(pool=5)
        build_table(table, rule, pools, known, h, h, model=model, generator=rng(1))
        ids = of_rows(table).ids
        assert ids[0].unique().tolist() == [2]
        assert ids[1].unique().tolist() == [0, 2]
        assert ids[2].unique().tolist() == [0, 1]


def test_saturated_queries_get_themselves(model: DiffusionGenerator) -> None:
    known = KnownEdges(torch.zeros(11, dtype=torch.int64), torch.arange(1, 12), NODES)
    for rule in ALL_RULES:
        table = alike(NODES, 2, 3)
        pools = PoolSettings()
        done = build_table(table, rule, pools, known, H, H, model=model, generator=rng(1))
        assert of_rows(table).ids[0].tolist() == [[0] * 3] * 2
        assert int(done.fallback) == 1 or isinstance(rule, Nearest)


@pytest.mark.parametrize("pool", [NODES, 3 * NODES])
def test_the_share_of_filtered_pool_members(pool: int) -> None:
    table = alike(NODES, 3, 2)
    pools = PoolSettings(pool=pool, queries_per_pool=NODES)
    done = build_table(table, SelfAdversarial(), pools, KNOWN, H, H, generator=rng(1))
    barred = sum(NODES - len(admissible(v)) for v in range(NODES))
    assert done.filtered == pytest.approx(barred / NODES**2)


def test_the_mean_score_of_each_level(model: DiffusionGenerator) -> None:
    table = alike(NODES, 1, 6)
    pools = PoolSettings(pool=NODES, queries_per_pool=5)
    done = build_table(
        table, Blend(), pools, KNOWN, H, H, model=model, scorer=distance_score, generator=rng(1)
    )
    drawn = of_rows(table)
    score = distance_score(H.view(NODES, 1, 1, WIDTH), H[drawn.ids.long()])
    expected = {
        "no level" if tag == NO_LEVEL else str(tag): float(score[drawn.level == tag].mean())
        for tag in drawn.level.unique().tolist()
    }
    assert set(expected) == {"0", "1", "2", "no level"}
    assert done.level_score == pytest.approx(expected, rel=1e-5)


def test_chunks_that_do_not_divide_the_queries_leave_rows_and_norms_in_place(
    model: DiffusionGenerator,
) -> None:
    """A chunk filled up with queries that another one has already drawn for."""
    snapshot = Snapshot.take(H, H, KNOWN, None, model)
    whole = NodeDistribution(Gate(), PoolSettings(pool=NODES), snapshot)
    expected = whole.hard_log_ratios(EVERY, EVERY)
    for queries_per_pool in (1, 5, 7, 11, 100):
        pools = PoolSettings(pool=NODES, queries_per_pool=queries_per_pool)
        table = CandidateTable(1 + EVERY % 3, 3)
        done, norms = fill_table(table, Gate(), pools, snapshot, generator=rng(1))
        assert norms is not None
        assert norms.shape == (NODES, len(SHARES) + 1)
        torch.testing.assert_close(norms, whole.norms)
        for query in range(NODES):
            mine = table.hidden().ids[table.start[query] : table.start[query + 1]]
            assert set(mine.flatten().tolist()) <= set(admissible(query))
        found = NodeDistribution(Gate(), pools, snapshot, norms).hard_log_ratios(EVERY, EVERY)
        torch.testing.assert_close(found, expected)
        assert done.unstable == 0


def test_only_the_rows_that_are_drawn_anew_have_norms(model: DiffusionGenerator) -> None:
    snapshot = Snapshot.take(H, H, KNOWN, None, model)
    table = CandidateTable(1 + EVERY % 3, 3)
    fill_table(table, Gate(), PoolSettings(), snapshot, generator=rng(1))
    table.publish()
    before, some = table.current().ids.clone(), torch.tensor([2, 7])
    _, norms = fill_table(table, Gate(), PoolSettings(), snapshot, nodes=some, generator=rng(2))
    assert norms is not None
    assert norms.isfinite().all(1).nonzero().flatten().tolist() == some.tolist()
    assert bool(norms[[0, 1, 3]].isnan().all())
    other = torch.ones(table.groups, dtype=torch.bool)
    other[table.spread(some)[1]] = False
    changed = (table.hidden().ids != before).any(1)
    assert bool(changed.any())
    assert not bool(changed[other].any())
    for rule in (Hardest(), Nearest()):
        _, none = fill_table(table, rule, PoolSettings(), snapshot, generator=rng(1))
        assert none is None


def test_more_queries_than_a_block_holds() -> None:
    queries, nodes = 9000, 20
    src = torch.arange(queries)
    known = KnownEdges(src, src % nodes, queries, nodes, exclude_self=False)
    table = alike(queries, 1, 2)
    h = normal(queries, 2, seed=13)
    pools = PoolSettings(pool=nodes)
    build_table(table, Hardest(), pools, known, h, h[:nodes], generator=rng(1))
    score = (h @ h[:nodes].T).scatter(1, (src % nodes).unsqueeze(1), -torch.inf)
    assert torch.equal(table.current().ids.long(), score.topk(2, dim=1).indices)


def test_embeddings_are_scored_in_their_own_space_and_densities_in_the_generators() -> None:
    model = DiffusionGenerator(WIDTH, compact_width=2, batch_pairs=128)
    model.space.update(H)
    z = model.space.encode(H)
    model.fit(z, z, KNOWN, 30, generator=rng(2))
    snapshot = Snapshot.take(H, H, KNOWN, None, model)
    made = NodeDistribution(Gate(), PoolSettings(pool=NODES), snapshot)
    ratios = made.hard_log_ratios(EVERY, EVERY)
    for query in range(NODES):
        nodes = admissible(query)
        gaussians = model.gaussians(z[query : query + 1].expand(len(nodes), -1))
        q = gaussians.log_prob(z[nodes]).softmax(-1)
        shares = torch.tensor(model.levels.mixture_shares)
        w = (shares.unsqueeze(1) * q * len(nodes)).sum(0).log()
        s = H[nodes] @ H[query]
        truth = ((s.exp() + 1) / ((s - w).exp() + 1)).log().log_softmax(-1) + math.log(len(nodes))
        torch.testing.assert_close(ratios[query, nodes], truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", ALL_RULES)
def test_one_seed_one_table(model: DiffusionGenerator, rule: Rule) -> None:
    pools = PoolSettings(pool=8, queries_per_pool=5)
    first, again, other = (
        fill(rule, pools, 3, 2, count=3, seed=seed, model=model).current() for seed in (1, 1, 2)
    )
    for a, b in zip(first, again):
        assert torch.equal(a, b)
    assert not torch.equal(first.ids, other.ids) or rule == Hardest()


def test_a_refresh_needs_no_gradient() -> None:
    h = H.clone().requires_grad_()
    table = alike(NODES, 1, 2)
    build_table(table, Hardest(), PoolSettings(), KNOWN, h, h, scorer=distance_score)
    assert h.grad is None


# Errors.


@pytest.mark.parametrize("rule", [Density(), Gate(), Nearest()])
def test_a_rule_without_its_generator(rule: Rule) -> None:
    with pytest.raises(
        ValueError, match=f"rule: {type(rule).__name__} needs a generator, got none"
    ):
        build_table(alike(NODES, 1, 1), rule, PoolSettings(), KNOWN, H, H)


def test_a_density_of_a_predictor_that_is_not_affine() -> None:
    model = DiffusionGenerator(WIDTH, space="raw", predictor=MLPPredictor(WIDTH))
    table = alike(NODES, 1, 1)
    with pytest.raises(TypeError, match=r"predictor: .* got MLPPredictor; use rule=Nearest\(\)"):
        build_table(table, Gate(), PoolSettings(), KNOWN, H, H, model=model)
    assert table.version == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool": 0}, "pool: expected at least 1, got 0"),
        ({"queries_per_pool": 0}, "queries_per_pool: expected at least 1, got 0"),
        ({"groups": -1}, "groups: expected at least 1, got -1"),
        ({"uniform_share": -0.1}, r"uniform_share: expected a value in \[0, 1\], got -0.1"),
        ({"uniform_share": 1.1}, r"uniform_share: expected a value in \[0, 1\], got 1.1"),
        ({"uniform_share": math.nan}, r"uniform_share: expected a value in \[0, 1\], got nan"),
        ({"lam": 0.0}, "lam: expected a positive exponent, got 0.0"),
        ({"lam": math.nan}, "lam: expected a positive exponent, got nan"),
    ],
)
def test_pool_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoolSettings(**arguments)


@pytest.mark.parametrize(
    ("share", "k", "hard", "groups"),
    [(0, 5, 5, 11), (0.5, 5, 3, 18), (0.9, 10, 1, 112), (1, 2, 1, 22)],
)
def test_what_a_table_holds_of_the_negatives_of_an_edge(
    share: float, k: int, hard: int, groups: int
) -> None:
    settings_ = PoolSettings(uniform_share=share)
    assert (settings_.hard(k), settings_.groups_for(k)) == (hard, groups)  # 112 k bytes a query
    assert PoolSettings(uniform_share=share, groups=7).groups_for(k) == 7


@pytest.mark.parametrize("exclude_self", [True, False])
def test_pools_bar_exactly_the_known_edges(exclude_self: bool) -> None:
    nodes, pools = 60, PoolSettings(pool=16)
    src, dst = torch.randint(0, nodes, (2, 400), generator=rng(3))
    known = KnownEdges(src, dst, nodes, exclude_self=exclude_self)
    h = torch.randn(nodes, 4, generator=rng(4))
    rows = torch.randperm(nodes, generator=rng(5))
    draw = PoolDraw(SelfAdversarial(), pools, Snapshot(h, h, known), rows, 12, rng(6))
    pool = torch.stack([torch.randperm(nodes, generator=rng(7 + c))[:16] for c in range(5)])
    expected = known.contains(draw.queries.unsqueeze(2), pool.unsqueeze(1))
    assert expected.any()
    assert torch.equal(draw._barred(pool), expected)
