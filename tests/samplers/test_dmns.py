"""`DMNSSampler`: arguments, refreshes, state, latents, log ratios, and life inside DGL's loader."""

from __future__ import annotations

import copy
import doctest
import io
import math
import pickle
import types
from typing import Any

import dgl
import pytest
import torch
from dgl.dataloading import DataLoader, NeighborSampler, as_edge_prediction_sampler
from scipy.stats import chisquare
from states import same
from torch import Tensor, nn

import dgl_dmns.samplers.dmns
from dgl_dmns.core import (
    NO_LEVEL,
    Density,
    FiLMPredictor,
    Gate,
    Hardest,
    KnownEdges,
    Levels,
    MLPPredictor,
    Nearest,
    NoiseSchedule,
    Stopwatch,
)
from dgl_dmns.samplers import DMNSSampler, cadence

NODES = 40
EDGES = 120
WIDTH = 6
SMALL: dict[str, Any] = {"warmup_steps": 5, "fit_steps": 3, "batch_pairs": 64, "groups": 4}


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=rng(seed))


def random_graph(nodes: int = NODES, edges: int = EDGES) -> Any:
    src = torch.randint(0, nodes, (edges,), generator=rng(1))
    dst = torch.randint(0, nodes, (edges,), generator=rng(2))
    g = dgl.graph((src, dst), num_nodes=nodes)
    g.ndata["feat"] = normal(nodes, 5, seed=3)
    return g


H = normal(NODES, WIDTH, seed=4)


def make(g: Any = None, encoder: Any = None, k: Any = 3, **arguments: Any) -> DMNSSampler:
    g = random_graph() if g is None else g
    return DMNSSampler(g, (lambda: H) if encoder is None else encoder, k, **{**SMALL, **arguments})


def known_edges(g: Any) -> KnownEdges:
    src, dst = g.edges()
    return KnownEdges(src, dst, g.num_nodes())


