"""Fixed negatives: never a known edge, hard as their level says, the same from file to file."""

import sys
from dataclasses import fields, replace

import dgl
import numpy as np
import pandas as pd
import pytest
import torch
from shared import refreshed
from torch import Tensor

import dgl_dmns
from dgl_dmns.core import (
    DiffusionGenerator,
    KnownEdges,
    Levels,
    MLPPredictor,
    Nearest,
    draw_by_level,
)
from dgl_dmns.data import embedded_graph, split_pairs
from dgl_dmns.evaluate import (
    FixedNegatives,
    candidate_ranking,
    fixed_negatives,
    ranking_metrics,
)
from dgl_dmns.samplers.registry import make_sampler

N = 20
BUYS = ("user", "buys", "item")
NO_ROWS = torch.empty(0, dtype=torch.int64)


@pytest.fixture(scope="module")
def setting():
    """A training graph of 400 nodes, its split, the whole graph, and embeddings that fit it."""
    data = embedded_graph(num_nodes=400)
    split = split_pairs(data, val=0.1, test=0.1)
    g = dgl.graph(split.message_edges(), num_nodes=400)
    # The leading directions of the adjacency matrix: neighbours lie close.
    adjacency = torch.eye(400)
    adjacency[g.edges()] = 1.0
    u, s, _ = torch.linalg.svd(adjacency)
    return g, split, dgl.graph((data.src, data.dst), num_nodes=400), u[:, :16] * s[:16].sqrt()


def dmns(g, h, **more):
    arguments = {"k": 2, "groups": 2, "warmup_steps": 60, "fit_steps": 2, "compact_width": 8}
    sampler = make_sampler("dmns", g, lambda: h, **{**arguments, **more})
    sampler.refresh()
    return sampler


@pytest.fixture(scope="module")
def fitted(setting):
    return dmns(setting[0], setting[3])


def small(levels=("0.1T", "uniform"), pairs=3):
    return FixedNegatives(
        queries=torch.arange(pairs),
        positives=torch.arange(pairs) + 1,
        negatives=torch.arange(pairs * len(levels) * 4).view(pairs, len(levels), 4) % 10,
        levels=levels,
        seed=7,
        fingerprint="0123456789abcdef",
        num_nodes=(10, 10),
        etype=("_N", "_E", "_N"),
    )


