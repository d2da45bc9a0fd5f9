"""The recipe of training, as a frozen value that is part of a cell, and so of its hash."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional, get_args, get_origin, get_type_hints

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """The encoder, its training and its data (protocol B).

    Raises:
        ValueError: for ``full_softmax`` with another loss than cross-entropy, an odd or negative
            ``heart``, a temperature or a share of rows out of range, a word that is none of a
            field's choices, or a number below 1 where at least 1 is needed.
    """

    # ``sage`` (mean), ``gcn`` or ``gat`` (one head)
    encoder: Literal["sage", "gcn", "gat"] = "sage"
    layers: int = 2  # convolutions
    hidden: int = 64  # width of each
    # ``dot``, or ``mlp`` (two layers on the product of both ends)
    scorer: Literal["dot", "mlp"] = "dot"
    # ``bce`` (the mean of positives and negatives, each averaged by itself), ``bce-pooled`` (all
    # logits in one mean, as in DGL's examples), ``cross-entropy`` or ``bpr``
    loss: Literal["bce", "bce-pooled", "cross-entropy", "bpr"] = "bce"
    # whether cross-entropy adds log(N / K) to each negative's logit, so that the K negatives stand
    # for all N nodes
    full_softmax: bool = False
    k: int = 5  # negatives per edge, of every row that does not name its own number
    batch_size: int = 2048  # positives in a batch
    # neighbours drawn per node and layer; None for all
    fanout: Optional[int] = None  # noqa: UP007 - read at run time, in Python 3.9 too
    dropout: float = 0.0  # between the layers
    # embeddings have norm one and inner products are divided by this positive number; None:
    # embeddings as they are
    temperature: Optional[float] = None  # noqa: UP007
    learning_rate: float = 3e-3  # of Adam
    weight_decay: float = 0.0  # of Adam
    # ``pca-unit`` (principal directions ``u * s``, then rows of norm one; the stored ones where
    # there are no more columns than ``width``), ``pca`` (``u * s``), ``pca-scaled`` (those over one
    # number, so that the mean squared norm is one), ``pca-white`` (each direction of variance one),
    # or ``stored``
    features: Literal["pca-unit", "pca", "pca-scaled", "pca-white", "stored"] = "pca-unit"
    width: int = 256  # principal directions kept
    epochs: int = 500  # at most this many
    patience: int = 30  # epochs without a better validation MRR before training stops
    val: float = 0.05  # share of the pairs for validation
    test: float = 0.1  # share of the pairs for test
    refresh_every: int = 1  # epochs between refreshes of the samplers that follow the encoder
    # share of the nodes, drawn anew each time, whose rows such a refresh rebuilds
    refresh_share: float = 1.0
    # whether refreshes read the embeddings that the batches have computed, instead of calling the
    # encoder
    observe: bool = False
    # negatives of HeaRT (protocol C) that each test edge is ranked among besides, an even number; 0
    # for none. Training and its early stopping do not see them.
    heart: int = 0

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal and value not in get_args(kind):
                words = " or ".join(map(repr, get_args(kind)))
                raise ValueError(f"{name}: expected {words}, got {value!r}")
            counts = kind in (int, Optional[int]) and name != "heart"
            if counts and value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {self.temperature}")
        if not 0 < self.refresh_share <= 1:
            raise ValueError(f"refresh_share: expected a share in (0, 1], got {self.refresh_share}")
        if self.heart < 0 or self.heart % 2:
            raise ValueError(f"heart: expected an even number, got {self.heart}")
        if self.full_softmax and self.loss != "cross-entropy":
            raise ValueError(
                f"full_softmax: goes with loss 'cross-entropy' only, got {self.loss!r}"
            )
