r"""Selection rules: which members of a uniform pool become negatives of a query.

Notation (B queries, M pool members): query ``v``, candidate ``u``, score ``s(v, u)`` (a logit), and
**log ratio** ``w(u|v) = log q(u|v) - log uniform(u)`` of the diffusion model's distribution ``q``
over real nodes to the uniform one, estimated over the pool. A rule turns ``s`` and ``w`` into the
parts of a mixture, each with its share and its pool weights, in logs; candidates are then drawn
without replacement in proportion to the mixture's weights. Plain uniform negatives are no part of a
rule: they are drawn in the call (`dgl_dmns.samplers`).

- `Density`: weight ``e^w``, plain draws from the diffusion model.
- `Gate`: weight ``(e^s + 1) / (e^(s - w) + 1)``. Under an unchanged BCE loss, a candidate drawn
  with this weight pushes exactly as hard as one drawn from ``q`` under a loss that subtracts ``w``
  from the negative's logit: it has to be hard for the scorer *and* likely for the model.
- `Blend`: a share of the draws by the scorer's softmax, the others through the gate. Nodes that are
  hard for the scorer, but that the model does not propose, are negatives too.
- `SelfAdversarial`: weight ``e^(s / temperature)``, the scorer's own softmax.
- `Hardest`: the best-scored members of the pool (dynamic negative sampling, DNS).
- `Nearest`: the nearest node to a latent drawn from the level Gaussian.

A rule of your own derives from `Rule`. The log ratio of any pair follows from its `Rule.parts` in
closed form, see `dgl_dmns.core.distribution`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dgl_dmns.checks import as_integer, as_number, check_object
from dgl_dmns.core.sharpness import measured_sharpness
from dgl_dmns.core.snapshot import Snapshot

__all__ = [
    "Blend",
    "Density",
    "Gate",
    "Hardest",
    "Nearest",
    "Part",
    "Rule",
    "SelfAdversarial",
    "check_rule",
    "check_tractable",
]


class Part(NamedTuple):
    """A part of the mixture that a rule draws from.

    Attributes:
        share: of all draws; the shares of a rule's parts sum to 1.
        logits: weights of pool members in logs, up to a constant of the query.
        levelled: whether its draws come from the diffusion model, so from one of its levels.
    """

    share: float
    logits: Tensor
    levelled: bool


class Rule:
    """A selection rule: says how candidates are weighed. Subclasses override what differs.

    Attributes:
        uses_generator: whether it needs the log ratios of a diffusion model.
        uses_scores: whether it needs scores.
        tractable: whether draws have a known probability, for calibrated losses.
        takes_largest: whether the members of largest weight are taken, in place of random draws.
    """

    uses_generator: ClassVar[bool] = False
    uses_scores: ClassVar[bool] = True
    tractable: ClassVar[bool] = True
    takes_largest: ClassVar[bool] = False

    def parts(self, score: Tensor | None, log_ratio: Tensor | None) -> list[Part]:
        """The parts of the mixture.

        Args:
            score: scores of pairs, shape [C, Q, M] for C pools of M that Q queries each share, -inf
                for known edges; or of any other shape [..]. None if the rule uses none.
            log_ratio: log ratios of the diffusion model, likewise.

        Returns:
            One part or more, with logits of that shape.
        """
        raise NotImplementedError

    def nearest_among(self, nodes: int) -> int | None:
        """How many of all nodes are searched for the nearest ones to drawn latents.

        Defaults to None: nothing is searched, and candidates are drawn by the weights of `parts`.
        """
        return None

    def measured(
        self, snapshot: Snapshot, *, refreshes: int = 0, generator: torch.Generator | None = None
    ) -> Rule:
        """The rule for one refresh, with what it has measured; defaults to the rule itself.

        Args:
            snapshot: embeddings, scorer and known edges of the refresh.
            refreshes: how many there were before.
            generator: source of randomness.
        """
        return self

    def measures(self) -> dict[str, float]:
        """What `measured` has measured, for a state; defaults to nothing."""
        return {}

    def with_measures(self, measures: Mapping[str, Any]) -> Rule:
        """The rule with what `measures` gave.

        Raises:
            ValueError: for values that cannot have been measured.
        """
        return self


class _Softmax(Rule):
    """A rule with a softmax of scores, whose sharpness each refresh can measure."""

    edge_ratio: float | None
    sharpness: float = 1.0  # factor on the scores

    def measured(
        self, snapshot: Snapshot, *, refreshes: int = 0, generator: torch.Generator | None = None
    ) -> Rule:
        if self.edge_ratio is None:
            return self
        factor = measured_sharpness(
            snapshot, self.edge_ratio, refreshes=refreshes, generator=generator
        )
        return self.with_measures({"sharpness": factor})

    def measures(self) -> dict[str, float]:
        return {"sharpness": self.sharpness}

    def with_measures(self, measures: Mapping[str, Any]) -> Rule:
        factor = measures.get("sharpness", 1.0)
        if not (isinstance(factor, float) and 1.0 <= factor < math.inf):
            raise ValueError(f"state: expected a sharpness of at least 1, got {factor!r}")
        made = copy.copy(self)
        object.__setattr__(made, "sharpness", factor)
        return made

    def _check_edge_ratio(self) -> None:
        ratio = self.edge_ratio
        if ratio is not None and not 1.0 < as_number("edge_ratio", ratio) < math.inf:
            raise ValueError(
                f"edge_ratio: expected more than 1, got {ratio}; None leaves the scores as they are"
            )


@dataclass(frozen=True)
class Density(Rule):
    """Draw in proportion to the diffusion model's mixture of levels, ``q(u|v)``."""

    uses_generator = True
    uses_scores = False

    def parts(self, score: Tensor | None, log_ratio: Tensor | None) -> list[Part]:  # noqa: D102
        assert log_ratio is not None
        return [Part(1.0, log_ratio, levelled=True)]


