"""A user's files of users and items, or of triples: distinct rows, given splits, and ids by kind.

Users and items, and entities and relations, have their own ids (see `dgl_dmns.cli.tables`), which
are numbered over all files of a run: a held-out row may name a node that no training row has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgl_dmns.cli.edges import check_first_row, digest, name_of, read_table
from dgl_dmns.cli.kinds import KINDS
from dgl_dmns.cli.tables import Array, FileError, IdColumn, Wanted, arrays_of, number_nodes
from dgl_dmns.core import fit_seed
from dgl_dmns.data import generated_shop, generated_triples
from dgl_dmns.messages import one_line

__all__ = ["NODES", "Records", "generated_records", "read_records"]

NODES: dict[str, tuple[str, ...]] = {
    "bipartite": ("user", "item"),
    "knowledge": ("entity", "relation", "entity"),
}
"""What the columns of a kind of data name."""
_LEAST = 20  # rows, of which one is for validation and two for the test
_VALIDATION, _TEST = 0.05, 0.1
_OF_TRAINING = 0.1  # for validation, where the test is given

Split = dict[str, Tensor]
"""Rows [C, P] for ``train``, ``val`` and ``test``."""


@dataclass(frozen=True, eq=False)
class Records:
    """Rows of nodes, int64 [C, P] with a row for each column, and what they are called.

    Attributes:
        name: what the data are called.
        kind: ``"bipartite"`` or ``"knowledge"``.
        columns: names of the columns [C] in the files.
        ids: the ids by what a column names, see `NODES`.
        rows: distinct rows, ascending, or by time if ``by_time``; those of training, where ``test``
            is given.
        by_time: whether rows are in the order of time, which splits them.
        test: distinct rows of the test file, none of which is in ``rows``, or None.
        validation: likewise; none is in ``test`` either.
        dropped: rows of these files that were left out for that.
    """

    name: str
    kind: str
    columns: tuple[str, ...]
    ids: dict[str, Array]
    rows: Tensor
    by_time: bool = False
    test: Tensor | None = None
    validation: Tensor | None = None
    dropped: int = 0

    def count(self, what: str) -> int:
        """Number of nodes of a kind."""
        return len(self.ids[what])

    def everything(self) -> Tensor:
        """All rows, held-out ones included, int64 [C, P]."""
        given = [part for part in (self.rows, self.validation, self.test) if part is not None]
        return torch.cat(given, dim=1)

    def split(self, seed: int) -> tuple[Split, int]:
        """Training, validation and test by a seed, and how many held-out rows are left out.

        In a shop these are the rows of users without a training row, who cannot be learned.

        Raises:
            ValueError: if no validation or test row remains.
        """
        rows, test, val = self.rows, self.test, self.validation
        count = rows.shape[1]
        order = torch.arange(count)
        if not self.by_time:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(fit_seed(seed)))
        if test is None:
            last = count - int(_TEST * count)
            test, order = rows[:, order[last:]], order[:last]
        if val is None:
            share = _OF_TRAINING if self.test is not None else _VALIDATION
            last = len(order) - int(share * count)
            val, order = rows[:, order[last:]], order[:last]
        train = rows[:, order.sort().values]
        split, left_out = {"train": train, "val": val, "test": test}, 0
        if self.kind == "bipartite":
            for part in ("val", "test"):
                kept = torch.isin(split[part][0], train[0])
                left_out += int((~kept).sum())
                split[part] = split[part][:, kept]
        for part, words in (("val", "validation"), ("test", "test")):
            if not split[part].shape[1]:
                raise ValueError(
                    f"{self.name}: all {words} rows are of users without a training row; hold out "
                    "rows of users that have others"
                )
        return split, left_out

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the rows, the ids and the given splits, by those names."""
        held = [part.numpy() for part in (self.test, self.validation) if part is not None]
        named = [array for ids in self.ids.values() for array in arrays_of(ids).values()]
        return {
            "edges": digest(self.rows.numpy()),
            "ids": digest(*named),
            "test or validation edges": digest(*held),
        }

    def facts(self) -> dict[str, Any]:
        """The record of a run on its data."""
        held = "5 % of the rows for validation, 10 % for the test"
        if self.by_time:
            held = "by time: the last 10 % of the rows for the test, the 5 % before for validation"
        elif self.test is not None:
            held = f"{self.test.shape[1]} given test rows; for validation "
            held += "a tenth of the training rows"
            if self.validation is not None:
                held = f"given: {self.validation.shape[1]} rows for validation, "
                held += f"{self.test.shape[1]} for the test"
        counts = {_PLURAL[what]: len(ids) for what, ids in self.ids.items()}
        return {"name": self.name, **counts, "rows": self.everything().shape[1], "held out": held}

    def __str__(self) -> str:
        counts = ", ".join(f"{len(ids)} {_PLURAL[what]}" for what, ids in self.ids.items())
        total = self.everything().shape[1]
        words = f"{self.name}: {counts}, {total} {_ROWS[self.kind]}"
        left_out = self.split(0)[1]
        if self.dropped:
            words += f"; {self.dropped} held-out rows that stand in another file left out"
        if left_out:
            words += f"; {left_out} held-out pairs of users without a training pair left out"
        return words


_PLURAL = {"user": "users", "item": "items", "entity": "entities", "relation": "relations"}
_ROWS = {"bipartite": "pairs", "knowledge": "triples"}


