import math

import dgl
import pytest
import torch
from graphs import communities

from dgl_dmns import InBatchSampler, PopularitySampler, UniformSampler
from dgl_dmns.core import MLPPredictor, Nearest
from dgl_dmns.diagnostics import negative_statistics, observe
from dgl_dmns.diagnostics.measures import gini
from dgl_dmns.samplers.registry import make_sampler

G, H, HELD_OUT = communities()
FOLLOWING = ["dynamic", "self-adversarial", "mcns", "adversarial"]


def refreshed(kind="dmns", **arguments):
    sampler = make_sampler(kind, G, lambda: H, k=3, **arguments)
    sampler.refresh()
    return sampler


@pytest.fixture(scope="module")
def sampler():
    return refreshed(uniform_share=0.5)


@pytest.fixture(scope="module")
def table(sampler):
    return sampler.stats(held_out=HELD_OUT).set_index("level")


def test_rows_and_their_shares(table):
    levels = ["0.1T", "0.125T", "0.25T", "0.5T", "no level"]
    assert table.index.tolist() == [*levels, "all", "random", "positive"]
    assert table.loc[levels, "share"].sum() == pytest.approx(1.0)
    # The uniform half, and the scorer's four fifths of the rest.
    assert table.loc["no level", "share"] == pytest.approx(0.9, abs=0.04)


def test_figures_against_a_count_by_hand():
    sampler = refreshed(uniform_share=0.0)
    table = sampler.stats(held_out=HELD_OUT).set_index("level")
    # Eight groups of each row, shorter rows over again.
    rows = sampler.table.current()
    groups = [
        torch.stack([part[group % len(part)] for group in range(8)])
        for part in torch.arange(sampler.table.groups).split(sampler.table.sizes().tolist())
    ]
    ids, level = (field[torch.stack(groups)].flatten(1) for field in rows)
    src = torch.arange(len(H)).view(-1, 1).expand_as(ids)
    score = (H[src] * H[ids.long()]).sum(-1)
    assert table.loc["all", "score"] == pytest.approx(float(score.mean()), rel=1e-4)
    assert table.loc["0.1T", "score"] == pytest.approx(float(score[level == 0].mean()), rel=1e-4)
    counts = torch.bincount(ids.flatten().long(), minlength=len(H))
    assert table.loc["all", "distinct"] == int((counts > 0).sum())
    assert table.loc["all", "gini"] == pytest.approx(gini(counts))

    hidden = {*map(tuple, HELD_OUT.t().tolist()), *map(tuple, HELD_OUT.flip(0).t().tolist())}
    queries = {a for a, _ in hidden}
    drawn = [(a, b) for a, b in zip(src.flatten().tolist(), ids.flatten().tolist()) if a in queries]
    rate = sum(pair in hidden for pair in drawn) / len(drawn)
    assert rate > 0
    assert table.loc["all", "false_negatives"] == pytest.approx(rate)
    chance = len(hidden) / len(queries) / len(H)
    assert table.loc["all", "false_negative_lift"] == pytest.approx(rate / chance)


def test_the_hardest_level_is_hard_and_random_nodes_are_not(table):
    percentile = table["percentile"]
    assert percentile["0.1T"] > 0.75 > percentile["random"] == pytest.approx(0.5, abs=0.01)
    assert percentile["positive"] > 0.8
    assert table.loc["0.1T", "expected_score"] > table.loc["0.5T", "expected_score"]
    assert table["density_auc"].dropna().between(0.8, 1).all()
    assert table["psi_share"].dropna().between(0, 1).all()
    assert table["psi_share"].notna().sum() == 4


