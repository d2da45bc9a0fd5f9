"""The trainable diffusion model on a toy graph whose neighbour distribution is known."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from shared import assert_drawn_from
from small import NONE, rng
from torch import Tensor

from dgl_dmns.core import (
    DiffusionGenerator,
    FiLMPredictor,
    FitReport,
    KnownEdges,
    Levels,
    MLPPredictor,
    NoiseSchedule,
    sample_pairs,
)

WIDTH = 4
CLUSTERS = 4
SIZE = 25


def toy(seed: int = 0) -> tuple[Tensor, KnownEdges, Tensor]:
    """Four clusters on a circle; the neighbours of a node are all of the next cluster.

    Returns embeddings [N, 4], the edges, and the mean embedding of every node's neighbours [N, 4].
    """
    nodes = CLUSTERS * SIZE
    cluster = torch.arange(nodes) // SIZE
    angle = cluster * (2 * math.pi / CLUSTERS)
    centre = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], dim=1) * 1.5
    h = centre + 0.1 * torch.randn((nodes, WIDTH), generator=rng(seed))
    src = torch.arange(nodes).repeat_interleave(SIZE)
    dst = ((cluster[src] + 1) % CLUSTERS) * SIZE + torch.arange(SIZE).repeat(nodes)
    means = torch.stack([h[cluster == c].mean(0) for c in range(CLUSTERS)])
    return h, KnownEdges(src, dst, nodes), means[(cluster + 1) % CLUSTERS]


def fitted(conditional: bool = True, steps: int = 300, **arguments: object) -> DiffusionGenerator:
    h, edges, _ = toy()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        predictor = FiLMPredictor(WIDTH, conditional=conditional)
    model = DiffusionGenerator(
        WIDTH, space="raw", predictor=predictor, batch_pairs=256, **arguments
    )
    model.fit(h, h, edges, steps, generator=rng(1))
    return model


@pytest.fixture(scope="module")
def conditional() -> DiffusionGenerator:
    return fitted()


# Fitting.


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_fitting_lowers_the_loss(loss: str) -> None:
    h, edges, _ = toy()
    model = DiffusionGenerator(WIDTH, space="raw", loss=loss, batch_pairs=256)
    report = model.fit(h, h, edges, 150, generator=rng(1))
    assert len(report.losses) == 150
    assert report.pairs == 150 * 256
    assert report.seconds > 0
    # Predicting no noise at all costs E|eps| = sqrt(2 / pi), or E[eps^2] = 1.
    blind = math.sqrt(2 / math.pi) if loss == "l1" else 1.0
    assert report.loss == pytest.approx(sum(report.losses[-15:]) / 15)
    assert report.loss < 0.8 * sum(report.losses[:5]) / 5
    assert report.loss < 0.8 * blind


def test_the_neighbours_mean_is_learnt_and_the_condition_is_what_teaches_it(
    conditional: DiffusionGenerator,
) -> None:
    h, _, neighbours = toy()
    error = (conditional.gaussians(h).mean[0] - neighbours).norm(dim=1).mean()
    # Without the query, the best that one distribution can do is the mean of all neighbours.
    blind = (fitted(conditional=False).gaussians(h).mean[0] - neighbours).norm(dim=1).mean()
    spread = (neighbours.mean(0) - neighbours).norm(dim=1).mean()
    assert error < 0.35 * spread
    assert blind > 0.8 * spread


def test_the_conditional_density_prefers_the_neighbours(conditional: DiffusionGenerator) -> None:
    h, edges, _ = toy()
    gaussians = conditional.gaussians(h)
    inside = edges.contains(torch.arange(len(h)).unsqueeze(1), torch.arange(len(h)).unsqueeze(0))
    inside.fill_diagonal_(False)
    log_prob = gaussians.pool_log_prob(h.unsqueeze(0))[0, 0]  # hardest level, [N, N]
    best = log_prob.topk(SIZE, dim=1).indices
    assert float(inside.gather(1, best).float().mean()) > 0.95


def test_fitting_needs_no_gradient_mode_and_leaves_the_embeddings_alone() -> None:
    h, edges, _ = toy()
    h.requires_grad_()
    model = DiffusionGenerator(WIDTH, space="raw", batch_pairs=64)
    before = copy.deepcopy(model.predictor.state_dict())
    with torch.no_grad():
        model.fit(h, h, edges, 2, generator=rng(1))
    assert h.grad is None
    assert any(not torch.equal(before[n], p) for n, p in model.predictor.state_dict().items())


def spoilt(model: DiffusionGenerator, how: str) -> None:
    """Make the next fit diverge."""
    if how == "loss":
        model.optimizer.param_groups[0]["lr"] = math.inf
    else:  # finite weights, but a chain that blows up: every |a_t| is far above 1
        model.optimizer.param_groups[0]["lr"] = 100.0


@pytest.mark.parametrize("how", ["loss", "closed form"])
def test_a_fit_that_diverges_is_taken_back(how: str) -> None:
    h, edges, _ = toy()
    model = fitted(steps=40)
    before = copy.deepcopy(model.state_dict())
    draws = model.latents(h[:5], generator=rng(1))
    spoilt(model, how)
    with pytest.warns(UserWarning, match="fit of the diffusion model diverged .* learning_rate"):
        report = model.fit(h, h, edges, 30, generator=rng(2))
    assert report.diverged
    for name, weights in before.items():
        if isinstance(weights, Tensor):
            assert torch.equal(model.state_dict()[name], weights)
    assert torch.equal(model.latents(h[:5], generator=rng(1)), draws)
    model.optimizer.param_groups[0]["lr"] = 1e-2
    assert not model.fit(h, h, edges, 5, generator=rng(3)).diverged


def test_a_fit_that_settles_ends_once_the_loss_is_flat() -> None:
    h, edges, _ = toy()
    model = DiffusionGenerator(WIDTH, space="raw", batch_pairs=256)
    new = model.fit(h, h, edges, 200, settle=True, generator=rng(1))
    again = model.fit(h, h, edges, 200, settle=True, generator=rng(2))
    assert 20 <= len(again.losses) <= len(new.losses) < 200
    for losses in (new.losses, again.losses):
        means = torch.tensor(losses).view(-1, 10).mean(1)
        gains = 1 - means[1:] / means[:-1]
        assert bool((gains[:-1] > 0.005).all())
        assert gains[-1] <= 0.005


@pytest.mark.parametrize(
    ("space", "scale"),
    [("raw", 1e-8), ("raw", 1.0), ("compact", 1e-8), ("compact", 1.0), ("compact", 1e8)],
)
def test_embeddings_of_any_size_do_not_count_as_divergence(space: str, scale: float) -> None:
    h, edges, _ = toy()
    model = DiffusionGenerator(WIDTH, space=space, batch_pairs=64)
    model.space.update(scale * h)
    z = model.space.encode(scale * h)
    report = model.fit(z, z, edges, 10, generator=rng(1))
    assert not report.diverged
    assert math.isfinite(report.loss)


def test_the_reported_loss_is_that_of_the_last_tenth() -> None:
    assert FitReport(tuple(float(i) for i in range(40)), 0, 0.0).loss == pytest.approx(37.5)
    assert FitReport((3.0, 5.0), 0, 0.0).loss == 5.0
    assert "losses" not in repr(FitReport((3.0, 5.0), 2, 0.5))


def test_queries_and_candidates_may_be_of_two_types() -> None:
    # Every user likes the items whose embedding is minus its own.
    users = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])
    items = -users.repeat_interleave(4, dim=0)
    src = torch.arange(3).repeat_interleave(4)
    edges = KnownEdges(src, torch.arange(12), 3, 12, exclude_self=False)
    model = DiffusionGenerator(2, space="raw", batch_pairs=256)
    model.fit(users, items, edges, 400, generator=rng(1))
    assert float((model.gaussians(users).mean[0] + users).norm(dim=1).mean()) < 0.5


# Weights, seeds, state.


def test_weights_come_from_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    one, again, other = (DiffusionGenerator(8, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.predictor.film.weight, again.predictor.film.weight)
    assert not torch.equal(one.predictor.film.weight, other.predictor.film.weight)


@pytest.mark.parametrize("through_a_file", [True, False])
def test_a_loaded_state_goes_on_exactly(through_a_file: bool) -> None:
    h, edges, _ = toy()
    model = DiffusionGenerator(WIDTH, batch_pairs=64, seed=1)
    model.space.update(h)
    z = model.space.encode(h)
    model.fit(z, z, edges, 20, generator=rng(1))
    state = model.state_dict()
    if through_a_file:
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    other = DiffusionGenerator(WIDTH, batch_pairs=64, seed=2)
    other.load_state_dict(state)
    assert torch.equal(other.space.encode(h), z)
    # Adam's moments belong to each of the two: going on with one must not disturb the other.
    first = model.fit(z, z, edges, 10, generator=rng(2))
    second = other.fit(z, z, edges, 10, generator=rng(2))
    assert first.losses == second.losses
    for mine, theirs in zip(model.parameters(), other.parameters()):
        assert torch.equal(mine, theirs)


# Generating.


def test_generating_is_encoding_drawing_decoding() -> None:
    h, edges, _ = toy()
    h = 5 * h
    model = DiffusionGenerator(WIDTH, compact_width=3, batch_pairs=64)
    model.space.update(h)
    z = model.space.encode(h)
    model.fit(z, z, edges, 30, generator=rng(1))
    drawn = model.generate(h, generator=rng(2))
    assert drawn.shape == (4, len(h), WIDTH)
    assert not drawn.requires_grad
    latents = model.latents(z, generator=rng(2))
    assert latents.shape == (4, len(h), 3)
    assert torch.equal(drawn, model.space.decode(latents))


@pytest.mark.parametrize("space", ["raw", "compact"])
@pytest.mark.parametrize(
    ("end", "levels"),
    [(0.02, Levels()), (0.2, Levels((0.02, 0.2, 0.5, 1.0)))],
    ids=["the paper's", "as far as N(0, I)"],
)
def test_harder_levels_are_closer_to_the_neighbours(end: float, levels: Levels, space: str) -> None:
    h, edges, neighbours = toy()
    schedule = NoiseSchedule.linear(50, end=end)
    model = DiffusionGenerator(
        WIDTH, levels=levels, schedule=schedule, space=space, batch_pairs=256
    )
    model.space.update(h)
    z = model.space.encode(h)
    model.fit(z, z, edges, 300, generator=rng(1))
    drawn = model.generate(h.repeat(20, 1), generator=rng(2))
    distance = (drawn - neighbours.repeat(20, 1)).norm(dim=-1).mean(dim=1)
    assert bool((distance.diff() > 0).all()), distance
    assert float(distance[0]) < 0.6 * float(distance[-1])


def test_a_predictor_that_is_not_affine_samples_by_the_chain() -> None:
    h, edges, neighbours = toy()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        predictor = MLPPredictor(WIDTH, hidden=16)
    model = DiffusionGenerator(WIDTH, space="raw", predictor=predictor, batch_pairs=256)
    report = model.fit(h, h, edges, 300, generator=rng(1))
    assert report.loss < 0.7 * report.losses[0]
    drawn = model.generate(h.repeat(10, 1), generator=rng(2))
    assert drawn.shape == (4, 10 * len(h), WIDTH)
    assert not drawn.requires_grad
    mean = drawn.view(4, 10, len(h), WIDTH).mean(1)
    spread = (neighbours.mean(0) - neighbours).norm(dim=1).mean()
    assert float((mean[0] - neighbours).norm(dim=1).mean()) < 0.5 * float(spread)


@pytest.mark.parametrize(
    ("space", "predictor_width", "expected"), [("raw", 16, 20), ("compact", 20, 16)]
)
def test_width_of_the_predictor(space: str, predictor_width: int, expected: int) -> None:
    with pytest.raises(
        ValueError, match=f"predictor: expected width {expected}, .* got {predictor_width}"
    ):
        DiffusionGenerator(20, space=space, predictor=FiLMPredictor(predictor_width))


def test_a_state_of_other_levels_is_refused() -> None:
    state = DiffusionGenerator(WIDTH, levels=Levels((0.1, 0.5))).state_dict()
    for other in (Levels((0.1, 0.6)), Levels((0.1, 0.5), shares=(1, 2))):
        with pytest.raises(ValueError, match="levels"):
            DiffusionGenerator(WIDTH, levels=other).load_state_dict(state)


# Training pairs.

# Node 0 has four neighbours, 1 has two, 2 one and itself, 3 and 4 none.
SRC = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 0])
DST = torch.tensor([1, 2, 3, 4, 0, 4, 2, 3, 1])  # the last edge repeats the first


def test_a_uniform_query_then_a_uniform_neighbour() -> None:
    edges = KnownEdges(SRC, DST, 5)
    count = 60_000
    query, neighbour = sample_pairs(edges, count, generator=rng(1))
    assert query.shape == neighbour.shape == (count,)
    assert query.dtype == neighbour.dtype == torch.int64
    expected = torch.zeros(5, 5)
    for node in range(5):
        mine = edges.neighbours(node).tolist() or [node]
        expected[node, mine] = 1 / 5 / len(mine)
    assert_drawn_from(query * 5 + neighbour, expected.flatten(), least=1e-4)
    again = sample_pairs(edges, count, generator=rng(1))
    assert torch.equal(again[0], query)
    assert torch.equal(again[1], neighbour)
    with pytest.raises(ValueError, match="edges: expected at least one edge .* got none"):
        sample_pairs(KnownEdges(NONE, NONE, 3), 4)


def test_the_last_node_may_be_isolated() -> None:
    # Its row starts behind the last index: reading there must not fail nor hit a stranger.
    edges = KnownEdges(torch.tensor([0]), torch.tensor([1]), 3)
    query, neighbour = sample_pairs(edges, 500, generator=rng(3))
    assert neighbour[query == 0].unique().tolist() == [1]
    assert neighbour[query == 2].unique().tolist() == [2]


def test_two_node_types_skip_queries_without_neighbours() -> None:
    src, dst = torch.tensor([0, 2, 2]), torch.tensor([5, 1, 4])
    edges = KnownEdges(src, dst, 4, 6, exclude_self=False)
    count = 20_000
    query, neighbour = sample_pairs(edges, count, generator=rng(4))
    expected = torch.zeros(24)
    expected[[5, 13, 16]] = torch.tensor([2.0, 1.0, 1.0])
    assert_drawn_from(query * 6 + neighbour, expected, least=1e-4)


def test_all_of_a_long_row_is_reached() -> None:
    edges = KnownEdges(
        torch.zeros(2000, dtype=torch.int64),
        torch.arange(2000),
        1,
        2000,
        exclude_self=False,
    )
    _, neighbour = sample_pairs(edges, 100_000, generator=rng(5))
    assert_drawn_from(neighbour, torch.ones(2000), least=1e-4)
