"""`candidates=`: which destinations may be drawn as negatives, by edge type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Union

from torch import Tensor

from dgl_dmns._compat import is_distributed
from dgl_dmns.checks import check_ids
from dgl_dmns.core import EdgeType, canonical_edge_type

__all__ = ["Allowed", "candidates_by_type"]

Allowed = Union[Tensor, Mapping[Any, Tensor]]
"""Ids of destinations that may be drawn, int64 [C]; or by edge type or destination node type."""


def candidates_by_type(
    given: Allowed | None, g: Any, etypes: Sequence[EdgeType]
) -> dict[EdgeType, Tensor]:
    """The candidates of those edge types that have some, distinct and ascending, int64 [C].

    Raises:
        ValueError: for none at all, ids out of range, an unknown type, ids alone where there are
            several destination types, and for a distributed graph.
        TypeError: for what are no ids, such as a mask.
    """
    if given is None:
        return {}
    if is_distributed(g, "DistGraph"):
        raise ValueError(
            "candidates: a distributed graph draws among all nodes; leave candidates out, or make "
            "the sampler on a graph on one machine"
        )
    found: dict[EdgeType, Tensor] = {}
    if isinstance(given, Mapping):
        kinds = {etype[2] for etype in etypes}
        # What names an edge type counts more than what names a node type.
        for key, ids in sorted(given.items(), key=lambda item: item[0] not in kinds):
            named = [etype for etype in etypes if key in kinds and etype[2] == key]
            if not named:
                named = [canonical_edge_type(key, etypes, "candidates")]
            found.update({etype: _checked(ids, g, etype) for etype in named})
        return found
    if len({etype[2] for etype in etypes}) > 1:
        raise ValueError(
            f"candidates: expected a dict by edge type or destination node type, for {etypes}, got "
            f"ids of one; write candidates={{{etypes[0][2]!r}: ...}}"
        )
    return {etype: _checked(given, g, etype) for etype in etypes}


def _checked(ids: Any, g: Any, etype: EdgeType) -> Tensor:
    count = int(g.num_nodes(etype[2]))
    check_ids("candidates", ids, count, f"ids of type {etype[2]!r}")
    if not ids.numel():
        raise ValueError(
            f"candidates: expected at least one node of type {etype[2]!r} for {etype}, got none; "
            "leave them out for all nodes"
        )
    distinct: Tensor = ids.cpu().long().unique()
    return distinct
