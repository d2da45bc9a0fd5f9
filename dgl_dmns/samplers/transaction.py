"""A refresh as a transaction: it changes everything, or nothing.

A refresh works on copies of what it fits (`Relation.apart`) and in the hidden buffers of the
tables; `swap` makes all of it live at its end. The little that has to change before, random states
and observed embeddings that start anew, is kept as `Before`, which takes it back.

What the user's own functions have changed is beyond that: it stays changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from dgl_dmns.samplers.base import EdgeType
from dgl_dmns.samplers.observed import ObservedEmbeddings
from dgl_dmns.samplers.relation import Relation

__all__ = ["Before", "swap"]


class Before(NamedTuple):
    """What a refresh changes before its swap, as it was.

    Attributes:
        random: random states by edge type.
        observed: the observed embeddings, if the refresh starts them anew; else None.
    """

    random: dict[EdgeType, Tensor]
    observed: ObservedEmbeddings | None

    def undo(
        self, relations: Mapping[EdgeType, Relation], observed: ObservedEmbeddings | None
    ) -> ObservedEmbeddings | None:
        """Set random states back.

        Args:
            relations: whose they are.
            observed: the embeddings observed now.

        Returns:
            The observed embeddings to go on with: those before, with what was observed since.
        """
        for etype, state in self.random.items():
            relations[etype].random.set_state(state)
        if self.observed is None or observed is None or observed is self.observed:
            return observed if self.observed is None else self.observed
        self.observed.go_on(observed)
        return self.observed


def swap(
    relations: Iterable[tuple[Relation, Relation]], owner: object, changes: dict[str, Any]
) -> None:
    """Make what a refresh has made live, or leave all as it was if that fails or is interrupted.

    Args:
        relations: the edge types as they are held, each with what the refresh has made of it.
        owner: the sampler.
        changes: its attributes to set.
    """
    pairs = list(relations)
    versions = [held.table.version for held, _ in pairs]
    before = [(one, dict(vars(one))) for one, _ in pairs]
    own = {name: vars(owner)[name] for name in changes}
    try:
        for held, refreshed in pairs:
            held.table.publish()
            held.take(refreshed)
        owner.__dict__.update(changes)
    except BaseException:
        for (one, parts), version in zip(before, versions):
            one.table.withdraw(version)
            one.__dict__.update(parts)
        owner.__dict__.update(own)
        raise
