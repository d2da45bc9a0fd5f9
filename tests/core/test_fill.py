"""Filling a table against the exact distributions of a graph small enough to list them.

With a pool of all nodes the estimate over a pool is exact, so the first slot of a group follows the
rule's weights over all admissible nodes, and log ratios and level tags have closed forms. To get
many groups from different pools at once, every query of the graph is repeated: R copies of each.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from listed import (
    EVERY,
    KNOWN,
    NODES,
    SHARES,
    WIDTH,
    Exact,
    H,
    admissible,
    distance_score,
    fill,
    of_rows,
)
from shared import assert_counts
from small import alike, all_pairs, build, edges_of, hard_ratios, normal, random_edges, rng

from dgl_dmns.core import (
    NO_LEVEL,
    Blend,
    CandidateTable,
    Density,
    DiffusionGenerator,
    Gate,
    Hardest,
    KnownEdges,
    MLPPredictor,
    Nearest,
    NodeDistribution,
    PoolSettings,
    Rule,
    SelfAdversarial,
    Snapshot,
    dot_score,
    fill_table,
)

assert_frequencies = partial(assert_counts, least=1e-4)


SHARP = Blend(0.3, edge_ratio=8.0).with_measures({"sharpness": 1.7})
CASES = [
    pytest.param(Density(), 1.0, None, id="density"),
    pytest.param(Density(), 0.3, None, id="density-tempered"),
    pytest.param(Gate(), 1.0, None, id="gate"),
    pytest.param(Gate(), 0.3, distance_score, id="gate-scorer"),
    pytest.param(Blend(), 1.0, distance_score, id="blend"),
    pytest.param(SHARP, 1.0, distance_score, id="blend-sharpened"),
    pytest.param(SelfAdversarial(), 1.0, None, id="self-adversarial"),
    pytest.param(SelfAdversarial(3.0), 1.0, dot_score, id="self-adversarial-warm"),
    pytest.param(SelfAdversarial(0.7), 1.0, distance_score, id="self-adversarial-scorer"),
]
COUNT = 1500


@pytest.mark.parametrize(("rule", "lam", "scorer"), CASES)
def test_the_first_slot_follows_the_exact_distribution(
    model: DiffusionGenerator, rule: Rule, lam: float, scorer: Any
) -> None:
    # The uniform share is drawn in the call and has no part in what a table holds.
    pools = PoolSettings(pool=NODES, uniform_share=0.4, lam=lam)
    table = fill(rule, pools, 3, count=COUNT, model=model, scorer=scorer)
    drawn = table.current()
    ids = drawn.ids.view(NODES, COUNT, 3).long()
    levels = drawn.level.view(NODES, COUNT, 3)
    snapshot = Snapshot(H, H, KNOWN, scorer, model if rule.uses_generator else None)
    ratios = hard_ratios(NodeDistribution(rule, pools, snapshot)).double()
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
    build(table, Gate(), pools, KNOWN, H, H, model=model, generator=rng(4))
    ids = table.current().ids.long()
    for query in range(NODES):
        exact = Exact(model, query)
        mine = ids[table.start[query] : table.start[query + 1]]
        seen = torch.bincount(mine[:, 0], minlength=NODES)
        assert set(mine.unique().tolist()) <= set(exact.nodes)
        assert_frequencies(seen[exact.nodes], exact.chances(Gate()))


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
    known = KnownEdges(*edges_of(picks, nodes), nodes)
    h = normal(nodes, WIDTH, seed=8)
    model = DiffusionGenerator(WIDTH, space="raw")
    table = CandidateTable(1 + torch.arange(nodes) % 3, k)
    pools = PoolSettings(pool=k + extra, queries_per_pool=chunk)
    done = build(table, rule, pools, known, h, h, model=model, generator=rng(9))
    free = [(~barred).nonzero().flatten().tolist() for barred in all_pairs(known)]
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
    done = build(table, rule, pools, known, H, H, model=model, generator=rng(10))
    assert done.fallback == 1
    ids, levels = (part[0] for part in of_rows(table))
    assert ids.unique().tolist() == [8, 9, 10, 11]
    assert all(sorted(set(group)) == [8, 9, 10, 11] for group in ids.tolist())
    # The four that the pool could give come first and carry its levels; the repeats are uniform.
    assert bool((ids[:, :4].sort(dim=-1).values == torch.tensor([8, 9, 10, 11])).all())
    assert bool((levels[:, 4:] == NO_LEVEL).all())
    assert bool((levels[:, :4] != NO_LEVEL).all()) == rule.uses_generator
    assert_frequencies(torch.bincount(ids[:, 4:].flatten().long() - 8), torch.ones(4))


@pytest.mark.parametrize("pool", [NODES, 3 * NODES])
def test_the_share_of_filtered_pool_members(pool: int) -> None:
    table = alike(NODES, 3, 2)
    pools = PoolSettings(pool=pool, queries_per_pool=NODES)
    done = build(table, SelfAdversarial(), pools, KNOWN, H, H, generator=rng(1))
    barred = sum(NODES - len(admissible(v)) for v in range(NODES))
    assert done.filtered == pytest.approx(barred / NODES**2)


def test_the_mean_score_of_each_level(model: DiffusionGenerator) -> None:
    table = alike(NODES, 1, 6)
    pools = PoolSettings(pool=NODES, queries_per_pool=5)
    done = build(
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
    snapshot = Snapshot(H, H, KNOWN, None, model)
    whole = NodeDistribution(Gate(), PoolSettings(pool=NODES), snapshot)
    expected = hard_ratios(whole)
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
        found = hard_ratios(NodeDistribution(Gate(), pools, snapshot, norms))
        torch.testing.assert_close(found, expected)
        assert done.unstable == 0


def test_only_the_rows_that_are_drawn_anew_have_norms(model: DiffusionGenerator) -> None:
    snapshot = Snapshot(H, H, KNOWN, None, model)
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
    build(table, Hardest(), pools, known, h, h[:nodes], generator=rng(1))
    score = (h @ h[:nodes].T).scatter(1, (src % nodes).unsqueeze(1), -torch.inf)
    assert torch.equal(table.current().ids.long(), score.topk(2, dim=1).indices)


@pytest.mark.parametrize("shared", [1, 64, 100, 600])
@pytest.mark.parametrize(("short", "long"), [(1930, 40), (570, 25), (1100, 7)])
def test_every_group_is_written_however_long_the_rows(shared: int, short: int, long: int) -> None:
    sizes = torch.ones(short + 700, dtype=torch.int64)
    sizes[:70] = long  # in parts, which come after the last of the short rows
    sizes[70:700] = 3
    known = random_edges(len(sizes), 10)
    table = CandidateTable(sizes, 1)
    table.cells.fill_(-1)
    h = normal(len(sizes), 2)
    pools = PoolSettings(pool=8, queries_per_pool=shared, draws_per_pool=6)
    build(table, SelfAdversarial(), pools, known, h, h, generator=rng(1))
    assert int((table.current().ids >= len(sizes)).sum()) == 0


def test_embeddings_are_scored_in_their_own_space_and_densities_in_the_generators() -> None:
    model = DiffusionGenerator(WIDTH, compact_width=2, batch_pairs=128)
    model.space.update(H)
    z = model.space.encode(H)
    model.fit(z, z, KNOWN, 30, generator=rng(2))
    snapshot = Snapshot(H, H, KNOWN, None, model)
    made = NodeDistribution(Gate(), PoolSettings(pool=NODES), snapshot)
    ratios = hard_ratios(made)
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


@pytest.mark.parametrize("scorer", [None, distance_score])
def test_threads_change_nothing_and_end_with_an_error(monkeypatch: Any, scorer: Any) -> None:
    nodes, sizes = 300, torch.arange(300) % 40 + 1
    sizes[7] = 2000  # a hub, in parts of its own
    h, known = normal(nodes, 8), random_edges(nodes, 1500)
    model = DiffusionGenerator(8, compact_width=4)
    model.space.update(h)
    snapshot = Snapshot(h, h, known, scorer, model)
    monkeypatch.setattr(sys.modules[fill_table.__module__], "_BLOCK", 64)
    pools, before = PoolSettings(pool=16, draws_per_pool=12), torch.get_num_threads()

    def fill_with(threads: int, **named: Any) -> Any:
        torch.set_num_threads(threads)
        try:
            table = CandidateTable(sizes, 3)
            done = fill_table(table, Blend(), pools, snapshot, generator=rng(1), **named)
            return table.hidden(), *done
        finally:
            assert torch.get_num_threads() == threads
            torch.set_num_threads(before)

    rows: list[int] = []
    tables, reports, norms = zip(*(fill_with(n, on_rows=rows.append) for n in (1, 3)))
    assert sum(rows) == 2 * nodes
    assert len(rows) > 8
    for one, three in zip(*tables):
        assert torch.equal(one, three)
    assert reports[0] == reports[1]
    assert torch.equal(*norms)
    assert norms[0].isfinite().all()
    assert len(tables[0].ids[int(sizes[:7].sum()) :][:2000].unique()) > 100  # from many pools

    def stop(_: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fill_with(3, on_rows=stop)


# Errors.


@pytest.mark.parametrize("rule", [Density(), Gate(), Nearest()])
def test_a_rule_without_its_generator(rule: Rule) -> None:
    with pytest.raises(
        ValueError, match=f"rule: {type(rule).__name__} needs a generator, got none"
    ):
        build(alike(NODES, 1, 1), rule, PoolSettings(), KNOWN, H, H)


def test_a_density_of_a_predictor_that_is_not_affine() -> None:
    model = DiffusionGenerator(WIDTH, space="raw", predictor=MLPPredictor(WIDTH))
    table = alike(NODES, 1, 1)
    with pytest.raises(TypeError, match=r"predictor: .* got MLPPredictor; use rule=Nearest\(\)"):
        build(table, Gate(), PoolSettings(), KNOWN, H, H, model=model)
    assert table.version == 0
