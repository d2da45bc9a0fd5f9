import json

import pandas as pd
import pytest

from dgl_dmns.report import write_report
from dgl_dmns.report.run import comparison, is_better, means, verdict

RUNS = pd.DataFrame(
    {
        "sampler": ["uniform", "dmns"] * 3,
        "seed": [0, 0, 1, 1, 2, 2],
        "epochs": [10] * 6,
        "MRR": [0.2, 0.3, 0.4, 0.5, 0.3, 0.6],
    }
)


def test_a_verdict_says_which_is_better():
    assert is_better({"MRR": 0.4}, {"MRR": 0.3})
    assert not is_better({"MRR": 0.3}, {"MRR": 0.3})
    assert "0.400 here, 0.300 with uniform negatives: better" in verdict({"MRR": 0.4}, {"MRR": 0.3})
    worse = verdict({"Hits@50": 0.9, "MRR": 0.29}, {"Hits@50": 0.1, "MRR": 0.37})
    assert "MRR 0.290 here, 0.370 with uniform negatives: not better" in worse
    assert "use uniform" in worse
    assert verdict({"AUC": 0.9}, {"AUC": 0.8}).startswith("AUC 0.900")
    with pytest.raises(ValueError, match="baseline"):
        verdict({"AUC": 0.9}, {"MRR": 0.8})


def test_the_table_has_what_both_have():
    table = comparison({"MRR": 0.4, "AUC": 0.9}, {"MRR": 0.3})
    assert table.to_dict("list") == {
        "negatives": ["this sampler", "uniform"],
        "MRR": ["0.400", "0.300"],
    }


def test_differences_are_paired_by_seed():
    found = means(RUNS).set_index("sampler")
    # 0.1, 0.1 and 0.3: mean 1 / 6, standard error 0.2 / 3
    assert found.at["dmns", "MRR - uniform"] == "0.167 (0.067)"
    assert found.at["uniform", "MRR - uniform"] == ""
    assert found.at["uniform", "MRR"] == "0.300 (0.058)"
    assert "MRR - uniform" not in means(RUNS[RUNS["sampler"] == "dmns"]).columns


def bench(folder, runs, facts):
    folder.mkdir()
    runs.to_csv(folder / "bench.csv", index=False)
    (folder / "bench.json").write_text(json.dumps(facts))
    return folder


def test_the_page_of_a_bench(tmp_path):
    runs = RUNS.replace("dmns", "<b>mine</b>")
    facts = {"command": "dgl-dmns bench <x>", "data": "cora", "measured": "among all"}
    page = write_report(bench(tmp_path / "b", runs, facts)).read_text()
    assert "0.167 (0.067)" in page
    assert page.count("<circle") == 6
    assert "<b>mine" not in page
    assert "dgl-dmns bench &lt;x&gt;" in page
    assert "among all" in page


@pytest.mark.parametrize(
    ("runs", "facts"),
    [
        (RUNS.drop(columns="seed"), {}),
        (RUNS[:0], {}),
        (RUNS.assign(MRR="x"), {}),
        (RUNS, [1]),
        (RUNS, {"versions": 3}),
    ],
)
def test_a_bench_that_is_not_one_is_one_line(tmp_path, runs, facts):
    with pytest.raises(ValueError, match="not a complete bench") as error:
        write_report(bench(tmp_path / "b", runs, facts))
    assert "\n" not in str(error.value)
