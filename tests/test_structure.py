"""The floor plan: no file is long, no files import one another in a circle, and none upward."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "dgl_dmns").rglob("*.py")
}
LAYERS = [  # each imports from those before it, and from itself
    {"_compat", "checks", "messages", "files", "eval_mode"},
    {"core"},
    {"seeds", "losses", "shared_softmax", "gathered"},
    {"diagnostics", "evaluate", "data", "inference", "plots"},
    {"models"},
    {"samplers"},
    {"graphbolt", "report"},
    {"cli"},
    {"__main__"},
]


class _Imports(ast.NodeVisitor):
    """Names of modules that a file imports, those in functions too, those for types alone not."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:  # noqa: N802
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)
        for other in node.orelse:
            self.visit(other)

    def visit_Import(self, node: ast.Import) -> None:  # noqa: N802
        self.found |= {one.name for one in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:  # noqa: N802
        assert node.module is not None, "relative imports hide where a name comes from"
        self.found |= {
            name if (name := f"{node.module}.{one.name}") in FILES else node.module
            for one in node.names
        }


def imports(path: Path) -> set[str]:
    seen = _Imports()
    seen.visit(ast.parse(path.read_text(encoding="utf-8")))
    return seen.found


GRAPH = {name: imports(path) & FILES.keys() for name, path in FILES.items()}


def layer_of(name: str) -> int:
    part = name.split(".")[1] if "." in name else ""
    return next((at for at, parts in enumerate(LAYERS) if part in parts), -1)


def test_every_file_has_a_layer() -> None:
    assert [name for name in FILES if "." in name and layer_of(name) < 0] == []


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_is_imported_from_above(name: str) -> None:
    if "." not in name:
        return  # the package offers the samplers on first use
    assert [other for other in GRAPH[name] if layer_of(other) > layer_of(name)] == []


def test_no_files_import_one_another_in_a_circle() -> None:
    left = {name: set(others) for name, others in GRAPH.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert sorted(left) == []


def test_no_file_is_long() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def test_the_core_does_without_dgl() -> None:
    assert [name for name in FILES if ".core" in name and "dgl" in imports(FILES[name])] == []
