"""Properties of all samplers and all selection rules over random graphs.

The quick profile takes a few graphs for each; ``DGL_DMNS_LONG=1`` takes many more, with
thousands of nodes among them. Both are the same on every run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import dgl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgl_dmns import core, samplers

LONG = bool(os.environ.get("DGL_DMNS_LONG"))
RULES = {
    "density": core.Density(),
    "gate": core.Gate(),
    "blend": core.Blend(),
    "nearest": core.Nearest(),
    "nearest in a pool": core.Nearest(pool=8),
    "self-adversarial": core.SelfAdversarial(),
    "hardest": core.Hardest(),
}
SMALL: dict[str, Any] = {"warmup_steps": 2, "fit_steps": 1, "batch_pairs": 32, "compact_width": 3}


def dmns(rule: Any) -> Callable[..., Any]:
    return lambda g, k, h: samplers.DMNSSampler(
        g, lambda: h, k, rule=rule, groups=2, pool=max(16, k), **SMALL
    )


MAKERS: dict[str, Callable[[Any, int, Tensor], Any]] = {
    "uniform": lambda g, k, h: samplers.UniformSampler(g, k),
    "popularity": lambda g, k, h: samplers.PopularitySampler(g, k),
    "in-batch": lambda g, k, h: samplers.InBatchSampler(g, k),
    "dynamic": lambda g, k, h: samplers.DynamicSampler(g, lambda: h, k, groups=2),
    "self-adversarial": lambda g, k, h: samplers.SelfAdversarialSampler(g, lambda: h, k, groups=2),
    "mcns": lambda g, k, h: samplers.MCNSSampler(g, lambda: h, k, steps=2, width=8),
    "adversarial": lambda g, k, h: samplers.AdversarialSampler(
        g, lambda: h, k, groups=2, warmup_steps=2, fit_steps=1, batch_queries=8
    ),
    **{f"dmns, {name}": dmns(rule) for name, rule in RULES.items()},
}


def test_every_sampler_and_rule_is_here() -> None:
    made = {type(build(name, ring(6), 1)) for name in MAKERS}
    public = {getattr(samplers, name) for name in samplers.__all__}
    bases = {samplers.NegativeSampler, samplers.RefreshingSampler}
    wanted = {c for c in public if isinstance(c, type) and issubclass(c, samplers.NegativeSampler)}
    assert made == wanted - bases
    rules = {getattr(core, name) for name in ("Density", "Gate", "Blend", "Nearest", "Hardest")}
    assert {type(rule) for rule in RULES.values()} >= rules | {core.SelfAdversarial}


def ring(count: int) -> Any:
    nodes = torch.arange(count)
    return dgl.graph((nodes, (nodes + 1) % count), num_nodes=count)


def build(name: str, g: Any, k: int) -> Any:
    generator = torch.Generator().manual_seed(g.num_nodes())
    h = torch.randn(g.num_nodes(), 4, generator=generator)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no true negative exists")
        sampler = MAKERS[name](g, k, h)
        if hasattr(sampler, "refresh"):
            sampler.refresh()
    return sampler


@st.composite
def graphs(draw: st.DrawFn) -> Any:
    """A graph with at least one edge: random, a star, a clique, with loops, twins, lonely nodes."""
    count = draw(st.integers(1, 3000 if LONG and draw(st.booleans()) else 40))
    kind = draw(st.sampled_from(["random", "star", "clique", "loops", "twins"]))
    seed = draw(st.integers(0, 1 << 20))
    generator = torch.Generator().manual_seed(seed)
    linked = draw(st.integers(1, count))  # the others are isolated
    if kind == "star":
        leaves = torch.arange(1, linked)
        src, dst = torch.zeros_like(leaves), leaves
        if draw(st.booleans()):
            src, dst = torch.cat([src, dst]), torch.cat([dst, src])
    elif kind == "clique":
        size = min(linked, 12)
        src, dst = (~torch.eye(size, dtype=torch.bool)).nonzero(as_tuple=True)
    else:
        edges = draw(st.integers(1, 4 * linked))
        src, dst = torch.randint(0, linked, (2, edges), generator=generator)
        if kind == "loops":
            src = torch.cat([src, dst[:3]])
            dst = torch.cat([dst, dst[:3]])
        if kind == "twins":
            src, dst = src.repeat(3), dst.repeat(3)
    if not len(src):
        src = dst = torch.zeros(1, dtype=torch.int64)  # one node, one loop
    g = dgl.graph((src, dst), num_nodes=count)
    return g.int() if draw(st.booleans()) else g


QUICK = settings(
    max_examples=60 if LONG else 6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("name", MAKERS)
@QUICK
@given(g=graphs(), k=st.integers(1, 5), data=st.data())
def test_any_graph(name: str, g: Any, k: int, data: st.DataObject) -> None:
    sampler = build(name, g, k)
    edges = data.draw(st.integers(0, 2 * g.num_edges()), label="edges asked for")
    eids = torch.randint(
        0, g.num_edges(), (edges,), generator=torch.Generator().manual_seed(edges)
    ).to(g.idtype)
    torch.manual_seed(3)
    src, dst = sampler(g, eids)
    # Shape, order, dtype, device.
    assert src.dtype == dst.dtype == g.idtype
    assert src.device == dst.device == eids.device
    assert dst.shape == src.shape == (edges * k,)
    assert torch.equal(src, g.find_edges(eids)[0].repeat_interleave(k))
    # In range, and no positive while there is another; the query itself otherwise.
    a, b = src.long(), dst.long()
    assert bool(((b >= 0) & (b < g.num_nodes())).all())
    keys = torch.cat([torch.stack(g.edges()).long(), torch.arange(g.num_nodes()).expand(2, -1)], 1)
    keys = torch.unique(keys[0] * g.num_nodes() + keys[1])
    full = torch.bincount(keys // g.num_nodes(), minlength=g.num_nodes()) == g.num_nodes()
    positive = torch.isin(a * g.num_nodes() + b, keys)
    assert not bool((positive & ~full[a]).any())
    assert torch.equal(b[full[a]], a[full[a]])
    # The same seed, the same result, also from a sampler made anew.
    for one in (build(name, g, k), sampler):
        if name == "mcns" and one is sampler:
            continue  # its chains go on
        torch.manual_seed(3)
        assert torch.equal(one(g, eids)[1], dst)


@pytest.mark.parametrize("name", [n for n in MAKERS if n not in ("in-batch", "mcns")])
def test_what_an_edge_gets_does_not_depend_on_the_others_in_its_batch(name: str) -> None:
    """Each edge's distribution is its own: alone, or among others that would crowd it out.

    (`InBatchSampler` takes the others' destinations, and the chains of `MCNSSampler` go on from
    call to call, as they say.)
    """
    g = ring(12)
    sampler = build(name, g, 1)
    alone = torch.full((600,), 4)
    mixed = torch.cat([alone, torch.arange(12).repeat(100)])
    torch.manual_seed(5)
    counts = [
        torch.bincount(sampler(g, eids)[1][:600], minlength=12).double() / 600
        for eids in (alone, mixed)
    ]
    # Differences of shares of 600 draws: five standard deviations of a half are 0.144.
    assert float((counts[0] - counts[1]).abs().max()) < 0.144


def test_a_graph_without_edges_is_refused() -> None:
    for count in (0, 1, 5):
        g = dgl.graph(([], []), num_nodes=count)
        for name in MAKERS:
            with pytest.raises(ValueError, match="at least one edge"):
                build(name, g, 1)


def p_value(observed: Tensor, probability: Tensor) -> float:
    """Chi-squared test of counts [R, N] against probabilities [R, N], all rows together."""
    from scipy.stats import chi2

    possible = probability > 0
    assert not bool(observed[~possible].any())
    expected = observed.sum(1, keepdim=True) * probability
    keep = expected > 5
    statistic = float(((observed - expected).square() / expected)[keep].sum())
    degrees = int((keep.sum(1) - 1).clamp(min=0).sum())
    return float(chi2.sf(statistic, degrees))


@pytest.mark.parametrize("name", ["uniform", "popularity"])
def test_drawn_nodes_follow_the_exact_distribution(name: str) -> None:
    g = dgl.graph(([0, 1, 2, 3, 4, 5, 6, 0, 1], [1, 2, 2, 4, 5, 1, 2, 2, 7]), num_nodes=8)
    sampler = build(name, g, 500)
    torch.manual_seed(0)
    drawn = sampler.for_queries(g, torch.arange(8))
    observed = torch.stack([torch.bincount(row, minlength=8) for row in drawn]).double()
    weight = torch.ones(8) if name == "uniform" else g.in_degrees().double().pow(0.75)
    exact = weight.double().expand(8, 8).clone()
    exact[tuple(g.edges())] = 0
    exact.fill_diagonal_(0)
    assert p_value(observed, exact / exact.sum(1, keepdim=True)) > 1e-3


@pytest.mark.parametrize("rule", ["density", "gate", "blend", "self-adversarial"])
def test_drawn_nodes_follow_the_rules_distribution(rule: str) -> None:
    """With a pool of all nodes `distribution` is exact, the uniform share included."""
    g = ring(10)
    h = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    sampler = samplers.DMNSSampler(
        g,
        lambda: h,
        1,
        rule=RULES[rule],
        groups=20_000,
        pool=16,
        uniform_share=0.1,
        source="uniform",  # all rows alike
        **SMALL,
    )
    sampler.refresh()
    torch.manual_seed(2)
    drawn = sampler.for_queries(g, torch.arange(10).repeat(2000)).view(2000, 10).T
    observed = torch.stack([torch.bincount(row, minlength=10) for row in drawn]).double()
    node = torch.arange(10)
    pairs = torch.cartesian_prod(node, node)
    exact = sampler.distribution().log_prob(pairs[:, 0], pairs[:, 1]).double().exp().view(10, 10)
    exact[node, (node + 1) % 10] = 0
    exact.fill_diagonal_(0)
    assert p_value(observed, exact / exact.sum(1, keepdim=True)) > 1e-3
