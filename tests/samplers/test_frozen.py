"""What a refresh has taken stays as it was, whatever the training and the caller's modes do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shared import WIDTH, embed, graph, make, normal, optimizer, refreshed, same
from torch import Tensor, nn

from dgl_dmns.samplers import Resources

N = 40
G = graph()


def ratios(sampler: Any) -> Tensor:
    found: Tensor = sampler.distribution().log_ratio(*G.edges())
    return found


@pytest.mark.parametrize("space", ["compact", "raw"])
@pytest.mark.parametrize("given", [False, True])
def test_an_encoder_may_return_its_own_weights(space: str, given: bool) -> None:
    weight = nn.Embedding(N, WIDTH).weight
    then = weight.detach().clone()
    sampler = make("dmns", G, lambda: weight, space=space)
    sampler.refresh(weight if given else None)
    before = ratios(sampler)
    seen: list[Tensor] = []
    sampler.on_refresh(lambda report, h: seen.append(h["_N"]))
    with torch.no_grad():
        weight.mul_(3.0)  # an optimizer's step
    assert torch.equal(ratios(sampler), before)
    sampler.observe(torch.tensor([0]), torch.ones(1, WIDTH))
    sampler.refresh()  # observations start from what was
    assert torch.equal(seen[0][1:], then[1:])


class Judge(nn.Module):
    """A scorer with parts that training mode changes."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 1))
        self.modes: set[bool] = set()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.modes.add(self.training)
        x = a * b
        return self.out(x.reshape(-1, WIDTH)).view(x.shape[:-1])


@pytest.mark.parametrize("background", [False, True])
def test_a_module_as_scorer_is_read_in_eval_mode_and_left_alone(background: bool) -> None:
    judge, resources = Judge(), Resources(background=background)
    samplers = [make("dmns", G, scorer=judge, resources=resources) for _ in range(2)]
    state = {name: value.clone() for name, value in judge.state_dict().items()}
    before = torch.get_rng_state()
    for sampler in samplers:
        sampler.refresh()
        sampler.refresh()
        sampler.wait()
        sampler.stats()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*(sampler.table.cells for sampler in samplers))
    assert judge.training
    assert not judge.modes  # it was never called itself
    assert same(state, dict(judge.state_dict()))
    known = ratios(samplers[0])
    with torch.no_grad():
        judge.out[2].weight.mul_(5.0)
    assert torch.equal(ratios(samplers[0]), known)  # until the next refresh
    samplers[0].refresh()
    samplers[0].wait()
    assert not torch.equal(ratios(samplers[0]), known)


def training(autocast: bool) -> tuple[Any, ...]:
    weight = nn.Parameter(embed(G))
    one = torch.optim.SGD([weight], lr=0.0)
    sampler = make("dmns", G, lambda: weight)
    sampler.attach(one, every=1)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            weight.square().sum().backward()
            one.step()
            inside = ratios(sampler)
    return sampler.report.fit.losses, inside, sampler.table.cells


def test_autocast_of_the_training_does_not_reach_the_sampler() -> None:
    assert same(training(False), training(True))


class Encoder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, g: Any, x: Tensor) -> Tensor:
        return self.layer(x)


def test_a_refresh_in_inference_mode() -> None:
    layer, tables = nn.Linear(5, WIDTH), []
    for mode in (False, True):
        sampler = make("dmns", G, Encoder(layer))
        with torch.inference_mode(mode):
            sampler.refresh()
        sampler.refresh()
        tables.append(sampler.table.cells)
    assert torch.equal(*tables)


def test_the_mark_of_a_half_written_table_is_kept_in_states() -> None:
    sampler = refreshed("dynamic", G)
    sampler.table.keep()  # as a refresh does that then fails
    sampler.table.cells[(sampler.version + 1) % 2, 0] = 7  # in the row of node 0
    pair = torch.tensor([0]), torch.tensor([7])
    assert int(sampler.table.sizes()[0]) > 0
    assert not sampler.table.holds(*pair)
    resumed = make("dynamic", G)
    resumed.load_state_dict(sampler.state_dict())
    assert not resumed.table.holds(*pair)
    resumed.update_graph(G)
    assert not resumed.table.holds(*pair)


def test_embeddings_at_the_time_of_the_call_count() -> None:
    """Training goes on in place beside a refresh in the background."""
    sampler = refreshed("dmns", G, resources=Resources(background=True))
    seen: list[Tensor] = []
    sampler.on_refresh(lambda report, h: seen.append(h["_N"]))
    h = normal(N, WIDTH, seed=1)
    sampler.refresh(h)
    h.fill_(7)
    sampler.wait()
    assert torch.equal(seen[0], normal(N, WIDTH, seed=1))
    sampler.attach(optimizer())
