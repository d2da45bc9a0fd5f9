"""Files of users and items, and of triples: ids by kind, distinct rows, and splits."""

import gzip

import numpy as np
import pytest
import torch

from dgl_dmns.cli.edges import FileError
from dgl_dmns.cli.records import read_records

SHOP, FACTS = ("user", "item"), ("head", "relation", "tail")
ROWS = [(user, (user + step) % 12) for step in (0, 4, 9) for user in range(20)]
TRIPLES = [(f"e{i}", f"r{i % 3}", f"e{(i * 7 + 1) % 15}") for i in range(15)] * 2 + [
    (f"e{i}", "r1", f"e{(i + 4) % 15}") for i in range(15)
]


def write(folder, rows, name="e.csv", header=SHOP):
    lines = [",".join(map(str, row)) for row in ([header] if header else []) + list(rows)]
    file = folder / name
    file.write_text("\n".join([*lines, ""]))
    return file


def named(records, rows):
    """Rows by their ids."""
    whats = {2: ("user", "item"), 3: ("entity", "relation", "entity")}[len(rows)]
    columns = [records.ids[what][row.numpy()].tolist() for what, row in zip(whats, rows)]
    return set(zip(*columns))


def test_both_kinds_of_nodes_have_ids_of_their_own(tmp_path):
    records = read_records(write(tmp_path, ROWS * 2), "bipartite", SHOP)
    assert records.ids["user"].tolist() == list(range(20))
    assert records.ids["item"].tolist() == list(range(12))
    assert named(records, records.rows) == set(ROWS)
    assert records.rows.shape[1] == len(set(ROWS))
    rows = [(f"{u:03d}", i) for u, i in ROWS]  # words on the one side, integers on the other
    records = read_records(write(tmp_path, rows), "bipartite", SHOP)
    assert records.ids["user"].tolist()[:2] == ["000", "001"]
    assert records.ids["item"].dtype == np.int64


def test_heads_and_tails_share_their_ids(tmp_path):
    file = write(tmp_path, TRIPLES, header=FACTS)
    records = read_records(file, "knowledge", FACTS)
    assert len(records.ids["entity"]) == 15
    assert records.ids["relation"].tolist() == ["r0", "r1", "r2"]
    assert named(records, records.rows) == set(TRIPLES)
    (tmp_path / "f.txt.gz").write_bytes(gzip.compress(file.read_bytes().split(b"\n", 1)[1]))
    bare = read_records(tmp_path / "f.txt.gz", "knowledge", FACTS, header=False)
    assert torch.equal(bare.rows, records.rows)
    assert bare.name == "f"


