"""Scorers by edge type, and what a refresh takes of them: weights and modes as they are now."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

from torch import Tensor, nn

from dgl_dmns.checks import check_object
from dgl_dmns.core import Scorer, dot_score
from dgl_dmns.samplers.etypes import EdgeType, canonical_edge_type
from dgl_dmns.samplers.held_modules import eval_mode, modules_behind, unwrapped

__all__ = ["Scorers", "frozen", "in_eval_mode", "scorers_by_type"]

Scorers = Union[Scorer, Mapping[Any, Scorer], nn.ModuleDict]
"""One scorer, or one for each edge type (canonical, or the relation alone)."""


def scorers_by_type(
    scorer: Scorers | None, held: Sequence[EdgeType], etypes: Sequence[EdgeType]
) -> Callable[[EdgeType], Scorer | None]:
    """The scorer of each held edge type.

    Args:
        scorer: one for all, a dict that has one for each of ``held``, or None.
        held: edge types that need one.
        etypes: all edge types of the graph, which a dict may name.

    Raises:
        TypeError: if a scorer cannot be called.
        ValueError: if a dict names unknown edge types or lacks one.
    """
    if isinstance(scorer, nn.ModuleDict):
        scorer = dict(scorer.items())
    if not isinstance(scorer, Mapping):
        _check_scorer(scorer, "scorer")
        return lambda etype: scorer
    by_type = {canonical_edge_type(e, etypes, "scorer"): one for e, one in scorer.items()}
    missing = [etype for etype in held if etype not in by_type]
    if missing:
        raise ValueError(
            f"scorer: expected one for each edge type, got none for {missing}; add them, or leave "
            "these edge types out with etypes=..."
        )
    for etype, one in by_type.items():
        _check_scorer(one, f"scorer of {etype[1]!r}")
    return by_type.__getitem__


def _check_scorer(scorer: Any, name: str) -> None:
    if isinstance(scorer, type):
        check_object(name, scorer, nn.Module, "model.scorer")
    if scorer is not None and not callable(scorer):
        raise TypeError(
            f"{name}: expected a callable of two tensors of embeddings, or a dict of those by edge "
            f"type, got {type(scorer).__name__}"
        )


def frozen(scorer: Scorer | None) -> Scorer | None:
    """A module as a copy on the CPU, in eval mode and without gradient; a function as it is.

    Dropout or running statistics have no part in a refresh, and the weights stay those of the
    refresh while the training goes on.
    """
    scorer = unwrapped(scorer)
    if not isinstance(scorer, nn.Module):
        return scorer
    copied: nn.Module = copy.deepcopy(scorer).eval()
    return copied.cpu().requires_grad_(False)  # where the embeddings of a refresh are


def in_eval_mode(scorer: Scorer | None) -> Scorer | None:
    """A function whose modules are in eval mode in each call; others as they are."""
    if scorer is None or scorer is dot_score or isinstance(scorer, nn.Module):
        return scorer
    function, modules = scorer, modules_behind(scorer)

    def called(h_query: Tensor, h_candidate: Tensor) -> Tensor:
        with eval_mode(modules):
            return function(h_query, h_candidate)

    return called
