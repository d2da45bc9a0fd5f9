"""The only module that imports DGL, and the explanation when that fails.

DGL 2 has a part, GraphBolt, that is compiled once for each torch version a wheel was built with. Up
to 2.3 ``import dgl`` loads it, and so fails beside any other torch. DGL 2.0 and 2.1 also import
packages that their metadata do not list. What a user then sees is a ``FileNotFoundError`` for a
shared library, or a missing module that they never asked for. The functions here turn all of that
into one message: what is wrong, what is installed, which combinations work, and the command that
installs one.

:func:`why_unusable` only looks (module specs, package metadata, names of files) and is quick enough
to run whenever ``dgl_dmns`` is imported. :func:`require_dgl` imports DGL for real.
"""

from __future__ import annotations

import importlib
import platform
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path
from types import ModuleType

__all__ = [
    "PAIRS",
    "Pair",
    "is_distributed",
    "require_dgl",
    "require_graphbolt",
    "version_of",
    "versions",
    "why_unusable",
]


@dataclass(frozen=True)
class Pair:
    """A DGL version and the torch versions it works with.

    Attributes:
        python: First and last Python version there are wheels for, such as ``((3, 9), (3, 11))``.
        source: Where the DGL wheel or package comes from.
        notes: What else is needed, and how far the combination has been tried.
        install: Shell command that installs it; empty where it takes an address of DGL's.
    """

    dgl: str
    torch: str
    python: tuple[tuple[int, int], tuple[int, int]]
    source: str
    notes: str
    install: str

    def supports(self, python: tuple[int, int]) -> bool:
        """Whether there are wheels for a Python version, major and minor."""
        return self.python[0] <= python <= self.python[1]


PAIRS: tuple[Pair, ...] = (
    Pair(
        dgl="2.1.0",
        torch="2.2.1",
        python=((3, 8), (3, 12)),
        source="package index, CPU",
        notes="with torchdata 0.7.1, numpy<2, pandas, packaging, pydantic, pyyaml; "
        "the tests of dgl-dmns run with it on Python 3.11",
        install="python -m pip install dgl==2.1.0 torch==2.2.1 torchdata==0.7.1 "
        '"numpy<2" pandas packaging pydantic pyyaml',
    ),
    Pair(
        dgl="1.1.3",
        torch="2.0 to 2.13",
        python=((3, 8), (3, 11)),
        source="package index, CPU",
        notes="with packaging; has no GraphBolt; the tests of dgl-dmns run with torch 2.0.0, 2.1.1 "
        "and 2.13.0 on Python 3.11",
        install='python -m pip install dgl==1.1.3 "torch>=2.0,<2.14" packaging',
    ),
    Pair(
        dgl="2.4.0",
        torch="2.4.0",
        python=((3, 8), (3, 12)),
        source="DGL's own wheel index, CPU or CUDA",
        notes="not tried here, only what it moved, by stand-ins; DGL's start page has the command "
        "for each pair of versions",
        install="",
    ),
    Pair(
        dgl="2.3.0",
        torch="2.3.1",
        python=((3, 9), (3, 12)),
        source="conda-forge, CPU or CUDA",
        notes="not tried here",
        install='conda install -c conda-forge "dgl=2.3.0" "pytorch=2.3.1"',
    ),
)

# Distributions whose versions a message reports.
_REPORTED = ("dgl", "torch", "torchdata", "numpy", "pandas", "packaging", "pydantic", "pyyaml")

# Modules that any DGL imports, and those that only DGL 2.0 and 2.1 do.
_ALWAYS_IMPORTED = ("networkx", "numpy", "psutil", "requests", "scipy", "tqdm")
_IMPORTED_BY_2_0_AND_2_1 = ("pandas", "pydantic", "yaml", "torchdata")
_INSTALLED_BY = {"yaml": "pyyaml", "torchdata": "torchdata==0.7.1"}

_COMPILED_PART = re.compile(r"(?:lib)?graphbolt_pytorch_(.+)\.(?:so|dylib|dll)")


def why_unusable() -> str | None:
    """Tell why DGL cannot be used here, in a message for the user, without importing it.

    None is not a promise: a damaged installation shows only in :func:`require_dgl`.
    """
    if sys.modules.get("dgl") is not None:  # it has been imported, so it works
        return None
    problem = _find_problem()
    return None if problem is None else _message(*problem)


@lru_cache(maxsize=1)
def require_dgl() -> ModuleType:
    """Import DGL with its data loaders. A success is remembered, a failure is tried again.

    Raises:
        ImportError: If the import fails in any way, or if DGL runs on another framework than torch.
            The message is that of :func:`why_unusable` with the cause added.
    """
    try:
        dgl = importlib.import_module("dgl")
        importlib.import_module("dgl.dataloading")
    except Exception as error:  # ImportError, OSError, AttributeError, RuntimeError and more
        problem = _find_problem() or ("DGL is installed but cannot be imported.", _replace())
        raise ImportError(_message(*problem, error), name="dgl") from error
    backend = getattr(getattr(dgl, "backend", None), "backend_name", "pytorch")
    if backend != "pytorch":
        raise ImportError(
            f"DGL runs on {backend} here, but dgl-dmns needs it on PyTorch.\n"
            "Set the environment variable DGLBACKEND=pytorch before DGL is first imported.",
            name="dgl",
        )
    return dgl


def require_graphbolt() -> ModuleType:
    """Import GraphBolt, the data pipelines of DGL 2.0 and later.

    Raises:
        ImportError: If DGL cannot be imported, has no GraphBolt, or cannot load its compiled part.
    """
    require_dgl()
    try:
        return importlib.import_module("dgl.graphbolt")
    except Exception as error:  # ImportError, FileNotFoundError and more
        problem = f"GraphBolt cannot be used: DGL {version_of('dgl')} has none that loads."
        advice = (
            "GraphBolt came with DGL 2.0. Without it, the samplers of dgl_dmns work in "
            "dgl.dataloading.as_edge_prediction_sampler."
        )
        said = _message(problem, [*_replace(), advice], error)
        raise ImportError(said, name="dgl.graphbolt") from error


