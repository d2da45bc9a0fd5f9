"""What a cell is made of: the recipe of training and the source of negatives, as frozen values.

Anything that changes a result stands here, so that the hash of a `Cell` changes with it; folders,
jobs and threads do not. A field of a method that is None leaves the argument to the sampler's own
default, so that a row called "default" is what its constructor does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Optional, Union, get_args, get_origin, get_type_hints

__all__ = [
    "DMNS",
    "Cell",
    "Dynamic",
    "InBatch",
    "MarkovChain",
    "Method",
    "Popularity",
    "Recipe",
    "Row",
    "SelfAdversarial",
    "Shared",
    "Uniform",
    "with_settings",
]

Calibration = Literal["no", "negatives", "both"]

RESULT_VERSION = 4  # raise it when a change of the code changes results


@dataclass(frozen=True)
class Recipe:
    """The encoder, its training and its data (protocol B).

    Args:
        encoder: ``sage`` (mean), ``gcn`` or ``gat`` (one head).
        layers: convolutions.
        hidden: width of each.
        scorer: ``dot``, or ``mlp`` (two layers on the product of both ends).
        loss: ``bce`` (the mean of positives and negatives, each averaged by itself),
            ``bce-pooled`` (all logits in one mean, as in DGL's examples), ``cross-entropy`` or
            ``bpr``.
        full_softmax: whether cross-entropy adds log(N / K) to each negative's logit, so that the
            K negatives stand for all N nodes.
        k: negatives per edge, of every row that does not name its own number.
        batch_size: positives in a batch.
        fanout: neighbours drawn per node and layer; None for all.
        dropout: between the layers.
        temperature: embeddings have norm one and inner products are divided by this positive
            number; None: embeddings as they are.
        learning_rate: of Adam.
        weight_decay: of Adam.
        features: ``pca-unit`` (principal directions ``u * s``, then rows of norm one; the stored
            ones where there are no more columns than ``width``), ``pca`` (``u * s``),
            ``pca-scaled`` (those over one number, so that the mean squared norm is one),
            ``pca-white`` (each direction of variance one), or ``stored``.
        width: principal directions kept.
        epochs: at most this many.
        patience: epochs without a better validation MRR before training stops.
        val: share of the pairs for validation.
        test: share of the pairs for test.
        refresh_every: epochs between refreshes of the samplers that follow the encoder.
        refresh_share: share of the nodes, drawn anew each time, whose rows such a refresh rebuilds.
        observe: whether refreshes read the embeddings that the batches have computed, instead of
            calling the encoder.
        heart: negatives of HeaRT (protocol C) that each test edge is ranked among besides, an even
            number; 0 for none. Training and its early stopping do not see them.

    Raises:
        ValueError: for ``full_softmax`` with another loss than cross-entropy, an odd or negative
            ``heart``, a temperature or a share of rows out of range, a word that is none of a
            field's choices, or a number below 1 where at least 1 is needed.
    """

    encoder: Literal["sage", "gcn", "gat"] = "sage"
    layers: int = 2
    hidden: int = 64
    scorer: Literal["dot", "mlp"] = "dot"
    loss: Literal["bce", "bce-pooled", "cross-entropy", "bpr"] = "bce"
    full_softmax: bool = False
    k: int = 5
    batch_size: int = 2048
    fanout: Optional[int] = None  # noqa: UP007 - read at run time, in Python 3.9 too
    dropout: float = 0.0
    temperature: Optional[float] = None  # noqa: UP007
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    features: Literal["pca-unit", "pca", "pca-scaled", "pca-white", "stored"] = "pca-unit"
    width: int = 256
    epochs: int = 500
    patience: int = 30
    val: float = 0.05
    test: float = 0.1
    refresh_every: int = 1
    refresh_share: float = 1.0
    observe: bool = False
    heart: int = 0

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise ValueError(f"{name}: expected {_words(kind)}, got {value!r}")
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


@dataclass(frozen=True)
class Uniform:
    """DGL's own uniform negatives; ``k`` where it differs from the recipe's."""

    k: int | None = None


@dataclass(frozen=True)
class Popularity:
    """In proportion to a power of the degree (PNS)."""

    exponent: float | None = None


@dataclass(frozen=True)
class InBatch:
    """Destinations of the batch's other edges."""


@dataclass(frozen=True)
class Dynamic:
    """The best-scored of a uniform pool (DNS)."""

    pool: int | None = None
    groups: int | None = None


@dataclass(frozen=True)
class SelfAdversarial:
    """Softmax of the current score over a uniform pool; ``calibrated`` as for `DMNS`."""

    temperature: float | None = None
    edge_ratio: float | None = None
    pool: int | None = None
    groups: int | None = None
    calibrated: Calibration = "no"


@dataclass(frozen=True)
class MarkovChain:
    """Metropolis-Hastings with self-contrast (MCNS)."""

    alpha: float | None = None
    steps: int | None = None


@dataclass(frozen=True)
class DMNS:
    """Real nodes chosen by the diffusion model.

    Args:
        rule: ``blend``, ``gate``, ``density`` or ``nearest``.
        calibrated: whose logits the loss subtracts the log ratio from: ``no``, ``negatives`` or
            ``both`` (positives too).
        score_share: of ``blend``; its default where None.
        edge_ratio: of ``blend``, which sharpens its scores by it where it is not None.
        source: ``diffusion``, or the centre of a `NoisedCentre` in its place.
        uniform_share, lam, effective_size, pool, groups, levels, fit_steps, warmup_steps,
            batch_pairs, learning_rate, space, compact_width: as in `dgl_dmns.DMNSSampler`.

    Raises:
        ValueError: if ``nearest`` is to be calibrated; it has no log ratio.
    """

    rule: Literal["blend", "gate", "density", "nearest"] = "blend"
    calibrated: Calibration = "no"
    score_share: float | None = None
    edge_ratio: float | None = None
    source: Literal["diffusion", "query", "mean", "neighbour"] = "diffusion"
    uniform_share: float | None = None
    lam: float | None = None
    effective_size: float | None = None
    pool: int | None = None
    groups: int | None = None
    levels: tuple[float, ...] | None = None
    fit_steps: int | None = None
    warmup_steps: int | None = None
    batch_pairs: int | None = None
    learning_rate: float | None = None
    space: Literal["compact", "raw"] | None = None
    compact_width: int | None = None

    def __post_init__(self) -> None:
        if self.calibrated != "no" and self.rule == "nearest":
            raise ValueError("calibrated: rule 'nearest' has no log ratio; use 'density' or 'gate'")


@dataclass(frozen=True)
class Shared:
    """Negatives that the batch shares, under their own loss, whatever the recipe's is.

    Args:
        source: ``uniform``, ``in-batch``, ``self-adversarial`` (half of them uniform) or ``dmns``,
            with ``negatives.loss`` of our samplers; or ``all``, every node of the graph in every
            batch: the full softmax.
        k: negatives per edge, where they differ from the recipe's.
        uniform_share: of ``dmns`` and ``self-adversarial``, where not their default or a half.
        queries: positives that share their negatives, in the order of the batch; the whole batch
            where None.

    Raises:
        ValueError: for fewer than one query, or parts of a batch with another source than uniform.
    """

    source: Literal["uniform", "in-batch", "self-adversarial", "dmns", "all"] = "uniform"
    k: int | None = None
    uniform_share: float | None = None
    queries: int | None = None

    def __post_init__(self) -> None:
        if self.queries is not None and (self.queries < 1 or self.source != "uniform"):
            raise ValueError(
                f"queries: expected at least 1, with source 'uniform', got {self.queries} with "
                f"{self.source!r}"
            )


Method = Union[Uniform, Popularity, InBatch, Dynamic, SelfAdversarial, MarkovChain, DMNS, Shared]


@dataclass(frozen=True)
class Row:
    """One line of a table: a title and a method."""

    title: str
    method: Method


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        dataset: name of the data set.
        recipe: how it is trained.
        row: the line of the table.
        seed: of the split, the initial weights, the batches and the negatives.
        version: of the results.
    """

    dataset: str
    recipe: Recipe
    row: Row
    seed: int
    version: int = RESULT_VERSION

    def __str__(self) -> str:
        return f"{self.dataset}, {self.row.title}, seed {self.seed}"


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """A recipe with fields changed by words such as ``dropout=0.2``, read as the fields' types.

    Args:
        recipe: the recipe to change.
        settings: ``field=value`` words; ``none`` is None where a field allows it.

    Raises:
        ValueError: for a word without "=", an unknown field, or a value that does not fit.
    """
    kinds = get_type_hints(Recipe)
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in kinds:
            raise ValueError(
                f"set: expected FIELD=VALUE with a field of {', '.join(f.name for f in _FIELDS)}; "
                f"got {setting!r}"
            )
        changes[name] = _read(name, text, kinds[name])
    return replace(recipe, **changes)


def _read(name: str, text: str, kind: Any) -> Any:
    """A word as a value of a field's type; `Recipe` checks the choices of words."""
    if get_origin(kind) is Union:
        if text.lower() == "none":
            return None
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name}: expected true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name}: expected {kind.__name__}, got {text!r}") from None


def _words(kind: Any) -> str:
    return " or ".join(repr(word) for word in get_args(kind))


_FIELDS = fields(Recipe)