@dataclass(frozen=True)
class Gate(Rule):
    """Draw in proportion to ``(e^s + 1) / (e^(s - w) + 1)``: hard and likely at once."""

    uses_generator = True

    def parts(self, score: Tensor | None, log_ratio: Tensor | None) -> list[Part]:  # noqa: D102
        assert score is not None
        assert log_ratio is not None
        return [Part(1.0, softplus(score) - softplus(score - log_ratio), levelled=True)]


@dataclass(frozen=True)
class Blend(_Softmax):
    """Draw by the scorer's softmax with probability ``score_share``, else through the `Gate`.

    The diffusion model finds negatives by the neighbourhoods that it has learned, the softmax by
    the score alone; each misses some that the other finds.

    Args:
        score_share: share of draws by the score, strictly between 0 and 1; `Gate` and
            `SelfAdversarial` are the rules of the ends.
        edge_ratio: how many times as often as a uniform node the softmax would draw a known edge,
            on average, more than 1: each refresh measures a factor on the scores for it, see
            `dgl_dmns.core.sharpness`. None: scores as they are.

    Raises:
        ValueError: if a value is out of range.
    """

    score_share: float = 0.8
    edge_ratio: float | None = None

    uses_generator = True

    def __post_init__(self) -> None:
        if not 0.0 < as_number("score_share", self.score_share) < 1.0:
            raise ValueError(
                f"score_share: expected a share between 0 and 1, got {self.score_share}; use "
                "Gate() for 0 and SelfAdversarial() for 1"
            )
        self._check_edge_ratio()

    def parts(self, score: Tensor | None, log_ratio: Tensor | None) -> list[Part]:  # noqa: D102
        assert score is not None
        (gate,) = Gate().parts(score, log_ratio)
        return [
            gate._replace(share=1 - self.score_share),
            Part(self.score_share, score * self.sharpness, levelled=False),
        ]


@dataclass(frozen=True)
class SelfAdversarial(_Softmax):
    """Draw in proportion to ``e^(s / temperature)`` (self-adversarial sampling).

    Source: Sun et al., RotatE, ICLR 2019, equation 5, as a sampling distribution.

    Args:
        temperature: positive; larger is nearer to uniform.
        edge_ratio: as for `Blend`, in place of a temperature.

    Raises:
        ValueError: if a value is out of range.
    """

    temperature: float = 1.0
    edge_ratio: float | None = None

    def __post_init__(self) -> None:
        if not as_number("temperature", self.temperature) > 0:
            raise ValueError(f"temperature: expected a positive number, got {self.temperature}")
        self._check_edge_ratio()
        if self.edge_ratio is not None and self.temperature != 1.0:
            raise ValueError(
                f"temperature: edge_ratio takes its place, got {self.temperature} beside it; give "
                "one of the two"
            )

    def parts(self, score: Tensor | None, log_ratio: Tensor | None) -> list[Part]:  # noqa: D102
        assert score is not None
        return [Part(1.0, score * (self.sharpness / self.temperature), levelled=False)]


@dataclass(frozen=True)
class Hardest(Rule):
    """The k best-scored members of the pool (Zhang et al., DNS, SIGIR 2013)."""

    tractable = False
    takes_largest = True

    def parts(self, score: Tensor | None, log_ratio: Tensor | None) -> list[Part]:  # noqa: D102
        assert score is not None
        return [Part(1.0, score, levelled=False)]


@dataclass(frozen=True)
class Nearest(Rule):
    """The nearest real node (cosine, in the diffusion model's space) to a drawn latent.

    Args:
        pool: number of uniform candidates searched. None (default) searches all N nodes, which
            costs N per negative and suits graphs of up to some ten thousand nodes.

    Raises:
        ValueError: if ``pool`` is below 1.
    """

    pool: int | None = None

    uses_generator = True
    uses_scores = False
    tractable = False

    def __post_init__(self) -> None:
        if self.pool is not None:
            object.__setattr__(self, "pool", as_integer("pool", self.pool, 1, "candidates"))

    def nearest_among(self, nodes: int) -> int:  # noqa: D102
        return nodes if self.pool is None else self.pool


def check_rule(rule: object) -> None:
    """Refuse a class, a name or anything else that does not derive from `Rule`.

    Raises:
        TypeError: if it is no rule.
    """
    check_object("rule", rule, Rule, "Gate()")


def check_tractable(rule: Rule) -> None:
    """Refuse a rule whose draws have no known probability.

    Raises:
        ValueError: if it is such a rule; it names others.
    """
    if not rule.tractable:
        raise ValueError(
            f"rule: {type(rule).__name__} has no tractable distribution; use Density(), Gate(), "
            "Blend() or SelfAdversarial()"
        )
