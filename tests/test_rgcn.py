"""The example of a knowledge graph, at a small size."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "examples" / "rgcn.py"


@pytest.fixture(scope="module")
def rgcn():
    spec = importlib.util.spec_from_file_location("rgcn", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setitem(sys.modules, "rgcn", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    monkeypatch.undo()


SMALL = ["--people", "80", "--works", "60", "--seeds", "1", "--epochs", "15", "--batch-size", "512"]


@pytest.mark.filterwarnings("ignore:Dataloader CPU affinity")
def test_trains_with_both_samplers_and_prints_the_table(rgcn, capsys):
    assert rgcn.main(SMALL) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("80 people, 60 works, 6 relations")
    header = next(line for line in printed if "MRR" in line)
    assert header.split() == ["MRR", "NDCG", "Hits@1", "Hits@10", "epochs", "seconds/epoch"]
    rows = {line.split()[0]: [float(v) for v in line.split()[1:]] for line in printed[-2:]}
    assert list(rows) == ["uniform", "dmns"]
    # A random order of the 53 or 73 tails that are left has an MRR of .076 on average.
    assert all(mrr > 0.1 for mrr, *_ in rows.values()), rows


@pytest.mark.filterwarnings("ignore:Dataloader CPU affinity")
def test_one_seed_gives_one_result(rgcn):
    args = rgcn.arguments([*SMALL, "--epochs", "2"])
    results = []
    for _ in range(2):
        result = rgcn.train("dmns", rgcn.generate(80, 60), 0, args)
        del result["seconds/epoch"]
        results.append(result)
    assert results[0] == results[1]


def test_the_decoder_of_each_relation_decides_what_is_hard(rgcn):
    """With weights that look at one coordinate only, the hardest tails are its largest."""
    torch.manual_seed(0)
    data = rgcn.generate(30, 20)
    model, decoder = rgcn.RGCN(data.g), rgcn.DistMult()
    for number, name in enumerate(rgcn.RELATIONS):
        decoder.weight[name].data.zero_()[number] = 50.0
    sampler = rgcn.negative_sampler("dmns", data.g, model, decoder, 2, 0)
    h = {n: torch.rand(data.g.num_nodes(n), 32) + 0.1 for n in data.g.ntypes}
    sampler.refresh(h)
    assert list(sampler.relations) == [e for e in data.g.canonical_etypes if e[1] in rgcn.RELATIONS]
    for (_, name, tail), relation in sampler.relations.items():
        number = list(rgcn.RELATIONS).index(name)
        drawn = h[tail][relation.table.current().ids.long()].flatten(0, -2).mean(0)
        assert drawn[number] > 1.1 * h[tail][:, number].mean()
        rest = torch.arange(32) != number
        assert float(drawn[rest].mean() / h[tail][:, rest].mean()) < 1.05


def test_parts_of_the_triples(rgcn):
    data = rgcn.generate(30, 20)
    for name, (head, tail) in rgcn.RELATIONS.items():
        edges = torch.stack(data.g.edges(etype=name))
        inverse = torch.stack(data.g.edges(etype=rgcn.INVERSE[name]))
        assert torch.equal(inverse, edges.flip(0))
        parts = [edges, data.val[name], data.test[name]]
        heads = data.g.num_nodes(head)
        assert [part.shape[1] for part in parts] == [6 * heads, heads, heads]
        v, u = torch.cat(parts, dim=1)
        assert len(torch.unique(v * data.g.num_nodes(tail) + u)) == 8 * heads
        assert data.known[name].contains(v, u).all()
        assert data.known[name].indices.numel() == 8 * heads
        if head == tail:
            assert (v != u).all()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--people", "9"), ("--works", "0"), ("--k", "0"), ("--batch-size", "0"), ("--fanout", "0")],
)
def test_rejects_counts_that_are_too_small(rgcn, option, value, capsys):
    with pytest.raises(SystemExit) as caught:
        rgcn.arguments([option, value])
    assert caught.value.code == 2
    assert f"{option}: expected at least" in capsys.readouterr().err