def equal(one, other):
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(FixedNegatives)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def known_among(fixed, g, etype=None):
    """Whether a negative is the query, or an edge of the graph."""
    negative = fixed.negatives.flatten()
    query = fixed.queries.repeat_interleave(len(negative) // len(fixed.queries))
    return bool(g.has_edges_between(query, negative, etype=etype).any())


# ---- drawing ------------------------------------------------------------------------------------


def test_draws_follow_the_density_over_all_nodes():
    torch.manual_seed(0)
    model = DiffusionGenerator(3, levels=Levels((0.2, 0.5)), space="raw", seed=0)
    z = torch.randn(7, 3)
    known = KnownEdges(torch.tensor([0]), torch.tensor([4]), 7)
    rows = torch.zeros(20_000, dtype=torch.int64)
    generator = torch.Generator().manual_seed(1)
    drawn = draw_by_level(model, z, z, known, rows, 1, lam=0.5, generator=generator)
    assert drawn.shape == (20_000, 2, 1)
    with torch.no_grad():
        density = model.gaussians(z[:1]).pool_log_prob(z.unsqueeze(0))[:, 0, 0]
    density[:, [0, 4]] = -torch.inf  # the query, and its neighbour
    expected = (0.5 * density).softmax(-1)
    for level in range(2):
        share = torch.bincount(drawn[:, level, 0], minlength=7) / 20_000
        assert torch.allclose(share, expected[level], atol=0.015)


def test_draws_are_distinct_until_nodes_run_out():
    model = DiffusionGenerator(3, space="raw", seed=0)
    z = torch.randn(6, 3)
    known = KnownEdges(torch.tensor([0, 0]), torch.tensor([4, 2]), 6)
    for n in (2, 3, 5, 9):
        drawn = draw_by_level(model, z, z, known, torch.tensor([0, 1]), n)
        assert drawn.shape == (2, 4, n)
        for level in drawn[0]:
            assert set(level.tolist()) <= {1, 3, 5}
            assert level.unique().numel() == min(n, 3)
    assert draw_by_level(model, z, z, known, NO_ROWS, 2).shape[0] == 0


def test_levels_are_hard_as_they_say_and_hold_no_known_edge(setting, fitted):
    _, split, whole, h = setting
    fixed = fixed_negatives(fitted, split.test, N, known=split.val)
    assert fixed.levels == ("0.1T", "0.125T", "0.25T", "0.5T", "uniform")
    assert fixed.negatives.shape == (split.test.shape[1], 5, N)
    assert torch.equal(torch.stack([fixed.queries, fixed.positives]), split.test)
    assert not known_among(fixed, whole)
    assert (fixed.queries[:, None, None] != fixed.negatives).all()
    score = (h[fixed.queries][:, None, None] * h[fixed.negatives]).sum(-1).mean((0, 2))
    assert score[0] > score[2] > score[3] > 1.5 * score[4] > 0
    for level in fixed.negatives[:, :4].flatten(0, 1):
        assert level.unique().numel() == N
    metrics = fixed.evaluate(h)
    assert metrics["0.1T"]["MRR"] < metrics["0.5T"]["MRR"] < metrics["uniform"]["MRR"]


@pytest.mark.parametrize("kind", ["uniform", "popularity", "in-batch", "dynamic", "mcns"])
def test_any_sampler(setting, kind):
    g, split, whole, h = setting
    sampler = refreshed(kind, g, h)
    before = torch.get_rng_state()
    fixed = fixed_negatives(sampler, split.test, 7, known=split.val)
    own = () if kind == "uniform" else (type(sampler).__name__,)
    assert fixed.levels == (*own, "uniform")
    assert not known_among(fixed, whole)
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(fixed, fixed_negatives(sampler, split.test, 7, known=split.val))


def test_the_seed_decides_and_the_sampler_is_left_alone(setting, fitted):
    _, split, _, h = setting
    state = fitted.relation().random.get_state()
    one, two, other = (fixed_negatives(fitted, split.test, 5, seed=s) for s in (1, 1, 2))
    assert equal(one, two)
    assert not torch.equal(one.negatives, other.negatives)
    assert torch.equal(fitted.relation().random.get_state(), state)
    assert equal(one, fixed_negatives(fitted, split.test, 5, seed=1, embeddings=h))


def test_by_edge_type():
    generator = torch.Generator().manual_seed(0)
    user = torch.randint(12, (60,), generator=generator)
    item = torch.randint(30, (60,), generator=generator)
    counts = {"user": 12, "item": 30}
    g = dgl.heterograph({BUYS: (user, item), ("item", "of", "user"): (item, user)}, counts)
    h = {t: torch.randn(c, 8, generator=generator) for t, c in counts.items()}
    sampler = dmns(g, h)
    pairs = torch.stack([torch.arange(5), torch.arange(25, 30)])
    with pytest.raises(ValueError, match="etype: there are edge types .* name one of"):
        fixed_negatives(sampler, pairs)
    fixed = fixed_negatives(sampler, pairs, 6, etype="buys")
    assert (fixed.etype, fixed.num_nodes) == (BUYS, (12, 30))
    assert not known_among(fixed, g, "buys")

    def scorer(query, candidates):
        return (h["user"][query].unsqueeze(1) * h["item"][candidates]).sum(-1)

    assert fixed.evaluate((h["user"], h["item"])) == fixed.evaluate(scorer)
    with pytest.raises(ValueError, match=r"embeddings \[30, D\] of the destination nodes, got"):
        fixed.evaluate((h["user"], h["user"]))


THEIRS = dgl.dataloading.negative_sampler.Uniform(2)
ALL_JOINED = dgl_dmns.PopularitySampler(dgl.graph(([0, 1], [1, 0]), num_nodes=3))
PAIRS = torch.tensor([[0], [2]])


@pytest.mark.parametrize(
    ("sampler", "arguments", "message"),
    [
        (THEIRS, {}, "expected a sampler of dgl_dmns, got PerSourceUni"),
        (ALL_JOINED, {}, "1 queries, for example 0, are joined to every node"),
        (None, {}, r"has not been refreshed.* call refresh\(\)"),
        ("uniform", {"n": 0}, "n: expected at least 1 negatives per pair"),
        ("uniform", {"pairs": PAIRS.t()}, r"pairs: expected shape \[2, P\]"),
        ("uniform", {"known": PAIRS + 398}, r"known\[1\]: expected node ids in 0 .. 399"),
        ("uniform", {"pairs": PAIRS.float()}, r"pairs\[0\]: expected node ids as int64"),
    ],
)
def test_messages_of_the_draw(setting, sampler, arguments, message):
    g, _, _, h = setting
    if sampler == "uniform":
        sampler = dgl_dmns.UniformSampler(g)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        fixed_negatives(
            sampler or make_sampler("dmns", g, lambda: h), **{"pairs": PAIRS, **arguments}
        )


def test_messages_of_the_levels(setting, fitted):
    g, _, _, h = setting
    first = torch.tensor([0])
    with pytest.raises(RuntimeError, match="negatives_by_level: no generator is fitted yet; call"):
        make_sampler("dmns", g, lambda: h).negatives_by_level(first, 2)
    with pytest.raises(ValueError, match=r"nodes: expected ids .* in 0 \.\. 399, got 400 \.\. 400"):
        fitted.negatives_by_level(first + 400, 2)
    with pytest.raises(ValueError, match="n: expected at least 1 nodes per query and level, got 0"):
        fitted.negatives_by_level(first, 0)
    chain = dmns(g, h, rule=Nearest(), predictor=MLPPredictor(8), warmup_steps=1)
    with pytest.raises(TypeError, match="densities of real nodes need an AffineNoisePredictor"):
        chain.negatives_by_level(first, 2)


# ---- evaluation ---------------------------------------------------------------------------------


def test_metrics_are_those_of_the_candidates(setting, fitted):
    _, split, _, h = setting
    fixed = fixed_negatives(fitted, split.test, 9)

    def distance(h_q, h_c):
        return -(h_q - h_c).norm(dim=-1)

    metrics = fixed.evaluate(h, distance, hits=(3,), batch=17)
    assert list(metrics) == list(fixed.levels)
    for level, name in enumerate(fixed.levels):
        candidates = torch.cat([fixed.positives[:, None], fixed.negatives[:, level]], dim=1)
        rank = candidate_ranking(h, fixed.queries, candidates, distance)
        assert metrics[name] == ranking_metrics(rank, (3,))


@pytest.mark.parametrize(
    ("fixed", "arguments", "message"),
    [
        (small(), {"model": torch.zeros(9, 4)}, r"model: .*\[10, D\] of the sour"),
        (small(), {"model": lambda query, candidates: query}, r"model: .*\[3, 5\], got \[3\]"),
        (small(), {"model": torch.zeros(10, 4), "batch": 0}, "batch: expected at least 1, got 0"),
        (small(pairs=0), {"model": torch.zeros(10, 4)}, "rank: .* with B >= 1"),
    ],
)
def test_messages_of_the_evaluation(fixed, arguments, message):
    with pytest.raises(ValueError, match=message):
        fixed.evaluate(**arguments)


def test_fingerprint_is_that_of_the_edges(setting):
    g, split, _, _ = setting
    fixed = fixed_negatives(dgl_dmns.UniformSampler(g), split.test, 2)
    src, dst = g.edges()
    order = torch.randperm(len(src))
    fixed.check_graph(src[order], dst[order])
    with pytest.raises(ValueError, match="drawn on another training graph.* draw them anew"):
        fixed.check_graph(src[1:], dst[1:])
    edges = KnownEdges(torch.tensor([0, 1]), torch.tensor([1, 2]), 3)
    assert edges.fingerprint() == "b017cfeb88d695a5"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negatives": small().negatives.mT}, r"negatives: .*\[3, 2, n\], got \[3, 4, 2\]"),
        ({"positives": torch.tensor([0, 1])}, r"positives: .*\[3\], got \[2\]"),
        ({"num_nodes": (2, 10)}, "queries: expected node ids in 0 .. 1"),
    ],
)
def test_attributes_have_to_fit_together(change, message):
    with pytest.raises(ValueError, match=message):
        replace(small(), **change)
    assert repr(small()).startswith("FixedNegatives(pairs=3, levels=2, n=4, seed=7, fingerprint='0")