class Encoder(nn.Module):
    """A linear encoder with dropout, and a frozen part that stays in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, WIDTH)
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(WIDTH)
        self.frozen.eval()
        self.fail = False
        self.seen: list[tuple[bool, bool, bool]] = []

    def forward(self, g: Any, x: Tensor) -> Tensor:
        self.seen.append((self.training, self.dropout.training, torch.is_grad_enabled()))
        if self.fail:
            raise RuntimeError("the encoder failed")
        output: Tensor = self.frozen(self.dropout(self.linear(x)))
        return output


# Arguments: the message names the argument, what was expected, what came, and what to do.


@pytest.mark.parametrize("k", [0, -3])
def test_k_below_one(k: int) -> None:
    with pytest.raises(ValueError, match=f"^k: expected at least 1 negative per edge, got {k}"):
        make(k=k)


@pytest.mark.parametrize("k", [2.0, "2", True, None])
def test_k_is_no_integer(k: Any) -> None:
    with pytest.raises(TypeError, match="^k: expected an integer, the negatives per edge, got"):
        make(k=k)


ADVICE = "the encoder has to return one finite row per node of the sampler's graph"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (H.flatten(), rf"expected shape \[40, D\], got \(240,\); {ADVICE}"),
        (H[:-1], rf"expected shape \[40, D\], got \(39, 6\); {ADVICE}"),
        (H[:, :0], rf"expected shape \[40, D\], got \(40, 0\); {ADVICE}"),
        (H.unsqueeze(0), rf"expected shape \[40, D\], got \(1, 40, 6\); {ADVICE}"),
        (H.long(), rf"expected floating point embeddings, got torch.int64; {ADVICE}"),
        (H.numpy(), rf"expected a tensor \[N, D\], got ndarray; {ADVICE}"),
        ({"user": H}, rf"expected a tensor \[N, D\], got dict; {ADVICE}"),
        (H.clone().index_fill_(0, torch.tensor([1, 7]), math.nan), "NaN or infinity in 2 of 40"),
        (H.clone().index_fill_(0, torch.tensor([1]), math.inf), "NaN or infinity in 1 of 40"),
    ],
)
def test_output_of_the_encoder(output: Any, message: str) -> None:
    sampler = make(encoder=lambda: output)
    with pytest.raises(ValueError, match=f"^encoder: {message}"):
        sampler.refresh()
    assert sampler.version == 0
    assert sampler.model is None


def test_embeddings_that_have_diverged_leave_the_last_table_in_use() -> None:
    g = random_graph()
    sampler = make(g, generator=rng(1))
    sampler.refresh()
    before = sampler.state_dict()
    with pytest.raises(ValueError, match="lower the learning rate or clip .*the last table stays"):
        sampler.refresh(H * math.inf)
    assert same(before, sampler.state_dict())
    _, dst = sampler(g, torch.arange(EDGES))
    src = g.edges()[0].repeat_interleave(3)
    assert not bool(known_edges(g).contains(src, dst).any())


def test_the_width_may_not_change() -> None:
    sampler = make()
    sampler.refresh()
    message = "^encoder: expected embeddings of width 6, as at the first refresh, got 5; make a new"
    with pytest.raises(ValueError, match=message):
        sampler.refresh(H[:, :5])
    assert sampler.version == 1


def test_an_encoder_that_cannot_be_called() -> None:
    with pytest.raises(TypeError, match=r"^encoder: expected an nn.Module or a callable .* Tensor"):
        make(encoder=H)


def test_a_graph_without_edges() -> None:
    with pytest.raises(ValueError, match="^g: expected at least one edge, the known positives"):
        make(dgl.graph(([], []), num_nodes=4))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((0.0, 0.5), r"levels: expected one or more fractions in \(0, 1\], got \(0.0, 0.5\); a le"),
        ((0.5, 1.2), r"levels: expected one or more fractions in \(0, 1\], got \(0.5, 1.2\)"),
        ((), r"levels: expected one or more fractions in \(0, 1\], got \(\)"),
        ((0.5, 0.1), r"levels: expected strictly increasing fractions, got \(0.5, 0.1\); list the"),
        ((0.5, 0.5), r"levels: expected strictly increasing fractions, got \(0.5, 0.5\)"),
        ((0.5, 0.51), r"levels: fractions .* of T = 50 fall on steps \(25, 25\); choose fractions"),
    ],
)
def test_levels(levels: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make(levels=levels)
    with pytest.raises(ValueError, match=f"^{message}"):
        make(levels=Levels(levels))


def test_levels_may_be_given_as_fractions() -> None:
    assert make(levels=[0.1, 0.5]).levels == Levels((0.1, 0.5))
    assert make().levels == Levels()


def test_a_pool_smaller_than_k() -> None:
    with pytest.raises(
        ValueError, match=r"^pool: expected at least k = 5 candidates, got 4; raise"
    ):
        make(k=5, pool=4)
    assert make(k=5, pool=5).k == 5


def test_a_feature_that_is_not_there() -> None:
    message = (
        r"^feat: the graph has no node feature 'x', only \['feat'\]; set g.ndata\['x'\], name "
        r"another one with feat=..., or pass a callable encoder"
    )
    with pytest.raises(ValueError, match=message):
        make(encoder=Encoder(), feat="x")
    assert make(feat="x").version == 0  # a callable brings its own features


def test_the_learning_rate_of_the_diffusion_model() -> None:
    sampler = make(learning_rate=0.002)
    sampler.refresh()
    assert sampler.model.optimizer.param_groups[0]["lr"] == 0.002
    with pytest.raises(ValueError, match="^learning_rate: expected a positive rate .*, got 0; "):
        make(learning_rate=0)


@pytest.mark.parametrize("name", ["fit_steps", "warmup_steps", "batch_pairs"])
def test_steps(name: str) -> None:
    with pytest.raises(
        ValueError, match="^fit_steps, warmup_steps, batch_pairs: expected at least 0, 0 and 1, got"
    ):
        make(**{name: -1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"uniform_share": 1.5}, r"^uniform_share: expected a value in \[0, 1\], got 1.5"),
        ({"lam": 0}, "^lam: expected a positive exponent, got 0"),
        ({"groups": 0}, "^groups: expected at least 1, got 0"),
        ({"pool": 0}, "^pool: expected at least 1, got 0"),
    ],
)
def test_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_settings_of_the_generator_are_checked_at_the_first_refresh() -> None:
    with pytest.raises(ValueError, match="^space: expected 'raw' or 'compact', got 'flat'"):
        make(space="flat").refresh()
    with pytest.raises(ValueError, match="^predictor: expected width 6, .* got 9"):
        make(predictor=FiLMPredictor(9)).refresh()
    with pytest.raises(TypeError, match=r"^predictor: .* got MLPPredictor; use rule=Nearest\(\)"):
        make(predictor=MLPPredictor(WIDTH))


def test_edge_ids() -> None:
    g = random_graph()
    sampler = make(g)
    message = (
        r"^eids: expected edge ids in 0 \.\. 119, got {}; a negative sampler takes edge ids, use"
    )
    for bad, said in ((120, r"0 \.\. 120"), (-1, r"-1 \.\. 0")):
        with pytest.raises(ValueError, match=message.format(said)):
            sampler(g, torch.tensor([0, bad]))
    with pytest.raises(TypeError, match=r"^eids: .* torch.int64, got torch.int32; convert with"):
        sampler(g, torch.tensor([0], dtype=torch.int32))
    with pytest.raises(TypeError, match=r"^eids: .* int64 .* got torch.float32; ids are whole"):
        sampler(g, torch.tensor([0.0]))
    with pytest.raises(TypeError, match=r"^eids: .* got torch.bool .*mask.nonzero\(\)"):
        sampler(g, torch.ones(EDGES, dtype=torch.bool))


def test_a_node_without_a_true_negative_is_named_in_a_warning() -> None:
    g = dgl.graph(([1, 1, 0], [0, 2, 1]))
    with pytest.warns(UserWarning, match=r"1 node\(s\), for example 1, are linked to every other"):
        sampler = DMNSSampler(g, lambda: torch.eye(3), 2, **SMALL)
    for _ in range(2):
        assert sampler.for_queries(g, torch.tensor([1])).tolist() == [[1, 1]]
        sampler.refresh()


# The encoder.


def test_a_module_is_called_in_eval_mode_without_gradient_and_its_modes_come_back() -> None:
    encoder = Encoder()
    sampler = make(encoder=encoder)
    sampler.refresh()
    assert encoder.seen == [(False, False, False)]
    modes = [module.training for module in encoder.modules()]
    assert modes == [True, True, True, False]  # the frozen part was in eval mode before
    assert all(p.grad is None for p in encoder.parameters())
    encoder.eval()
    sampler.refresh()
    assert not any(module.training for module in encoder.modules())


def test_modes_come_back_from_an_encoder_that_fails() -> None:
    encoder = Encoder()
    encoder.fail = True
    with pytest.raises(RuntimeError, match="the encoder failed"):
        make(encoder=encoder).refresh()
    assert [module.training for module in encoder.modules()] == [True, True, True, False]
    assert torch.is_grad_enabled()


def test_a_module_gets_the_named_feature() -> None:
    g = random_graph()
    g.ndata["other"] = g.ndata["feat"] + 1
    encoder = Encoder().eval()
    seen = {}
    for feat in ("feat", "other"):
        sampler = make(g, encoder=encoder, feat=feat, rule=Hardest(), pool=NODES)
        sampler.refresh()
        seen[feat] = sampler.state_dict()["table"]["ids"]
        h = encoder(g, g.ndata[feat]).detach()
        by_hand = make(g, encoder=lambda h=h: h, rule=Hardest(), pool=NODES)
        by_hand.refresh()
        assert torch.equal(seen[feat], by_hand.state_dict()["table"]["ids"])
    assert not torch.equal(seen["feat"], seen["other"])


def test_a_callable_may_take_the_graph() -> None:
    g = random_graph()
    calls: list[Any] = []

    def encode(graph: Any) -> Tensor:
        calls.append(graph)
        assert not torch.is_grad_enabled()
        return H

    def encode_at(scale: float = 1.0) -> Tensor:  # an optional argument is not for the graph
        calls.append(scale)
        return H

    make(g, encoder=encode).refresh()
    make(g, encoder=encode_at).refresh()
    assert calls == [g, 1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_of_any_float_type(dtype: torch.dtype) -> None:
    sampler = make()
    sampler.refresh(H.to(dtype).requires_grad_())
    assert sampler.generate(H.to(dtype)).dtype == dtype


def test_a_refresh_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    sampler = make(generator=rng(1))
    sampler.refresh()
    sampler(random_graph(), torch.arange(9))
    sampler.generate(H)
    assert torch.equal(torch.random.get_rng_state(), before)


# Distributions.


def assert_uniform(seen: Tensor, allowed: list[int]) -> None:
    counts = torch.bincount(seen.flatten(), minlength=NODES)
    assert int(counts[allowed].sum()) == seen.numel()
    assert chisquare(counts[allowed].numpy()).pvalue > 1e-4


def test_before_the_first_refresh_negatives_are_uniform() -> None:
    g = random_graph()
    sampler = make(g, encoder=lambda: pytest.fail("not called"), k=5, generator=rng(5))
    known = known_edges(g)
    eid = torch.arange(4).repeat(2000)
    src, dst = sampler(g, eid)
    assert torch.equal(src, g.edges()[0][eid].repeat_interleave(5))
    for node in src.unique().tolist():
        assert_uniform(dst[src == node], known.admissible(node).tolist())
    assert sampler.version == 0
    assert bool((sampler.log_ratio((src, dst)) == 0).all())


@pytest.mark.parametrize("rule", [Gate(), Density(), Nearest()])
def test_a_uniform_share_of_one_is_uniform(rule: Any) -> None:
    """With hard candidates to be had in the table."""
    g = random_graph()
    sampler = make(g, k=2, rule=rule, uniform_share=1.0, generator=rng(6))
    assert sampler.refresh().table.level_score.keys() != {"no level"}
    known = known_edges(g)
    for node in (0, 7, 21):
        drawn = sampler.draw(torch.full((2000,), node))
        assert_uniform(drawn.ids, known.admissible(node).tolist())
        assert bool((drawn.level == NO_LEVEL).all())
    if rule.tractable:
        assert not sampler.log_ratio((torch.arange(NODES), torch.arange(NODES).flip(0))).any()


def test_the_density_finds_the_neighbours_that_are_not_linked() -> None:
    g, h, _ = communities()
    g = dgl.edge_subgraph(g, torch.randperm(720, generator=rng(20))[:360], relabel_nodes=False)
    likely = {}
    for share in (0.0, 1.0):
        sampler = DMNSSampler(g, lambda: h, 3, rule=Density(), uniform_share=share, groups=8)
        sampler.refresh()
        src, dst = sampler(g, torch.arange(360))
        likely[share] = float((dst // 12 == (src // 12 + 1) % 5).float().mean())
    # About 6 of the 53 nodes that a query may take are of its neighbours' community.
    assert likely[1.0] == pytest.approx(6 / 53, abs=0.04)
    assert likely[0.0] > 3 * likely[1.0]


def row(sampler: DMNSSampler, query: int) -> list[list[int]]:
    """The groups of a query in the table."""
    start, end = sampler.table.start[query : query + 2].tolist()
    groups: list[list[int]] = sampler.table.current().ids[start:end].tolist()
    return groups


def test_draws_are_groups_of_the_table() -> None:
    g = random_graph()
    sampler = make(g, uniform_share=0.0, generator=rng(7))
    sampler.refresh()
    src, dst = sampler(g, torch.arange(EDGES))
    assert torch.equal(src, g.edges()[0].repeat_interleave(3))
    for query, group in zip(src[::3].tolist(), dst.view(-1, 3).tolist()):
        assert group in row(sampler, query)
    assert sampler.draw(torch.tensor([5, 5])).ids.shape == (2, 3)


def test_a_share_of_the_draws_is_uniform_and_fresh() -> None:
    g = random_graph()
    sampler = make(g, uniform_share=0.5, rule=Density(), generator=rng(7))
    sampler.refresh()
    assert sampler.table.k == 2  # of 3 negatives, one and a half are hard
    src = torch.full((2000,), 7)
    drawn = sampler.draw(src)
    hard = drawn.level != NO_LEVEL
    assert float(hard.float().mean()) == pytest.approx(0.5, abs=0.02)
    assert bool(hard[:, 0].all())  # the hard ones come first
    assert set(drawn.ids[hard].tolist()) <= {u for group in row(sampler, 7) for u in group}
    assert_uniform(drawn.ids[:, 2], known_edges(g).admissible(7).tolist())


# Attaching to an optimizer.


def test_attach_refreshes_now_and_after_every_nth_step() -> None:
    encoder = Encoder()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.1)
    sampler = make(encoder=encoder)
    handle = sampler.attach(optimizer, every=3)
    assert sampler.version == 1
    versions = []
    for _ in range(7):
        optimizer.zero_grad()
        encoder(None, normal(8, 5, seed=8)).sum().backward()
        optimizer.step()
        versions.append(sampler.version)
    assert versions == [1, 1, 2, 2, 2, 3, 3]
    handle.remove()
    for _ in range(4):
        optimizer.step()
    assert sampler.version == 3
    assert encoder.training


@pytest.mark.parametrize("ranks", [1, 4])
def test_attach_refreshes_once_a_pass_where_nothing_is_said(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    sampler = make()
    edges = sampler.known.indices.numel()
    monkeypatch.setattr(cadence, "_BATCH", edges / (2.5 * ranks))  # a pass ends in the third step
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: ranks > 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)
    sampler.attach(optimizer)
    versions = []
    for _ in range(7):
        optimizer.step()
        versions.append(sampler.version)
    assert versions == [1, 1, 2, 2, 2, 3, 3]


def test_a_pass_in_batches_of_1024() -> None:
    assert [cadence.steps_of_a_pass(n) for n in (1, 1024, 1025, 10_000)] == [1, 1, 2, 10]
    assert [cadence.passes_of(n, 2048) for n in (1, 2, 3, 6)] == [1, 1, 2, 3]
    assert [cadence.passes_of(n, 100) for n in (1, 3)] == [1, 3]


def lasting(**arguments: Any) -> tuple[Any, DMNSSampler]:
    """A graph of distinct edges, and a sampler with rows for several passes, none uniform."""
    g = dgl.to_simple(random_graph())
    sampler = make(g, k=1, uniform_share=0.0, **arguments)
    sampler.attach(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), every=7)
    return g, sampler


def places(g: Any, sampler: DMNSSampler) -> Tensor:
    """Places of the groups that a pass over the edges hands out, shape [E].

    In the table, the place of each group becomes its only candidate.
    """
    sampler.table.ids.copy_(torch.arange(sampler.table.groups).view(1, -1, 1))
    eids = torch.randperm(g.num_edges())
    found = torch.empty_like(eids)
    for some in eids.split(16):
        found[some] = sampler(g, some)[1]
    return found


def test_rows_last_for_the_passes_between_two_refreshes() -> None:
    g, sampler = lasting(groups=64)
    relation = sampler.relation()
    assert relation.passes == 7  # a step takes all of so few edges
    degrees = sampler.known.degrees()
    assert torch.equal(sampler.table.sizes(), (degrees * relation.passes).clamp(min=1))
    # No group is handed out twice, and then each edge begins with its first one again.
    seen = torch.stack([places(g, sampler) for _ in range(relation.passes)])
    assert seen.unique().numel() == seen.numel()
    src = g.edges()[0].expand_as(seen)
    assert bool(
        (sampler.table.start[src] <= seen).all() & (seen < sampler.table.start[src + 1]).all()
    )
    assert torch.equal(places(g, sampler), seen[0])


def test_shortened_rows_hand_out_each_group_about_as_often() -> None:
    g, sampler = lasting(groups=4)
    passes = sampler.relation().passes
    assert sampler.table.groups <= 4 * NODES
    seen = torch.stack([places(g, sampler) for _ in range(passes)])
    degrees, sizes = sampler.known.degrees(), sampler.table.sizes()
    counts = torch.bincount(seen.flatten(), minlength=sampler.table.groups)
    for node in range(NODES):
        mine = counts[sampler.table.start[node] : sampler.table.start[node + 1]]
        assert int(mine.max() - mine.min()) <= 1
    wanted = degrees * passes
    part = ((sizes - 1).double() / (wanted - 1))[wanted > 1]
    assert float(part.max() - part.min()) < 1 / float((wanted[wanted > 1] - 1).min())


def test_an_attached_refresh_sees_the_weights_after_the_step() -> None:
    weight = nn.Parameter(torch.ones(1))
    seen: list[float] = []

    def encode() -> Tensor:
        seen.append(float(weight))
        return H * weight

    optimizer = torch.optim.SGD([weight], lr=0.25)
    make(encoder=encode).attach(optimizer, every=1)
    weight.sum().backward()
    optimizer.step()
    assert seen == [1.0, 0.75]


@pytest.mark.parametrize("every", [0, -1])
def test_every(every: int) -> None:
    sampler = make()
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(
        ValueError, match=f"^every: expected at least 1 optimizer step, got {every}"
    ):
        sampler.attach(optimizer, every=every)
    assert sampler.version == 0


def test_refreshes_within_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on in the encoder (3 seconds) and in each step (2 seconds)."""
    now = 0.0
    monkeypatch.setattr(Stopwatch, "clock", lambda: now)

    def encode() -> Tensor:
        nonlocal now
        now += 3.0
        return H

    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    sampler = make(encoder=encode)
    sampler.attach(optimizer, share=0.25)
    versions = []
    for _ in range(16):
        now += 2.0
        optimizer.step()
        versions.append(sampler.version)
    # 3 seconds are a quarter of 12: 9 more have to pass, which are 5 steps.
    assert versions == [1] * 4 + [2] * 5 + [3] * 5 + [4] * 2
    assert 3 * 3.0 / now <= 0.25


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, math.nan])
def test_a_share_out_of_range(share: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match=f"^share: expected a share .* got {share}"):
        make().attach(optimizer, share=share)
    with pytest.raises(ValueError, match=r"^every, share: expected one of them, got every=5 and"):
        make().attach(optimizer, every=5, share=0.1)


