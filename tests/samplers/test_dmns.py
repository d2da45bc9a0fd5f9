"""`DMNSSampler`: arguments, encoders, draws, cadence, latents. The rest is in test_conformance."""

from __future__ import annotations

import math
import pickle
import types
from typing import Any

import dgl
import pytest
import torch
from shared import (
    WIDTH,
    assert_drawn_from,
    barred,
    check,
    embed,
    graph,
    loader,
    make,
    optimizer,
    pickled,
    refreshed,
    rng,
    same,
    seed,
    through_a_file,
)
from torch import Tensor, nn

from dgl_dmns.core import (
    NO_LEVEL,
    Density,
    FiLMPredictor,
    Gate,
    Hardest,
    Levels,
    MLPPredictor,
    Nearest,
    Stopwatch,
)
from dgl_dmns.samplers import DMNSSampler

EIDS = torch.arange(120)
H = embed(graph())


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": (0.5, 0.1)}, r"levels: .* strictly increasing .*, got \(0.5, 0.1\); list"),
        ({"levels": (0.5, 0.51)}, r"levels: .* of T = 50 fall on steps \(25, 25\); choose"),
        ({"pool": 0}, "pool: expected at least 1, got 0"),
        ({"learning_rate": 0}, "learning_rate: expected a positive rate .*, got 0.0; "),
        ({"fit_steps": -1}, "fit_steps: expected at least 0, got -1"),
        ({"warmup_steps": -1}, "warmup_steps: expected at least 0"),
        ({"batch_pairs": -1}, "batch_pairs: expected at least 1"),
        ({"space": "flat"}, "space: expected 'raw' or 'compact', got 'flat'"),
        ({"predictor": FiLMPredictor(9)}, "predictor: expected width 6, .* got 9"),
        (
            {"encoder": nn.Identity(), "feat": "x"},
            r"feat: the graph has no node feature 'x', only \['feat'\]; set g.ndata\['x'\], name "
            r"another one with feat=..., or pass a callable encoder",
        ),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        refreshed("dmns", graph(), **arguments)


def test_arguments() -> None:
    assert make("dmns", graph(), levels=[0.1, 0.5]).levels == Levels((0.1, 0.5))
    assert make("dmns", graph()).levels == Levels()
    assert make("dmns", graph(), k=5, pool=5).k == 5
    assert make("dmns", graph(), feat="x").version == 0  # a callable brings its own features
    assert refreshed("dmns", graph(), learning_rate=0.002).model.optimizer.param_groups[0][
        "lr"
    ] == (0.002)
    with pytest.raises(TypeError, match=r"^predictor: .* got MLPPredictor; use rule=Nearest\(\)"):
        make("dmns", graph(), predictor=MLPPredictor(WIDTH))
    text = "DMNSSampler(k=3, rule=Blend(score_share=0.8, edge_ratio=None), version=0)"
    assert repr(make("dmns", graph())) == text


# The encoder.


