"""The embedded graph, loading through DGL's classes, and splits without leakage."""

import functools
import http.server
import os
import pickle
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dgl_dmns.data import (
    DATASET_NAMES,
    GraphData,
    datasets,
    embedded_graph,
    generated_shop,
    generated_triples,
    load_dataset,
    official_split,
    simple_undirected,
    split_directed,
    split_pairs,
)
from dgl_dmns.evaluate import full_ranking, ranking_metrics

DATA_DIR = os.environ.get("DGL_DMNS_DATA", "")
needs_files = pytest.mark.skipif(
    not DATA_DIR, reason="set DGL_DMNS_DATA to a writable DGL cache that holds the data sets"
)


def key(src, dst):
    return src * 100_000 + dst


def held_out(split):
    """(query, positive) of validation and test, [2, V + T]."""
    query = torch.cat([split.val_query, split.test_query])
    return torch.stack([query, torch.cat([split.val_candidates, split.test_candidates])[:, 0]])


def graph_of(src, dst, num_nodes):
    raw = torch.tensor(src), torch.tensor(dst)
    x, labels = torch.zeros(num_nodes, 1), torch.zeros(num_nodes, dtype=torch.int64)
    return GraphData("toy", num_nodes, *simple_undirected(*raw), x, labels, *raw)


# The embedded graph.


@pytest.fixture(scope="module")
def embedded():
    return embedded_graph()


def test_embedded_is_simple_and_stored_in_both_directions(embedded):
    g = embedded
    keys = key(g.src, g.dst)
    assert len(keys.unique()) == len(keys) == 2500 * 8
    assert torch.equal(keys, keys.sort().values)
    assert torch.equal(keys, key(g.dst, g.src).sort().values)
    assert not bool((g.src == g.dst).any())
    assert (g.features.shape, g.features.dtype) == ((2500, 500), torch.float32)
    assert g.features.unique().tolist() == [0.0, 1.0]
    assert g.labels.unique().tolist() == list(range(7))
    assert repr(g) == (
        "GraphData(name='embedded', num_nodes=2500, edges=20000, features=(2500, 500))"
    )


def test_embedded_has_the_properties_it_promises(embedded):
    g = embedded
    degree = torch.bincount(g.src, minlength=2500).double()
    assert degree.mean() == 8.0
    assert (degree == 0).sum() < 25
    assert degree.max() > 8 * degree.mean()  # a Poisson degree of mean 8 stays below 30
    assert degree.var() > 4 * degree.mean()  # and has a variance of 8
    same = (g.labels[g.src] == g.labels[g.dst]).double().mean()
    share = torch.bincount(g.labels).double() / 2500
    assert same > 0.8 > 3 * share.square().sum()  # three times what independent ends would have
    adjacency = torch.zeros(2500, 2500)
    adjacency[g.src, g.dst] = 1.0
    paths = adjacency @ adjacency
    closed = float((paths * adjacency).sum() / (paths.sum() - paths.trace()))
    assert closed > 20 * 8 / 2500  # transitivity far above the density
    assert 15 < g.features.sum(1).mean() < 40
    common = F.normalize(g.features) @ F.normalize(g.features).t()
    assert common[g.src, g.dst].mean() > 1.5 * common.mean()


def test_embedded_depends_on_nothing_but_its_arguments():
    first = embedded_graph(seed=3)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state must have no part in it
    again, other = embedded_graph(seed=3), embedded_graph(seed=4)
    for name in ("src", "dst", "features", "labels"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.features, other.features)
    small = embedded_graph(60, communities=3, words=20, mean_degree=4.0)
    assert (small.num_nodes, tuple(small.features.shape)) == (60, (60, 20))
    assert int(small.labels.max()) == 2


