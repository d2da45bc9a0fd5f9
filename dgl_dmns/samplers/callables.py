"""The user's own functions: the modules behind them, eval mode, and scorers by edge type.

``model.inference``, ``lambda: model(g, x)``, ``partial(embed, model)`` and a trainer's own method
all call a module in whatever mode the training has left it: with dropout, and with running
statistics that move. What the function refers to tells: the object that a method is bound to, the
cells and defaults of a function, the names of globals in its code, what it wraps, the arguments of
a partial. What hides behind other things (objects within objects, weak references) is seen by a
hook as soon as it is called.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Union

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from dgl_dmns.checks import check_object
from dgl_dmns.core import EdgeType, Scorer, canonical_edge_type, dot_score
from dgl_dmns.eval_mode import modes_kept

__all__ = [
    "Scorers",
    "eval_mode",
    "frozen",
    "in_eval_mode",
    "modules_behind",
    "scorers_by_type",
    "unwrapped",
]

_DEPTH = 4  # functions within functions that are followed
_ENTRIES = 1000  # of a list that is looked through: more are data


def unwrapped(function: Any) -> Any:
    """What ``DistributedDataParallel`` or ``DataParallel`` wraps; anything else as it is."""
    while isinstance(function, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        function = function.module
    return function


def modules_behind(function: Any) -> list[nn.Module]:
    """The modules that a callable refers to, those that another one contains included."""
    found: dict[int, nn.Module] = {}
    _look(function, _DEPTH, found, set())
    return list(found.values())


@contextmanager
def eval_mode(modules: list[nn.Module]) -> Iterator[None]:
    """Put modules, and others that this thread calls within, into eval mode for a while."""
    here = threading.get_ident()
    with modes_kept() as settle:

        def before(module: nn.Module, _: Any) -> None:
            if module.training and threading.get_ident() == here:
                settle(module)

        for module in modules:
            settle(module)
        hook = register_module_forward_pre_hook(before)
        try:
            yield
        finally:
            hook.remove()


def _look(value: Any, depth: int, found: dict[int, nn.Module], seen: set[int]) -> None:
    if isinstance(value, nn.Module):
        found[id(value)] = value
        return
    if depth < 0 or id(value) in seen or isinstance(value, (type, ModuleType, Tensor)):
        return
    seen.add(id(value))
    for one in _parts(value):
        _look(one, depth - 1, found, seen)


def _parts(value: Any) -> list[Any]:
    """What a value refers to directly, as far as modules may be among it."""
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, FunctionType):
        return _parts_of_function(value)
    entries = _entries(value)
    if not isinstance(value, (list, tuple, dict)):
        called = type(value).__dict__.get("__call__")
        entries = [*getattr(value, "__dict__", {}).values(), called]
    return [one for one in entries if _may_hold(one)]


def _entries(value: Any) -> list[Any]:
    """The entries of a small container."""
    if not isinstance(value, (list, tuple, dict)) or len(value) > _ENTRIES:
        return []
    return list(value.values() if isinstance(value, dict) else value)


def _may_hold(value: Any) -> bool:
    """Whether an entry is followed: modules, functions and small containers of modules."""
    if isinstance(value, (nn.Module, functools.partial, MethodType, FunctionType)):
        return True
    return any(isinstance(one, nn.Module) for one in _entries(value))


def _parts_of_function(function: FunctionType) -> list[Any]:
    parts: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    parts += [_content(cell) for cell in function.__closure__ or ()]
    names = set(_names(function.__code__))
    parts += [function.__globals__[name] for name in names if name in function.__globals__]
    return [*parts, *function.__dict__.values()]  # what it wraps among them


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _names(code: CodeType) -> Iterator[str]:
    """Names in a function's code and in that of the functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


Scorers = Union[Scorer, Mapping[Any, Scorer], nn.ModuleDict]
"""One scorer, or one for each edge type (canonical, or the relation alone)."""


def scorers_by_type(
    scorer: Scorers | None, held: Sequence[EdgeType], etypes: Sequence[EdgeType]
) -> Callable[[EdgeType], Scorer | None]:
    """The scorer of each held edge type; a dict has one for each, and may name all ``etypes``."""
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
    """A module as a copy on the CPU, in eval mode and without gradient; a function as it is."""
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


def called_on(device: torch.device, scorer: Scorer | None) -> Scorer | None:
    """A function that is called with embeddings on a device, wherever they are; others as are."""
    if device.type == "cpu" or scorer is None or scorer is dot_score:
        return scorer
    if isinstance(scorer, nn.Module):
        return scorer
    function = scorer

    def called(h_query: Tensor, h_candidate: Tensor) -> Tensor:
        return function(h_query.to(device), h_candidate.to(device)).to(h_query.device)

    return called
