"""The modules that a function uses, and eval mode for them while it is called.

``model.inference``, ``lambda: model(g, x)``, ``partial(embed, model)`` and a trainer's own method
all call a module in whatever mode the training has left it: with dropout, and with running
statistics that move. What the function refers to tells: the object that a method is bound to, the
cells and defaults of a function, the names of globals in its code, what it wraps, the arguments of
a partial. What hides behind other things (objects within objects, weak references) is seen by a
hook as soon as it is called.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["eval_mode", "modules_behind", "unwrapped"]

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
    """Put modules into eval mode, and others that this thread calls within.

    Each part has its own mode back afterwards.
    """
    modes: list[tuple[nn.Module, bool]] = []
    here = threading.get_ident()

    def settle(module: nn.Module) -> None:
        modes.extend((part, part.training) for part in module.modules())
        module.eval()

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
        for part, mode in reversed(modes):  # what was noted first counts
            part.training = mode


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
    if isinstance(value, (list, tuple, dict)):
        if len(value) > _ENTRIES:
            return []
        entries = value.values() if isinstance(value, dict) else value
        return [one for one in entries if _may_hold(one)]
    own = getattr(value, "__dict__", {})
    called = type(value).__dict__.get("__call__")
    return [one for one in (*own.values(), called) if _may_hold(one)]


def _may_hold(value: Any) -> bool:
    """Whether an entry is followed: modules, functions and small containers of modules."""
    if isinstance(value, (nn.Module, functools.partial, MethodType, FunctionType)):
        return True
    if not isinstance(value, (list, tuple, dict)) or len(value) > _ENTRIES:
        return False
    entries = value.values() if isinstance(value, dict) else value
    return any(isinstance(one, nn.Module) for one in entries)


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
