"""Remove each protection in a copy of the tree, and see that its test fails.

``python tools/removals.py`` takes some minutes; names as arguments choose some. A protection whose
test still passes without it, or whose text is no longer found, is reported, and the exit code is 1.

``removals.txt`` lists them by file, behind ``== FILE``. Each is a line ``NAME: TEST``, where TEST
are arguments of pytest, below ``tests``, for what has to fail; then lines ``-TEXT`` that stand once
in the file, and lines ``+TEXT`` to put in their place (``pass`` by default).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass
class Removal:
    """A protection: its file, the test that fails without it, its lines, and those instead."""

    file: str
    test: str
    lines: list[str] = field(default_factory=list)
    instead: list[str] = field(default_factory=list)

    @property
    def old(self) -> str:
        """Its text."""
        return "\n".join(self.lines)

    @property
    def new(self) -> str:
        """What stands there without it."""
        return "\n".join(self.instead or ["pass"])


def read() -> dict[str, Removal]:
    """The protections by name."""
    removals: dict[str, Removal] = {}
    text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    for part in re.split(r"^== ", text, flags=re.MULTILINE)[1:]:
        file, *lines = part.splitlines()
        for line in filter(None, lines):
            if line[0] not in "-+":
                name, _, test = line.partition(": ")
                assert name not in removals, f"two protections of name {name}"
                removals[name] = Removal(file, test)
            elif line[0] == "-":
                removals[name].lines.append(line[1:])
            else:
                removals[name].instead.append(line[1:])
    return removals


REMOVALS = read()


def fails_without(name: str, copy: Path) -> bool:
    """Whether the test fails in a copy of the tree without the protection; says what came."""
    one = REMOVALS[name]
    file = copy / one.file
    text = file.read_text(encoding="utf-8")
    if text.count(one.old) != 1:
        print(f"NOT FOUND  {name}: {text.count(one.old)} times in {one.file}", flush=True)
        return False
    file.write_text(text.replace(one.old, one.new), encoding="utf-8")
    command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider {one.test}"
    env = {**os.environ, "PYTHONPATH": str(copy)}
    tests = copy / "tests"
    done = subprocess.run(
        command, shell=True, cwd=tests, env=env, capture_output=True, text=True, check=False
    )
    file.write_text(text, encoding="utf-8")
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    if done.returncode == 1 and failed:
        print(f"fails      {name}: {failed[0][7:].split(' - ')[0]}", flush=True)
        return True
    print(f"STILL PASSES  {name} ({done.returncode}): {done.stdout[-300:]}", flush=True)
    return False


def main() -> int:
    """Remove the chosen protections, or all, one after the other."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "runs", "results", "site", "dist")
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, "copy")
        shutil.copytree(ROOT, copy, ignore=ignored)
        results = [fails_without(name, copy) for name in sys.argv[1:] or REMOVALS]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
