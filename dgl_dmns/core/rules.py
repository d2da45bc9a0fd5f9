r"""Selection rules: which members of a uniform pool become negatives of a query.

Notation (B queries, M pool members): query ``v``, candidate ``u``, score ``s(v, u)`` (a logit), and
**log ratio** ``w(u|v) = log q(u|v) - log uniform(u)`` of the generator's distribution ``q`` over
real nodes to the uniform one, estimated over the pool. A rule turns ``s`` and ``w`` into the parts
of a mixture, each with its share and its pool weights, in logs; candidates are then drawn without
replacement in proportion to the mixture's weights. Plain uniform negatives are no part of a rule:
they are drawn in the call (`dgl_dmns.samplers`).

- `Density`: weight ``e^w``, plain draws from the generator.
- `Gate`: weight ``(e^s + 1) / (e^(s - w) + 1)``. Under an unchanged BCE loss, a candidate drawn
  with this weight pushes exactly as hard as one drawn from ``q`` under a loss that subtracts ``w``
  from the negative's logit: it has to be hard for the scorer *and* likely for the generator.
- `Blend`: a share of the draws by the scorer's softmax, the others through the gate. Nodes that are
  hard for the scorer, but that the generator does not propose, are negatives too.
- `Nearest`: the nearest node to a latent drawn from the level Gaussian.
- `SelfAdversarial`: weight ``e^(s / temperature)``, the scorer's own softmax, no generator.
- `Hardest`: the best-scored members of the pool (dynamic negative sampling, DNS), no generator.

How sharp a softmax of scores is depends on their size. `Blend` and `SelfAdversarial` can have it
measured at each refresh (``edge_ratio``): scores are then multiplied by a **sharpness** of at least
1, see `dgl_dmns.core.sharpness`.

`Density`, `Gate`, `Blend` and `SelfAdversarial` have a tractable distribution: the log ratio of any
pair follows in closed form (`dgl_dmns.core.distribution`). `Nearest` and `Hardest` have none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Union

from torch import Tensor
from torch.nn.functional import softplus

from dgl_dmns.checks import as_integer, as_number, check_object

__all__ = [
    "Blend",
    "Density",
    "Gate",
    "Hardest",
    "Nearest",
    "Part",
    "PoolRule",
    "Rule",
    "SelfAdversarial",
    "check_rule",
]


class Part(NamedTuple):
    """A part of the mixture that a rule draws from.

    Attributes:
        share: of all draws; the shares of a rule's parts sum to 1.
        logits: weights of pool members in logs, up to a constant of the query.
        levelled: whether its draws come from the generator, so from one of the hardness levels.
    """

    share: float
    logits: Tensor
    levelled: bool


@dataclass(frozen=True)
class Density:
    """Draw in proportion to the generator's mixture, ``q(u|v)``."""

    uses_generator = True
    uses_scores = False
    tractable = True
    edge_ratio: ClassVar[float | None] = None

    def parts(
        self, score: Tensor | None, log_ratio: Tensor | None, sharpness: float = 1.0
    ) -> list[Part]:
        """One part, whose weights are the generator's."""
        assert log_ratio is not None
        return [Part(1.0, log_ratio, levelled=True)]


@dataclass(frozen=True)
class Gate:
    """Draw in proportion to ``(e^s + 1) / (e^(s - w) + 1)``: hard and likely at once."""

    uses_generator = True
    uses_scores = True
    tractable = True
    edge_ratio: ClassVar[float | None] = None

    def parts(
        self, score: Tensor | None, log_ratio: Tensor | None, sharpness: float = 1.0
    ) -> list[Part]:
        """One part, of weights ``softplus(s) - softplus(s - w)`` in logs."""
        assert score is not None
        assert log_ratio is not None
        return [Part(1.0, softplus(score) - softplus(score - log_ratio), levelled=True)]