def test_embedded_can_be_learnt_but_not_solved(embedded):
    """One step of propagated features, scored by an inner product: ranks far above chance."""
    g, split = embedded, split_pairs(embedded)
    src, dst = split.message_edges()
    degree = torch.bincount(dst, minlength=g.num_nodes).clamp(min=1)
    mean = torch.sparse_coo_tensor(torch.stack([dst, src]), 1.0 / degree[dst], (2500, 2500))
    x = F.normalize(g.features - g.features.mean(0))
    h = F.normalize(x + torch.sparse.mm(mean, x))
    metrics = ranking_metrics(full_ranking(h, split.test, g.csr()))
    assert 0.03 < metrics["MRR"] < 0.3  # chance: 0.003
    assert 0.2 < metrics["Hits@50"] < 0.85  # chance: 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_nodes": 49}, "num_nodes: expected at least 50, got 49"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"communities": 0}, "communities: expected at least 1, got 0"),
        ({"words": 0}, "words: expected at least 1, got 0"),
        ({"num_nodes": 50, "mean_degree": 11.0}, r"mean_degree: .*\(0, num_nodes / 5 = 10\]"),
        ({"mean_degree": 0.0}, "mean_degree: .* got 0.0"),
    ],
)
def test_embedded_messages(arguments, message):
    with pytest.raises(ValueError, match=message):
        embedded_graph(**arguments)


@pytest.mark.parametrize(
    ("made", "sizes", "each"), [(generated_shop, (30, 20), 16), (generated_triples, (20, 3), 5)]
)
def test_generated_rows_are_different_and_decided_by_their_seed(made, sizes, each):
    rows = made(*sizes, 5)
    assert torch.equal(rows, made(*sizes, 5))
    assert not torch.equal(rows, made(*sizes, 6))
    assert len(rows.unique(dim=1)[0]) == rows.shape[1]
    if made is generated_triples:
        assert (rows[0] != rows[2]).all()
    groups = rows[:1] if made is generated_shop else rows[:2]
    assert groups.unique(dim=1, return_counts=True)[1].unique().tolist() == [each]
    with pytest.raises(ValueError, match="expected at least"):
        made(5, 15)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"src": torch.zeros(2)}, TypeError, "src of graph 'toy': expected torch.int64, got"),
        ({"features": torch.zeros(3, 1).double()}, TypeError, "features .* expected torch.float32"),
        ({"features": torch.zeros(2, 1)}, ValueError, "features .* and 3 rows, .*shape .2, 1."),
        ({"labels": torch.zeros(3, 1).long()}, ValueError, r"labels .* expected 1 dimension"),
        ({"dst": torch.zeros(5).long()}, ValueError, "src and dst .* equal lengths, got 2 and 5"),
        ({"raw_dst": torch.tensor([3])}, ValueError, r"raw_src and raw_dst .* got 0 \.\. 3"),
    ],
)
def test_graph_data_messages(change, error, message):
    toy = graph_of([0], [1], 3)
    with pytest.raises(error, match=message):
        replace(toy, **change)


def test_simple_undirected_and_csr():
    toy = graph_of([2, 2, 0, 1, 3, 2], [0, 0, 2, 1, 2, 2], 5)
    assert torch.stack([toy.src, toy.dst]).tolist() == [[0, 2, 2, 3], [2, 0, 3, 2]]
    assert [part.tolist() for part in toy.csr()] == [[0, 1, 1, 3, 4, 4], [2, 0, 3, 2]]
    empty = torch.zeros(0, dtype=torch.int64)
    assert [len(part) for part in simple_undirected(empty, empty)] == [0, 0]


# Data sets through DGL, with files in its layout.


def write_actor(folder):
    edges = [(0, 1), (1, 0), (0, 2), (0, 2), (3, 3), (5, 4)]
    words = {0: [1, 3], 1: [0], 2: [2, 3], 3: [0, 1], 4: [2], 5: [3]}
    folder.mkdir(parents=True)
    (folder / "out1_graph_edges.txt").write_text(
        "\n".join(["node_id\tnode_id", *(f"{a}\t{b}" for a, b in edges), ""])
    )
    lines = [f"{n}\t{','.join(map(str, w))}\t{n % 2}" for n, w in words.items()]
    (folder / "out1_node_feature_label.txt").write_text(
        "\n".join(["id\tfeature\tlabel", *lines, ""])
    )
    mask = np.ones(6, dtype=np.uint8)
    for i in range(10):
        np.savez(
            folder / f"actor_split_0.6_0.2_{i}.npz", train_mask=mask, val_mask=mask, test_mask=mask
        )