def generated_records(kind: str) -> Records:
    """A generated shop, or generated triples, with ids from 0 on."""
    name = "a generated shop" if kind == "bipartite" else "generated triples"
    rows = generated_shop() if kind == "bipartite" else generated_triples()
    count: dict[str, int] = {}
    for what, column in zip(NODES[kind], rows):
        count[what] = max(count.get(what, 0), int(column.max()) + 1)
    ids = {what: np.arange(many) for what, many in count.items()}
    columns = tuple(KINDS[kind].columns.values())
    return Records(name, kind, columns, ids, rows.unique(dim=1))


def read_records(
    edges: Path,
    kind: str,
    columns: Sequence[str],
    *,
    test: Path | None = None,
    validation: Path | None = None,
    time: str | None = None,
    header: bool = True,
) -> Records:
    """Rows of users and items or of triples, each once.

    Args:
        edges: a file of text, a Parquet file or a folder of these.
        kind: ``"bipartite"`` or ``"knowledge"``.
        columns: names of the columns, two or three; without a ``header`` the first ones count.
        test: such a file with the rows to test; those that stand in ``edges``, too, are left out.
        validation: likewise; those that stand in ``test``, too, are left out.
        time: name of a column with numbers or ISO dates, by which rows are put in order.
        header: whether the first line of text has the names.

    Raises:
        FileError: if a file is missing, cannot be read, lacks a column or a value, or has too few
            rows.
    """
    files = [file for file in (edges, test, validation) if file is not None]
    advice = ""
    if kind == "knowledge" or time is not None:
        named = [*KINDS[kind].columns, *([] if time is None else ["time"])]
        advice = f"name yours with {' '.join(f'--{option} NAME' for option in named)}"
        advice += "" if time else ", or --no-header where this line is a row"
    wanted = Wanted((*columns, *(() if time is None else (time,))), header, advice=advice)
    tables = [read_table(file, wanted)[0] for file in files]
    nodes = NODES[kind]
    ids: dict[str, Array] = {}
    numbered: list[list[Array]] = [[np.empty(0)] * len(nodes) for _ in files]
    for what in dict.fromkeys(nodes):
        places = [(t, c) for t in range(len(files)) for c, one in enumerate(nodes) if one == what]
        ids[what], codes = number_nodes([tables[t][c] for t, c in places])
        for (t, c), code in zip(places, codes):
            numbered[t][c] = code
    if not header:
        for table, codes in zip(tables, numbered):
            check_first_row(table[0], [(ids[what], code) for what, code in zip(nodes, codes)])
    order = None if time is None else _seconds(tables[0][-1])
    counts = [len(ids[what]) for what in nodes]
    rows, *held = [_distinct(codes, counts, order) for codes in numbered]
    if rows.shape[1] < _LEAST:
        raise FileError(
            f"{edges}: expected at least {_LEAST} different rows, of which some are held out, got "
            f"{rows.shape[1]}"
        )
    dropped, before = 0, [rows]
    for place, (file, part) in enumerate(zip(files[1:], held)):
        fresh = ~_among(part, torch.cat(before, dim=1), counts)
        if not bool(fresh.any()):
            raise FileError(f"{file}: expected rows that stand in no other file, got none")
        dropped += int((~fresh).sum())
        held[place] = part[:, fresh]
        before.append(held[place])
    given = dict(zip(("test", "validation"), held))
    made = Records(
        name_of(edges), kind, tuple(columns), ids, rows, time is not None, **given, dropped=dropped
    )
    made.split(0)
    return made


def _distinct(codes: Sequence[Array], counts: Sequence[int], time: Array | None) -> Tensor:
    """Each row once, [C, P], ascending; by the time that it is there first, where that is given."""
    key, place = np.unique(np.ravel_multi_index(tuple(codes), counts), return_inverse=True)
    if time is not None:
        earliest = np.full(len(key), np.inf)
        np.minimum.at(earliest, place, time)
        key = key[np.argsort(earliest, kind="stable")]
    return torch.from_numpy(np.stack(np.unravel_index(key, counts)).astype(np.int64))


def _among(rows: Tensor, others: Tensor, counts: Sequence[int]) -> Tensor:
    """Which rows [C, P] are among others, bool [P]."""
    keys = (np.ravel_multi_index(tuple(part.numpy()), counts) for part in (rows, others))
    return torch.from_numpy(np.isin(*keys))


def _seconds(column: IdColumn) -> Array:
    """Times as float64 [P]: numbers as they are, dates in ISO 8601 as seconds."""
    cells = [str(cell).strip() for cell in column.values.tolist()]
    for row, cell in enumerate(cells):
        if not cell:
            raise FileError(f"{column.where(row)}, column {column.name}: expected a time, got none")
    try:
        found = np.array(cells, dtype=np.float64)
    except ValueError:
        found = np.array([_date(cell) for cell in cells])
    if not np.isfinite(found).all():
        row = int((~np.isfinite(found)).argmax())
        raise FileError(
            f"{column.where(row)}, column {column.name}: expected a number, or in all rows dates "
            f"such as 2024-05-31 or 2024-05-31T08:15:00, got {one_line(repr(cells[row]))}"
        )
    return found


def _date(cell: str) -> float:
    """Seconds since 1970 of a date in ISO 8601; NaN for another."""
    try:
        when = np.datetime64(cell.removesuffix("Z"), "us")
    except ValueError:
        return float("nan")
    return float("nan") if np.isnat(when) else float(when.astype(np.int64)) / 1e6
