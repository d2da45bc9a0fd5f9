"""Damage files of every kind that the package reads, and look what reading them does.

``python tools/fuzzing.py --minutes 10`` goes on until the time is over; `test_fuzzing` runs a few
hundred attempts of each kind with a fixed seed. An attempt changes a good file (bits, cuts, pieces
put twice, other numbers; for archives and JSON also the content within, packed again correctly) and
reads it. A reader may take the file or raise its documented error; anything else is a finding.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import io
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from shared import graph, make

from dgl_dmns import DMNSSampler, files
from dgl_dmns.cli.edges import FileError, read_edges
from dgl_dmns.cli.records import read_records
from dgl_dmns.diagnostics import Monitor
from dgl_dmns.evaluate import FixedNegatives, fixed_negatives
from dgl_dmns.report import save_run, write_report

__all__ = ["KINDS", "Kind", "fuzz", "prepare"]

WORDS = ["", "0", "-1", "1e308", "nan", "inf", "9223372036854775808", "0x10", "$\\frac{", "\x00"]
WORDS += ['"', "'", ",", "\n", "é", "<script>", "../../x", "None", "true", "1" * 400]
VALUES = [None, True, -1, 0, 1 << 70, 1e308, float("nan"), "", "<b>", "$x_{", "\ud800", [], {}]
NODES = 24


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        files: names of the files below a folder that `prepare` fills.
        read: reads them.
        error: what it may raise.
    """

    files: tuple[str, ...]
    read: Callable[[Path], Any]
    error: type[Exception] = ValueError


def sampler(seed: int = 0) -> DMNSSampler:
    return make("dmns", graph(NODES, 90), k=2, seed=seed)


def load_sampler(folder: Path) -> None:
    """Load a state into a sampler, which has to give good negatives afterwards, come what may."""
    one = sampler(1)
    one.refresh()
    before = one.state_dict()
    try:
        one.load(folder / "sampler")
    except ValueError:
        after = one.state_dict()
        assert torch.equal(after["table"]["ids"], before["table"]["ids"])
        assert torch.equal(after["random"], before["random"])
        raise
    finally:
        g = graph(NODES, 90)
        src, dst = one(g, torch.arange(g.num_edges()))
        assert bool(((dst >= 0) & (dst < NODES)).all())
        assert not bool(one.known.contains(src, dst).any())


def prepare(folder: Path) -> None:
    """Good files of every kind."""
    pairs = pd.DataFrame({"src": [10, 20, 30, 10], "dst": [20, 30, 40, 40]})
    x = pd.DataFrame({"id": [10, 20, 30, 40], "a": [1.0, 2.0, 3.0, 4.0], "b": [5, 6, 7, 8]})
    words = pd.DataFrame({"src": ["ann", "bob", "7"], "dst": ["bob", "eve", "ann"]})
    pairs.to_csv(folder / "edges.csv", index=False)
    words.to_csv(folder / "words.csv", index=False)
    words.to_csv(folder / "words.txt", index=False, header=False, sep="\t")
    words.to_csv(folder / "words.tsv.gz", index=False, sep="\t")
    pairs.to_parquet(folder / "edges.parquet")
    x.to_csv(folder / "x.csv", index=False)
    x.to_parquet(folder / "x.parquet")
    pairs.replace({10: 0, 20: 1, 30: 2, 40: 3}).to_csv(folder / "numbered.csv", index=False)
    user, item = np.arange(24) % 4, np.arange(24) // 4
    shop = pd.DataFrame({"user": user, "item": item, "when": np.arange(24)})
    shop.to_csv(folder / "shop.csv", index=False)
    np.save(folder / "x.npy", np.arange(8, dtype=np.float32).reshape(4, 2))
    one = sampler()
    monitor = Monitor(one)
    one.refresh()
    one.refresh()
    monitor.log(epoch=1, loss=0.5)
    monitor.log(epoch=2, loss=0.4)
    monitor.close()
    one.save(folder / "sampler")
    held = torch.tensor([[0, 1, 2], [5, 6, 7]])
    fixed = fixed_negatives(one, held, n=2, seed=0)
    fixed.save(folder / "fixed.npz")
    fixed.save(folder / "fixed.parquet")
    save_run(folder, one, monitor, title="a run", data={"nodes": NODES}, result={"MRR": 0.5})