def write_planetoid(folder, raw):
    sparse = pytest.importorskip("scipy.sparse")
    folder.mkdir(parents=True)
    n, test = 520, 8  # DGL takes 500 validation nodes after the training nodes
    x = sparse.csr_matrix(np.tile(np.array([[1.0, 1.0, 0.0]], dtype=np.float32), (n, 1)))
    y = np.tile(np.array([[0, 1]], dtype=np.int32), (n, 1))
    first, train = n - test, 4
    graph = {v: [(v + 1) % n, (v - 1) % n] for v in range(n)}
    graph[7] = [*graph[7], 7, 8]  # a self loop and a duplicate
    parts = {"x": x[:train], "y": y[:train], "tx": x[first:], "ty": y[first:]}
    for part, value in {**parts, "allx": x[:first], "ally": y[:first], "graph": graph}.items():
        (folder / f"ind.{raw}.{part}").write_bytes(pickle.dumps(value))
    (folder / f"ind.{raw}.test.index").write_text("\n".join(map(str, range(first, n))))


def write_coauthor(folder):
    sparse = pytest.importorskip("scipy.sparse")
    folder.mkdir(parents=True)
    n = 6
    adj = sparse.csr_matrix((np.ones(6), (np.arange(n), (np.arange(n) + 1) % n)), shape=(n, n))
    attr = sparse.csr_matrix(np.eye(n, 4))
    arrays = {
        f"{name}_{part}": getattr(matrix, part)
        for name, matrix in (("adj", adj), ("attr", attr))
        for part in ("data", "indices", "indptr", "shape")
    }
    np.savez(folder / "coauthor_cs.npz", labels=np.arange(n) % 3, **arrays)


@pytest.fixture
def no_server(monkeypatch):
    """Name a server that refuses connections: no test here leaves the machine."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("DGL_REPO", "http://127.0.0.1:9/")


@pytest.fixture
def server(no_server, tmp_path, monkeypatch):
    """A local server in the place of DGL's; yields its directory."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    root = tmp_path / "server"
    (root / "dataset").mkdir(parents=True)
    address = ("127.0.0.1", 0)
    with http.server.ThreadingHTTPServer(
        address, functools.partial(Quiet, directory=str(root))
    ) as s:
        monkeypatch.setenv("DGL_REPO", f"http://127.0.0.1:{s.server_address[1]}")
        thread = threading.Thread(target=s.serve_forever, daemon=True)
        thread.start()
        yield root / "dataset"
        s.shutdown()
        thread.join()


def folder_of(name, cache):
    return cache / datasets._SOURCES[name].folder


def test_folders_are_those_of_dgl(monkeypatch):
    monkeypatch.delenv("DGL_REPO", raising=False)
    names = {name: source.folder for name, source in datasets._SOURCES.items()}
    assert names == {
        "cora": "cora_v2_d697a464",
        "citeseer": "citeseer_d6836239",
        "coauthor-cs": "coauthor_cs_10782e7c",
        "actor": "actor_08cc9b02",
    }


def test_actor_keeps_dgl_edges_and_adds_the_undirected_graph(no_server, tmp_path, capfd):
    write_actor(folder_of("actor", tmp_path))
    g = load_dataset("actor", tmp_path)
    import dgl

    raw = dgl.data.ActorDataset(raw_dir=str(tmp_path), verbose=False)[0].edges()
    assert all(torch.equal(*ends) for ends in zip((g.raw_src, g.raw_dst), raw))
    edges = [(0, 1), (1, 0), (2, 0), (2, 0), (3, 3), (4, 5)]
    assert sorted(zip(g.raw_src.tolist(), g.raw_dst.tolist())) == edges
    assert torch.stack([g.src, g.dst]).tolist() == [[0, 0, 1, 2, 4, 5], [1, 2, 0, 0, 5, 4]]
    assert g.features.tolist()[:2] == [[0, 1, 0, 1], [1, 0, 0, 0]]
    assert g.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("name", "raw"), [("cora", "cora_v2"), ("citeseer", "citeseer")])
