"""Say what a release still lacks: an entry in the changelog, or a clean tree.

``make release`` runs it first, then builds the distributions and tries them out (``make dist``).
"""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def version_of(root: Path) -> str:
    """The version in the metadata."""
    metadata = configparser.ConfigParser()
    metadata.read(root / "setup.cfg", encoding="utf-8")
    return metadata["metadata"]["version"]


def lacks(root: Path) -> list[str]:
    """What a release of the tree lacks, a sentence each."""
    version, found = version_of(root), []
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    entries = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    mine = [entry.split("\n", 1) for entry in entries if entry.split()[0] == version]
    if not mine:
        found.append(f"CHANGELOG.md: expected an entry '## {version} (YYYY-MM-DD)', got none")
    for heading, text in mine:
        if not re.fullmatch(r"\S+ \(\d{4}-\d\d-\d\d\)", heading):
            found.append(f"CHANGELOG.md: expected '{version} (YYYY-MM-DD)', got '{heading}'")
        if not text.strip():
            found.append(f"CHANGELOG.md: the entry of {version} is empty")
    command = ["git", "status", "--porcelain"]
    changed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    if changed:
        files = ", ".join(line[3:] for line in changed.splitlines())
        found.append(f"the tree has changes that are in no commit: {files}")
    return found


def main() -> int:
    """Print what is missing; the exit code is 1 if something is."""
    found = lacks(ROOT)
    for sentence in found:
        print(f"release: {sentence}", file=sys.stderr)
    if not found:
        print(f"release: {version_of(ROOT)} has its entry, and the tree is clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