KINDS = {
    "checkpoint": Kind(("sampler",), lambda f: files.read_state(f / "sampler")),
    "sampler": Kind(("sampler",), load_sampler),
    "edges, CSV": Kind(("edges.csv",), lambda f: read_edges(f / "edges.csv"), FileError),
    "edges of words, CSV": Kind(("words.csv",), lambda f: read_edges(f / "words.csv"), FileError),
    "edges without a header": Kind(
        ("words.txt",), lambda f: read_edges(f / "words.txt", header=False), FileError
    ),
    "edges, packed": Kind(("words.tsv.gz",), lambda f: read_edges(f / "words.tsv.gz"), FileError),
    "edges, Parquet": Kind(
        ("edges.parquet",), lambda f: read_edges(f / "edges.parquet"), FileError
    ),
    "purchases, CSV": Kind(
        ("shop.csv",),
        lambda f: read_records(f / "shop.csv", "bipartite", ("user", "item"), time="when"),
        ValueError,
    ),
    "triples, CSV": Kind(
        ("shop.csv",),
        lambda f: read_records(f / "shop.csv", "knowledge", ("user", "item", "when")),
        FileError,
    ),
    "features, CSV": Kind(
        ("x.csv",), lambda f: read_edges(f / "edges.csv", f / "x.csv"), FileError
    ),
    "features, Parquet": Kind(
        ("x.parquet",), lambda f: read_edges(f / "edges.csv", f / "x.parquet"), FileError
    ),
    "features, NumPy": Kind(
        ("x.npy",), lambda f: read_edges(f / "numbered.csv", f / "x.npy"), FileError
    ),
    "fixed negatives, NumPy": Kind(("fixed.npz",), lambda f: FixedNegatives.load(f / "fixed.npz")),
    "fixed negatives, Parquet": Kind(
        ("fixed.parquet",), lambda f: FixedNegatives.load(f / "fixed.parquet")
    ),
    "run": Kind(
        ("run.json", "negatives.csv", "metrics.csv", "scores.npz", "query.npz"),
        lambda f: write_report(f),
    ),
}


def damage(content: bytes, r: random.Random) -> bytes:
    """A few changes of bytes."""
    data = bytearray(content)
    for _ in range(r.choice((1, 1, 1, 2, 4, 16))):
        place = r.randrange(len(data) + 1)
        end = min(len(data), place + r.choice((1, 1, 2, 4, 8, 64)))
        what = r.randrange(6)
        if what == 0 and place < len(data):
            data[place] ^= 1 << r.randrange(8)
        elif what == 1:
            del data[place:end]
        elif what == 2:
            data[place:place] = data[place:end] * r.choice((1, 2, 50))
        elif what == 3:
            data[place:end] = r.randbytes(end - place)
        elif what == 4:
            data[place:end] = r.choice(WORDS).encode("utf-8", "replace")
        elif what == 5 and r.random() < 0.3:
            del data[place:]
    return bytes(data)


def change_text(text: str, r: random.Random, separator: str) -> str:
    """Other words in a table of text."""
    lines = [line.split(separator) for line in text.split("\n")]
    for _ in range(r.choice((1, 1, 2, 5))):
        line = r.choice(lines)
        line[r.randrange(len(line))] = r.choice([*WORDS, *r.choice(lines)])
    return "\n".join(separator.join(line) for line in lines)


def change_value(value: Any, r: random.Random) -> Any:
    """Nested JSON or state with one thing taken away, put in, or replaced."""
    if isinstance(value, torch.Tensor) and r.random() < 0.7:
        return change_tensor(value, r)
    if isinstance(value, dict) and value and r.random() < 0.85:
        found = dict(value)
        key = r.choice(list(found))
        if r.random() < 0.1:
            del found[key]
        elif r.random() < 0.1:
            found[r.choice(WORDS)] = found.pop(key)
        else:
            found[key] = change_value(found[key], r)
        return found
    if isinstance(value, (list, tuple)) and value and r.random() < 0.85:
        parts = list(value)
        place = r.randrange(len(parts))
        parts[place] = change_value(parts[place], r)
        return type(value)(parts)
    return copy.deepcopy(r.choice(VALUES))


def change_tensor(value: torch.Tensor, r: random.Random) -> torch.Tensor:
    return torch.from_numpy(np.array(change_array(value.numpy(), r)))


def change_array(array: Any, r: random.Random) -> Any:
    """An array of another shape, type or content."""
    what = r.randrange(5)
    array = np.array(array)
    if what == 0 and array.ndim:
        return array[r.randrange(len(array) + 1) :]
    if what == 1:
        return array[None]
    if what == 2 and array.dtype.kind in "iufb":
        return array.astype(r.choice(("f4", "f8", "i4", "i8", "u1", "f2")))
    if array.size and array.dtype.kind in "iuf":
        flat = array.reshape(-1)
        top = np.iinfo(array.dtype).max if array.dtype.kind in "iu" else np.inf
        flat[r.randrange(flat.size)] = r.choice((0, 1, 100, top))
        if array.dtype.kind != "u" and r.random() < 0.3:
            flat[r.randrange(flat.size)] = -1
    return array


