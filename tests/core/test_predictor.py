"""Predictors against an explicit stack of FiLM layers, and their structural properties."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dgl_dmns.core import FiLMPredictor, MLPPredictor, NoisePredictor


def randomise(predictor: NoisePredictor, scale: float = 0.5, seed: int = 0) -> None:
    """Weights far from the initial ones, so that A is far from 1 and B far from 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.normal_(std=scale, generator=generator)


def inputs(batch: int, width: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, width, generator=generator)
    h = torch.randn(batch, width, generator=generator)
    return x, torch.randint(1, 51, (batch,), generator=generator), h


def explicit_film(predictor: FiLMPredictor, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
    """The layers one after the other, written from the paper's equations."""
    half = (predictor.width + 1) // 2
    rates = torch.tensor([10_000.0 ** (-i / max(1, half - 1)) for i in range(half)])
    angle = t.float().view(-1, 1) * rates
    first, _, second = predictor.time.mlp
    hidden = torch.cat([angle.sin(), angle.cos()], 1) @ first.weight.T + first.bias
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))  # GELU
    condition = hidden @ second.weight.T + second.bias
    if predictor.conditional:
        condition = condition + h
    activated = condition * torch.sigmoid(condition)  # SiLU
    rows = predictor.width
    for layer in range(predictor.layers):
        at = 2 * layer * rows
        weight, bias = predictor.film.weight[at : at + 2 * rows], predictor.film.bias
        output = activated @ weight.T + bias[at : at + 2 * rows]
        gamma, eta = output[:, :rows], output[:, rows:]
        x = (gamma + 1) * x + eta
    return x


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 5, 8])
def test_film_is_the_stack_of_its_layers(width: int, layers: int, conditional: bool) -> None:
    predictor = FiLMPredictor(width, layers, conditional)
    randomise(predictor)
    x, t, h = inputs(11, width)
    expected = explicit_film(predictor, x, t, h)
    torch.testing.assert_close(predictor(x, t, h), expected, rtol=2e-4, atol=2e-4)


def test_one_step_for_all_queries() -> None:
    for conditional in (True, False):
        predictor = FiLMPredictor(4, conditional=conditional)
        randomise(predictor)
        _, _, h = inputs(7, 4)
        each = predictor.coefficients(torch.full((7,), 13), h)
        shared = predictor.coefficients(torch.tensor(13), h)
        for a, b in zip(each, shared):
            assert b.shape == (7, 4)
            torch.testing.assert_close(a, b)


def jacobian(predictor: NoisePredictor, width: int) -> Tensor:
    _, t, h = inputs(1, width)
    _, _, point = inputs(1, width, seed=5)

    def at(x: Tensor) -> Tensor:
        output: Tensor = predictor(x.unsqueeze(0), t, h)
        return output.squeeze(0)

    result = torch.autograd.functional.jacobian(at, point.squeeze(0))
    assert isinstance(result, Tensor)
    return result


def test_film_does_not_mix_dimensions_and_the_mlp_does() -> None:
    film, mlp = FiLMPredictor(5), MLPPredictor(5)
    for predictor in (film, mlp):
        randomise(predictor)
    of_film = jacobian(film, 5)
    assert torch.count_nonzero(of_film - of_film.diagonal().diag()) == 0
    assert bool((of_film.diagonal().abs() > 1e-3).all())
    of_mlp = jacobian(mlp, 5)
    assert float((of_mlp - of_mlp.diagonal().diag()).abs().max()) > 0.1


def test_mlp_predictor_is_not_affine() -> None:
    predictor = MLPPredictor(4, hidden=10)
    randomise(predictor, scale=1.0)
    assert predictor.mlp[0].out_features == 10
    assert MLPPredictor(4).mlp[0].out_features == 16
    x, t, h = inputs(6, 4)
    y = x.flip(0)
    assert predictor(x, t, h).shape == (6, 4)
    middle = (predictor(x, t, h) + predictor(y, t, h)) / 2
    assert not torch.allclose(predictor((x + y) / 2, t, h), middle, atol=1e-2)


def test_gradients_reach_every_parameter() -> None:
    for predictor in (FiLMPredictor(4), MLPPredictor(4)):
        predictor(*inputs(8, 4)).square().mean().backward()
        for name, parameter in predictor.named_parameters():
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().sum()) > 0, name


def test_what_is_refused_and_what_is_said() -> None:
    for width, layers in ((0, 2), (4, 0)):
        message = f"width, layers: expected at least 1, got {width} and {layers}"
        with pytest.raises(ValueError, match=message):
            FiLMPredictor(width, layers)
    with pytest.raises(ValueError, match="width: expected at least 1, got 0"):
        MLPPredictor(0)
    with pytest.raises(NotImplementedError):
        NoisePredictor()(*inputs(2, 3))
    text = repr(FiLMPredictor(5, layers=3, conditional=False))
    assert "width=5, layers=3, conditional=False" in text


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_coefficients_of_many_steps_are_those_of_each(layers: int, conditional: bool) -> None:
    predictor = FiLMPredictor(5, layers, conditional)
    h = inputs(7, 5)[2]
    steps = range(20, 3, -4)
    with torch.no_grad():
        made = predictor.coefficients_of_steps(steps, h)
        for t in steps:
            for many, one in zip(next(made), predictor.coefficients(torch.tensor(t), h)):
                assert torch.allclose(many.t(), one.expand(7, 5), atol=1e-5)


def test_a_subclass_of_film_with_coefficients_of_its_own_is_asked_for_them() -> None:
    class Bounded(FiLMPredictor):
        def coefficients(self, t: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            scale, shift = super().coefficients(t, h)
            return scale.tanh(), shift.tanh()

    predictor = Bounded(5)
    randomise(predictor)
    h = inputs(7, 5)[2]
    with torch.no_grad():
        (made,) = predictor.coefficients_of_steps([9], h)
        for many, one in zip(made, predictor.coefficients(torch.tensor(9), h)):
            assert torch.equal(many.t(), one)
