"""What a run belongs to: fingerprints of its edges, ids and features.

A checkpoint that is resumed on other edges would train on what the other split holds out, without a
word; so it carries these.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from dgl_dmns.cli.edges import NamedGraph

__all__ = ["fingerprints"]


def fingerprints(graph: NamedGraph) -> dict[str, str]:
    """SHA-256 of the edges, the ids and the features of a graph, by those names.

    The edges are those after cleaning, in their order there: a file with the same edges in another
    order, or under another name, is the same.
    """
    data = graph.data
    return {
        "edges": _digest(data.src.numpy(), data.dst.numpy()),
        "ids": _digest(graph.ids),
        "features": _digest(data.features.numpy()),
    }


def _digest(*arrays: np.ndarray[Any, Any]) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str} {array.shape}".encode())
        if array.dtype.hasobject:
            for item in array.flat:
                total.update(f"{item!r}\n".encode())
        else:
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
