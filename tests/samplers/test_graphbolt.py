"""Stages of a GraphBolt pipeline: DGL's own format, both protocols, workers, refreshes, imports."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dgl
import pytest
import torch
from shared import fresh, graph, library, make, refreshed
from torch import Tensor
from torch.utils.data import IterDataPipe

from dgl_dmns import InBatchSampler, PopularitySampler, UniformSampler
from dgl_dmns.core import Density

gb: Any = pytest.importorskip("dgl.graphbolt", reason="GraphBolt came with DGL 2.0")
ours: Any = importlib.import_module("dgl_dmns.graphbolt")

ROOT = Path(__file__).parents[2]
K = 3
FIELDS = (
    "node_pairs",
    "seeds",
    "labels",
    "indexes",
    "negative_srcs",
    "negative_dsts",
    "compacted_node_pairs",
    "compacted_seeds",
    "compacted_negative_srcs",
    "compacted_negative_dsts",
    "negative_node_pairs",
)


def source(g: Any, name: str, batch: int = 25) -> Any:
    """The items of all edges, in GraphBolt's protocol of that name."""
    if len(g.canonical_etypes) == 1:
        items = gb.ItemSet(torch.stack(g.edges(), dim=1), names=name)
    else:
        items = gb.ItemSetDict(
            {
                ":".join(etype): gb.ItemSet(torch.stack(g.edges(etype=etype), dim=1), names=name)
                for etype in g.canonical_etypes
            }
        )
    return gb.ItemSampler(items, batch_size=batch)


def sampled(g: Any, name: str, stage: Any) -> list[Any]:
    """Minibatches with negatives and neighbours."""
    whole = gb.from_dglgraph(g, is_homogeneous=len(g.canonical_etypes) == 1)
    batches = list(gb.DataLoader(stage(source(g, name), whole).sample_neighbor(whole, [4])))
    assert batches, "nothing to look at"
    return batches


def negatives_of(minibatch: Any, name: str, key: str | None = None) -> tuple[Tensor, Tensor]:
    """Sources and destinations of a minibatch's negatives, grouped by positive."""

    def part(field: str) -> Any:
        found = getattr(minibatch, field)
        return found if key is None else found[key]

    if name == "node_pairs":
        return part("node_pairs")[0].repeat_interleave(K), part("negative_dsts").flatten()
    positive, index = part("seeds")[part("labels")], part("indexes")
    src, dst = part("seeds")[~part("labels")].unbind(1)
    assert torch.equal(index[: len(positive)], torch.arange(len(positive)))
    assert torch.equal(positive[index[len(positive) :], 0], src)
    return src, dst