# ---- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fixed.npz", "fixed.parquet"])
def test_round_trip_and_damage(tmp_path, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    small(("uniform",)).save(path)
    small().save(str(path))  # replaces it
    assert equal(FixedNegatives.load(path), small())
    assert [file.name for file in tmp_path.iterdir()] == [name]
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:100], whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a complete file.* make it anew with fixed_neg"):
            FixedNegatives.load(path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install pyarrow.; or take a name .* .npz"):
        small().save(tmp_path / "fixed.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="seed"), r"got 24 rows with none of \['seed'\]"),
        (lambda t: t.iloc[:0], "got 0 rows"),
        (lambda t: t.iloc[:-1], "expected n of each level for each pair"),
        (lambda t: t.iloc[::-1], r"columns \['pair'.* in the order they were"),
        (lambda t: t.assign(query=0.5), r"columns \['query'\]: .*integers as ids"),
        (lambda t: t.assign(seed=range(24)), r"columns \['seed'\]: .*one value"),
        (lambda t: t.assign(query=range(24)), r"columns \['query'\]: .*a pair"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, change, message):
    pytest.importorskip("pyarrow")
    path = tmp_path / "fixed.parquet"
    small().save(path)
    table = pd.read_parquet(path)
    assert len(table) == 3 * 2 * 4
    change(table).to_parquet(path, index=False)
    with pytest.raises(ValueError, match=message):
        FixedNegatives.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": None}, r"got none of \['seed'\]"),
        ({"queries": np.zeros(3)}, "array queries: expected kind 'i' in 1 dimension"),
        ({"negatives": np.zeros((3, 2), dtype=int)}, "array negatives: .* in 3 dimension"),
        ({"negatives": np.zeros((2, 2, 4), dtype=int)}, r"negatives: expected shape \[3, 2, n\]"),
        ({"positives": np.array([0, 1, 10])}, "positives: expected node ids in 0 .. 9"),
        ({"format": np.array("another")}, "expected format 'dgl-dmns fixed negatives 1', got 'ano"),
        ({"num_nodes": np.array([10])}, "expected two counts of nodes"),
        ({"levels": np.array(["a", None], dtype=object)}, "allow_pickle=False"),
    ],
)
def test_archives_that_do_not_fit(tmp_path, change, message):
    path = tmp_path / "fixed.npz"
    small().save(path)
    with np.load(path) as archive:
        arrays = {**{name: archive[name] for name in archive.files}, **change}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=message) as caught:
        FixedNegatives.load(path)
    assert str(caught.value).startswith(f"{path}: not a complete file of fixed negatives")


def test_names_of_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .* check the name"):
        FixedNegatives.load(tmp_path / "absent.npz")
    for call in (small().save, FixedNegatives.load):
        with pytest.raises(ValueError, match=r"ends in .npz or .parquet, got 'fixed.csv'"):
            call(tmp_path / "fixed.csv")
