"""Graphs, embeddings, samplers and loaders that the tests of all folders share.

`make` is the one place that knows how samplers are constructed.
"""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import dgl
import torch
from dgl.dataloading import DataLoader, NeighborSampler, as_edge_prediction_sampler
from torch import Tensor, nn

from dgl_dmns import samplers
from dgl_dmns.samplers.registry import in_families

WIDTH = 6
KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "uniform": (samplers.UniformSampler, {}),
    "popularity": (samplers.PopularitySampler, {}),
    "in-batch": (samplers.InBatchSampler, {}),
    "dynamic": (samplers.DynamicSampler, {"groups": 3}),
    "self-adversarial": (samplers.SelfAdversarialSampler, {"groups": 3}),
    "mcns": (samplers.MCNSSampler, {"steps": 3, "width": 10}),
    "adversarial": (
        samplers.AdversarialSampler,
        {"groups": 3, "warmup_steps": 3, "fit_steps": 2, "batch_queries": 16},
    ),
    "dmns": (
        samplers.DMNSSampler,
        {"groups": 3, "warmup_steps": 4, "fit_steps": 2, "batch_pairs": 64},
    ),
}
"""Classes by name, and the options that make them quick."""
FOLLOWING = ("dynamic", "self-adversarial", "mcns", "adversarial", "dmns")


def make(kind: str | type, g: Any, encoder: Any = None, k: Any = 3, **options: Any) -> Any:
    """A sampler, not refreshed yet.

    Args:
        kind: a key of `KINDS`, or a class derived from one of theirs.
        g: the graph.
        encoder: as the sampler takes it, or what it returns; `embed` by default.
        k: negatives per edge.
        options: flat names of options, such as ``pool`` and ``fit_steps``.
    """
    cls = KINDS[kind][0] if isinstance(kind, str) else kind
    usual = next(some for base, some in KINDS.values() if issubclass(cls, base))
    options = {**usual, **options}
    if not issubclass(cls, samplers.RefreshingSampler):
        return cls(g, k, **options)
    if isinstance(encoder, (Tensor, dict)):
        return make(kind, g, lambda: encoder, k, **options)
    return cls(g, embed if encoder is None else encoder, k, **in_families(cls, options))


def refreshed(*arguments: Any, **options: Any) -> Any:
    """The same after a refresh, where there is one."""
    sampler = make(*arguments, **options)
    if hasattr(sampler, "refresh"):
        sampler.refresh()
    return sampler


# Numbers and graphs. All are small enough to check every pair by a dense matrix.


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seed(value: int = 0) -> None:
    torch.manual_seed(value)
    dgl.seed(value)


def normal(*shape: int, seed: int = 0, **more: Any) -> Tensor:
    return torch.randn(shape, generator=rng(seed), **more)