def described(value: Any) -> Any:
    """Types, shapes and dtypes, without values."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, dict):
        return {key: described(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(described(part) for part in value)
    return value


@pytest.mark.parametrize("made", [graph, library, lambda: graph(idtype=torch.int32)])
@pytest.mark.parametrize("name", ["node_pairs", "seeds"])
def test_format_is_that_of_graphbolts_uniform_sampler(made: Any, name: str) -> None:
    g = made()
    sampler = refreshed("dmns", g)
    theirs = sampled(g, name, lambda pipe, whole: pipe.sample_uniform_negative(whole, K))
    mine = sampled(g, name, lambda pipe, whole: pipe.sample_dmns_negative(sampler, K))
    assert len(theirs) == len(mine) > 1
    for one, other in zip(theirs, mine):
        for field in FIELDS:
            assert described(getattr(one, field)) == described(getattr(other, field)), field


@pytest.mark.parametrize("name", ["node_pairs", "seeds"])
def test_negatives_belong_to_their_positives_and_are_no_edges(name: str) -> None:
    g = library()
    for sampler in (refreshed("dmns", g), UniformSampler(g, K), PopularitySampler(g, K)):
        seen = dict.fromkeys(g.canonical_etypes, 0)
        for minibatch in sampled(g, name, lambda pipe, _, s=sampler: pipe.sample_negative_with(s)):
            for key in getattr(minibatch, name):
                etype = tuple(key.split(":"))
                src, dst = negatives_of(minibatch, name, key)
                assert not g.has_edges_between(src, dst, etype=etype).any()
                seen[etype] += len(src)
        assert seen == {etype: K * g.num_edges(etype) for etype in seen}


def test_in_batch_negatives_see_the_batch() -> None:
    g = graph()
    stage = ours.GraphBoltNegativeSampler(source(g, "seeds"), InBatchSampler(g, K))
    batches = list(stage)
    assert batches
    for minibatch in batches:
        positive, negative = minibatch.seeds[minibatch.labels], minibatch.seeds[~minibatch.labels]
        assert torch.isin(negative[:, 1], positive[:, 1]).float().mean() > 0.99


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["node_pairs", "seeds"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_refresh_reaches_the_next_epoch_of_lasting_workers(name: str, workers: int) -> None:
    g = graph()
    # Rows of one group each: what is drawn is the live table's row, so the version can be told.
    sampler = refreshed("dmns", g, groups=1, uniform_share=0.0)
    whole = gb.from_dglgraph(g, is_homogeneous=True)
    pipe = source(g, name).sample_dmns_negative(sampler).sample_neighbor(whole, [2])
    store = {("node", None, "x"): gb.TorchBasedFeature(torch.ones(40, 1))}
    pipe = pipe.fetch_feature(gb.BasicFeatureStore(store), node_feature_keys=["x"])
    loader = gb.DataLoader(pipe, num_workers=workers)
    tables = []
    for _ in range(2):
        rows = sampler.table.current().ids.long()
        tables.append(rows)
        batches = list(loader)
        assert len(batches) == 5
        for minibatch in batches:
            src, dst = negatives_of(minibatch, name)
            assert torch.equal(dst.view(-1, K), rows[src[::K]])
        sampler.refresh()
    assert not torch.equal(*tables)


@pytest.mark.parametrize("made", [graph, library])
@pytest.mark.parametrize("name", ["node_pairs", "seeds"])
def test_log_ratios_of_a_minibatch(name: str, made: Any) -> None:
    g = made()
    sampler = refreshed("dmns", g, rule=Density())
    for minibatch in sampled(g, name, lambda pipe, _: pipe.sample_dmns_negative(sampler)):
        ratio = sampler.log_ratio(minibatch)
        if made is graph:
            assert torch.equal(ratio, sampler.log_ratio(negatives_of(minibatch, name)))
            assert ratio.unique().numel() > 3
            continue
        assert list(ratio) == list(getattr(minibatch, name))
        for key, part in ratio.items():
            etype, pair = tuple(key.split(":")), negatives_of(minibatch, name, key)
            assert torch.equal(part, sampler.log_ratio({etype: pair})[etype])


def test_log_ratio_of_a_minibatch_with_corrupted_sources() -> None:
    g = graph()
    sampler = refreshed("dmns", g, rule=Density())
    src, dst = (ends[:5] for ends in g.edges())
    known = sampler.known.contains(torch.arange(g.num_nodes()), dst.view(-1, 1))
    corrupted = known.int().argsort(dim=1, stable=True)[:, :2]  # that are linked to none of them
    minibatch = gb.MiniBatch(node_pairs=(src, dst), negative_srcs=corrupted)
    pair = corrupted.flatten(), dst.repeat_interleave(2)
    assert torch.equal(sampler.log_ratio(minibatch), sampler.log_ratio(pair))


def test_log_ratio_says_what_it_takes() -> None:
    g = graph()
    sampler = refreshed("dmns", g)
    without = next(iter(source(g, "node_pairs")))
    with pytest.raises(ValueError, match="no negatives; put the stage that samples them"):
        sampler.log_ratio(without)
    with pytest.raises(TypeError, match="a GraphBolt minibatch.* got list; pass what"):
        sampler.log_ratio([1, 2])


# ---- the protocol of later versions, by stand-ins ----------------------------------------------


@dataclass
class LaterMiniBatch:
    """As of later versions: no ``node_pairs``."""

    seeds: Any = None
    labels: Any = None
    indexes: Any = None
    compacted_seeds: Any = None


class LaterNegativeSampler(IterDataPipe):
    """As of later versions: ``_sample_with_etype(seeds, etype)``, and nothing else."""

    def __init__(self, datapipe: Any, negative_ratio: int) -> None:
        self.datapipe = datapipe
        self.negative_ratio = negative_ratio

    def __iter__(self) -> Any:
        for minibatch in self.datapipe:
            if isinstance(minibatch.seeds, dict):
                minibatch.labels, minibatch.indexes = {}, {}
                for etype, pairs in minibatch.seeds.items():
                    parts = self._sample_with_etype(pairs, etype)
                    minibatch.seeds[etype] = parts[0]
                    minibatch.labels[etype] = parts[1]
                    minibatch.indexes[etype] = parts[2]
            else:
                parts = self._sample_with_etype(minibatch.seeds)
                minibatch.seeds, minibatch.labels, minibatch.indexes = parts
            yield minibatch


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Our module beside a GraphBolt of the later protocol."""
    stand_in = type(sys)("dgl.graphbolt")
    stand_in.NegativeSampler = LaterNegativeSampler
    monkeypatch.setitem(sys.modules, "dgl.graphbolt", stand_in)
    for name in ("sample_negative_with", "sample_dmns_negative"):
        monkeypatch.delitem(IterDataPipe.functions, name)
    spec = importlib.util.spec_from_file_location("later_graphbolt", ours.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_later_protocol(later: Any) -> None:
    g = graph()
    sampler = refreshed("dmns", g, rule=Density())
    pairs = torch.stack(g.edges(), dim=1)[:20]
    (minibatch,) = later.DMNSNegativeSampler([LaterMiniBatch(pairs)], sampler, K)
    assert torch.equal(minibatch.seeds[:20], pairs)
    assert minibatch.labels.dtype == torch.float32
    assert minibatch.labels.tolist() == [1.0] * 20 + [0.0] * 60
    index = torch.arange(20)
    assert torch.equal(minibatch.indexes, torch.cat([index, index.repeat_interleave(K)]))
    src, dst = minibatch.seeds[20:].unbind(1)
    assert torch.equal(src, pairs[:, 0].repeat_interleave(K))
    assert not g.has_edges_between(src, dst).any()
    assert torch.equal(sampler.log_ratio(minibatch), sampler.log_ratio((src, dst)))


def test_later_protocol_by_edge_type(later: Any) -> None:
    g = library()
    sampler = refreshed("dmns", g, rule=Density())
    pairs = {":".join(e): torch.stack(g.edges(etype=e), dim=1)[:6] for e in g.canonical_etypes}
    (minibatch,) = later.DMNSNegativeSampler([LaterMiniBatch(dict(pairs))], sampler)
    ratio = sampler.log_ratio(minibatch)
    for key, positive in pairs.items():
        assert minibatch.seeds[key].shape == (6 + 6 * K, 2)
        assert torch.equal(minibatch.seeds[key][:6], positive)
        assert minibatch.labels[key].sum() == 6
        assert ratio[key].shape == (6 * K,)


# ---- messages, imports -------------------------------------------------------------------------


def test_messages_of_the_constructor() -> None:
    g, mixed = graph(), library()
    ours_for_dmns, ours_for_all = ours.DMNSNegativeSampler, ours.GraphBoltNegativeSampler
    uniform, theirs = UniformSampler(g, 2), dgl.dataloading.negative_sampler.Uniform(2)
    by_type = make("dmns", mixed, k={"cites": 2, "wrote": 3})
    any_source = make("dmns", g, source="uniform")
    for stage, words, error, message in (
        (ours_for_dmns, (uniform,), TypeError, "expected a DMNSSampler, got UniformSampler; use"),
        (ours_for_all, (theirs,), TypeError, "got PerSourceUniform; .* use gb.UniformNegativeS"),
        (ours_for_all, (uniform, 5), ValueError, "expected the sampler's k = 2, got 5; leave"),
        (ours_for_dmns, (any_source,), ValueError, "make .* with source='edge'"),
        (ours_for_dmns, (by_type,), ValueError, r"got k of \[2, 3\]; make the sampler with one k"),
    ):
        with pytest.raises(error, match=message):
            stage(source(g, "seeds"), *words)


def test_messages_of_the_call() -> None:
    g, mixed = graph(), library()
    of_one = ours.GraphBoltNegativeSampler(source(g, "seeds"), UniformSampler(g, 2))
    of_several = ours.GraphBoltNegativeSampler(source(g, "seeds"), make("dynamic", mixed))
    pair, far = torch.zeros(1, 2, dtype=torch.int64), torch.tensor([0, 40])
    for stage, words, message in (
        (of_one, (torch.arange(4), None, True), r"seeds: expected pairs of nodes, shape \[B, 2\]"),
        (of_one, ((far, far),), r"nodes of type '_N' in 0 .. 39, got 0 .. 40; make the sampler"),
        (of_one, (pair, "paper:cites:paper", True), "seeds: no edge type of name"),
        (of_several, (pair, None, True), "got pairs without one; use an item set by edge type"),
    ):
        with pytest.raises(ValueError, match=message):
            stage._sample_with_etype(*words)
    for bad in (pair.bool(), pair + 0.5):
        with pytest.raises(TypeError, match=r"^seeds: expected ids of nodes of type '_N'"):
            of_one._sample_with_etype(bad)


def test_an_empty_request() -> None:
    g = graph()
    stage = ours.DMNSNegativeSampler(source(g, "seeds"), refreshed("dmns", g))
    none = torch.empty(0, 2, dtype=torch.int64)
    seeds, labels, indexes = stage._sample_with_etype(none, use_seeds=True)
    assert (seeds.shape, labels.shape, indexes.shape) == ((0, 2), (0,), (0,))
    src, dst = stage._sample_with_etype((none[:, 0], none[:, 1]))
    assert src is None
    assert dst.view(-1, K).shape == (0, K)


def test_the_package_never_imports_graphbolt() -> None:
    # DGL 2.1 imports its GraphBolt itself: take it away, and forbid another import.
    code = """
import sys
import dgl_dmns, dgl_dmns.core, dgl_dmns.data, dgl_dmns.evaluate, dgl_dmns.losses
assert "dgl" not in sys.modules
import dgl
sys.modules["dgl.graphbolt"] = None
import dgl_dmns.samplers
assert dgl_dmns.DMNSSampler
assert "dgl_dmns.graphbolt" not in sys.modules
print("fine")
"""
    assert fresh(code) == "fine"


def test_without_graphbolt_the_import_says_what_to_do() -> None:
    code = """
import sys
import dgl
sys.modules["dgl.graphbolt"] = None
try:
    import dgl_dmns.graphbolt
except ImportError as error:
    print(error)
"""
    printed = fresh(code)
    assert printed.startswith("GraphBolt cannot be used: DGL 2.1.0 has none that loads.\nCause: ")
    assert "python -m pip install" in printed
    assert printed.splitlines()[-1].startswith("GraphBolt came with DGL 2.0.")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_example(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "examples" / "graphbolt_quickstart.py"
    spec = importlib.util.spec_from_file_location("graphbolt_quickstart", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(["--nodes", "300", "--epochs", "2", "--batch-size", "512"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[-3][:2] == ["negatives", "MRR"]
    assert [row[0] for row in rows[-2:]] == ["uniform", "dmns"]
    assert all(0 < float(row[1]) < 1 for row in rows[-2:])
    with pytest.raises(SystemExit):
        module.arguments(["--k", "0"])


@pytest.mark.parametrize("name", ["node_pairs", "seeds"])
def test_pairs_of_another_numbering_give_one_warning(name: str) -> None:
    """Item set and sampler of two graphs with as many nodes; held-out pairs say nothing later."""
    g = graph()
    place = torch.randperm(g.num_nodes(), generator=torch.Generator().manual_seed(2))
    other = dgl.graph(tuple(place[ends] for ends in g.edges()), num_nodes=g.num_nodes())
    sampler = UniformSampler(other, K)
    with pytest.warns(UserWarning, match=r"^UniformSampler: \d+ of the \d+ pairs") as caught:
        sampled(g, name, lambda pipe, _: pipe.sample_negative_with(sampler))
    assert len([one for one in caught if "pairs asked for" in str(one.message)]) == 1
    known = UniformSampler(g, K)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*pairs asked for")
        for one in (g, other):  # the first confirms the numbering
            sampled(one, name, lambda pipe, _: pipe.sample_negative_with(known))
