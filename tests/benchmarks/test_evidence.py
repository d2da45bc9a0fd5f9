"""The files of results: pages made of them, and how a new run gets in."""

import csv
import shutil

import pytest

from benchmarks.common.command import Command, benchmark_parser
from benchmarks.common.evidence import ORIGIN, PLACE, ROOT, add, main, page
from benchmarks.common.report import sections_of, write_report
from benchmarks.common.rows import Cell, Row

ROWS = [Row("uniform (5)", "dgl"), Row("DMNS (5)", "dmns")]


@pytest.fixture
def root(tmp_path):
    """A folder of benchmarks without a run."""
    folder = tmp_path / "benchmarks" / "dropin"
    folder.mkdir(parents=True)
    for name, columns in (("results.csv", PLACE), ("tables.csv", ORIGIN)):
        (folder / name).write_text(",".join(columns) + "\n")
    return folder.parent


@pytest.fixture
def out(tmp_path):
    """What a benchmark writes, by seeds and groups; DMNS has twice the MRR of uniform."""

    def write(seeds=3, groups=("main",)):
        folder = tmp_path / "out"
        shutil.rmtree(folder, ignore_errors=True)
        words = ["--out", str(folder), "--seeds", str(seeds)]
        command = Command(benchmark_parser("dropin", "", seeds=1), words)
        sections = []
        for group in groups:
            new = sections_of(
                group, ["cora"], ROWS, range(seeds), lambda d, r, s, g=group: Cell(d, g, r, s)
            )
            sections += new
            for title, cells in new[0].cells.items():
                for cell in cells:
                    mrr = (0.1 + 0.01 * cell.seed) * (1 + ("DMNS" in title))
                    result = {"test": {"MRR": mrr, "MAP": 0.5}, "curve": [mrr], "note": "text"}
                    command.store.save(cell, result)
        write_report(sections, command.store, folder, command.heading("Title"), lambda *_: "")
        return folder

    return write


def lines(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_pages_are_those_of_the_files():
    assert main(["--check"]) == 0


def test_a_run_gets_in_and_replaces_one_of_its_name(root, out):
    first = out(seeds=2)
    written = {(one["row"], one["seed"]): one["test MRR"] for one in lines(first / "results.csv")}
    assert main(["add", "cora-new", str(first)], root) == 0
    folder = root / "dropin"
    kept = lines(folder / "results.csv")
    assert {(one["row"], one["seed"]): one["test MRR"] for one in kept} == written  # not rounded
    assert {one["table"] for one in kept} == {"cora-new"}
    text = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert "`python -m benchmarks.dropin --out OUT --seeds 2`\n(python 3" in text
    assert "| uniform (5) | 2 | 0.105 ± 0.005 | 0.500 ± 0.000 | - |" in text
    assert "| DMNS (5) | 2 | 0.210 ± 0.010 | 0.500 ± 0.000 | 2.00 [2.00, 2.00] |" in text
    assert "HeaRT" not in text  # no run has it
    add("other", out(), root)
    add("cora-new", out(seeds=1), root)
    tables = [one["table"] for one in lines(folder / "results.csv")]
    assert tables == ["cora-new"] * 2 + ["other"] * 6
    assert [one["table"] for one in lines(folder / "tables.csv")] == ["cora-new", "other"]


def test_groups_of_a_run_are_tables_of_their_own(root, out):
    add("both", out(groups=("gate", "blend")), root)
    text = page(root / "dropin")
    assert text.count("## both\n") == 1
    assert "### gate, cora\n" in text
    assert "### blend, cora\n" in text
    add("both", out(), root)
    assert {one["table"] for one in lines(root / "dropin" / "results.csv")} == {"both"}


def test_a_page_that_is_out_of_date(root, out, capsys):
    main(["add", "new", str(out())], root)
    assert main(["--check"], root) == 0
    (root / "dropin" / "RESULTS.md").write_text("edited")
    assert main(["--check"], root) == 1
    assert "RESULTS.md: out of date" in capsys.readouterr().err
    assert main([], root) == 0
    assert main(["--check"], root) == 0


def test_files_that_do_not_agree(root, out):
    add("new", out(seeds=1), root)
    folder = root / "dropin"
    results = folder / "results.csv"
    text = results.read_text()
    results.write_text(text + text.splitlines()[-1] + "\n")
    with pytest.raises(ValueError, match=r"twice new, cora, DMNS \(5\), 0"):
        page(folder)
    results.write_text(text.replace("new", "old"))
    with pytest.raises(ValueError, match=r"results.csv and tables.csv, got new, old"):
        page(folder)


def test_what_cannot_get_in(root, out, capsys):
    folder = out(seeds=1)
    with pytest.raises(ValueError, match="without a colon, got 'a: b'"):
        add("a: b", folder, root)
    (folder / "results.csv").write_text("seconds,step\n1,2\n")
    with pytest.raises(SystemExit):
        main(["add", "name", str(folder)], root)
    assert "expected lines with table, dataset, row, seed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["add", "name", str(folder / "none")], root)
    assert lines(root / "dropin" / "results.csv") == []


@pytest.mark.parametrize("folder", [path.parent.name for path in ROOT.glob("*/tables.csv")])
def test_notes_are_short(folder):
    notes = (ROOT / folder / "NOTES.md").read_text(encoding="utf-8")
    assert len(notes.splitlines()) <= 60
