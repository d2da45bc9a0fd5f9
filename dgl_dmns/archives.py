"""NumPy archives from others: arrays without code, and no more of them than the file is worth.

Nothing is unpickled, nothing is unpacked to the disk (so the names in an archive cannot lead
anywhere), and what a file unpacks to is bounded before it is read.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["read_arrays"]

_LEAST = 256 << 20  # bytes that any file may unpack to
_RATIO = 50  # times the file's own size that larger ones may


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
