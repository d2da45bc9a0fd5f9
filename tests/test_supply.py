"""What the package depends on, what it reads, and whom it talks to: nobody."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "dgl_dmns").rglob("*.py"))
PROMISES = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WHERE_IT_RUNS = (ROOT / "docs" / "graphs.md").read_text(encoding="utf-8")
UNSAFE = {"pickle", "cPickle", "_pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
NETWORK = {"urllib", "http", "requests", "socket", "ftplib", "httpx", "aiohttp"}


def imported(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def unsafe_calls(tree: ast.AST) -> list[str]:
    """Calls that could run what a file says."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in ("eval", "exec", "compile", "__import__", "torch.load", "yaml.load"):
            found.append(name)
        if name.endswith("read_pickle") or words.get("allow_pickle") == "True":
            found.append(name)
        if name == "np.load" and words.get("allow_pickle") != "False":
            found.append(name)
    return found


def test_no_loader_can_run_code() -> None:
    assert len(SOURCES) > 50
    for source in SOURCES:
        tree = ast.parse(source.read_text(encoding="utf-8"))
        assert not imported(tree) & UNSAFE, source
        assert not unsafe_calls(tree), source


@pytest.mark.parametrize(
    "code", ["torch.load(f)", "np.load(f)", "np.load(f, allow_pickle=True)", "eval(f)"]
)
def test_the_search_for_unsafe_calls_finds_them(code: str) -> None:
    assert unsafe_calls(ast.parse(code))


def test_only_the_data_sets_know_the_network() -> None:
    speaking = {s.name for s in SOURCES if imported(ast.parse(s.read_text("utf-8"))) & NETWORK}
    assert speaking == {"datasets.py"}


SILENT = """
import sys
spoken = []

def hook(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        spoken.append((event, arguments[1]))
    elif event == "socket.bind" and arguments[1] == ("::1", 0):
        pass  # urllib3, which DGL imports, looks whether the machine has IPv6
    elif event in ("socket.getaddrinfo", "socket.bind", "urllib.Request"):
        spoken.append((event, arguments))

sys.addaudithook(hook)
import dgl, torch
import dgl_dmns, dgl_dmns.diagnostics, dgl_dmns.evaluate, dgl_dmns.plots, dgl_dmns.report
from dgl.dataloading import DataLoader, NeighborSampler, as_edge_prediction_sampler
g = dgl.rand_graph(40, 200)
weight = torch.nn.Parameter(torch.randn(40, 4))
optimizer = torch.optim.SGD([weight], lr=0.1)
diffusion = dgl_dmns.Diffusion(warmup_steps=2, fit_steps=1)
sampler = dgl_dmns.DMNSSampler(g, lambda: weight, k=2, diffusion=diffusion)
monitor = dgl_dmns.diagnostics.Monitor(sampler)
sampler.attach(optimizer, every=1)
batches = DataLoader(
    g, torch.arange(200), as_edge_prediction_sampler(NeighborSampler([2]), negative_sampler=sampler)
)
_, positive, negative, _ = next(iter(batches))
src, dst = (negative.ndata[dgl.NID][ends] for ends in negative.edges())
(weight[src] * weight[dst]).sum().backward()
optimizer.step()
dgl_dmns.report.write_report(dgl_dmns.report.save_run(sys.argv[1], sampler, monitor, title="x"))
if len(sys.argv) > 2:
    import socket
    socket.getaddrinfo("localhost", 80)
print(len(spoken), spoken)
"""


@pytest.mark.parametrize("speak", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_import_training_and_report_open_no_connection(speak: bool, tmp_path: Path) -> None:
    words = [sys.executable, "-W", "ignore", "-c", SILENT, str(tmp_path), *["speak"] * speak]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 " if speak else "0 "), done.stdout


def requirements() -> dict[str, str]:
    """Names of all run-time requirements with their place."""
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    lines = {"required": metadata["options"]["install_requires"]}
    extras = metadata["options.extras_require"]
    lines.update({name: extras[name] for name in extras if name not in ("dev", "reference")})
    found = {"dgl": "reference", "torch": "reference"}
    for place, text in lines.items():
        for line in text.splitlines():
            name = re.match(r"[A-Za-z0-9_.-]+", line.strip())
            if name:
                found[name[0]] = place
    return found


FAMILIES = ("BSD", "Apache", "MIT", "MPL", "Python Software Foundation")


def families(name: str) -> set[str]:
    """The kinds of licence in the metadata of what is installed."""
    words = distribution(name).metadata
    classes = [c for c in words.get_all("Classifier", []) if c.startswith("License")]
    said = [words.get("License-Expression") or "", *classes]
    said += [] if any(said) else [(words.get("License") or "").splitlines()[0]]
    return {one for one in FAMILIES if one.lower() in " ".join(said).lower()}


def test_every_dependency_is_justified_with_its_licence() -> None:
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", PROMISES, re.MULTILINE))
    assert set(rows) == set(requirements())
    for name, row in rows.items():
        why, said = row.split(" | ")[:2]
        assert len(why) > 20
        try:
            stated = {one for one in FAMILIES if one in said}
            assert stated, name
            # Newer metadata also names the licences of what a wheel carries along.
            assert stated <= families(name), name
        except PackageNotFoundError:
            continue  # an extra that is not installed here


def test_every_test_that_a_promise_names_exists() -> None:
    text = PROMISES + WHERE_IT_RUNS
    named = set(re.findall(r"`((?:tests|benchmarks)/[\w/.-]+)(?:::(\w+))?`", text))
    assert len(named) > 15
    for file, test in named:
        path = ROOT / file
        assert path.exists(), file
        if test:
            assert f"def {test}(" in path.read_text(encoding="utf-8"), f"{file}::{test}"
