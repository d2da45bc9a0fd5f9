"""The recipe, as a frozen value, and the rows of the table."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.common.rows import Row
from dgl_dmns.core import Density

__all__ = ["ROWS", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A graph autoencoder as tuned by Ma et al. (arXiv 2411.03845), in a smaller size."""

    hidden: int = 64  # width D of the embeddings and of the decoder
    steps: int = 4  # of propagation
    decoder_layers: int = 4  # linear layers of the decoder
    dropout: float = 0.5  # after each propagation and in the decoder
    k: int = 3  # negatives per edge
    batch_size: int = 1024  # positives in a batch; their edges carry no messages in it
    learning_rate: float = 2e-3  # of AdamW
    weight_decay: float = 1e-2  # of AdamW
    clip: float = 1.0  # largest norm of the gradient
    epochs: int = 300  # at most this many
    patience: int = 30  # epochs without better validation Hits@100 before training stops
    val: float = 0.1  # share of the pairs for validation
    test: float = 0.1  # share of the pairs for test
    refresh_every: int = 1  # epochs between refreshes of the samplers that follow the encoder


# Densities ask for no scores; they are drawn by those of the generator alone.
_DENSITY = {"rule": Density(), "scorer": None}
_CALIBRATED = "DMNS, density, calibrated"

ROWS: dict[str, Row] = {
    "global": Row("both ends uniform (the recipe's own)", "dgl, both ends"),
    "per-source": Row("uniform, per source", "dgl"),
    "self-adversarial": Row("self-adversarial", "self-adversarial"),
    "dmns": Row("DMNS", "dmns"),
    "calibrated": Row("DMNS, calibrated", "dmns", loss="calibrated"),
    "density-calibrated": Row(_CALIBRATED, "dmns", _DENSITY, "calibrated"),
    "both-ends-calibrated": Row(
        f"{_CALIBRATED}, both ends drawn", "dmns", {**_DENSITY, "source": "uniform"}, "calibrated"
    ),
}
"""By command-line names; differences are taken to the first."""
