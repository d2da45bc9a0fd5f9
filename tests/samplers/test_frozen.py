"""What a refresh has taken stays as it was, whatever the training and the caller's modes do."""

import dgl
import pytest
import torch
from torch import nn

from dgl_dmns import DMNSSampler
from dgl_dmns.core import MLPPredictor, Nearest
from dgl_dmns.samplers import (
    AdversarialSampler,
    DynamicSampler,
    MCNSSampler,
    PopularitySampler,
    Resources,
    SelfAdversarialSampler,
    UniformSampler,
)

SMALL = {"warmup_steps": 5, "fit_steps": 3, "batch_pairs": 64, "groups": 4, "pool": 64}
N, WIDTH = 40, 8


@pytest.fixture
def graph():
    torch.manual_seed(0)
    return dgl.to_bidirected(dgl.rand_graph(N, 120))


def ratios(sampler, graph):
    return sampler.distribution().log_ratio(*graph.edges())


@pytest.mark.parametrize("space", ["compact", "raw"])
@pytest.mark.parametrize("given", [False, True])
def test_an_encoder_may_return_its_own_weights(graph, space, given):
    weight = nn.Embedding(N, WIDTH).weight
    sampler = DMNSSampler(graph, lambda: weight, k=2, space=space, **SMALL)
    sampler.refresh(weight if given else None)
    before = ratios(sampler, graph)
    with torch.no_grad():
        weight.mul_(3.0)  # an optimizer's step
    assert torch.equal(ratios(sampler, graph), before)


def test_observations_start_from_the_refresh(graph):
    weight = nn.Embedding(N, WIDTH).weight
    sampler = DynamicSampler(graph, lambda: weight, k=2)
    sampler.refresh()
    before = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
    sampler.observe(torch.tensor([0]), torch.ones(1, WIDTH))
    assert torch.equal(sampler._observed.h["_N"][1:], before[1:])


class Judge(nn.Module):
    """A scorer with parts that training mode changes."""

    def __init__(self):
        super().__init__()
        self.out = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 1))
        self.modes = set()

    def forward(self, a, b):
        self.modes.add(self.training)
        x = a * b
        return self.out(x.reshape(-1, WIDTH)).view(x.shape[:-1])


@pytest.mark.parametrize("background", [False, True])
def test_a_module_as_scorer_is_read_in_eval_mode_and_left_alone(graph, background):
    torch.manual_seed(1)
    judge, h = Judge(), torch.randn(N, WIDTH)
    samplers = [
        DMNSSampler(
            graph,
            lambda: h,
            k=2,
            scorer=judge,
            resources=Resources(background=background),
            **SMALL,
        )
        for _ in range(2)
    ]
    state = {name: value.clone() for name, value in judge.state_dict().items()}
    before = torch.get_rng_state()
    for sampler in samplers:
        sampler.refresh()
        sampler.refresh()
        sampler.wait()
        sampler.stats()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*(sampler.table.ids for sampler in samplers))
    assert judge.training
    assert not judge.modes  # it was never called itself
    assert all(torch.equal(value, state[name]) for name, value in judge.state_dict().items())
    known = ratios(samplers[0], graph)
    with torch.no_grad():
        judge.out[2].weight.mul_(5.0)
    assert torch.equal(ratios(samplers[0], graph), known)  # until the next refresh
    samplers[0].refresh()
    samplers[0].wait()
    assert not torch.equal(ratios(samplers[0], graph), known)


@pytest.mark.parametrize("make", [DMNSSampler, DynamicSampler, AdversarialSampler])
def test_a_scorer_of_another_shape_is_refused(graph, make):
    h = torch.randn(N, WIDTH)
    sampler = make(graph, lambda: h, k=2, scorer=lambda a, b: (a * b).sum(-1, keepdim=True))
    with pytest.raises(ValueError, match=r"^scorer: expected one score for each pair .* squeeze"):
        sampler.refresh()


def training(graph, autocast):
    torch.manual_seed(2)
    embedding = nn.Embedding(N, WIDTH)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.0)
    sampler = DMNSSampler(graph, lambda: embedding.weight, k=2, **SMALL)
    sampler.attach(optimizer, every=1)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = embedding.weight.square().sum()
            loss.backward()
            optimizer.step()
            inside = ratios(sampler, graph)
    return sampler.report.fit.losses, inside, sampler.table.ids


def test_autocast_of_the_training_does_not_reach_the_sampler(graph):
    plain, mixed = (training(graph, autocast) for autocast in (False, True))
    assert plain[0] == mixed[0]
    assert torch.equal(plain[1], mixed[1])
    assert torch.equal(plain[2], mixed[2])


def test_a_refresh_in_inference_mode(graph):
    model = nn.Linear(4, WIDTH)
    graph.ndata["feat"] = torch.randn(N, 4)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = model

        def forward(self, g, x):
            return self.layer(x)

    tables = []
    for mode in (False, True):
        sampler = DMNSSampler(graph, Encoder(), k=2, **SMALL)
        with torch.inference_mode(mode):
            sampler.refresh()
        sampler.refresh()
        tables.append(sampler.table.ids)
    assert torch.equal(*tables)


