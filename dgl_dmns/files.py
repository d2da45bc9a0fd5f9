"""Files: written whole or not at all, and read without code and within bounds.

- `whole_file` is how every file that matters is written: beside its place, flushed to the disk, and
  moved there, so that a crash leaves the file before, or the new one.
- An archive (``.npz``) holds plain arrays. Nothing is unpickled, nothing is unpacked to the disk
  (so the names in it cannot lead anywhere), and what it unpacks to is bounded before it is read.
- A state is what ``state_dict()`` gives: nested dicts, lists and tuples of tensors, numbers, words
  and None. Its file is an archive of the tensors as plain arrays, the nesting around them as JSON,
  and a SHA-256 of both.
- A Parquet table is bounded before it is read. Importing this module needs no pyarrow.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import secrets
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "check_parquet",
    "read_arrays",
    "read_arrow",
    "read_names",
    "read_parquet",
    "read_state",
    "whole_file",
    "write_arrays",
    "write_state",
]

FORMAT = "dgl-dmns state 1"
MOST_BYTES = 2 << 30
"""Bytes that the columns of a Parquet table may take, unpacked."""
MOST_CELLS = 1 << 28
"""Cells of a Parquet table, rows times columns."""
_ABANDONED = 3600.0  # seconds after which an unfinished file that nobody writes to is removed
_LEAST = 256 << 20  # bytes that any compressed archive may unpack to
_RATIO = 50  # times the file's own size that larger ones may
_VIEWS = {torch.bfloat16: torch.int16}
"""Types that NumPy lacks, and those of the same size that stand in for them."""
_TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    )
}
"""The types that a state may hold, by name."""

Arrays = dict[str, np.ndarray[Any, Any]]


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file, open for writing, that takes the place of ``path`` once it is complete.

    After an error ``path`` is as it was. Several processes may write to one path at a time: the
    last to end wins. What a killed process had written beside it is removed by a later call.

    Raises:
        OSError: if the file cannot be written, for example on a full disk.
    """
    _remove_abandoned(path)
    part = path.parent / f".{path.name}.{secrets.token_hex(8)}.part"
    try:
        with part.open("xb") as file:  # with the permissions of any new file, unlike mkstemp's
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _remove_abandoned(target: Path) -> None:
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


def write_arrays(file: BinaryIO, arrays: Mapping[str, Any], *, compressed: bool = True) -> None:
    """Write a NumPy archive as ``numpy.savez`` does, but silent after an error (a full disk).

    Args:
        file: open for writing.
        arrays: plain arrays by name.
        compressed: whether to compress them.

    Raises:
        OSError: if it cannot be written; it names the file.
    """
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    archive = zipfile.ZipFile(file, "w", method)
    try:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(  # type: ignore[no-untyped-call]
                    entry, np.asanyarray(array), allow_pickle=False
                )
        archive.close()
        file.flush()
    except BaseException as error:
        archive.fp = None  # or it would write again when it is collected, and print a traceback
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror or str(error), str(file.name)) from error
        raise


def read_arrays(path: Path, *, compressed: bool = True) -> Arrays:
    """The arrays of a NumPy archive by name.

    Args:
        path: the file.
        compressed: whether a compressed archive is taken. It may unpack to 256 MiB, or to 50 times
            the size of the file; one that is not compressed, to its own size.

    Raises:
        ValueError: if it is no archive of plain arrays, or unpacks to more.
        Exception: whatever zip and NumPy raise for a damaged file.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    size = path.stat().st_size
    most = max(_LEAST, _RATIO * size) if compressed else size
    if unpacked > most:
        raise ValueError(f"its arrays would take {unpacked} bytes, more than the {most} allowed")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: np.asarray(arrays[name]) for name in arrays.files}


def write_state(path: str | os.PathLike[str], state: Mapping[Any, Any]) -> None:
    """Write a state to a file, or leave what was there; see `whole_file`.

    It holds nested dicts, lists and tuples of tensors, numbers, words, booleans and None; keys are
    words, numbers or tuples of those.

    Raises:
        TypeError: for anything else in the state, named by its place.
        OSError: if the file cannot be written, for example on a full disk.
    """
    arrays: Arrays = {}
    nesting = json.dumps(_pack(state, arrays, "state"))
    words = {"format": FORMAT, "nesting": nesting, "sha256": _digest(nesting, arrays)}
    with whole_file(Path(path)) as file:
        write_arrays(file, {**words, **arrays}, compressed=False)


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


def _pack(value: Any, arrays: Arrays, place: str) -> Any:
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


def check_parquet(path: Path, instead: str) -> None:
    """Say what to install, or what to do ``instead``, where Parquet cannot be read or written.

    Raises:
        ImportError: if pyarrow is missing.
    """
    try:
        from pyarrow import parquet  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{path}: Parquet needs pyarrow (python -m pip install pyarrow); or {instead}"
        ) from error


def read_parquet(path: Path) -> pd.DataFrame:
    """The table in a Parquet file; for the errors see `read_arrow`."""
    table: pd.DataFrame = read_arrow([path])[0].to_pandas(ignore_metadata=True)
    return table


def read_names(path: Path) -> list[str]:
    """The names of the columns of a Parquet file."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return list(file.schema_arrow.names)


def read_arrow(paths: Sequence[Path], columns: Sequence[Sequence[str]] | None = None) -> list[Any]:
    """The Arrow tables in Parquet files, which together keep to the bounds.

    Args:
        paths: the files.
        columns: those to read of each file; all where None.

    Raises:
        ImportError: if pyarrow is missing.
        ValueError: if the tables are larger than 2 GiB or 2^28 cells.
        Exception: whatever Arrow raises for a damaged file.
    """
    from pyarrow import parquet

    unpacked = cells = 0
    tables = []
    for place, path in enumerate(paths):
        with parquet.ParquetFile(path) as file:
            known = file.metadata
            names = file.schema_arrow.names if columns is None else columns[place]
            unpacked += sum(known.row_group(i).total_byte_size for i in range(known.num_row_groups))
            cells += known.num_rows * len(names)
            if unpacked > MOST_BYTES or cells > MOST_CELLS:
                raise ValueError(
                    f"expected at most {MOST_BYTES} bytes and {MOST_CELLS} cells, got {unpacked} "
                    f"and {cells}; split the file, or build the graph in Python"
                )
            tables.append(file.read(columns=list(names)))
    return tables