def test_warmup_is_for_the_first_refresh_only() -> None:
    sampler = make(warmup_steps=7, fit_steps=2)
    lengths = []
    for _ in range(3):
        fit = sampler.refresh().fit
        assert fit is not None
        lengths.append(len(fit.losses))
    assert lengths == [7, 2, 2]


# State.


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("space", ["compact", "raw"])
@pytest.mark.parametrize("carry", [through_a_file, lambda state: state], ids=["file", "memory"])
def test_a_loaded_state_goes_on_exactly(carry: Any, space: str) -> None:
    g = random_graph()
    moving = [normal(NODES, WIDTH, seed=10 + i) for i in range(5)]
    sampler = make(g, space=space, compact_width=3, generator=rng(8))
    for h in moving[:2]:
        sampler.refresh(h)
    sampler(g, torch.arange(20))
    sampler.generate(H)  # moves the sampler's random state on
    state = carry(sampler.state_dict())
    truth = copy.deepcopy(state)

    goes_on = []
    other = make(g, space=space, compact_width=3, seed=99, generator=rng(9))
    other.load_state_dict(state)
    for one in (sampler, other):
        torch.manual_seed(0)
        one._generator = rng(10)
        drawn = [one(g, torch.arange(EDGES))]
        fits = []
        for h in moving[2:]:
            fit = one.refresh(h).fit
            assert fit is not None
            fits.append(fit.losses)
            drawn.append(one(g, torch.arange(EDGES)))
        ratios = one.log_ratio(drawn[-1])
        goes_on.append((drawn, fits, ratios, one.generate(H), one.state_dict()))
    assert same(*goes_on)
    assert other.version == 5
    assert same(state, truth)  # neither of the two moved the state that was handed over
    assert not same(state["model"], other.state_dict()["model"])