def test_embeddings_beyond_the_range_of_a_float_are_refused(graph):
    h = torch.randn(N, WIDTH, dtype=torch.float64) * 1e300
    sampler = DMNSSampler(graph, lambda: h, k=2, **SMALL)
    with pytest.raises(ValueError, match="^encoder: NaN or infinity in 40 of 40 rows"):
        sampler.refresh()


def test_a_loaded_state_brings_its_distribution(graph):
    first, second = torch.randn(2, N, WIDTH)
    donor = DMNSSampler(graph, lambda: first, k=2, **SMALL)
    donor.refresh()
    sampler = DMNSSampler(graph, lambda: second, k=2, **SMALL)
    sampler.refresh()
    sampler.load_state_dict(donor.state_dict())
    assert torch.equal(ratios(sampler, graph), ratios(donor, graph))
    sampler.observe(torch.tensor([0]), torch.ones(1, WIDTH))
    assert torch.equal(sampler._observed.h["_N"][1:], first[1:])
    sampler.refresh(second)
    assert not torch.equal(ratios(sampler, graph), ratios(donor, graph))
    assert sampler.positive_log_ratio(graph.edges()).isfinite().all()


def test_a_failed_refresh_leaves_the_distribution(graph):
    h = torch.randn(N, WIDTH)
    sampler = SelfAdversarialSampler(graph, lambda: h, k=2)
    sampler.refresh()
    before = ratios(sampler, graph)
    h = torch.full((N, WIDTH), 1e30)
    with pytest.raises(ValueError, match="^scorer: scores of some pairs are NaN or infinite"):
        sampler.refresh()
    assert torch.equal(before, ratios(sampler, graph))
    assert sampler.draw(torch.arange(N)).ids.shape == (N, 2)  # the last table stays in use


def test_a_refused_state_leaves_an_adversarial_sampler_as_it_was(graph):
    h = torch.randn(N, WIDTH)
    donor, sampler = (
        AdversarialSampler(graph, lambda: h, k=2, hidden=hidden, warmup_steps=5, fit_steps=3)
        for hidden in (16, 32)
    )
    donor.refresh()
    sampler.refresh()
    before = {name: value.clone() for name, value in sampler.adversary.named_buffers()}
    with pytest.raises(ValueError, match="^state: made with another hidden width"):
        sampler.load_state_dict(donor.state_dict())
    assert all(torch.equal(b, before[name]) for name, b in sampler.adversary.named_buffers())
    sampler.refresh()


def test_a_refused_state_leaves_the_warm_up_to_the_first_refresh(graph):
    h = torch.randn(N, WIDTH)
    donor = DMNSSampler(
        graph, lambda: h, k=2, rule=Nearest(), predictor=MLPPredictor(WIDTH), **SMALL
    )
    donor.refresh()
    sampler = DMNSSampler(graph, lambda: h, k=2, rule=Nearest(), **SMALL)
    with pytest.raises(ValueError, match="^state: made with another schedule, predictor or space"):
        sampler.load_state_dict(donor.state_dict())
    assert len(sampler.refresh().fit.losses) == SMALL["warmup_steps"]


@pytest.mark.parametrize("make", [MCNSSampler, AdversarialSampler, DynamicSampler])
def test_a_state_of_another_width_is_refused(graph, make):
    wide, narrow = torch.randn(N, 16), torch.randn(N, WIDTH)
    donor = make(graph, lambda: wide, k=2)
    donor.refresh()
    if make is DynamicSampler:
        donor.observe(torch.tensor([0]), torch.ones(1, 16))
    sampler = make(graph, lambda: narrow, k=2)
    with pytest.raises(ValueError, match="^state: made for embeddings of width 16"):
        sampler.load_state_dict(donor.state_dict())
    assert sampler.version == 0
    sampler.refresh()


def test_a_background_sampler_resumes_exactly(graph):
    h = torch.randn(N, WIDTH)

    def made():
        return DMNSSampler(graph, lambda: h, k=2, resources=Resources(background=True), **SMALL)

    whole, resumed = made(), made()
    for _ in range(2):
        whole.refresh()
        whole.wait()
    resumed.load_state_dict(whole.state_dict())
    for sampler in (whole, resumed):
        sampler.refresh()
        sampler.wait()
    assert torch.equal(whole.table.current().ids, resumed.table.current().ids)


def test_shares_of_a_curriculum_are_kept(graph):
    h = torch.randn(N, WIDTH)

    def made(**more):
        return DMNSSampler(
            graph, lambda: h, k=2, curriculum=lambda r, levels: [1, 0, 0, 0], **{**SMALL, **more}
        )

    sampler = made()
    sampler.refresh()
    resumed = made()
    resumed.load_state_dict(sampler.state_dict())
    assert resumed.model.levels.shares == sampler.model.levels.shares == (1, 0, 0, 0)
    other = DMNSSampler(graph, lambda: h, k=2, levels=(0.1, 0.2, 0.3, 0.4), **SMALL)
    with pytest.raises(ValueError, match="^state: made with .* or other levels"):
        other.load_state_dict(sampler.state_dict())


