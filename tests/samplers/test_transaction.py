"""A refresh that fails, anywhere and in any way, leaves everything as it was.

Each sampler goes through all failures one after the other. After each, all that it holds is what it
was, and after all of them it goes on to the very bits of one that has met none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dgl
import pytest
import torch
from states import same
from torch import Tensor

from dgl_dmns import (
    AdversarialSampler,
    DMNSSampler,
    DynamicSampler,
    MCNSSampler,
    Resources,
    SelfAdversarialSampler,
)
from dgl_dmns.core import CandidateTable, Density, FiLMPredictor, Gate, Nearest
from dgl_dmns.samplers import refreshing

NODES = 40
SMALL: dict[str, Any] = {
    "warmup_steps": 4,
    "fit_steps": 2,
    "batch_pairs": 32,
    "groups": 2,
    "pool": 24,
}
MAKE: dict[str, Callable[..., Any]] = {
    "blend": lambda g, e, **m: DMNSSampler(g, e, 2, **SMALL, **m),
    "gate": lambda g, e, **m: DMNSSampler(g, e, 2, rule=Gate(), **SMALL, **m),
    "density": lambda g, e, **m: DMNSSampler(
        g, e, 2, rule=Density(), effective_size=6, **SMALL, **m
    ),
    "nearest": lambda g, e, **m: DMNSSampler(g, e, 2, rule=Nearest(), **SMALL, **m),
    "own predictor": lambda g, e, **m: DMNSSampler(g, e, 2, predictor=predictor(), **SMALL, **m),
    "dynamic": lambda g, e, **m: DynamicSampler(g, e, 2, groups=2, **m),
    "self-adversarial": lambda g, e, **m: SelfAdversarialSampler(
        g, e, 2, edge_ratio=3.0, groups=2, **m
    ),
    "mcns": lambda g, e, **m: MCNSSampler(g, e, 2, groups=2, **m),
    "adversarial": lambda g, e, **m: AdversarialSampler(
        g, e, 2, groups=2, warmup_steps=4, fit_steps=2, batch_queries=32, **m
    ),
}


def predictor() -> FiLMPredictor:
    torch.manual_seed(3)
    return FiLMPredictor(8)


def graph() -> Any:
    source = torch.Generator().manual_seed(1)
    ends = torch.randint(0, NODES, (2, 4 * NODES), generator=source)
    return dgl.graph(tuple(ends), num_nodes=NODES)


def shop() -> Any:
    source = torch.Generator().manual_seed(2)
    pairs = {
        ("user", "buys", "item"): tuple(torch.randint(0, 30, (2, 90), generator=source)),
        ("item", "sold", "user"): tuple(torch.randint(0, 30, (2, 90), generator=source)),
    }
    return dgl.heterograph(pairs, num_nodes_dict={"user": 30, "item": 30})


def embeddings(seed: int = 0, nodes: int = NODES) -> Tensor:
    return torch.randn(nodes, 8, generator=torch.Generator().manual_seed(seed))


class Broken(Exception):  # noqa: N818 - an error of the user's
    """What the failures raise."""


@contextmanager
def breaking(owner: Any, name: str, error: BaseException, call: int = 1) -> Iterator[None]:
    """The call-th call of a function does its work, and raises then."""
    own, calls = getattr(owner, name), []

    def broken(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        done = own(*arguments, **named)
        if len(calls) == call:
            raise error
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, broken)
        yield
    assert len(calls) >= call, "the failure was never met"


class Encoder:
    """Returns embeddings of its turn, and fails where it is told to."""

    def __init__(self, g: Any) -> None:
        self.g = g
        self.turn = 0
        self.failure = ""

    def __call__(self) -> Any:
        if self.failure == "encoder":
            raise Broken
        h = {n: embeddings(self.turn, self.g.num_nodes(n)) for n in self.g.ntypes}
        if self.failure == "not finite":
            next(iter(h.values()))[3] = torch.nan
        return next(iter(h.values())) if len(h) == 1 else h


FAILURES = ("encoder", "not finite", "fit", "table", "interrupt", "publication")


@contextmanager
def failure(kind: str, sampler: Any, encoder: Encoder, call: int = 1) -> Iterator[None]:
    """A refresh within fails; what is not of the encoder fails at the call-th edge type."""
    if kind in ("encoder", "not finite"):
        encoder.failure = kind
        yield
        encoder.failure = ""
        return
    places: dict[str, tuple[Any, str, BaseException]] = {
        "fit": (sampler, "_fit", Broken()),
        "table": (CandidateTable, "write", Broken()),
        "interrupt": (CandidateTable, "write", KeyboardInterrupt()),
        "publication": (CandidateTable, "publish", Broken()),
    }
    owner, name, error = places[kind]
    with breaking(owner, name, error, call):
        yield


def everything(sampler: Any) -> dict[str, Any]:
    """All that a refresh may change, but for the hidden buffers of tables, as copies."""
    held = {}
    for etype, one in sampler.relations.items():
        walked = None if one.walked is None else one.walked[sampler.version % 2]
        held[etype] = {
            "live": list(one.table.current()),
            "random": one.random.get_state(),
            "sharpness": one.sharpness,
            "walked": walked,
            "weights": [None if p is None else p.state_dict() for p in (one.model, one.adversary)],
            "objects": (id(one.model), id(one.adversary), id(one.distribution)),
        }
    observed = sampler._observed
    return copy.deepcopy(
        {
            "held": held,
            "version": sampler.version,
            "report": id(sampler.report),
            "last": sampler._last,
            "observed": None if observed is None else observed.state_dict(),
            "staleness": vars(sampler.staleness),
        }
    )


def end(sampler: Any) -> None:
    """Wait for a refresh in the background, and raise what has failed."""
    try:
        sampler.wait()
    except RuntimeError as error:
        raise (error.__cause__ or error) from None


def refresh(sampler: Any, **arguments: Any) -> None:
    """Refresh to the end."""
    sampler.refresh(**arguments)
    end(sampler)


def fail_in_every_way(sampler: Any, encoder: Encoder, act: Callable[[], None]) -> None:
    for call in range(1, len(sampler.relations) + 1):
        for kind in FAILURES if call == 1 else ("fit", "table", "publication"):
            before = everything(sampler)
            with (
                failure(kind, sampler, encoder, call),
                pytest.raises((Broken, ValueError, KeyboardInterrupt, RuntimeError)) as met,
            ):
                act()
            if type(met.value) is RuntimeError:  # of an encoder that has never returned
                assert isinstance(met.value.__cause__, Broken)
            assert same(before, everything(sampler)), (kind, call)
            if sampler.version and sampler.rule.tractable:
                for etype in sampler.relations:
                    assert sampler.distribution(etype) is not None


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("name", MAKE)
def test_failures_leave_no_trace(name: str, background: bool) -> None:
    g = graph()
    runs = []
    for failing in (True, False):
        encoder = Encoder(g)
        sampler = MAKE[name](g, encoder, resources=Resources(background=background))
        states = []
        for encoder.turn in range(3):
            nodes = torch.arange(20) if encoder.turn == 2 and sampler.rebuilds_rows else None
            if failing:
                fail_in_every_way(sampler, encoder, lambda: refresh(sampler, nodes=nodes))  # noqa: B023
            refresh(sampler, nodes=nodes)
            states.append(sampler.state_dict())
        assert sampler.version == 3
        runs.append(states)
    assert same(*runs)


@pytest.mark.parametrize("background", [False, True])
def test_edge_types_are_swapped_together(background: bool) -> None:
    g = shop()
    runs = []
    for failing in (True, False):
        encoder = Encoder(g)
        sampler = DMNSSampler(g, encoder, 2, resources=Resources(background=background), **SMALL)
        for encoder.turn in range(2):
            some = {"user": torch.arange(9), "item": torch.arange(5)}
            nodes = some if encoder.turn else None
            if failing:
                fail_in_every_way(sampler, encoder, lambda: refresh(sampler, nodes=nodes))  # noqa: B023
            refresh(sampler, nodes=nodes)
        runs.append(sampler.state_dict())
    assert same(*runs)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("name", ["blend", "mcns", "adversarial"])
def test_attached_refreshes_that_fail_are_made_up_for(name: str, background: bool) -> None:
    runs = []
    for failing in (True, False):
        g = graph()
        encoder = Encoder(g)
        sampler = MAKE[name](g, encoder, resources=Resources(background=background))
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        sampler.attach(optimizer, every=1)
        weight.grad = torch.zeros(1)

        def step() -> None:
            optimizer.step()  # noqa: B023
            end(sampler)  # noqa: B023

        for encoder.turn in range(1, 3):
            if failing:
                for kind in FAILURES:
                    with (
                        failure(kind, sampler, encoder),
                        pytest.raises((Broken, ValueError, KeyboardInterrupt)),
                    ):
                        step()
            step()
        assert sampler.version == 3
        runs.append(sampler.state_dict())
    assert same(*runs)


@pytest.mark.parametrize("background", [False, True])
def test_a_scorer_that_raises_takes_back_the_fit(background: bool) -> None:
    """KBGAN asks its scorer in the fit and after the table is filled."""
    good = [True]

    def scorer(a: Tensor, b: Tensor) -> Tensor:
        if not good[0] and a.dim() == 2 and len(a) == NODES:  # the mean score of the table
            raise Broken
        return (a * b).sum(-1)

    g = graph()
    sampler = MAKE["adversarial"](
        g, embeddings, scorer=scorer, resources=Resources(background=background)
    )
    sampler.refresh()
    before = everything(sampler)
    good[0] = False
    with pytest.raises(Broken):
        refresh(sampler)
    assert same(before, everything(sampler))


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_observed_embeddings_come_back(background: bool, given: bool) -> None:
    g = graph()
    sampler = MAKE["blend"](g, embeddings, resources=Resources(background=background))
    sampler.refresh()
    sampler.observe(torch.tensor([3, 4]), torch.full((2, 8), 2.0))
    before = everything(sampler)
    arguments: dict[str, Any] = {"embeddings": embeddings(5)} if given else {"observed": False}
    with breaking(sampler, "_fit", Broken()), pytest.raises(Broken):
        refresh(sampler, **arguments)
    assert same(before, everything(sampler))


def test_what_is_observed_beside_a_refresh_that_fails_is_kept() -> None:
    g = graph()
    sampler = MAKE["blend"](g, embeddings, resources=Resources(background=True))
    sampler.refresh()
    sampler.observe(torch.tensor([3]), torch.full((1, 8), 2.0))
    with breaking(sampler, "_fit", Broken()):
        sampler.refresh(embeddings(5))
        sampler.observe(torch.tensor([4, 5]), torch.full((2, 8), 4.0))
        with pytest.raises(RuntimeError, match="Broken"):
            sampler.wait()
    wanted = embeddings()
    wanted[3], wanted[4], wanted[5] = 2.0, 4.0, 4.0
    assert torch.equal(sampler._observed.h["_N"], wanted)
    assert sampler.embedding_age()[[3, 4, 5, 6]].tolist() == [1, 0, 0, 2]


def test_an_interrupt_after_the_swap_leaves_the_refresh_in_use() -> None:
    g = graph()
    sampler, plain = MAKE["blend"](g, embeddings), MAKE["blend"](g, embeddings)
    sampler.refresh()
    plain.refresh()
    with breaking(refreshing, "swap", KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        sampler.refresh()
    plain.refresh()
    assert same(sampler.state_dict(), plain.state_dict())


def test_a_predictor_of_the_users_is_left_alone() -> None:
    mine = predictor()
    before = copy.deepcopy(mine.state_dict())
    sampler = DMNSSampler(graph(), embeddings, 2, predictor=mine, **SMALL)
    sampler.refresh()
    assert same(before, mine.state_dict())
    assert not same(before, sampler.model.predictor.state_dict())  # type: ignore[union-attr]


# ---- functions of on_refresh ------------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
def test_a_refresh_stands_where_a_function_of_on_refresh_raises(background: bool) -> None:
    g = graph()
    plain = MAKE["blend"](g, embeddings, resources=Resources(background=background))
    sampler = MAKE["blend"](g, embeddings, resources=Resources(background=background))
    seen: list[int] = []

    def broken(report: Any, h: dict[str, Tensor]) -> None:
        raise Broken

    sampler.on_refresh(broken)
    sampler.on_refresh(lambda report, h: seen.append(report.version))
    for version in (1, 2):
        plain.refresh()
        with pytest.raises(Broken):
            refresh(sampler)
        assert sampler.report.version == sampler.version == version
        assert sampler.staleness.refreshes == 0
    plain.wait()
    assert seen == [1, 2]  # the other function is called
    assert same(plain.state_dict(), sampler.state_dict())


def test_a_refresh_that_stands_is_not_repeated_after_the_next_step() -> None:
    sampler = MAKE["blend"](graph(), embeddings)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    sampler.attach(optimizer, every=2)

    def broken(report: Any, h: dict[str, Tensor]) -> None:
        raise Broken

    sampler.on_refresh(broken)
    weight.grad = torch.zeros(1)
    optimizer.step()
    with pytest.raises(Broken):
        optimizer.step()
    optimizer.step()
    assert sampler.version == 2