def test_the_expected_score_is_that_of_many_latents():
    sampler = refreshed(space="raw")
    seen = observe(sampler)
    latents = torch.stack([sampler.generate(H[seen.query]) for _ in range(300)])
    mean = (latents * H[seen.query]).sum(-1).mean((0, 2))
    torch.testing.assert_close(seen.expected_score, mean, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("kind", FOLLOWING)
def test_every_sampler_that_follows_an_encoder(kind):
    table = refreshed(kind).stats(held_out=HELD_OUT).set_index("level")
    assert table.loc["all", "share"] == 1.0
    assert 0.0 <= table.loc["all", "percentile"] <= 1.0
    assert not math.isnan(table.loc["all", "false_negatives"])


@pytest.mark.parametrize("kind", [UniformSampler, PopularitySampler, InBatchSampler])
def test_samplers_without_an_encoder_are_given_embeddings(kind):
    sampler = kind(G, k=3)
    table = sampler.stats(embeddings=H, held_out=HELD_OUT).set_index("level")
    assert table.index.tolist() == ["all", "random", "positive"]
    if kind is UniformSampler:
        assert table.loc["all", "percentile"] == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="follows no encoder; pass the embeddings"):
        sampler.stats()


def test_a_look_changes_nothing():
    looked, left_alone = refreshed(), refreshed()
    eids = torch.arange(40)
    for kind in (looked, left_alone):
        torch.manual_seed(3)
        if kind is looked:
            before = kind.state_dict()
            first = kind.stats(held_out=HELD_OUT)
            assert kind.stats(held_out=HELD_OUT).equals(first)
            assert torch.equal(before["random"], kind.state_dict()["random"])
        kind.drawn = [kind(G, eids)[1], kind.refresh() and kind(G, eids)[1]]
    for a, b in zip(looked.drawn, left_alone.drawn):
        assert torch.equal(a, b)


def test_no_closed_form_no_expectation():
    table = refreshed(
        rule=Nearest(), predictor=MLPPredictor(8), space="raw", fit_steps=2, warmup_steps=2
    ).stats()
    assert table["expected_score"].isna().all()
    assert table["psi_share"].isna().all()
    assert table.set_index("level").loc["0.1T", "share"] > 0


def test_another_scorer_has_no_expected_score():
    table = refreshed(scorer=lambda a, b: -(a - b).square().sum(-1)).stats()
    assert table["expected_score"].isna().all()
    assert table["psi_share"].notna().sum() == 4


def test_several_edge_types_have_rows_each():
    g = dgl.heterograph(
        {
            ("user", "buys", "item"): ([0, 1, 2, 3], [0, 1, 2, 0]),
            ("user", "views", "item"): ([0, 1, 2, 3], [1, 2, 3, 3]),
        }
    )
    h = {"user": torch.randn(4, 4), "item": torch.randn(4, 4)}
    sampler = make_sampler("dmns", g, lambda: h, k=2)
    sampler.refresh()
    table = sampler.stats(held_out={"buys": torch.tensor([[0], [3]])})
    assert table["etype"].unique().tolist() == ["user:buys:item", "user:views:item"]
    rate = table[table["level"] == "all"].set_index("etype")["false_negatives"]
    assert rate["user:buys:item"] >= 0.0
    assert math.isnan(rate["user:views:item"])
    assert len(sampler.stats(etype="views")) == len(table) / 2
    with pytest.raises(ValueError, match="held_out: expected a dict of pairs by edge type"):
        sampler.stats(held_out=torch.tensor([[0], [3]]))
    with pytest.raises(ValueError, match="etype: there are edge types"):
        observe(sampler)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": 0}, "queries: expected at least 1, got 0"),
        ({"held_out": torch.zeros(3, 2).long()}, r"held_out: expected shape \[2, P\]"),
        ({"held_out": torch.tensor([[0], [10**6]])}, "held_out: .*expected ids in 0 .. 119"),
        ({"etype": "likes"}, "etype: no edge type of name 'likes'"),
        ({"embeddings": torch.zeros(5, 8)}, r"encoder: expected shape \[120, D\]"),
    ],
)
def test_errors(sampler, arguments, message):
    with pytest.raises(ValueError, match=message):
        sampler.stats(**arguments)


def test_before_a_refresh_there_is_nothing_to_see():
    with pytest.raises(RuntimeError, match="it has not been refreshed"):
        make_sampler("dmns", G, lambda: H, k=2).stats()


def test_samplers_of_others_are_refused():
    uniform = dgl.dataloading.negative_sampler.Uniform(2)
    with pytest.raises(TypeError, match="expected a sampler of dgl_dmns, got PerSourceUniform"):
        negative_statistics(uniform)
