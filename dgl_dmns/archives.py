"""NumPy archives from others: arrays without code, and no more of them than the file is worth.

Nothing is unpickled, nothing is unpacked to the disk (so the names in an archive cannot lead
anywhere), and what a file unpacks to is bounded before it is read. `write_arrays` writes them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

__all__ = ["read_arrays", "write_arrays"]

_LEAST = 256 << 20  # bytes that any file may unpack to
_RATIO = 50  # times the file's own size that larger ones may


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


def read_arrays(path: Path, *, compressed: bool = True) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a NumPy archive (``.npz``) by name.

    Args:
        path: the file.
        compressed: whether a compressed archive is taken; then it may unpack to 256 MiB, or to 50
            times the size of the file. One that is not compressed is bounded by its own size.

    Raises:
        ValueError: if it is no archive of plain arrays, or unpacks to more.
        Exception: whatever zip and NumPy raise for a damaged file.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    size = path.stat().st_size
    most = max(_LEAST, _RATIO * size) if compressed else size
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > most:
        raise ValueError(f"its arrays would take {unpacked} bytes, more than the {most} allowed")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: np.asarray(arrays[name]) for name in arrays.files}
