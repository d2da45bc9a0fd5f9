"""Samplers measure at each refresh how sharp their scores have to be, and keep it."""

import dgl
import pytest
import torch
from shared import make, refreshed, rng

from dgl_dmns.core import Blend, KnownEdges
from dgl_dmns.samplers import Resources

N, BLOCK = 240, 24
SHARP = Blend(0.8, edge_ratio=8.0)
HARD = {"pool": 64, "uniform_share": 0.0, "groups": None}


@pytest.fixture
def graph():
    """Edges within blocks of nodes only."""
    src = torch.arange(N).repeat_interleave(6)
    dst = src // BLOCK * BLOCK + torch.randint(0, BLOCK, src.shape)
    return dgl.to_bidirected(dgl.graph((src, dst), num_nodes=N))


def telling(scale):
    """Embeddings whose inner products tell the blocks."""
    return scale * torch.nn.functional.one_hot(torch.arange(N) // BLOCK).float()


def mean_score(sampler, h):
    ids = sampler.draw(torch.arange(N)).ids
    return float((h.unsqueeze(1) * h[ids]).sum(-1).mean())


def test_small_scores_make_negatives_as_hard_as_large_ones(graph):
    hard = {}
    for scale in (0.01, 0.1):
        h = telling(scale)
        sampler = make("dmns", graph, h, rule=SHARP, **HARD)
        report = sampler.refresh()
        flat = make("dmns", graph, h, **HARD)
        assert flat.refresh().table.sharpness == 1
        assert report.table.sharpness > 50
        hard[scale] = mean_score(sampler, h) / scale**2
        assert hard[scale] > 3 * mean_score(flat, h) / scale**2
    assert hard[0.01] == pytest.approx(hard[0.1], rel=0.2)


def test_each_refresh_measures_anew(graph):
    scales = iter((0.1, 0.2, 10.0))
    sampler = make("self-adversarial", graph, lambda: telling(next(scales)), edge_ratio=4.0)
    first, second, third = (sampler.refresh().table.sharpness for _ in range(3))
    assert first == pytest.approx(4 * second, rel=0.1)
    assert third == 1


def test_a_model_that_has_not_learned_by_the_twentieth_refresh_gives_a_warning(graph):
    sampler = make("self-adversarial", graph, telling(0.01), edge_ratio=4.0)
    for _ in range(20):
        sampler.refresh()
    with pytest.warns(UserWarning, match=r"after 20 refreshes .* or leave edge_ratio out"):
        sampler.refresh()


@pytest.mark.parametrize("background", [False, True])
def test_a_state_keeps_it_for_queries_from_embeddings(graph, background):
    h = telling(0.1)
    resources = Resources(background=background)

    def made():
        return make("dmns", graph, h, rule=SHARP, resources=resources, **HARD)

    sampler, other = made(), made()
    sampler.refresh()
    sampler.refresh()
    sampler.wait()
    other.load_state_dict(sampler.state_dict())
    own = [one.for_embeddings(h[:40], generator=rng(1)) for one in (sampler, other)]
    assert torch.equal(*own)
    score = (h[:40].unsqueeze(1) * h[own[0]]).sum(-1)
    assert score.mean() > 0.0025  # a quarter of the query's own block, where a tenth is by chance
    none = torch.empty(0, dtype=torch.int64)
    known = KnownEdges(none, none, 40, N, exclude_self=False)
    same = sampler.for_embeddings(h[:40], known=known, generator=rng(1))
    assert torch.equal(same, own[0])


def test_a_state_with_another_sharpness_is_refused(graph):
    h = telling(0.1)
    sampler = refreshed("dmns", graph, h, rule=SHARP, **HARD)
    state = sampler.state_dict()
    state["rule"]["sharpness"] = 0.5
    before = sampler.state_dict()["rule"]["sharpness"]
    with pytest.raises(ValueError, match="sharpness"):
        sampler.load_state_dict(state)
    assert sampler.state_dict()["rule"]["sharpness"] == before


def test_each_edge_type_has_its_own():
    src = torch.arange(N).repeat_interleave(6)
    near = src // BLOCK * BLOCK + torch.randint(0, BLOCK, src.shape)
    far = torch.randint(0, N, src.shape)
    g = dgl.heterograph({("n", "near", "n"): (src, near), ("n", "far", "n"): (src, far)})
    h = telling(0.1) + 1e-3 * torch.randn(N, N // BLOCK)
    sampler = make("dmns", g, {"n": h}, 2, rule=SHARP, **HARD)
    report = sampler.refresh()
    near, far = (report.by_type["n", name, "n"].table.sharpness for name in ("near", "far"))
    assert far > 1.3 * near  # edges that scores cannot tell: as sharp as the spread allows
    assert near > 10
