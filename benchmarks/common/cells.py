"""Results of finished cells on disk, found again by the hash of their configuration."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from dgl_dmns.files import whole_file

__all__ = ["CellStore", "cell_hash", "write_text"]

_HASH_DIGITS = 16


def _described(value: Any) -> Any:
    """A configuration as plain JSON values; dataclasses keep the name of their type.

    Raises:
        TypeError: for a value that is no dataclass, list, tuple, dict, string, number or None.
    """
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: _described(getattr(value, field.name)) for field in fields(value)}
        return {"type": type(value).__name__, **parts}
    if isinstance(value, (list, tuple)):
        return [_described(part) for part in value]
    if isinstance(value, dict):
        return {str(key): _described(part) for key, part in value.items()}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(
        f"cell: expected plain values and dataclasses, got {type(value).__name__}; store what "
        "makes it up instead"
    )


def cell_hash(cell: Any) -> str:
    """The name of a configuration: equal for equal values, whatever the process."""
    text = json.dumps(_described(cell), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:_HASH_DIGITS]


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))


class CellStore:
    """One JSON file per finished cell: its configuration beside its result.

    Args:
        folder: where the files lie; made when the first result is saved.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, cell: Any) -> Path:
        """Where the result of a cell lies or will lie."""
        return self.folder / f"{cell_hash(cell)}.json"

    def load(self, cell: Any) -> dict[str, Any] | None:
        """The result of a cell, or None if it was not run with exactly this configuration."""
        try:
            stored = json.loads(self.path(cell).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        result: dict[str, Any] = stored["result"]
        return result

    def save(self, cell: Any, result: dict[str, Any]) -> None:
        """Store a result; a later one of the same cell replaces it."""
        stored = {"cell": _described(cell), "result": result}
        write_text(self.path(cell), json.dumps(stored, indent=1, sort_keys=True) + "\n")

    def missing(self, cells: list[Any]) -> list[Any]:
        """The cells that have no result yet, each once, in their order."""
        wanted = {cell_hash(cell): cell for cell in cells}
        return [cell for cell in wanted.values() if not self.path(cell).exists()]

    def finished(self, cells: Iterable[Any]) -> dict[int, dict[str, Any]]:
        """The results of cells that differ in their seed, by it; absent ones are left out."""
        loaded = {cell.seed: self.load(cell) for cell in cells}
        return {seed: result for seed, result in loaded.items() if result is not None}
