"""Masks, floats, lists, classes and names where ids, numbers and objects are wanted."""

from __future__ import annotations

import threading
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import dgl
import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn

import dgl_dmns
from dgl_dmns.checks import as_integer, as_number, check_ids, check_object
from dgl_dmns.core import Blend, FiLMPredictor, Gate, Levels, NoiseSchedule, PoolSettings
from dgl_dmns.data import split_directed, split_pairs
from dgl_dmns.evaluate import (
    candidate_ranking,
    fixed_negatives,
    full_ranking,
    heart_negatives,
    recommendation_metrics,
)
from dgl_dmns.losses import bce_loss
from dgl_dmns.messages import about, warn
from dgl_dmns.samplers import (
    DMNSSampler,
    DynamicSampler,
    MCNSSampler,
    PopularitySampler,
    Resources,
    UniformSampler,
)
from dgl_dmns.samplers.registry import make_sampler

NODES = 30


SOURCE = torch.Generator().manual_seed(0)
G = dgl.graph(tuple(torch.randint(0, NODES, (2, 90), generator=SOURCE)), num_nodes=NODES)
H = torch.randn(NODES, 4, generator=torch.Generator().manual_seed(1))
SMALL: dict[str, Any] = {"k": 2, "groups": 2, "warmup_steps": 2, "fit_steps": 1, "pool": 8}


@pytest.fixture(scope="module")
def refreshed() -> Any:
    sampler: Any = make_sampler("dmns", G, lambda: H, **SMALL)
    sampler.refresh()
    return sampler


# Ids.

MASK = torch.zeros(NODES, dtype=torch.bool)
MASK[10:20] = True
NO_IDS = {
    "mask": (MASK, r"nonzero\(\)"),
    "mask of bytes": (MASK.to(torch.uint8), r"nonzero\(\)"),
    "fractions": (torch.tensor([1.7]), "whole numbers"),
    "whole floats": (torch.tensor([1.0]), "whole numbers"),
    "list": ([1, 2], r"torch\.tensor"),
    "array": (np.arange(3), r"torch\.from_numpy"),
    "number": (3, r"torch\.tensor"),
}
CALLS = {
    "observe": lambda s, ids: s.observe(ids, H[: len(ids) if hasattr(ids, "__len__") else 1]),
    "negatives_by_level": lambda s, ids: s.negatives_by_level(ids, 3),
    "refresh": lambda s, ids: s.refresh(nodes=ids),
    "log_ratio": lambda s, ids: s.log_ratio((ids, ids)),
    "positive_log_ratio": lambda s, ids: s.positive_log_ratio((ids, ids)),
}


@pytest.mark.parametrize("kind", NO_IDS)
@pytest.mark.parametrize("call", CALLS)
def test_what_are_no_ids_is_refused_with_what_to_write(
    call: str, kind: str, refreshed: Any
) -> None:
    ids, advice = NO_IDS[kind]
    # A refresh of rows has refused masks by a ValueError from the start.
    with pytest.raises(ValueError if call == "refresh" else TypeError, match=advice) as caught:
        CALLS[call](refreshed, ids)
    assert "\n" not in str(caught.value)
    if kind == "mask":
        assert "int64)" not in str(caught.value)


@pytest.mark.parametrize("call", CALLS)
def test_ids_out_of_range_are_refused(call: str, refreshed: Any) -> None:
    for bad in (-1, 90):
        with pytest.raises(ValueError, match=r"0 \.\. (29|89)"):
            CALLS[call](refreshed, torch.tensor([0, bad]))


KNOWN = (torch.zeros(NODES + 1).long(), torch.empty(0).long())


@pytest.mark.parametrize(
    "call",
    [
        lambda pairs: full_ranking(H, pairs, KNOWN),
        lambda pairs: candidate_ranking(H, pairs[0], pairs.T.repeat(1, 2)),
        lambda pairs: recommendation_metrics(H, H, pairs, KNOWN),
        lambda pairs: heart_negatives(pairs, KNOWN, KNOWN, H, 2),
        lambda pairs: fixed_negatives(UniformSampler(G), pairs, 3),
        lambda pairs: UniformSampler(G).stats(embeddings=H, held_out=pairs),
    ],
)
def test_pairs_in_evaluations(call: Any) -> None:
    pairs = torch.tensor([[True, False], [False, True]])
    for bad in (pairs, pairs + 0.5):
        with pytest.raises(TypeError, match=r"int64|mask"):
            call(bad)