def test_planetoid_from_raw_and_from_processed_files(name, raw, no_server, tmp_path, capfd):
    folder = folder_of(name, tmp_path)
    write_planetoid(folder, raw)
    first = load_dataset(name, str(tmp_path))
    assert all((folder / file).exists() for file in datasets._SOURCES[name].processed)
    (folder / f"ind.{raw}.x").unlink()
    again = load_dataset(name, tmp_path)
    assert (first.num_nodes, len(first.src)) == (520, 2 * 520)
    assert int((first.raw_src == first.raw_dst).sum()) == 1
    assert first.features[0].tolist() == [0.5, 0.5, 0.0]  # rows sum to one
    for field in ("src", "dst", "features", "labels", "raw_src", "raw_dst"):
        assert torch.equal(getattr(first, field), getattr(again, field))
    assert capfd.readouterr().out == ""


def test_coauthor(no_server, tmp_path, capfd):
    write_coauthor(folder_of("coauthor-cs", tmp_path))
    g = load_dataset("coauthor-cs", tmp_path)
    assert (g.num_nodes, len(g.src), len(g.raw_src)) == (6, 12, 12)
    assert (g.features.shape, g.features.sum().item()) == ((6, 4), 4.0)
    assert capfd.readouterr().out == ""


def test_absent_files_are_downloaded(server, tmp_path):
    write_actor(tmp_path / "source")
    shutil.make_archive(str(server / "actor"), "zip", tmp_path / "source")
    assert load_dataset("actor", tmp_path / "cache").num_nodes == 6
    assert (folder_of("actor", tmp_path / "cache") / "out1_graph_edges.txt").exists()


def test_a_failed_download_is_explained(server, tmp_path):
    with pytest.raises(RuntimeError, match="data set 'actor': DGL's ActorDataset failed with"):
        load_dataset("actor", tmp_path)


