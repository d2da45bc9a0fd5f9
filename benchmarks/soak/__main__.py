"""``python -m benchmarks.soak``: see `benchmarks.soak.run` and ``--help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import public_command, record_run
from benchmarks.soak.report import checks, write_report
from benchmarks.soak.run import Setting, soak

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description="Train while loader workers are killed; report memory, lost steps, staleness.",
        allow_abbrev=False,
    )
    default = Setting()
    parser.add_argument("--minutes", type=float, default=default.minutes)
    parser.add_argument("--kill-every", type=float, default=default.kill_every, metavar="SECONDS")
    parser.add_argument("--refresh-every", type=int, default=default.refresh_every, metavar="STEPS")
    parser.add_argument("--nodes", type=int, default=default.nodes)
    parser.add_argument("--workers", type=int, default=default.workers)
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--background", action="store_true", help="refresh in a thread beside it")
    parser.add_argument("--pause", type=float, default=default.pause, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--out", type=Path, default=Path("results/soak"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a soak and write its report.

    Returns:
        0, or 1 if a figure is not what it has to be.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    options = {name: value for name, value in vars(arguments).items() if name != "out"}
    if min(options["minutes"], options["kill_every"]) <= 0 or options["workers"] < 1:
        parser.error("--minutes, --kill-every, --workers: expected positive numbers")
    setting = Setting(**options)
    outcome = soak(setting, lambda text: print(text, flush=True))
    words = sys.argv[1:] if argv is None else argv
    command = public_command(["python", "-m", "benchmarks.soak", *words], {"--out": "OUT"})
    record = record_run(arguments.out, command)
    heading = "\n".join(
        [
            "# Soak",
            "",
            f"Command: `{command}`",
            "",
            f"GraphSAGE on a generated graph of {setting.nodes} nodes, {setting.workers} loader "
            f"workers, one of them killed every {setting.kill_every:g} s, a refresh every "
            f"{setting.refresh_every} steps{', in the background' * setting.background}. Where a "
            "loader ends, a new one goes on with the edges that are left of the epoch. Memory is "
            "the proportional set size of the main process.",
            "",
            "; ".join(f"{name} {value}" for name, value in record.items()),
            "",
        ]
    )
    for file in write_report(setting, outcome, arguments.out, heading):
        print(file)
    return 0 if all(fine for *_, fine in checks(setting, outcome)) else 1


if __name__ == "__main__":
    sys.exit(main())
