"""Every measured figure of README and docs stands in a ``RESULTS.md``, and its section says where.

A figure is a decimal, or a number before %, "times", or a unit of time or memory. The section that
quotes it (from one ``##`` heading to the next) names the file, ``benchmarks/dropin/RESULTS.md``,
and the table, `` `cora-shared` ``. The figure has to stand there, rounded as it is quoted; a
leading zero may be left out. A table has the row titles of the results, and the figures of a cell
have to stand in one cell of a row of that title. Code, formulas and versions are no figures, so
settings, defaults and limits are written as code.

The text of a notebook may also quote what an output of the notebook has.
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
NOT_MEASURED = {
    "README.md": {"5 GB"},  # of .venv
    "quickstart.ipynb": {"5 %", "10 %"},  # of the edges, held out
}
"""What a page quotes that is no setting and that no benchmark measures."""

ASIDE = re.compile(
    r"^ *```.*?^ *```$"  # code, inline code, formulas, pictures, and where links lead
    r"|`[^`]*`|^ *\$\$.*?\$\$|\$\$.*?\$\$|\$[^$]*\$|!\[[^\]]*\]|\]\([^)]*\)",
    re.DOTALL | re.MULTILINE,
)
VERSION = re.compile(
    r"(?:Apache|arXiv|DGL|gloo|NumPy|pandas|Python|torch)[ -][\d.]*\d(?:, [\d.]+)*"
)
NUMBER = r"(?<![\w.])(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
FIGURE = re.compile(
    rf"({NUMBER})(?: ?(%|(?:times|m?s|seconds?|minutes?|hours?|bytes?|[KMG]i?B)\b))?(?!\w)"
)


def tables_of(file):
    """Tables of a page of results by name: rows of a title and the numbers of each cell."""
    tables = {}
    for line in file.read_text().splitlines():
        if line.startswith("## "):
            rows = tables.setdefault(line[3:], [])
        elif line.startswith("|"):
            title, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows.append((title, [re.findall(NUMBER, cell) for cell in cells]))
    return tables


def stands(figure, unit, cell):
    """Whether a figure is a number of the cell, rounded to its digits; 42 % is 0.42, too."""
    digits = len(figure.partition(".")[2])
    for number in cell:
        for more in (0, 2) if unit == "%" else (0,):
            fine = len(number.partition(".")[2]) >= digits + more
            value = float(number.replace(",", "")) * 10**more
            if fine and abs(value - float(figure)) <= 0.5001 * 10**-digits:
                return True
    return False


def groups_of(line, exceptions):
    """The figures of a line that stand together in the results, each with its unit."""
    in_table = line.startswith("|")
    for part in line.split("|")[2:] if in_table else [line]:
        found = [
            (one[1].replace(",", ""), one[2])
            for one in FIGURE.finditer(part)
            if ("." in one[1] or one[2]) and one[0] not in exceptions
        ]
        yield from [found] if in_table else [[one] for one in found]


def unfounded(text, exceptions=(), outputs=()):
    """The figures of a page that stand in no output, nor in the results that their sections name.

    ``outputs`` are cells: lists of numbers.
    """
    missing = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        named = {*re.findall(r"`([\w-]+)`", section)}
        rows = [
            row
            for benchmark in {*re.findall(r"benchmarks/(\w+)/RESULTS\.md", section)}
            for name, table in tables_of(ROOT / "benchmarks" / benchmark / "RESULTS.md").items()
            if name in named
            for row in table
        ]
        for line in VERSION.sub("", ASIDE.sub("", section)).splitlines():
            title = line.split("|")[1].strip() if line.startswith("|") else None
            cells = [cell for row in rows if title in (None, row[0]) for cell in row[1]]
            cells += outputs
            missing += [
                f"{' ± '.join(figure for figure, _ in group)} in: {line}"
                for group in groups_of(line, exceptions)
                if group and not any(all(stands(*one, cell) for one in group) for cell in cells)
            ]
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_stand_in_the_results(page):
    missing = unfounded(page.read_text(), NOT_MEASURED.get(page.name, ()))
    assert not missing, "\n".join(
        ["not in a table that the section names (a setting is written as code):", *missing]
    )


def text_and_outputs(notebook):
    """The Markdown of a notebook, and the numbers of each line that its code has printed."""
    text, lines = [], []
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "markdown":
            text.append("".join(cell["source"]))
        for output in cell.get("outputs", []):
            shown = output.get("text") or output.get("data", {}).get("text/plain", [])
            lines += "".join(shown).splitlines()
    return "\n\n".join(text), [re.findall(NUMBER, line) for line in lines]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_figures_of_notebooks_stand_in_outputs_or_results(notebook):
    text, outputs = text_and_outputs(notebook)
    missing = unfounded(text, NOT_MEASURED.get(notebook.name, ()), outputs)
    assert not missing, "\n".join(["in no output and no table that is named:", *missing])


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    folder = tmp_path / "benchmarks" / "dropin"
    folder.mkdir(parents=True)
    (folder / "RESULTS.md").write_text(
        "# Results\n\n## cora\n\n| negatives | MRR | share |\n| --- | ---: | ---: |\n"
        "| uniform (5) | 0.144 ± 0.002 | 0.00 |\n| DMNS (5) | 1,234.176 | 0.42 |\n\n"
        "## other\n\n| DMNS (5) | 0.999 |\n"
    )


WHERE = "\n\n`cora` of [results](benchmarks/dropin/RESULTS.md)\n"


@pytest.mark.parametrize(
    "text",
    [
        "MRR is .144, 0.14 and 0.144 ± .002." + WHERE,
        "It takes 42 % of the time, and 1,234.2 seconds." + WHERE,
        "| uniform (5) | **.144 ± .002** |\n| DMNS (5) | 0.42 |" + WHERE,
        "Python 3.9, torch 2.2.1, `0.5`, $x = 0.3$, 128 candidates, [a](b-0.7.md)",
        "```python\nx = 0.3\n```",
    ],
)
def test_figures_that_stand(results, text):
    assert unfounded(text) == []


def test_figures_of_outputs(results):
    outputs = [["0.375", "17"], ["0.9"]]
    assert unfounded("An MRR of .375, on 0.9 of them.", outputs=outputs) == []
    (found,) = unfounded("An MRR of .376.", outputs=outputs)
    assert found.startswith(".376 in: ")


@pytest.mark.parametrize(
    ("text", "figure"),
    [
        ("MRR is .145." + WHERE, ".145"),
        ("MRR is .1440." + WHERE, ".1440"),
        ("MRR is .999." + WHERE, ".999"),
        ("MRR is .144.\n\n## Next" + WHERE, ".144"),
        ("| DMNS (5) | .144 |" + WHERE, ".144"),
        ("| diffusion | .144 |" + WHERE, ".144"),
        ("| uniform (5) | .144 ± .003 |" + WHERE, ".144 ± .003"),
        ("It takes 43 % of the time." + WHERE, "43"),
        ("It is 3 times faster." + WHERE, "3"),
        ("It takes 7 ms." + WHERE, "7"),
    ],
)
def test_figures_that_do_not_stand(results, text, figure):
    (found,) = unfounded(text)
    assert found.startswith(f"{figure} in: ")
