"""Which edge types a sampler holds tables for, and the number of negatives for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Union

from dgl_dmns.checks import as_integer
from dgl_dmns.core import EdgeName, EdgeType, canonical_edge_type
from dgl_dmns.samplers.graphs import check_has_edges

__all__ = ["NegativesPerEdge", "check_k", "held_edge_types"]

NegativesPerEdge = Union[int, Mapping[Any, int]]
"""Negatives per edge: one number, or one for each edge type (canonical, or the relation alone)."""


def check_k(k: int) -> int:
    """Return ``k``, of NumPy or torch as well, as an integer of at least 1.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is below 1.
    """
    k = as_integer("k", k, what="negatives per edge")
    if k < 1:
        raise ValueError(f"k: expected at least 1 negative per edge, got {k}")
    return k


def held_edge_types(
    g: Any, k: NegativesPerEdge, etypes: Sequence[EdgeName] | None
) -> dict[EdgeType, int]:
    """The edge types to hold tables for, in the order of the graph, and the k of each.

    Args:
        g: the training graph.
        k: negatives per edge; a dict also says which edge types to hold.
        etypes: edge types to hold; defaults to those of ``k``, or all that have edges.

    Raises:
        TypeError: if a number is no integer, or ``etypes`` is a single name.
        ValueError: if a number is below 1, an edge type is unknown or has no edges, none is left,
            or ``k`` and ``etypes`` name different ones.
    """
    check_has_edges(g)
    every = g.canonical_etypes
    named = isinstance(k, Mapping)
    if isinstance(k, Mapping):
        numbers = {canonical_edge_type(e, every, "k"): check_k(one) for e, one in k.items()}
    else:
        numbers = dict.fromkeys(every, check_k(k))
    wanted = {e for e in numbers if named or g.num_edges(e)}
    if isinstance(etypes, str):
        raise TypeError(f"etypes: expected a list of edge types, got {etypes!r}; put it in a list")
    if etypes is not None:
        wanted = {canonical_edge_type(e, every, "etypes") for e in etypes}
        if named and wanted != set(numbers):
            raise ValueError(
                f"etypes: {sorted(wanted)} are not the edge types of k, {sorted(numbers)}; give "
                "one of the two (a dict k holds tables for the edge types that it names)"
            )
    if not wanted:
        raise ValueError(
            "etypes, k: expected at least one edge type, got none; leave etypes out for all"
        )
    without = sorted(e for e in wanted if not g.num_edges(e))
    if without:
        raise ValueError(
            f"etypes, k: expected edge types with edges, the known positives, got {without} "
            "without any; leave them out"
        )
    return {e: numbers[e] for e in every if e in wanted}