class Encoder(nn.Module):
    """A linear encoder with dropout, and a frozen part that stays in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(5, WIDTH), nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(WIDTH).eval()
        self.fail = False
        self.seen: list[tuple[bool, bool, bool]] = []

    def forward(self, g: Any, x: Tensor) -> Tensor:
        self.seen.append((self.training, self.dropout.training, torch.is_grad_enabled()))
        if self.fail:
            raise RuntimeError("the encoder failed")
        output: Tensor = self.frozen(self.dropout(self.linear(x)))
        return output


def test_a_module_is_called_in_eval_mode_without_gradient_and_its_modes_come_back() -> None:
    encoder = Encoder()
    sampler = refreshed("dmns", graph(), encoder)
    assert encoder.seen == [(False, False, False)]
    modes = [True, True, True, False]  # the frozen part was in eval mode before
    assert [module.training for module in encoder.modules()] == modes
    assert all(p.grad is None for p in encoder.parameters())
    encoder.fail = True
    with pytest.raises(RuntimeError, match="the encoder failed"):
        sampler.refresh()
    assert [module.training for module in encoder.modules()] == modes
    assert torch.is_grad_enabled()
    encoder.eval().fail = False
    sampler.refresh()
    assert not any(module.training for module in encoder.modules())


def test_a_module_gets_the_named_feature() -> None:
    g = graph()
    g.ndata["other"] = g.ndata["feat"] + 1
    encoder = Encoder().eval()
    tables = {}
    for feat in ("feat", "other"):
        hard = {"rule": Hardest(), "pool": 40}
        tables[feat] = refreshed("dmns", g, encoder, feat=feat, **hard).table.cells
        h = encoder(g, g.ndata[feat]).detach()
        assert torch.equal(tables[feat], refreshed("dmns", g, h, **hard).table.cells)
    assert not torch.equal(tables["feat"], tables["other"])


def test_a_callable_may_take_the_graph() -> None:
    g = graph()
    calls: list[Any] = []

    def encode(graph: Any) -> Tensor:
        calls.append(graph)
        assert not torch.is_grad_enabled()
        return H

    def encode_at(scale: float = 1.0) -> Tensor:  # an optional argument is not for the graph
        calls.append(scale)
        return H

    refreshed("dmns", g, encode)
    refreshed("dmns", g, encode_at)
    assert calls == [g, 1.0]


def test_pickling_carries_neither_encoder_nor_graph_nor_generator() -> None:
    class Unpicklable(FiLMPredictor):  # a local class
        pass

    encoder = Encoder()
    encoder.ballast = nn.Parameter(torch.zeros(1_000_000))  # 4 MB
    g = graph()
    sampler = refreshed(
        "dmns",
        g,
        encoder,
        scorer=lambda a, b: (a * b).sum(-1),
        predictor=Unpicklable(WIDTH),
        generator=rng(18),
    )
    data = pickle.dumps(sampler)
    assert len(data) < 200_000
    results = []
    for _ in range(2):
        seed()
        results.append(pickle.loads(data)(g, EIDS))
    assert same(*results)
    assert sampler.refresh().version == 2  # the original is left as it was


# What is drawn.


@pytest.mark.parametrize("rule", [Gate(), Density(), Nearest()])
def test_a_uniform_share_of_one_is_uniform(rule: Any) -> None:
    """With hard candidates to be had in the table."""
    g = graph()
    sampler = make("dmns", g, k=2, rule=rule, uniform_share=1.0)
    assert sampler.refresh().table.level_score.keys() != {"no level"}
    for node in (0, 7, 21):
        drawn = sampler.draw(torch.full((2000,), node))
        assert_drawn_from(drawn.ids, (~barred(g)[node]).float(), least=1e-4)
        assert bool((drawn.level == NO_LEVEL).all())
    if rule.tractable:
        assert not sampler.log_ratio((torch.arange(40), torch.arange(40).flip(0))).any()


def row(sampler: DMNSSampler, query: int) -> list[list[int]]:
    """The groups of a query in the table."""
    start, end = sampler.table.start[query : query + 2].tolist()
    groups: list[list[int]] = sampler.table.current().ids[start:end].tolist()
    return groups


def test_draws_are_groups_of_the_table() -> None:
    g = graph()
    sampler = refreshed("dmns", g, uniform_share=0.0)
    src, dst = sampler(g, EIDS)
    for query, group in zip(src[::3].tolist(), dst.view(-1, 3).tolist()):
        assert group in row(sampler, query)
    assert sampler.draw(torch.tensor([5, 5])).ids.shape == (2, 3)


def test_a_share_of_the_draws_is_uniform_and_fresh() -> None:
    g = graph()
    sampler = make("dmns", g, uniform_share=0.5)
    report = sampler.refresh()
    assert set(report.table.level_score) == {"0", "1", "2", "3", "no level"}
    assert report.fit.pairs == 4 * 64
    assert 0 < report.table.filtered < 0.2
    assert sampler.table.k == 2  # of 3 negatives, one and a half are hard
    drawn = refreshed("dmns", g, uniform_share=0.5, rule=Density()).draw(torch.full((2000,), 7))
    hard = drawn.level != NO_LEVEL
    assert float(hard.float().mean()) == pytest.approx(0.5, abs=0.02)
    assert bool(hard[:, 0].all())  # the hard ones come first
    assert_drawn_from(drawn.ids[:, 2], (~barred(g)[7]).float(), least=1e-4)


# Cadence.


@pytest.mark.parametrize("ranks", [1, 4])
def test_attach_refreshes_once_a_pass_by_default(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass is one in batches of 1024 on each rank; here, it ends in the third step."""
    sampler = make("dynamic", graph(400, 2560 * ranks))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: ranks > 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)
    one = optimizer()
    sampler.attach(one)
    versions = []
    for _ in range(7):
        one.step()
        versions.append(sampler.version)
    assert versions == [1, 1, 2, 2, 2, 3, 3]


