"""The command ``dgl-dmns``.

Exit codes: 0 all is well; 1 a file, a data set or an option does not fit (one line says what), or
the doctor found something; 2 the command line is wrong; 130 interrupted, ``--resume`` goes on. No
traceback is shown, but by ``python -X dev -m dgl_dmns``.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dgl_dmns import __version__
from dgl_dmns._compat import why_unusable
from dgl_dmns.messages import one_line

__all__ = ["main", "make_parser"]

_LARGEST = 2**31 - 1  # that torch and DGL take everywhere
_LONGEST = 1000  # characters of an error: some of torch and DGL hold a stack
# As in the registry and the data sets, which need DGL or torch; --help does not.
_DATASETS = ("embedded", "dense", "cora", "citeseer", "coauthor-cs", "actor")
_SAMPLERS = (
    *("dmns", "uniform", "popularity", "in-batch", "dynamic", "self-adversarial", "mcns"),
    "adversarial",
)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage, of many, is in ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; see {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    text = "Link prediction with negatives that teach: train, compare, report, check."
    parser = _Parser(prog="dgl-dmns", description=text, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"dgl-dmns {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, does: str, example: str = "") -> argparse.ArgumentParser:
        more: dict[str, Any] = {"epilog": f"Example: dgl-dmns {name} {example}"} if example else {}
        text = f"{does[0].upper()}{does[1:]}."
        return commands.add_parser(name, help=does, description=text, allow_abbrev=False, **more)

    train = command(
        "train",
        "train GraphSAGE on a data set or an edge list; write embeddings, metrics and a report",
        "--edges friends.csv --out runs/friends",
    )
    _add_data(train)
    add = train.add_argument
    add("--sampler", choices=_SAMPLERS, default="dmns", help="default: %(default)s")
    text = "arguments of the sampler, for example uniform_share=0.7 pool=64"
    add("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=text)
    _add_training(train)
    text = "leave out the second training, with uniform negatives, to compare with"
    add("--no-baseline", dest="baseline", action="store_false", help=text)
    text = "any whole number from 0 on; default: %(default)s"
    add("--seed", type=_whole(0, math.inf), default=0, help=text)
    add("--resume", action="store_true", help="go on with the run in --out, if there is one")
    add("--out", type=_path("folder"), required=True, metavar="DIR", help="folder of the run")

    bench = command(
        "bench",
        "train with several samplers at equal negatives, seeds and patience; write a table",
        "--edges friends.csv --out runs/bench",
    )
    _add_data(bench)
    add = bench.add_argument
    some = ["uniform", "self-adversarial", "dmns"]
    text = f"default: {' '.join(some)}"
    add("--samplers", nargs="+", choices=_SAMPLERS, default=some, help=text)
    _add_training(bench)
    add("--seeds", type=_whole(1), default=3, help="seeds 0 .. SEEDS - 1; default: 3")
    add("--out", type=_path("folder"), required=True, metavar="DIR", help="folder of the table")

    add = command("report", "write the HTML page of a run or a bench").add_argument
    text = "folder that train, bench or save_run wrote"
    add("run", type=_path("folder"), metavar="RUN", help=text)
    add("--out", type=_path("file"), metavar="FILE", help="default: report.html in RUN")
    command("doctor", "versions, what works with what, and a short self-test")
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_mutually_exclusive_group(required=True).add_argument
    text = "embedded and dense are generated; others are DGL's"
    add("--dataset", choices=_DATASETS, help=text)
    text = "text (also .gz), Parquet or a folder of it, with the columns src and dst"
    add("--edges", type=_path("file"), metavar="FILE", help=text)
    add = parser.add_argument
    add("--source", metavar="NAME", help="column of one end; default: src")
    add("--target", metavar="NAME", help="column of the other end; default: dst")
    text = "the first line is an edge of the first two columns"
    add("--no-header", action="store_true", help=text)
    text = "whether ids of both columns name the same nodes, or two kinds that are kept apart"
    add("--kind", choices=("graph", "bipartite"), help=text)
    text = "such a file with a column id and numbers, or .npy [N, F]; default: learned vectors"
    add("--features", type=_path("file"), metavar="FILE", help=text)
    add("--data-dir", metavar="DIR", help="DGL's cache of data sets")


def _add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = (
        "softmax cross-entropy against the negatives of the whole batch (shared) or an edge's own "
        "(softmax), or binary cross-entropy (bce); default: %(default)s"
    )
    add("--loss", choices=("shared", "softmax", "bce"), default="shared", help=text)
    text = "negatives an edge; default: 1 with --loss shared, else 5"
    add("--k", type=_whole(1), help=text)
    for name, default, least, most, text in (
        ("--epochs", 200, 1, _LARGEST, "at most this many"),
        ("--patience", 30, 1, _LARGEST, "epochs without a better validation MRR before it stops"),
        ("--batch-size", 2048, 1, _LARGEST, "edges in a batch"),
        ("--hidden", 64, 1, _LARGEST, "width of the embeddings"),
        ("--layers", 2, 1, _LARGEST, "GraphSAGE layers"),
        ("--threads", 1, 1, 1024, "of torch"),
        ("--fanout", 0, 0, _LARGEST, "neighbours sampled a node and layer; 0 is all"),
    ):
        add(name, type=_whole(least, most), default=default, help=f"{text}; default: {default}")
    add("--lr", type=_rate, default=3e-3, help="learning rate; default: 0.003")
    add("--quiet", action="store_true", help="no progress bar")


def _problem_with_data(arguments: argparse.Namespace) -> str | None:
    """What does not go together among the options of `_add_data`."""
    if arguments.edges is None:
        for name in ("features", "source", "target", "no_header", "kind"):
            if getattr(arguments, name) not in (None, False):
                return f"--{name.replace('_', '-')}: goes with --edges, a data set has its own"
    if arguments.no_header and (arguments.source is not None or arguments.target is not None):
        return (
            "--no-header: without names, the first two columns are the ends; leave --source and "
            "--target out"
        )
    if arguments.kind == "bipartite" and arguments.features is not None:
        return "--features: goes with one kind of nodes, not with --kind bipartite"
    return None


def _whole(least: int, most: float = _LARGEST) -> Callable[[str], int]:
    def read(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} on, got {word!r}"
            )
        if int(word) > most:
            raise argparse.ArgumentTypeError(f"expected at most {most}, got {word}")
        return int(word)

    return read


def _path(kind: str) -> Callable[[str], Path]:
    def read(word: str) -> Path:
        if not word:
            raise argparse.ArgumentTypeError(f"expected the name of a {kind}, got ''")
        return Path(word)

    return read


def _rate(word: str) -> float:
    try:
        rate = float(word)
    except ValueError:
        rate = math.nan
    if not 0.0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {word!r}")
    return rate


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("DGLBACKEND", "pytorch")  # else DGL says that it assumes so
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and nodes may not be text there
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = make_parser()
    arguments = parser.parse_args(words)
    if arguments.command in ("train", "bench"):
        problem = _problem_with_data(arguments)
        if problem is not None:
            parser.error(problem)
    command = shlex.join(["dgl-dmns", *words])
    try:
        return _run(arguments, command)
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted{_go_on(arguments, command)}\n")
        return 130
    except ImportError as error:  # with commands, in lines of their own
        sys.stderr.write(f"error: {error}\n")
        return 1
    except Exception as error:  # a user's words and files are no reason for a traceback
        if sys.flags.dev_mode:
            raise
        said = one_line(error, longest=_LONGEST) or "no more is known"
        sys.stderr.write(f"error: {said}\n")
        return 1


def _go_on(arguments: argparse.Namespace, command: str) -> str:
    if arguments.command == "train":
        return f"; to go on: {command}{'' if arguments.resume else ' --resume'}"
    if arguments.command == "bench":
        return f"; runs that had ended, if any, are in {arguments.out / 'bench.csv'}"
    return ""


def _run(arguments: argparse.Namespace, command: str) -> int:
    # Imports wait until they are needed: the doctor and --help work where DGL does not.
    if arguments.command == "doctor":
        from dgl_dmns.cli.doctor import run_doctor

        return run_doctor()
    if arguments.command == "report":
        from dgl_dmns.report import write_report

        out = arguments.out
        if out is not None and out.is_file() and out.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"--out: {out} is there and no page; name a new file, or an .html")
        sys.stdout.write(f"{write_report(arguments.run, out)}\n")
        return 0
    problem = why_unusable()
    if problem is not None:
        raise ImportError(problem)
    from dgl_dmns.cli.train import run_bench, run_train

    run = run_train if arguments.command == "train" else run_bench
    return run(arguments, command)
