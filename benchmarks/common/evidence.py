"""The evidence of the benchmarks: every run, the commands behind it, and a page made of both.

The folder of a benchmark has three files. ``results.csv`` has a line for each run: ``table``,
``dataset``, ``row``, ``seed``, and the figures. ``tables.csv`` has a line for each command of a
table: ``table``, ``command``, ``versions``, ``date``, ``note``. ``RESULTS.md`` is made of these:

    python -m benchmarks.common.evidence                # write every RESULTS.md
    python -m benchmarks.common.evidence --check        # fail where one is out of date
    python -m benchmarks.common.evidence add NAME OUT   # take in what a benchmark wrote to OUT

A run that has several groups of rows makes one table for each, ``NAME: GROUP``.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.common.cells import write_text
from benchmarks.common.report import (
    Column,
    Found,
    difference,
    mean,
    ratio,
    setting,
    table,
    write_csv,
)

__all__ = ["add", "main", "page"]

ROOT = Path(__file__).parents[1]
PLACE = ("table", "dataset", "row", "seed")
ORIGIN = ("table", "command", "versions", "date", "note")

Line = dict[str, str]
"""A line of a CSV file, by column."""

Figures = Sequence[tuple[str, Column]]
"""The columns of a page, each with the figure that it shows."""


def _mean(figure: str, header: str = "", digits: int = 3, times: float = 1.0) -> tuple[str, Column]:
    return figure, mean(header or figure.removeprefix("test "), figure, digits, times)


_COSTS = (_mean("epochs", digits=0), _mean("seconds per epoch", "s / epoch"))

_SETTINGS = tuple(
    (name, setting(name)) for name in ("learning rate", "temperature", "dropout", "regularization")
)

FIGURES: dict[str, Figures] = {
    "dropin": (
        *map(_mean, ("test MRR", "test Hits@10", "test Hits@50", "test MAP", "test HeaRT MRR")),
        ("test MRR", ratio("MRR, ratio", "test MRR")),
        ("test MAP", difference("MAP, difference", "test MAP")),
        ("test HeaRT MRR", ratio("HeaRT MRR, ratio", "test HeaRT MRR")),
        *_COSTS,
        _mean("refresh share", digits=2),
    ),
    "distributed": (
        _mean("held", "sources held", 0),
        _mean("held MB", digits=1),
        ("held MB", ratio("of one partition", "held MB")),
        _mean("cpu", "refresh (CPU s)", 2),
        ("cpu", ratio("of one partition", "cpu")),
        _mean("wall", "refresh (s)", 2),
        _mean("messages", "reads and writes", 0),
        _mean("MRR"),
        ("MRR", difference("to one partition", "MRR")),
    ),
    "gae": (
        *map(_mean, ("test Hits@10", "test Hits@20", "test Hits@100", "test MRR")),
        ("test Hits@100", difference("Hits@100, difference", "test Hits@100")),
        ("test MRR", difference("MRR, difference", "test MRR")),
        *_COSTS,
    ),
    "knowledge": (
        *map(_mean, ("val MRR", "test MRR", "test Hits@1", "test Hits@3", "test Hits@10")),
        ("test MRR", ratio("MRR, ratio", "test MRR")),
        *_COSTS,
        *_SETTINGS,
    ),
    "paper": (
        _mean("val MAP"),
        *map(_mean, ("test MAP", "test NDCG", "test Hits@1")),
        ("test MAP", difference("MAP, difference", "test MAP")),
        _mean("probe"),
        *_COSTS,
        *map(_mean, ("psi distance T*0.1", "psi density T*0.1")),
        _mean("psi >= 0"),
        _mean("psi >= 0, standard error"),
    ),
    "recommend": (
        *(_mean(figure, digits=4) for figure in ("val NDCG@20", "test NDCG@20", "test Recall@20")),
        ("test NDCG@20", ratio("NDCG@20, ratio", "test NDCG@20")),
        *_COSTS,
        *_SETTINGS,
    ),
    "scale": (
        _mean("pool", digits=0),
        *(_mean(figure, digits=4) for figure in ("val MRR", "test MRR")),
        _mean("test Hits@10"),
        ("test MRR", ratio("MRR, ratio", "test MRR")),
        _mean("rounds", digits=0),
        _mean("seconds per round", "s / round", 1),
        _mean("refresh share", digits=2),
        _mean("false share", "held-out among the hard, %", 2, 100),
        _mean("false weight", "of their weight, %", 2, 100),
    ),
    "soak": tuple(
        _mean(figure, digits=digits)
        for figure, digits in (
            ("steps", 0),
            ("refreshes", 0),
            ("loaders killed", 0),
            ("edges lost", 0),
            ("edges trained on twice", 0),
            ("oldest negatives, in steps", 0),
            ("batches from no known table", 0),
            ("growth of memory, %", 1),
            ("growth of open files, %", 1),
            ("names in shared memory", 0),
        )
    ),
    "speed": (
        _mean("call uniform", "call, uniform (ms)", 2, 1e3),
        *(_mean(f"{part} ratio", part, 2) for part in ("call", "loader", "training")),
        _mean("epoch uniform", "epoch, uniform (s)", 1),
        _mean("epoch ratio", "epoch", 2),
        _mean("refresh later", "refresh (s)", 2),
        _mean("refresh share", "its share, %", 1, 100),
        _mean("memory uniform", "peak MB, uniform", 0),
        _mean("memory own", "peak MB", 0),
        _mean("table MB", digits=0),
    ),
}
"""What the page of each benchmark shows; columns without a figure are left out of a table."""

_HEADING = """# Results: benchmarks/{name}

