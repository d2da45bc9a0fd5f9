"""The test suite in several environments, one after the other, with a table at the end.

``make matrix`` makes the environments and runs this. Each argument names an environment; what its
tests print goes to ``runs/matrix`` as well.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "runs" / "matrix"
REPORTED = ("dgl", "torch", "numpy", "pandas")
OUTCOMES = ("passed", "skipped", "failed", "error")
VERSIONS = f"""
from importlib.metadata import version
print(*map(version, {REPORTED}))
"""


def versions(python: Path) -> dict[str, str]:
    """Versions of the packages that matter, by name."""
    printed = subprocess.run(
        [python, "-c", VERSIONS], capture_output=True, text=True, check=True
    ).stdout
    return dict(zip(REPORTED, printed.split()))


def counts(log: str) -> dict[str, int]:
    """Numbers of tests by outcome, read off pytest's last line."""
    last = log.strip().rpartition("\n")[2]
    return {
        outcome: sum(int(n) for n in re.findall(rf"(\d+) {outcome}", last)) for outcome in OUTCOMES
    }


def run(environment: Path) -> tuple[bool, dict[str, str]]:
    """Run the suite without slow tests in an environment; whether it passed, and a table's row."""
    python = environment / "bin" / "python"
    row = {"environment": environment.name, **versions(python)}
    print("\n" + ", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    command = [python, "-m", "pytest", "-m", "not slow", "--doctest-modules", "dgl_dmns", "tests"]
    started, lines = time.monotonic(), []
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)
    log = "".join(lines)
    (LOGS / f"{environment.name}.log").write_text(log, encoding="utf-8")
    row.update({outcome: str(count) for outcome, count in counts(log).items()})
    row["seconds"] = f"{time.monotonic() - started:.0f}"
    return process.returncode == 0, row


def main(environments: list[str]) -> int:
    """Run the suite in each environment and print the table; 0 if all passed."""
    LOGS.mkdir(parents=True, exist_ok=True)
    results = [run(Path(environment).absolute()) for environment in environments]
    rows = [list(results[0][1]), *(list(row.values()) for _, row in results)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    return 0 if all(passed for passed, _ in results) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