def test_a_state_is_a_copy() -> None:
    sampler = make()
    sampler.refresh()
    state = sampler.state_dict()
    before = copy.deepcopy(state)
    sampler.refresh()
    assert same(state, before)
    sampler.load_state_dict(state)  # back to the version before
    assert sampler.version == 1
    assert same(sampler.state_dict(), before)


def test_a_state_from_before_the_first_refresh() -> None:
    sampler, other = make(seed=1), make(seed=1)
    other.load_state_dict(through_a_file(sampler.state_dict()))
    for one in (sampler, other):
        one.refresh()
    assert same(sampler.state_dict(), other.state_dict())
    fresh = make().state_dict()
    with pytest.raises(ValueError, match="^state: made before the first refresh, this sampler is"):
        other.load_state_dict(fresh)


def test_a_state_keeps_whose_turn_it_is() -> None:
    g, sampler = lasting(groups=64)
    sampler(g, torch.arange(g.num_edges()))
    sampler(g, torch.arange(50))  # some edges have asked twice
    other = make(g, k=1, uniform_share=0.0, groups=64, seed=9)
    other.load_state_dict(through_a_file(sampler.state_dict()))
    assert other.relation().passes == sampler.relation().passes
    for _ in range(2):
        assert torch.equal(places(g, other), places(g, sampler))


