"""The distributions of the samplers that need no diffusion model, against dense truths."""

from __future__ import annotations

import copy
from typing import Any

import dgl
import pytest
import torch
from shared import assert_drawn_from, barred, check, graph, loader, make, normal, refreshed
from torch import Tensor

from dgl_dmns.core import DepthFirstProposal, KnownEdges
from dgl_dmns.samplers.adversarial import SoftmaxGenerator
from dgl_dmns.samplers.plain import _draw


def embeddings(count: int, width: int = 4, scale: float = 1.0) -> Tensor:
    return scale * normal(count, width, seed=count)


def admissible(g: Any, node: int) -> Tensor:
    """Dense truth: the nodes that are neither a known edge of a node nor itself, shape [N]."""
    return ~barred(g)[node]


# Uniform and popularity.


@pytest.mark.parametrize("exponent", [0.0, 0.75, 1.0, 3.0])
def test_popularity_follows_the_power_of_the_in_degree(exponent: float) -> None:
    # Node 12 has no edges, and 0 and 5 some: for them, the weights of their neighbours go.
    src, dst = torch.randint(0, 11, (2, 40))
    g = dgl.graph((src, dst), num_nodes=13)
    degree = g.in_degrees().double()
    assert degree[11] == degree[12] == 0
    weight = torch.where(degree > 0, degree**exponent, 0.0)
    sampler = make("popularity", g, k=20_000, exponent=exponent)
    for node in (12, 0, 5):
        drawn = sampler.for_queries(g, torch.tensor([node]))
        assert_drawn_from(drawn, weight * admissible(g, node))


def test_popularity_lists_where_rejection_keeps_failing() -> None:
    # The hub 0 is linked to all but 200 to 203, which have in-degrees 1, 8, 0 and 0 beside a mass
    # of 199 * 20: nearly every proposal for the hub is a known edge.
    star = torch.arange(1, 200)
    src = [torch.zeros(199).long(), star.repeat(19), torch.ones(9).long()]
    dst = [star, star.roll(1).repeat(19), torch.tensor([200] + [201] * 8)]
    g = dgl.graph((torch.cat(src), torch.cat(dst)), num_nodes=204)
    drawn = make("popularity", g, k=4000).for_queries(g, torch.tensor([0]))
    weight = torch.zeros(204).double()
    weight[200], weight[201] = 1.0, 8**0.75
    assert_drawn_from(drawn, weight)


def test_popularity_is_uniform_where_no_admissible_node_has_a_weight() -> None:
    g = dgl.graph(([0, 0, 1], [1, 2, 2]), num_nodes=6)
    drawn = make("popularity", g, k=3000).for_queries(g, torch.tensor([0]))
    assert_drawn_from(drawn, admissible(g, 0).double())


def test_popularity_survives_extreme_exponents() -> None:
    g = dgl.graph(([0, 1, 2, 3, 3], [1, 2, 1, 1, 2]), num_nodes=5)
    drawn = make("popularity", g, k=1000, exponent=5000.0).for_queries(g, torch.tensor([4]))
    assert (drawn == 1).all()


def test_the_ends_of_the_cumulative_weights_draw_no_node_of_weight_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = torch.tensor([0.0, 0.0, 1.0, 0.0, 3.0, 0.0], dtype=torch.float64)
    points = torch.tensor([0.0, 0.2, 0.25, 0.9, 1.0], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: points)
    assert _draw(weight.cumsum(0), 5, None).tolist() == [2, 2, 4, 4, 4]


@pytest.mark.parametrize("exponent", [-0.1, float("nan"), float("inf")])
def test_popularity_refuses_an_exponent(exponent: float) -> None:
    with pytest.raises(ValueError, match="^exponent: expected a finite number of at least 0, got"):
        make("popularity", graph(5, 9), exponent=exponent)


def test_a_graph_of_other_types_is_refused() -> None:
    sampler = make("uniform", graph(5, 9))
    g = dgl.heterograph({("user", "buys", "item"): ([0], [0])})
    with pytest.raises(
        ValueError, match=r"^g: the sampler was made for edge types .*, got \('user"
    ):
        sampler(g, {"buys": torch.arange(1)})


# In-batch.


def test_in_batch_draws_destinations_in_proportion_to_their_edges() -> None:
    # Edges from 0 to 4 to 10, 11, 12; 10 stands in three of them, 13 to 19 in none.
    g = dgl.graph(([0, 1, 2, 3, 4, 5], [10, 10, 10, 11, 12, 13]), num_nodes=20)
    src, dst = make("in-batch", g, k=4000)(g, torch.arange(5))
    weight = torch.zeros(20).double()
    weight[10], weight[11], weight[12] = 3, 1, 1
    for edge, node in enumerate([0, 1, 2, 3, 4]):
        mine = dst.view(5, -1)[edge]
        assert (src.view(5, -1)[edge] == node).all()
        assert_drawn_from(mine, weight * admissible(g, node))


