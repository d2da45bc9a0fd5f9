"""Fixed negatives: never a known edge, hard as their level says, the same from file to file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import dgl
import numpy as np
import pandas as pd
import pytest
import torch
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

N = 20
BUYS = ("user", "buys", "item")


@pytest.fixture(scope="module")
def setting() -> tuple[Any, Any, Tensor, Tensor]:
    """A graph of 400 nodes, its split, the training graph, and embeddings that fit it."""
    data = embedded_graph(num_nodes=400)
    split = split_pairs(data, val=0.1, test=0.1)
    g = dgl.graph(split.message_edges(), num_nodes=400)
    # The leading directions of the adjacency matrix: neighbours lie close.
    adjacency = torch.eye(400)
    adjacency[g.edges()] = 1.0
    u, s, _ = torch.linalg.svd(adjacency)
    return g, split, data, u[:, :16] * s[:16].sqrt()


def dmns(g: Any, h: Any, **more: Any) -> dgl_dmns.DMNSSampler:
    arguments = {"k": 2, "groups": 2, "warmup_steps": 60, "fit_steps": 2, "compact_width": 8}
    sampler = dgl_dmns.DMNSSampler(g, lambda: h, **{**arguments, **more})
    sampler.refresh()
    return sampler


def small(levels: tuple[str, ...] = ("0.1T", "uniform"), pairs: int = 3) -> FixedNegatives:
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


def equal(one: FixedNegatives, other: FixedNegatives) -> bool:
    tensors = ("queries", "positives", "negatives")
    rest = ("levels", "seed", "fingerprint", "num_nodes", "etype")
    return all(torch.equal(getattr(one, t), getattr(other, t)) for t in tensors) and all(
        getattr(one, name) == getattr(other, name) for name in rest
    )


# ---- drawing ------------------------------------------------------------------------------------


def test_draws_follow_the_density_over_all_nodes() -> None:
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


def test_draws_are_distinct_until_nodes_run_out() -> None:
    model = DiffusionGenerator(3, space="raw", seed=0)
    z = torch.randn(6, 3)
    known = KnownEdges(torch.tensor([0, 0]), torch.tensor([4, 2]), 6)
    for n in (2, 3, 5, 9):
        drawn = draw_by_level(model, z, z, known, torch.tensor([0, 1]), n)
        assert drawn.shape == (2, 4, n)
        for level in drawn[0]:
            assert set(level.tolist()) <= {1, 3, 5}
            assert level.unique().numel() == min(n, 3)
    assert draw_by_level(model, z, z, known, torch.empty(0, dtype=torch.int64), 2).shape[0] == 0


def test_levels_are_hard_as_they_say_and_hold_no_known_edge(setting: Any) -> None:
    g, split, data, h = setting
    fixed = fixed_negatives(dmns(g, h), split.test, N, known=split.val)
    assert fixed.levels == ("0.1T", "0.125T", "0.25T", "0.5T", "uniform")
    assert fixed.negatives.shape == (split.test.shape[1], 5, N)
    assert torch.equal(torch.stack([fixed.queries, fixed.positives]), split.test)
    whole = dgl.graph((data.src, data.dst), num_nodes=400)
    query = fixed.queries.repeat_interleave(5 * N)
    assert not whole.has_edges_between(query, fixed.negatives.flatten()).any()
    assert (query != fixed.negatives.flatten()).all()
    score = (h[fixed.queries][:, None, None] * h[fixed.negatives]).sum(-1).mean((0, 2))
    assert score[0] > score[2] > score[3] > 1.5 * score[4] > 0
    for level in fixed.negatives[:, :4].flatten(0, 1):
        assert level.unique().numel() == N
    metrics = fixed.evaluate(h)
    assert metrics["0.1T"]["MRR"] < metrics["0.5T"]["MRR"] < metrics["uniform"]["MRR"]


@pytest.mark.parametrize(
    "name", ["PopularitySampler", "InBatchSampler", "DynamicSampler", "MCNSSampler"]
)
def test_any_sampler(setting: Any, name: str) -> None:
    g, split, data, h = setting
    if name in ("PopularitySampler", "InBatchSampler"):
        sampler = getattr(dgl_dmns, name)(g, 3)
    else:
        own = torch.Generator().manual_seed(5)
        sampler = getattr(dgl_dmns, name)(g, lambda: h, 3, generator=own)
        sampler.refresh()
    before = torch.get_rng_state()
    fixed = fixed_negatives(sampler, split.test, 7, known=split.val)
    assert fixed.levels == (name, "uniform")
    whole = dgl.graph((data.src, data.dst), num_nodes=400)
    query = fixed.queries.repeat_interleave(14)
    assert not whole.has_edges_between(query, fixed.negatives.flatten()).any()
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(fixed, fixed_negatives(sampler, split.test, 7, known=split.val))


def test_uniform_alone_is_one_level(setting: Any) -> None:
    g, split, _, _ = setting
    fixed = fixed_negatives(dgl_dmns.UniformSampler(g), split.test, 5, seed=3)
    assert fixed.levels == ("uniform",)
    assert fixed.seed == 3


def test_the_seed_decides_and_the_sampler_is_left_alone(setting: Any) -> None:
    g, split, _, h = setting
    sampler = dmns(g, h)
    state = sampler.relation().random.get_state()
    one, two, other = (fixed_negatives(sampler, split.test, 5, seed=s) for s in (1, 1, 2))
    assert equal(one, two)
    assert not torch.equal(one.negatives, other.negatives)
    assert torch.equal(sampler.relation().random.get_state(), state)
    given = fixed_negatives(sampler, split.test, 5, seed=1, embeddings=h)
    assert equal(one, given)


def test_by_edge_type() -> None:
    generator = torch.Generator().manual_seed(0)
    user = torch.randint(12, (60,), generator=generator)
    item = torch.randint(30, (60,), generator=generator)
    counts = {"user": 12, "item": 30}
    g = dgl.heterograph({BUYS: (user, item), ("item", "of", "user"): (item, user)}, counts)
    h = {t: torch.randn(c, 8, generator=generator) for t, c in counts.items()}
    sampler = dmns(g, h)
    pairs = torch.stack([torch.arange(5), torch.arange(25, 30)])
    with pytest.raises(ValueError, match="etype: the sampler holds edge types .* name one of"):
        fixed_negatives(sampler, pairs)
    fixed = fixed_negatives(sampler, pairs, 6, etype="buys")
    assert fixed.etype == BUYS
    assert fixed.num_nodes == (12, 30)
    query = fixed.queries.repeat_interleave(5 * 6)
    assert not g.has_edges_between(query, fixed.negatives.flatten(), etype="buys").any()
    expected = (h["user"][fixed.queries] * h["item"][fixed.positives]).sum(1)
    scores: list[Tensor] = []

    def scorer(query: Tensor, candidates: Tensor) -> Tensor:
        values = (h["user"][query].unsqueeze(1) * h["item"][candidates]).sum(-1)
        scores.append(values[:, 0])
        return values

    assert fixed.evaluate((h["user"], h["item"])) == fixed.evaluate(scorer)
    assert torch.equal(scores[0], expected)
    with pytest.raises(ValueError, match=r"embeddings \[30, D\] of the destination nodes, got"):
        fixed.evaluate((h["user"], h["user"]))


def test_messages_of_the_draw(setting: Any) -> None:
    g, split, _, h = setting
    uniform = dgl_dmns.UniformSampler(g)
    theirs = dgl.dataloading.negative_sampler.Uniform(2)
    with pytest.raises(TypeError, match="expected a sampler of dgl_dmns, got PerSourceUni"):
        fixed_negatives(theirs, split.test)
    with pytest.raises(RuntimeError, match=r"has not been refreshed.* call refresh\(\)"):
        fixed_negatives(dgl_dmns.DMNSSampler(g, lambda: h), split.test)
    with pytest.raises(ValueError, match="n: expected at least 1 negatives per pair"):
        fixed_negatives(uniform, split.test, 0)
    with pytest.raises(ValueError, match=r"pairs: expected shape \[2, P\]"):
        fixed_negatives(uniform, split.test.t())
    with pytest.raises(ValueError, match=r"known\[1\]: expected node ids in 0 .. 399"):
        fixed_negatives(uniform, split.test, known=torch.tensor([[0], [400]]))
    with pytest.raises(TypeError, match=r"pairs\[0\]: expected node ids as int64 or int32"):
        fixed_negatives(uniform, split.test.float())
    sampler = dgl_dmns.PopularitySampler(dgl.graph(([0, 1], [1, 0]), num_nodes=3))
    with pytest.raises(ValueError, match="1 queries, for example 0, are joined to every node"):
        fixed_negatives(sampler, torch.tensor([[0], [2]]))


def test_messages_of_the_levels(setting: Any) -> None:
    g, _, _, h = setting
    sampler = dgl_dmns.DMNSSampler(g, lambda: h)
    with pytest.raises(RuntimeError, match="negatives_by_level: no generator is fitted yet; call"):
        sampler.negatives_by_level(torch.tensor([0]), 2)
    fitted = dmns(g, h)
    with pytest.raises(ValueError, match=r"nodes: expected ids .* in 0 \.\. 399, got 400 \.\. 400"):
        fitted.negatives_by_level(torch.tensor([400]), 2)
    with pytest.raises(ValueError, match="n: expected at least 1 nodes per query and level, got 0"):
        fitted.negatives_by_level(torch.tensor([0]), 0)
    chain = dmns(g, h, rule=Nearest(), predictor=MLPPredictor(8), warmup_steps=1)
    with pytest.raises(TypeError, match="densities of real nodes need an AffineNoisePredictor"):
        chain.negatives_by_level(torch.tensor([0]), 2)


# ---- evaluation ---------------------------------------------------------------------------------


def test_metrics_are_those_of_the_candidates(setting: Any) -> None:
    g, split, _, h = setting
    fixed = fixed_negatives(dmns(g, h), split.test, 9)

    def distance(h_q: Tensor, h_c: Tensor) -> Tensor:
        return -(h_q - h_c).norm(dim=-1)

    metrics = fixed.evaluate(h, distance, hits=(3,), batch=17)
    assert list(metrics) == list(fixed.levels)
    for level, name in enumerate(fixed.levels):
        candidates = torch.cat([fixed.positives[:, None], fixed.negatives[:, level]], dim=1)
        rank = candidate_ranking(h, fixed.queries, candidates, distance)
        assert metrics[name] == ranking_metrics(rank, (3,))


def test_messages_of_the_evaluation() -> None:
    fixed = small()
    with pytest.raises(ValueError, match=r"model: expected embeddings \[10, D\] of the sour"):
        fixed.evaluate(torch.zeros(9, 4))
    with pytest.raises(ValueError, match=r"model: expected shape \[3, 5\], got \[3\]"):
        fixed.evaluate(lambda query, candidates: query)
    with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
        fixed.evaluate(torch.zeros(10, 4), batch=0)
    with pytest.raises(ValueError, match=r"rank: expected shape \[B\] with B >= 1"):
        small(pairs=0).evaluate(torch.zeros(10, 4))


def test_fingerprint_is_that_of_the_edges(setting: Any) -> None:
    g, split, _, _ = setting
    fixed = fixed_negatives(dgl_dmns.UniformSampler(g), split.test, 2)
    src, dst = g.edges()
    order = torch.randperm(len(src))
    fixed.check_graph(src[order], dst[order])
    with pytest.raises(ValueError, match="drawn on another training graph.* draw them anew"):
        fixed.check_graph(src[1:], dst[1:])
    edges = KnownEdges(torch.tensor([0, 1]), torch.tensor([1, 2]), 3)
    assert edges.fingerprint() == "b017cfeb88d695a5"


def test_attributes_have_to_fit_together() -> None:
    fields = dict(vars(small()))
    with pytest.raises(ValueError, match=r"negatives: expected shape \[3, 2, n\], got \[3, 4, 2\]"):
        FixedNegatives(**{**fields, "negatives": fields["negatives"].transpose(1, 2)})
    with pytest.raises(ValueError, match=r"positives: expected shape \[3\], got \[2\]"):
        FixedNegatives(**{**fields, "positives": torch.tensor([0, 1])})
    with pytest.raises(ValueError, match="queries: expected node ids in 0 .. 1"):
        FixedNegatives(**{**fields, "num_nodes": (2, 10)})
    assert repr(small()) == (
        "FixedNegatives(pairs=3, levels=2, n=4, seed=7, fingerprint='0123456789abcdef')"
    )


# ---- files --------------------------------------------------------------------------------------


def test_archive_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "fixed.npz"
    small(("uniform",)).save(path)
    small().save(str(path))  # replaces it
    assert equal(FixedNegatives.load(path), small())
    assert [file.name for file in tmp_path.iterdir()] == ["fixed.npz"]


def test_parquet_round_trip(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "fixed.parquet"
    small().save(path)
    assert equal(FixedNegatives.load(path), small())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="not a complete file of fixed negatives"):
        FixedNegatives.load(path)


def test_parquet_without_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ImportError("Unable to find a usable engine")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fail)
    with pytest.raises(ImportError, match=r"install one \(python -m pip install pyarrow\), or"):
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
        (lambda t: t.assign(query=t["pair"] * 0 + range(24)), r"columns \['query'\]: .*a pair"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, change: Any, message: str) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "fixed.parquet"
    small().save(path)
    table = pd.read_parquet(path)
    assert len(table) == 3 * 2 * 4
    change(table).to_parquet(path, index=False)
    with pytest.raises(ValueError, match=message):
        FixedNegatives.load(path)


def rewritten(path: Path, **change: Any) -> None:
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays.update(change)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


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
def test_archives_that_do_not_fit(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "fixed.npz"
    small().save(path)
    rewritten(path, **change)
    with pytest.raises(ValueError, match=message) as caught:
        FixedNegatives.load(path)
    assert str(caught.value).startswith(f"{path}: not a complete file of fixed negatives")


def test_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "fixed.npz"
    small().save(path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert "negatives.npy" in archive.namelist()
    np.save(tmp_path / "single.npy", np.arange(3))
    single = (tmp_path / "single.npy").read_bytes()
    for content in (b"", b"hello", whole[:100], whole[: len(whole) // 2], whole[:-30], single):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a complete file.* make it anew with fixed_neg"):
            FixedNegatives.load(path)
    damaged = bytearray(whole)
    damaged[len(whole) // 4 : len(whole) // 4 + 200] = bytes(200)
    path.write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match="not a complete file"):
        FixedNegatives.load(path)
    with pytest.raises(FileNotFoundError, match="there is no file .* check the name"):
        FixedNegatives.load(tmp_path / "absent.npz")
    for call in (small().save, FixedNegatives.load):
        with pytest.raises(ValueError, match=r"ends in .npz or .parquet, got 'fixed.csv'"):
            call(tmp_path / "fixed.csv")
