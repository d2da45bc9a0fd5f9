"""Optimisations taken out again, one at a time, to see what each is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor

from dgl_dmns.core import diffusion, pools
from dgl_dmns.samplers.lookup import TableSampler
from dgl_dmns.samplers.relation import Relation

__all__ = ["WITHOUT", "replaced"]

_ALL = 1 << 40  # more cells and queries than there are


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """A context in which an attribute has another value."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _ids_of_all(self: TableSampler, relation: Relation, src: Tensor, dst: Tensor | None) -> Tensor:
    return relation.rows.draw(src, dst, generator=self._call_generator()).ids


@contextmanager
def _no_parts() -> Iterator[None]:
    with replaced(pools, "CELLS", _ALL), replaced(diffusion, "_BLOCK", _ALL):
        yield


WITHOUT: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "ids alone": lambda: replaced(TableSampler, "_draw_ids", _ids_of_all),
    "cache parts": _no_parts,
}
"""By name: a context in which the optimisation is not there."""