def pairs(sources: int, destinations: int, count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    source = rng(seed)
    sizes = (sources, destinations)
    src, dst = (torch.randint(0, size, (count,), generator=source) for size in sizes)
    return src, dst


def embed(g: Any) -> Any:
    """Embeddings by node type; those of the first nodes do not depend on how many there are."""
    h = {n: normal(400, WIDTH, seed=i)[: g.num_nodes(n)] for i, n in enumerate(g.ntypes)}
    return h if len(h) > 1 or len(g.canonical_etypes) > 1 else next(iter(h.values()))


def graph(nodes: int = 40, edges: int = 120, idtype: torch.dtype = torch.int64) -> Any:
    g = dgl.graph(pairs(nodes, nodes, edges), num_nodes=nodes).astype(idtype)
    g.ndata["feat"] = normal(nodes, 5, seed=3)
    return g


BUYS, KNOWS = ("user", "buys", "item"), ("user", "knows", "user")


def shop() -> Any:
    """Users and items: purchases and their reverses, friends, and a relation without edges."""
    user, item = pairs(12, 9, 30)
    g = dgl.heterograph(
        {
            BUYS: (user, item),
            ("item", "bought by", "user"): (item, user),
            KNOWS: pairs(12, 12, 20, seed=2),
            ("item", "like", "item"): ([], []),
        },
        num_nodes_dict={"user": 12, "item": 9},
    )
    for ntype in g.ntypes:
        g.nodes[ntype].data["feat"] = normal(g.num_nodes(ntype), 5, seed=3)
    return g


def library() -> Any:
    """Papers that cite papers, and their authors."""
    edges = {
        ("paper", "cites", "paper"): pairs(30, 30, 80),
        ("author", "wrote", "paper"): pairs(20, 20, 50),
    }
    return dgl.heterograph(edges, num_nodes_dict={"paper": 30, "author": 20})


def fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def barred(g: Any, etype: Any = None) -> Tensor:
    """Which pairs may not be negatives: known edges and self pairs, shape [Ns, Nd], bool."""
    source, _, destination = etype = g.to_canonical_etype(etype)
    matrix = torch.zeros(g.num_nodes(source), g.num_nodes(destination), dtype=torch.bool)
    if source == destination:
        matrix.fill_diagonal_(True)
    matrix[tuple(end.long().cpu() for end in g.edges(etype=etype))] = True
    return matrix


def check(g: Any, src: Tensor, dst: Tensor, etype: Any = None) -> None:
    """Ids are in range and none is barred; for sources without another node, it is themselves."""
    matrix, src, dst = barred(g, etype), src.long().cpu(), dst.long().cpu()
    assert ((dst >= 0) & (dst < matrix.shape[1])).all()
    without = matrix.all(dim=1)[src]
    assert not matrix[src, dst][~without].any()
    assert torch.equal(dst[without], src[without])


# Loaders and training.


def loader(
    g: Any, sampler: Any, workers: int = 0, eids: Any = None, *, flow: Any = None, **more: Any
) -> Any:
    """DGL's own, over all edges by default; ``exclude`` and ``reverse_..`` go to the flow."""
    if eids is None:
        eids = torch.arange(g.num_edges(), dtype=g.idtype)
    names = [n for n in more if n.startswith(("exclude", "reverse"))]
    flow = as_edge_prediction_sampler(
        NeighborSampler([2]) if flow is None else flow,
        negative_sampler=sampler,
        **{n: more.pop(n) for n in names},
    )
    more = {"batch_size": 32, "shuffle": True, "num_workers": workers, **more}
    return DataLoader(g, eids, flow, **more)


def ends(graph: Any, etype: Any = None) -> tuple[Tensor, Tensor]:
    """The pairs of a positive or negative graph, as ids of the whole graph."""
    source, _, destination = etype = graph.to_canonical_etype(etype)
    src, dst = (end.long() for end in graph.edges(etype=etype))
    return graph.nodes[source].data[dgl.NID][src], graph.nodes[destination].data[dgl.NID][dst]


def negatives(batches: Any, etype: Any = None) -> tuple[Tensor, Tensor]:
    """All negatives of a loader's epoch, as ids of the whole graph."""
    src, dst = zip(*(ends(negative, etype) for _, _, negative, *_ in batches))
    return torch.cat(src), torch.cat(dst)


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)


def star(nodes: int, node: int) -> Tensor:
    """Embeddings of which one node's stands out: by the rule `Hardest` it is the negative."""
    return torch.ones(nodes, 1).index_fill(0, torch.tensor([node]), 9.0)


# States.


def same(first: Any, second: Any) -> bool:
    """Whether two nested values are equal, NaN being equal to NaN."""
    if isinstance(first, Tensor):
        return bool(torch.equal(first.nan_to_num(77), second.nan_to_num(77)))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def pickled(one: Any) -> Any:
    return pickle.loads(pickle.dumps(one))


# Whether draws follow a distribution.


def assert_drawn_from(ids: Tensor, weight: Tensor, *, least: float = 1e-3) -> None:
    """Independent draws of node ids against unnormalised weights [N], by a chi-squared test."""
    assert_counts(torch.bincount(ids.flatten(), minlength=weight.numel()), weight, least=least)


def assert_counts(count: Tensor, weight: Tensor, *, least: float = 1e-3) -> None:
    """Counts of draws likewise; those expected less than five times are taken together.

    Args:
        count: how often each was drawn, of the shape of ``weight``.
        weight: unnormalised, at least 0.
        least: p-value below which it fails.
    """
    assert count.shape == weight.shape
    assert not count[weight == 0].any()
    expected = weight.double() / weight.double().sum() * int(count.sum())
    rare = expected < 5
    assert not rare.all(), "too few draws for a chi-squared test"
    seen = torch.cat([count[~rare].double(), count[rare].sum().double().view(1)])
    wanted = torch.cat([expected[~rare], expected[rare].sum().view(1)])
    if wanted[-1] < 5:
        seen, wanted = seen[:-1], wanted[:-1]
    if len(wanted) > 1:
        from scipy import stats  # which takes long, in processes of their own

        wanted *= seen.sum() / wanted.sum()
        assert stats.chisquare(seen.numpy(), wanted.numpy()).pvalue > least


def said(call: Any) -> str:
    """What an error says, and of which kind it is; nothing where there is none."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
