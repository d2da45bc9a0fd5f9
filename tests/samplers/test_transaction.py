"""A refresh that fails, anywhere and in any way, leaves everything as it was.

Each sampler goes through all failures one after the other. After each, all that it holds is what it
was, and after all of them it goes on to the very bits of one that has met none.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import dgl
import pytest
import torch
from shared import BUYS, WIDTH, graph, make, normal, optimizer, refreshed, same
from torch import Tensor
from tqdm import tqdm

from dgl_dmns import Resources
from dgl_dmns.core import (
    CandidateTable,
    Density,
    DiffusionGenerator,
    FiLMPredictor,
    Gate,
    Nearest,
)
from dgl_dmns.samplers.adversarial import SoftmaxGenerator

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "blend": ("dmns", {}),
    "gate": ("dmns", {"rule": Gate()}),
    "density": ("dmns", {"rule": Density()}),
    "nearest": ("dmns", {"rule": Nearest()}),
    "own predictor": ("dmns", {"predictor": FiLMPredictor(WIDTH)}),
    "dynamic": ("dynamic", {}),
    "self-adversarial": ("self-adversarial", {"edge_ratio": 3.0}),
    "mcns": ("mcns", {"groups": 2}),
    "adversarial": ("adversarial", {}),
}


def made(name: str, g: Any, encoder: Any, background: bool = False, **more: Any) -> Any:
    kind, options = OPTIONS[name]
    pool = {} if kind == "mcns" else {"pool": 24}
    resources = Resources(background=background)
    return make(kind, g, encoder, 2, resources=resources, **pool, **copy.deepcopy(options), **more)


def shop() -> Any:
    ends = torch.randint(0, 30, (2, 90))
    pairs = {BUYS: tuple(ends), ("item", "sold", "user"): tuple(ends.flip(0))}
    return dgl.heterograph(pairs, num_nodes_dict={"user": 30, "item": 30})


class Broken(Exception):  # noqa: N818 - an error of the user's
    """What the failures raise."""


@contextmanager
def breaking(owner: Any, name: str, error: BaseException, call: int = 1) -> Iterator[None]:
    """The call-th call of a function, in whichever thread, does its work, and raises then."""
    own, numbers, met = getattr(owner, name), itertools.count(1), []

    def broken(*arguments: Any, **named: Any) -> Any:
        number = next(numbers)  # blocks are filled in threads: none sees the number of another
        done = own(*arguments, **named)
        if number == call:
            met.append(number)
            raise error
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, broken)
        yield
    assert met, "the failure was never met"


class Encoder:
    """Returns embeddings of its turn, and fails where it is told to."""

    def __init__(self, g: Any) -> None:
        self.g, self.turn, self.failure = g, 0, ""

    def __call__(self) -> Any:
        if self.failure == "encoder":
            raise Broken
        h = {n: normal(self.g.num_nodes(n), WIDTH, seed=self.turn) for n in self.g.ntypes}
        if self.failure == "not finite":
            next(iter(h.values()))[3] = torch.nan
        return next(iter(h.values())) if len(h) == 1 else h


PLACES: dict[str, tuple[Any, str, BaseException]] = {
    "fit of a diffusion model": (DiffusionGenerator, "fit", Broken()),
    "fit of an adversary": (SoftmaxGenerator, "fit", Broken()),
    "table": (CandidateTable, "write", Broken()),
    "interrupt": (CandidateTable, "write", KeyboardInterrupt()),
    "publication": (CandidateTable, "publish", Broken()),
}


def failures(sampler: Any) -> list[tuple[str, int]]:
    """Kinds of failures that a refresh can meet, each with the edge type at which it does."""
    of = {"DMNSSampler": "fit of a diffusion model"}
    if sampler.version:  # the first fit of an adversary takes no steps where there is no warm-up
        of["AdversarialSampler"] = "fit of an adversary"
    fit = of.get(type(sampler).__name__)
    places = [place for place in PLACES if place == fit or not place.startswith("fit")]
    types = range(1, len(sampler.relations) + 1)
    return [("encoder", 1), ("not finite", 1), *((p, t) for t in types for p in places)]


@contextmanager
def failure(kind: str, call: int, encoder: Encoder) -> Iterator[None]:
    """A refresh within fails."""
    encoder.failure = kind
    with breaking(*PLACES[kind], call) if kind in PLACES else nullcontext():
        yield
    encoder.failure = ""


def everything(sampler: Any) -> dict[str, Any]:
    """All that a refresh may change, but for the hidden buffers of tables, as copies."""

    def without_tables(state: Any) -> Any:
        if not isinstance(state, dict):
            return state
        return {key: without_tables(part) for key, part in state.items() if key != "table"}

    relations = sampler.relations.items()
    pairs = torch.arange(20), torch.arange(20).flip(0)
    found = {
        "state": without_tables(sampler.state_dict()),
        "tables": {e: list(r.table.current()) for e, r in relations},
        "models": {e: id(r.model) for e, r in relations},
        "version": sampler.version,
        "report": id(sampler.report),
        "staleness": vars(sampler.staleness),
    }
    if sampler.version and sampler.rule.tractable:
        found["ratios"] = {e: sampler.distribution(e).log_ratio(*pairs) for e, _ in relations}
    return copy.deepcopy(found)


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
    for kind, call in failures(sampler):
        before = everything(sampler)
        errors = (Broken, ValueError, KeyboardInterrupt, RuntimeError)
        with failure(kind, call, encoder), pytest.raises(errors) as met:
            act()
        if type(met.value) is RuntimeError:  # of an encoder that has never returned
            assert isinstance(met.value.__cause__, Broken)
        assert same(before, everything(sampler)), (kind, call)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_failures_leave_no_trace(name: str, background: bool) -> None:
    runs = []
    for failing in (True, False):
        encoder = Encoder(graph())
        sampler = made(name, graph(), encoder, background)
        states = []
        for encoder.turn in range(3):
            nodes = torch.arange(20) if encoder.turn == 2 and name != "mcns" else None
            if failing:
                fail_in_every_way(sampler, encoder, lambda: refresh(sampler, nodes=nodes))  # noqa: B023
            refresh(sampler, nodes=nodes)
            states.append(sampler.state_dict())
        assert sampler.version == 3
        runs.append(states)
    assert same(*runs)


@pytest.mark.parametrize("background", [False, True])
def test_edge_types_are_swapped_together(background: bool) -> None:
    g, runs = shop(), []
    for failing in (True, False):
        encoder = Encoder(g)
        sampler = made("blend", g, encoder, background)
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
        encoder = Encoder(graph())
        sampler = made(name, graph(), encoder, background)
        one = optimizer()
        sampler.attach(one, every=1)

        def step() -> None:
            one.step()  # noqa: B023
            end(sampler)  # noqa: B023

        for encoder.turn in range(1, 3):
            if failing:
                for kind, call in failures(sampler):
                    errors = (Broken, ValueError, KeyboardInterrupt)
                    with failure(kind, call, encoder), pytest.raises(errors):
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
        if not good[0] and a.dim() == 2 and len(a) == 40:  # the mean score of the table
            raise Broken
        return (a * b).sum(-1)

    sampler = made("adversarial", graph(), normal(40, WIDTH), background, scorer=scorer)
    sampler.refresh()
    before = everything(sampler)
    good[0] = False
    with pytest.raises(Broken):
        refresh(sampler)
    assert same(before, everything(sampler))


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_observed_embeddings_come_back(background: bool, given: bool) -> None:
    sampler = made("blend", graph(), normal(40, WIDTH), background)
    sampler.refresh()
    sampler.observe(torch.tensor([3, 4]), torch.full((2, WIDTH), 2.0))
    before = everything(sampler)
    fresh = {"embeddings": normal(40, WIDTH, seed=5)} if given else {"observed": False}
    with breaking(DiffusionGenerator, "fit", Broken()), pytest.raises(Broken):
        refresh(sampler, **fresh)
    assert same(before, everything(sampler))


def test_what_is_observed_beside_a_refresh_that_fails_is_kept() -> None:
    sampler = made("blend", graph(), normal(40, WIDTH), background=True)
    sampler.refresh()
    sampler.observe(torch.tensor([3]), torch.full((1, WIDTH), 2.0))
    with breaking(DiffusionGenerator, "fit", Broken()):
        sampler.refresh(normal(40, WIDTH, seed=5))
        sampler.observe(torch.tensor([4, 5]), torch.full((2, WIDTH), 4.0))
        with pytest.raises(RuntimeError, match="Broken"):
            sampler.wait()
    assert sampler.embedding_age()[[3, 4, 5, 6]].tolist() == [1, 0, 0, 2]
    seen: list[Tensor] = []
    sampler.on_refresh(lambda report, h: seen.append(h["_N"]))
    refresh(sampler)
    wanted = normal(40, WIDTH)
    wanted[3], wanted[4], wanted[5] = 2.0, 4.0, 4.0
    assert torch.equal(seen[0], wanted)


def test_an_interrupt_after_the_swap_leaves_the_refresh_in_use() -> None:
    """As the bar of the progress is closed, which comes last."""
    sampler, plain = (refreshed("dmns", graph()) for _ in "ab")
    with breaking(tqdm, "close", KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        sampler.refresh()
    plain.refresh()
    assert same(sampler.state_dict(), plain.state_dict())


def test_a_predictor_of_the_users_is_left_alone() -> None:
    mine = FiLMPredictor(WIDTH)
    before = copy.deepcopy(mine.state_dict())
    sampler = refreshed("dmns", graph(), predictor=mine)
    assert same(before, mine.state_dict())
    assert not same(before, sampler.model.predictor.state_dict())


# ---- functions of on_refresh ------------------------------------------------------------------


def broken(report: Any, h: dict[str, Tensor]) -> None:
    raise Broken


@pytest.mark.parametrize("background", [False, True])
def test_a_refresh_stands_where_a_function_of_on_refresh_raises(background: bool) -> None:
    plain, sampler = (made("blend", graph(), normal(40, WIDTH), background) for _ in "ab")
    seen: list[int] = []
    sampler.on_refresh(broken)
    sampler.on_refresh(lambda report, h: seen.append(report.version))
    for version in (1, 2):
        refresh(plain)
        with pytest.raises(Broken):
            refresh(sampler)
        assert sampler.report.version == sampler.version == version
        assert sampler.staleness.refreshes == 0
    assert seen == [1, 2]  # the other function is called
    assert same(plain.state_dict(), sampler.state_dict())


def test_a_refresh_that_stands_is_not_repeated_after_the_next_step() -> None:
    sampler, one = make("dmns", graph()), optimizer()
    sampler.attach(one, every=2)
    sampler.on_refresh(broken)
    one.step()
    with pytest.raises(Broken):
        one.step()
    one.step()
    assert sampler.version == 2
