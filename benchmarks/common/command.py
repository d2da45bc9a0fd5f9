"""The command line of a benchmark: options, running what is missing, and the record of a run."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from benchmarks.common.cells import CellStore, write_text
from benchmarks.common.run import RunCell, environment_record, run_cells

__all__ = ["Command", "benchmark_parser", "chosen", "public_command", "with_settings"]

_PLACEHOLDERS = {
    "--data-dir": "CACHE",
    "--official-splits": "SPLITS",
    "--choices": "CHOICES",
    "--out": "OUT",
}
"""What stands in reports for the folders and files of the machine."""

_COUNTS = ("seeds", "epochs", "patience", "hidden")

Made = TypeVar("Made")


def public_command(words: Sequence[str]) -> str:
    """A command line, quoted for a shell, without the folders of one machine.

    The parser of the command must not allow abbreviated options, which would be overlooked here.

    >>> public_command(["run", "--out", "/home/me/x", "--jobs=2"])
    'run --out OUT --jobs=2'
    """
    shown: list[str] = []
    previous = ""
    for word in words:
        option, equals, _ = word.partition("=")
        if previous in _PLACEHOLDERS:
            shown.append(_PLACEHOLDERS[previous])
        elif equals and option in _PLACEHOLDERS:
            shown.append(f"{option}={_PLACEHOLDERS[option]}")
        else:
            shown.append(word)
        previous = word
    return shlex.join(shown)


def benchmark_parser(
    name: str,
    description: str,
    *,
    datasets: Sequence[str] = (),
    chosen: Sequence[str] | None = None,
    recipe: Any = None,
    seeds: int | None = None,
    jobs: bool = True,
) -> argparse.ArgumentParser:
    """A parser with the options that the benchmarks share.

    Those of data sets, seeds and training are there where ``datasets``, ``seeds`` or a ``recipe``
    with the default numbers of epochs and of patience are given; ``tiny`` is a data set everywhere.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=description, allow_abbrev=False
    )
    if datasets:
        default = list(datasets if chosen is None else chosen)
        parser.add_argument("--datasets", nargs="+", default=default, choices=(*datasets, "tiny"))
        parser.add_argument("--data-dir", help="DGL's cache directory (default: DGL's own)")
    if seeds is not None:
        parser.add_argument("--seeds", type=int, default=seeds, help="number of seeds")
    if recipe is not None:
        parser.add_argument("--epochs", type=int, default=recipe.epochs, help="at most this many")
        parser.add_argument("--patience", type=int, default=recipe.patience)
    if jobs:
        parser.add_argument("--jobs", type=int, default=1, help="processes; 0: run in this one")
        parser.add_argument("--threads", type=int, default=1, help="threads of each process")
        parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--out", type=Path, default=Path("results") / name.rpartition(".")[2])
    return parser


def chosen(names: Sequence[str] | None, known: Mapping[str, Made], group: str) -> dict[str, Made]:
    """The rows of a group that were named, each once, in their order; all where None.

    Raises:
        ValueError: for a name that the group does not have.
    """
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(
            f"rows: expected some of {', '.join(known)} (group {group}), got {', '.join(unknown)}"
        )
    return {name: known[name] for name in names or known}


class Command:
    """One call of a benchmark: its options, the stored cells in its folder, and what failed.

    A number below 1 where a count is wanted ends the program.
    """

    def __init__(self, parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> None:
        words = sys.argv[1:] if argv is None else argv
        self.parser = parser
        self.arguments = parser.parse_args(words)
        for name in _COUNTS:
            count = getattr(self.arguments, name, 1)
            if count < 1:
                parser.error(f"--{name}: expected at least 1, got {count}")
        self.shown = public_command([*parser.prog.split(), *words])
        self.out: Path = self.arguments.out
        self.store = CellStore(self.out / "cells")
        self.failures: dict[str, str] = {}

    def made(self, make: Callable[[argparse.Namespace], Made]) -> Made:
        """What is to be run, made of the options; a `ValueError` is one of the command line."""
        try:
            return make(self.arguments)
        except ValueError as error:
            self.parser.error(str(error))

    def run(self, cells: Iterable[Any], run: RunCell, context: Any = None) -> None:
        """Run the cells that have no result yet."""
        options = self.arguments
        os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
        self.failures |= run_cells(
            list(cells),
            run,
            self.store,
            context=context,
            jobs=options.jobs,
            threads=options.threads,
            progress=not options.quiet,
        )

    def heading(self, title: str, *paragraphs: str) -> str:
        """The top of a report: title, command, paragraphs, machine; ``environment.json`` too."""
        record = environment_record()
        text = json.dumps({"command": self.shown, **record}, indent=1) + "\n"
        write_text(self.out / "environment.json", text)
        machine = "; ".join(f"{name} {value}" for name, value in record.items())
        parts = (f"# {title}", f"Command: `{self.shown}`", *filter(None, paragraphs), machine)
        return "\n\n".join(parts) + "\n"

    def end(self, files: Iterable[Path]) -> int:
        """Name the files and say what failed; returns the exit status, 1 if anything did."""
        for file in files:
            print(file)
        for label, reason in self.failures.items():
            print(f"failed: {label}: {reason}", file=sys.stderr)
        return 1 if self.failures else 0


def with_settings(recipe: Made, settings: Sequence[str]) -> Made:
    """A recipe with fields changed by words such as ``dropout=0.2``, read as the fields' types.

    The recipe is a frozen dataclass, which checks its fields.

    Raises:
        ValueError: for a word without "=", an unknown field, or a value that does not fit.
    """
    kinds = get_type_hints(type(recipe))
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in kinds:
            raise ValueError(
                f"set: expected FIELD=VALUE with a field of {', '.join(kinds)}; got {setting!r}"
            )
        changes[name] = _read(name, text, kinds[name])
    return replace(recipe, **changes)  # type: ignore[type-var]


def _read(name: str, text: str, kind: Any) -> Any:
    """A word as a value of a field's type; the recipe checks the choices of words."""
    if get_origin(kind) is Union:
        if text.lower() == "none":
            return None
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name}: expected true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name}: expected {kind.__name__}, got {text!r}") from None
