"""Optimisations taken out again, one at a time, to see what each is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from dgl_dmns.core import diffusion, pools
from dgl_dmns.samplers import DMNSSampler
from dgl_dmns.samplers.relation import Relation
from dgl_dmns.samplers.tables import Tables

__all__ = ["WITHOUT", "replaced"]

_ALL = 1 << 40  # more cells and queries than there are


@contextmanager
def replaced(*places: tuple[Any, str, Any]) -> Iterator[None]:
    """A context in which attributes, given as (owner, name, value), have other values."""
    with ExitStack() as stack:
        for owner, name, value in places:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


def _ids_of_all(
    self: Tables, relation: Relation, src: Tensor, dst: Tensor | None, eids: Tensor | None
) -> Tensor:
    return relation.rows.draw(src, dst, generator=self._call_generator()).ids


def _pools(**changes: int) -> AbstractContextManager[None]:
    """Samplers of DMNS with other settings of their pools, which have no argument."""
    changed: Any = replace(DMNSSampler.defaults, **changes)
    return replaced((DMNSSampler, "defaults", changed))


WITHOUT: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "calls that read levels": lambda: replaced((Tables, "_draw_ids", _ids_of_all)),
    "no parts for the cache": lambda: replaced((pools, "CELLS", _ALL), (diffusion, "_BLOCK", _ALL)),
    "a pool for each group": lambda: _pools(draws_per_pool=1),
    "a pool for each query": lambda: _pools(queries_per_pool=1),
}
"""By the title of the row: a context in which the optimisation is not there."""
