"""Properties of all samplers and all selection rules over random graphs.

The quick profile takes a few graphs for each; ``DGL_DMNS_LONG=1`` takes many more, with
thousands of nodes among them. Both are the same on every run.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import dgl
import pytest
import shared
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared import check, normal, refreshed, rng, seed

from dgl_dmns import core

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
NAMES = [*(n for n in shared.KINDS if n != "dmns"), *(f"dmns, {rule}" for rule in RULES)]


def test_every_rule_is_here() -> None:
    """And every sampler, as test_conformance sees to."""
    named = {getattr(core, name) for name in ("Density", "Gate", "Blend", "Nearest", "Hardest")}
    assert {type(rule) for rule in RULES.values()} == named | {core.SelfAdversarial}


def ring(count: int) -> Any:
    nodes = torch.arange(count)
    return dgl.graph((nodes, (nodes + 1) % count), num_nodes=count)


def build(name: str, g: Any, k: int) -> Any:
    kind, _, rule = name.partition(", ")
    more = {"rule": RULES[rule], "pool": 16} if rule else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no true negative exists")
        return refreshed(kind, g, normal(g.num_nodes(), 4, seed=g.num_nodes()), k, **more)


@st.composite
def graphs(draw: st.DrawFn) -> Any:
    """A graph with at least one edge: random, a star, a clique, with loops, twins, lonely nodes."""
    count = draw(st.integers(1, 3000 if LONG and draw(st.booleans()) else 40))
    kind = draw(st.sampled_from(["random", "star", "clique", "loops", "twins"]))
    data = draw(st.integers(0, 1 << 20))
    generator = rng(data)
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


@pytest.mark.parametrize("name", NAMES)
@QUICK
@given(g=graphs(), k=st.integers(1, 5), data=st.data())
def test_any_graph(name: str, g: Any, k: int, data: st.DataObject) -> None:
    sampler = build(name, g, k)
    edges = data.draw(st.integers(0, 2 * g.num_edges()), label="edges asked for")
    eids = torch.randint(0, g.num_edges(), (edges,), generator=rng(edges)).to(g.idtype)
    seed(3)
    src, dst = sampler(g, eids)
    assert src.dtype == dst.dtype == g.idtype
    assert src.device == dst.device == eids.device
    assert dst.shape == src.shape == (edges * k,)
    assert torch.equal(src, g.find_edges(eids)[0].repeat_interleave(k))
    check(g, src, dst)
    nodes = torch.arange(g.num_nodes(), dtype=g.idtype)
    check(g, nodes.repeat_interleave(k), sampler.for_queries(g, nodes).flatten())
    # The same seed, the same result, also from a sampler made anew.
    for one in (build(name, g, k), sampler):
        if name == "mcns" and one is sampler:
            continue  # its chains go on
        seed(3)
        assert torch.equal(one(g, eids)[1], dst)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("in-batch", "mcns")])
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


@pytest.mark.parametrize("rule", ["density", "gate", "blend", "self-adversarial"])
def test_drawn_nodes_follow_the_rules_distribution(rule: str) -> None:
    """With a pool of all nodes `distribution` is exact, the uniform share included."""
    g = ring(10)
    alike = {"groups": 5000, "pool": 16, "uniform_share": 0.1, "source": "uniform"}
    sampler = refreshed("dmns", g, normal(10, 4, seed=1), 1, rule=RULES[rule], **alike)
    drawn = sampler.for_queries(g, torch.arange(10).repeat(2000)).view(2000, 10)
    for node in range(10):
        free = (~shared.barred(g)[node]).nonzero().squeeze(1)
        exact = torch.zeros(10, dtype=torch.double)
        exact[free] = sampler.distribution().log_prob(free * 0 + node, free).double().exp()
        shared.assert_drawn_from(drawn[:, node], exact, least=1e-4)