def refreshed_state(**arguments: Any) -> Any:
    sampler = make(**arguments)
    sampler.refresh()
    return sampler.state_dict()


def test_a_state_of_another_width() -> None:
    narrow = H[:, :4]
    message = (
        "^state: made for embeddings of width 4, this sampler's encoder gives 6; load it beside"
    )
    for versions in range(2):
        sampler = make()
        for _ in range(versions):
            sampler.refresh()
        with pytest.raises(ValueError, match=message):
            sampler.load_state_dict(refreshed_state(encoder=lambda: narrow))
        assert sampler.version == versions


def test_a_state_of_another_graph() -> None:
    state = refreshed_state(g=random_graph(30), encoder=lambda: H[:30])
    with pytest.raises(
        ValueError,
        match="^state: made for 30 nodes, this sampler has 40; load it into a sampler of",
    ):
        make().load_state_dict(state)


@pytest.mark.parametrize("arguments", [{"k": 1}, {"groups": 1}, {"uniform_share": 0.0}])
def test_a_state_of_another_table(arguments: dict[str, Any]) -> None:
    message = r"^state: table of \d+ groups of 2, this sampler has .*; use the same k, groups, unif"
    with pytest.raises(ValueError, match=message):
        make(**arguments).load_state_dict(refreshed_state())


@pytest.mark.parametrize(
    "arguments",
    [
        {"schedule": NoiseSchedule.linear(60)},
        {"predictor": FiLMPredictor(WIDTH, layers=3)},
        {"compact_width": 2},
    ],
    ids=["schedule", "predictor", "space"],
)
def test_a_state_of_another_generator(arguments: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError,
        match="^state: made with another schedule, predictor or space, or other levels; construct",
    ):
        make(**arguments).load_state_dict(refreshed_state())


@pytest.mark.parametrize("refreshed", [True, False])
def test_a_refused_state_changes_nothing(refreshed: bool) -> None:
    sampler, twin = (make(schedule=NoiseSchedule.linear(60)) for _ in range(2))
    for each in (sampler, twin):
        if refreshed:
            each.refresh()
    with pytest.raises(ValueError, match="^state: made with another schedule"):
        sampler.load_state_dict(refreshed_state())
    assert sampler.version == int(refreshed)
    for each in (sampler, twin):
        each.refresh()
    assert torch.equal(sampler.table.current().ids, twin.table.current().ids)


def test_a_state_of_an_encoder_that_gives_no_embeddings() -> None:
    with pytest.raises(ValueError, match=r"^encoder: expected shape \[40, D\], got \(240,\)"):
        make(encoder=lambda: H.flatten()).load_state_dict(refreshed_state())


# Latent negatives, the paper's own way.


