"""What a release needs, and the files that a repository shows to visitors."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from release import ROOT, lacks


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", *own, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("## 1.2.0 (2026-01-31)\n\nNew.\n", []),
        (
            "## 1.1.0 (2026-01-31)\n\nNew.\n",
            ["expected an entry '## 1.2.0 (YYYY-MM-DD)', got none"],
        ),
        ("## 1.2.0 (unreleased)\n\nNew.\n", ["expected '1.2.0 (YYYY-MM-DD)', got '1.2.0 (unrel"]),
        ("## 1.2.0 (2026-01-31)\n\n## 1.1.0 (2026-01-01)\n\nOld.\n", ["entry of 1.2.0 is empty"]),
    ],
)
def test_what_a_release_lacks(entry: str, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "setup.cfg").write_text("[metadata]\nname = a\nversion = 1.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{entry}")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "one")
    found = lacks(tmp_path)
    assert len(found) == len(said)
    assert all(part in one for part, one in zip(said, found))
    (tmp_path / "more.py").write_text("")
    assert lacks(tmp_path)[-1] == "the tree has changes that are in no commit: more.py"


def test_the_files_for_visitors_are_what_they_should_be() -> None:
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert cited["license"] in (ROOT / "setup.cfg").read_text(encoding="utf-8")
    paper = cited["preferred-citation"]
    assert paper["title"] in (ROOT / "README.md").read_text(encoding="utf-8")
    assert all({"family-names", "given-names"} <= one.keys() for one in paper["authors"])
    templates = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(templates) == 2
    for file in templates:
        form = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= form.keys()
        ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert len(set(ids)) == len(ids) > 2
        assert all("attributes" in part for part in form["body"])


def test_nothing_is_installed_by_name_before_there_is_a_release() -> None:
    """There is none on a package index: a command that names the package there would not work."""
    command = " ".join(("pip", "install", "dgl-dmns"))
    suffixes = {".md", ".py", ".cfg", ".toml", ".txt", ".yml", ".ipynb", ".cff"}
    folders = ("dgl_dmns", "docs", "examples", "benchmarks", "tools", ".github", ".")
    files = [f for name in folders for f in (ROOT / name).glob("**/*" if name != "." else "*")]
    naming = [f for f in files if f.suffix in suffixes and command in f.read_text("utf-8")]
    assert naming == []
