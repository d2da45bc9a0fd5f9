"""What a refresh does for one edge type, as one object: fit, fill, copy and state.

A method is handed what it needs, so that it knows neither the relation that holds it nor the
sampler. A refresh works on a copy of it, which takes its place when all edge types are done.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dgl_dmns.core import (
    CandidateTable,
    DiffusionGenerator,
    FitReport,
    KnownEdges,
    NodeDistribution,
    PoolSettings,
    Portion,
    Rule,
    Scorer,
    Snapshot,
    TableReport,
    fill_table,
    generator_on,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from dgl_dmns.samplers.settings import Resources
    from dgl_dmns.samplers.trainers import Trainers

__all__ = ["Ends", "Method", "OnRows", "TableMethod", "check_width"]

OnRows = Callable[[int], object]
"""Is told how many rows of a table have been filled, now and then."""


class Ends(NamedTuple):
    """What a refresh has to do with, for one edge type."""

    known: KnownEdges
    table: CandidateTable  # whose hidden buffer is to be filled
    h_query: Tensor  # embeddings of sources, float32 [Nq, D]
    h_candidate: Any  # of destinations [Nc, D]; the same tensor where the ends have one type
    scorer: Scorer | None  # of broadcastable embeddings; None is the inner product
    random: torch.Generator
    trainers: Trainers | None = None  # where each has a share, and destinations are `FetchedRows`
    pairs: Tensor | None = None  # embeddings of known edges for a fit, likewise, float32 [2, P, D]
    part: Portion | None = None  # of the rows, where ranks share the table


class Method:
    """How the negatives of one edge type come about; subclasses fit and fill in their own ways.

    Attributes:
        model: the diffusion model, of the methods that have one.
        distribution: what the table was drawn from, where that is known in this process.
    """

    rebuilds_rows: ClassVar[bool] = True

    model: DiffusionGenerator | None = None
    distribution: NodeDistribution | None = None

    def copy(self) -> Self:
        """The same with what a refresh changes in place as copies."""
        return copy.copy(self)

    def prepared(self, ends: Ends) -> Ends:
        """The same with what a fit has to ask servers for, which a thread must not do."""
        return ends

    def fit(self, ends: Ends) -> FitReport | None:
        """Fit what is learned, if anything."""
        return None

    def fill(self, ends: Ends, nodes: Tensor | None, on_rows: OnRows) -> TableReport:
        """Fill the hidden buffer of the table, all rows or those of some nodes [B]."""
        raise NotImplementedError

    def on(self, known: KnownEdges) -> Self:
        """The same for a graph that has changed."""
        return copy.copy(self)

    def state(self, version: int) -> dict[str, Any]:
        """What has to be kept besides the table of a version, by reference."""
        return {}

    def made_from(self, ends: Ends) -> list[Any]:
        """What a table follows from, as far as it is no function: alike where ranks share one."""
        scorer = ends.scorer.state_dict() if isinstance(ends.scorer, nn.Module) else None
        own = [vars(vars(self)[name]) for name in ("rule", "settings") if name in vars(self)]
        drawn = [scorer, ends.random.get_state(), *own]
        return [self.state(ends.table.version), ends.h_query, ends.h_candidate, *drawn]

    def width_of(self, state: dict[str, Any]) -> int | None:
        """Width of the embeddings that a state was made for; None where it has none."""
        return None

    def restored(self, state: dict[str, Any], version: int) -> Self:
        """A method with what `state` of one like this gave; this one stays as it is."""
        return self.copy()

    def sent(self) -> Method | None:
        """What workers get: nothing where a look-up in the table is all they do."""
        return None


@dataclass(eq=False, repr=False)
class TableMethod(Method):
    """Rows drawn by a rule out of pools, and the distribution that they are drawn from.

    Attributes:
        norms: of the distribution, float32 [N, L + P]; None before a refresh.
        drawn_by: the rule with what it measured at the last refresh.
    """

    rule: Rule
    settings: PoolSettings
    resources: Resources
    seed: int  # of what is drawn to measure the distribution

    def __post_init__(self) -> None:
        self.norms: Tensor | None = None
        self.drawn_by = self.rule
        self._weights: dict[str, Tensor] | None = None  # of a module as scorer, from a state

    def snapshot(self, ends: Ends) -> Snapshot:
        """What the rule chooses from."""
        model = self.model if self.rule.uses_generator else None
        return Snapshot(ends.h_query, ends.h_candidate, ends.known, ends.scorer, model)

    def fill(  # noqa: D102
        self, ends: Ends, nodes: Tensor | None, on_rows: OnRows
    ) -> TableReport:
        snapshot = self.snapshot(ends)
        device = self.resources.place
        there, random = snapshot.on(device), generator_on(device, ends.random)
        self.drawn_by = self.rule.measured(there, refreshes=ends.table.version, generator=random)
        report, self.norms = fill_table(
            ends.table,
            self.drawn_by,
            self.settings,
            there,
            nodes=nodes,
            chunk_bytes=self.resources.chunk_bytes,
            on_rows=on_rows,
            generator=ends.random,
            part=ends.part,
        )
        self._weights = None
        # What is encoded is kept only once a log ratio asks for it.
        self.distribution = self._drawn_from(replace(snapshot))
        return report

    def _drawn_from(self, snapshot: Snapshot) -> NodeDistribution | None:
        if not self.rule.tractable:
            return None
        return NodeDistribution(self.drawn_by, self.settings, snapshot, self.norms, seed=self.seed)

    def know_again(self, ends: Ends) -> None:
        """Make the distribution of a state that was loaded, from the embeddings in it."""
        if self.norms is None:
            return
        if self._weights is not None and isinstance(ends.scorer, nn.Module):
            ends.scorer.load_state_dict(self._weights)
        self.distribution = self._drawn_from(self.snapshot(ends))

    def on(self, known: KnownEdges) -> Self:  # noqa: D102
        made = super().on(known)
        made.norms = made.distribution = None
        return made

    def state(self, version: int) -> dict[str, Any]:  # noqa: D102
        weights = self._weights
        if self.distribution is not None:
            scorer = self.distribution.snapshot.scorer
            weights = dict(scorer.state_dict()) if isinstance(scorer, nn.Module) else None
        return {"norms": self.norms, "rule": self.drawn_by.measures(), "scorer": weights}

    def restored(self, state: dict[str, Any], version: int) -> Self:  # noqa: D102
        made = copy.copy(self)
        made.norms = None if state["norms"] is None else state["norms"].clone()
        made.drawn_by = self.rule.with_measures(state["rule"])
        made.distribution = None  # it is of the table before
        made._weights = copy.deepcopy(state["scorer"])
        return made


def check_width(first: int, width: int) -> None:
    """Refuse embeddings of another width than those of the first refresh."""
    if width != first:
        raise ValueError(
            f"encoder: expected embeddings of width {first}, as at the first refresh, got {width}; "
            "make a new sampler for another encoder"
        )