def communities() -> tuple[Any, Tensor, Tensor]:
    """Five communities of twelve; edges lead to the next community on a circle.

    Returns the graph, embeddings of norm 7 [60, 4] and the mean of each node's neighbours [60, 4].
    """
    groups, size = 5, 12
    community = torch.arange(groups * size) // size
    angle = community * (2 * math.pi / groups)
    centre = torch.stack([angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()], dim=1)
    h = nn.functional.normalize(centre + 0.1 * normal(groups * size, 4, seed=11)) * 7
    src = torch.arange(groups * size).repeat_interleave(size)
    dst = (community[src] + 1) % groups * size + torch.arange(size).repeat(groups * size)
    means = torch.stack([h[community == c].mean(0) for c in range(groups)])
    return dgl.graph((src, dst)), h, means[(community + 1) % groups]


@pytest.fixture(scope="module")
def latent_sampler() -> DMNSSampler:
    g, h, _ = communities()
    sampler = DMNSSampler(g, lambda: h, 2, batch_pairs=256, warmup_steps=300)
    sampler.refresh()
    return sampler


def test_latents_are_hardest_first_in_the_space_of_the_embeddings(
    latent_sampler: DMNSSampler,
) -> None:
    _, h, neighbours = communities()
    latents = latent_sampler.generate(h.repeat(20, 1), generator=rng(12))
    assert latents.shape == (4, 1200, 4)
    assert not latents.requires_grad
    distance = (latents - neighbours.repeat(20, 1)).norm(dim=-1).mean(dim=1)
    assert bool((distance.diff() > 0).all())
    # In the embeddings' own scale (norm 7), and each near its own neighbours, not just any node's.
    strangers = (latents[0] - neighbours.roll(24, 0).repeat(20, 1)).norm(dim=-1).mean()
    assert float(distance[0]) < 0.5 * float(strangers)
    assert float(distance[0]) < 3.5


def test_latents_of_the_raw_space() -> None:
    g, h, neighbours = communities()
    sampler = DMNSSampler(
        g, lambda: h / 7, 2, space="raw", batch_pairs=256, warmup_steps=300, levels=(0.1, 0.5)
    )
    sampler.refresh()
    latents = sampler.generate((h / 7).repeat(20, 1), generator=rng(12))
    assert latents.shape == (2, 1200, 4)
    near, far = (latents - (neighbours / 7).repeat(20, 1)).norm(dim=-1).mean(dim=1).tolist()
    assert near < far
    assert near < 0.8


