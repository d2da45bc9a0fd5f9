"""Checks that all of `dgl_dmns.evaluate` shares, and the known neighbours of a query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, Union

import torch
from torch import Tensor

from dgl_dmns import checks
from dgl_dmns.checks import check_tensor

__all__ = [
    "Score",
    "Values",
    "check_ids",
    "check_known",
    "check_numbers",
    "check_shape",
    "check_tensors",
    "known_of",
]

Score = Callable[[Tensor, Tensor], Tensor]
"""Scores of broadcastable embeddings of queries and candidates, larger for likelier."""

Values = Union[Sequence[float], Tensor]
"""One number for each run."""


def check_tensors(**named: Any) -> None:
    """Refuse lists and arrays in place of tensors, before anything is asked of their shapes.

    Raises:
        TypeError: for one that is no tensor; it says what to write.
    """
    for name, value in named.items():
        check_tensor(name, value, "ids or numbers")


def check_shape(name: str, value: Tensor, expected: str, fits: bool) -> None:
    """Refuse a tensor whose shape does not fit.

    Raises:
        ValueError: unless ``fits``; it names the expected shape.
    """
    if not fits:
        raise ValueError(
            f"{name}: expected shape {expected}, got {list(value.shape)}; reshape or transpose it"
        )


def check_ids(name: str, ids: Tensor, num_nodes: int) -> None:
    """Refuse what are no ids of nodes ``0 .. num_nodes - 1``.

    Raises:
        TypeError: if they are neither int64 nor int32: masks, fractions and others.
        ValueError: if one is out of range.
    """
    checks.check_ids(name, ids, num_nodes, dim=None)


def check_numbers(name: str, score: Tensor) -> None:
    """Refuse scores that are not a number.

    Raises:
        ValueError: if there is a NaN.
    """
    if bool(torch.isnan(score).any()):
        raise ValueError(
            f"{name}: expected numbers, got {int(torch.isnan(score).sum())} NaN among "
            f"{score.numel()}; the encoder or the scorer has diverged, lower the learning rate or "
            "clip gradients"
        )


def check_known(
    indptr: Tensor, indices: Tensor, num_nodes: int, num_candidates: int, build: str
) -> None:
    """Refuse what are no CSR arrays of known edges.

    Args:
        indptr: int64 [num_nodes + 1].
        indices: int64 [E], ids of candidates.
        num_nodes: number of queries.
        num_candidates: number of candidates.
        build: what an error says to build them from.

    Raises:
        ValueError: if a shape or an id does not fit.
        TypeError: if ids are not integers.
    """
    fits = indptr.dim() == 1 and indices.dim() == 1 and len(indptr) == num_nodes + 1
    if not fits or int(indptr[0]) != 0 or int(indptr[-1]) != len(indices):
        raise ValueError(
            f"known: expected CSR arrays (indptr [{num_nodes + 1}], indices [E]) with indptr from "
            f"0 to E, got shapes {list(indptr.shape)} and {list(indices.shape)}; build them from "
            f"{build}"
        )
    check_ids("known", indices, num_candidates)


def known_of(indptr: Tensor, indices: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Row in ``query`` and id of each known neighbour, int64 [P] each."""
    count = indptr[query + 1] - indptr[query]
    owner = torch.repeat_interleave(torch.arange(len(query), device=query.device), count)
    within = torch.arange(len(owner), device=query.device)
    within -= (torch.cumsum(count, 0) - count)[owner]
    return owner, indices[indptr[query][owner] + within]
