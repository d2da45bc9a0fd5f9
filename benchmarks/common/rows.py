"""Rows of tables: a sampler by name, its options, and the loss that its negatives go into.

A frozen row is part of a cell, and so of the hash that a result is found by. `make_sampler` is the
one place that makes samplers. What a row leaves out is left to the sampler's own default, so that a
row called "default" is what the constructor does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dgl.dataloading import negative_sampler as dgl_negatives

from dgl_dmns.samplers import registry

__all__ = ["RESULT_VERSION", "Cell", "Loss", "Row", "make_sampler"]

RESULT_VERSION = 5  # raise it when a change of the code changes results

Loss = Literal[
    "plain", "negatives calibrated", "calibrated", "shared", "softmax", "bpr", "self-adversarial"
]

_DGL: dict[str, Callable[[int], Any]] = {
    "dgl": dgl_negatives.PerSourceUniform,
    "dgl, both ends": dgl_negatives.GlobalUniform,
}


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Raises:
        ValueError: for ``queries`` below 1, or with another loss than ``shared``.
    """

    title: str  # name of the line
    # ``dgl`` (uniform per source) or ``dgl, both ends`` (uniform pairs), a sampler of this package
    # (``uniform``, ``popularity``, ``in-batch``, ``dynamic``, ``mcns``, ``self-adversarial``,
    # ``adversarial``, ``dmns``), or one that a benchmark adds
    sampler: str
    # options of `dgl_dmns.samplers.registry` by name; ``k`` where the row has a number of its own
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    # ``plain``; ``negatives calibrated`` or ``calibrated``, which take the log ratio off the
    # negatives' logits, or off the positives' too; or ``shared``, the sampler's own loss. Models of
    # queries and items also have ``softmax`` (the sampler's own with ``share="edge"``), ``bpr`` and
    # ``self-adversarial``
    loss: Loss = "plain"
    # positives of a batch that share their negatives under ``shared``; the whole batch where None
    queries: int | None = None

    def __post_init__(self) -> None:
        if self.queries is not None and (self.queries < 1 or self.loss != "shared"):
            raise ValueError(
                f"queries: expected at least 1, with loss 'shared', got {self.queries} with "
                f"{self.loss!r}"
            )

    @property
    def follows(self) -> bool:
        """Whether the sampler follows the encoder, and so changes over the training."""
        return self.sampler in registry.SAMPLERS and registry.follows_encoder(self.sampler)

    def k(self, default: int) -> int:
        """Negatives per edge: the row's own number, or else the recipe's."""
        return int(self.options.get("k", default))

    def with_options(self, **options: Any) -> Row:
        """The row with further or other options."""
        return replace(self, options={**self.options, **options})


@dataclass(frozen=True)
class Cell:
    """One run."""

    dataset: str  # name of the data set
    recipe: Any  # how the model is trained, a frozen dataclass
    row: Row  # the line of the table
    seed: int  # of the split, the initial weights, the batches and the negatives
    version: int = RESULT_VERSION  # of the results

    def __str__(self) -> str:
        return f"{self.dataset}, {self.row.title}, seed {self.seed}"


def make_sampler(
    row: Row,
    k: int,
    graph: Any,
    encoder: Callable[[], Any],
    seed: int,
    *,
    scorer: Callable[..., Any] | None = None,
    own: Mapping[str, Callable[..., Any]] | None = None,
) -> Any:
    """The sampler of a row.

    Args:
        row: what to make.
        k: negatives per edge, where the row has no number of its own.
        graph: the training graph without self loops.
        encoder: returns the embeddings of all nodes, float32 [N, D].
        seed: of the samplers that follow the encoder; the others draw from torch's global stream.
        scorer: scores of broadcastable embeddings; defaults to the inner product. MCNS takes none:
            its target is defined by inner products.
        own: samplers that a benchmark adds, called as those that follow the encoder.

    Raises:
        ValueError: for an unknown sampler.
    """
    options, name = dict(row.options), row.sampler
    k = options.pop("k", k)
    if name in _DGL:
        return _DGL[name](k)
    if own and name in own:
        return own[name](graph, encoder, k, seed=seed, **{"scorer": scorer, **options})
    if name not in registry.SAMPLERS:
        known = ", ".join([*_DGL, *registry.SAMPLERS, *(own or {})])
        raise ValueError(f"sampler: expected one of {known}, got {name!r}")
    if "scorer" in registry.default_options(name):
        options = {"scorer": scorer, **options}
    return registry.make_sampler(name, graph, encoder, k, seed=seed, **options)
