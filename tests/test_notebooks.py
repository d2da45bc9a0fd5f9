"""The notebooks run from the first cell to the last, and keep the outputs of a run.

They run here for fewer epochs, and those on real data without: on generated data. All else is from
the same cells. The outputs that they keep are of all epochs, and of the data that their first cell
names.
"""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))
FOLDER = "DMNS_DATA"
"""The environment variable with the folder of real data."""
REAL = {
    "knowledge": "codex-s: 2034 entities, 42 relations",
    "recommendation": "amazon2014-health: 1974 users, 1200 items",
}
"""By notebook, what a run on the real data prints first."""

FEWER = {
    "diagnostics": ("steps=80", "steps=56"),  # the warnings come after some 40
    "knowledge": ("EPOCHS = 12", "EPOCHS = 2"),
    "quickstart": ("epochs=30", "epochs=3"),
    "recommendation": ("EPOCHS = 30", "EPOCHS = 5"),
}
"""By notebook, how long its trainings last, and how long they do here."""


def shorten(notebook, name):
    """Fewer epochs or steps."""
    (cell,) = (cell for cell in notebook.cells if FEWER[name][0] in cell.source)
    assert cell.cell_type == "code"
    cell.source = cell.source.replace(*FEWER[name])


def kinds(cell):
    """What kinds of outputs a cell has; warnings are none, which other data may give."""
    return {one.output_type for one in cell.outputs if one.get("name") != "stderr"}


def printed(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    kept = nbformat.read(path, as_version=4)
    nbformat.validate(kept)
    notebook = nbformat.read(path, as_version=4)
    shorten(notebook, path.stem)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=resources
    ).execute()
    for old, new in zip(kept.cells, notebook.cells):
        if old.cell_type == "code":
            again = f"run {path.name} again: {old.source[:60]}"
            assert kinds(old) <= kinds(new), again
            assert bool(kinds(old)) == bool(kinds(new)), again
    assert printed(notebook).startswith("generated") == (path.stem in REAL)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_kept_and_name_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    for output in outputs:
        assert "/site-packages/" not in str(output.get("text", ""))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_outputs_are_of_the_real_data(path):
    notebook = nbformat.read(path, as_version=4)
    reads = any(FOLDER in cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert reads == (path.stem in REAL)
    if reads:
        assert FOLDER in notebook.cells[0].source
        assert printed(notebook).startswith(REAL[path.stem])
    for cell in notebook.cells:
        assert cell.cell_type != "code" or not cell.outputs or cell.execution_count