def test_latents_follow_the_generator_given(latent_sampler: DMNSSampler) -> None:
    _, h, _ = communities()
    first, again = (latent_sampler.generate(h, generator=rng(13)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(latent_sampler.generate(h), latent_sampler.generate(h))
    grad = h.clone().requires_grad_()
    latent_sampler.generate(grad)
    assert grad.grad is None


def test_latents_of_a_predictor_that_is_not_affine() -> None:
    sampler = make(predictor=MLPPredictor(WIDTH), rule=Nearest())
    sampler.refresh()
    assert sampler.generate(H[:7]).shape == (4, 7, WIDTH)


def test_generate_before_the_first_refresh() -> None:
    with pytest.raises(RuntimeError, match=r"^generate: no generator is fitted yet; call refresh"):
        make().generate(H)


@pytest.mark.parametrize("shape", [(5, 7), (6,), (1, 5, 6)])
def test_generate_for_another_width(shape: tuple[int, ...]) -> None:
    sampler = make()
    sampler.refresh()
    with pytest.raises(ValueError, match=r"^h_query: expected shape \[B, 6\], got \("):
        sampler.generate(torch.zeros(shape))


# Log ratios.


def test_log_ratios_are_those_of_the_distribution() -> None:
    g = random_graph()
    sampler = make(g, rule=Density(), uniform_share=0.2, pool=NODES)  # one pool: no noise
    sampler.refresh()
    src, dst = sampler(g, torch.arange(EDGES))
    found = sampler.log_ratio((src, dst))
    assert found.dtype == torch.float32
    assert float(found.min()) > math.log(0.2)
    assert float(found.std()) > 0.1
    order = torch.randperm(len(src), generator=rng(14))
    assert torch.equal(sampler.log_ratio((src[order], dst[order])), found[order])
    assert torch.equal(sampler.log_ratio((src.int(), dst.int())), found)
    # Ratios to the uniform distribution over the nodes that a query may take: 1 on average.
    known = known_edges(g)
    for node in (0, 7, 21):
        free = known.admissible(node)
        ratio = sampler.log_ratio((torch.full_like(free, node), free)).exp()
        assert float(ratio.mean()) == pytest.approx(1, abs=1e-4)
    with pytest.warns(UserWarning, match="are known edges"):
        sampler.log_ratio(g.edges())


def test_log_ratios_are_those_of_the_last_refresh_or_state() -> None:
    sampler = make()
    pairs = torch.arange(20), torch.arange(20, 40)
    assert not sampler.log_ratio(pairs).any()  # uniform as yet
    sampler.refresh()
    first, state = sampler.log_ratio(pairs), through_a_file(sampler.state_dict())
    sampler.refresh(H.flip(0))
    assert not torch.equal(sampler.log_ratio(pairs), first)
    sampler.load_state_dict(state)
    assert torch.equal(sampler.log_ratio(pairs), first)


def test_positives_have_log_ratios_under_the_distribution_of_the_negatives() -> None:
    g = random_graph()
    sampler = make(g, rule=Density(), uniform_share=0.2, pool=NODES)  # one pool: no noise
    sampler.refresh()
    src, dst = g.edges()
    found = sampler.positive_log_ratio((src, dst))
    assert found.shape == (EDGES,)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, sampler.distribution().log_ratio(src, dst))
    assert float(found.std()) > 0.1
    for _, positive, _, _ in loader(g, sampler, 0):
        mine = sampler.positive_log_ratio(positive)
        theirs = sampler.positive_log_ratio(global_pairs(positive))
        torch.testing.assert_close(mine, theirs)


def test_densities_spread_over_an_effective_size() -> None:
    """A raw space of 64 directions peaks; the exponent falls as far as the size asks for."""
    h = torch.randn(40, 64, generator=torch.Generator().manual_seed(5))
    arguments: dict[str, Any] = {"space": "raw", "pool": 40, "uniform_share": 0.0, "k": 3}
    arguments["rule"] = Density()
    peaked = make(encoder=lambda: h, **arguments)
    peaked.refresh()
    sampler = make(encoder=lambda: h, effective_size=10, **arguments)
    fit = sampler.refresh().fit
    assert fit is not None
    assert 0 < fit.tempering < 1

    def size(made: DMNSSampler) -> float:
        """Of the mixture of levels, whose parts spread over 10 of 40 nodes."""
        src = torch.arange(40).repeat_interleave(40)
        dst = torch.arange(40).repeat(40)
        share = made.distribution().log_ratio(src, dst).exp().view(40, 40)
        share /= share.sum(1, keepdim=True)
        return float((1 / share.square().sum(1)).mean())

    assert size(peaked) < 8 < 10 < size(sampler)
    # The same exponent, given by hand, is the same distribution.
    by_hand = make(encoder=lambda: h, **{**arguments, "lam": fit.tempering})
    by_hand.refresh()
    pairs = torch.arange(20), torch.arange(20, 40)
    ratios = [made.distribution().log_ratio(*pairs) for made in (sampler, by_hand, peaked)]
    assert torch.allclose(ratios[0], ratios[1], atol=1e-4)
    assert not torch.allclose(ratios[0], ratios[2], atol=1e-1)
    levels = [
        made.negatives_by_level(pairs[0], 5, generator=torch.Generator().manual_seed(1))
        for made in (sampler, by_hand, peaked)
    ]
    assert torch.equal(levels[0], levels[1])
    assert not torch.equal(levels[0], levels[2])
    # It goes with the state.
    other = make(encoder=lambda: h, effective_size=10, **arguments)
    other.load_state_dict(sampler.state_dict())
    assert other.model is not None
    assert other.model.tempering == fit.tempering


def test_an_effective_size_that_is_reached_changes_nothing() -> None:
    plain, sized = make(rule=Density()), make(rule=Density(), effective_size=1.01)
    fit = sized.refresh().fit
    plain.refresh()
    assert fit is not None
    assert fit.tempering == 1
    pairs = torch.arange(20), torch.arange(20, 40)
    one, other = (made.distribution().log_ratio(*pairs) for made in (plain, sized))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("size", [1, 0.5, 16, math.nan])
def test_an_effective_size_out_of_range(size: float) -> None:
    with pytest.raises(ValueError, match=f"^effective_size: .* less than pool = 16 .*, got {size}"):
        make(effective_size=size, pool=16)


def test_an_effective_size_needs_densities() -> None:
    with pytest.raises(ValueError, match=r"^effective_size: rule=Nearest.* draws no candidates"):
        make(effective_size=4, rule=Nearest())


def test_the_distribution_needs_a_refresh_and_the_original() -> None:
    sampler = make()
    with pytest.raises(RuntimeError, match="^distribution: there was no refresh yet"):
        sampler.distribution()
    sampler.refresh()
    assert sampler.distribution().rule == sampler.rule
    with pytest.raises(RuntimeError, match="^distribution: this is a copy"):
        pickle.loads(pickle.dumps(sampler)).distribution()
    minibatch = types.SimpleNamespace(seeds=None)
    with pytest.raises(TypeError, match="positives: a GraphBolt minibatch holds positives and"):
        sampler.positive_log_ratio(minibatch)


@pytest.mark.parametrize("rule", [Nearest(), Hardest()])
def test_a_rule_without_log_ratios(rule: Any) -> None:
    sampler = make(rule=rule)
    sampler.refresh()
    message = f"^rule: {type(rule).__name__} has no tractable distribution, .* use a sampler with"
    with pytest.raises(ValueError, match=message):
        sampler.log_ratio((torch.tensor([0]), torch.tensor([1])))
    with pytest.raises(ValueError, match=f"^rule: {type(rule).__name__} has no tractable"):
        sampler.positive_log_ratio((torch.tensor([0]), torch.tensor([1])))


def loader(g: Any, sampler: Any, workers: int, **arguments: Any) -> DataLoader:
    return DataLoader(
        g,
        torch.arange(g.num_edges()),
        as_edge_prediction_sampler(NeighborSampler([3]), negative_sampler=sampler),
        batch_size=32,
        shuffle=True,
        num_workers=workers,
        **arguments,
    )


def global_pairs(graph: Any) -> tuple[Tensor, Tensor]:
    src, dst = graph.edges()
    ids = graph.ndata[dgl.NID]
    return ids[src], ids[dst]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("idtype", [torch.int64, torch.int32])
def test_log_ratios_of_a_negative_graph_are_aligned(workers: int, idtype: torch.dtype) -> None:
    g = random_graph().astype(idtype)
    eids = torch.arange(EDGES, dtype=idtype)
    sampler = make(g, rule=Density(), uniform_share=0.0)
    sampler.refresh()
    known = known_edges(g)
    edges = 0
    batches = DataLoader(
        g,
        eids,
        as_edge_prediction_sampler(NeighborSampler([3]), negative_sampler=sampler),
        batch_size=32,
        shuffle=True,
        num_workers=workers,
    )
    for _, positive, negative, _ in batches:
        edges += positive.num_edges()
        assert negative.num_edges() == 3 * positive.num_edges()
        src, dst = (ids.long() for ids in global_pairs(negative))
        assert torch.equal(src, global_pairs(positive)[0].long().repeat_interleave(3))
        assert not bool(known.contains(src, dst).any())
        assert bool(sampler.table.holds(src, dst).all())
        expected = sampler.distribution().log_ratio(src, dst)
        assert torch.equal(sampler.log_ratio(negative), expected)
    assert edges == EDGES


# Workers, copies, id types.


@pytest.mark.parametrize("persistent", [True, False])
def test_a_refresh_in_the_main_process_reaches_workers(persistent: bool) -> None:
    """The hardest node is the one that stands out; a refresh makes it another one."""
    g = random_graph()
    stars = torch.tensor([3, 30])
    known = known_edges(g)
    sampler = make(g, k=1, rule=Hardest(), pool=NODES, uniform_share=0.0)
    batches = loader(g, sampler, 2, persistent_workers=persistent)

    def epoch() -> tuple[Tensor, Tensor]:
        pairs = [global_pairs(negative) for _, _, negative, _ in batches]
        return torch.cat([src for src, _ in pairs]), torch.cat([dst for _, dst in pairs])

    src, dst = epoch()
    assert len(dst.unique()) > 10  # uniform as yet
    for version, star in enumerate(stars, start=1):
        h = torch.ones(NODES, 1)
        h[star] = 9
        sampler.refresh(h)
        assert sampler.version == version
        src, dst = epoch()
        free = ~known.contains(src, star.expand_as(src))
        assert int(free.sum()) > 80
        assert dst[free].unique().tolist() == [int(star)]


def test_workers_draw_differently_from_each_other_and_in_each_epoch() -> None:
    g = dgl.graph(([0] * 64, [1] * 64), num_nodes=500)
    h = normal(500, 2, seed=16)
    sampler = make(g, encoder=lambda: h, k=1, groups=64, generator=rng(17))
    sampler.refresh()
    batches = DataLoader(
        g,
        torch.arange(64),
        as_edge_prediction_sampler(NeighborSampler([1]), negative_sampler=sampler),
        batch_size=32,
        num_workers=2,
    )
    seen = [tuple(global_pairs(n)[1].tolist()) for _ in range(2) for _, _, n, _ in batches]
    assert len(set(seen)) == 4


def test_int32_graphs() -> None:
    g = random_graph().int()
    sampler = make(g)
    for _ in range(2):
        src, dst = sampler(g, torch.arange(EDGES, dtype=torch.int32))
        assert src.dtype == dst.dtype == torch.int32
        assert torch.equal(src, g.edges()[0].repeat_interleave(3))
        assert not bool(known_edges(g).contains(src, dst).any())
        queries = sampler.for_queries(g, torch.arange(5, dtype=torch.int32))
        assert queries.dtype == torch.int32
        assert queries.shape == (5, 3)
        with pytest.raises(TypeError, match=r"^eids: .* torch.int32, got torch.int64; convert"):
            sampler(g, torch.arange(5))
        sampler.refresh()


def test_pickling_carries_neither_encoder_nor_graph_nor_generator() -> None:
    class Unpicklable(FiLMPredictor):  # a local class
        pass

    class Huge(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.ballast = nn.Parameter(torch.zeros(1_000_000))

    g = random_graph()
    sampler = make(
        g,
        encoder=Huge(),
        scorer=lambda a, b: (a * b).sum(-1),
        predictor=Unpicklable(WIDTH),
        generator=rng(18),
    )
    sampler.refresh()
    data = pickle.dumps(sampler)
    assert len(data) < 200_000  # 4 MB are in the encoder alone
    other = pickle.loads(data)
    assert other.version == 1
    drawn = []
    sampler._generator = None
    for one in (sampler, other):
        torch.manual_seed(19)
        drawn.append(one(g, torch.arange(EDGES)))
    assert same(*drawn)
    with pytest.raises(RuntimeError, match="^distribution: this is a copy of a sampler"):
        other.log_ratio(drawn[0])
    assert repr(other) == repr(sampler)
    # The original is left as it was.
    assert sampler.refresh().version == 2


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_a_copy_only_looks_up(duplicate: Any) -> None:
    sampler = make()
    sampler.refresh()
    state = sampler.state_dict()
    other = duplicate(sampler)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    calls = {
        "refresh": other.refresh,
        "state_dict": other.state_dict,
        "load_state_dict": lambda: other.load_state_dict(state),
        "generate": lambda: other.generate(H),
    }
    for name, call in calls.items():
        with pytest.raises(
            RuntimeError, match=f"^{name}: this is a copy of a sampler .* make a new"
        ):
            call()
    with pytest.raises(RuntimeError, match="^refresh: this is a copy of a sampler"):
        other.attach(optimizer)


# Reports and words.


def test_the_report_of_a_refresh() -> None:
    sampler = make(uniform_share=0.3)
    report = sampler.refresh()
    assert report.version == 1
    assert report is sampler.report
    assert report.fit is not None
    assert len(report.fit.losses) == 5
    assert report.fit.pairs == 5 * 64
    assert set(report.seconds_by_part) == {"embed", "fit", "table"}
    assert 0 < report.table.filtered < 0.2
    assert report.table.fallback == 0
    assert set(report.table.level_score) == {"0", "1", "2", "3", "no level"}
    levels = sampler.draw(torch.arange(NODES)).level.unique().tolist()
    assert levels == [0, 1, 2, 3, NO_LEVEL]


def test_repr() -> None:
    assert (
        repr(make()) == "DMNSSampler(k=3, rule=Blend(score_share=0.8, edge_ratio=None), version=0)"
    )


def test_the_docstring_runs() -> None:
    result = doctest.testmod(dgl_dmns.samplers.dmns)
    assert result.attempted > 0
    assert result.failed == 0
