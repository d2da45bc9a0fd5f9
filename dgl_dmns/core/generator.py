"""The trainable diffusion model: space, schedule, noise predictor and their fitting.

It learns the distribution of a query's one-hop neighbours (DMNS, section 4.2) from minibatches of
random (query, neighbour) pairs, which estimate the objective of the paper's full passes over up to
20 neighbours a node. It never sees a graph, only embeddings and `KnownEdges`; embeddings are
detached, so fitting never reaches the encoder (DMNS, algorithm 1).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dgl_dmns.core.diffusion import (
    LevelGaussians,
    diffusion_loss,
    level_gaussians,
    sample_chain,
)
from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.modes import in_float32
from dgl_dmns.core.predictor import AffineNoisePredictor, FiLMPredictor, NoisePredictor
from dgl_dmns.core.schedule import Levels, NoiseSchedule
from dgl_dmns.core.space import Space, SpaceKind
from dgl_dmns.messages import warn

__all__ = ["DiffusionGenerator", "FitReport", "sample_neighbours", "sample_pairs"]

_LOOK = 10  # fitting steps whose mean loss is compared
_FLAT = 0.005  # share by which ten steps lower it at least, or they are the last
_SAMPLE = 256  # queries whose level Gaussians are looked at after a fit
_LARGEST = 1e6  # times the embeddings: level Gaussians beyond that have come apart


@dataclass(frozen=True)
class FitReport:
    """What one call of `DiffusionGenerator.fit` did.

    Args:
        losses: the loss of every step, in order.
        pairs: (query, neighbour) pairs seen.
        seconds: wall-clock time.
        diverged: whether the fit was taken back, see `DiffusionGenerator.fit`.
    """

    losses: tuple[float, ...] = field(repr=False)
    pairs: int
    seconds: float
    diverged: bool = False

    @property
    def loss(self) -> float:
        """Mean loss over the last tenth of the steps (NaN if there was none)."""
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(tail) / len(tail) if tail else float("nan")


class DiffusionGenerator(nn.Module):
    """The conditional diffusion model of a sampler.

    Args:
        width: embedding width D.
        levels: the hardness levels.
        schedule: noise schedule; defaults to linear with T = 50.
        predictor: noise predictor of the space's width, turned to float32; defaults to the paper's
            FiLM layers.
        space: ``"compact"`` or ``"raw"``, see `Space`.
        compact_width: width of the compact space.
        loss: ``"l1"`` or ``"l2"``.
        learning_rate: of Adam.
        batch_pairs: pairs in a fitting step.
        seed: seed of the initial weights.

    Raises:
        ValueError: if the predictor's width is not the space's.
    """

    def __init__(
        self,
        width: int,
        *,
        levels: Levels | None = None,
        schedule: NoiseSchedule | None = None,
        predictor: NoisePredictor | None = None,
        space: SpaceKind = "compact",
        compact_width: int = 16,
        loss: Literal["l1", "l2"] = "l1",
        learning_rate: float = 1e-2,
        batch_pairs: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.levels = levels or Levels()
        self.schedule = schedule or NoiseSchedule.linear()
        self.steps = self.levels.steps(self.schedule.steps)
        self.space = Space(width, space, compact_width)
        if predictor is None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                predictor = FiLMPredictor(self.space.width)
        if predictor.width != self.space.width:
            raise ValueError(
                f"predictor: expected width {self.space.width}, the width of the generator's "
                f"space, got {predictor.width}"
            )
        self.predictor = predictor.float()
        self.loss: Literal["l1", "l2"] = loss
        self.batch_pairs = batch_pairs
        self.learning_rate = learning_rate
        self.optimizer = self._adam()

    def _adam(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.predictor.parameters(), lr=self.learning_rate, foreach=True)

    def moved(self, device: torch.device) -> DiffusionGenerator:
        """The model itself, moved to a device with the state of its optimizer."""
        if self.space.mean.device != device:
            state = self.optimizer.state_dict()
            self.to(device)
            self.optimizer = self._adam()
            self.optimizer.load_state_dict(state)
        return self

    @in_float32
    def fit(
        self,
        h_query: Tensor,
        h_candidate: Tensor,
        edges: KnownEdges,
        steps: int,
        *,
        settle: bool = False,
        generator: torch.Generator | None = None,
    ) -> FitReport:
        """Fit the noise predictor a little further on minibatches of pairs.

        A fit that diverges is taken back, with a warning: weights and optimizer are those before
        the call. It has diverged when a loss is not finite, or when the level Gaussians of some
        queries have come apart (`stable`).

        Args:
            h_query: embeddings of the source nodes in the model's space, shape [Nq, W].
            h_candidate: embeddings of the destination nodes, shape [Nc, W].
            edges: the edges to learn neighbours from.
            steps: optimizer steps.
            settle: end before that once ten steps have lowered the mean loss by less than half a
                percent of that of the ten before.
            generator: source of the pairs, steps and noise.
        """

        def draw(count: int) -> tuple[Tensor, Tensor]:
            query, neighbour = sample_pairs(edges, count, generator=generator)
            return h_query[query], h_candidate[neighbour]

        return self.fit_pairs(draw, h_query, steps, settle=settle, generator=generator)

    @in_float32
    def fit_pairs(
        self,
        draw: Callable[[int], tuple[Tensor, Tensor]],
        looked_at: Tensor,
        steps: int,
        *,
        settle: bool = False,
        generator: torch.Generator | None = None,
    ) -> FitReport:
        """`fit` on pairs that a function draws, some at a time.

        Args:
            draw: from a number P to embeddings of queries and of neighbours, [P, W] each.
            looked_at: queries, shape [Nq, W], some of which tell whether the fit has diverged.
            steps: as for `fit`, like ``settle``.
            settle: see `fit`.
            generator: source of steps and noise.
        """
        started = time.perf_counter()
        losses: list[float] = []
        before = copy.deepcopy((self.predictor.state_dict(), self.optimizer.state_dict()))
        with torch.enable_grad():
            while len(losses) < steps:
                count = min(_LOOK, steps - len(losses))
                losses += self._steps(draw, count, generator)
                if not math.isfinite(losses[-1]):
                    break
                if settle and len(losses) >= 2 * _LOOK:
                    now, before_that = sum(losses[-_LOOK:]), sum(losses[-2 * _LOOK : -_LOOK])
                    if now > (1 - _FLAT) * before_that:
                        break
        diverged = bool(losses) and self._has_diverged(losses[-1], looked_at)
        if diverged:
            self.predictor.load_state_dict(before[0])
            self.optimizer.load_state_dict(before[1])
            warn(
                f"the fit of the diffusion model diverged (loss {losses[-1]:.3g} in step "
                f"{len(losses)}) and was taken back; lower the sampler's learning_rate, or look at "
                "the embeddings for rows of extreme size"
            )
        pairs = len(losses) * self.batch_pairs
        return FitReport(tuple(losses), pairs, time.perf_counter() - started, diverged)

    def _steps(
        self,
        draw: Callable[[int], tuple[Tensor, Tensor]],
        count: int,
        generator: torch.Generator | None,
    ) -> list[float]:
        """The losses of some steps, the first that is not finite as the last one."""
        pairs = (h.view(count, -1, h.shape[1]) for h in draw(count * self.batch_pairs))
        made = []
        for query, neighbour in zip(*pairs):
            loss = diffusion_loss(
                self.predictor,
                self.schedule,
                neighbour.detach(),
                query.detach(),
                kind=self.loss,
                generator=generator,
            )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            made.append(loss.detach())
        losses: list[float] = torch.stack(made).cpu().tolist()  # once: no step waits for a device
        lost = next((at for at, loss in enumerate(losses) if not math.isfinite(loss)), count)
        return losses[: lost + 1]

    @torch.no_grad()
    def _has_diverged(self, loss: float, z: Tensor) -> bool:
        if not math.isfinite(loss):
            return True
        if not all(bool(p.isfinite().all()) for p in self.predictor.parameters()):
            return True
        if not isinstance(self.predictor, AffineNoisePredictor):
            return False
        z = z[:: max(1, z.shape[0] // _SAMPLE)]
        return not bool(self.stable(self.gaussians(z), z).all())

    def stable(self, made: LevelGaussians, z: Tensor) -> Tensor:
        """Whether the level Gaussians of queries ``z`` [B, W] can be computed with, bool [B].

        Each reverse step scales the states by ``a_t`` (`dgl_dmns.core.diffusion`). If a predictor
        makes ``|a_t|`` large, their product over the steps leaves all bounds.
        """
        bound = _LARGEST * z.abs().amax(dim=1).clamp(min=1.0)
        fine = torch.ones_like(bound, dtype=torch.bool)
        for level in (*made.mean, *made.std):
            fine &= level.abs().amax(dim=1) < bound  # NaN is not
        return fine

    def conditions(self, z_query: Tensor, z_candidate: Tensor, edges: KnownEdges) -> Tensor:
        """What the negatives of each query are conditioned on: its own embedding (DMNS, 4.2).

        From the embeddings of sources [Nq, W] and destinations [Nc, W] in the model's space to
        conditions [Nq, W], of which `gaussians` and `latents` take rows.
        """
        return z_query

    def gaussians(self, z: Tensor) -> LevelGaussians:
        """The level Gaussians of queries [B, W] given in the model's space.

        Raises:
            TypeError: if the predictor is not affine.
        """
        if not isinstance(self.predictor, AffineNoisePredictor):
            raise TypeError(
                "predictor: densities of real nodes need an AffineNoisePredictor, got "
                f"{type(self.predictor).__name__}; use rule=Nearest(), which only samples"
            )
        return level_gaussians(self.predictor, self.schedule, z, self.steps)

    def latent_draws(self, z: Tensor) -> Callable[[torch.Generator | None], Tensor]:
        """A function that draws latents of queries ``z`` [B, W] again and again, see `latents`.

        The closed form of an affine predictor is computed once; others run a chain a call.
        """
        if isinstance(self.predictor, AffineNoisePredictor):
            return self.gaussians(z).sample
        return lambda generator: sample_chain(
            self.predictor, self.schedule, z, self.steps, generator=generator
        )

    @torch.no_grad()
    def latents(self, z: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One latent negative per level and query ``z`` [B, W], in the model's space.

        Exact draws from the level Gaussians if the predictor is affine, else a sampling chain.

        Returns:
            Latents, shape [L, B, W], hardest level first.
        """
        return self.latent_draws(z)(generator)

    def generate(self, h: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Latent negatives of query embeddings [B, D] in their own space (DMNS, algorithm 1).

        Returns:
            Latent negatives, shape [L, B, D], hardest level first, without gradient.
        """
        return self.space.decode(self.latents(self.space.encode(h), generator=generator))

    def get_extra_state(self) -> dict[str, Any]:
        """The optimizer's state, so that fitting resumes exactly, and the levels."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "levels": (self.levels.fractions, self.levels.shares),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the optimizer's state, as a copy: torch would go on in the tensors handed in.

        Raises:
            ValueError: for a state of other levels.
        """
        fractions, shares = state["levels"]
        if (tuple(fractions), tuple(shares)) != (self.levels.fractions, self.levels.shares):
            raise ValueError(f"levels {fractions} of shares {shares}, not {self.levels}")
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


def sample_pairs(
    edges: KnownEdges, count: int, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw (query, neighbour) pairs: a uniform query, then a uniform neighbour of it.

    Returns:
        Query ids and neighbour ids, each of shape [count], int64.

    Raises:
        ValueError: if there is no edge to draw from.
    """
    if not edges.indices.numel():
        raise ValueError("edges: expected at least one edge to learn neighbours from, got none")
    device = edges.indices.device
    if edges.exclude_self:
        query = torch.randint(0, edges.num_src, (count,), generator=generator, device=device)
    else:
        linked = edges.degrees().nonzero().squeeze(1)
        pick = torch.randint(0, linked.numel(), (count,), generator=generator, device=device)
        query = linked[pick]
    return query, sample_neighbours(edges, query, generator=generator)


def sample_neighbours(
    edges: KnownEdges, query: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """A uniform neighbour of each query [P], int64; a query without neighbours is its own.

    That is the paper's choice, where both ends have one type. There has to be at least one edge.
    """
    degree = edges.indptr[query + 1] - edges.indptr[query]  # of these alone, not of all nodes
    # float64: exact for degrees up to 2^53, where float32 would never reach the end of a long row.
    u = torch.rand(query.shape, generator=generator, device=query.device, dtype=torch.float64)
    offset = torch.minimum((u * degree).long(), (degree - 1).clamp(min=0))
    position = (edges.indptr[query] + offset).clamp(max=edges.indices.numel() - 1)
    return torch.where(degree > 0, edges.indices[position].long(), edges.itself(query))
