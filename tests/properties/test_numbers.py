"""Embeddings and scores of every size: what can be computed with, and what is noticed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import shared
import torch
from shared import check, make, normal
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dgl_dmns import core

NODES = 30
G = shared.graph(NODES, 90)
RULES = {type(r).__name__: r for r in (core.Density(), core.Gate(), core.Blend(), core.Nearest())}
FOLLOWING = [*(n for n in shared.FOLLOWING if n != "dmns"), *(f"dmns, {rule}" for rule in RULES)]


def embeddings(width: int = 4) -> Tensor:
    return normal(NODES, width, seed=2)


def built(name: str, encoder: Any, **more: Any) -> Any:
    """A sampler by name, of which those of DMNS have a rule."""
    kind, _, rule = name.partition(", ")
    if rule:
        more = {"rule": RULES[rule], **more}
    return make(kind, G, encoder, 2, **more)


SIZES: dict[str, Callable[[], Tensor]] = {
    "huge": lambda: embeddings() * 1e15,
    "tiny": lambda: embeddings() * 1e-35,
    "both": lambda: embeddings() * torch.logspace(-35, 14, NODES).unsqueeze(1),
    "zero": lambda: embeddings() * 0,
    "constant": lambda: torch.ones(NODES, 4),
    "duplicates": lambda: embeddings()[torch.arange(NODES) // 10],
    "bf16": lambda: embeddings().bfloat16(),
    "fp16": lambda: embeddings().half() * 1e4,
    "one dimension": lambda: embeddings(1),
    "double": lambda: embeddings().double(),
}


def check_negatives(sampler: Any) -> None:
    check(G, *sampler(G, torch.arange(90)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FOLLOWING)
def test_embeddings_of_any_size_give_negatives(name: str, size: str) -> None:
    h = SIZES[size]()
    sampler = built(name, lambda: h)
    for version in (1, 2):  # warnings of the package are errors here
        assert sampler.refresh().version == version
        check_negatives(sampler)
    if sampler.rule.tractable:
        node = torch.arange(NODES)
        pairs = torch.cartesian_prod(node, node).T
        assert bool(sampler.distribution().log_ratio(*pairs).isfinite().all())


def drawn_under(dtype: torch.dtype, name: str, tmp_path: Any) -> tuple[Any, ...]:
    """What a sampler holds and draws where ``dtype`` is the default of the process."""
    usual, h = torch.get_default_dtype(), embeddings()
    try:
        torch.set_default_dtype(dtype)
        torch.manual_seed(3)
        sampler = built(name, lambda: h)
        sampler.refresh()
        sampler.refresh()
        sampler.save(tmp_path / "state")
        other = built(name, lambda: h)
        other.load(tmp_path / "state")
        table, draws = other.table.current(), other(G, torch.arange(90))
        ratios = [other.log_ratio(draws)] if other.rule.tractable else []
    finally:
        torch.set_default_dtype(usual)
    return table.ids, *draws, *ratios


@pytest.mark.parametrize("name", [*FOLLOWING, "dmns, sharpened"])
def test_the_default_dtype_changes_nothing(name: str, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(RULES, "sharpened", core.Blend(0.8, edge_ratio=8))
    usual, double = (drawn_under(t, name, tmp_path) for t in (torch.float32, torch.float64))
    assert len(usual) == len(double)
    for mine, other in zip(usual, double):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other)


class Mixing(core.NoisePredictor):
    """A predictor of a user's own, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.map = torch.nn.Linear(8, 4, dtype=torch.float64)

    def forward(self, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        output: Tensor = self.map(torch.cat([x, h], dim=-1))
        return output


def test_a_predictor_in_double_precision_is_taken_over() -> None:
    h, rule = embeddings(), core.Nearest()
    sampler = make("dmns", G, h, predictor=Mixing(), rule=rule)
    sampler.refresh()
    check_negatives(sampler)


@pytest.mark.parametrize("exponent", [-110, 100])
def test_the_compact_space_does_not_depend_on_the_size(exponent: int) -> None:
    h = embeddings()
    first, second = core.Space(4), core.Space(4)
    first.update(h)
    second.update(h * 2.0**exponent)
    assert torch.equal(first.encode(h), second.encode(h * 2.0**exponent))
    assert bool(second.decode(second.encode(h * 2.0**exponent)).isfinite().all())


SCORING = [n for n in FOLLOWING if n not in ("dmns, Density", "dmns, Nearest")]


@pytest.mark.parametrize("name", SCORING)
def test_scores_beyond_the_range_of_numbers_are_refused(name: str) -> None:
    sampler = built(name, embeddings)
    sampler.refresh()
    before = sampler.table.current().ids.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the adversary's fit is taken back, too
        if name == "adversarial":
            sampler.refresh(embeddings() * 1e30)  # its own scores are of its own projections
            assert sampler.report.fit.diverged
        else:
            with pytest.raises(ValueError, match="the last table stays in use"):
                sampler.refresh(embeddings() * 1e30)
            assert sampler.version == 1
            assert torch.equal(sampler.table.current().ids, before)
    check_negatives(sampler)
    assert sampler.refresh(embeddings()).version > 1


@pytest.mark.parametrize("name", [n for n in SCORING if n not in ("mcns", "adversarial")])
def test_a_scorer_that_gives_nan_is_refused(name: str) -> None:
    spoilt = []

    def scorer(a: Tensor, b: Tensor) -> Tensor:
        score = (a * b).sum(-1)
        return score * math.nan if spoilt else score

    sampler = built(name, embeddings, scorer=scorer)
    sampler.refresh()
    before = sampler.table.current().ids.clone()
    spoilt.append(True)
    with pytest.raises(ValueError, match="^scorer: scores of some pairs are NaN or infinite"):
        sampler.refresh()
    assert sampler.version == 1
    assert torch.equal(sampler.table.current().ids, before)


def test_a_scorer_of_ones_own_takes_embeddings_of_any_size() -> None:
    h = embeddings() * 1e15
    sampler = make("dmns", G, h, scorer=lambda a, b: cosine_similarity(a, b, dim=-1))
    sampler.refresh()
    check_negatives(sampler)


def spoil(model: Any, queries: str) -> None:
    """Weights that make |a_t| large: for all queries, or for those in one half of the space."""
    with torch.no_grad():
        if queries == "all":
            model.predictor.film.bias.add_(1e4)
        else:
            model.predictor.film.weight[:, 0] = 3e3


@pytest.mark.parametrize("queries", ["all", "some"])
@pytest.mark.parametrize("rule", [core.Density(), core.Gate(), core.Blend(), core.Nearest()])
def test_a_closed_form_that_comes_apart_is_noticed(rule: Any, queries: str) -> None:
    h = embeddings()
    sampler = make("dmns", G, h, rule=rule, fit_steps=0, uniform_share=0.3)
    sampler.refresh()
    assert sampler.report.table.unstable == 0
    spoil(sampler.model, queries)
    with pytest.warns(UserWarning, match="has come apart for .* of 30 queries: .* learning_rate"):
        report = sampler.refresh()
    lost = report.table.unstable
    assert lost == NODES if queries == "all" else 0 < lost <= NODES
    check_negatives(sampler)
    if queries == "all":
        assert bool((sampler.table.current().level == core.NO_LEVEL).all())
    if rule.tractable:
        src, dst = sampler(G, torch.arange(90))
        ratio = sampler.log_ratio((src, dst))
        assert bool(ratio.isfinite().all())
        if isinstance(rule, core.Density) and queries == "all":  # uniform is what they are, and say
            torch.testing.assert_close(ratio, torch.zeros_like(ratio))


def test_a_fit_of_the_adversary_that_diverges_is_taken_back() -> None:
    sampler = built("adversarial", embeddings, warmup_steps=5, fit_steps=3)
    sampler.refresh()
    before = {name: w.clone() for name, w in sampler.adversary.named_parameters()}
    sampler.adversary.optimizer.param_groups[0]["lr"] = math.inf
    with pytest.warns(UserWarning, match="adversarial generator diverged and was taken back"):
        report = sampler.refresh()
    assert report.fit.diverged
    assert sampler.version == 2
    for name, weight in sampler.adversary.named_parameters():
        assert torch.equal(weight, before[name])
    check_negatives(sampler)


def test_too_many_nodes_for_a_table_are_refused() -> None:
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="num_dst: expected at most 2147483647 nodes"):
        core.KnownEdges(one, one, 1, 1 << 31, exclude_self=False)
