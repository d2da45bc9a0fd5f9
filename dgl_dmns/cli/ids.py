"""Ids of nodes: names, which stay as they stand in the files.

Ids are integers where every cell of every column is a canonical one: ``0``, or digits without a
leading zero and perhaps a minus before them, within 64 bits. Otherwise all of them are text, so
that ``7`` and ``007`` are two nodes wherever they stand. Blanks around an id are no part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from dgl_dmns.cli.tables import FileError, IdColumn

__all__ = ["arrays_of", "number_nodes"]

_LONGEST_INTEGER = 20  # characters of one within 64 bits
_PROPORTION = 8  # bytes that an array of fixed width may take for each byte of text
_SMALL = 1 << 24  # bytes that it may take at any rate

Array = np.ndarray[Any, Any]


def number_nodes(columns: Sequence[IdColumn]) -> tuple[Array, list[Array]]:
    """Number the nodes by their ids, in ascending order.

    Args:
        columns: those that name the nodes.

    Returns:
        The ids [N], int64 or text as objects, and the node of each row of each column.

    Raises:
        FileError: if an id is missing.
    """
    values = [column.values for column in columns]
    if any(part.dtype == object for part in values):
        values = [p if p.dtype == object else p.astype(str).astype(object) for p in values]
    codes, different = pd.factorize(np.concatenate(values))
    ids, places = _ranked(different, columns, codes)
    return ids, np.split(places[codes], np.cumsum([len(part) for part in values])[:-1])


def _ranked(different: Array, columns: Sequence[IdColumn], codes: Array) -> tuple[Array, Array]:
    """The ids in ascending order, and the place there of each of the different values."""
    found: Array | None = different
    if different.dtype == object:
        names = [name.strip() for name in different.tolist()]
        if "" in names:
            _refuse_missing([place for place, name in enumerate(names) if not name], columns, codes)
        words = any(column.typed and column.values.dtype == object for column in columns)
        found = None if words else _integers(names)
    if found is not None:
        ids, places = np.unique(found, return_inverse=True)
        return ids, places
    ordered = sorted(set(names))
    rank = dict(zip(ordered, range(len(ordered))))
    return np.array(ordered, dtype=object), np.array([rank[name] for name in names])


def _refuse_missing(empty: list[int], columns: Sequence[IdColumn], codes: Array) -> None:
    row = int(np.flatnonzero(np.isin(codes, empty))[0])
    for column in columns:
        if row < len(column.values):
            raise FileError(
                f"{column.where(row)}, column {column.name}: expected a node's id, got an empty "
                "cell"
            )
        row -= len(column.values)


def arrays_of(ids: Array) -> dict[str, Array]:
    """The ids as arrays that NumPy stores without pickles, in proportion to their letters.

    Returns:
        ``id`` [N], int64 or text of fixed width. Where a few long ones would blow that up, in its
        place ``id_utf8``, the UTF-8 bytes of all of them, and ``id_end`` [N], where each ends.
    """
    if ids.dtype != object:
        return {"id": ids}
    packed = [text.encode("utf-8", "surrogatepass") for text in ids.tolist()]
    lengths = np.array([len(text) for text in packed])
    if 4 * len(ids) * max(map(len, ids.tolist())) <= max(_SMALL, _PROPORTION * lengths.sum()):
        return {"id": ids.astype(str)}
    return {"id_utf8": np.frombuffer(b"".join(packed), np.uint8), "id_end": lengths.cumsum()}


def _integers(names: list[str]) -> Array | None:
    """The ids as int64, if all of them are canonical integers."""
    if max(map(len, names)) > _LONGEST_INTEGER:
        return None
    try:
        numbers = np.array(list(map(int, names)), dtype=np.int64)
    except (ValueError, OverflowError):
        return None
    return numbers if list(map(str, numbers.tolist())) == names else None
