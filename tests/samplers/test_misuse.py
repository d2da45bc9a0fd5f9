"""Misuse that would train on: no refresh, encoders called otherwise, log ratios of other pairs."""

from __future__ import annotations

import threading
import warnings
import weakref
from functools import lru_cache, partial, wraps
from typing import Any, Callable

import dgl
import pytest
import torch
from dgl.nn import SAGEConv
from shared import WIDTH, embed, graph, make, optimizer, refreshed
from torch import Tensor, nn
from torch import multiprocessing as mp

from dgl_dmns.core import Candidates, Gate

NODES, K = 80, 2
G = graph(NODES, 200)
X = embed(G)
EIDS = torch.arange(200)


def sampler_of(encoder: Any = X, **arguments: Any) -> Any:
    return make("self-adversarial", G, encoder, K, **arguments)


# No refresh at all.


@pytest.mark.parametrize("name", ["dynamic", "dmns"])
def test_some_hundred_calls_without_a_refresh_give_one_warning(name: str) -> None:
    sampler = make(name, G)
    said = f"^{type(sampler).__name__}: .*uniform.*attach"
    with pytest.warns(UserWarning, match=said) as caught:
        for _ in range(700):
            sampler(G, torch.tensor([0]))
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_calls_after_a_refresh_give_none() -> None:
    sampler = sampler_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(700):
            if number == 200:
                sampler.refresh()
            sampler(G, torch.tensor([0]))


def test_calls_in_workers_count() -> None:
    sampler = sampler_of()

    def work() -> None:
        for _ in range(290):
            sampler(G, torch.tensor([0]))

    worker = mp.get_context("fork").Process(target=work)
    worker.start()
    worker.join()
    with pytest.warns(UserWarning, match="attach"):
        for _ in range(20):
            sampler(G, torch.tensor([0]))


# Encoders that are called otherwise.


class Blocks(nn.Module):
    """As DGL's example has it: one block for each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([SAGEConv(5, WIDTH, "mean")])

    def forward(self, blocks: Any, x: Tensor) -> Tensor:
        for layer, block in zip(self.layers, blocks):
            x = layer(block, x)
        return x

    def inference(self, g: Any, x: Tensor) -> Tensor:
        return self.layers[0](g, x)


class Pairs(Blocks):
    """As DGL's example of link prediction has it."""

    def forward(self, pair_graph: Any, neg_graph: Any, blocks: Any, x: Tensor) -> Any:
        return super().forward(blocks, x)


ADVICE = r"lambda: model\.inference\(g, x\)"


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (Pairs(), r"^encoder: called as encoder\(g, g\.ndata\['feat'\]\), .*neg_graph, blocks, x"),
        (Blocks().inference, r"^encoder: called as encoder\(g\), .*\(g, x\): "),
        (partial(Blocks().inference), r"^encoder: called as encoder\(g\), "),
        (nn.Bilinear(2, 2, 2).__call__, None),
    ],
)
def test_signatures_that_cannot_be_right_are_refused_at_once(encoder: Any, message: Any) -> None:
    if message is None:  # anything may come of (*args, **kwargs)
        sampler_of(encoder)
        return
    with pytest.raises(TypeError, match=f"{message}.*{ADVICE}") as caught:
        sampler_of(encoder)
    assert "\n" not in str(caught.value)


def test_other_first_calls_that_fail_say_how_they_were_called() -> None:
    sampler = sampler_of(Blocks())  # DGL says 'Invalid key "0"'
    with pytest.raises(
        RuntimeError, match=rf"^encoder: called as .*DGLError: .*{ADVICE}"
    ) as caught:
        sampler.refresh()
    assert isinstance(caught.value.__cause__, dgl.DGLError)
    assert "\n" not in str(caught.value)

    def takes_features(x: Tensor) -> Tensor:
        return x @ x.T

    with pytest.raises(RuntimeError, match=r"^encoder: called as encoder\(g\), which failed"):
        sampler_of(takes_features).attach(optimizer())


def test_later_failures_and_lack_of_memory_stay_what_they_are() -> None:
    fails: list[Exception] = []

    def encoder() -> Tensor:
        if fails:
            raise fails[0]
        return X

    class StopError(Exception):
        pass

    sampler = sampler_of(encoder)
    sampler.refresh()
    fails.append(StopError("later"))
    with pytest.raises(StopError, match="^later$"):
        sampler.refresh()
    fails[0] = MemoryError("none left")
    with pytest.raises(MemoryError, match="^none left$"):
        sampler_of(encoder).refresh()


