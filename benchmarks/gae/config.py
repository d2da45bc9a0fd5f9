"""What a cell is made of: the recipe and the source of negatives, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ROWS", "Cell", "Negatives", "Recipe"]

RESULT_VERSION = 3  # raise it when a change of the code changes results


@dataclass(frozen=True)
class Recipe:
    """A graph autoencoder as tuned by Ma et al. (arXiv 2411.03845), in a smaller size.

    Args:
        hidden: width D of the embeddings and of the decoder.
        steps: of propagation.
        decoder_layers: linear layers of the decoder.
        dropout: after each propagation and in the decoder.
        k: negatives per edge.
        batch_size: positives in a batch; their edges carry no messages in it.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        epochs: at most this many.
        patience: epochs without better validation Hits@100 before training stops.
        val: share of the pairs for validation.
        test: share of the pairs for test.
        refresh_every: epochs between refreshes of the samplers that follow the encoder.
    """

    hidden: int = 64
    steps: int = 4
    decoder_layers: int = 4
    dropout: float = 0.5
    k: int = 3
    batch_size: int = 1024
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    clip: float = 1.0
    epochs: int = 300
    patience: int = 30
    val: float = 0.1
    test: float = 0.1
    refresh_every: int = 1


@dataclass(frozen=True)
class Negatives:
    """Where negatives come from.

    Args:
        kind: ``global`` (both ends uniform: the recipe's own sampler), ``per-source`` (uniform
            negatives of each edge's source), ``self-adversarial`` or ``dmns``.
        rule: of DMNS: ``blend`` (its default; scores are the decoder's) or ``density``.
        calibrated: whether log ratios of both sides are taken off the logits.
        both_ends: whether the sources of DMNS's negatives are uniform too.
    """

    kind: Literal["global", "per-source", "self-adversarial", "dmns"]
    rule: Literal["blend", "density"] = "blend"
    calibrated: bool = False
    both_ends: bool = False


ROWS: dict[str, tuple[str, Negatives]] = {
    "global": ("both ends uniform (the recipe's own)", Negatives("global")),
    "per-source": ("uniform, per source", Negatives("per-source")),
    "self-adversarial": ("self-adversarial", Negatives("self-adversarial")),
    "dmns": ("DMNS", Negatives("dmns")),
    "calibrated": ("DMNS, calibrated", Negatives("dmns", calibrated=True)),
    "density-calibrated": (
        "DMNS, density, calibrated",
        Negatives("dmns", rule="density", calibrated=True),
    ),
    "both-ends-calibrated": (
        "DMNS, density, calibrated, both ends drawn",
        Negatives("dmns", rule="density", calibrated=True, both_ends=True),
    ),
}
"""Titles and sources of negatives by command-line names; differences are taken to the first."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        dataset: name of the data set.
        recipe: how it is trained.
        title: of the row.
        negatives: of the row.
        seed: of the split, the initial weights, the batches and the negatives.
        version: of the results.
    """

    dataset: str
    recipe: Recipe
    title: str
    negatives: Negatives
    seed: int
    version: int = RESULT_VERSION

    def __str__(self) -> str:
        return f"{self.dataset}, {self.title}, seed {self.seed}"
