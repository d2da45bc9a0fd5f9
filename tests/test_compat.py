"""A missing or unfitting DGL is found without an import and explained in one message."""

import re
import subprocess
import sys
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from dgl_dmns import _compat

ROOT = Path(__file__).resolve().parents[1]

WORKING = dict(
    word.split("=")
    for word in (
        "dgl=2.1.0 networkx=3.2 numpy=1.26.4 packaging=24.0 pandas=2.2.0 psutil=5.9 pydantic=2.6 "
        "pyyaml=6.0 requests=2.31 scipy=1.12 setuptools=65.5.0 torch=2.2.1 torchdata=0.7.1 "
        "tqdm=4.66"
    ).split()
)
MODULE_OF = {"pyyaml": "yaml"}


class Site:
    """A pretended set of installed distributions, with real folders for dgl and torchdata."""

    def __init__(self, folder):
        self.versions = dict(WORKING)
        self.folder = folder
        (folder / "torchdata" / "datapipes").mkdir(parents=True)
        (folder / "dgl" / "dataloading").mkdir(parents=True)
        self.distributed_loaders = folder / "dgl" / "dataloading" / "dist_dataloader.py"
        self.distributed_loaders.touch()

    def build_dgl_for(self, *names):
        (self.folder / "dgl" / "graphbolt").mkdir(exist_ok=True)
        for name in (*names, "__init__.py"):
            (self.folder / "dgl" / "graphbolt" / name).touch()

    def find_spec(self, module):
        found = [name for name, version in self.versions.items() if version is not None]
        if module not in {MODULE_OF.get(name, name) for name in found}:
            return None
        spec = ModuleSpec(module, None, is_package=True)
        spec.submodule_search_locations = [str(self.folder / module)]
        return spec

    def version(self, name):
        if not self.versions.get(name):
            raise metadata.PackageNotFoundError(name)
        return self.versions[name]


@pytest.fixture
def site(monkeypatch, tmp_path):
    """Pretend that the working set is installed and DGL is not imported yet."""
    pretended = Site(tmp_path)
    pretended.build_dgl_for("libgraphbolt_pytorch_2.1.0.so", "libgraphbolt_pytorch_2.2.1.so")
    finder = SimpleNamespace(find_spec=pretended.find_spec)
    reader = SimpleNamespace(
        version=pretended.version, PackageNotFoundError=metadata.PackageNotFoundError
    )
    monkeypatch.delitem(sys.modules, "dgl", raising=False)
    monkeypatch.setattr(_compat, "util", finder)
    monkeypatch.setattr(_compat, "metadata", reader)
    _compat.require_dgl.cache_clear()
    yield pretended
    _compat.require_dgl.cache_clear()


def pretend_import(monkeypatch, outcome):
    """Make importing return or raise ``outcome``; the list that comes back fills with the names."""
    names = []

    def import_module(name):
        names.append(name)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(_compat, "importlib", SimpleNamespace(import_module=import_module))
    return names


def message():
    text = _compat.why_unusable()
    assert text is not None
    return text


# What is looked at without importing.


def test_the_working_set_passes_without_an_import(site, monkeypatch):
    imported = pretend_import(monkeypatch, AssertionError("must not import"))
    assert _compat.why_unusable() is None
    assert imported == []


def test_the_message_has_its_four_parts_in_order(site):
    del site.versions["dgl"]
    lines = message().splitlines()
    assert lines[0] == "DGL is not installed."
    assert lines[1].startswith("Found: Python 3.")
    assert "dgl not found, torch 2.2.1, torchdata 0.7.1, numpy 1.26.4" in lines[1]
    assert lines[2] == "Combinations of DGL and torch:"
    for pair in _compat.PAIRS:
        assert any(f"dgl {pair.dgl} with torch {pair.torch} (" in line for line in lines)
        assert f"    {pair.notes}" in lines
    assert lines[-1] == f"  {_compat.PAIRS[0].install}"


TORCHDATA = "  python -m pip install torchdata==0.7.1"
IMPORTS = "DGL 2.1.0 imports packages that are not installed:"
OLD_NUMPY = '  python -m pip install "numpy<2"'
SEVERAL = "  python -m pip install psutil pydantic pyyaml"
OTHER_TORCH = "cannot be imported with torch 2.6.0: it was built for torch 2.1.0, 2.2.1 only."