# Modules behind a callable.


class Noisy(nn.Module):
    """What shows the mode that it is called in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(WIDTH), nn.Dropout(0.5)
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.drop(self.norm(x))

    def inference(self) -> Tensor:
        return self(X)


class Trainer:
    """Holds a module, and is none."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def embed(self) -> Tensor:
        return self.model(X)

    __call__ = embed


module_global = Noisy()


def by_global() -> Tensor:
    return module_global(X)


def through_another_function() -> Tensor:
    return next(by_global() for _ in range(1))


def wrapped_one(model: Noisy) -> Callable[[], Tensor]:
    def inner() -> Tensor:
        return model(X)

    @wraps(inner)
    def outer(*arguments: Any) -> Tensor:
        return inner(*arguments)

    return outer


def by_default(model: Noisy) -> Callable[[], Tensor]:
    def function(*, held: nn.Module = model) -> Tensor:
        return held(X)

    return function


class Pipeline:
    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def embed(self) -> Tensor:
        return self.trainer.embed()


CALLABLES: dict[str, Callable[[Noisy], Any]] = {
    "bound method": lambda model: model.inference,
    "closure": lambda model: lambda: model(X),
    "partial": lambda model: partial(model, X),
    "partial with a keyword": lambda model: partial(lambda m: m(X), m=model),
    "wrapped": wrapped_one,
    "default": by_default,
    "cached": lambda model: lru_cache(maxsize=1)(lambda: model(X)),
    "method of another object": lambda model: Trainer(model).embed,
    "object that is called": Trainer,
    "another object in a closure": lambda model: (lambda t: lambda: t.embed())(Trainer(model)),
    "method of an object within an object": lambda model: Pipeline(Trainer(model)).embed,
    "weak reference": lambda model: (lambda found: lambda: found()(X))(weakref.ref(model)),
    "list in a closure": lambda model: (lambda parts: lambda: parts[0](X))([model]),
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_modules_behind_a_callable_are_in_eval_mode(kind: str) -> None:
    model = Noisy()
    model.drop.eval()  # a part has a mode of its own
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sampler_of(CALLABLES[kind](model)).refresh()
    assert model.modes == [False]
    assert (model.training, model.norm.training, model.drop.training) == (True, True, False)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_module_whose_method_is_called_is_in_eval_mode() -> None:
    class Functional(nn.Module):
        def embed(self) -> Tensor:
            return nn.functional.dropout(X, 0.5, self.training)

    model, seen = Functional(), []
    for encoder in (model.embed, lambda: model.embed()):
        sampler = sampler_of(encoder)
        sampler.on_refresh(lambda report, h: seen.append(h["_N"]))
        sampler.refresh()
    assert all(torch.equal(h, X) for h in seen)
    assert len(seen) == 2
    assert model.training


def test_modules_behind_globals_are_too() -> None:
    module_global.modes.clear()
    for function in (by_global, through_another_function, lambda: module_global(X)):
        sampler_of(function).refresh()
    assert module_global.modes == [False] * 3
    assert module_global.training
    assert int(module_global.norm.num_batches_tracked) == 0


def test_an_encoder_that_raises_leaves_the_mode() -> None:
    model = Noisy()

    def encoder() -> Tensor:
        model(X)
        raise KeyError("no such thing")

    with pytest.raises(RuntimeError, match="KeyError"):
        sampler_of(encoder).refresh()
    assert model.training


def test_modules_behind_a_scorer_are_in_eval_mode() -> None:
    model = Noisy()

    def scorer(a: Tensor, b: Tensor) -> Tensor:
        model.modes.append(model.training)
        return model.drop(a * b).sum(-1)

    first, second = (sampler_of(scorer=scorer) for _ in "ab")
    for sampler in (first, second):
        sampler.refresh()
    assert model.modes
    assert not any(model.modes)
    assert model.training
    assert torch.equal(first.table.cells, second.table.cells)  # dropout has no part


def test_a_module_that_a_scorer_only_calls_is_in_eval_mode_too() -> None:
    model = Noisy()
    found = weakref.ref(model)
    sampler_of(scorer=lambda a, b: (a * found()(b.reshape(-1, WIDTH)).view_as(b)).sum(-1)).refresh()
    assert model.modes
    assert not any(model.modes)
    assert model.training


def test_another_threads_calls_keep_their_mode() -> None:
    model = Noisy()

    def encoder() -> Tensor:
        thread = threading.Thread(target=model, args=(X,))
        thread.start()
        thread.join()
        return X

    hidden = (lambda found: lambda: found[0][0]())([[encoder]])
    sampler_of(hidden).refresh()
    assert model.modes == [True]


# Scorers that cannot be called, or return something else.


@pytest.mark.parametrize("name", ["dynamic", "adversarial", "dmns"])
@pytest.mark.parametrize(
    ("scorer", "error", "words"),
    [
        (lambda a: a, TypeError, "takes 1 positional.*broadcast"),
        (lambda g, h: g.ndata["h"], AttributeError, "shapes .*ndata"),
        (lambda a, b: (a * b).reshape(7, -1, 13), RuntimeError, "invalid.*broadcast"),
        (lambda a, b: None, ValueError, "got NoneType"),
        (lambda a, b: (a * b).sum(-1).numpy(), ValueError, "got ndarray"),
        (lambda a, b: (a * b).sum(-1, keepdim=True), ValueError, "one score for each .* squeeze"),
    ],
)
def test_scorers_that_fail_say_how_they_were_called(
    name: str, scorer: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"^scorer: .*{words}"):
        refreshed(name, G, scorer=scorer)


@pytest.mark.parametrize(("kind", "words"), [("to_sparse", "sparse_coo"), ("meta", "device meta")])
def test_embeddings_without_rows_in_memory_are_refused(kind: str, words: str) -> None:
    odd = X.to_sparse() if kind == "to_sparse" else X.to("meta")
    with pytest.raises(ValueError, match=f"^encoder: .*{words}"):
        sampler_of(lambda: odd).refresh()


# Log ratios of other pairs.


def test_log_ratios_of_positives_give_one_warning() -> None:
    sampler = sampler_of()
    sampler.refresh()
    with pytest.warns(UserWarning, match=r"\d+ of 200 pairs .* known.*positive_log_r") as caught:
        for _ in range(2):
            sampler.log_ratio(G)
    assert len(caught) == 1


def test_log_ratios_of_another_samplers_negatives_give_one_warning() -> None:
    sampler = sampler_of()
    sampler.refresh()
    other = make("uniform", G, k=K)(G, EIDS)
    with pytest.warns(UserWarning, match=r"^SelfAdversarialSampler: \d+ of 58 pairs") as caught:
        for _ in range(3):
            sampler.log_ratio(other)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_outdated_negatives_give_a_warning_and_those_one_refresh_old_none() -> None:
    sampler = refreshed("dmns", G, k=K, rule=Gate(), groups=1)
    drawn = sampler(G, EIDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.refresh()
        sampler.log_ratio(drawn)
    sampler.refresh()
    with pytest.warns(UserWarning, match="more than one refresh ago"):
        sampler.log_ratio(drawn)


def test_a_buffer_that_is_being_written_is_not_searched() -> None:
    table = sampler_of().table
    place = table.start[:1]
    pair = torch.tensor([0]), torch.tensor([5])
    for _ in range(2):
        table.publish()
    group = Candidates(torch.full((1, K), 5), torch.zeros(1, K))
    table.write_at(place, group)
    assert not table.holds(*pair)
    table.publish()
    assert table.holds(*pair)
    table.publish()
    assert table.holds(*pair)  # in the version before


def test_negatives_from_before_the_first_refresh_are_as_they_should_be() -> None:
    sampler = sampler_of()
    ahead = [sampler(G, EIDS) for _ in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pairs in ahead:
            sampler.log_ratio(pairs)
            sampler.refresh()


def test_negatives_handed_over_as_positives_give_a_warning() -> None:
    sampler = sampler_of()
    sampler.refresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.positive_log_ratio(G)
    with pytest.warns(UserWarning, match=r"\d+ of 400 pairs handed to positive_log_ratio") as got:
        for _ in range(2):
            sampler.positive_log_ratio(sampler(G, EIDS))
    assert len(got) == 1


def test_pairs_of_other_shapes_are_refused() -> None:
    sampler = sampler_of()
    sampler.refresh()
    with pytest.raises(ValueError, match=r"^negatives: expected two tensors of one shape \[P\]"):
        sampler.log_ratio((torch.arange(3), torch.arange(4)))
