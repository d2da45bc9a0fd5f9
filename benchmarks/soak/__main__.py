"""``python -m benchmarks.soak``: see `benchmarks.soak.run` and ``--help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields

from benchmarks.common.command import Command, benchmark_parser
from benchmarks.soak.report import checks, write_report
from benchmarks.soak.run import Setting, soak

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(
        "soak",
        "Train while loader workers are killed; report memory, lost steps, staleness.",
        jobs=False,
    )
    units = {"kill_every": "SECONDS", "refresh_every": "STEPS", "pause": "SECONDS"}
    for field in fields(Setting):
        name, default = field.name, field.default
        option = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(option, action="store_true", help="refresh in a thread beside it")
        else:
            metavar = units.get(name)
            parser.add_argument(option, type=type(default), default=default, metavar=metavar)
    return parser


def _setting(options: argparse.Namespace) -> Setting:
    if min(options.minutes, options.kill_every) <= 0 or options.workers < 1:
        raise ValueError("--minutes, --kill-every, --workers: expected positive numbers")
    return Setting(**{field.name: getattr(options, field.name) for field in fields(Setting)})


def main(argv: Sequence[str] | None = None) -> int:
    """Run a soak and write its report.

    Returns:
        0, or 1 if a figure is not what it has to be.
    """
    command = Command(_parser(), argv)
    setting = command.made(_setting)
    outcome = soak(setting, lambda text: print(text, flush=True))
    heading = command.heading(
        "Soak",
        f"GraphSAGE on a generated graph of {setting.nodes} nodes, {setting.workers} loader "
        f"workers, one of them killed every {setting.kill_every:g} s, a refresh every "
        f"{setting.refresh_every} steps{', in the background' * setting.background}. Where a "
        "loader ends, a new one goes on with the edges that are left of the epoch. Memory is "
        "the proportional set size of the main process.",
    )
    for what, found, wanted, fine in checks(setting, outcome):
        if not fine:
            command.failures[what] = f"{found}, expected {wanted}"
    return command.end(write_report(setting, outcome, command.out, heading))


if __name__ == "__main__":
    sys.exit(main())
