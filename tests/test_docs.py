"""The pages of the documentation: their code runs, and they stay connected."""

import configparser
import html
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def name_of(page):
    return str(page.relative_to(DOCS))


def source_of(page):
    """Its blocks of code as one file, whose line numbers are those of the page."""
    text, source, end = page.read_text(), "", 0
    for block in BLOCK.finditer(text):
        source += "\n" * text.count("\n", end, block.start(1)) + block[1]
        end = block.end(1)
    return source


@pytest.mark.parametrize("page", [page for page in PAGES if source_of(page)], ids=name_of)
def test_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(source_of(page), str(page), "exec"), {"__name__": "page"})


def test_the_section_without_dgl_needs_none(tmp_path):
    page = (DOCS / "extending.md").read_text()
    (code,) = BLOCK.findall(page.split("## Without DGL\n")[1].split("\n## ")[0])
    code = f"import sys\nsys.modules['dgl'] = None\n{code}\nassert sys.modules['dgl'] is None\n"
    words = [sys.executable, "-c", f"{code}assert not any(m[:4] == 'dgl.' for m in sys.modules)"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_parts_of_ones_own_are_typed(tmp_path):
    """A rule, a predictor and samplers as the page shows them pass the checks of the package."""
    page = tmp_path / "extending.py"
    page.write_text(source_of(DOCS / "extending.md"))
    words = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(page)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md")], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for file, place in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", prose):
        target = page.parent / file if file else page
        assert target.exists(), file
        if place and target.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert place in [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles]


def test_every_page_stands_in_the_navigation():
    named = set(re.findall(r": (\S+\.(?:md|ipynb))$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert {name_of(page) for page in PAGES} | {
        name_of(page) for page in DOCS.rglob("*.ipynb")
    } == named


@pytest.mark.parametrize(
    "package", ["core", "samplers", "data", "evaluate", "diagnostics", "plots", "report"]
)
def test_the_api_pages_name_what_a_package_exports(package):
    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    named = re.findall(r"^::: (\S+)", text, re.MULTILINE)
    module = __import__(f"dgl_dmns.{package}", fromlist=["__all__"])
    missing = [
        name
        for name in module.__all__
        if (home := getattr(getattr(module, name), "__module__", None))
        and home.startswith("dgl_dmns.")
        and not {home, f"{home}.{name}"} & set(named)
    ]
    assert not missing, f"name them, or their modules, in docs/api: {missing}"


def test_the_ways_through_the_code_name_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`(\w+/\w+\.py)`,\s+`([\w.]+)`", text)
    assert len(named) > 10
    for file, name in named:
        source = (ROOT / "dgl_dmns" / file).read_text()
        for part in name.split("."):
            assert re.search(rf"^ *(?:def|class) {part}\b", source, re.MULTILINE), (file, name)


def test_the_badges_are_true():
    badges = (DOCS / "images" / "badges.svg").read_text()
    said = [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", badges)]
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    reference = (ROOT / "requirements" / "reference.txt").read_text()
    version = dict(re.findall(r"^(dgl|torch)==(\S+)$", reference, re.MULTILINE))
    tested = re.search(r"^PYTHON \?= python(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert said == [
        "license",
        metadata["metadata"]["license"],
        "Python",
        f"{metadata['options']['python_requires']}, tested: {tested[1]}",
        "tested with",
        f"DGL {version['dgl']}, torch {version['torch']}",
        "typed",
    ]
    assert (ROOT / "dgl_dmns" / "py.typed").is_file()