@pytest.mark.parametrize(
    ("changes", "said", "cure"),
    [
        ({"torch": None}, "DGL is installed, but torch is not.", ""),
        ({"torchdata": None}, f"{IMPORTS} torchdata.", TORCHDATA),
        (dict.fromkeys(SEVERAL.split()[-3:]), f"{IMPORTS} psutil, pydantic, yaml.", SEVERAL),
        (
            {"numpy": "2.1"},
            "torch 2.2.1 was built for NumPy 1 and fails with NumPy 2.1.",
            OLD_NUMPY,
        ),
        # Older setuptools carry a copy of packaging.
        ({"packaging": None, "setuptools": "71.0"}, f"{IMPORTS} packaging.", ""),
        ({"packaging": None, "setuptools": None}, f"{IMPORTS} packaging.", ""),
        ({"torch": "2.6.0", "dgl": ""}, f"DGL {OTHER_TORCH}", ""),  # no metadata: by its files
    ],
)
def test_what_is_missing_or_does_not_fit(site, changes, said, cure):
    site.versions.update(changes)
    assert message().splitlines()[0] == said
    assert message().endswith(cure)


@pytest.mark.parametrize(
    ("changes", "compiled"),
    [
        ({"packaging": None}, ""),  # an old setuptools carries it
        ({"torch": "2.2.1+cu121"}, "libgraphbolt_pytorch_2.2.1.so"),
        ({"torch": "2.2.1.post300"}, "libgraphbolt_pytorch_2.2.1.so"),
        ({"torch": "2.2.1"}, "libgraphbolt_pytorch_2.2.1.post300.so"),
        ({"dgl": "2.4.0+cu121", "torch": "2.4.0"}, "libgraphbolt_pytorch_2.4.0.dylib"),
        ({"dgl": "2.4.0", "torch": "2.4.0"}, "graphbolt_pytorch_2.4.0.dll"),
    ],
)
def test_what_fits(site, changes, compiled):
    site.versions.update(changes)
    if compiled:
        site.build_dgl_for(compiled)
    assert _compat.why_unusable() is None


def test_torchdata_without_data_pipes(site):
    (site.folder / "torchdata" / "datapipes").rmdir()
    site.versions["torchdata"] = "0.11.0"
    assert "the installed torchdata (0.11.0) no longer has" in message().splitlines()[0]
    assert message().endswith(TORCHDATA)


def test_a_torch_that_dgl_was_not_built_for(site):
    site.versions["torch"] = "2.6.0"
    assert message().startswith(f"DGL 2.1.0 {OTHER_TORCH}")
    commands = message().splitlines()[-4:]
    assert commands[0] == "Install the first of them (it replaces torch):"
    assert "dgl==2.1.0 torch==2.2.1" in commands[1]
    assert commands[2] == "or keep torch and take an older DGL:"
    assert "dgl==1.1.3" in commands[3]


def test_a_dgl_that_leaves_graphbolt_to_its_users_works_with_any_torch(site):
    site.versions.update(dgl="2.4.0", torch="2.6.0")
    assert "was built for" in message()
    site.distributed_loaders.unlink()  # as of DGL 2.4
    assert _compat.why_unusable() is None


def test_dgl_1_works_with_any_torch_and_without_the_packages_of_2(site):
    for path in (site.folder / "dgl" / "graphbolt").iterdir():
        path.unlink()
    (site.folder / "dgl" / "graphbolt").rmdir()
    site.versions.update(dgl="1.1.3", torch="2.13.0", numpy="2.4.0")
    site.versions.update(dict.fromkeys(("torchdata", "pydantic", "pyyaml")))
    assert _compat.why_unusable() is None


def test_a_python_without_wheels_is_said(site, monkeypatch):
    del site.versions["dgl"]
    python = SimpleNamespace(modules=sys.modules, version_info=(3, 13, 0))
    monkeypatch.setattr(_compat, "sys", python)
    assert (
        "There is no such wheel for Python 3.13: make an environment with Python 3.11 first."
        in message()
    )


def test_a_module_without_a_spec_counts_as_found(site, monkeypatch):
    def find_spec(module):
        if module == "dgl":
            raise ValueError("dgl.__spec__ is None")
        return site.find_spec(module)

    monkeypatch.setattr(_compat, "util", SimpleNamespace(find_spec=find_spec))
    assert _compat.why_unusable() is None


def test_an_imported_dgl_is_not_doubted(site, monkeypatch):
    site.versions["torch"] = "2.6.0"
    monkeypatch.setitem(sys.modules, "dgl", ModuleType("dgl"))
    assert _compat.why_unusable() is None


# The import itself.


