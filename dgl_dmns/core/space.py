r"""The diffusion model's own space: compact, standardised, independent of the encoder's scale.

Encoders produce anything; levels keep their meaning only if the data have a fixed size beside the
noise. `Space` maps embeddings to that space and back:

- ``"raw"``: the embeddings as they are (the paper trains on L2-normalised embeddings directly).
- ``"compact"``: L2-normalise, subtract the mean, rotate to the leading principal directions, and
  scale all of them by one factor so that the mean squared norm is 1, as that of the paper's
  embeddings. (At unit variance per coordinate the noise of every level is small beside the data,
  and the levels can no longer be told apart.) Principal directions flip and rotate between
  refreshes; each new basis is aligned to the last one (orthogonal Procrustes), so that the
  diffusion model keeps its footing.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

__all__ = ["Space", "SpaceKind"]

_FINITE = torch.finfo(torch.float32).max
_ROWS = 1 << 16  # embeddings that are encoded at a time: what is in between stays small

SpaceKind = Literal["raw", "compact"]


class Space(nn.Module):
    """A map from embeddings [N, D] to the diffusion model's space [N, W] and back.

    Args:
        width: embedding width D.
        kind: ``"raw"`` (W = D) or ``"compact"``.
        compact_width: the largest W of the compact space.

    Raises:
        ValueError: for an unknown kind or a width below 1.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor
    norm: Tensor

    def __init__(self, width: int, kind: SpaceKind = "compact", compact_width: int = 16) -> None:
        super().__init__()
        if kind not in ("raw", "compact"):
            raise ValueError(f"space: expected 'raw' or 'compact', got {kind!r}")
        if width < 1 or compact_width < 1:
            raise ValueError(f"width, compact_width: expected >= 1, got {width}, {compact_width}")
        self.kind: SpaceKind = kind
        self.embedding_width = width
        self.width = width if kind == "raw" else min(width, compact_width)
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float32))
        self.register_buffer("basis", torch.zeros(width, self.width, dtype=torch.float32))
        self.register_buffer("scale", torch.ones((), dtype=torch.float32))
        self.register_buffer("norm", torch.ones((), dtype=torch.float32))

    @torch.no_grad()
    def update(self, *parts: Tensor, sample: int = 20_000) -> None:
        """Fit the space to embeddings [N, D] in one or more parts.

        At most ``sample`` rows enter the covariance, at equal distances.
        """
        if self.kind == "raw":
            return
        step, some, before = max(1, -(-sum(map(len, parts)) // sample)), [], 0
        for part in parts:
            some.append(part[-before % step :: step])
            before += len(part)
        h = torch.cat(some).float()
        self.norm.copy_(h.double().norm(dim=1).mean().clamp(min=1e-12, max=_FINITE))
        unit = _normalise(h)
        self.mean.copy_(unit.mean(dim=0))
        centred = (unit - self.mean).double()
        values, vectors = torch.linalg.eigh(centred.T @ centred / max(1, h.shape[0]))
        basis = vectors[:, -self.width :].flip(1).float()
        if bool(self.basis.any()):
            left, _, right = torch.linalg.svd(basis.T @ self.basis)
            basis = basis @ (left @ right)
        self.basis.copy_(basis)
        variance = values[-self.width :].clamp(min=0).sum().float()
        self.scale.copy_(variance.clamp(min=1e-12).rsqrt())

    @torch.no_grad()
    def encode(self, h: Tensor) -> Tensor:
        """Embeddings [B, D] to the model's space [B, W], float32."""
        if self.kind == "raw":
            return h.float()
        z = torch.empty(h.shape[0], self.width, dtype=torch.float32, device=h.device)
        for part, place in zip(h.split(_ROWS), z.split(_ROWS)):
            place.copy_((_normalise(part.float()) - self.mean) @ self.basis * self.scale)
        return z

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The model's space [..., W] back to embeddings [..., D].

        The compact space drops minor directions and norms: they come back as the mean and as the
        mean norm.
        """
        if self.kind == "raw":
            return z
        unit = (z / self.scale) @ self.basis.T + self.mean
        return unit * self.norm

    def extra_repr(self) -> str:  # noqa: D102
        return f"kind={self.kind}, {self.embedding_width} -> {self.width}"


def _normalise(h: Tensor) -> Tensor:
    """Rows [N, D] of length 1; rows of zeros stay.

    A power of two first, which rounds nothing, so that squares neither overflow nor vanish.
    """
    exponent = torch.frexp(h.abs().amax(dim=1, keepdim=True)).exponent.clamp_(-126, 126)
    return normalize(torch.ldexp(h, -exponent).to(h.dtype), dim=1, eps=1e-12)