def change_archive(content: bytes, r: random.Random) -> bytes:
    """A NumPy archive with one array changed, packed correctly."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    name = r.choice(list(arrays))
    if r.random() < 0.1:
        del arrays[name]
    else:
        arrays[name] = change_array(arrays[name], r)
    file = io.BytesIO()
    np.savez(file, **arrays)
    if r.random() < 0.1:
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(r.choice(("../../evil.npy", "/evil.npy", "evil")), b"x" * 99)
    return file.getvalue()


def change_frame(content: bytes, r: random.Random) -> bytes:
    """A Parquet file with one column changed."""
    frame = pd.read_parquet(io.BytesIO(content))
    name = r.choice(list(frame.columns))
    if r.random() < 0.15:
        frame = frame.drop(columns=name)
    elif r.random() < 0.2:
        frame[name] = [[1]] * len(frame)
    elif r.random() < 0.3:
        frame[name] = frame[name].astype(r.choice((str, "float64", object, "bool")))
    else:
        value = r.choice((None, -1, 1 << 62, 0.5, float("nan"), "word", b"bytes"))
        frame[name] = frame[name].astype(object)
        frame.loc[r.randrange(len(frame)), name] = value
        if r.random() < 0.7:
            frame[name] = frame[name].map(lambda v: v if type(v) is type(value) else None)
    file = io.BytesIO()
    frame.to_parquet(file)
    return file.getvalue()


def spoil(name: str, content: bytes, kind: str, folder: Path, r: random.Random) -> bytes:
    """A changed file."""
    if r.random() < 0.4:
        return damage(content, r)
    if kind == "sampler":
        changed = folder / "changed"
        state = files.read_state(folder / "sampler")
        for _ in range(r.choice((1, 1, 3))):
            state = change_value(state, r)
            if not isinstance(state, dict):
                state = {}
        files.write_state(changed, state)
        return changed.read_bytes()
    if name.endswith(".json"):
        return json.dumps(change_value(json.loads(content), r)).encode()
    if name.endswith((".csv", ".txt")):
        separator = "\t" if name.endswith(".txt") else ","
        return change_text(content.decode(), r, separator).encode("utf-8", "replace")
    if name.endswith(".gz"):
        text = change_text(gzip.decompress(content).decode(), r, "\t")
        return gzip.compress(text.encode("utf-8", "replace"))
    if name.endswith(".parquet"):
        return change_frame(content, r)
    if name.endswith(".npy"):
        file = io.BytesIO()
        np.save(file, change_array(np.load(io.BytesIO(content)), r))
        return file.getvalue()
    return change_archive(content, r)


def fuzz(kind: str, good: Path, work: Path, r: random.Random) -> tuple[str, str | None]:
    """One attempt.

    Args:
        kind: a key of `KINDS`.
        good: folder of good files.
        work: folder to work in.
        r: source of randomness.

    Returns:
        ``"read"`` or ``"refused"`` and None; or ``"finding"`` and what happened.
    """
    one = KINDS[kind]
    for file in good.iterdir():
        shutil.copy(file, work)
    name = r.choice(one.files)
    try:
        content = spoil(name, (good / name).read_bytes(), kind, work, r)
    except Exception:  # what cannot be written as such a file: a change of bytes instead
        content = damage((good / name).read_bytes(), r)
    (work / name).write_bytes(content)
    before = {file.name for file in work.parent.iterdir()}
    started = time.process_time()
    found: tuple[str, str | None]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one.read(work)
        found = ("read", None)
    except one.error:
        found = ("refused", None)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        found = ("finding", traceback.format_exc())
    if {file.name for file in work.parent.iterdir()} != before:
        found = ("finding", "a file appeared outside of the folder")
    if time.process_time() - started > 30:
        found = ("finding", f"took {time.process_time() - started:.0f} s of the processor")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the loaders.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--keep", type=Path, help="folder for files that led to a finding")
    arguments = parser.parse_args()
    r = random.Random(arguments.seed)
    counts = {kind: {"read": 0, "refused": 0, "finding": 0} for kind in arguments.kinds}
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as place:
        good, work = Path(place, "good"), Path(place, "jail", "work")
        good.mkdir()
        work.mkdir(parents=True)
        prepare(good)
        share = 60 * arguments.minutes / len(arguments.kinds)
        for kind in arguments.kinds:
            end = time.monotonic() + share
            while time.monotonic() < end:
                what, detail = fuzz(kind, good, work, r)
                counts[kind][what] += 1
                last = "" if detail is None else detail.strip().splitlines()[-1]
                if detail is not None and last not in seen:
                    seen.add(last)
                    print(f"--- {kind}\n{detail}")
                    if arguments.keep is not None:
                        shutil.copytree(work, arguments.keep / f"{kind} {len(seen)}")
            print(f"{kind}: {counts[kind]}")
    total = {what: sum(one[what] for one in counts.values()) for what in ("read", "refused")}
    executions = sum(sum(one.values()) for one in counts.values())
    print(f"{executions} executions, of which {total}; {len(seen)} different findings")
    return 1 if seen else 0


if __name__ == "__main__":
    sys.exit(main())
