"""``dgl-dmns recommend`` and ``dgl-dmns rank``: ranked answers of a run, known ones left out."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dgl_dmns.cli.edges import read_table
from dgl_dmns.cli.tables import Array, ColumnsError, FileError, IdColumn, Wanted, ids_of, look_up
from dgl_dmns.core import dot_score
from dgl_dmns.files import check_parquet, read_arrays, whole_file
from dgl_dmns.messages import one_line
from dgl_dmns.models import MODELS

__all__ = ["run_rank", "run_recommend"]

_BATCH = 256  # queries that are scored at once
_COMMAND = {"graph": "recommend", "bipartite": "recommend", "knowledge": "rank"}


def run_recommend(arguments: argparse.Namespace) -> int:
    """Write the best items of users, or neighbours of nodes, those left out that are known."""
    _check_out(arguments.out)
    if arguments.no_header and arguments.users is None:
        raise ValueError("--no-header: goes with --users; leave it out")
    run = _Answers.load(arguments.run, "recommend")
    name, other = run.columns
    if arguments.users is None:
        asked = np.arange(len(run.queries))
    else:
        advice = f"name the column {name}, or add --no-header"
        wanted = Wanted((name,), not arguments.no_header, advice=advice)
        ((column,), _) = read_table(arguments.users, wanted)
        asked = pd.unique(look_up(column, run.queries, f"a {run.what}"))
    learned = run.arrays["query_trained"][asked]
    if not learned.all():
        left_out = (
            f"{int((~learned).sum())} user(s) left out, of whom no row was trained on, for example "
            f"{one_line(run.queries[asked[~learned][0]])}"
        )
        if not learned.any():
            raise ValueError(f"{arguments.users}: {left_out}; none is left")
        sys.stderr.write(f"warning: {left_out}\n")
    asked = asked[learned]
    h = torch.from_numpy(run.arrays["query_embedding"][asked])
    row, place, item, score = run.best(h, torch.from_numpy(asked), arguments.top)
    own = run.queries[asked[row]]
    found = {name: own, "rank": place, other: run.items[item], "score": score}
    return _write(pd.DataFrame(found), arguments.out)


def run_rank(arguments: argparse.Namespace) -> int:
    """Write the likeliest tails of heads and relations, or heads; known triples are left out."""
    _check_out(arguments.out)
    run = _Answers.load(arguments.run, "rank")
    head, relation, tail = run.columns
    ends, tails = _queries(arguments.queries, run.columns)
    relations = ids_of(run.arrays, "relation_id")
    entity, kind = (
        look_up(ends[not tails], run.items, "an entity"),
        look_up(ends[tails], relations, "a relation"),
    )
    both = torch.from_numpy(np.unique(np.stack([entity, kind]), axis=1))
    entity, kind = both.numpy()
    asked = both[1] if tails else both[1] + len(relations)
    parts = (torch.from_numpy(run.arrays[f"{n}_embedding"]) for n in ("item", "relation"))
    h = run.model.composed(*(table[ids] for table, ids in zip(parts, (both[0], asked))))
    row, place, item, score = run.best(h, run.numbered(both[0], asked), arguments.top)
    given, answer = (head, tail) if tails else (tail, head)
    found = {
        given: run.items[entity[row]],
        relation: relations[kind[row]],
        answer: run.items[item],
        "rank": place,
        "score": score,
    }
    return _write(pd.DataFrame(found)[[head, relation, tail, "rank", "score"]], arguments.out)


def _queries(file: Path, columns: tuple[str, ...]) -> tuple[list[IdColumn], bool]:
    """The columns of a file of queries, and whether they ask for tails."""
    head, relation, tail = columns
    advice = (
        f"name the columns {head} and {relation}, to ask for tails, or {relation} and {tail}, for "
        "heads"
    )
    tables = {}
    for tails, wanted in ((True, (head, relation)), (False, (relation, tail))):
        with contextlib.suppress(ColumnsError):
            tables[tails] = read_table(file, Wanted(wanted, advice=advice))[0]
    if not tables:
        read_table(file, Wanted((head, relation), advice=advice))  # says what is there
    if len(tables) > 1:
        raise FileError(
            f"{file}: expected two columns, got {head}, {relation} and {tail}; {advice}"
        )
    ((tails, found),) = tables.items()
    return found, tails


@dataclass(frozen=True, eq=False)
class _Answers:
    """What a run left to answer with; ``arrays`` are those of ``Task.arrays``."""

    arrays: dict[str, Array]
    kind: str
    columns: tuple[str, ...]
    queries: Array  # ids of users or nodes; of entities for triples
    items: Array  # ids
    model: Any  # class of the model

    @property
    def what(self) -> str:
        """What a query is, if it is no pair."""
        return "user" if self.kind == "bipartite" else "node"

    @classmethod
    def load(cls, folder: Path, command: str) -> _Answers:
        """Read ``embeddings.npz`` for a command.

        Raises:
            ValueError: if it is not there, not complete, or of data for the other command.
        """
        file = folder / "embeddings.npz"
        if not file.is_file():
            raise ValueError(
                f"{folder}: expected the folder of a run, with a file embeddings.npz; dgl-dmns "
                "train writes one"
            )
        try:
            arrays = read_arrays(file)
            kind = str(arrays["kind"])
            other = _COMMAND[kind]
            if kind == "graph":
                ends = ("query", "item")
                arrays.update({f"{end}_embedding": arrays["embedding"] for end in ends})
                arrays["query_trained"] = np.ones(len(arrays["embedding"]), dtype=bool)
            names = {"graph": ("id", "id"), "bipartite": ("query_id", "item_id")}
            queries, items = (ids_of(arrays, n) for n in names.get(kind, ("item_id", "item_id")))
            columns = tuple(map(str, arrays["columns"].tolist()))
            made = cls(arrays, kind, columns, queries, items, MODELS[str(arrays["model"])])
        except Exception as error:  # a damaged archive fails in any part of zip and NumPy
            raise ValueError(
                f"{file}: not a complete file of a run of this version ({one_line(error)}); train "
                "it again into another folder"
            ) from error
        if other != command:
            raise ValueError(f"{folder}: a run with --kind {kind}; use dgl-dmns {other} for it")
        return made

    def numbered(self, entity: Tensor, relation: Tensor) -> Tensor:
        """The numbers of queries [B] whose known items the run holds; -1 for another."""
        own = [torch.from_numpy(self.arrays[f"query_{n}"]) for n in ("entity", "relation")]
        width = len(self.arrays["relation_embedding"])
        key, asked = own[0] * width + own[1], entity * width + relation  # key is ascending
        place = torch.searchsorted(key, asked).clamp(max=len(key) - 1)
        return torch.where(key[place] == asked, place, -1)

    def best(self, h: Tensor, query: Tensor, top: int) -> tuple[Array, Array, Array, Array]:
        """The best items of queries with embeddings ``h`` [B, D], known ones left out.

        Returns:
            Row among the queries, rank from 1, item and score of each answer, [A] each.
        """
        indptr, indices = (
            torch.from_numpy(self.arrays[f"known_{n}"]) for n in ("indptr", "indices")
        )
        item_h = torch.from_numpy(self.arrays["item_embedding"])
        parts = []
        inner = self.model.score is dot_score
        batch = _BATCH if inner else _BATCH // 8  # a scorer forms [batch, N, D]
        for first in range(0, len(query), batch):
            part, own = query[first : first + batch], h[first : first + batch]
            score = own @ item_h.t() if inner else self.model.score(own.unsqueeze(1), item_h)
            if self.kind == "graph":
                score[torch.arange(len(part)), part] = -torch.inf
            for row, one in enumerate(part.tolist()):
                if one >= 0:
                    score[row, indices[indptr[one] : indptr[one + 1]]] = -torch.inf
            order = (-score).argsort(dim=1, stable=True)[:, :top]
            value = score.gather(1, order)
            at, place = value.isfinite().nonzero(as_tuple=True)
            parts.append((at + first, place + 1, order[at, place], value[at, place]))
        rows, place, item, value = (torch.cat(column).numpy() for column in zip(*parts))
        return rows, place, item, value


def _check_out(out: Path | None) -> None:
    """Refuse a file that would be overwritten, or that could not be written in the end."""
    if out is None:
        return
    if out.exists():
        raise ValueError(f"--out: {out} is there already; name a new file, or remove it")
    if not out.parent.is_dir():
        raise ValueError(f"--out: there is no folder {out.parent}; make it, or name another")
    if out.suffix.lower() == ".parquet":
        check_parquet(out, "name a .csv file")


def _write(table: pd.DataFrame, out: Path | None) -> int:
    if out is None:
        sys.stdout.write(table.to_csv(index=False))
        return 0
    with whole_file(out) as file:
        if out.suffix.lower() == ".csv":
            file.write(table.to_csv(index=False).encode("utf-8", "surrogatepass"))
        else:
            table.to_parquet(file.name, index=False)
    return 0
