"""Files of fixed negatives: NumPy archives, and Parquet tables by way of pandas.

An archive holds the arrays of `FixedNegatives` under their names. A table is long, for readers in
any language: a row a negative, pair by pair, level by level, with what holds for all in columns
that are constant.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import numpy as np
import pandas as pd
import torch

from dgl_dmns.files import read_arrays, read_parquet, write_arrays

if TYPE_CHECKING:
    from dgl_dmns.evaluate.fixed import FixedNegatives

__all__ = ["from_frame", "read", "to_frame", "write"]

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


def write(fixed: FixedNegatives, path: Path) -> None:
    """Write a file whose suffix says its kind; see `FixedNegatives.save`."""
    _check_suffix(path)
    unfinished = path.with_name(f"{path.name}.part")
    try:
        if path.suffix == ".npz":
            with unfinished.open("wb") as file:
                write_arrays(file, _arrays(fixed))
        else:
            _with_engine(lambda: to_frame(fixed).to_parquet(unfinished, index=False))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: Path, make: Callable[..., FixedNegatives]) -> FixedNegatives:
    """What ``make`` makes of the attributes in a file; see `FixedNegatives.load`."""
    _check_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"path: there is no file {path}; write one with FixedNegatives.save, or check the name"
        )
    try:
        if path.suffix == ".npz":
            return make(**_read_archive(path))
        return make(**from_frame(_with_engine(lambda: read_parquet(path))))
    except ImportError:
        raise
    except Exception as error:  # a damaged file fails in any part of zip, NumPy, Arrow or pandas
        raise ValueError(
            f"{path}: not a complete file of fixed negatives ({type(error).__name__}: {error}); "
            "get it again, or make it anew with fixed_negatives(...).save(...)"
        ) from error


def to_frame(fixed: FixedNegatives) -> pd.DataFrame:
    """The long table, P L n rows."""
    pairs, levels, n = fixed.negatives.shape
    each = levels * n
    columns: dict[str, Any] = {
        "pair": np.repeat(np.arange(pairs), each),
        "query": np.repeat(fixed.queries.numpy(), each),
        "positive": np.repeat(fixed.positives.numpy(), each),
        "level": np.tile(np.repeat(np.array(fixed.levels, dtype=object), n), pairs),
        "negative": fixed.negatives.flatten().numpy(),
    }
    constants = (fixed.seed, fixed.fingerprint, *fixed.num_nodes, *fixed.etype)
    return pd.DataFrame({**columns, **dict(zip(_CONSTANT, constants))})


def from_frame(frame: pd.DataFrame) -> dict[str, Any]:
    """The attributes of `FixedNegatives` in a long table.

    Raises:
        ValueError: if a column or a row is missing, in another place, or of another kind.
    """
    missing = [name for name in (*_ROW, *_CONSTANT) if name not in frame.columns]
    if missing or not len(frame):
        raise ValueError(
            f"expected rows with the columns {_ROW + _CONSTANT}, got {len(frame)} rows "
            f"with none of {missing}"
        )
    for name in ("pair", "query", "positive", "negative", "seed", "num_src", "num_dst"):
        if not pd.api.types.is_integer_dtype(frame[name]):
            raise ValueError(f"column {name}: expected integers, got {frame[name].dtype}")
    varying = [name for name in _CONSTANT if frame[name].nunique(dropna=False) != 1]
    if varying:
        raise ValueError(f"columns {varying}: expected one value in all rows, got several")
    levels = list(dict.fromkeys(frame["level"]))
    pairs = frame["pair"].nunique()
    n, rest = divmod(len(frame), pairs * len(levels))
    expected = np.tile(np.repeat(np.array(levels, dtype=object), n), pairs)
    place = np.repeat(np.arange(pairs), len(levels) * n)
    fits = not rest and (frame["level"].to_numpy(dtype=object) == expected).all()
    if not fits or (frame["pair"].to_numpy() != place).any():
        raise ValueError("rows: expected n of each level for each pair, in the order they were in")
    first = frame.iloc[0]
    by_pair = frame[["query", "positive", "negative"]].to_numpy(dtype=np.int64)
    by_pair = by_pair.reshape(pairs, len(levels) * n, 3)
    if (by_pair[:, :, :2] != by_pair[:, :1, :2]).any():
        raise ValueError("rows: expected one query and one positive for each pair")
    return {
        "queries": _tensor(by_pair[:, 0, 0]),
        "positives": _tensor(by_pair[:, 0, 1]),
        "negatives": _tensor(by_pair[:, :, 2].reshape(pairs, len(levels), n)),
        "levels": tuple(str(level) for level in levels),
        "seed": int(first["seed"]),
        "fingerprint": str(first["fingerprint"]),
        "num_nodes": (int(first["num_src"]), int(first["num_dst"])),
        "etype": tuple(str(first[name]) for name in ("source", "relation", "destination")),
    }


def _arrays(fixed: FixedNegatives) -> dict[str, Any]:
    values = {name: getattr(fixed, name) for name in _ARRAYS if name != "format"}
    return {"format": np.array(FORMAT), **{k: np.asarray(v) for k, v in values.items()}}


def _read_archive(path: Path) -> dict[str, Any]:
    found = read_arrays(path)
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
        "queries": _tensor(found["queries"]),
        "positives": _tensor(found["positives"]),
        "negatives": _tensor(found["negatives"]),
        "levels": tuple(found["levels"].tolist()),
        "seed": int(found["seed"]),
        "fingerprint": str(found["fingerprint"]),
        "num_nodes": tuple(found["num_nodes"].tolist()),
        "etype": tuple(found["etype"].tolist()),
    }


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.int64, order="C"))  # pandas 3's is read-only


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".npz", ".parquet"):
        raise ValueError(f"path: expected a name that ends in .npz or .parquet, got {path.name!r}")


def _with_engine(call: Any) -> Any:
    try:
        return call()
    except ImportError as error:
        raise ImportError(
            "Parquet needs an engine that pandas can use; install one (python -m pip install "
            "pyarrow), or save to a name that ends in .npz"
        ) from error
