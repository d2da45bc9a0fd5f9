"""One suite for every sampler that follows an encoder: refreshes, states, log ratios.

What these have in common with all other samplers is in `test_conformance`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from shared import (
    FOLLOWING,
    WIDTH,
    barred,
    check,
    embed,
    ends,
    graph,
    loader,
    make,
    normal,
    optimizer,
    refreshed,
    same,
    seed,
    shop,
)
from torch import Tensor

from dgl_dmns.core import Density, FiLMPredictor, Nearest, NoiseSchedule

EIDS = torch.arange(120)
H = embed(graph())
ADVICE = "the encoder has to return one finite row per node of the sampler's graph"


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", FOLLOWING)
def test_embeddings_that_are_refused_leave_everything_as_it_was(name: str, given: bool) -> None:
    g = graph()
    h = [H]
    sampler = refreshed(name, g, lambda: h[0])
    before = sampler.state_dict()
    for bad, message in (
        (H.flatten(), rf"expected shape \[40, D\], got \(240,\); {ADVICE}"),
        (H[:-1], rf"expected shape \[40, D\], got \(39, 6\); {ADVICE}"),
        (H[:, :0], rf"expected shape \[40, D\], got \(40, 0\); {ADVICE}"),
        (H.unsqueeze(0), rf"expected shape \[40, D\], got \(1, 40, 6\); {ADVICE}"),
        (H.long(), rf"expected floating point embeddings, got torch.int64; {ADVICE}"),
        (H.numpy(), rf"expected a tensor \[N, D\], got ndarray; {ADVICE}"),
        ({"user": H}, r"expected .*dict"),
        (
            H.index_fill(0, torch.tensor([1, 7]), torch.nan),
            "NaN or infinity in 2 of 40.*last table",
        ),
        (H.double() * 1e300, "NaN or infinity in 40 of 40.*lower the learning rate or clip"),
    ):
        h[0] = bad
        with pytest.raises((ValueError, TypeError), match=f"^encoder: {message}"):
            sampler.refresh(bad) if given else sampler.refresh()
        with pytest.raises((ValueError, TypeError, RuntimeError), match=f"encoder: .*{message}"):
            refreshed(name, g, lambda bad=bad: bad)
    if name not in ("dynamic", "self-adversarial"):  # they fit nothing
        with pytest.raises(ValueError, match="^encoder: .* width 6, .* first refresh, got 5; make"):
            sampler.refresh(H[:, :5])
    assert sampler.version == 1
    assert same(before, sampler.state_dict())
    check(g, *sampler(g, EIDS))


@pytest.mark.parametrize("name", FOLLOWING)
def test_refreshes_are_reported_and_reach_the_negatives(name: str) -> None:
    sampler = make(name, graph())
    steps = [4, 2] if name == "dmns" else [3, 2]  # a warm-up for the first one only
    for version in (1, 2):
        report = sampler.refresh(H)
        assert report is sampler.report
        assert report.version == sampler.version == version
        assert set(report.seconds_by_part) == {"embed", "fit", "table"}
        assert report.seconds >= sum(report.seconds_by_part.values()) * 0.99
        assert all(torch.tensor(v).isfinite() for v in report.table.level_score.values())
        assert report.table.level_score
        assert report.table.fallback == 0
        if name in ("dmns", "adversarial"):
            assert len(report.fit.losses) == steps[version - 1]


@pytest.mark.parametrize("name", FOLLOWING)
def test_attached_to_an_optimizer(name: str) -> None:
    sampler = make(name, graph())
    first, other = optimizer(), optimizer()
    sampler.attach(first, every=3).remove()
    sampler.attach(first, every=3)
    handle = sampler.attach(first, every=3)  # takes the place of the one before
    sampler.attach(other, every=100)
    versions = []
    for _ in range(7):
        first.step()
        other.step()
        versions.append(sampler.version - 3)
    assert versions == [1, 1, 2, 2, 2, 3, 3]
    assert sampler.staleness.steps == 1  # of one optimizer
    handle.remove()
    for _ in range(4):
        first.step()
    assert sampler.version == 6


@pytest.mark.parametrize("name", FOLLOWING)
def test_an_attached_refresh_that_fails_is_tried_again_after_the_next_step(name: str) -> None:
    h = [H]
    sampler = make(name, graph(), lambda: h[0])
    one = optimizer()
    sampler.attach(one, every=2)
    versions = []
    for step in range(6):
        h[0] = H * (torch.nan if step == 1 else 1.0)
        with suppress(ValueError):
            one.step()
        versions.append(sampler.version)
    assert versions == [1, 1, 2, 2, 3, 3]


# States.


@pytest.mark.parametrize("refreshes", [0, 2])
@pytest.mark.parametrize("name", [*FOLLOWING, "several types"])
def test_a_loaded_state_goes_on_as_if_nothing_had_happened(
    name: str, refreshes: int, tmp_path: Path
) -> None:
    """Through a file, into a sampler that was refreshed before, with another seed."""
    several = name == "several types"
    g, k = (shop(), {"buys": 2, "knows": 4}) if several else (graph(), 3)
    edges = {e: torch.arange(g.num_edges(e)) for e in ("buys", "knows")} if several else EIDS
    kind = "dmns" if several else name
    # Another seed goes with the state, but for one that orders the proposals of chains.
    other_seed = 9 if refreshes and name != "mcns" else 0
    sampler, other = make(kind, g, k=k), make(kind, g, k=k, seed=other_seed)
    if refreshes or kind != "dmns":
        other.refresh()
    for _ in range(refreshes):
        sampler.refresh()
        sampler(g, edges)
    sampler.save(tmp_path / "state")
    if not refreshes and kind == "dmns":
        with pytest.raises(ValueError, match="^state: made before the first refresh, this sampler"):
            refreshed(kind, g, k=k).load(tmp_path / "state")
    other.load(tmp_path / "state")
    assert other.version == refreshes
    state = sampler.state_dict()
    truth = copy.deepcopy(state)
    third = make(kind, g, k=k)
    third.load_state_dict(state)
    for turn in range(3):
        found = []
        for one in (sampler, other, third):
            seed(turn)
            if turn:
                h = embed(g)
                moved = {n: x * (1 + 0.1 * turn) for n, x in h.items()} if several else h * turn
                one.refresh(moved)
            drawn = one(g, edges)
            ratios = one.log_ratio(drawn) if one.rule.tractable else None
            latents = one.generate(H) if name == "dmns" and one.version else None
            # Chains keep an older snapshot too: that of two refreshes ago is theirs alone.
            held = None if name == "mcns" and turn < 2 else one.state_dict()
            found.append((drawn, ratios, latents, held))
        assert same(found[0], found[1])
        assert same(found[0], found[2])
    assert same(state, truth)  # it was a copy, which later refreshes leave alone
    assert not same(state, sampler.state_dict())


def wide(name: str, g: Any) -> Any:
    """Refreshed with other embeddings, twice as wide, of which some are observed."""
    sampler = refreshed(name, g, normal(40, 2 * WIDTH))
    sampler.observe(torch.tensor([0]), torch.ones(1, 2 * WIDTH))
    return sampler


REFUSED: dict[str, tuple[str, Callable[[str, Any], Any], str]] = {
    "nodes": ("", lambda name, g: refreshed(name, graph(30)), "made for 30 nodes, .* has 40; load"),
    "k": ("", lambda name, g: refreshed(name, g, k=2), r"table of .*; use the same k, groups, uni"),
    "groups": ("dynamic dmns", lambda name, g: refreshed(name, g, groups=1), "table of .*groups"),
    "share": (
        "dmns",
        lambda name, g: refreshed(name, g, uniform_share=0.0),
        "table of .*uniform_s",
    ),
    "width": ("", wide, "made for embeddings of width 12, this sampler's encoder gives 6; load it"),
    "class": (
        "",
        lambda name, g: refreshed("mcns" if name == "dynamic" else "dynamic", g),
        "made by .*, this is a .*; load it into a sampler of",
    ),
    "hidden": (
        "adversarial",
        lambda name, g: refreshed(name, g, hidden=5),
        "made with another hidden width",
    ),
    "schedule": (
        "dmns",
        lambda name, g: refreshed(name, g, schedule=NoiseSchedule.linear(60)),
        "made with another schedule, predictor or space, or other levels; construct",
    ),
    "predictor": (
        "dmns",
        lambda name, g: refreshed(name, g, predictor=FiLMPredictor(WIDTH, layers=3)),
        "made with another schedule, predictor",
    ),
    "space": (
        "dmns",
        lambda name, g: refreshed(name, g, compact_width=2),
        "made with another schedule",
    ),
    "levels": (
        "dmns",
        lambda name, g: refreshed(name, g, levels=(0.1, 0.2, 0.3, 0.4)),
        "made with .* or other levels",
    ),
}


@pytest.mark.parametrize("refreshed_before", [False, True])
@pytest.mark.parametrize(
    ("name", "why"),
    [(name, why) for why, (of, _, _) in REFUSED.items() for name in of.split() or FOLLOWING],
)
def test_a_refused_state_changes_nothing(name: str, why: str, refreshed_before: bool) -> None:
    _, donor, message = REFUSED[why]
    g = graph()
    state = donor(name, g).state_dict()
    sampler, twin = make(name, g), make(name, g)
    for _ in range(2 if refreshed_before else 1):
        with pytest.raises(ValueError, match=f"^state: {message}"):
            sampler.load_state_dict(state)
        assert same(sampler.state_dict(), twin.state_dict())
        sampler.refresh()
        twin.refresh()
        assert same(sampler.state_dict(), twin.state_dict())


@pytest.mark.parametrize("name", FOLLOWING)
def test_a_loaded_state_brings_its_distribution_and_its_embeddings(name: str) -> None:
    g = graph()
    donor, sampler = refreshed(name, g), refreshed(name, g, H.flip(0))
    sampler.load_state_dict(donor.state_dict())
    if donor.rule.tractable:
        found, mine = (one.distribution().log_ratio(*g.edges()) for one in (sampler, donor))
        assert torch.equal(found, mine)
        sampler.refresh(H.flip(0))
        assert not torch.equal(sampler.distribution().log_ratio(*g.edges()), mine)
        sampler.load_state_dict(donor.state_dict())
    seen: list[Tensor] = []
    sampler.on_refresh(lambda report, h: seen.append(next(iter(h.values()))))
    sampler.observe(torch.tensor([0]), torch.ones(1, WIDTH))
    sampler.refresh()  # by what is observed, and by the state's embeddings for the other nodes
    assert torch.equal(seen[0][1:], H[1:])


# Log ratios.


@pytest.mark.parametrize("name", [*FOLLOWING, "nearest"])
def test_log_ratios_are_those_of_the_distribution(name: str) -> None:
    g = graph()
    rule = {"dmns": {"rule": Density()}, "nearest": {"rule": Nearest()}}.get(name, {})
    pool = {} if name == "mcns" else {"pool": 40}  # one pool: no noise
    sampler = make("dmns" if name == "nearest" else name, g, **rule, **pool)
    pos, drawn = g.edges(), sampler(g, EIDS)
    asks = (lambda: sampler.log_ratio(drawn), lambda: sampler.positive_log_ratio(pos))
    if not sampler.rule.tractable:
        sampler.refresh()
        for ask in (*asks, sampler.distribution):
            with pytest.raises(ValueError, match="^rule: .* has no tractable distribution.* use"):
                ask()
        return
    with pytest.raises(RuntimeError, match="^distribution: there was no refresh yet"):
        sampler.distribution()
    sampler.refresh()
    drawn = sampler(g, EIDS)
    for found, (src, dst) in ((sampler.log_ratio(drawn), drawn), (asks[1](), pos)):
        assert found.dtype == torch.float32
        assert found.shape == src.shape
        torch.testing.assert_close(found, sampler.distribution().log_ratio(src, dst))
        assert found.any()
    order = torch.randperm(360)
    ratio = sampler.log_ratio(drawn)
    assert torch.equal(sampler.log_ratio(tuple(end[order].int() for end in drawn)), ratio[order])
    # Ratios to the uniform distribution over the nodes that a query may take: 1 on average.
    for node in (0, 7, 21):
        free = (~barred(g)[node]).nonzero().squeeze(1)
        ratio = sampler.log_ratio((torch.full_like(free, node), free)).exp()
        assert float(ratio.mean()) == pytest.approx(1, abs=1e-4)
    for _, positive, negative, _ in loader(g, sampler):
        for ask, of in ((sampler.log_ratio, negative), (sampler.positive_log_ratio, positive)):
            torch.testing.assert_close(ask(of), ask(ends(of)))
    # Those of the last refresh.
    first = sampler.log_ratio(drawn)
    sampler.refresh(H.flip(0))
    assert not torch.equal(sampler.log_ratio(drawn), first)