def test_no_network_fails_quickly_and_says_what_to_do(no_server, tmp_path, monkeypatch):
    monkeypatch.setenv("DGL_DOWNLOAD_DIR", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("cora")
    assert time.perf_counter() - start < 30.0  # a server that is waited for takes longer
    for part in ("no folder cora_v2_", str(tmp_path), "ind.cora_v2.graph", "data_dir", "embedded"):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []  # nothing left behind


def test_incomplete_and_damaged_folders_are_explained(no_server, tmp_path):
    edges = folder_of("actor", tmp_path) / "out1_graph_edges.txt"
    write_actor(edges.parent)
    edges.write_text("node_id\tnode_id\n0\tx\n")
    with pytest.raises(RuntimeError, match="ActorDataset failed with ValueError: .*intact copy"):
        load_dataset("actor", tmp_path)
    edges.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks out1_graph_edges.txt\. Copy the missing"):
        load_dataset("actor", tmp_path)


def test_a_read_only_folder_is_refused(no_server, tmp_path, monkeypatch):
    write_coauthor(folder_of("coauthor-cs", tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"DGL writes dgl_graph_v1.bin into .*not writable"):
        load_dataset("coauthor-cs", tmp_path)


def test_names():
    assert DATASET_NAMES == ("embedded", "dense", "cora", "citeseer", "coauthor-cs", "actor")
    assert load_dataset("embedded").num_nodes == 2500
    dense = load_dataset("dense")
    degrees = torch.bincount(dense.src, minlength=dense.num_nodes)
    assert (dense.name, dense.features.shape) == ("dense", (1200, 0))
    assert float(degrees.double().mean()) == 30
    assert int(degrees.max()) > 200
    with pytest.raises(ValueError, match="one of embedded, dense, cora, .*actor, got 'pubmed'"):
        load_dataset("pubmed")


REAL = {
    "cora": ((2708, 10556, 10556), (8554, 528, 528)),
    "citeseer": ((3327, 9228, 9104), (7358, 455, 456)),
    "actor": ((7600, 33391, 53318), (26433, 1501, 1501)),
    "coauthor-cs": ((18333, 163788, 163788), None),
}


@needs_files
@pytest.mark.parametrize("name", REAL)
def test_real_data_sets_and_official_splits(name):
    """Nodes, raw and simple edges; sizes of the published parts, which are edges of the graph."""
    g, (counts, sizes) = load_dataset(name, DATA_DIR), REAL[name]
    assert (g.num_nodes, len(g.raw_src), len(g.src)) == counts
    folder = Path(DATA_DIR) / "official_splits"
    if sizes is None or not folder.is_dir():
        return
    s = official_split(folder, name)
    assert (s.train.shape[1], len(s.val_query), len(s.test_query)) == sizes
    # Actor's is published against the direction of DGL's edges.
    ends = (g.raw_dst, g.raw_src) if name == "actor" else (g.raw_src, g.raw_dst)
    held, train = held_out(s), key(s.train[0], s.train[1])
    for part in (s.train, held):
        assert bool(torch.isin(key(part[0], part[1]), key(*ends)).all())
    for query, positive in (held, held.flip(0)):
        assert not bool(torch.isin(key(query, positive), train).any())


# Splits.


@pytest.fixture(scope="module")
def small():
    return embedded_graph(300, communities=3, words=20, mean_degree=6.0)


def test_pairs_are_divided_without_overlap(small):
    s = split_pairs(small, val=0.05, test=0.1, seed=1)
    assert [part.shape[1] for part in (s.train, s.val, s.test)] == [765, 45, 90]
    sides = [key(part.min(0).values, part.max(0).values) for part in (s.train, s.val, s.test)]
    once = small.src < small.dst
    whole = key(small.src[once], small.dst[once])
    assert torch.equal(torch.cat(sides).sort().values, whole)  # all pairs, each once
    assert bool((s.train[0] < s.train[1]).all())
    turned = torch.cat([s.val, s.test], dim=1)
    assert 0.3 < (turned[0] > turned[1]).double().mean() < 0.7


def test_messages_hold_no_held_out_edge(small):
    s = split_pairs(small)
    src, dst = s.message_edges()
    assert len(src) == 2 * s.train.shape[1]
    messages = key(src, dst)
    assert torch.equal(messages, key(dst, src).sort().values)
    for part in (s.val, s.test):
        assert not bool(torch.isin(key(part[0], part[1]), messages).any())
        assert not bool(torch.isin(key(part[1], part[0]), messages).any())


@pytest.mark.parametrize("split", [split_pairs, split_directed])
def test_a_seed_decides_the_split(split, small):
    first, again, other = split(small, seed=5), split(small, seed=5), split(small, seed=6)
    for name in vars(first):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.train, other.train)


def test_directed_edges_are_divided_and_reverses_removed(small):
    # Keep one direction of a third of the pairs; add a self loop and a duplicate.
    keep = (small.src < small.dst) | ((small.src + small.dst) % 3 > 0)
    src, dst = small.src[keep], small.dst[keep]
    raw_src = torch.cat([src, src[:1], torch.tensor([4])])
    raw_dst = torch.cat([dst, dst[:1], torch.tensor([4])])
    s = split_directed(replace(small, raw_src=raw_src, raw_dst=raw_dst))
    held = held_out(s)
    edges = key(src, dst)
    num_train = int(0.9 * len(edges))
    num_val = (len(edges) - num_train) // 2
    assert (len(s.val_query), len(s.test_query)) == (num_val, len(edges) - num_train - num_val)
    train, test = key(s.train[0], s.train[1]), key(held[0], held[1])
    assert len(torch.cat([train, test]).unique()) == len(train) + len(test)
    assert bool(torch.isin(torch.cat([train, test]), edges).all())
    reverse = key(held[1], held[0])
    assert not bool(torch.isin(reverse, train).any())
    missing = edges[~torch.isin(edges, torch.cat([train, test]))]
    assert len(train) < num_train  # something was removed,
    assert bool(torch.isin(missing, reverse).all())  # and nothing but reverses
    messages = key(*s.message_edges())
    assert not bool(torch.isin(torch.cat([test, reverse]), messages).any())


def test_shares_of_the_published_splits():
    """Edges of Cora, Citeseer and Actor: the same numbers of held-out edges as published."""
    for count, val, test in ((10556, 528, 528), (9104, 455, 456), (30019, 1501, 1501)):
        path = torch.arange(count)
        toy = graph_of(path.tolist(), (path + 1).tolist(), count + 1)
        s = split_directed(toy)
        assert (len(s.val_query), len(s.test_query)) == (val, test)


def test_negatives_are_uniform_over_what_is_left():
    """A star with a tail: the centre 0 has few admissible nodes, each other node many."""
    leaves = list(range(1, 17))
    toy = graph_of([0] * 16 + [16, 17, 18], [*leaves, 17, 18, 19], 20)
    counts = torch.zeros(20, 20)
    for seed in range(400):
        s = split_directed(toy, val=0.4, test=0.4, seed=seed)
        candidates = torch.cat([s.val_candidates, s.test_candidates])
        assert candidates.shape == (held_out(s).shape[1], 10)
        for q, row in zip(held_out(s)[0].tolist(), candidates[:, 1:]):
            counts[q] += torch.bincount(row, minlength=20)
    excluded = torch.eye(20, dtype=torch.bool)
    excluded[toy.src, toy.dst] = True
    assert counts[excluded].sum() == 0
    for q in (0, 16, 18):
        seen = counts[q][~excluded[q]]
        expected = seen.mean()
        chi_square = float(((seen - expected).square() / expected).sum())
        freedom = len(seen) - 1
        assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("split", [split_pairs, split_directed])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val": 0.0}, r"val: expected a share of the edges in \(0, 1\), got 0.0"),
        ({"test": 1.5}, r"test: expected a share of the edges in \(0, 1\), got 1.5"),
        ({"val": 0.5, "test": 0.5}, r"val \+ test: expected less than 1, got 0.5 \+ 0.5"),
        ({"val": 1e-5, "test": 1e-5}, "graph 'embedded' has too few edges, its val part is empty"),
    ],
)
def test_split_messages(split, arguments, message, small):
    with pytest.raises(ValueError, match=message):
        split(small, **arguments)


