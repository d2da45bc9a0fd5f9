"""How encoders are trained, and the lines of the paper's table, as frozen values.

Every sampler that a DGL user could choose, and DMNS.  Rows named "(5)" use five negatives an edge;
the two with one stand beside them because the paper's own GCN row has one.  Settings are chosen on
validation edges, see `benchmarks.paper.tuning`; the defaults here hold where nothing was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from benchmarks.common.rows import Row
from dgl_dmns.core import Density, Levels, Nearest

__all__ = ["PAPER_FRACTIONS", "ROWS", "Latent", "Line", "Training"]

PAPER_FRACTIONS = (1 / 10, 1 / 8, 1 / 4, 1 / 2)
_PAPER_WEIGHTS = (1.0, 0.9, 0.8, 0.7)


@dataclass(frozen=True)
class Training:
    """The encoder and its training (protocol A)."""

    encoder: Literal["gcn", "gat", "sage"] = "gcn"  # ``gcn``, ``gat`` or ``sage``, two layers each
    hidden: int = 32  # width of both layers
    activation: Literal["relu", "none"] = "relu"  # between the layers, ``relu`` or ``none``
    # ``binary`` (whether a word occurs), ``stored`` (as the data set comes: rows of Cora and
    # Citeseer sum to one) or ``unit`` (rows of norm one)
    features: Literal["binary", "stored", "unit"] = "binary"
    dropout: float = 0.1  # between the layers
    learning_rate: float = 0.01  # of Adam
    weight_decay: float = 1e-4  # of Adam
    epochs: int = 500  # at most this many, one step each
    patience: int = 50  # epochs without a better validation MAP before training stops
    # ``sigmoid`` (terms ``-sigmoid(s)``, as the authors' code) or ``logsigmoid`` (as the paper
    # writes)
    loss: Literal["sigmoid", "logsigmoid"] = "sigmoid"
    scale: float = 1.0  # factor of the scores inside the loss
    official: bool = False  # whether the published split is used


@dataclass(frozen=True)
class Latent:
    """DMNS with latent negatives, one per level, beside real uniform ones: the row's options."""

    fractions: tuple[float, ...] = PAPER_FRACTIONS  # levels, as fractions of ``T``, hardest first
    weights: tuple[float, ...] = _PAPER_WEIGHTS  # loss weights of the levels
    uniform: int = 1  # real uniform negatives, of weight 1
    copies: int = 1  # latents per level
    # ``reverse`` (the learned process), or ``forward`` (true neighbours, noised: an ablation)
    source: Literal["reverse", "forward"] = "reverse"
    sampling: Literal["closed-form", "chain"] = "closed-form"  # ``closed-form`` or ``chain``
    unit_norm: bool = False  # whether latents are L2-normalised, as real embeddings are
    # ``constant``; ``easy-first`` starts with the easiest level and lets a harder one in every
    # ``stage`` epochs, ``hard-first`` the other way round. Slots of levels that wait are filled
    # from the nearest level that is in, so that K stays the same.
    curriculum: Literal["constant", "easy-first", "hard-first"] = "constant"
    stage: int = 10  # epochs until the next level is let in
    # which latents with Psi < 0 leave the loss: ``none``, or those with a negative Psi by
    # ``distance`` or ``density`` (see `benchmarks.paper.latents`)
    drop: Literal["none", "distance", "density"] = "none"
    steps: int = 50  # ``T``
    schedule: Literal["linear", "cosine"] = "linear"  # ``linear`` or ``cosine``
    space: Literal["raw", "compact"] = "raw"  # ``raw`` (the paper's) or ``compact``
    compact_width: int = 16  # largest width of the compact space
    conditional: bool = True  # whether the noise predictor sees the query
    learning_rate: float = 3e-3  # of the diffusion model's Adam
    batch_pairs: int = 1024  # (query, neighbour) pairs in a fitting step
    fit_steps: int = 20  # fitting steps in a refresh
    warmup_steps: int = 20  # fitting steps of the first refresh
    refresh_every: int = 1  # epochs between refreshes

    @property
    def k(self) -> int:
        """Negatives per edge."""
        return self.copies * len(self.fractions) + self.uniform


class Line(NamedTuple):
    """A line of a table: its negatives, and how its encoder is trained."""

    row: Row
    training: Training

    def changed(self, title: str, training: dict[str, Any], options: dict[str, Any]) -> Line:
        """The line under another title, with other settings of its training and its negatives."""
        row = replace(self.row, title=title).with_options(**options)
        return Line(row, replace(self.training, **training))


_REAL_NODES = {
    "levels": Levels(PAPER_FRACTIONS, _PAPER_WEIGHTS),
    "uniform_share": 0.2,
    "fit_steps": 20,
    "warmup_steps": 20,
    "space": "raw",
}

ROWS: dict[str, Row] = {
    "fixed": Row("uniform, fixed (1)", "fixed", {"k": 1}),
    "uniform-1": Row("uniform, redrawn (1)", "uniform", {"k": 1}),
    "uniform-5": Row("uniform, redrawn (5)", "uniform"),
    "in-batch": Row("in-batch (5)", "in-batch"),
    "pns": Row("PNS (5)", "popularity", {"exponent": 0.75}),
    "dns": Row("DNS (5)", "dynamic", {"pool": 40, "groups": 8}),
    "mcns": Row("MCNS (5)", "mcns", {"alpha": 0.25, "steps": 10, "groups": 2}),
    "kbgan": Row("KBGAN (5)", "adversarial", {"pool": 32, "learning_rate": 1e-2}),
    "self-adversarial": Row(
        "self-adversarial (5)",
        "self-adversarial",
        {"pool": 32, "temperature": 1.0, "groups": 8},
    ),
    "dmns-latent": Row("DMNS, latent (5)", "latent"),
    "dmns-nearest": Row(
        "DMNS, nearest nodes (5)",
        "dmns",
        {**_REAL_NODES, "rule": Nearest(256), "pool": 256, "groups": 2},
    ),
    "dmns-density": Row(
        "DMNS, nodes by density (5)",
        "dmns",
        {**_REAL_NODES, "rule": Density(), "pool": 64, "groups": 4},
    ),
}
"""By command-line names; ``fixed`` and ``latent`` are sources of this benchmark alone."""
