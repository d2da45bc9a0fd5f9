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
from dgl_dmns.cli.kinds import GENERATED, KINDS, complete, in_words
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
        "train on a graph, users and items, or triples; write embeddings, metrics and a report",
        "--edges friends.csv --out runs/friends",
    )
    _add_data(train)
    add = train.add_argument
    add("--sampler", choices=_SAMPLERS, help=f"default: {in_words('sampler')}")
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

    add = command(
        "recommend",
        "the best items for users, or the likeliest neighbours of nodes; known ones are left out",
        "runs/shop --users users.csv --top 20 --out recommended.csv",
    ).add_argument
    add("run", type=_path("folder"), metavar="RUN", help="folder that train wrote")
    text = "such a file as of --edges, with the column of users (or src); default: all of them"
    add("--users", type=_path("file"), metavar="FILE", help=text)
    add("--no-header", action="store_true", help="the first line of --users is no header")
    _add_answer(add, 20, "answers for each")

    add = command(
        "rank",
        "the likeliest tails or heads, of a run on triples; known triples are left out",
        "runs/facts --queries questions.csv --top 10 --out answers.csv",
    ).add_argument
    add("run", type=_path("folder"), metavar="RUN", help="folder that train wrote")
    text = "file with columns head and relation, to ask for tails, or relation and tail, for heads"
    add("--queries", type=_path("file"), required=True, metavar="FILE", help=text)
    _add_answer(add, 10, "answers for each")

    add = command("report", "write the HTML page of a run or a bench").add_argument
    text = "folder that train, bench or save_run wrote"
    add("run", type=_path("folder"), metavar="RUN", help=text)
    add("--out", type=_path("file"), metavar="FILE", help="default: report.html in RUN")
    doctor = command(
        "doctor",
        "versions, what works with what, and a short self-test; with data, which negatives suit it",
        "--edges friends.csv",
    )
    _add_data(doctor, required=False)
    add = doctor.add_argument
    add("--batch-size", type=_whole(1), help=f"edges in a batch; default: {in_words('batch_size')}")
    doctor.set_defaults(model=None, loss="shared", layers=None, fanout=None)
    return parser


def _add_answer(add: Callable[..., Any], top: int, what: str) -> None:
    add("--top", type=_whole(1), default=top, help=f"{what}; default: {top}")
    text = "a new file, .csv or .parquet; default: CSV to the terminal"
    add("--out", type=_answer, metavar="FILE", help=text)


def _add_data(parser: argparse.ArgumentParser, required: bool = True) -> None:
    add = parser.add_mutually_exclusive_group(required=required).add_argument
    text = "embedded and dense, shop (bipartite) and triples (knowledge) are generated; "
    text += "others are DGL's"
    add("--dataset", choices=(*_DATASETS, *GENERATED), help=text)
    text = "text (also .gz), Parquet or a folder of it, with a column for each end of an edge"
    add("--edges", type=_path("file"), metavar="FILE", help=text)
    add = parser.add_argument
    text = (
        "whether both columns name the same nodes (graph, the default), or users and items "
        "(bipartite), or the file has triples (knowledge)"
    )
    add("--kind", choices=tuple(KINDS), help=text)
    text = "column of one end; default: src, with --kind bipartite user"
    add("--source", metavar="NAME", help=text)
    text = "column of the other end; default: dst, with --kind bipartite item"
    add("--target", metavar="NAME", help=text)
    for name in KINDS["knowledge"].columns:
        text = f"column with --kind knowledge; default: {name}"
        add(f"--{name}", metavar="NAME", help=text)
    text = "the first line is no header; the first columns are taken, in the order above"
    add("--no-header", action="store_true", help=text)
    text = "such a file with the test edges; default: a tenth of the edges, by chance"
    add("--test", type=_path("file"), metavar="FILE", help=text)
    text = "and with those for validation; default: a tenth of the training edges"
    add("--validation", type=_path("file"), metavar="FILE", help=text)
    text = "column with times: the last tenth of the edges is the test, 5 %% before are validation"
    add("--time", metavar="NAME", help=text)
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
    models = [f"{'/'.join(kind.models)} for {name}" for name, kind in KINDS.items()]
    text = f"default: the first of its kind: {', '.join(models)}"
    names = tuple(dict.fromkeys(model for kind in KINDS.values() for model in kind.models))
    add("--model", choices=names, metavar="MODEL", help=text)
    for name, least, text in (
        ("epochs", 1, "at most this many"),
        ("patience", 1, "epochs without a better validation metric before it stops"),
        ("batch_size", 1, "edges in a batch"),
        ("hidden", 1, "width of the embeddings"),
    ):
        option = f"--{name.replace('_', '-')}"
        add(option, type=_whole(least), help=f"{text}; default: {in_words(name)}")
    add("--layers", type=_whole(1), help="of sage, lightgcn and rgcn; default: 2")
    text = "neighbours sampled a node and layer; 0 is all; default: 0"
    add("--fanout", type=_whole(0), help=text)
    add("--lr", type=_rate, help=f"learning rate; default: {in_words('lr')}")
    text = "cosines over this are the scores; default: 0.2; with --kind bipartite"
    add("--temperature", type=_rate, help=text)
    text = f"share of the entries of embeddings set to 0; default: {in_words('dropout')}"
    add("--dropout", type=_share, help=text)
    text = (
        "of DURA, times the squares of the embeddings of an edge; "
        f"default: {in_words('regularization')}"
    )
    add("--regularization", type=_weight, help=text)
    text = (
        "whether the shared loss compares an edge with known edges of the same query; default: "
        f"{in_words('known')}"
    )
    add("--known", choices=("leave-out", "count"), help=text)
    text = (
        "share by which an edge pulls less that the model ranks no better than chance, under "
        f"--loss shared and softmax; default: {in_words('discount')}"
    )
    add("--discount", type=_discount, help=text)
    add("--threads", type=_whole(1, 1024), default=1, help="of torch; default: 1")
    add("--quiet", action="store_true", help="no progress bar")


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


def _number(fits: Callable[[float], bool], expected: str) -> Callable[[str], float]:
    def read(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not fits(value):
            raise argparse.ArgumentTypeError(f"expected a number {expected}, got {word!r}")
        return value

    return read


_rate = _number(lambda value: 0.0 < value < math.inf, "above 0")
_weight = _number(lambda value: 0.0 <= value < math.inf, "from 0 on")
_discount = _number(lambda value: 0.0 <= value <= 1.0, "from 0 to 1")
_share = _number(lambda value: 0.0 <= value < 1.0, "from 0 to below 1")


def _answer(word: str) -> Path:
    if not word.lower().endswith((".csv", ".parquet")):
        raise argparse.ArgumentTypeError(
            f"expected a name that ends in .csv or .parquet, got {word!r}"
        )
    return Path(word)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("DGLBACKEND", "pytorch")  # else DGL says that it assumes so
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and nodes may not be text there
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = make_parser()
    arguments = parser.parse_args(words)
    if arguments.command in ("train", "bench", "doctor"):
        problem = complete(arguments)
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
        from dgl_dmns.cli.doctor import run_doctor, say_which

        if arguments.edges is None and arguments.dataset is None:
            return run_doctor()
        return say_which(arguments)
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
    if arguments.command in ("recommend", "rank"):
        from dgl_dmns.cli.answers import run_rank, run_recommend

        return (run_rank if arguments.command == "rank" else run_recommend)(arguments)
    from dgl_dmns.cli.train import run_bench, run_train

    run = run_train if arguments.command == "train" else run_bench
    return run(arguments, command)
