"""Files as people have them: ids are names, whatever they look like, and many forms are read."""

import csv
import decimal
import gzip
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from dgl_dmns.cli.edges import FileError, read_edges
from dgl_dmns.cli.tables import arrays_of


def write(folder, text, name="e.csv"):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def pairs_of(graph):
    ids = graph.ids.tolist()
    ends = zip(graph.data.src.tolist(), graph.data.dst.tolist())
    return {(ids[a], ids[b]) for a, b in ends if a < b}


@pytest.mark.parametrize(
    ("first", "second", "third"),
    [
        ("001", "002", "A1"),
        ("007", "1", "7"),
        ("12e3", "4e10", "a1b2"),
        ("1E5", "2E5", "3E5"),
        ("FALSE", "TRUE", "maybe"),
        ("1.0", "2", "2.0"),
        ("Cl", "K", "Na"),
        ("BW", "NA", "ZA"),
        ("1.1", "1.1.1", "2.7"),
        ("NaN", "a", "inf"),
        ("N/A", "None", "Null"),
        ("+5", "5", "6"),
        ("-0", "0", "1"),
        ("1000", "1_000", "2"),
        ("3", "4", "\u0663"),
        ("9223372036854775808", "1", "9223372036854775809"),
        ("1,5", "1;5", "15"),
        ("0x10", "16", "1e1"),
        ("#love", "#nlp", "%"),
        ("2020-01-01", "2020-01-02", "2020-1-1"),
        ("a  b", "a b", "ab"),
    ],
)
def test_an_id_stays_as_it_stands(tmp_path, first, second, third):
    rows = [("src", "dst"), (first, second), (second, third), (first, third)]
    names = sorted((first, second, third))
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        with (tmp_path / "e.csv").open("w", newline="") as file:
            csv.writer(file, quoting=quoting).writerows(rows)
        graph = read_edges(tmp_path / "e.csv")
        assert graph.ids.tolist() == names
        assert len(pairs_of(graph)) == 3


def test_integers_are_integers_and_blanks_no_part_of_an_id(tmp_path):
    graph = read_edges(write(tmp_path, "src,dst\n 10 ,9\n-2\u00a0,10\n9223372036854775807,9\n"))
    assert graph.ids.dtype == np.int64
    assert graph.ids.tolist() == [-2, 9, 10, 9223372036854775807]
    graph = read_edges(write(tmp_path, "src,dst\nann ,bob\nbob,ann\nann,eve\u00a0\n"))
    assert graph.ids.tolist() == ["ann", "bob", "eve"]


def test_one_word_makes_words_of_both_columns_and_of_the_features(tmp_path):
    edges = write(tmp_path, "src,dst\n1,2\n2,3\n")
    features = write(tmp_path, "id,x\n1,1\n2,2\n3,3\n03,4\n", "f.csv")
    graph = read_edges(edges, features)
    assert graph.ids.tolist() == ["03", "1", "2", "3"]
    assert graph.data.features.flatten().tolist() == [4, 1, 2, 3]
    features = write(tmp_path, "ID\tx\n3\t3\n2\t2\n1\t1\n", "f.tsv")
    assert read_edges(edges, features).ids.tolist() == [1, 2, 3]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", "\t", ";", "|", " ", "  \t "])
def test_separators_and_line_ends(tmp_path, separator, end):
    rows = [("w", "SRC", "Dst"), ("0.5", "a", "b"), ("1", "b", '"c d"'), ("", "c d", "a")]
    rows[3] = ("7", '"c d"', "a")
    text = end.join(separator.join(row) for row in rows) + end
    for name, content in (
        ("e.txt", text.encode()),
        ("e.tsv.gz", gzip.compress(text.encode())),
        ("e", b"\xef\xbb\xbf" + text.encode()),
    ):
        graph = read_edges(write(tmp_path, content, name))
        assert pairs_of(graph) == {("a", "b"), ("b", "c d"), ("a", "c d")}
        assert graph.data.name == "e"


def test_blanks_around_cells(tmp_path):
    for text in (
        " src , dst \n a , b \n b, c \n",
        'src , "dst"\n"a" , "b"\n"b" , c\n',
        "  src dst  \n  a b\nb   c  \n",
    ):
        assert pairs_of(read_edges(write(tmp_path, text))) == {("a", "b"), ("b", "c")}


