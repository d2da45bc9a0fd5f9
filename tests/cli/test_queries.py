"""Users and items, and triples: from a file to a run, and from a run to ranked answers."""

import io
import json
import re
import shlex

import numpy as np
import pandas as pd
import pytest
import torch

from dgl_dmns.cli import main
from dgl_dmns.cli.kinds import KINDS
from dgl_dmns.cli.records import read_records
from dgl_dmns.evaluate import filtered_ranking, ranking_metrics, recommendation_metrics
from dgl_dmns.models import MODELS

SMALL = ["--quiet", "--hidden", "8", "--batch-size", "64", "--threads", "1"]
DMNS = ["--sampler", "dmns", "--set", "warmup_steps=10", "fit_steps=3"]
DATA = {"bipartite": "shop.csv", "knowledge": "facts.csv"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A shop in which users like items of their own kind, and facts with three relations."""
    folder = tmp_path_factory.mktemp("queries")
    rng = np.random.default_rng(0)
    rows = [f"u{u:02d},{3 * i + u % 3}" for u in range(40) for i in rng.permutation(9)[:5]]
    (folder / "shop.csv").write_text("\n".join(["user,item", *rows, ""]))
    steps = {"next": 1, "third": 3, "fifth": 5}
    rows = [f"n{i:02d},{r},n{(i + s) % 40:02d}" for r, s in steps.items() for i in range(40)]
    (folder / "facts.csv").write_text("\n".join(["head,relation,tail", *rows, ""]))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """Runs of both kinds with DMNS and a baseline, by kind."""
    for kind in DATA:
        assert main(words_of(folder, kind, folder / kind, "--epochs", 4)) == 0
    return {kind: folder / kind for kind in DATA}


def words_of(folder, kind, out, *more):
    words = ["train", "--kind", kind, "--edges", folder / DATA[kind], "--out", out, *SMALL]
    return [*map(str, [*words, *([] if "--sampler" in more else DMNS), *more])]


@pytest.fixture
def answers(capsys):
    """Runs a command; the table that it prints."""

    def printed(*words):
        capsys.readouterr()
        assert main([*map(str, words)]) == 0
        return pd.read_csv(io.StringIO(capsys.readouterr().out))

    return printed


def arrays(folder):
    with np.load(folder / "embeddings.npz") as archive:
        return dict(archive)


def tensors(folder, *names):
    return [torch.from_numpy(arrays(folder)[name]) for name in names]


@pytest.mark.parametrize(
    ("kind", "watched", "metrics"),
    [
        ("bipartite", "ndcg", {"NDCG@20", "Recall@20"}),
        ("knowledge", "mrr", {"MRR", "Hits@1", "Hits@3", "Hits@10"}),
    ],
)
def test_what_a_run_leaves_behind(run, kind, watched, metrics):
    found = json.loads((run[kind] / "metrics.json").read_text())
    uniform = found.pop("uniform")
    assert set(found) == set(uniform) == metrics
    assert pd.read_csv(run[kind] / "metrics.csv").columns.tolist()[2] == watched
    assert pd.read_csv(run[kind] / "negatives.csv")["etype"].nunique() == 1
    page = (run[kind] / "report.html").read_text()
    assert "with uniform negatives" in page
    assert f"Validation {'MRR' if watched == 'mrr' else 'NDCG@20'}" in page
    names = "scores.npz query.npz baseline.npz checkpoint.npz run.json".split()
    assert {*names} <= {file.name for file in run[kind].iterdir()}


def test_the_metrics_of_a_shop_are_those_of_its_embeddings(run, folder):
    records = read_records(folder / "shop.csv", "bipartite", ("user", "item"))
    split, _ = records.split(0)
    seen = torch.cat([split["train"], split["val"]], dim=1)
    seen = seen[:, seen[0].argsort(stable=True)]
    indptr = torch.cat([torch.zeros(1), torch.bincount(seen[0], minlength=40).cumsum(0)]).long()
    h = tensors(run["bipartite"], "query_embedding", "item_embedding")
    found = recommendation_metrics(*h, split["test"], (indptr, seen[1]))
    kept = json.loads((run["bipartite"] / "metrics.json").read_text())
    assert kept["NDCG@20"] == pytest.approx(found["NDCG@20"])
    indptr, indices = tensors(run["bipartite"], "known_indptr", "known_indices")
    ranks = filtered_ranking(*h, split["test"], (indptr, indices))
    named = zip(*(records.ids[what][end] for what, end in zip(("user", "item"), split["test"])))
    expected = dict(zip(named, ranks.tolist()))
    table = pd.read_csv(run["bipartite"] / "ranks.csv")
    assert {(user, item): rank for user, item, rank in table.itertuples(index=False)} == expected


def test_the_metrics_of_facts_are_filtered_and_of_both_sides(run, folder):
    records = read_records(folder / "facts.csv", "knowledge", ("head", "relation", "tail"))
    heads, relations, tails = records.split(0)[0]["test"]
    entity, relation, query_h, item_h, *known = tensors(
        run["knowledge"],
        *("query_entity", "query_relation", "query_embedding", "item_embedding"),
        *("known_indptr", "known_indices"),
    )
    place = {pair: q for q, pair in enumerate(zip(entity.tolist(), relation.tolist()))}
    asked = list(zip(heads.tolist(), relations.tolist(), tails.tolist()))
    asked += [(t, r + 3, h) for h, r, t in asked]
    pairs = torch.tensor([(place[e, r], u) for e, r, u in asked]).t()
    found_ranks = filtered_ranking(query_h, item_h, pairs, known)
    found = ranking_metrics(found_ranks, hits=(1, 3, 10))
    kept = json.loads((run["knowledge"] / "metrics.json").read_text())
    assert kept["MRR"] == pytest.approx(found["MRR"])
    assert kept["Hits@3"] == pytest.approx(found["Hits@3"])
    table = pd.read_csv(run["knowledge"] / "ranks.csv")
    assert table.columns.tolist() == ["head", "relation", "tail", "asked for", "rank"]
    assert (1 / table["rank"]).mean() == pytest.approx(found["MRR"])
    ids = [records.ids[what] for what in ("entity", "relation", "entity")]
    expected = {}
    for side, answered in zip(("tail", "head"), found_ranks.chunk(2)):
        for at, rank in enumerate(answered.tolist()):
            ends = (own[row[at]] for own, row in zip(ids, (heads, relations, tails)))
            expected[(*ends, side)] = rank
    kept = {(*row[:3], row[3]): row[4] for row in table.itertuples(index=False, name=None)}
    assert kept == expected


@pytest.mark.parametrize("kind", DATA)
def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(run, folder, kind, tmp_path):
    words = words_of(folder, kind, tmp_path)
    assert main([*words, "--epochs", "2", "--no-baseline"]) == 0
    assert main([*words, "--epochs", "4", "--no-baseline", "--resume"]) == 0
    both = (arrays(one)["query_embedding"] for one in (run[kind], tmp_path))
    assert np.array_equal(*both)


def test_a_run_is_not_resumed_with_another_split(run, folder, tmp_path, error):
    (tmp_path / "t.csv").write_text("user,item\nu00,1\nu00,2\n")
    words = words_of(folder, "bipartite", run["bipartite"], "--resume", "--epochs", 4)
    assert "with other test or validation edges" in error(*words, "--test", tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("kind", "model"), [(kind, model) for kind in DATA for model in KINDS[kind].models]
)
@pytest.mark.parametrize("loss", ["shared", "bce"])
def test_every_model_learns(folder, tmp_path, kind, model, loss):
    if (model, loss) == ("transe", "bce"):
        return  # refused, see below
    more = ["--sampler", "uniform", "--model", model, "--loss", loss, "--lr", "0.03"]
    more += ["--dropout", "0", *(["--regularization", "0"] if kind == "knowledge" else [])]
    assert main(words_of(folder, kind, tmp_path, *more, "--epochs", 12)) == 0
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert metrics["loss"].min() < 0.97 * metrics["loss"].iloc[0]
    assert str(arrays(tmp_path)["model"]) == model


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("sampler", ["popularity", "in-batch", "dynamic", "self-adversarial"])
def test_other_samplers_train(folder, tmp_path, kind, sampler):
    more = ["--sampler", sampler, "--epochs", 1, "--no-baseline"]
    more += ["--loss", "bce"] if sampler == "dynamic" else []
    assert main(words_of(folder, kind, tmp_path, *more)) == 0


def test_the_loss_counts_known_triples_unless_they_are_left_out(tmp_path):
    rows = [f"n{i},likes,n{(i + j) % 20}" for i in range(20) for j in (1, 2, 5)]
    (tmp_path / "facts.csv").write_text("\n".join(["head,relation,tail", *rows, ""]))
    losses = []
    for known in ([], ["--known", "count"], ["--known", "leave-out"]):
        out = tmp_path / "-".join(["r", *known])
        more = ["--sampler", "uniform", "--epochs", 1, "--dropout", 0, *known]
        assert main(words_of(tmp_path, "knowledge", out, *more)) == 0
        losses.append(pd.read_csv(out / "metrics.csv")["loss"][0])
    assert losses[0] == losses[1] != losses[2]


def test_regularization_makes_embeddings_short(folder, tmp_path):
    squares = []
    for weight in ("0", "0.5"):
        more = ["--sampler", "uniform", "--epochs", 8, "--lr", 0.03, "--regularization", weight]
        assert main(words_of(folder, "knowledge", tmp_path / weight, *more, "--patience", 8)) == 0
        squares.append(float((arrays(tmp_path / weight)["item_embedding"] ** 2).sum()))
    assert squares[1] < 0.7 * squares[0]


@pytest.mark.parametrize(
    ("dataset", "command", "columns"),
    [("shop", "recommend", ["user", "rank", "item", "score"]), ("triples", "rank", None)],
)
def test_generated_data_without_a_file(dataset, command, columns, tmp_path, answers):
    more = ["--sampler", "uniform", "--epochs", 2, "--out", tmp_path / "run", "--quiet"]
    assert main([*map(str, ["train", "--dataset", dataset, *more])]) == 0
    if columns:
        found = answers(command, tmp_path / "run", "--top", 3)
        assert [*found] == columns
        assert len(found) == 900  # of all users
    else:
        (tmp_path / "asked.csv").write_text("head,relation\n3,1\n")
        asked = ["--queries", tmp_path / "asked.csv", "--top", 4]
        assert len(answers(command, tmp_path / "run", *asked)) == 4


def test_purchases_have_a_discount_by_default(folder, tmp_path):
    found = []
    for discount in ([], ["--discount", 0.25], ["--discount", 0]):
        out = tmp_path / "-".join(map(str, ["r", *discount]))
        more = ["--sampler", "uniform", "--epochs", 1, *discount]
        assert main(words_of(folder, "bipartite", out, *more)) == 0
        found.append(arrays(out)["item_embedding"])
    assert (found[0] == found[1]).all()
    assert not (found[0] == found[2]).all()


def test_a_scorer_reaches_sampler_and_loss(folder, tmp_path):
    more = ["--model", "transe", "--epochs", 1, "--no-baseline"]
    assert main(words_of(folder, "knowledge", tmp_path, *more)) == 0
    assert pd.read_csv(tmp_path / "negatives.csv")["score"].max() <= 0


@pytest.mark.parametrize("kind", DATA)
def test_a_bench(folder, tmp_path, kind, capsys):
    words = ["bench", "--kind", kind, "--edges", folder / DATA[kind], *SMALL, "--epochs", 1]
    words += ["--samplers", "uniform", "self-adversarial", "--seeds", 2, "--out", tmp_path]
    assert main([*map(str, words)]) == 0
    assert f"{'NDCG@20' if kind == 'bipartite' else 'MRR'} - uniform" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "bench.csv")) == 4


# ---- answers -------------------------------------------------------------------------------------


def test_recommended_are_the_best_items_that_are_not_known(run, folder, answers):
    found = answers("recommend", run["bipartite"], "--top", 4)
    bought = set(pd.read_csv(folder / "shop.csv").itertuples(index=False, name=None))
    assert found.columns.tolist() == ["user", "rank", "item", "score"]
    assert not bought & set(zip(found["user"], found["item"]))
    users, items = (arrays(run["bipartite"])[f"{n}_id"].tolist() for n in ("query", "item"))
    query, item = tensors(run["bipartite"], "query_embedding", "item_embedding")
    score = query @ item.t()
    for user, part in found.groupby("user"):
        left = [i for i, name in enumerate(items) if (user, name) not in bought]
        best = score[users.index(user), left].topk(4)
        assert part["item"].tolist() == [items[left[i]] for i in best.indices]
        assert part["score"].tolist() == pytest.approx(best.values.tolist(), rel=1e-5)
        assert part["rank"].tolist() == [1, 2, 3, 4]
    assert found["user"].nunique() == 40


def test_recommended_for_some_users(run, tmp_path, answers):
    every = answers("recommend", run["bipartite"], "--top", 99)
    assert every.groupby("user").size().between(27 - 5, 27).all()  # all items but the known ones
    (tmp_path / "some.txt").write_text("user\nu07\nu03\nu07\n")
    some = answers("recommend", run["bipartite"], "--users", tmp_path / "some.txt", "--top", 2)
    assert some["user"].tolist() == ["u07"] * 2 + ["u03"] * 2
    (tmp_path / "bare.txt").write_text("u03\nu07\n")
    words = ["recommend", run["bipartite"], "--users", tmp_path / "bare.txt", "--no-header"]
    assert answers(*words, "--top", 1)["user"].tolist() == ["u03", "u07"]


def test_recommended_neighbours_of_nodes(folder, tmp_path, answers):
    edges = pd.read_csv(folder / "facts.csv").drop(columns="relation")
    edges.to_csv(tmp_path / "e.csv", index=False)
    words = ["train", "--edges", tmp_path / "e.csv", "--source", "head", "--target", "tail", *SMALL]
    words += ["--sampler", "uniform", "--epochs", 1, "--out", tmp_path / "r"]
    assert main([*map(str, words)]) == 0
    found = answers("recommend", tmp_path / "r", "--top", 99)
    assert found.columns.tolist() == ["head", "rank", "tail", "score"]
    assert set(found.groupby("head").size()) == {40 - 1 - 6}
    pairs = set(zip(found["head"], found["tail"]))
    joined = set(edges.itertuples(index=False, name=None))
    assert not pairs & (joined | {(b, a) for a, b in joined})
    assert not any(a == b for a, b in pairs)
    made = arrays(tmp_path / "r")
    first = found[found["head"] == "n00"].iloc[0]
    a, b = (made["embedding"][made["id"].tolist().index(first[c])] for c in ("head", "tail"))
    assert first["score"] == pytest.approx(float(a @ b), rel=1e-4)


def test_users_that_were_not_trained_on_are_left_out(folder, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("user,item\nu00,1\nu00,2\nu01,0\nnew,1\n")
    more = ["--sampler", "uniform", "--epochs", 1, "--test", tmp_path / "t.csv"]
    assert main(words_of(folder, "bipartite", tmp_path / "r", *more)) == 0
    assert "1 held-out pairs of users without a training pair left out" in capsys.readouterr().out
    assert main(["recommend", str(tmp_path / "r")]) == 0
    said = capsys.readouterr()
    assert said.err == (
        "warning: 1 user(s) left out, of whom no row was trained on, for example new\n"
    )
    assert "new" not in said.out
    (tmp_path / "u.csv").write_text("user\nnew\n")
    assert main(["recommend", str(tmp_path / "r"), "--users", str(tmp_path / "u.csv")]) == 1
    assert "for example new; none is left" in capsys.readouterr().err


@pytest.mark.parametrize("model", KINDS["knowledge"].models)
@pytest.mark.parametrize("asked", ["tails", "heads"])
def test_ranked_are_the_likeliest_entities_that_are_not_known(
    folder, tmp_path, model, asked, answers
):
    more = ["--sampler", "uniform", "--model", model, "--epochs", 2]
    assert main(words_of(folder, "knowledge", tmp_path / "r", *more)) == 0
    made = arrays(tmp_path / "r")
    pairs = [("n05", "third"), ("n05", "next")]
    header = "head,relation" if asked == "tails" else "relation,tail"
    rows = [",".join(pair if asked == "tails" else pair[::-1]) for pair in pairs]
    (tmp_path / "q.csv").write_text("\n".join([header, *rows, ""]))
    found = answers("rank", tmp_path / "r", "--queries", tmp_path / "q.csv", "--top", 39)
    assert found.columns.tolist() == ["head", "relation", "tail", "rank", "score"]
    facts = set(pd.read_csv(folder / "facts.csv").itertuples(index=False, name=None))
    triples = list(found[["head", "relation", "tail"]].itertuples(index=False, name=None))
    assert not facts & set(triples)
    assert len(triples) == 2 * 39  # all but the known one
    entities, relations = made["item_id"].tolist(), made["relation_id"].tolist()
    query = list(zip(made["query_entity"].tolist(), made["query_relation"].tolist()))
    h = torch.from_numpy(made["query_embedding"])
    for entity, relation in pairs:
        given = "head" if asked == "tails" else "tail"
        part = found[(found["relation"] == relation) & (found[given] == entity)]
        kind = relations.index(relation) + (0 if asked == "tails" else 3)
        own = h[query.index((entities.index(entity), kind))]
        score = MODELS[model].score(own, torch.from_numpy(made["item_embedding"]))
        other = part["tail" if asked == "tails" else "head"]
        expected = [float(score[entities.index(name)]) for name in other]
        assert part["score"].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert part["score"].is_monotonic_decreasing


def test_a_question_that_no_triple_answers_is_ranked(tmp_path, answers):
    rows = [f"n{i},{'likes' if i < 20 else 'knows'},n{(i + 1) % 40}" for i in range(40)]
    (tmp_path / "facts.csv").write_text("\n".join(["head,relation,tail", *rows, ""]))
    words = words_of(tmp_path, "knowledge", tmp_path / "r", "--sampler", "uniform", "--epochs", 1)
    assert main(words) == 0
    (tmp_path / "q.csv").write_text("head,relation\nn30,likes\n")
    found = answers("rank", tmp_path / "r", "--queries", tmp_path / "q.csv", "--top", 40)
    assert len(found) == 40


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_answers_go_to_a_new_file(run, tmp_path, ending, answers, error):
    pytest.importorskip("pyarrow")
    out = tmp_path / f"a.{ending}"
    words = ["recommend", run["bipartite"], "--top", 2]
    assert main([*map(str, [*words, "--out", out])]) == 0
    found = (pd.read_csv if ending == "csv" else pd.read_parquet)(out)
    pd.testing.assert_frame_equal(found, answers(*words), check_dtype=False, rtol=1e-5)
    assert "is there already" in error(*words, "--out", out)


@pytest.mark.parametrize(
    ("command", "kind", "text", "message"),
    [
        ("recommend", "bipartite", "user\nu01\nnobody\n", "line 3, column user: expected a user"),
        ("recommend", "bipartite", "name\nu01\n", "line 1: .* column.s. user, got name; name the"),
        ("recommend", "bipartite", "user\nu01\n,\n", "line 3"),
        ("rank", "knowledge", "head,relation\nn00,hates\n", "column relation: .* a relation that"),
        ("rank", "knowledge", "relation,tail\nnext,n99\n", "line 2, column tail: .* an entity"),
        ("rank", "knowledge", "head,tail\nn00,n01\n", "head and relation, to ask for tails"),
        ("rank", "knowledge", "head,relation,tail\nn00,next,n01\n", "expected two columns"),
        (
            "rank",
            "bipartite",
            "head,relation\nn00,next\n",
            "--kind bipartite; use dgl-dmns recommend",
        ),
        ("recommend", "knowledge", "user\nu01\n", "--kind knowledge; use dgl-dmns rank"),
    ],
)
def test_a_question_that_does_not_fit_is_one_line(
    run, tmp_path, error, command, kind, text, message
):
    file = tmp_path / "q.csv"
    file.write_text(text)
    option = "--users" if command == "recommend" else "--queries"
    said = error(command, run[kind], option, file, "--out", tmp_path / "a.csv")
    assert re.search(message, said)
    assert not (tmp_path / "a.csv").exists()


def test_a_folder_that_is_no_run(tmp_path, error):
    assert "dgl-dmns train writes one" in error("recommend", tmp_path)
    (tmp_path / "embeddings.npz").write_bytes(b"broken")
    assert "not a complete file of a run" in error("recommend", tmp_path)
    np.savez(tmp_path / "embeddings.npz", id=np.arange(3), embedding=np.ones((3, 2)))
    assert "not a complete file of a run of this version" in error("recommend", tmp_path)
    words = ["--out", tmp_path / "no" / "a.csv"]
    assert "there is no folder" in error("recommend", tmp_path, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--kind graph --head h", "--head: goes with --kind knowledge, not with graph"),
        ("--head h", "--head: goes with --kind knowledge"),
        ("--kind knowledge --source s", "--source: goes with --kind graph or bipartite"),
        ("--kind knowledge --features f.npy", "--features: goes with --kind graph"),
        ("--kind knowledge --temperature 0.1", "--temperature: goes with --kind bipartite"),
        ("--kind bipartite --regularization 0.1", "--regularization: goes with --kind knowledge"),
        (
            "--kind bipartite --loss bce --discount 0.2",
            "--discount: goes with --loss shared or softmax",
        ),
        ("--kind bipartite --discount 1.5", "--discount"),
        ("--kind knowledge --regularization -1", "expected a number from 0 on, got '-1'"),
        ("--kind knowledge --loss softmax --known count", "--known: goes with --loss shared"),
        ("--kind bipartite --dropout 1", "from 0 to below 1, got '1'"),
        ("--test t.csv", "--test: goes with --kind bipartite or knowledge"),
        ("--kind bipartite --validation v.csv", "--validation: goes with --test"),
        ("--kind bipartite --test t.csv --time when", "--time: splits the edges by time"),
        ("--kind knowledge --no-header --tail t", "--no-header: without names"),
        ("--kind bipartite --model complex", "--model complex: --kind bipartite takes mf, light"),
        ("--model mf", "--model mf: --kind graph takes sage"),
        ("--kind bipartite --layers 3", "--layers: mf has no layers"),
        ("--kind knowledge --fanout 3", "--fanout: complex has no layers"),
        ("--kind knowledge --model transe --loss bce", "--loss bce: the scores of transe"),
    ],
)
def test_options_that_do_not_go_together_are_refused_at_parsing(words, message, capsys):
    for command in ("train", "bench"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--edges", "nowhere", "--out", "nowhere", *shlex.split(words)])
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


@pytest.mark.parametrize("sampler", ["mcns", "adversarial"])
def test_samplers_of_one_kind_of_nodes_are_refused(error, sampler):
    words = ["--kind", "knowledge", "--sampler", sampler, "--loss", "bce"]
    said = error("train", "--edges", "nowhere", "--out", "nowhere", *words)
    assert said.startswith(f"error: --sampler {sampler}: it takes one kind of nodes")


def test_nothing_is_written_for_a_file_that_does_not_fit(folder, tmp_path, error):
    (tmp_path / "t.csv").write_text("user,item\nnew,1\n")
    words = words_of(folder, "bipartite", tmp_path / "r", "--test", tmp_path / "t.csv")
    assert "of users without a training row" in error(*words)
    assert not (tmp_path / "r").exists()