def test_require_dgl_imports_once(site, monkeypatch):
    module = ModuleType("dgl")
    imported = pretend_import(monkeypatch, module)
    assert _compat.require_dgl() is module
    assert _compat.require_dgl() is module
    assert imported == ["dgl", "dgl.dataloading"]


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("Cannot find DGL C++ graphbolt library at /x/libgraphbolt.so"),
        ImportError("Cannot load Graphbolt C++ library"),
        OSError("libcusparse.so.12: cannot open shared object file"),
        AttributeError("module 'torch' has no attribute 'foo'"),
        RuntimeError("operator already registered"),
        ModuleNotFoundError("No module named 'dgl'"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_failure_becomes_an_import_error(site, monkeypatch, error):
    pretend_import(monkeypatch, error)
    with pytest.raises(ImportError, match=r"^DGL is installed but cannot be imported\.") as caught:
        _compat.require_dgl()
    assert caught.value.__cause__ is error
    assert caught.value.name == "dgl"
    lines = str(caught.value).splitlines()
    assert lines[1] == f"Cause: {type(error).__name__}: {error}"
    assert lines[-1] == f"  {_compat.PAIRS[0].install}"


def test_a_failed_import_names_the_known_reason_first(site, monkeypatch):
    site.versions["torch"] = "2.6.0"
    pretend_import(monkeypatch, FileNotFoundError("libgraphbolt_pytorch_2.6.0.so"))
    with pytest.raises(ImportError, match=r"^DGL 2\.1\.0 cannot be imported with torch 2\.6\.0"):
        _compat.require_dgl()


def test_a_failure_is_not_remembered(site, monkeypatch):
    pretend_import(monkeypatch, OSError("no"))
    with pytest.raises(ImportError, match="Cause: OSError: no"):
        _compat.require_dgl()
    pretend_import(monkeypatch, ModuleType("dgl"))
    assert _compat.require_dgl().__name__ == "dgl"


def test_another_backend_is_refused(site, monkeypatch):
    module = SimpleNamespace(backend=SimpleNamespace(backend_name="tensorflow"))
    pretend_import(monkeypatch, module)
    with pytest.raises(ImportError, match="DGL runs on tensorflow here.*\n.*DGLBACKEND=pytorch"):
        _compat.require_dgl()


# What DGL may have imported or not.


def test_objects_of_the_distributed_part(monkeypatch):
    class DistGraph:
        pass

    module = SimpleNamespace(DistGraph=DistGraph)
    monkeypatch.setitem(sys.modules, "dgl.distributed", module)  # type: ignore[arg-type]
    assert _compat.is_distributed(DistGraph(), "DistGraph")
    assert not _compat.is_distributed(object(), "DistGraph")
    monkeypatch.delitem(sys.modules, "dgl.distributed")
    assert not _compat.is_distributed(DistGraph(), "DistGraph")


# The real thing.


def test_the_installed_dgl_is_found_and_imported(monkeypatch):
    dgl = pytest.importorskip("dgl")
    monkeypatch.delitem(sys.modules, "dgl")
    assert _compat.why_unusable() is None
    monkeypatch.undo()
    _compat.require_dgl.cache_clear()
    assert _compat.require_dgl() is dgl


def test_the_first_pair_is_the_one_in_the_reference_requirements():
    text = (ROOT / "requirements" / "reference.txt").read_text(encoding="utf-8")
    pair = _compat.PAIRS[0]
    assert f"dgl=={pair.dgl}\n" in text
    assert f"torch=={pair.torch}\n" in text
    for requirement in re.findall(r"\S+==\S+", pair.install):
        assert f"{requirement}\n" in text


@pytest.mark.parametrize("pair", _compat.PAIRS, ids=lambda pair: f"dgl{pair.dgl}")
def test_pairs_install_what_they_say(pair):
    assert re.search(rf"dgl={{1,2}}{re.escape(pair.dgl)}\b", pair.install) or not pair.install
    assert pair.install or "the command" in pair.notes
    assert "$" not in pair.install
    assert pair.supports((3, 11))
    assert not pair.supports((3, 14))


def run(code):
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_does_not_import_dgl():
    assert run("import sys, dgl_dmns; print('dgl' in sys.modules)") == "False\n"


def test_without_dgl_the_package_warns_once_and_its_core_works():
    output = run(
        """
import sys, warnings
sys.modules["dgl"] = None  # any import of it fails

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import dgl_dmns
    import dgl_dmns.core

about_dgl = [w for w in caught if "DGL" in str(w.message)]
print(len(about_dgl), about_dgl[0].category.__name__, str(about_dgl[0].message).splitlines()[0])

try:
    from dgl_dmns import DMNSSampler
except ImportError as error:
    print(type(error).__name__, error)
"""
    )
    warned, failed = output.split("\n", maxsplit=1)
    assert warned == "1 UserWarning DGL is not installed."
    assert failed.startswith("ImportError DGL is not installed.\nCause: ModuleNotFoundError: ")
    assert failed.rstrip().endswith(_compat.PAIRS[0].install)
