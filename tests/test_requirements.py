"""Files of requirements, what the metadata promise, and the record of tests on other versions."""

import configparser
import importlib.util
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def requirements(text):
    """Requirements by name, without the comments."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    found = [Requirement(line) for line in lines if line]
    return {requirement.name: requirement for requirement in found}


def file(name):
    return requirements((ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8"))


def metadata():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
LANES = re.search(r"^LANES := (.*)$", MAKEFILE, re.MULTILINE)[1].split()


def test_the_lowest_versions_are_those_that_the_metadata_admit():
    lowest = file("lowest")
    needed = requirements(metadata()["options"]["install_requires"])
    assert set(needed) == {"numpy", "pandas", "tqdm"}
    for name, requirement in needed.items():
        (bound,) = requirement.specifier
        (pin,) = lowest[name].specifier
        assert (bound.operator, pin.operator) == (">=", "==")
        assert bound.version == pin.version


@pytest.mark.parametrize("lane", ["reference", *LANES])
def test_each_set_of_versions_keeps_to_the_metadata(lane):
    needed = requirements(metadata()["options"]["install_requires"])
    held = file(lane)
    for name in ("dgl", "torch"):
        (pin,) = held[name].specifier
        assert pin.operator == "=="
    for name, requirement in needed.items():
        lower = [s.version for s in held[name].specifier if s.operator in (">=", "==")]
        assert requirement.specifier.contains(max(map(Version, lower)))


def test_the_recorded_table_has_a_row_for_each_set_of_versions():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `?([\w.-]+)`? \| ([\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
    expected = []
    for lane in ("reference", *LANES):
        held = file(lane)
        versions = [next(iter(held[name].specifier)).version for name in ("dgl", "torch")]
        expected.append((lane, *versions))
    assert rows == expected


def test_every_test_that_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", text))
    assert len(named) > 3
    for path in named:
        assert "\ndef test_" in (ROOT / path).read_text(encoding="utf-8"), path


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("=== 1893 passed, 16 skipped, 23 deselected, 83 warnings in 496.85s (0:08:16) ===", 1893),
        ("=== 3 failed, 1899 passed, 1 skipped, 2 errors in 1.00s ===", 1899),
        ("=== 1 skipped, 1 error in 14.62s ===", 0),
    ],
)
def test_counts_are_read_off_the_last_line(last, expected):
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "tools" / "matrix.py")
    matrix = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(matrix)
    counts = matrix.counts(f"5 passed before\n{last}\n")
    assert counts["passed"] == expected
    assert counts["failed"] == (3 if "failed" in last else 0)
    assert counts["error"] == (2 if "errors" in last else "error" in last)