@dataclass(frozen=True)
class Blend:
    """Draw by the scorer's softmax with probability ``score_share``, else through the `Gate`.

    The generator finds negatives by the neighbourhoods that it has learned, the softmax by the
    score alone; each misses some that the other finds.

    Args:
        score_share: share of draws by the score, strictly between 0 and 1; `Gate` and
            `SelfAdversarial` are the rules of the ends.
        edge_ratio: how many times as often as a uniform node the softmax would draw a known edge,
            on average: scores are sharpened as far as that takes, and where they cannot tell edges,
            as far as their spread allows; more than 1. None: scores as they are.

    Raises:
        ValueError: if a value is out of range.
    """

    score_share: float = 0.8
    edge_ratio: float | None = None

    uses_generator = True
    uses_scores = True
    tractable = True

    def __post_init__(self) -> None:
        if not 0.0 < as_number("score_share", self.score_share) < 1.0:
            raise ValueError(
                f"score_share: expected a share between 0 and 1, got {self.score_share}; use "
                "Gate() for 0 and SelfAdversarial() for 1"
            )
        _check_edge_ratio(self.edge_ratio)

    def parts(
        self, score: Tensor | None, log_ratio: Tensor | None, sharpness: float = 1.0
    ) -> list[Part]:
        """Two parts: the gate's, and the softmax of the scores."""
        assert score is not None
        (gate,) = Gate().parts(score, log_ratio)
        return [
            gate._replace(share=1 - self.score_share),
            Part(self.score_share, score * sharpness, levelled=False),
        ]


@dataclass(frozen=True)
class Nearest:
    """The nearest real node (cosine, in the generator's space) to a drawn latent.

    With the default ``pool`` of None all nodes are searched, which costs N per negative and suits
    graphs of up to some ten thousand nodes; a number searches that many uniform nodes instead.

    Args:
        pool: number of candidates searched, or None for all nodes.

    Raises:
        ValueError: if ``pool`` is below 1.
    """

    pool: int | None = None

    uses_generator = True
    uses_scores = False
    tractable = False
    edge_ratio: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        if self.pool is not None:
            object.__setattr__(self, "pool", as_integer("pool", self.pool, 1, "candidates"))


@dataclass(frozen=True)
class SelfAdversarial:
    """Draw in proportion to ``e^(s / temperature)`` (self-adversarial sampling).

    Source: Sun et al., RotatE, ICLR 2019, equation 5, as a sampling distribution.

    Args:
        temperature: positive; larger is nearer to uniform.
        edge_ratio: as for `Blend`, in the place of a temperature; None leaves that alone.

    Raises:
        ValueError: if a value is out of range.
    """

    temperature: float = 1.0
    edge_ratio: float | None = None

    uses_generator = False
    uses_scores = True
    tractable = True

    def __post_init__(self) -> None:
        if not as_number("temperature", self.temperature) > 0:
            raise ValueError(f"temperature: expected a positive number, got {self.temperature}")
        _check_edge_ratio(self.edge_ratio)
        if self.edge_ratio is not None and self.temperature != 1.0:
            raise ValueError(
                f"temperature: edge_ratio takes its place, got {self.temperature} beside it; give "
                "one of the two"
            )

    def parts(
        self, score: Tensor | None, log_ratio: Tensor | None, sharpness: float = 1.0
    ) -> list[Part]:
        """One part, whose weights in logs are the scaled scores."""
        assert score is not None
        return [Part(1.0, score * (sharpness / self.temperature), levelled=False)]


@dataclass(frozen=True)
class Hardest:
    """The k best-scored members of the pool (Zhang et al., DNS, SIGIR 2013)."""

    uses_generator = False
    uses_scores = True
    tractable = False
    edge_ratio: ClassVar[float | None] = None

    def parts(
        self, score: Tensor | None, log_ratio: Tensor | None, sharpness: float = 1.0
    ) -> list[Part]:
        """The scores themselves; the largest are taken without noise."""
        assert score is not None
        return [Part(1.0, score, levelled=False)]


def _check_edge_ratio(ratio: float | None) -> None:
    if ratio is not None and not 1.0 < as_number("edge_ratio", ratio) < math.inf:
        raise ValueError(
            f"edge_ratio: expected more than 1, got {ratio}; None leaves the scores as they are"
        )


PoolRule = Union[Density, Gate, Blend, SelfAdversarial, Hardest]
"""Rules that weigh the members of a pool."""

Rule = Union[PoolRule, Nearest]


def check_rule(rule: object) -> None:
    """Refuse a class or a name in place of a selection rule.

    Raises:
        TypeError: if it is no rule.
    """
    check_object("rule", rule, ("tractable", "uses_generator", "uses_scores"), "Gate()")