def version_of(distribution: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, by name."""
    names = ("dgl-dmns", "dgl", "torch", "numpy", "pandas")
    found = {name: version_of(name) or "not installed" for name in names}
    return {"python": platform.python_version(), **found}


def is_distributed(value: object, kind: str) -> bool:
    """Whether something is an object of a class of ``dgl.distributed``, without importing that.

    Up to 2.3 ``import dgl`` brings it along, later versions leave it to their users. Where nobody
    has imported it, no object of it can exist.
    """
    module = sys.modules.get("dgl.distributed")
    return module is not None and isinstance(value, getattr(module, kind))


def _find_problem() -> tuple[str, list[str]] | None:
    """The first known reason for which importing DGL would fail, and what to run; or None."""
    if not _is_found("dgl"):
        return "DGL is not installed.", _replace()
    if not _is_found("torch"):
        return "DGL is installed, but torch is not.", _replace()
    dgl, torch = version_of("dgl"), version_of("torch")
    name = "DGL" if dgl is None else f"DGL {dgl}"

    built_for = _built_for()
    if built_for and torch is not None and _release(torch) not in built_for:
        versions = ", ".join(_dotted(release) for release in sorted(built_for))
        said = (
            f"{name} cannot be imported with torch {torch}: it was built for torch {versions} only."
        )
        return said, _replace(torch_fits_another=True)

    imported = [*_ALWAYS_IMPORTED]
    setuptools = version_of("setuptools")  # carried a copy of packaging until 71
    if setuptools is None or _release(setuptools) >= (71,):
        imported.append("packaging")
    if dgl is not None and (2, 0) <= _release(dgl) < (2, 2):
        imported += _IMPORTED_BY_2_0_AND_2_1
        folder = _folder("torchdata")
        if folder is not None and not (folder / "datapipes").is_dir():
            said = (
                f"{name} needs torchdata.datapipes, which the installed torchdata "
                f"({version_of('torchdata') or 'unknown version'}) no longer has."
            )
            return said, _install("torchdata")
    missing = [module for module in imported if not _is_found(module)]
    if missing:
        said = f"{name} imports packages that are not installed: {', '.join(missing)}."
        return said, _install(*missing)

    numpy = version_of("numpy")
    old_torch = torch is not None and _release(torch) < (2, 3)
    if old_torch and numpy is not None and _release(numpy) >= (2,):
        said = f"torch {torch} was built for NumPy 1 and fails with NumPy {numpy}."
        return said, _install('"numpy<2"')
    return None


def _message(problem: str, commands: list[str], cause: Exception | None = None) -> str:
    """Compose the message: the problem, what is installed, what works, how to get it."""
    found = [f"{name} {version_of(name) or 'not found'}" for name in _REPORTED]
    lines = [
        problem,
        *([] if cause is None else [f"Cause: {type(cause).__name__}: {cause}"]),
        f"Found: Python {platform.python_version()}, {', '.join(found)}",
        "Combinations of DGL and torch:",
    ]
    for pair in PAIRS:
        first, last = (_dotted(version) for version in pair.python)
        lines.append(
            f"  dgl {pair.dgl} with torch {pair.torch} (Python {first} to {last}; {pair.source})"
        )
        lines.append(f"    {pair.notes}")
    return "\n".join(lines + commands)


def _install(*modules: str) -> list[str]:
    names = " ".join(_INSTALLED_BY.get(module, module) for module in modules)
    return ["Install what is missing:", f"  python -m pip install {names}"]


def _replace(torch_fits_another: bool = False) -> list[str]:
    """What to run where DGL or torch has to be another."""
    python = sys.version_info[:2]
    lines = []
    if not PAIRS[0].supports(python):
        lines.append(
            f"There is no such wheel for Python {_dotted(python)}: make an environment with "
            "Python 3.11 first."
        )
    replaced = " (it replaces torch)" if torch_fits_another else ""
    lines += [f"Install the first of them{replaced}:", f"  {PAIRS[0].install}"]
    if torch_fits_another and PAIRS[1].supports(python):
        lines += ["or keep torch and take an older DGL:", f"  {PAIRS[1].install}"]
    return lines


def _is_found(module: str) -> bool:
    """Whether a top-level module could be imported, judged without importing it."""
    try:
        return util.find_spec(module) is not None
    except ValueError:  # imported by unusual means and has no spec
        return True


def _folder(package: str) -> Path | None:
    """Return the folder of a top-level package, or None if that cannot be told."""
    try:
        spec = util.find_spec(package)
    except ValueError:
        return None
    places = None if spec is None else spec.submodule_search_locations
    return Path(next(iter(places))) if places else None


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version: ``(2, 2, 1)`` for ``2.2.1+cu121`` or ``2.2.1.post300``."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in match.group().split(".")) if match else ()


def _built_for() -> frozenset[tuple[int, ...]]:
    """Return the torch releases that the installed DGL can be imported with; empty for any.

    It is any before GraphBolt, and again since ``dgl.dataloading`` has no loaders that need it.
    """
    folder = _folder("dgl")
    if folder is None or not (folder / "graphbolt").is_dir():
        return frozenset()
    if not (folder / "dataloading" / "dist_dataloader.py").is_file():
        return frozenset()
    names = (_COMPILED_PART.fullmatch(path.name) for path in (folder / "graphbolt").iterdir())
    return frozenset(_release(match.group(1)) for match in names if match)


def _dotted(release: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in release)
