"""What a cell is made of: training settings and the source of its negatives, as frozen values.

Anything that changes a result stands here, so that the hash of a `Cell` changes with it; folders,
jobs and threads do not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Union

__all__ = [
    "Adversarial",
    "Cell",
    "Diffusion",
    "Dynamic",
    "FixedUniform",
    "InBatch",
    "Latent",
    "MarkovChain",
    "Method",
    "Popularity",
    "RealNodes",
    "Row",
    "SelfAdversarial",
    "Training",
    "Uniform",
]

RESULT_VERSION = 4  # raise it when a change of the code changes results
PAPER_FRACTIONS = (1 / 10, 1 / 8, 1 / 4, 1 / 2)


@dataclass(frozen=True)
class Training:
    """The encoder and its training (protocol A).

    Args:
        encoder: ``gcn``, ``gat`` or ``sage``, two layers each.
        hidden: width of both layers.
        activation: between the layers, ``relu`` or ``none``.
        features: ``binary`` (whether a word occurs), ``stored`` (as the data set comes: rows of
            Cora and Citeseer sum to one) or ``unit`` (rows of norm one).
        dropout: between the layers.
        learning_rate: of Adam.
        weight_decay: of Adam.
        epochs: at most this many, one step each.
        patience: epochs without a better validation MAP before training stops.
        loss: ``sigmoid`` (terms ``-sigmoid(s)``, as the authors' code) or ``logsigmoid`` (as the
            paper writes).
        scale: factor of the scores inside the loss.
    """

    encoder: Literal["gcn", "gat", "sage"] = "gcn"
    hidden: int = 32
    activation: Literal["relu", "none"] = "relu"
    features: Literal["binary", "stored", "unit"] = "binary"
    dropout: float = 0.1
    learning_rate: float = 0.01
    weight_decay: float = 1e-4
    epochs: int = 500
    patience: int = 50
    loss: Literal["sigmoid", "logsigmoid"] = "sigmoid"
    scale: float = 1.0


@dataclass(frozen=True)
class Diffusion:
    """The diffusion model and its fitting.

    Args:
        fractions: levels, as fractions of ``T``, hardest first.
        weights: loss weights of the levels.
        steps: ``T``.
        schedule: ``linear`` or ``cosine``.
        space: ``raw`` (the paper's) or ``compact``.
        compact_width: largest width of the compact space.
        conditional: whether the noise predictor sees the query.
        learning_rate: of the diffusion model's Adam.
        batch_pairs: (query, neighbour) pairs in a fitting step.
        fit_steps: fitting steps in a refresh.
        warmup_steps: fitting steps of the first refresh.
        refresh_every: epochs between refreshes.
    """

    fractions: tuple[float, ...] = PAPER_FRACTIONS
    weights: tuple[float, ...] | None = (1.0, 0.9, 0.8, 0.7)
    steps: int = 50
    schedule: Literal["linear", "cosine"] = "linear"
    space: Literal["raw", "compact"] = "raw"
    compact_width: int = 16
    conditional: bool = True
    learning_rate: float = 1e-2
    batch_pairs: int = 1024
    fit_steps: int = 20
    warmup_steps: int = 20
    refresh_every: int = 1


@dataclass(frozen=True)
class FixedUniform:
    """Uniform negatives drawn once before training: the paper's GCN row."""

    k: int = 1


@dataclass(frozen=True)
class Uniform:
    """Uniform negatives, redrawn every epoch."""

    k: int = 5


@dataclass(frozen=True)
class Popularity:
    """In proportion to a power of the degree (PNS)."""

    k: int = 5
    exponent: float = 0.75


@dataclass(frozen=True)
class InBatch:
    """Destinations of other edges."""

    k: int = 5


@dataclass(frozen=True)
class Dynamic:
    """The best-scored of a uniform pool (DNS)."""

    k: int = 5
    pool: int = 20
    groups: int = 8


@dataclass(frozen=True)
class SelfAdversarial:
    """Softmax of the current score over a uniform pool."""

    k: int = 5
    pool: int = 32
    temperature: float = 1.0
    groups: int = 8


@dataclass(frozen=True)
class MarkovChain:
    """Metropolis-Hastings with self-contrast (MCNS)."""

    k: int = 5
    alpha: float = 0.25
    steps: int = 10
    groups: int = 2


@dataclass(frozen=True)
class Adversarial:
    """A generator trained with REINFORCE over a candidate set (KBGAN)."""

    k: int = 5
    pool: int = 32
    learning_rate: float = 1e-2


@dataclass(frozen=True)
class Latent:
    """DMNS with latent negatives, one per level, beside real uniform ones.

    Args:
        diffusion: the diffusion model.
        uniform: real uniform negatives, of weight 1.
        copies: latents per level.
        source: ``reverse`` (the learned process), or ``forward`` (true neighbours, noised: an
            ablation).
        sampling: ``closed-form`` or ``chain``.
        unit_norm: whether latents are L2-normalised, as real embeddings are.
        curriculum: ``constant``; ``easy-first`` starts with the easiest level and lets a harder one
            in every ``stage`` epochs, ``hard-first`` the other way round. Slots of levels that
            wait are filled from the nearest level that is in, so that K stays the same.
        stage: epochs until the next level is let in.
        drop: which latents with Psi < 0 leave the loss: ``none``, or those with a negative Psi
            by ``distance`` or ``density`` (see `benchmarks.paper.latents`).
    """

    diffusion: Diffusion = field(default_factory=Diffusion)
    uniform: int = 1
    copies: int = 1
    source: Literal["reverse", "forward"] = "reverse"
    sampling: Literal["closed-form", "chain"] = "closed-form"
    unit_norm: bool = False
    curriculum: Literal["constant", "easy-first", "hard-first"] = "constant"
    stage: int = 10
    drop: Literal["none", "distance", "density"] = "none"

    @property
    def k(self) -> int:
        """Negatives per edge."""
        return self.copies * len(self.diffusion.fractions) + self.uniform


@dataclass(frozen=True)
class RealNodes:
    """DMNS with real nodes chosen by the diffusion model.

    Args:
        diffusion: the diffusion model.
        k: negatives per edge, levels and uniform share mixed.
        uniform_share: share of uniform negatives.
        rule: ``nearest``, ``density`` or ``gate``.
        score_scale: factor of the scores that the gate takes for logits.
        pool: uniform candidates searched for a negative; 0: all nodes (``nearest`` only).
        lam: exponent on the density.
        groups: groups of k candidates kept for a query.
    """

    diffusion: Diffusion = field(default_factory=Diffusion)
    k: int = 5
    uniform_share: float = 0.2
    rule: Literal["nearest", "density", "gate"] = "nearest"
    score_scale: float = 1.0
    pool: int = 0
    lam: float = 1.0
    groups: int = 2


Method = Union[
    FixedUniform,
    Uniform,
    Popularity,
    InBatch,
    Dynamic,
    SelfAdversarial,
    MarkovChain,
    Adversarial,
    Latent,
    RealNodes,
]


@dataclass(frozen=True)
class Row:
    """One line of a table: a name, a method, and how its encoder is trained."""

    name: str
    method: Method
    training: Training = field(default_factory=Training)


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        dataset: name of the data set.
        row: the line of the table.
        seed: of initial weights and negatives; of the split too where it is our own.
        official: whether the published split is used.
        version: of the results.
    """

    dataset: str
    row: Row
    seed: int
    official: bool = False
    version: int = RESULT_VERSION

    def __str__(self) -> str:
        return f"{self.dataset}, {self.row.name}, seed {self.seed}"
