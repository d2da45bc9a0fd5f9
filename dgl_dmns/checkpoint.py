"""Files of nested states: complete or not there at all, checked, and without code.

A state is what ``state_dict()`` gives: dicts, lists and tuples of tensors, numbers, words and None.
A file is a NumPy archive: the tensors as plain arrays, the nesting around them as JSON, and a
SHA-256 of both. Nothing is unpickled, so that a file can carry no code. It is written beside its
place, flushed to the disk and moved there: a crash leaves the file before, or the new one. What a
killed process had written beside it is removed by a later `write_state`.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgl_dmns.archives import read_arrays, write_arrays

__all__ = ["read_state", "write_state"]

FORMAT = "dgl-dmns state 1"
_ABANDONED = 3600.0  # seconds after which an unfinished file that nobody writes to is removed
_VIEWS = {torch.bfloat16: torch.int16}
"""Types that NumPy lacks, and those of the same size that stand in for them."""
_TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    )
}
"""The types that a file may hold, by name."""


def write_state(path: str | os.PathLike[str], state: Mapping[Any, Any]) -> None:
    """Write a state to a file, or leave what was there.

    Several processes may write to one path at a time: the last to end wins.

    Args:
        path: the file; its folder has to exist.
        state: nested dicts, lists and tuples of tensors, numbers, words, booleans and None; keys
            are words, numbers or tuples of those.

    Raises:
        TypeError: for anything else in the state, named by its place.
        OSError: if the file cannot be written, for example on a full disk.
    """
    target = Path(path)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    nesting = json.dumps(_pack(state, arrays, "state"))
    digest = _digest(nesting, arrays)
    _remove_abandoned(target)
    name = target.parent / f".{target.name}.{secrets.token_hex(8)}.part"
    try:
        with name.open("xb") as file:  # with the permissions of any new file, unlike mkstemp's
            words = {"format": FORMAT, "nesting": nesting, "sha256": digest}
            write_arrays(file, {**words, **arrays}, compressed=False)
            os.fsync(file.fileno())
        os.replace(name, target)
        _sync_folder(target.parent)
    finally:
        name.unlink(missing_ok=True)


def read_state(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """The state in a file of `write_state`; tensors on the CPU.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if the file is not one of these, is cut short, or was changed.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"path: there is no file {source}; check the name")
    try:
        found = read_arrays(source, compressed=False)
        words = {name: str(found.pop(name)) for name in ("format", "nesting", "sha256")}
        if words["format"] != FORMAT:
            raise ValueError(f"its format is {words['format']!r}, expected {FORMAT!r}")
        if _digest(words["nesting"], found) != words["sha256"]:
            raise ValueError("its checksum does not fit its content")
        state = _unpack(json.loads(words["nesting"]), found)
        if not isinstance(state, dict):
            raise ValueError("it holds no state")
    except Exception as error:  # a damaged archive fails in any part of zip, NumPy, JSON or torch
        raise ValueError(
            f"{source}: not a complete file of a state ({type(error).__name__}: {error}); go back "
            "to an earlier one"
        ) from error
    return state


def _pack(value: Any, arrays: dict[str, np.ndarray[Any, Any]], place: str) -> Any:
    """JSON for a value; its tensors go to ``arrays``."""
    if isinstance(value, Tensor):
        name = f"t{len(arrays)}"
        kept = value.detach().cpu().contiguous()
        arrays[name] = kept.view(_VIEWS.get(kept.dtype, kept.dtype)).numpy()
        return {"tensor": name, "dtype": str(kept.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        items = [
            [_pack(key, arrays, f"{place} (a key)"), _pack(one, arrays, f"{place}[{key!r}]")]
            for key, one in value.items()
        ]
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(one, arrays, f"{place}[{i}]") for i, one in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(
        f"{place}: expected tensors, numbers, words, None, or dicts, lists and tuples of those, "
        f"got {type(value).__name__}; leave it out of the state"
    )


def _unpack(packed: Any, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    """The value behind its JSON."""
    if "tensor" in packed:
        if packed["dtype"] not in _TYPES:
            raise ValueError(f"it has a tensor of type {packed['dtype']!r}")
        tensor = torch.from_numpy(np.array(arrays[packed["tensor"]]))
        return tensor.view(_TYPES[packed["dtype"]])
    if "dict" in packed:
        return {_unpack(k, arrays): _unpack(v, arrays) for k, v in packed["dict"]}
    if "list" in packed:
        return [_unpack(one, arrays) for one in packed["list"]]
    if "tuple" in packed:
        return tuple(_unpack(one, arrays) for one in packed["tuple"])
    return packed["value"]


def _digest(nesting: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """SHA-256 of the nesting and of every array's name, type, shape and content."""
    total = hashlib.sha256(nesting.encode())
    for name in sorted(arrays):
        array = arrays[name]
        total.update(f"{name} {array.dtype.str} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _remove_abandoned(target: Path) -> None:
    """Remove what processes that were killed while writing to this path have left beside it."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        with contextlib.suppress(OSError):  # another process was faster, or may not be disturbed
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
