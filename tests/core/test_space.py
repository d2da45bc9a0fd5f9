"""The generator's space: what it keeps, what it drops, and that it keeps its footing."""

from __future__ import annotations

import pytest
import torch
from small import normal
from torch import Tensor
from torch.nn.functional import normalize

from dgl_dmns.core import Space


def rotation(width: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(width, width, seed=seed))[0]


def fitted(h: Tensor, compact_width: int = 16) -> Space:
    space = Space(h.shape[1], compact_width=compact_width)
    space.update(h)
    return space


def test_raw_is_the_identity() -> None:
    space = Space(5, "raw", compact_width=2)
    h = normal(7, 5) * 30
    space.update(h)
    assert space.width == 5
    assert torch.equal(space.encode(h), h)
    assert torch.equal(space.decode(h), h)
    assert space.encode(h.double()).dtype == torch.float32


def test_encoding_is_centred_of_unit_size_and_without_correlations() -> None:
    h = normal(4000, 24) * torch.linspace(3, 0.1, 24) + 1
    space = fitted(h, 6)
    z = space.encode(h)
    assert z.shape == (4000, 6)
    assert z.dtype == torch.float32
    assert torch.allclose(z.mean(0), torch.zeros(6), atol=1e-3)
    assert float(z.square().sum(1).mean()) == pytest.approx(1, abs=1e-3)
    covariance = z.T @ z / 4000
    assert torch.allclose(covariance, covariance.diag().diag(), atol=1e-3)
    assert bool((covariance.diag().diff() < 1e-4).all())  # the leading direction first


def test_scale_of_the_encoder_does_not_matter() -> None:
    h = normal(300, 8)
    small, large = fitted(h * 1e-3), fitted(h * 1e3)
    assert torch.allclose(small.encode(h * 1e-3), large.encode(h * 1e3), atol=1e-4)
    assert float(large.norm / small.norm) == pytest.approx(1e6, rel=1e-4)


def test_decoding_inverts_encoding_where_nothing_is_dropped() -> None:
    h = normalize(normal(200, 6)) * 7  # one norm, all directions kept
    space = fitted(h, 16)
    assert space.width == 6
    assert torch.allclose(space.decode(space.encode(h)), h, atol=1e-4)
    levels = space.encode(h).expand(3, 200, 6)
    assert torch.allclose(space.decode(levels), h.expand(3, 200, 6), atol=1e-4)


def test_decoding_gives_the_best_approximation_of_the_direction() -> None:
    h = normal(400, 12, seed=1) * torch.linspace(4, 0.1, 12)
    space = fitted(h, 4)
    unit = normalize(h)
    centred = unit - unit.mean(0)
    left, values, right = torch.linalg.svd(centred, full_matrices=False)
    best = left[:, :4] @ (values[:4, None] * right[:4]) + unit.mean(0)
    assert torch.allclose(space.decode(space.encode(h)), best * h.norm(dim=1).mean(), atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_a_rotation_within_the_space_keeps_the_coordinates(seed: int) -> None:
    """Principal directions rotate with the data; the aligned basis of one subspace stays put."""
    plane = rotation(20, seed=100 + seed)[:, :4]
    spread = torch.linspace(2, 0.5, 4)
    first = normalize(normal(2000, 4, seed=seed) * spread) @ plane.T
    turned = normalize(normal(2000, 4, seed=seed) * spread) @ rotation(4, seed=seed) @ plane.T
    space = fitted(first, 4)
    basis = space.basis.clone()
    space.update(turned)
    assert torch.allclose(space.basis, basis, atol=1e-4)
    # Without the last basis, the principal directions do turn.
    assert not torch.allclose(fitted(turned, 4).basis, basis, atol=0.1)


def test_a_small_change_of_the_embeddings_is_a_small_change_of_the_coordinates() -> None:
    # Exactly equal variances: the noise decides on the directions, and a fresh basis jumps.
    axes = torch.eye(6, 16)
    h = torch.cat([axes, -axes]).repeat(100, 1)
    space = fitted(h, 6)
    moved = h + 0.01 * normal(1200, 16, seed=2)
    before = space.encode(h)
    fresh = fitted(moved, 6).encode(moved)
    space.update(moved)
    drift = float((space.encode(moved) - before).norm(dim=1).mean())
    assert drift < 0.1
    assert float((fresh - before).norm(dim=1).mean()) > 10 * drift


def test_the_basis_stays_orthonormal_through_many_updates() -> None:
    space = Space(12, compact_width=5)
    for seed in range(30):
        space.update(normal(60, 12, seed=seed))
    assert torch.allclose(space.basis.T @ space.basis, torch.eye(5), atol=1e-4)


@pytest.mark.parametrize(
    "h",
    [
        torch.ones(50, 4),
        torch.zeros(50, 4),
        torch.tensor([[2.0], [-1.0], [0.0], [3.0]]),
        torch.ones(1, 6),
        torch.eye(3, 40),
        torch.full((20, 3), 1e-30),
    ],
    ids=["constant", "zero", "one dimension", "one node", "fewer nodes than dimensions", "tiny"],
)
def test_degenerate_embeddings_stay_finite(h: Tensor) -> None:
    space = Space(h.shape[1])
    for _ in range(3):
        space.update(h)
        z = space.encode(h)
        assert z.shape == (h.shape[0], min(16, h.shape[1]))
        assert bool(torch.isfinite(z).all())
        assert bool(torch.isfinite(space.decode(z)).all())


def test_a_space_of_one_dimension_keeps_the_sign() -> None:
    h = torch.tensor([[2.0], [-1.0], [0.5], [3.0]])
    space = fitted(h)
    z = space.encode(h).flatten()
    assert z[0] == z[2] == z[3] != z[1]
    decoded = space.decode(z.unsqueeze(1)).flatten()
    assert torch.allclose(decoded.sign(), h.flatten().sign())


def test_half_precision_embeddings() -> None:
    h = normal(100, 8)
    z = fitted(h.half()).encode(h.half())
    assert z.dtype == torch.float32
    assert torch.allclose(z @ z.T, fitted(h).encode(h) @ fitted(h).encode(h).T, atol=0.1)


@pytest.mark.parametrize("nodes", [50, 99, 100, 149, 1000])
def test_at_most_sample_rows_enter_the_fit(nodes: int) -> None:
    h = normal(nodes, 3)
    space = Space(3)
    space.update(h, sample=50)
    # The mean of every stride-th row, for the smallest stride that keeps to the limit.
    stride = -(-nodes // 50)
    assert len(h[::stride]) <= 50
    assert torch.allclose(space.mean, normalize(h[::stride]).mean(0), atol=1e-6)


def test_state_is_in_buffers() -> None:
    h = normal(100, 8)
    space, other = fitted(h, 3), Space(8, compact_width=3)
    other.load_state_dict(space.state_dict())
    assert torch.equal(space.encode(h), other.encode(h))
    assert not any(True for _ in space.parameters())
    assert repr(space) == "Space(kind=compact, 8 -> 3)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, "round"), "space: expected 'raw' or 'compact', got 'round'"),
        ((0, "raw"), "width, compact_width: expected >= 1, got 0, 16"),
        ((4, "compact", 0), "width, compact_width: expected >= 1, got 4, 0"),
    ],
)
def test_errors(arguments: tuple[int, str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Space(*arguments)