def test_in_batch_lists_where_rejection_keeps_failing() -> None:
    # Source 0 knows every destination of the batch but one, which stands in 1 of 300 edges.
    leaves = torch.arange(1, 300)
    src = torch.cat([torch.zeros(299).long(), torch.tensor([1])])
    g = dgl.graph((src, torch.cat([leaves, torch.tensor([300])])), num_nodes=302)
    _, dst = make("in-batch", g, k=2)(g, torch.arange(300))
    assert (dst.view(300, 2)[:299] == 300).all()


def test_in_batch_falls_back_to_uniform_where_the_batch_offers_nothing() -> None:
    g = graph(12, 40)
    src, dst = make("in-batch", g, k=6000)(g, torch.tensor([7]))
    assert_drawn_from(dst, admissible(g, int(src[0])).double())


def test_in_batch_for_query_nodes_uses_destinations_of_random_edges() -> None:
    g = dgl.graph(([0, 1, 2, 3, 4], [10, 10, 10, 11, 12]), num_nodes=20)
    nodes = torch.full((4000,), 15)
    drawn = make("in-batch", g, k=1).for_queries(g, nodes)
    # Destinations on offer are a sample themselves, which doubles the variance: a loose bound.
    share = torch.bincount(drawn.flatten(), minlength=20) / 4000
    assert share[10:13].tolist() == pytest.approx([0.6, 0.2, 0.2], abs=0.05)
    assert share.sum() == pytest.approx(share[10:13].sum())


# Dynamic and self-adversarial.


def test_dynamic_with_a_pool_of_all_nodes_is_the_exact_top_k() -> None:
    g = graph(30, 90)
    h = embeddings(30)
    sampler = refreshed("dynamic", g, h, 4, pool=30)
    chosen = sampler.for_queries(g, torch.arange(30))
    score = h @ h.T
    for node in range(30):
        mine = score[node].masked_fill(~admissible(g, node), -torch.inf)
        assert set(chosen[node].tolist()) == set(mine.topk(4).indices.tolist())


def mean_score(sampler: Any, g: Any, h: Tensor) -> float:
    nodes = torch.arange(g.num_nodes())
    return float((h.unsqueeze(1) * h[sampler.for_queries(g, nodes)]).sum(-1).mean())


def test_hardness_grows_with_the_pool_and_falls_with_the_temperature() -> None:
    g = graph(200, 600)
    h = embeddings(200)
    uniform = mean_score(make("uniform", g, k=5), g, h)

    def hardness(name: str, **options: Any) -> float:
        return mean_score(refreshed(name, g, h, 5, **options), g, h)

    small, large = (hardness("dynamic", pool=p) for p in (8, 64))
    assert uniform + 0.3 < small < large - 0.3
    cold, warm = (hardness("self-adversarial", temperature=t) for t in (0.5, 5.0))
    assert uniform + 0.1 < warm < cold - 0.3


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_self_adversarial_draws_from_the_softmax_of_the_scores(temperature: float) -> None:
    g = graph(10, 15)
    h = embeddings(10, scale=0.7)
    # With all nodes in the pool and k = 1, the groups of a row are independent draws.
    options = {"temperature": temperature, "pool": 10, "groups": 1000, "source": "uniform"}
    sampler = refreshed("self-adversarial", g, h, 1, **options)
    drawn = sampler.table.current().ids.long().view(10, 1000)
    for node in range(10):
        weight = ((h @ h[node]).double() / temperature).exp() * admissible(g, node)
        assert_drawn_from(drawn[node], weight)
        mine = weight.nonzero().squeeze(1)
        exact = (weight[mine] / weight[mine].mean()).log()
        found = sampler.log_ratio((torch.full_like(mine, node), mine)).double()
        torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-5)


# MCNS.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "^width: expected a list of at least 1 node, got 0"),
        ({"weights": "flat"}, "^weights: expected 'gaussian' or 'uniform', got 'flat'"),
        ({"steps": 0}, "^steps: expected at least 1 step per draw, got 0"),
        ({"alpha": 0.0}, r"^alpha: expected an exponent in \(0, 1\], got 0"),
        ({"alpha": 1.5}, r"^alpha: expected an exponent in \(0, 1\], got 1.5"),
    ],
)
def test_mcns_refuses_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("mcns", graph(5, 9), **arguments)


