import pytest
import torch

from benchmarks.common.rows import Cell
from benchmarks.gae.problem import ROWS, Recipe, load_problem
from benchmarks.gae.train import Decoder, Encoder, Run, hits_at, train

SHORT = Recipe(hidden=8, epochs=2, batch_size=256, decoder_layers=2)


@pytest.fixture(scope="module")
def problem():
    return load_problem("tiny", SHORT, 0, None)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_runs(problem, name):
    result = train(problem, Cell("tiny", SHORT, ROWS[name], 0))
    assert len(result["curve"]) == result["epochs"] == 2
    assert result["curve"][result["best epoch"]] == result["val"]["Hits@100"]
    assert result["test"].keys() == {"Hits@10", "Hits@20", "Hits@100", "MRR"}
    assert all(0.0 <= figure <= 1.0 for figure in result["test"].values())
    assert result["test"]["Hits@10"] <= result["test"]["Hits@20"] <= result["test"]["Hits@100"]


def test_the_recipe_learns(problem):
    long = Recipe(hidden=16, epochs=1, batch_size=128, decoder_layers=2, dropout=0.0)
    run = Run(problem, Cell("tiny", long, ROWS["global"], 0))
    before = run.mrr(run.embed(), "test")
    for _ in range(8):
        run.epoch()
    assert run.mrr(run.embed(), "test") > 1.2 * before


def test_same_seed_same_result(problem):
    cell = Cell("tiny", SHORT, ROWS["density-calibrated"], 3)
    first, second = (train(problem, cell) for _ in range(2))
    assert first["test"] == second["test"]
    assert first["curve"] == second["curve"]


def test_problem_is_free_of_leaks(problem):
    nodes = problem.data.num_nodes
    src, dst = problem.graph.edges()
    assert torch.equal(src[problem.reverse], dst)
    assert torch.equal(dst[problem.reverse], src)
    assert 2 * len(problem.forward) == problem.graph.num_edges()
    known = set((problem.data.src * nodes + problem.data.dst).tolist())
    messages = set((src * nodes + dst).tolist())
    for part in ("val", "test"):
        pairs, non_edges = getattr(problem.split, part), problem.non_edges[part]
        assert pairs.shape == non_edges.shape
        assert known.isdisjoint((non_edges[0] * nodes + non_edges[1]).tolist())
        assert (non_edges[0] != non_edges[1]).all()
        for a, b in (pairs, pairs.flip(0)):
            assert messages.isdisjoint((a * nodes + b).tolist())


def test_hits_at_a_rank_of_the_shared_list():
    positive = torch.tensor([4.0, 2.0, 0.5])
    negative = torch.tensor([3.0, 1.0, 0.0])
    assert [hits_at(positive, negative, k) for k in (1, 2, 3, 4)] == [1 / 3, 2 / 3, 1.0, 1.0]
    assert hits_at(torch.tensor([3.0]), negative, 1) == 0.0  # a tie is no hit


def test_model_is_the_published_form():
    g = load_problem("tiny", SHORT, 0, None).graph
    torch.manual_seed(0)
    encoder, decoder = Encoder(5, 8, 2, 0.5).eval(), Decoder(8, 3, 0.5).eval()
    x = torch.randn(g.num_nodes(), 5)
    adjacency = torch.zeros(g.num_nodes(), g.num_nodes())
    adjacency[g.edges()[1], g.edges()[0]] = 1
    scale = adjacency.sum(1).clamp(min=1).rsqrt()
    with torch.no_grad():
        encoder.shares.copy_(torch.tensor([0.5, 0.0, 1.0]))
        layers = [encoder.linear(x)]
        for norm in encoder.norms:
            layers.append(norm(scale[:, None] * (adjacency @ (scale[:, None] * layers[-1]))))
        shares = torch.softmax(encoder.shares, 0)
        expected = sum(share * layer for share, layer in zip(shares, layers))
        torch.testing.assert_close(encoder(g, x), expected, rtol=1e-4, atol=1e-5)
        h = expected[:4]
        torch.testing.assert_close(decoder(h[:2], h[2:]), decoder(h[2:], h[:2]))
        assert decoder(h[:, None], h[None]).shape == (4, 4)


def test_an_epoch_has_every_pair_once_from_either_end(problem):
    run = Run(problem, Cell("tiny", SHORT, ROWS["per-source"], 0))
    sampler, seen = run.sampler, []

    def seeing(graph, eids):
        seen.append(eids)
        return sampler(graph, eids)

    run.sampler = seeing
    run.epoch()
    eids = torch.cat(seen)
    as_is = torch.isin(eids, problem.forward)
    pairs = torch.where(as_is, eids, problem.reverse[eids])
    assert torch.equal(pairs.sort().values, problem.forward)
    assert 0.3 < float(as_is.double().mean()) < 0.7