def test_lists_and_arrays_in_evaluations() -> None:
    with pytest.raises(TypeError, match=r"^pairs: .*torch\.tensor\(pairs\)"):
        full_ranking(H, [[0], [1]], KNOWN)
    with pytest.raises(TypeError, match=r"^h: .*torch\.from_numpy\(h\)"):
        full_ranking(H.numpy(), torch.tensor([[0], [1]]), KNOWN)


def test_small_integers_are_told_how_to_become_ids() -> None:
    with pytest.raises(TypeError, match=r"\.to\(torch\.int64\)"):
        check_ids("nodes", torch.tensor([1], dtype=torch.int16), 5)
    check_ids("nodes", torch.tensor([[1]]), 5, dim=None)


# Numbers.

INTEGERS = [5, np.int64(5), np.int32(5), np.uint8(5), torch.tensor(5), np.array(5)]


@pytest.mark.parametrize("number", INTEGERS, ids=lambda n: type(n).__name__)
def test_integers_of_numpy_and_torch_are_taken(number: Any) -> None:
    assert type(as_integer("k", number)) is int
    assert type(UniformSampler(G, number).k) is int
    whole = ("seed", "pool", "groups", "fit_steps", "warmup_steps", "batch_pairs", "compact_width")
    tables = []
    for five in (number, 5):
        sampler = make_sampler("dmns", G, lambda: H, {"_E": five}, **dict.fromkeys(whole, five))
        sampler.refresh()
        tables.append(sampler.table.cells)
    assert torch.equal(*tables)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dynamic", ("pool", "groups")),
        ("mcns", ("steps", "width")),
        ("adversarial", ("pool", "fit_steps", "hidden", "batch_queries")),
    ],
)
def test_other_samplers_take_them(name: str, options: tuple[str, ...]) -> None:
    five = np.int64(5)
    sampler: Any = make_sampler(name, G, lambda: H, five, seed=five, **dict.fromkeys(options, five))
    assert sampler.refresh()
    assert PopularitySampler(G, five, np.float32(0.5)).exponent == 0.5


@pytest.mark.parametrize(
    "bad", [True, np.bool_(True), torch.tensor(True), 5.0, np.float64(5), "5", None, int, [5]]
)
def test_what_is_no_integer_is_refused(bad: Any) -> None:
    for make in (
        lambda: UniformSampler(G, bad),
        lambda: DMNSSampler(G, lambda: H, {"_E": bad}),
        lambda: PoolSettings(pool=bad),
        lambda: DMNSSampler(G, lambda: H, seed=bad),
    ):
        with pytest.raises(TypeError, match=r"^(k|pool|seed): expected an integer"):
            make()


@pytest.mark.parametrize("bad", [True, "0.5", None, np.bool_(False), torch.ones(2), float])
def test_what_is_no_number_is_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match="^uniform_share: expected a number"):
        PoolSettings(uniform_share=bad)
    assert as_number("lam", np.float32(0.5)) == as_number("lam", torch.tensor(0.5)) == 0.5


# Objects.

