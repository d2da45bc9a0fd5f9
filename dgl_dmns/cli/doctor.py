"""``dgl-dmns doctor``: what is installed, whether it fits together, and a short self-test.

With data it says which negatives suit them, by how many uniform negatives a batch shares, and how
many nodes there are to draw from (``python -m benchmarks.scale``). DGL is imported in the
self-test and for data alone, so that this works where DGL does not.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import util
from typing import Any

from dgl_dmns._compat import PAIRS, version_of, versions, why_unusable
from dgl_dmns.messages import say

__all__ = ["run_doctor", "say_which", "which"]

_OPTIONAL = {
    "matplotlib": "pictures and reports",
    "pyarrow": "Parquet files",
    "tensorboard": "the monitor in TensorBoard",
}

_FULL = 0.1  # share of the nodes in a shared pool, from which on hard negatives add nothing
_MANY = 50  # shared negatives likewise, on graphs of up to 100,000 nodes


def say_which(arguments: argparse.Namespace) -> int:
    """Print what data hold, and which negatives suit them; 0.

    Raises:
        ValueError: for files that cannot be used, see `dgl_dmns.cli.train.read_data`.
    """
    problem = why_unusable()
    if problem is not None:
        raise ImportError(problem)
    from dgl_dmns.cli.edges import NamedGraph
    from dgl_dmns.cli.train import read_data

    data = read_data(arguments)
    if isinstance(data, NamedGraph):
        nodes, edges, what = data.data.num_nodes, len(data.data.src), "nodes"
    else:
        triples = data.kind == "knowledge"  # asked from both ends
        what, of = ("entities", "entity") if triples else ("items", "item")
        nodes, edges = len(data.ids[of]), data.rows.shape[1] * (1 + triples)
    say(f"{nodes} {what} that negatives are drawn from, {edges} edges to train on")
    for line in which(nodes, min(edges, arguments.batch_size), what):
        say(line)
    return 0


def which(nodes: int, batch: int, what: str = "nodes") -> Iterator[str]:
    """Which negatives suit a graph, in lines.

    Args:
        nodes: that negatives are drawn from.
        batch: edges in a batch.
        what: the nodes are called.
    """
    share = batch / nodes
    part = f"{share:.2g} times the {what}"
    yield f"A batch of {batch} edges shares {batch} uniform negatives, {part}."
    yield ""
    if share >= _FULL:
        yield "Take UniformSampler(g, 1) with negatives.loss: so many of the batch's negatives are"
        yield "hard for each query that others add nothing."
        return
    hard = "DMNSSampler(g, model, k=5)"
    if batch >= _MANY:
        yield "Start with UniformSampler(g, 1) and negatives.loss. Beside so many shared negatives"
        yield "hard ones have added nothing on graphs of up to 100,000 nodes; on a larger one"
        yield f"compare with {hard} on validation data."
    else:
        yield f"Take a larger batch, or hard negatives beside the shared ones: {hard}"
        yield "with negatives.loss."
    yield "dgl-dmns bench compares samplers with several seeds."


def run_doctor() -> int:
    """Print the state of the installation; 0 if all is well, 1 otherwise."""
    for line in _lines():
        say(line)
    problem = why_unusable()
    if problem is not None:
        say(f"\nNot usable: {problem}")
        return 1
    say("\nSelf-test")
    started = time.perf_counter()
    failed = [name for name, check in _CHECKS.items() if not _passes(name, check)]
    say(f"{len(failed) or 'no'} failure(s), {time.perf_counter() - started:.1f} s")
    return 1 if failed else 0


def _passes(name: str, check: Callable[[], str]) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = check()
    except Exception as error:  # whatever is wrong, the other checks still say something
        say(f"  FAILED  {name}: {type(error).__name__}: {error}")
        return False
    say(f"  ok      {name} ({said})")
    return True


def _lines() -> Iterator[str]:
    yield "Versions"
    for name, version in versions().items():
        yield f"  {name:12s} {version}"
    for name, use in _OPTIONAL.items():
        found = version_of(name) or "of unknown version"
        if util.find_spec(name) is None:
            found = f"not installed; for {use}: python -m pip install {name}"
        yield f"  {name:12s} {found}"
    yield f"  {'system':12s} {platform.platform()}, {os.cpu_count()} cores"
    python = sys.version_info[:2]
    yield f"\nPairs of DGL and torch for Python {python[0]}.{python[1]}"
    for pair in PAIRS:
        if pair.supports(python):
            tried = ", not tried here" if pair.install and "not tried" in pair.notes else ""
            yield f"  DGL {pair.dgl} with torch {pair.torch} ({pair.source}){tried}"
            yield f"    {pair.install or pair.notes}"
    if not any(pair.supports(python) for pair in PAIRS):
        yield "  none: make an environment with Python 3.11"


# The checks of the self-test; each returns what it found, or raises.


def _closed_form() -> str:
    import torch

    from dgl_dmns.core import FiLMPredictor, NoiseSchedule, level_gaussians, sample_chain

    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        predictor = FiLMPredictor(4)
    h, steps = torch.randn(1, 4, generator=generator), (5, 12, 25)
    exact = level_gaussians(predictor, NoiseSchedule.linear(), h, steps)
    many = h.expand(20_000, 4)
    drawn = sample_chain(predictor, NoiseSchedule.linear(), many, steps, generator=generator)
    off = float(((drawn.mean(1) - exact.mean[:, 0]) / exact.std[:, 0]).abs().max())
    _expect(off < 0.05, f"means differ by {off:.3f} standard deviations")
    return f"means of 20000 chains within {off:.3f} standard deviations"


@lru_cache(maxsize=1)
def _refreshed() -> tuple[Any, Any, float]:
    """A small graph, a sampler on it with a table, and the seconds that this took."""
    import dgl
    import torch

    from dgl_dmns import DMNSSampler

    generator = torch.Generator().manual_seed(0)
    h = torch.randn(400, 16, generator=generator)
    near = (h @ h.t()).topk(8, dim=1).indices[:, 1:]
    g = dgl.graph((torch.arange(400).repeat_interleave(7), near.flatten()), num_nodes=400)
    g = dgl.to_bidirected(g)
    g.ndata["h"] = h
    sampler = DMNSSampler(g, lambda: h, k=5)
    return g, sampler, sampler.refresh().seconds


def _refresh() -> str:
    return f"{_refreshed()[2]:.2f} s for 400 nodes"


def _contract() -> str:
    import torch

    g, sampler, _ = _refreshed()
    eids = torch.arange(0, g.num_edges(), 3)
    src, dst = sampler(g, eids)
    expected = g.find_edges(eids)[0].repeat_interleave(5)
    _expect(bool((src == expected).all()), "negatives are not grouped by edge")
    _expect(not bool(sampler.known.contains(src, dst).any()), "a known edge was returned")
    return f"{len(dst)} negatives, in order, no known edge among them"


def _hardness() -> str:
    table = _refreshed()[1].stats().set_index("level")
    rank, random = (float(table.at[level, "percentile"]) for level in ("0.1T", "random"))
    _expect(rank > random + 0.1, f"the hardest level beats {rank:.0%} of random nodes only")
    return f"the hardest level beats {rank:.0%} of random nodes"


def _worker() -> str:
    import dgl
    import torch

    g, sampler, _ = _refreshed()
    blocks: Any = dgl.dataloading.NeighborSampler([5])
    edges: Any = dgl.dataloading.as_edge_prediction_sampler(blocks, negative_sampler=sampler)
    ids: Any = torch.arange(64)
    loader: Any = dgl.dataloading.DataLoader(g, ids, edges, batch_size=32, num_workers=1)
    counts = [negative.num_edges() for _, _, negative, _ in loader]
    _expect(counts == [160, 160], f"expected 160 negatives a batch, got {counts}")
    return "one worker process"


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


_CHECKS: dict[str, Callable[[], str]] = {
    "the closed form against chains": _closed_form,
    "a refresh": _refresh,
    "negatives for edges": _contract,
    "hardness": _hardness,
    "a loader with a worker": _worker,
}