@pytest.mark.parametrize("kind", ["bipartite", "knowledge"])
def test_a_split_by_chance(tmp_path, kind):
    rows, columns = (ROWS, SHOP) if kind == "bipartite" else (TRIPLES, FACTS)
    records = read_records(write(tmp_path, rows, header=columns), kind, columns)
    split, left_out = records.split(3)
    total = len(set(rows))
    assert [split[part].shape[1] for part in ("val", "test")] == [int(total * 0.05), total // 10]
    assert left_out == 0
    assert set().union(*(named(records, part) for part in split.values())) == set(rows)
    assert sum(part.shape[1] for part in split.values()) == total
    other = records.split(4)[0]
    assert named(records, split["test"]) != named(records, other["test"])
    again = read_records(write(tmp_path, rows[::-1], header=columns), kind, columns)
    assert torch.equal(again.split(3)[0]["test"], split["test"])
    assert again.fingerprints() == records.fingerprints()


def test_given_splits(tmp_path):
    train, test, val = ROWS[:40], ROWS[40:52], ROWS[50:]
    files = {
        "test": write(tmp_path, [*test, train[0], (99, 3)], "t.csv"),
        "validation": write(tmp_path, [*val, test[-1]], "v.csv"),
    }
    records = read_records(write(tmp_path, train), "bipartite", SHOP, **files)
    split, left_out = records.split(0)
    assert named(records, split["train"]) == set(train)
    assert records.dropped == 1 + len(set(val) & set(test))
    known = {user for user, _ in train}
    assert named(records, split["test"]) == {row for row in {*test} - {*train} if row[0] in known}
    assert left_out == len({*test, *val, (99, 3)} - {*train}) - sum(
        split[part].shape[1] for part in ("val", "test")
    )
    assert "held-out pairs of users without a training pair left out" in str(records)
    assert 99 in records.ids["user"]
    alone = read_records(write(tmp_path, train), "bipartite", SHOP, test=files["test"])
    split, _ = alone.split(0)
    assert split["train"].shape[1] == 36  # a tenth of 40 is for validation
    assert named(alone, split["train"]) | named(alone, split["val"]) <= set(train)


@pytest.mark.parametrize("dates", [False, True])
def test_a_split_by_time(tmp_path, dates):
    rows = list(dict.fromkeys(ROWS))
    times = [
        f"2024-03-{1 + i // 3:02d}T{i % 3:02d}:00" if dates else 100 * i for i in range(len(rows))
    ]
    lines = [(*row, time) for row, time in zip(rows, times)]
    lines = [*lines, (*rows[0], times[-1])]  # again, later: the first time counts
    file = write(tmp_path, lines[::-1], header=("user", "item", "when"))
    records = read_records(file, "bipartite", SHOP, time="when")
    split, _ = records.split(5)
    last = len(rows) - len(rows) // 10
    assert named(records, split["test"]) <= set(rows[last:])
    assert named(records, split["val"]) <= set(rows[last - int(0.05 * len(rows)) : last])
    assert named(records, split["train"]) == set(rows[: last - int(0.05 * len(rows))])


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("user,item\n1,2\n3,\n", {}, "e.csv, line 3, column item: expected a node's id, got an em"),
        ("user,item\n1,2\n", {}, "e.csv: expected at least 20 different rows"),
        ("a,b\n1,2\n", {}, "line 1: .*column.s. user, item, got a, b; name yours with --source"),
        ("user,item\n1,2\n", {"time": "t"}, "--source NAME --target NAME --time NAME"),
        ("head,tail\na,b\n", {"kind": "knowledge"}, "--head NAME --relation NAME --tail NAME"),
        ("user,item,t\n1,2,3\n3,4,soon\n", {"time": "t"}, "line 3, column t: expected a number"),
        ("user,item,t\n1,2,3\n3,4,\n", {"time": "t"}, "line 3, column t: expected a time"),
        ("user,item\n1,2\n3,4\n", {"header": False}, "line 1: words above integers"),
        ("a\tb\nc\td\n", {"kind": "knowledge", "header": False}, "line 1: expected 3 ids, got 2"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path, text, arguments, message):
    file = tmp_path / "e.csv"
    file.write_text(text)
    kind = arguments.get("kind", "bipartite")
    arguments = {"kind": kind, "columns": SHOP if kind == "bipartite" else FACTS, **arguments}
    with pytest.raises(FileError, match=message) as error:
        read_records(file, **arguments)
    assert "\n" not in str(error.value)


def test_held_out_rows_that_leave_nothing(tmp_path):
    file, same = write(tmp_path, ROWS), write(tmp_path, ROWS[:5], "t.csv")
    with pytest.raises(FileError, match="t.csv: expected rows that stand in no other file"):
        read_records(file, "bipartite", SHOP, test=same)
    strangers = write(tmp_path, [(50, 1), (51, 2)], "s.csv")
    with pytest.raises(ValueError, match="all test rows are of users without a training row"):
        read_records(file, "bipartite", SHOP, test=strangers)
    with pytest.raises(FileError, match="nowhere.csv: there is no such file"):
        read_records(file, "bipartite", SHOP, test=tmp_path / "nowhere.csv")
