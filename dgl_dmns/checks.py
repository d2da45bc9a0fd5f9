"""Checks of arguments that all parts of the package share: ids, numbers, objects.

Ids are numbers of nodes or edges. A mask is a tensor of truth values, one for each node; taken as
ids it would stand for nodes 0 and 1, so it is refused, with what to write instead. Numbers may come
from NumPy or torch, as a grid or a row of a data frame has them; truth values are no numbers.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "as_flag",
    "as_integer",
    "as_number",
    "check_ids",
    "check_object",
    "check_pairs",
    "check_tensor",
    "type_name",
]

_SHORT = 60  # characters of a value that an error shows


def type_name(value: Any) -> str:
    """What an error calls a value: its type, or the class that it is."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _shown(value: Any) -> str:
    """A value in an error of one line: as code where that is short, else what it is."""
    code = repr(value)
    if isinstance(value, type) or "\n" in code or len(code) > _SHORT:
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        return f"{type_name(value)}{shape}"
    return code


def check_tensor(name: str, value: Any, what: str) -> None:
    """Refuse what is no tensor.

    Raises:
        TypeError: for a list, an array or anything else; it says what to write.
    """
    if isinstance(value, Tensor):
        return
    advice = "pass a tensor"
    if isinstance(value, (list, tuple, range, int, np.integer)):
        advice = f"write torch.tensor({name})"
    elif isinstance(value, np.ndarray):
        advice = f"write torch.from_numpy({name})"
    raise TypeError(f"{name}: expected a tensor of {what}, got {type_name(value)}; {advice}")


def check_ids(
    name: str,
    ids: Any,
    count: int | None,
    what: str = "node ids",
    *,
    dim: int | None = 1,
    advice: str = "pass ids of that graph",
) -> None:
    """Refuse what are no ids in ``0 .. count - 1``.

    Args:
        name: the argument that an error speaks of.
        ids: what was handed over.
        count: how many there are to number; None where others look at the range.
        what: what they number, in words.
        dim: the number of dimensions; any where None.
        advice: what to do about ids out of range.

    Raises:
        TypeError: if they are no tensor, or neither int64 nor int32: masks, fractions and others.
        ValueError: if the shape is another one, or an id is out of range.
    """
    check_tensor(name, ids, what)
    if ids.dtype == torch.bool:
        raise TypeError(
            f"{name}: expected {what}, got {ids.dtype} of shape {tuple(ids.shape)}; for a mask, "
            "pass mask.nonzero().squeeze(1)"
        )
    if ids.dtype not in (torch.int64, torch.int32):
        whole = not (ids.is_floating_point() or ids.is_complex())
        instead = (
            f"for a mask, pass mask.nonzero().squeeze(1), for ids {name}.to(torch.int64)"
            if whole
            else "ids are whole numbers; look where the fractions come from"
        )
        raise TypeError(f"{name}: expected {what} as int64 or int32, got {ids.dtype}; {instead}")
    if dim is not None and ids.dim() != dim:
        shape = "[B]" if dim == 1 else f"of {dim} dimensions"
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(ids.shape)}; reshape it")
    if ids.numel() and count is not None:
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or high >= count:
            raise ValueError(
                f"{name}: expected {what} in 0 .. {count - 1}, got {low} .. {high}; {advice}"
            )


def check_pairs(src: Tensor, dst: Tensor, num_src: int, num_dst: int) -> None:
    """Refuse pairs of another form than two tensors [P], and ids out of range.

    Raises:
        ValueError: it names the argument.
    """
    if src.shape != dst.shape or src.dim() != 1:
        raise ValueError(
            f"src, dst: expected two tensors of one shape [P], got {tuple(src.shape)} and "
            f"{tuple(dst.shape)}"
        )
    for name, ids, count in (("src", src, num_src), ("dst", dst, num_dst)):
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < count):
            raise ValueError(
                f"{name}: expected ids in 0 .. {count - 1}, got {int(ids.min())} .. "
                f"{int(ids.max())}"
            )


def as_integer(name: str, value: Any, least: int | None = None, what: str = "") -> int:
    """A whole number, also one of NumPy or torch, as an int.

    Args:
        name: the argument that an error speaks of.
        value: the number.
        least: the smallest that will do; any where None.
        what: what it counts, in words, such as ``"negatives per edge"``.

    Raises:
        TypeError: if it is no integer; truth values and floats of a whole value are none.
        ValueError: if it is below ``least``.
    """
    expected = f"expected an integer{what and ', the ' + what}"
    kind = str(getattr(value, "dtype", ""))
    several = getattr(value, "ndim", None) not in (0, None)
    if isinstance(value, bool) or kind in ("bool", "torch.bool") or several:
        raise TypeError(f"{name}: {expected}, got {_shown(value)}; write a number such as 5")
    try:
        number = operator.index(value)
    except TypeError:
        given, advice = _shown(value), "write a number such as 5"
        if isinstance(value, (float, np.floating)) and float(value).is_integer():
            advice = f"write {int(value)}"
        raise TypeError(f"{name}: {expected}, got {given}; {advice}") from None
    if least is not None and number < least:
        counted = f" {what}" if what else ""
        raise ValueError(f"{name}: expected at least {least}{counted}, got {number}; raise it")
    return number


def as_number(name: str, value: Any) -> float:
    """A number, also one of NumPy or a tensor of one element, as a float.

    Raises:
        TypeError: if it is none; truth values and words are none.
    """
    kind = str(getattr(value, "dtype", ""))
    if not isinstance(value, (bool, str, bytes, type)) and kind not in ("bool", "torch.bool"):
        try:
            return float(value.item() if hasattr(value, "item") else value)
        except (TypeError, ValueError, RuntimeError):
            pass
    given = _shown(value)
    raise TypeError(f"{name}: expected a number, got {given}; write one such as 0.5")


def as_flag(name: str, value: Any, example: str) -> bool:
    """A truth value, of NumPy as well; anything else would count as one in silence.

    Raises:
        TypeError: for another value; it shows the example.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}; write {example}")
    return bool(value)


def check_object(name: str, value: Any, expected: Any, example: str) -> None:
    """Refuse a class, a name or anything else where an object is wanted.

    Args:
        name: the argument that an error speaks of.
        value: what was handed over.
        expected: the class or classes that it may be an instance of; or a tuple of the names of
            attributes that it has to have.
        example: an object, as it is written in code.

    Raises:
        TypeError: if it is something else; it says what to write.
    """
    by_name = isinstance(expected, tuple) and all(isinstance(one, str) for one in expected)
    if isinstance(value, type):
        raise TypeError(
            f"{name}: expected an object such as {example}, got {type_name(value)}; call it: write "
            f"{name}={value.__name__}(...)"
        )
    if by_name and all(hasattr(value, one) for one in expected):
        return
    if not by_name and isinstance(value, expected):
        return
    given = f"{value!r}" if isinstance(value, (str, int, float)) else type(value).__name__
    called = callable(value) and "<" not in getattr(value, "__qualname__", "<")
    advice = f"call it: {value.__qualname__}(...)" if called else f"write {name}={example}"
    raise TypeError(f"{name}: expected an object such as {example}, got {given}; {advice}")