def test_without_a_header(tmp_path):
    for text in ("# of friends\n#\n\n1\t2\n3 \t2\n", "1;2;0,5\n3;2;1,5\n", "1,2\n3,2\n"):
        graph = read_edges(write(tmp_path, text), header=False)
        assert pairs_of(graph) == {(1, 2), (2, 3)}
    graph = read_edges(write(tmp_path, "#love,#nlp\n#nlp,#art\n"), header=False)
    assert graph.ids.tolist() == ["#art", "#love", "#nlp"]
    for text, message in (
        ("New York, NY\tBoston, MA\n", "line 1: cells could be separated by"),
        ("src,dst\n1,2\n", "line 1: words above integers"),
        ("%%MatrixMarket matrix\n3 2\n1 2\n", "line 1: words above integers"),
        ("1\n2\n", "line 1: expected 2 ids, got 1"),
        ('"1,2\n3,4\n', "line 1: a quote opens here"),
        ("1,2\n3\n", "line 2, column 2: expected 2 cells"),
        ("1,2\n3,4,5\n", "line 2, column 3: expected 2 cells"),
    ):
        with pytest.raises(FileError, match=message):
            read_edges(write(tmp_path, text), header=False)


def test_names_of_the_columns(tmp_path):
    file = write(tmp_path, "from,to,src,dst\n1,2,8,9\n3,2,9,8\n")
    assert pairs_of(read_edges(file, source="from", target="To")) == {(1, 2), (2, 3)}
    assert pairs_of(read_edges(file)) == {(8, 9)}
    file = write(tmp_path, "src,SRC,dst\n1,5,2\n3,6,2\n")  # the exact one, where there is one
    assert pairs_of(read_edges(file)) == {(1, 2), (2, 3)}
    with pytest.raises(FileError, match="different columns, got 'dst' twice"):
        read_edges(file, source="dst")


@pytest.mark.parametrize("rows", [50, 60_000])
def test_a_quote_that_does_not_close(tmp_path, rows):
    tail = "1,2\n" * rows
    for text, line in (
        (f'"src,dst\n{tail}', 1),
        (f'src,"dst\n{tail}', 1),
        (f'src,dst\n1,2\n"3,4\n{tail}', 3),
        (f'src,dst\n"a\nb",2\n5,"6\n{tail}', 4),
        (f'# a note\nsrc;dst\n1;"2\n{tail}', 3),
        (f'src dst\n1 2\n{tail.replace(",", " ")}3 "4', 3 + rows),
    ):
        with pytest.raises(FileError, match=f"line {line}: a quote opens here") as caught:
            read_edges(write(tmp_path, text))
        assert "\n" not in str(caught.value)
    assert csv.field_size_limit() == 131072  # as it was


def test_cells_of_any_length(tmp_path):
    long = "x" * 200_000
    text = f'src,dst\n"{long}",b\nb,c\nc,\n'
    with pytest.raises(FileError, match="line 4, column dst: .* an empty cell"):
        read_edges(write(tmp_path, text))
    with pytest.raises(FileError, match="line 1: expected the column") as caught:
        read_edges(write(tmp_path, long))
    assert len(str(caught.value)) < 600


def test_memory_follows_the_file_and_not_its_longest_id(tmp_path):
    rows = "".join(f"n{i},m{i % 97}\n" for i in range(2000))
    file = write(tmp_path, f"src,dst\n{rows}n0,{'x' * 50_000}\n")
    tracemalloc.start()
    graph = read_edges(file)
    arrays = graph.arrays()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # 400 MB with an array of fixed width
    np.savez(tmp_path / "e.npz", **arrays)
    with np.load(tmp_path / "e.npz", allow_pickle=False) as archive:
        text, end = archive["id_utf8"].tobytes(), archive["id_end"].tolist()
    ids = [text[a:b].decode() for a, b in zip([0, *end], end)]
    assert ids == graph.ids.tolist()


def test_ids_are_stored_without_pickles():
    assert arrays_of(np.arange(3))["id"].dtype == np.int64
    words = np.array(["ann", "bob", "\u00e9ve"], dtype=object)
    assert arrays_of(words)["id"].tolist() == ["ann", "bob", "\u00e9ve"]
    assert arrays_of(words)["id"].dtype.kind == "U"


def save(table, file):
    pytest.importorskip("pyarrow.parquet").write_table(table, file)
    return file


def test_parquet_of_many_types(tmp_path):
    pa = pytest.importorskip("pyarrow")
    file = tmp_path / "e.parquet"
    numbers = [decimal.Decimal(i) for i in (12, 13, 14)]
    words = pa.array(["1", "02", "a"])
    for column, ids in (
        (pa.array(numbers, pa.decimal128(38, 0)), [12, 13, 14]),
        (pa.array([2**63, 1, 2], pa.uint64()), ["1", "2", str(2**63)]),
        (pa.array([1, 2, 3], pa.uint8()), [1, 2, 3]),
        (words, ["02", "1", "a"]),
        (words.cast(pa.large_string()), ["02", "1", "a"]),
        (words.dictionary_encode(), ["02", "1", "a"]),
        (words.cast(pa.binary()), ["02", "1", "a"]),
    ):
        save(pa.table({"src": column, "dst": column.take(pa.array([1, 2, 0]))}), file)
        assert read_edges(file).ids.tolist() == ids
    one = pa.table({"src": pa.array([1, 2]), "dst": pa.array(["2", "03"])})
    assert read_edges(save(one, file)).ids.tolist() == ["03", "1", "2"]


