"""Negatives as a file: those of a first pass, what their columns say, and what is left out."""

import sys

import dgl
import numpy as np
import pandas as pd
import pytest
import torch
from shared import BUYS, KINDS, barred, embed, graph, make, pairs, refreshed, rng, shop

from dgl_dmns.samplers import export

COLUMNS = ["source", "positive", "destination", "level", "log_ratio", "score"]


def written(sampler, folder, name="negatives.parquet", **arguments):
    """The table that is read back."""
    path = folder / name
    rows = sampler.export(path, **arguments)
    frame = (pd.read_csv if name.endswith(".csv") else pd.read_parquet)(path)
    assert list(frame) == COLUMNS
    assert len(frame) == rows
    return frame


def scoring(sampler, g):
    return {} if hasattr(sampler, "refresh") else {"embeddings": embed(g)}


@pytest.mark.parametrize("kind", KINDS)
def test_k_negatives_of_every_edge_and_no_trace(kind, tmp_path):
    g = graph()
    sampler = refreshed(kind, g)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    frame = written(sampler, tmp_path, **scoring(sampler, g))
    text = written(sampler, tmp_path, "negatives.csv", **scoring(sampler, g))
    assert torch.equal(torch.get_rng_state(), before)
    if hasattr(sampler, "table"):
        assert sampler.table.handed_out(sampler.version) == 0
    pd.testing.assert_frame_equal(frame, text, check_dtype=False)
    src, dst = g.edges()
    edges = torch.stack([src, dst]).unique(dim=1).repeat_interleave(3, dim=1)
    assert torch.equal(torch.from_numpy(frame[["source", "positive"]].to_numpy().T.copy()), edges)
    negative = torch.from_numpy(frame["destination"].to_numpy().copy())
    assert not barred(g)[edges[0], negative].any()
    h = embed(g)
    score = (h[edges[0]] * h[negative]).sum(-1).numpy()
    np.testing.assert_allclose(frame["score"], score, rtol=1e-4, atol=1e-5)
    if frame["log_ratio"].notna().any() and hasattr(sampler, "log_ratio"):
        ratio = sampler.log_ratio((edges[0], negative)).numpy()
        np.testing.assert_allclose(frame["log_ratio"], ratio, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dynamic", "dmns"])
def test_they_are_those_of_the_first_pass(kind, tmp_path):
    src, dst = torch.stack(pairs(40, 40, 120)).unique(dim=1)
    g = dgl.graph((src, dst), num_nodes=40)
    sampler = refreshed(kind, g, k=2)
    frame = written(sampler, tmp_path)
    drawn = sampler.draw(src, dst=dst)
    chosen = sampler.chosen(g.canonical_etypes[0], torch.arange(len(src))) if kind == "dmns" else 1
    hard = torch.as_tensor(chosen).expand(drawn.ids.shape) > 0
    assert torch.equal(
        torch.from_numpy((frame["level"] != "uniform").to_numpy().copy()), hard.flatten()
    )
    ids = torch.from_numpy(frame["destination"].to_numpy().copy()).view(-1, 2)
    assert torch.equal(ids[hard], drawn.ids[hard])
    names = np.array([*sampler.look().levels, *["no level"] * 252], dtype=object)
    level = frame["level"].to_numpy().reshape(-1, 2)
    assert (level[hard.numpy()] == names[drawn.level[hard].clamp(max=250).numpy()]).all()


def test_likely_edges_are_left_out(tmp_path):
    g = graph()
    sampler = refreshed("dmns", g)
    whole = written(sampler, tmp_path)
    h = embed(g)
    positive = (h[whole["source"]] * h[whole["positive"]]).sum(-1).numpy()
    for bounds, kept in (
        ({"max_score": 1.0}, whole["score"] <= 1.0),
        ({"margin": 0.5}, whole["score"] <= positive - 0.5),
        ({"max_score": 1.0, "margin": 0}, (whole["score"] <= 1.0) & (whole["score"] <= positive)),
    ):
        assert 0 < kept.sum() < len(whole)
        some = written(sampler, tmp_path, **bounds)
        pd.testing.assert_frame_equal(some, whole[kept].reset_index(drop=True))


def test_names_by_node_type(tmp_path):
    g = shop()
    sampler = refreshed("dmns", g, k=2)
    names = {"user": [f"u{i}" for i in range(12)], "item": np.arange(100, 109)}
    plain = written(sampler, tmp_path, etype="buys")
    frame = written(sampler, tmp_path, etype=BUYS, ids=names)
    assert frame["source"].tolist() == [f"u{i}" for i in plain["source"]]
    for column in ("positive", "destination"):
        assert frame[column].tolist() == (plain[column] + 100).tolist()
    friends = written(sampler, tmp_path, etype="knows", ids=pd.Series(names["user"]))
    assert set(friends["destination"]) <= set(names["user"])


def test_in_parts_and_with_queries_that_know_all(monkeypatch, tmp_path):
    src = torch.tensor([0, 0, 0, 1, 2])
    g = dgl.graph((src, torch.tensor([1, 2, 3, 2, 3])), num_nodes=4)
    with pytest.warns(UserWarning, match="no true negative"):
        sampler = refreshed("dynamic", g, torch.randn(4, 3, generator=rng()), k=1)
    whole = written(sampler, tmp_path)
    assert whole["source"].tolist() == [1, 2]
    monkeypatch.setattr(export, "_EDGES", 2)
    for name in ("a.csv", "a.parquet"):
        parts = written(sampler, tmp_path, name)
        pd.testing.assert_frame_equal(parts, whole, check_dtype=False)


def test_an_edge_type_without_edges(tmp_path):
    sampler = make("uniform", shop())
    for name in ("a.csv", "a.parquet"):
        assert written(sampler, tmp_path, name, etype="like").empty


def test_what_is_refused(monkeypatch, tmp_path):
    path, g = tmp_path / "a.csv", graph()
    sampler = refreshed("dmns", g)
    with pytest.raises(ValueError, match=r"path: expected a name that ends in \.csv or \.parquet"):
        sampler.export(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"margin: expected a number, got NaN"):
        sampler.export(path, margin=float("nan"))
    with pytest.raises(TypeError, match=r"max_score: expected a number"):
        sampler.export(path, max_score="high")
    with pytest.raises(RuntimeError, match=r"call\s+refresh\(\) or attach\(\) first"):
        make("dmns", g).export(path)
    uniform = make("uniform", g)
    assert uniform.export(path) > 0
    kept = path.read_bytes()
    with pytest.raises(ValueError, match=r"margin: UniformSampler follows no encoder.*embeddings="):
        uniform.export(path, margin=0.1)
    for ids, error, message in (
        ([1, 2], ValueError, "expected 40 names of nodes of type '_N'"),
        ([0.5] * 40, TypeError, "expected words or integers .* got 0.5"),
        ({"user": []}, ValueError, "expected names by node type.* got .'user'"),
    ):
        with pytest.raises(error, match=f"ids: {message}"):
            sampler.export(path, ids=ids)
    with pytest.raises(ValueError, match=r"a dict with .*'user', 'item'.*got list"):
        make("uniform", shop()).export(path, etype="buys", ids=["a"] * 12)

    def failing(h_query, h_candidate):
        raise RuntimeError("no room")

    broken = refreshed("dynamic", g)
    object.__setattr__(broken.relation(), "scorer", failing)
    with pytest.raises(RuntimeError, match="no room"):
        broken.export(path)
    assert path.read_bytes() == kept
    assert [one.name for one in tmp_path.iterdir()] == ["a.csv"]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"needs pyarrow .*ends in \.csv"):
        sampler.export(tmp_path / "a.parquet")