CLASSES: dict[str, tuple[dict[str, Any], str]] = {
    "rule": ({"rule": Gate}, r"^rule: .*class Gate.*rule=Gate\("),
    "rule Blend": ({"rule": Blend}, "^rule: .*class Blend"),
    "rule by name": ({"rule": "sharp"}, r"^rule: .*'sharp'.*rule=Gate\(\)"),
    "levels": ({"levels": Levels}, "^levels: .*class Levels"),
    "levels by name": ({"levels": "paper"}, r"^levels: .*'paper'"),
    "one level": ({"levels": 0.1}, r"^levels: .*0\.1"),
    "schedule": ({"schedule": NoiseSchedule}, "^schedule: .*class NoiseSchedule"),
    "schedule not called": (
        {"schedule": NoiseSchedule.linear},
        r"^schedule: .*NoiseSchedule\.linear\(",
    ),
    "schedule by name": ({"schedule": "linear"}, "^schedule: .*'linear'"),
    "resources": ({"resources": Resources}, "^resources: .*class Resources"),
    "resources as a dict": ({"resources": {"background": True}}, "^resources: .*dict"),
    "scorer": ({"scorer": nn.Bilinear}, "^scorer: .*class Bilinear"),
    "scorer by type": ({"scorer": {"_E": nn.Bilinear}}, "^scorer of '_E': .*class Bilinear"),
    "predictor": ({"predictor": FiLMPredictor}, "^predictor: .*class FiLMPredictor"),
    "generator": ({"generator": torch.Generator}, "^generator: .*class Generator"),
    "generator as a seed": ({"generator": 0}, "^generator: .*got 0"),
    "encoder": ({"encoder": nn.Linear}, "^encoder: .*class Linear"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_and_names_in_place_of_objects(name: str) -> None:
    arguments, message = CLASSES[name]
    encoder = arguments.get("encoder", lambda: H)
    more = {name: value for name, value in arguments.items() if name != "encoder"}
    with pytest.raises(TypeError, match=message):
        make_sampler("dmns", G, encoder, **more)


def test_objects_are_taken() -> None:
    check_object("rule", Gate(), Gate, "Gate()")
    options: dict[str, Any] = {"resources": Resources(), "generator": torch.Generator()}
    options.update(rule=Gate(), levels=np.array([0.1, 0.5]), schedule=NoiseSchedule.linear())
    sampler: Any = make_sampler("dmns", G, lambda: H, **options)
    assert sampler.levels.fractions == (0.1, 0.5)


# Graphs.


class DataSet(list[Any]):
    """As DGL's data sets, whose graph is ``dataset[0]``."""


class Geometric:
    """As a graph of another library."""

    edge_index = torch.stack(G.edges())


NO_GRAPHS: dict[str, tuple[Any, str]] = {
    "data set": (DataSet([G]), r"DataSet; .*dataset\[0\]"),
    "load_graphs": (([G], {}), r"graphs\[0\]"),
    "edge_index": (torch.stack(G.edges()), r"dgl\.graph\(\(edge_index"),
    "pair": (G.edges(), r"dgl\.graph\(\(src, dst\)"),
    "networkx": (nx.path_graph(4), r"dgl\.from_networkx"),
    "scipy": (G.adj_external(scipy_fmt="coo"), r"dgl\.from_scipy"),
    "geometric": (Geometric(), "data.num_nodes"),
    "class": (dgl.DGLGraph, "the class DGLGraph"),
    "word": ("cora", "training graph"),
    "None": (None, "training graph"),
    "block": (dgl.to_block(G), "block"),
}


@pytest.mark.parametrize("name", NO_GRAPHS)
def test_what_is_no_graph_is_refused(name: str) -> None:
    what, message = NO_GRAPHS[name]
    for make in (
        lambda: UniformSampler(what, 2),
        lambda: PopularitySampler(what, 2),
        lambda: DMNSSampler(what, lambda: H, 2),
        lambda: MCNSSampler(what, lambda: H, 2),
    ):
        with pytest.raises(TypeError, match=f"^g: .*{message}") as caught:
            make()
        assert "\n" not in str(caught.value)


def test_what_is_no_graph_is_refused_in_calls(refreshed: Any) -> None:
    for call in (
        lambda: refreshed([G], torch.arange(3)),
        lambda: refreshed.for_queries([G], torch.arange(3)),
        lambda: refreshed.update_graph([G]),
    ):
        with pytest.raises(TypeError, match="^g: expected a DGL graph, got list"):
            call()


@pytest.mark.parametrize("name", ["csc", "csr", "coo"])
def test_a_graph_of_one_format(name: str) -> None:
    g = G.formats(name)
    expected = [known.fingerprint() for known in UniformSampler(G).known_by_type.values()]
    for sampler in (UniformSampler(g, 2), PopularitySampler(g, 2), DMNSSampler(g, lambda: H, 2)):
        assert [known.fingerprint() for known in sampler.known_by_type.values()] == expected
        if name == "coo":
            assert sampler(g, torch.arange(3))[0].numel() == 6
            continue
        with pytest.raises(ValueError, match=r"^g: .*without coo.*formats\(") as caught:
            sampler(g, torch.arange(3))
        assert "\n" not in str(caught.value)


def test_splits_want_their_own_data() -> None:
    for split in (split_pairs, split_directed):
        with pytest.raises(TypeError, match="^data: .*got DGLGraph"):
            split(G)


# Optimizers.


class Wrapper(torch.optim.Optimizer):
    """An optimizer without hooks of its own, as wrappers of training libraries are."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def test_what_calls_no_hooks_is_refused_before_any_work() -> None:
    adam = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    sparse = object.__new__(dgl.optim.SparseAdam)
    cases: list[tuple[Any, str]] = [
        (sparse, "SparseAdam"),
        (Wrapper(adam), r"optimizer\.optimizer"),
        ([adam], r"optimizers\[0\]"),
        (torch.optim.lr_scheduler.StepLR(adam, 1), r"StepLR.*optimizer\.optimizer"),
        (torch.optim.Adam, "class Adam"),
        (None, "NoneType"),
    ]
    calls: list[int] = []
    for what, message in cases:
        sampler = DynamicSampler(G, lambda: calls.append(1) or H, 2)
        with pytest.raises(TypeError, match=f"^optimizer: .*{message}"):
            sampler.attach(what, every=np.int64(1))
    assert not calls
    sampler.attach(adam, every=np.int64(1))
    assert calls


# Warnings.


class Speaker:
    @about
    def speak(self) -> None:
        warn("a word")


def test_warnings_name_the_object_and_the_users_line() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    optimizer.register_step_post_hook(lambda *_: Speaker().speak())
    optimizer.zero_grad()
    for call in (Speaker().speak, optimizer.step, partial(Speaker().speak)):
        with pytest.warns(UserWarning, match="^Speaker: a word$") as caught:
            call()
        assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="^a word$"):
        warn("a word")


def test_warnings_in_a_thread_have_a_place_too() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=warn, args=("a word",))
        thread.start()
        thread.join()
    assert [str(one.message) for one in caught] == ["a word"]


def test_no_warning_of_the_package_goes_past_the_helper() -> None:
    root = Path(dgl_dmns.__path__[0])
    found = [f.name for f in root.rglob("*.py") if "warnings.warn(" in f.read_text("utf-8")]
    assert sorted(found) == ["__init__.py", "messages.py"]  # the first is about the import


@pytest.mark.parametrize("value", [torch.arange(500), np.zeros((90, 2)), [7] * 900, "x" * 900])
@pytest.mark.parametrize("check", [as_integer, as_number])
def test_values_are_shown_in_one_short_line(check: Any, value: Any) -> None:
    with pytest.raises(TypeError, match="^queries: ") as caught:
        check("queries", value)
    assert len(str(caught.value)) < 150
    assert "\n" not in str(caught.value)


def test_words_are_no_truth_values() -> None:
    """A word would count as True in silence."""
    g = dgl.graph((torch.arange(NODES), torch.arange(NODES).roll(1)), num_nodes=NODES)
    sampler, scores = UniformSampler(g, 1), torch.zeros(2)
    follower = DynamicSampler(g, lambda: torch.eye(NODES))
    for name, call in {
        "filtered": lambda: sampler.loss(torch.eye(NODES), g, g, filtered="no"),  # type: ignore[arg-type]
        "gather": lambda: sampler.loss(torch.eye(NODES), g, g, gather="no"),  # type: ignore[arg-type]
        "balanced": lambda: bce_loss(scores, scores.view(2, 1), balanced="no"),  # type: ignore[arg-type]
        "observed": lambda: follower.refresh(observed="no"),  # type: ignore[arg-type]
    }.items():
        with pytest.raises(TypeError, match=f"^{name}: expected True or False, got 'no'; write"):
            call()