def target(g: Any, h: Tensor, node: int, alpha: float = 0.25) -> Tensor:
    """The dense truth: self-contrast over admissible nodes, unnormalised, float64 [N]."""
    score = (h @ h[node]).double().clamp(min=0)
    return torch.sigmoid(score**alpha) * admissible(g, node)


def test_mixture_density_leaves_the_target_stationary_and_mixes_in_a_draw() -> None:
    # The chain's whole transition matrix, from the proposal's density and the dense target.
    g = graph(14, 20)
    h = embeddings(14, scale=3.0)
    proposal = DepthFirstProposal(KnownEdges(*g.edges(), 14), width=4)
    nodes = torch.arange(14)
    x, y = nodes.repeat_interleave(14), nodes.repeat(14)
    q = proposal.density(x, y).view(14, 14)
    assert not torch.allclose(q, q.T)
    for node in range(14):
        pi = target(g, h, node)
        mine = pi.nonzero().squeeze(1)
        share = pi[mine] / pi[mine].sum()
        into = q[mine][:, mine]
        chance = (share * into.T / (share.unsqueeze(1) * into)).clamp(max=1)
        step = into * chance
        step += torch.diag(1 - step.sum(1))
        torch.testing.assert_close(share @ step, share)
        distance = 0.5 * (torch.linalg.matrix_power(step, 10) - share).abs().sum(1).max()
        assert distance <= (1 - mine.numel() / (4 * 14)) ** 10


@pytest.mark.parametrize("weights", ["gaussian", "uniform"])
def test_mcns_chains_follow_the_self_contrast_of_admissible_nodes(weights: Any) -> None:
    g = graph(14, 20)
    h = embeddings(14, scale=3.0)
    # The k chains of a query are independent; three draws of ten steps forget their start.
    options = {"steps": 10, "width": 4, "weights": weights, "groups": 1}
    sampler = refreshed("mcns", g, h, 8000, **options)
    nodes = torch.arange(14)
    for _ in range(2):
        sampler.for_queries(g, nodes)
    drawn = sampler.for_queries(g, nodes)
    for node in range(14):
        assert_drawn_from(drawn[node], target(g, h, node))
    flat = admissible(g, 3).double()  # and the test can tell: this is not the uniform distribution
    with pytest.raises(AssertionError):
        assert_drawn_from(drawn[3], flat)


def test_mcns_carries_its_chains_on() -> None:
    g = graph(40, 80)
    h = embeddings(40)
    sampler = refreshed("mcns", g, h, steps=1, groups=1)
    # A query that stands twice in a batch picks the same group here.
    drawn = sampler.for_queries(g, torch.tensor([5, 9, 5]))
    live = sampler.table.current().ids
    assert torch.equal(live[5].long(), drawn[2])
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(live[9].long(), drawn[1])
    before = live.clone()
    sampler.refresh(embeddings(40, scale=2.0))
    assert torch.equal(sampler.table.current().ids, before)
    # One step moves some chains and leaves others.
    moved = sampler.for_queries(g, torch.arange(40)) != before.long()
    assert 0.2 < moved.float().mean() < 0.95


def test_mcns_moves_the_groups_that_were_picked() -> None:
    g = graph(40, 80)
    sampler = refreshed("mcns", g, groups=2)
    before = sampler.table.current().ids.view(40, 2, 3).clone()
    drawn = sampler.for_queries(g, torch.full((30,), 5))
    live = sampler.table.current().ids.view(40, 2, 3)
    assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in live[5].tolist()}
    sampler.for_queries(g, torch.tensor([7]))
    moved = (sampler.table.current().ids.view(40, 2, 3) != before).any(2)
    assert moved[5].all()
    assert int(moved[7].sum()) == 1
    others = torch.ones(40, dtype=torch.bool)
    others[[5, 7]] = False
    assert not moved[others].any()


def test_mcns_workers_advance_the_chains_of_the_main_process() -> None:
    g = graph(40, 80)
    sampler = refreshed("mcns", g, groups=None, steps=10)
    before = sampler.table.current().ids.clone()
    assert len(list(loader(g, sampler, 1, batch_size=40))) == 2
    changed = (sampler.table.current().ids != before).view(40, -1).any(1)
    linked = g.out_degrees() > 0
    assert not changed[~linked].any()
    assert changed[linked].float().mean() > 0.8


