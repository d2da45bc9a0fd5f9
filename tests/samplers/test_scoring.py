"""What a sampler notices where the model scores edges by something else than it does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import dgl
import pytest
import torch
from shared import graph, make, normal
from torch import Tensor, nn

from dgl_dmns.core import Density, Snapshot
from dgl_dmns.data import embedded_graph
from dgl_dmns.samplers.misuse import edge_auc

NODES = 60
G = graph(NODES, 240)
LAYER = "a layer with one output is trained"
FLAT = "score no higher than random nodes"


class Model(nn.Module):
    """As DGL's example: an encoder, and a predictor of products that forward leaves out."""

    def __init__(self, gated: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 8)
        self.gate = nn.Linear(8, 1) if gated else None
        self.predictor = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, g: Any, x: Tensor) -> Tensor:
        h: Tensor = self.layer(x)
        return h if self.gate is None else h * self.gate(h).sigmoid()

    def score(self, a: Tensor, b: Tensor) -> Tensor:
        return self.predictor(a * b).squeeze(-1)


def train(
    sampler: Any, model: nn.Module, score: Callable[..., Tensor], steps: int = 3
) -> list[str]:
    """Warnings of a training with a refresh after each step."""
    g = G
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sampler.attach(optimizer, every=1)
        for _ in range(steps):
            encode = model[0] if isinstance(model, nn.ModuleList) else model
            h = encode(g, g.ndata["feat"])
            src, dst = g.edges()
            u, v = sampler(g, torch.arange(g.num_edges()))
            loss = score(h[u], h[v]).mean() - score(h[src], h[dst]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [str(one.message) for one in caught if "scor" in str(one.message)]


def test_a_predictor_inside_the_model_is_noticed_once() -> None:
    model = Model()
    (said,) = train(make("dmns", G, model, 2), model, model.score, steps=5)
    assert said.startswith("DMNSSampler: ")
    assert LAYER in said
    assert "scorer=lambda h_v, h_u:" in said
    assert "logits" in said


def test_a_predictor_beside_the_encoder_is_noticed() -> None:
    encoder, head = Model(), nn.Linear(16, 1)
    encoder.predictor = nn.Sequential()
    both = nn.ModuleList([encoder, head])

    def score(a: Tensor, b: Tensor) -> Tensor:
        return head(torch.cat([a, b], -1)).squeeze(-1)

    for encode in (encoder, lambda: encoder(G, G.ndata["feat"])):
        (said,) = train(make("dmns", G, encode, 2), both, score)
        assert LAYER in said


def test_what_the_embeddings_pass_through_is_no_predictor() -> None:
    model = Model(gated=True)
    model.predictor = nn.Sequential()

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1)

    assert train(make("dmns", G, model, 2), model, dot) == []


def test_a_scorer_or_a_rule_without_scores_is_not_doubted() -> None:
    model = Model()
    with_scorer = make("dmns", G, model, 2, scorer=model.score)
    without = make("dmns", G, model, 2, rule=Density())
    for sampler in (with_scorer, without):
        assert train(sampler, model, model.score) == []


@pytest.mark.parametrize("name", ["dynamic", "adversarial"])
def test_scores_that_never_tell_edges_are_noticed_once(name: str) -> None:
    h = [torch.empty(0)]
    sampler = make(name, G, lambda: h[0])
    for version in range(1, 16):
        h[0] = torch.full((NODES, 6), version / 10)  # all scores are equal
        if version == 12:
            with pytest.warns(UserWarning, match=f"{FLAT} after 12 refreshes"):
                sampler.refresh()
        else:
            sampler.refresh()  # a warning is an error


def test_a_sampler_that_takes_no_scorer_is_not_to_be_given_one() -> None:
    sampler = make("mcns", G, torch.ones(NODES, 6))
    with pytest.warns(UserWarning, match="use a sampler that takes scorer="):
        for _ in range(12):
            sampler.refresh()


def test_scores_that_rise_late_are_not() -> None:
    h = [torch.empty(0)]
    sampler = make("dynamic", G, lambda: h[0])
    adjacency = torch.zeros(NODES, NODES)
    adjacency[G.edges()] = 1.0
    for version in range(1, 16):
        flat = normal(NODES, NODES, seed=version)
        h[0] = flat if version < 12 else adjacency + adjacency.T + 2 * torch.eye(NODES)
        sampler.refresh()
    assert sampler.version == 15


def test_early_epochs_of_free_vectors_are_not_doubted() -> None:
    data = embedded_graph(num_nodes=300, seed=0)
    g = dgl.graph((data.src, data.dst), num_nodes=300)
    h = nn.Parameter(torch.randn(300, 16))
    optimizer = torch.optim.Adam([h], lr=0.01)
    sampler = make("dynamic", g, lambda: h, 2)
    for _ in range(16):
        sampler.refresh()
        for part in torch.randperm(len(data.src)).split(256):
            u, v = sampler(g, part)
            negative = (h[u] * h[v]).sum(-1)
            positive = (h[data.src[part]] * h[data.dst[part]]).sum(-1)
            loss = -positive.sigmoid().log().mean() - (-negative).sigmoid().log().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert sampler.version == 16


def test_the_auc_is_that_of_all_pairs() -> None:
    sampler = make("dynamic", G)
    x, known = G.ndata["feat"], sampler.known
    snapshot = Snapshot(x, x, known, None, None)
    edge = (x[G.edges()[0]] * x[G.edges()[1]]).sum(-1)
    found = torch.tensor([edge_auc(snapshot, seed=seed) for seed in range(40)])
    src, _ = G.edges()
    free = ~known.contains(src.unsqueeze(1), torch.arange(NODES).expand(len(src), -1))
    free[torch.arange(len(src)), src] = False
    other = x[src] @ x.T
    wins = ((edge.unsqueeze(1) > other) & free).sum(1) / free.sum(1)
    assert float(found.mean()) == pytest.approx(float(wins.mean()), abs=0.02)
