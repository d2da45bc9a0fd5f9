"""The recommendation example, at a small size."""

import importlib.util
import sys
from pathlib import Path

import dgl
import pytest
import torch

import dgl_dmns

SCRIPT = Path(__file__).parents[1] / "examples" / "recommend.py"


@pytest.fixture(scope="module")
def recommend():
    spec = importlib.util.spec_from_file_location("recommend", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setitem(sys.modules, "recommend", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    monkeypatch.undo()


SMALL = ["--users", "150", "--items", "80", "--seeds", "1", "--epochs", "15"]


@pytest.mark.filterwarnings("ignore:Dataloader CPU affinity")
@pytest.mark.parametrize("loss", ["bce", "cross-entropy"])
def test_trains_with_both_samplers_and_prints_the_table(recommend, capsys, loss):
    assert recommend.main([*SMALL, "--loss", loss]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("150 users, 80 items")
    header = next(line for line in printed if "Recall@20" in line)
    assert header.split() == ["Recall@20", "NDCG@20", "epochs", "seconds/epoch"]
    rows = {line.split()[0]: [float(v) for v in line.split()[1:]] for line in printed[-2:]}
    assert list(rows) == ["uniform", "dmns"]
    # A random order of the 66 items that a user has not bought finds 20 / 66 = .30 of the test.
    assert all(recall > 0.33 for recall, *_ in rows.values())


def test_one_seed_gives_one_result(recommend):
    args = recommend.arguments([*SMALL, "--epochs", "2"])
    results = []
    for _ in range(2):
        result = recommend.train("dmns", recommend.generate(150, 80), 0, args)
        del result["seconds/epoch"]
        results.append(result)
    assert results[0] == results[1]


def test_cross_entropy_is_calibrated_for_our_sampler_only(recommend):
    shop = recommend.generate(50, 40)
    h = {ntype: torch.randn(shop.g.num_nodes(ntype), 8) for ntype in ("user", "item")}
    ours = recommend.DMNSSampler(
        shop.g, lambda: h, k=3, etypes=["buys"], pools=dgl_dmns.Pools(pool=40)
    )
    ours.refresh()
    eids = torch.arange(20)
    user, item = shop.g.find_edges(eids, etype="buys")
    source, drawn = ours(shop.g, {"buys": eids})[("user", "buys", "item")]

    def graph(src, dst):
        edges = {("user", "buys", "item"): (src, dst), ("item", "bought by", "user"): ([], [])}
        return dgl.heterograph(edges, num_nodes_dict={"user": 50, "item": 40})

    positive, negative = torch.randn(20), torch.randn(60)
    graphs = graph(user, item), graph(source, drawn)
    for g in graphs:
        for ntype in g.ntypes:
            g.nodes[ntype].data[dgl.NID] = torch.arange(g.num_nodes(ntype))
    torch.manual_seed(0)
    got = recommend.cross_entropy(ours, *graphs, positive, negative)
    torch.manual_seed(0)
    ratio = ours.log_ratio((source, drawn))
    logit = torch.cat(
        [
            (positive - ours.positive_log_ratio((user, item))).unsqueeze(1),
            (negative - ratio).view(20, 3),
        ],
        dim=1,
    )
    expected = torch.nn.functional.cross_entropy(logit, torch.zeros(20, dtype=torch.int64))
    torch.testing.assert_close(got, expected)
    plain = recommend.cross_entropy(None, *graphs, positive, negative)
    logit = torch.cat([positive.unsqueeze(1), negative.view(20, 3)], dim=1)
    expected = torch.nn.functional.cross_entropy(logit, torch.zeros(20, dtype=torch.int64))
    torch.testing.assert_close(plain, expected)


def test_parts_of_the_purchases(recommend):
    shop = recommend.generate(50, 40)
    user, item = shop.g.edges(etype="buys")
    assert torch.equal(torch.stack(shop.g.edges(etype="bought by")), torch.stack([item, user]))
    parts = [torch.stack([user, item]), shop.val, shop.test]
    assert [part.shape[1] for part in parts] == [50 * 14, 50 * 2, 50 * 4]
    key = torch.cat([part[0] * 40 + part[1] for part in parts])
    assert len(key.unique()) == len(key)


@pytest.mark.parametrize(
    ("option", "value"), [("--items", "19"), ("--users", "0"), ("--k", "0"), ("--batch-size", "0")]
)
def test_rejects_counts_that_are_too_small(recommend, option, value, capsys):
    with pytest.raises(SystemExit) as caught:
        recommend.arguments([option, value])
    assert caught.value.code == 2
    assert f"{option}: expected at least" in capsys.readouterr().err