def test_an_mcns_worker_from_before_the_first_refresh_warns() -> None:
    g = graph(40, 80)
    sampler = make("mcns", g)
    early = sampler.__class__.__new__(sampler.__class__)
    early.__dict__ = sampler.__getstate__()  # shares the table, as a forked worker does
    early.relations = {etype: copy.copy(one) for etype, one in sampler.relations.items()}
    sampler.refresh()
    assert early.version == 1
    with pytest.warns(UserWarning, match="^MCNSSampler: this worker was started before the first"):
        src, dst = early(g, torch.arange(80))
    check(g, src, dst)


# Adversarial.


def test_the_adversary_learns_to_find_high_scores() -> None:
    g = graph(200, 600)
    h = embeddings(200)
    uniform = mean_score(make("uniform", g, k=5), g, h)
    options = {"warmup_steps": 0, "fit_steps": 60, "batch_queries": 256}
    sampler = make("adversarial", g, h, 5, **options)
    report = sampler.refresh()
    assert report.fit.losses == ()
    assert mean_score(sampler, g, h) == pytest.approx(uniform, abs=0.3)
    report = sampler.refresh()
    assert len(report.fit.losses) == 60
    assert report.fit.pairs == 60 * 256
    assert report.fit.loss < 0.7 * sum(report.fit.losses[:5]) / 5
    fitted = mean_score(sampler, g, h)
    assert fitted > uniform + 1.0
    assert report.table.level_score["no level"] == pytest.approx(fitted, abs=0.3)
    # By the distribution, what is drawn is much likelier than uniform nodes are.
    src, dst = sampler(g, torch.arange(600))
    uniform_dst = make("uniform", g, k=5)(g, torch.arange(600))[1]
    ratio = sampler.distribution().log_ratio
    likelier = ratio(src, dst) - ratio(src, uniform_dst)
    assert likelier.mean() > 1.0


def test_the_adversary_heeds_the_scorer() -> None:
    g = graph(200, 600)
    h = embeddings(200)
    options = {"warmup_steps": 60, "batch_queries": 256, "scorer": lambda a, b: -(a * b).sum(-1)}
    sampler = refreshed("adversarial", g, h, 5, **options)
    assert mean_score(sampler, g, h) < mean_score(make("uniform", g, k=5), g, h) - 1.0


def test_the_adversary_reads_no_scale() -> None:
    h = embeddings(50)
    generator = SoftmaxGenerator(4)
    moved = h * torch.tensor([0.1, 1.0, 50.0, 3.0]) + 7.0
    for part, same in zip(generator.project(h), generator.project(moved)):
        torch.testing.assert_close(part, same, atol=1e-4, rtol=1e-4)
    constant = generator.project(torch.ones(5, 4))
    assert all(bool(part.isfinite().all()) for part in constant)


def test_reinforce_points_along_the_true_gradient() -> None:
    # One node per candidate; the expected reward of the softmax is known in closed form.
    g = graph(30, 60)
    src, dst = g.edges()
    edges = KnownEdges(src, dst, 30)
    h = embeddings(30)
    reward = torch.nn.functional.logsigmoid(h @ h.T)
    allowed = torch.stack([admissible(g, node) for node in range(30)])

    def value(generator: SoftmaxGenerator) -> Tensor:
        query, candidate = generator.project(h)
        share = (query @ candidate.T).masked_fill(~allowed, -torch.inf).softmax(1)
        return (share * reward).sum(1)[g.out_degrees() > 0].mean()

    generator = SoftmaxGenerator(4, learning_rate=1e-3, seed=1)
    source = torch.Generator().manual_seed(0)
    before = value(generator)
    gradient = torch.autograd.grad(before, list(generator.parameters()))
    old = [p.detach().clone() for p in generator.parameters()]
    # SGD instead of Adam, so that the step is the estimated gradient itself.
    generator.optimizer = torch.optim.SGD(generator.parameters(), lr=1e-2)
    generator.fit(
        h, edges, lambda a, b: (a * b).sum(-1), 50, candidates=30, batch=2000, generator=source
    )
    step = torch.cat([(p.detach() - o).flatten() for p, o in zip(generator.parameters(), old)])
    exact = torch.cat([part.flatten() for part in gradient])
    assert torch.nn.functional.cosine_similarity(step, exact, dim=0) > 0.9
    assert value(generator) > before


@pytest.mark.parametrize(
    "arguments", [{"fit_steps": -1}, {"warmup_steps": -1}, {"batch_queries": 0}, {"hidden": 0}]
)
def test_the_adversary_refuses_arguments(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}: expected at least"):
        make("adversarial", graph(5, 9), **arguments)


def test_a_generator_needs_a_width() -> None:
    with pytest.raises(ValueError, match="^width, hidden: expected at least 1, got 0 and 32"):
        SoftmaxGenerator(0)