def test_the_mark_of_a_half_written_table_is_kept(graph):
    h = torch.randn(N, WIDTH)
    sampler = DynamicSampler(graph, lambda: h, k=2)
    sampler.refresh()
    sampler.table.keep()  # as a refresh does that then fails
    sampler.table.hidden().ids[0] = 7  # in the row of node 0
    assert int(sampler.table.sizes()[0]) > 0
    pair = torch.tensor([0]), torch.tensor([7])
    assert not sampler.table.holds(*pair)
    resumed = DynamicSampler(graph, lambda: h, k=2)
    resumed.load_state_dict(sampler.state_dict())
    assert not resumed.table.holds(*pair)
    resumed.update_graph(graph)
    assert not resumed.table.holds(*pair)


def test_tables_of_a_graph_that_grows_keep_to_their_budget(graph):
    h = torch.randn(10 * N, WIDTH)
    sampler = DMNSSampler(
        graph,
        lambda: h[: sampler.known.num_src],
        k=2,
        resources=Resources(table_bytes=10 * 4 * N),
        **SMALL,
    )
    sampler.refresh()

    def first():
        return sampler.table.current().ids[sampler.table.start[:N]]

    kept, known, sizes = first().clone(), sampler.known, sampler.table.sizes()
    assert 3 * N < sampler.table.groups <= 4 * N
    with pytest.raises(ValueError, match="^table_bytes: tables with one group for each source"):
        sampler.update_graph(dgl.to_bidirected(dgl.rand_graph(10 * N, 1200)))
    assert sampler.known is known
    assert torch.equal(sampler.table.sizes(), sizes)
    sampler.update_graph(dgl.add_nodes(graph, N))
    for _ in range(2):
        assert sampler.table.queries == 2 * N
        assert N < sampler.table.groups - N <= 3 * N
        if sampler.version == 1:
            assert torch.equal(first(), kept)
        sampler.refresh()


def test_an_old_loader_draws_sources_that_its_graph_has(graph):
    def shop(users):
        return dgl.heterograph(
            {("user", "buys", "item"): (torch.arange(5), torch.arange(5))},
            num_nodes_dict={"user": users, "item": 30},
        )

    old, new = shop(5), shop(50)
    h = {"user": torch.randn(50, WIDTH), "item": torch.randn(30, WIDTH)}
    sampler = DMNSSampler(
        old,
        lambda: {n: part[: sampler._g.num_nodes(n)] for n, part in h.items()},
        k=4,
        source="uniform",
        **SMALL,
    )
    sampler.refresh()
    sampler.update_graph(new)
    src, _ = sampler(old, {("user", "buys", "item"): torch.arange(5)})[("user", "buys", "item")]
    assert int(src.max()) < 5


def test_steps_are_those_of_one_optimizer(graph):
    h = torch.randn(N, WIDTH)
    weight = nn.Parameter(torch.zeros(1))
    one, two = (torch.optim.SGD([weight], lr=0.1) for _ in range(2))
    sampler = DynamicSampler(graph, lambda: h, k=2)
    sampler.attach(one, every=100)
    sampler.attach(two, every=100)
    weight.grad = torch.ones(1)
    for _ in range(5):
        one.step()
        two.step()
    assert sampler.staleness.steps == 5


def test_attaching_again_takes_the_place_of_the_first(graph):
    h = torch.randn(N, WIDTH)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    sampler = DynamicSampler(graph, lambda: h, k=2)
    sampler.attach(optimizer, every=4)
    handle = sampler.attach(optimizer, every=4)
    version = sampler.version
    weight.grad = torch.ones(1)
    for _ in range(8):
        optimizer.step()
    assert sampler.version == version + 2
    handle.remove()
    for _ in range(8):
        optimizer.step()
    assert sampler.version == version + 2


def test_statistics_of_a_copy_are_refused(graph):
    import pickle

    h = torch.randn(N, WIDTH)
    sampler = DynamicSampler(graph, lambda: h, k=2)
    sampler.refresh()
    with pytest.raises(RuntimeError, match="^stats: this is a copy"):
        pickle.loads(pickle.dumps(sampler)).stats()


@pytest.mark.parametrize("make", [UniformSampler, PopularitySampler])
def test_types_without_nodes(make):
    g = dgl.heterograph(
        {
            ("user", "buys", "item"): ([0, 1], [1, 0]),
            ("user", "likes", "thing"): ([], []),
        },
        num_nodes_dict={"user": 3, "item": 3, "thing": 0},
    )
    sampler = make(g, 2)
    got = sampler(g, {"buys": torch.arange(2), "likes": torch.arange(0)})
    assert {etype[1]: len(pair[0]) for etype, pair in got.items()}["buys"] == 4