def test_a_query_joined_to_all_has_no_negatives():
    ends = [(a, b) for a in range(6) for b in range(6) if a < b]
    complete = graph_of([a for a, _ in ends], [b for _, b in ends], 6)
    with pytest.raises(ValueError, match="node . of graph 'toy' is joined to every other node"):
        split_directed(complete, val=0.2, test=0.2)


def write_official(file, **change):
    rng = np.random.default_rng(0)
    sizes = {"train": 20, "val": 3, "test": 4}
    arrays = {part: rng.integers(0, 2708, (n, 12)).astype(np.int32) for part, n in sizes.items()}
    arrays.update(change)
    for part in [name for name, array in arrays.items() if array is None]:
        del arrays[part]
    np.savez(file, **arrays)


def test_official_split_from_a_file_and_a_directory(tmp_path):
    write_official(tmp_path / "cora.npz")
    arrays = np.load(tmp_path / "cora.npz")
    for path in (tmp_path, str(tmp_path / "cora.npz")):
        s = official_split(path, "cora")
        assert s.train.tolist() == arrays["train"][:, :2].T.tolist()
        for part in ("val", "test"):
            query, candidates = getattr(s, f"{part}_query"), getattr(s, f"{part}_candidates")
            rows = torch.cat([query.unsqueeze(1), candidates], dim=1)
            assert rows.tolist() == arrays[part][:, :11].tolist()
        assert {value.dtype for value in vars(s).values()} == {torch.int64}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val": None}, "cora.npz: expected the arrays train, val and test, got train, test"),
        ({"test": np.zeros((2, 11), int)}, r"array test: expected shape \[\*, 12\].*got \[2, 11\]"),
        ({"train": np.zeros((0, 12), int)}, r"array train: .*at least one row, got \[0, 12\]"),
        ({"val": np.zeros((2, 12))}, "array val: expected integers, got float64"),
        ({"val": np.full((2, 12), 2708)}, r"array val: .*0 \.\. 2707 \(cora\), got 2708"),
        ({"val": np.full((2, 12), -1)}, r"array val: .*got -1 \.\. -1; check the name"),
    ],
)
def test_official_split_messages(change, message, tmp_path):
    write_official(tmp_path / "cora.npz", **change)
    with pytest.raises(ValueError, match=message):
        official_split(tmp_path, "cora")


def test_official_split_of_another_name_or_place(tmp_path):
    with pytest.raises(ValueError, match="one of cora, citeseer, actor, got 'coauthor-cs'"):
        official_split(tmp_path, "coauthor-cs")
    with pytest.raises(FileNotFoundError, match="expected the file cora.npz or the directory"):
        official_split(tmp_path, "cora")
