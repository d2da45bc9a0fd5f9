"""Negatives as a file, for pipelines that read them from one: a row a negative.

Each known edge gets the negatives that it would be given in the first pass over the edges since the
last refresh. No turn is taken: the sampler is left as it was.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dgl_dmns.checks import as_integer, as_number
from dgl_dmns.core import EdgeName, Embeddings, Look, fit_seed, in_float32, look_at, shielded
from dgl_dmns.files import check_parquet, whole_file

if TYPE_CHECKING:
    from dgl_dmns.samplers.base import NegativeSampler

__all__ = ["export_negatives"]

Names = np.ndarray[Any, Any]

_EDGES = 1 << 14  # that are written at a time: a bounded working set


@torch.no_grad()
@in_float32
@shielded
def export_negatives(
    sampler: NegativeSampler,
    path: str | os.PathLike[str],
    *,
    etype: EdgeName | None = None,
    embeddings: Embeddings | None = None,
    ids: Any = None,
    max_score: float | None = None,
    margin: float | None = None,
    seed: int = 0,
) -> int:
    """Write the negatives of every known edge of a type: k for each, in the order of the edges.

    Parallel edges count once, and edges are sorted by source and destination. Columns:

    - ``source``, ``positive``: the ends of the edge.
    - ``destination``: the negative, which may repeat, as in training.
    - ``level``: its hardness level, such as ``"0.1T"``; ``"uniform"`` for a uniform draw; ``"no
      level"`` for what the score, the popularity or the batch has chosen.
    - ``log_ratio``: ``log q(u|v) - log uniform(u)``, as of the last refresh; missing for a rule
      without a tractable distribution.
    - ``score``: of source and negative, by the sampler's scorer; missing without embeddings.

    Queries that are linked to all other nodes have no negatives, so no rows.

    Args:
        sampler: a sampler of this package; refreshed, if it follows an encoder.
        path: a name that ends in ``.csv``, or in ``.parquet`` where pyarrow is installed. A file of
            that name is replaced, and only once the new one is complete.
        etype: edge type; may be left out where the sampler holds one.
        embeddings: shape [N, D], or a dict of those by node type, for the scores; defaults to those
            of the sampler's encoder, if it has one.
        ids: what nodes are called in the file: a name (or an integer) for each, in the order of
            their numbers; a dict of those by node type where the ends have two. Defaults to
            numbers.
        max_score: negatives that score above it are left out, as likely missing edges.
        margin: likewise those that score above the score of their positive less this margin.
        seed: of all draws.

    Returns:
        The number of rows.

    Raises:
        ValueError: for another ending, names that do not fit, a bound that is NaN, a bound without
            embeddings, or as for `look`.
        TypeError: for names that are neither words nor integers, or a bound that is no number.
        RuntimeError: before the first refresh, or if this is a copy.
        ImportError: for Parquet without pyarrow.
        OSError: if the file cannot be written; what was there stays.
    """
    target = Path(path)
    if target.suffix not in (".csv", ".parquet"):
        raise ValueError(
            f"path: expected a name that ends in .csv or .parquet, got {target.name!r}"
        )
    if target.suffix == ".parquet":
        check_parquet(target, "take a name that ends in .csv")
    bounds = {"max_score": max_score, "margin": margin}
    given = {name: as_number(name, bound) for name, bound in bounds.items() if bound is not None}
    for name, bound in given.items():
        if math.isnan(bound):
            raise ValueError(f"{name}: expected a number, got NaN; leave it out for no bound")
    look = look_at(sampler, etype, embeddings)
    if given and look.snapshot is None:
        raise ValueError(
            f"{next(iter(given))}: {look.name} follows no encoder, so that its negatives have no "
            "scores; pass embeddings=..."
        )
    names = _names(ids, look)
    generator = torch.Generator().manual_seed(fit_seed(as_integer("seed", seed)))
    frames = _frames(sampler, look, names, given, generator)
    with whole_file(target) as file:
        write = _write_csv if target.suffix == ".csv" else _write_parquet
        return write(file, frames)


def _frames(
    sampler: Any,
    look: Look,
    names: tuple[Names | None, Names | None],
    bounds: Mapping[str, float],
    generator: torch.Generator,
) -> Iterator[pd.DataFrame]:
    """The rows of some edges after the other."""
    known = look.known
    levels = np.array([*look.levels, "no level", "uniform"], dtype=object)
    for place in torch.arange(known.indices.numel()).split(_EDGES):
        src = torch.searchsorted(known.indptr, place, right=True) - 1
        dst = known.indices[place].long()
        drawn, level, chosen = look.negatives(src, dst, generator)
        kept = ~known.contains(src.unsqueeze(1), drawn)  # of who is linked to all
        score = torch.full(drawn.shape, math.nan, dtype=torch.float32)
        if look.snapshot is not None:
            score = look.snapshot.scores(src.unsqueeze(1), drawn).squeeze(1)
        if "max_score" in bounds:
            kept &= score <= bounds["max_score"]
        if "margin" in bounds:
            assert look.snapshot is not None
            true = look.snapshot.scores(src.unsqueeze(1), dst.unsqueeze(1)).squeeze(1)
            kept &= score <= true - bounds["margin"]
        row, slot = kept.nonzero(as_tuple=True)
        level = level.long().clamp(max=len(look.levels)).masked_fill(~chosen, len(levels) - 1)
        ratio = _log_ratio(sampler, look, src, dst, drawn)
        yield pd.DataFrame(
            {
                "source": _named(src[row], names[0]),
                "positive": _named(dst[row], names[1]),
                "destination": _named(drawn[row, slot], names[1]),
                "level": levels[level[row, slot].numpy()],
                "log_ratio": ratio[row, slot].numpy(),
                "score": score[row, slot].numpy(),
            }
        )


def _log_ratio(sampler: Any, look: Look, src: Tensor, dst: Tensor, drawn: Tensor) -> Tensor:
    """Log ratios of negatives [B, k] of edges [B], float32; NaN where they are not tractable."""
    ratio = torch.full(drawn.shape, math.nan, dtype=torch.float32)
    if look.rows is not None:
        if sampler.rule.tractable:
            query = src.repeat_interleave(drawn.shape[1])
            ratio = sampler.distribution(look.etype).log_ratio(query, drawn.flatten())
        return ratio.view(drawn.shape)
    with suppress(ValueError):  # a sampler without a distribution
        ratio = sampler._draws(look.etype, dst).own_log_ratio(src, drawn).float()
    return ratio


def _names(ids: Any, look: Look) -> tuple[Names | None, Names | None]:
    """What sources and destinations are called, an array each; None for numbers."""
    if ids is None:
        return None, None
    source, _, destination = look.etype
    counts = {source: look.known.num_src, destination: look.known.num_dst}
    by_type = ids if isinstance(ids, Mapping) else dict.fromkeys(counts, ids)
    if not counts.keys() <= by_type.keys() or (by_type is not ids and len(counts) > 1):
        raise ValueError(
            f"ids: expected names by node type, a dict with {list(counts)}, got "
            f"{list(by_type) if by_type is ids else type(ids).__name__}; write "
            "ids={node type: names}"
        )
    made = {ntype: _checked(by_type[ntype], count, ntype) for ntype, count in counts.items()}
    return made[source], made[destination]


def _checked(names: Any, count: int, ntype: str) -> Names:
    """Names as an array of words, or of int64."""
    array = np.asarray(names)
    if array.shape != (count,):
        raise ValueError(
            f"ids: expected {count} names of nodes of type {ntype!r}, got shape {array.shape}; "
            "give one for each node, in the order of their numbers"
        )
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    array = array.astype(object)
    strange = next((one for one in array if not isinstance(one, str)), None)
    if strange is not None:
        raise TypeError(
            f"ids: expected words or integers as names of nodes of type {ntype!r}, got "
            f"{strange!r}; convert them with str"
        )
    return array


def _named(nodes: Tensor, names: Names | None) -> Names:
    numbers: Names = nodes.numpy()
    return numbers if names is None else names[numbers]


def _write_csv(file: BinaryIO, frames: Iterator[pd.DataFrame]) -> int:
    rows = 0
    for at, frame in enumerate(frames):
        file.write(frame.to_csv(index=False, header=at == 0).encode())
        rows += len(frame)
    return rows


def _write_parquet(file: BinaryIO, frames: Iterator[pd.DataFrame]) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    first = next(frames)
    kinds = [
        pa.int64() if column.dtype.kind == "i" else pa.string()
        for column in (first["source"], first["positive"], first["destination"])
    ]
    schema = pa.schema(zip(first.columns, [*kinds, pa.string(), pa.float32(), pa.float32()]))
    rows = 0
    with parquet.ParquetWriter(file, schema) as writer:
        for frame in (first, *frames):
            writer.write_table(pa.Table.from_pandas(frame, schema, preserve_index=False))
            rows += len(frame)
    return rows
