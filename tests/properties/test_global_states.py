"""What torch and numpy hold for the whole process changes nothing, and is left as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import dgl
import numpy as np
import pytest
import torch
from shared import KINDS, make
from torch import Tensor

from dgl_dmns import losses
from dgl_dmns.core import Nearest
from dgl_dmns.data import (
    embedded_graph,
    generated_shop,
    generated_triples,
    split_directed,
    split_pairs,
)
from dgl_dmns.evaluate import (
    fixed_negatives,
    full_ranking,
    heart_negatives,
    heart_ranking,
    ranking_metrics,
)
from dgl_dmns.inference import layerwise_inference

NODES = 60


def cpu_rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        *shape,
        generator=torch.Generator(device="cpu").manual_seed(seed),
        device="cpu",
        dtype=torch.float32,
    )


def cpu_ids(*shape: int, seed: int = 0, below: int = NODES) -> Tensor:
    source = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randint(0, below, shape, generator=source, device="cpu")


def graph(nodes: int = NODES) -> Any:
    g = dgl.graph(tuple(cpu_ids(2, 300, seed=1)), num_nodes=nodes)
    return dgl.to_simple(dgl.add_reverse_edges(g))


H = cpu_rand(NODES, 8, seed=2)


G, GROWN = graph(), graph(NODES + 5)


def encoder() -> Tensor:
    # The user's own function goes where it goes without us.
    assert torch.empty(0).device.type == expected_device
    return H


expected_device = "cpu"

MADE: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in KINDS},
    "dmns-uniform-source": ("dmns", {"source": "uniform"}),
    "dmns-nearest": ("dmns", {"rule": Nearest()}),
}


def made(name: str) -> Any:
    kind, options = MADE[name]
    return make(kind, G, encoder, 2, **options)


def flat(value: Any) -> list[Any]:
    """All tensors and numbers in a nested value, in order."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in flat(value[key])]
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in flat(part)]
    return [value] if isinstance(value, (Tensor, int, float, str)) else []


def all_of(name: str) -> list[Any]:
    """What the entry points of a sampler return, one after the other."""
    torch.default_generator.manual_seed(5)
    g = G
    sampler = made(name)
    edges = cpu_ids(20, seed=3, below=g.num_edges())
    nodes = cpu_ids(7, seed=4)
    seen: list[Any] = [sampler(g, edges), sampler.for_queries(g, nodes)]
    fixed = torch.stack([nodes, (nodes + 1) % NODES])
    if hasattr(sampler, "refresh"):
        sampler.refresh()
        drawn = sampler(g, edges)
        seen += [drawn, sampler.draw(nodes)]
        sampler.observe(nodes, H[nodes] + 1)
        sampler.refresh()
        seen += [sampler.embedding_age(), sampler.state_dict()]
        if sampler.rule.tractable:
            seen += [sampler.log_ratio(drawn), sampler.positive_log_ratio(g.find_edges(edges))]
            seen.append(sampler.distribution().sample(nodes, 3))
        other = made(name)
        other.load_state_dict(sampler.state_dict())
        seen.append(other.state_dict())
        if name.startswith("dmns"):
            seen.append(sampler.negatives_by_level(nodes, 3))
            seen.append(sampler.generate(H[nodes]))
            seen.append(sampler.for_embeddings(H[nodes]))
    seen.append(fixed_negatives(sampler, fixed, 4).negatives)
    seen.append(sampler.stats(embeddings=H).to_dict("list"))
    if hasattr(sampler, "refresh"):
        sampler.update_graph(GROWN)
        seen.append(sampler.state_dict())
    return flat(seen)


def others() -> list[Any]:
    """What functions beside the samplers return."""
    positive, negative = cpu_rand(6, seed=6), cpu_rand(6, 2, seed=7)
    seen: list[Any] = [
        losses.bce_loss(positive, negative),
        losses.bce_loss(positive, negative, log_ratio=cpu_rand(6, 2), pos_log_ratio=cpu_rand(6)),
        losses.softmax_loss(positive, negative, log_ratio=cpu_rand(6, 2), num_nodes=NODES),
        losses.bpr_loss(positive, negative),
    ]
    data = embedded_graph(80, words=5)
    pairs = split_pairs(data)
    seen += [pairs.train, pairs.test, split_directed(data).test_candidates, data.features]
    seen += [generated_shop(20, 20), generated_triples(20, 2)]
    h, csr = cpu_rand(80, 4), data.csr()
    seen.append(ranking_metrics(full_ranking(h, pairs.test, csr)))
    hard = heart_negatives(pairs.test, csr, csr, data.features, 6)
    seen += [hard, heart_ranking(h, pairs.test, hard)]
    g = G

    def layer(block: Any, given: Tensor) -> Tensor:
        with block.local_scope():
            block.srcdata["h"] = given
            block.update_all(dgl.function.copy_u("h", "m"), dgl.function.mean("m", "o"))
            return block.dstdata["o"]

    seen.append(layerwise_inference(g, H, [layer, layer], batch_size=7))
    return flat(seen)


@contextlib.contextmanager
def default_device() -> Iterator[None]:
    global expected_device
    torch.set_default_device("meta")  # stands in for "cuda", which not every machine has
    expected_device = "meta"
    try:
        yield
    finally:
        torch.set_default_device(None)
        expected_device = "cpu"


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


STATES: dict[str, Callable[[], Any]] = {
    "default device": default_device,
    "default dtype": default_dtype,
    "deterministic": deterministic,
    "no grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "two threads": two_threads,
}

PLAIN: dict[str, list[Any]] = {}


def plain(name: str, work: Callable[[], list[Any]]) -> list[Any]:
    if name not in PLAIN:
        PLAIN[name] = work()
    return PLAIN[name]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return (
            a.dtype == b.dtype
            and a.device == b.device
            and torch.equal(a.nan_to_num(7.25), b.nan_to_num(7.25))
        )
    return bool(a == b or (a != a and b != b))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", MADE)
def test_a_global_state_changes_nothing(name: str, state: str) -> None:
    expected = plain(name, lambda: all_of(name))
    with STATES[state]():
        found = all_of(name)
    assert len(expected) == len(found)
    if name.startswith("dmns") and state == "two threads":
        return  # gradients of the fit are sums, which threads round in another order
    assert [i for i, pair in enumerate(zip(expected, found)) if not same(*pair)] == []


@pytest.mark.parametrize("state", STATES)
def test_functions_beside_the_samplers(state: str) -> None:
    expected = plain("others", others)
    with STATES[state]():
        found = others()
    assert [i for i, pair in enumerate(zip(expected, found)) if not same(*pair)] == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MADE)
def test_the_random_streams_of_others_stay_as_they_are(name: str, monkeypatch: Any) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the streams of all GPUs were set")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", never)
    torch.default_generator.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    sampler = made(name)
    if hasattr(sampler, "refresh"):
        sampler.refresh()
        sampler.refresh()
    sampler.stats(embeddings=H)
    fixed_negatives(sampler, torch.tensor([[0, 1], [2, 3]]), 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


@pytest.mark.parametrize("seed", [-1, 2**63 - 1, 2**63, 10**30, np.int64(7), np.uint8(7)])
def test_any_whole_number_is_a_seed(seed: Any) -> None:
    for kind in ("dmns", "adversarial"):
        sampler = make(kind, G, encoder, seed=seed)
        sampler.refresh()
    assert type(sampler.seed) is int
    with pytest.raises(TypeError, match=r"seed: expected an integer, got 1\.5"):
        make("dmns", G, encoder, seed=1.5)
