"""What is published: the wheel and the source distribution, in environments of their own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def run(*words, cwd, code=0):
    """What a command says; its exit code has to be the one expected."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the source distribution, built from a copy of the tree."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "copy"
    copy.mkdir()
    for name in ("dgl_dmns", "requirements", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, copy, cwd=folder)
    return folder


def environment(folder, wheel, *, with_dgl):
    """A new environment with the wheel in it; its folder of commands.

    With DGL: the packages of this environment are on its path, after its own. A line in a ``.pth``
    file does not bring this environment's own ``.pth`` files along, so not its editable install.
    """
    venv.create(folder, with_pip=False)
    commands = folder / "bin"
    where = "import site; print(site.getsitepackages()[0])"
    site = Path(run(commands / "python", "-c", where, cwd=folder).strip())
    if with_dgl:
        (site / "reference.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", commands / "python", "install"]
    run(*pip, "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    return commands


def test_contents(built):
    (wheel,) = built.glob("*.whl")
    (source,) = built.glob("*.tar.gz")
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "dgl_dmns").rglob("*.py")} | {
        "dgl_dmns/py.typed"
    }
    assert modules <= in_wheel
    assert not any(name.startswith(("tests", "benchmarks", "docs")) for name in in_wheel)
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    lists = {f"requirements/{name}.txt" for name in ("reference", "test", "dev")}
    assert modules | lists | {"LICENSE"} <= names


def test_the_wheel_beside_dgl(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    commands = environment(tmp_path / "env", wheel, with_dgl=True)
    code = (
        "import pkgutil, importlib, dgl_dmns; print(dgl_dmns.__file__);"
        "[importlib.import_module(m.name) for m in"
        " pkgutil.walk_packages(dgl_dmns.__path__, 'dgl_dmns.') if '__main__' not in m.name]"
    )
    said = run(commands / "python", "-W", "ignore", "-c", code, cwd=tmp_path)
    assert Path(said.strip().splitlines()[0]).is_relative_to(tmp_path)
    assert "no failure(s)" in run(commands / "dgl-dmns", "doctor", cwd=tmp_path)


def test_the_wheel_without_dgl(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    commands = environment(tmp_path / "env", wheel, with_dgl=False)
    said = run(commands / "python", "-c", "import dgl_dmns; print('fine')", cwd=tmp_path)
    assert "fine" in said
    assert "UserWarning" in said
    assert "pip install dgl==" in said
    said = run(commands / "dgl-dmns", "doctor", cwd=tmp_path, code=1)
    assert "torch        not installed" in said
    assert "Not usable: " in said
    said = run(commands / "dgl-dmns", "--version", cwd=tmp_path)
    assert said.startswith(f"dgl-dmns {wheel.name.split('-')[1]}\n")


def test_the_source_distribution_builds_the_same_wheel(built, tmp_path):
    (source,) = built.glob("*.tar.gz")
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", tmp_path, source, cwd=tmp_path)
    (again,) = tmp_path.glob("*.whl")
    first, second = (zipfile.ZipFile(file) for file in (wheel, again))
    assert sorted(first.namelist()) == sorted(second.namelist())
    for name in first.namelist():
        if name.endswith((".py", "METADATA", "entry_points.txt")):
            assert first.read(name) == second.read(name)