Made by `python -m benchmarks.common.evidence` of [results.csv](results.csv), which has every run,
and [tables.csv](tables.csv). Mean ± standard error over the seeds. Differences and ratios
(geometric) are to the first row of a table, paired by seed, with a 95 % interval.
[NOTES.md](NOTES.md) says what follows.
"""


def _read(path: Path) -> list[Line]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, columns: Sequence[str], lines: Sequence[Line]) -> None:
    """Write lines with these columns first, then all others in which something stands."""
    names = dict.fromkeys(name for line in lines for name, value in line.items() if value)
    header = [*columns, *(name for name in names if name not in columns)]
    write_csv(path, header, [[line.get(name, "") for name in header] for line in lines])


def _run(line: Line) -> str:
    """The run that a table belongs to: its name without the group."""
    return line["table"].partition(": ")[0]


def _found(lines: Iterable[Line], figures: Figures) -> Found:
    """The figures of a table by row and seed.

    Raises:
        ValueError: for two lines of one row and seed.
    """
    found: Found = {}
    names = {figure for figure, _ in figures}
    for line in lines:
        runs = found.setdefault(line["row"], {})
        seed = int(line["seed"] or -1)  # a mean over seeds has none
        if seed in runs:
            raise ValueError("results.csv: twice " + ", ".join(line[key] for key in PLACE))
        runs[seed] = {name: float(line[name]) for name in names if line.get(name)}
    return found


def _table(lines: Iterable[Line], figures: Figures) -> str:
    """The lines as a table, without the columns in which nothing would stand."""
    found = _found(lines, figures)
    reference = next(iter(found))
    known = {name for runs in found.values() for run in runs.values() for name in run}
    shown = [
        column
        for figure, column in figures
        if figure in known
        and any(column.text(runs, found[reference]) != "-" for runs in found.values())
    ]
    return table(found, reference, shown)


def page(folder: Path) -> str:
    """The text of ``RESULTS.md`` for a benchmark's folder.

    Raises:
        ValueError: for a table that only one of the two files knows, or a run that stands twice.
    """
    lines, origins = _read(folder / "results.csv"), _read(folder / "tables.csv")
    runs = list(dict.fromkeys(map(_run, lines)))
    if unmatched := {*runs} ^ {origin["table"] for origin in origins}:
        raise ValueError(
            f"{folder.name}: expected the same tables in results.csv and tables.csv, got "
            f"{', '.join(sorted(unmatched))} in one alone"
        )
    text = [_HEADING.format(name=folder.name)]
    for run in runs:
        text.append(f"\n## {run}\n")
        own = [origin for origin in origins if origin["table"] == run]
        for origin in own:
            made = "; ".join(filter(None, (origin["versions"], origin["date"])))
            text.append(f"\n`{origin['command']}`\n({made})\n")
        text += [f"\n{note}\n" for note in dict.fromkeys(o["note"] for o in own) if note]
        mine = [line for line in lines if _run(line) == run]
        for name, dataset in dict.fromkeys((line["table"], line["dataset"]) for line in mine):
            part = [line for line in mine if (line["table"], line["dataset"]) == (name, dataset)]
            title = ", ".join(filter(None, (name.partition(": ")[2], dataset)))
            text.append(f"\n### {title}\n\n{_table(part, FIGURES[folder.name])}")
    return "".join(text)


def add(name: str, source: Path, root: Path = ROOT) -> Path:
    """Take a benchmark's output in as a table, in the place of one of the same name.

    Args:
        name: of the table.
        source: the ``--out`` of the benchmark, or a CSV file in it, such as ``tuning.csv``.
        root: the folder of the benchmarks.

    Returns:
        The folder of the benchmark, which ``environment.json`` names.

    Raises:
        ValueError: for a name with a colon, and for output without a line for each run.
    """
    path = source if source.suffix == ".csv" else source / "results.csv"
    record = json.loads((path.parent / "environment.json").read_text(encoding="utf-8"))
    command = record.pop("command")
    benchmark = re.search(r"-m benchmarks\.(\w+)", command)
    lines = _read(path)
    if ":" in name:
        raise ValueError(f"name: expected one without a colon, got {name!r}")
    if benchmark is None or benchmark[1] not in FIGURES or not lines or {*PLACE} - {*lines[0]}:
        raise ValueError(
            f"{path}: expected lines with {', '.join(PLACE)}, and the command of a benchmark; got "
            f"{', '.join(lines[0]) if lines else 'no line'}, and {command}"
        )
    several = len({line["table"] for line in lines}) > 1
    for line in lines:
        line["table"] = f"{name}: {line['table']}" if several else name
    day = datetime.fromtimestamp(path.stat().st_mtime, tz=timezone.utc).date()
    versions = "; ".join(f"{package} {version}" for package, version in record.items())
    origin = dict(zip(ORIGIN, (name, command, versions, str(day), "")))
    folder = root / benchmark[1]
    for file, columns, new in (("results.csv", PLACE, lines), ("tables.csv", ORIGIN, [origin])):
        old = _read(folder / file)
        at = next((at for at, line in enumerate(old) if _run(line) == name), len(old))
        kept = [[one for one in part if _run(one) != name] for part in (old[:at], old[at:])]
        _write(folder / file, columns, [*kept[0], *new, *kept[1]])
    return folder


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write the pages, or compare them.

    Returns:
        0, or 1 if ``--check`` finds a page that is out of date.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.common.evidence")
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    actions = parser.add_subparsers(dest="action")
    adding = actions.add_parser("add", help="take in the output of a benchmark")
    adding.add_argument("name", help="of the table; one of the same name is replaced")
    adding.add_argument("source", type=Path, help="what was --out of the benchmark")
    options = parser.parse_args(argv)
    folders = [path.parent for path in sorted(root.glob("*/tables.csv"))]
    if options.action == "add":
        try:
            folders = [add(options.name, options.source, root)]
        except (OSError, ValueError) as error:
            parser.error(str(error))
    stale = []
    for folder in folders:
        path, text = folder / "RESULTS.md", page(folder)
        if not options.check:
            write_text(path, text)
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
    for path in stale:
        print(f"{path}: out of date; run python -m benchmarks.common.evidence", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