def test_an_attached_refresh_sees_the_weights_after_the_step() -> None:
    weight = nn.Parameter(torch.ones(1))
    seen: list[float] = []

    def encode() -> Tensor:
        seen.append(float(weight))
        return H * weight

    one = torch.optim.SGD([weight], lr=0.25)
    make("dmns", graph(), encode).attach(one, every=1)
    weight.sum().backward()
    one.step()
    assert seen == [1.0, 0.75]


def test_refreshes_within_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on in the encoder (3 seconds) and in each step (2 seconds)."""
    now = 0.0
    monkeypatch.setattr(Stopwatch, "clock", lambda: now)

    def encode() -> Tensor:
        nonlocal now
        now += 3.0
        return H

    one, sampler = optimizer(), make("dmns", graph(), encode)
    sampler.attach(one, share=0.25)
    versions = []
    for _ in range(16):
        now += 2.0
        one.step()
        versions.append(sampler.version)
    # 3 seconds are a quarter of 12: 9 more have to pass, which are 5 steps.
    assert versions == [1] * 4 + [2] * 5 + [3] * 5 + [4] * 2
    assert 3 * 3.0 / now <= 0.25


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({"every": 0}, "every: expected at least 1 optimizer step, got 0"),
        ({"every": -1}, "every: expected at least 1 optimizer step, got -1"),
        *(({"share": s}, f"share: expected .* got {s}") for s in (0.0, 1.0, -0.1, math.nan)),
        ({"every": 5, "share": 0.1}, "every, share: expected one of them, got every=5 and"),
    ],
)
def test_cadences_out_of_range(when: dict[str, Any], message: str) -> None:
    sampler = make("dmns", graph())
    with pytest.raises(ValueError, match=f"^{message}"):
        sampler.attach(optimizer(), **when)
    assert sampler.version == 0


def lasting(groups: int) -> tuple[Any, DMNSSampler]:
    """A graph of distinct edges, and a sampler with rows for several passes, none uniform."""
    g = dgl.to_simple(graph())
    sampler = make("dmns", g, k=1, uniform_share=0.0, groups=groups)
    sampler.attach(optimizer(), every=7)
    return g, sampler


def places(g: Any, sampler: DMNSSampler) -> Tensor:
    """Places of the groups that a pass over the edges hands out, shape [E].

    In the table, the place of each group becomes its only candidate.
    """
    sampler.table.cells.copy_(torch.arange(sampler.table.groups).view(1, -1, 1))
    eids = torch.randperm(g.num_edges())
    found = torch.empty_like(eids)
    for some in eids.split(16):
        found[some] = sampler(g, some)[1]
    return found


def test_rows_last_for_the_passes_between_two_refreshes_also_by_a_state() -> None:
    g, sampler = lasting(groups=64)
    table = sampler.table
    passes = 7  # a step takes all of so few edges
    assert torch.equal(table.sizes(), (sampler.known.degrees() * passes).clamp(min=1))
    sampler(g, torch.arange(50))  # some edges have asked once
    other = make("dmns", g, k=1, uniform_share=0.0, groups=64, seed=9)
    other.load_state_dict(through_a_file(sampler.state_dict()))
    # No group is handed out twice, and then each edge begins with its first one again.
    seen = torch.stack([places(g, sampler) for _ in range(passes)])
    assert seen.unique().numel() == seen.numel()
    src = g.edges()[0].expand_as(seen)
    assert bool(((table.start[src] <= seen) & (seen < table.start[src + 1])).all())
    assert torch.equal(places(g, sampler), seen[0])
    assert torch.equal(places(g, other), seen[0])


def test_shortened_rows_hand_out_each_group_about_as_often() -> None:
    g, sampler = lasting(groups=4)
    start, sizes = sampler.table.start, sampler.table.sizes()
    assert sampler.table.groups <= 4 * 40
    seen = torch.stack([places(g, sampler) for _ in range(7)])
    counts = torch.bincount(seen.flatten(), minlength=sampler.table.groups)
    for node in range(40):
        mine = counts[start[node] : start[node + 1]]
        assert int(mine.max() - mine.min()) <= 1
    wanted = sampler.known.degrees() * 7
    part = ((sizes - 1).double() / (wanted - 1))[wanted > 1]
    assert float(part.max() - part.min()) < 1 / float((wanted[wanted > 1] - 1).min())


# Sources.


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize("idtype", [torch.int64, torch.int32])
def test_uniform_sources(idtype: torch.dtype, ready: bool) -> None:
    g = dgl.graph((torch.randint(0, 6, (80,)), torch.randint(0, 30, (80,))), num_nodes=30)
    g = g.astype(idtype)  # sources of edges are few
    sampler = make("dmns", g, source="uniform", rule=Density(), groups=4)
    if ready:
        sampler.refresh()
    src, dst = (torch.cat(side) for side in zip(*(sampler(g, g.edges("eid")) for _ in range(20))))
    assert src.dtype == dst.dtype == idtype
    assert src.shape == dst.shape == (20 * 80 * 3,)
    assert_drawn_from(src.long(), torch.ones(30), least=1e-4)
    check(g, src, dst)
    assert sampler(g, g.edges("eid")[:0])[0].shape == (0,)
    if not ready:
        return
    # Half of the destinations are uniform, the others come from the source's row.
    held = float(sampler.table.holds(src.long(), dst.long()).float().mean())
    rows = sampler.table.current().ids.view(30, -1).tolist()
    own = torch.tensor([len(set(ids)) for ids in rows]) / sampler.known.admissible_count(
        torch.arange(30)
    )
    assert held == pytest.approx(0.5 + 0.5 * float(own.mean()), abs=0.03)
    assert bool((sampler.log_ratio((src, dst)) != 0).all())
    for _, positive, negative, _ in loader(g, sampler, 2):
        assert negative.num_edges() == 3 * positive.num_edges()
        assert int(negative.ndata[dgl.NID][negative.edges()[0].long()].max()) > 5
        assert sampler.log_ratio(negative).shape == (negative.num_edges(),)


# Latent negatives, the paper's own way.


def test_latents_are_those_of_the_model_by_the_samplers_generator_or_a_given_one() -> None:
    sampler = refreshed("dmns", graph())
    latents = sampler.generate(H, generator=rng(12))
    assert torch.equal(latents, sampler.model.generate(H, generator=rng(12)))
    assert not torch.equal(sampler.generate(H), sampler.generate(H))


def test_latents_of_any_width_dtype_and_predictor() -> None:
    with pytest.raises(RuntimeError, match=r"^generate: no generator is fitted yet; call refresh"):
        make("dmns", graph()).generate(H)
    sampler = refreshed("dmns", graph(), predictor=MLPPredictor(WIDTH), rule=Nearest())
    assert sampler.generate(H[:7]).shape == (4, 7, WIDTH)
    assert sampler.generate(H.half()).dtype == torch.float16
    for shape in ((5, 7), (6,), (1, 5, 6)):
        with pytest.raises(ValueError, match=r"^h_query: expected shape \[B, 6\], got \("):
            sampler.generate(torch.zeros(shape))


def test_log_ratios_of_positives_of_a_minibatch_are_refused() -> None:
    sampler = refreshed("dmns", graph())
    with pytest.raises(TypeError, match="positives: a GraphBolt minibatch holds positives and"):
        sampler.positive_log_ratio(types.SimpleNamespace(seeds=None))
    assert pickled(sampler).version == 1
