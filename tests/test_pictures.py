"""The command that makes the pictures of README and docs, at a tiny size."""

import re
from pathlib import Path

import pytest
from pictures import PICTURES, main

ROOT = Path(__file__).parent.parent


# The quickstart has a quick test of its own, in test_examples.py.
SLOW = {"quickstart.png": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOW.get(n, ())) for n in PICTURES])
def test_a_picture_is_made(name, tmp_path):
    assert main(["--quick", "--out", str(tmp_path), name]) == 0
    (made,) = tmp_path.iterdir()
    assert made.name == name
    assert made.read_bytes().startswith(b"\x89PNG")


def test_the_pictures_of_the_docs_are_made_by_it():
    kept = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    assert kept == {*PICTURES, "badges.svg"}
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = {name for page in pages for name in re.findall(r"images/([\w.]+)\)", page.read_text())}
    assert shown == kept


def test_a_name_that_is_none(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "cover.png"])
    assert "expected some of scale.png, " in capsys.readouterr().err
