"""Files of fixed negatives: NumPy archives, and Parquet tables.

An archive holds the attributes of `FixedNegatives` as arrays under their names. A table is long,
for readers in any language: a row a negative, pair by pair, level by level, with what holds for all
in columns that are constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, TypeVar

import numpy as np
import pandas as pd
import torch

from dgl_dmns.files import check_parquet, read_arrays, read_parquet, whole_file, write_arrays

__all__ = ["read", "write"]

_Made = TypeVar("_Made")

FORMAT = "dgl-dmns fixed negatives 1"
_ARRAYS = {
    "format": ("U", 0),
    "queries": ("i", 1),
    "positives": ("i", 1),
    "negatives": ("i", 3),
    "levels": ("U", 1),
    "seed": ("i", 0),
    "fingerprint": ("U", 0),
    "num_nodes": ("i", 1),
    "etype": ("U", 1),
}
"""Names of the arrays, with their kind (NumPy's letter) and number of dimensions."""

_ROW = ["pair", "query", "positive", "level", "negative"]
_CONSTANT = ["seed", "fingerprint", "num_src", "num_dst", "source", "relation", "destination"]


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write attributes to a file whose suffix says its kind; see `FixedNegatives.save`."""
    _check_kind(path)
    with whole_file(path) as file:
        if path.suffix == ".npz":
            arrays = {name: np.asarray(value) for name, value in values.items()}
            write_arrays(file, {"format": np.array(FORMAT), **arrays})
        else:
            _to_frame(values).to_parquet(file.name, index=False)


def read(path: Path, make: Callable[..., _Made]) -> _Made:
    """What ``make`` makes of the attributes in a file; see `FixedNegatives.load`."""
    _check_kind(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"path: there is no file {path}; write one with FixedNegatives.save, or check the name"
        )
    try:
        if path.suffix == ".npz":
            return make(**_from_arrays(read_arrays(path)))
        return make(**_from_frame(read_parquet(path)))
    except Exception as error:  # a damaged file fails in any part of zip, NumPy, Arrow or pandas
        raise ValueError(
            f"{path}: not a complete file of fixed negatives ({type(error).__name__}: {error}); "
            "get it again, or make it anew with fixed_negatives(...).save(...)"
        ) from error


def _check_kind(path: Path) -> None:
    if path.suffix not in (".npz", ".parquet"):
        raise ValueError(f"path: expected a name that ends in .npz or .parquet, got {path.name!r}")
    if path.suffix == ".parquet":
        check_parquet(path, "take a name that ends in .npz")


def _from_arrays(found: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    missing = [name for name in _ARRAYS if name not in found]
    if missing:
        raise ValueError(f"expected the arrays {list(_ARRAYS)}, got none of {missing}")
    for name, (kind, dimensions) in _ARRAYS.items():
        array = found[name]
        if array.dtype.kind != kind or array.ndim != dimensions:
            raise ValueError(
                f"array {name}: expected kind {kind!r} in {dimensions} dimension(s), got "
                f"{array.dtype} in {array.ndim}"
            )
    if found["format"] != FORMAT:
        raise ValueError(f"expected format {FORMAT!r}, got {str(found['format'])!r}")
    if len(found["num_nodes"]) != 2 or len(found["etype"]) != 3:
        raise ValueError("expected two counts of nodes and the three parts of an edge type")
    return {
        **{name: _tensor(found[name]) for name in ("queries", "positives", "negatives")},
        **{name: found[name].item() for name in ("seed", "fingerprint")},
        **{name: tuple(found[name].tolist()) for name in ("levels", "num_nodes", "etype")},
    }


def _to_frame(values: Mapping[str, Any]) -> pd.DataFrame:
    """The long table, P L n rows."""
    pairs, levels, n = values["negatives"].shape
    each = levels * n
    columns = {
        "pair": np.repeat(np.arange(pairs), each),
        "query": np.repeat(values["queries"].numpy(), each),
        "positive": np.repeat(values["positives"].numpy(), each),
        "level": np.tile(np.repeat(np.array(values["levels"], dtype=object), n), pairs),
        "negative": values["negatives"].flatten().numpy(),
    }
    constant = (values["seed"], values["fingerprint"], *values["num_nodes"], *values["etype"])
    return pd.DataFrame({**columns, **dict(zip(_CONSTANT, constant))})


def _from_frame(frame: pd.DataFrame) -> dict[str, Any]:
    """The attributes in a long table, which has to be the one that would be written of them.

    Raises:
        ValueError: if a column or a row is missing, in another place, or of another kind.
    """
    expected = [*_ROW, *_CONSTANT]
    missing = [name for name in expected if name not in frame.columns]
    if missing or not len(frame):
        raise ValueError(
            f"expected rows with the columns {expected}, got {len(frame)} rows with none of "
            f"{missing}"
        )
    levels, pairs = frame["level"].unique().tolist(), frame["pair"].nunique()
    n, rest = divmod(len(frame), pairs * len(levels))
    if rest:
        raise ValueError("rows: expected n of each level for each pair, in the order they were in")
    ids = frame[["query", "positive", "negative"]].to_numpy(dtype=np.int64)
    by_pair = ids.reshape(pairs, len(levels) * n, 3)
    seed, fingerprint, num_src, num_dst, *etype = frame[_CONSTANT].iloc[0]
    values = {
        "queries": _tensor(by_pair[:, 0, 0]),
        "positives": _tensor(by_pair[:, 0, 1]),
        "negatives": _tensor(by_pair[:, :, 2].reshape(pairs, len(levels), n)),
        "levels": tuple(map(str, levels)),
        "seed": int(seed),
        "fingerprint": str(fingerprint),
        "num_nodes": (int(num_src), int(num_dst)),
        "etype": tuple(map(str, etype)),
    }
    written = _to_frame(values)
    wrong = [name for name in expected if not _alike(frame[name], written[name])]
    if wrong:
        raise ValueError(
            f"columns {wrong}: expected n rows of each level for each pair, in the order they were "
            "in, integers as ids, one query and positive a pair, and one value of what holds for "
            "all"
        )
    return values


def _alike(found: pd.Series[Any], expected: pd.Series[Any]) -> bool:
    one, other = found.to_numpy(), expected.to_numpy()
    return one.dtype.kind == other.dtype.kind and bool((one == other).all())


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.int64, order="C"))  # pandas 3's is read-only