def test_parquet_says_which_text_of_digits_is_text(tmp_path):
    pa = pytest.importorskip("pyarrow")
    digits = pa.table({"src": ["10", "9"], "dst": ["9", "2"]})
    assert read_edges(save(digits, tmp_path / "e.parquet")).ids.tolist() == ["10", "2", "9"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0, 3.0], r"column src: .* got double \(1.0\); cast the column to int64"),
        ([1.0, None, 3.0], "row 2, column src: expected a node's id, got an empty cell"),
        ([1.0, 2.0, float("nan")], "row 3, column src: expected a node's id, got an empty cell"),
        ([2**53 + 1, 5, None], "row 3, column src: expected a node's id, got an empty cell"),
        ([True, False, True], "column src: .* got bool"),
        (["a", "", "b"], "row 2, column src: expected a node's id, got an empty cell"),
        ([b"a", b"\xff", b"b"], "column src: .* bytes that are not UTF-8; cast"),
        ([decimal.Decimal("1.5"), decimal.Decimal("2.5"), None], "row 3, column src"),
        ([decimal.Decimal("1.5"), decimal.Decimal("2.5"), decimal.Decimal(3)], "got decimal"),
        ([None, None, None], "row 1, column src: expected a node's id"),
        ([[1], [2], [3]], "column src: .* got list"),
        ([["a"], ["b"], ["c"]], "column src: .* got list"),
    ],
)
def test_parquet_that_holds_no_ids(tmp_path, values, message):
    pa = pytest.importorskip("pyarrow")
    file = save(pa.table({"src": pa.array(values), "dst": [1, 2, 3]}), tmp_path / "e.parquet")
    with pytest.raises(FileError, match=message):
        read_edges(file)


def test_a_folder_of_part_files(tmp_path):
    pa = pytest.importorskip("pyarrow")
    folder = tmp_path / "edges"
    (folder / "day=1").mkdir(parents=True)
    (folder / "_temporary").mkdir()
    save(pa.table({"src": [1, 2], "dst": [2, 3]}), folder / "part-0.snappy.parquet")
    save(pa.table({"dst": [1, 3], "src": [9, 9]}), folder / "day=1" / "part-1")
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.snappy.parquet.crc").write_bytes(b"crc")
    (folder / "_temporary" / "part-0").write_bytes(b"half")
    assert pairs_of(read_edges(folder)) == {(1, 2), (2, 3), (1, 9), (3, 9)}
    x = folder.with_name("x")
    x.mkdir()
    save(pa.table({"id": [1, 2], "x": [1.0, 2.0], "y": [1, 2]}), x / "a.parquet")
    save(pa.table({"y": [9, 3], "x": [9.0, 3.0], "id": [9, 3]}), x / "b.parquet")
    assert read_edges(folder, x).data.features.tolist() == [[1, 1], [2, 2], [3, 3], [9, 9]]
    # Text in one part, integers in another: all of them are text.
    save(pa.table({"src": ["01"], "dst": ["2"]}), folder / "part-2")
    assert read_edges(folder).ids.tolist() == ["01", "1", "2", "3", "9"]
    save(pa.table({"src": [1, None], "dst": [1, 2]}), folder / "part-3")
    with pytest.raises(FileError, match="part-3, row 2, column src: .* an empty cell"):
        read_edges(folder)
    save(pa.table({"source": [1], "target": [1]}), folder / "part-3")
    with pytest.raises(FileError, match="part-3: .* got source, target; add --source source"):
        read_edges(folder)
    write(folder, "src,dst\n", "part-4.csv")
    with pytest.raises(FileError, match="got part-4.csv in it"):
        read_edges(folder)
    (folder / "_delta_log").mkdir()
    with pytest.raises(FileError, match="a Delta table"):
        read_edges(folder)


def test_no_header_is_for_text(tmp_path):
    pytest.importorskip("pyarrow")
    pd.DataFrame({"src": [1], "dst": [2]}).to_parquet(tmp_path / "e.parquet")
    with pytest.raises(FileError, match="--no-header is for text"):
        read_edges(tmp_path / "e.parquet", header=False)
