"""Files as people have them: ids are names, many forms are read, and errors name the place."""

import bz2
import csv
import decimal
import gzip
import io
import lzma
import re
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from dgl_dmns.cli.edges import FileError, read_edges
from dgl_dmns.cli.tables import arrays_of


def write(folder, text, name="e.csv"):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def save(columns, file):
    pa = pytest.importorskip("pyarrow")
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pytest.importorskip("pyarrow.parquet").write_table(table, file)
    return file


def pairs_of(graph):
    """The edges by the ids of their ends, once; each is there in both directions."""
    ids = graph.ids.tolist()
    found = {(ids[a], ids[b]) for a, b in zip(graph.data.src.tolist(), graph.data.dst.tolist())}
    assert found == {(b, a) for a, b in found}
    return {(a, b) for a, b in found if ids.index(a) < ids.index(b)}


def refused(message, *arguments, **named):
    with pytest.raises(FileError, match=message) as caught:
        read_edges(*arguments, **named)
    assert "\n" not in str(caught.value)


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
    text = "weight,dst,src\n0.5,10,9\n1, 10 ,-2\u00a0\n1,10,9223372036854775807\n1,9,10\n1,9,9\n"
    graph = read_edges(write(tmp_path, text))
    assert graph.ids.dtype == np.int64
    assert graph.ids.tolist() == [-2, 9, 10, 9223372036854775807]
    assert pairs_of(graph) == {(9, 10), (-2, 10), (10, 9223372036854775807)}
    assert graph.data.name == "e"
    assert graph.data.features.shape == (4, 0)
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
        "src dst\ra b\r  \n b c\r",  # blank lines, and an empty cell behind one
        '"w",src,dst\r\r,a,b\r3,b,c\r',
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
        refused(message, write(tmp_path, text), header=False)


def test_names_of_the_columns(tmp_path):
    file = write(tmp_path, "from,to,src,dst\n1,2,8,9\n3,2,9,8\n")
    assert pairs_of(read_edges(file, source="from", target="To")) == {(1, 2), (2, 3)}
    assert pairs_of(read_edges(file)) == {(8, 9)}
    file = write(tmp_path, "src,SRC,dst\n1,5,2\n3,6,2\n")  # the exact one, where there is one
    assert pairs_of(read_edges(file)) == {(1, 2), (2, 3)}
    refused("different columns, got 'dst' twice", file, source="dst")


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
        refused(f"line {line}: a quote opens here", write(tmp_path, text))
    assert csv.field_size_limit() == 131072  # as it was


def test_cells_of_any_length(tmp_path):
    long = "x" * 200_000
    text = f'src,dst\n"{long}",b\nb,c\nc,\n'
    refused("line 4, column dst: .* an empty cell", write(tmp_path, text))
    with pytest.raises(FileError, match="line 1: expected the column") as caught:
        read_edges(write(tmp_path, long))
    assert len(str(caught.value)) < 600


def test_memory_follows_the_file_and_not_its_longest_id(tmp_path):
    rows = "".join(f"n{i},m{i % 97}\n" for i in range(2000))
    file = write(tmp_path, f"src,dst\n{rows}n0,{'x' * 50_000}\n")
    tracemalloc.start()
    graph = read_edges(file)
    arrays = arrays_of(graph.ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # 400 MB with an array of fixed width
    np.savez(tmp_path / "e.npz", **arrays)
    with np.load(tmp_path / "e.npz", allow_pickle=False) as archive:
        text, end = archive["id_utf8"].tobytes(), archive["id_end"].tolist()
    ids = [text[a:b].decode() for a, b in zip([0, *end], end)]
    assert ids == graph.ids.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("src,dst\n1,2\n3,\n", "line 3, column dst: expected a node's id, got an empty cell"),
        ('src,dst\n1,2\n\n"",4\n', "line 4, column src: expected a node's id, got an empty cell"),
        ("src,dst\n1,2\n\u00a0,4\n", "line 3, column src: expected a node's id, got an empty cell"),
        ("src,dst,src\n1,2,3\n", "line 1: expected one column src, got 'src' twice"),
        ("SRC,dst,Src\n1,2,3\n", "line 1: expected one column src, got 'SRC' and 'Src'"),
        ("ann,bob\ncid,eve\n", "line 1: .* got ann, bob; .* --source NAME .* --no-header"),
        ("Source,x,Target\n1,2,3\n", "line 1: .* add --source Source --target Target"),
        ("user_id,item_id\na,b\n", "add --kind bipartite --source user_id --target item_id, or"),
        ("head,relation,tail\na,b,c\n", "add --kind knowledge, or --source head --target tail to"),
        ("# a\n# b\n1 2\n", "line 3: .* got 1, 2; .* --no-header"),
        ("# a\n\n", "empty but for comments"),
        (b"src,dst\n1,2\na\x00b,3\n", "line 3: not UTF-8 text"),
        ("src,dst\n1,2\n".encode("utf-16"), "line 1: not UTF-8 text"),
        (b"PK\x03\x04 workbook", "a zip archive or a workbook"),
        (gzip.compress(gzip.compress(b"a", mtime=0), mtime=0), "packed by gzip twice; unpack it"),
        (bz2.compress(b"src,dst\n1,2\n"), "packed by bzip2; unpack it"),
        (lzma.compress(b"src,dst\n1,2\n"), "packed by xz; unpack it"),
        (b"\x28\xb5\x2f\xfd\x00", "packed by zstd; unpack it"),
        (b"\x1f\x8b but no more of it", "not a complete gzip file"),
        ('src,dst\n"a\nb",2\n1,\n', "line 4, column dst: expected a node's id, got an empty"),
        ("src,dst\n1,2\n3,4,5\n", "line 3, column 3: expected 2 cells, as in the first .*, got 3"),
        ("src,dst,w\n1,2,1\n3\n", "line 3, column 2: expected 3 cells, as in the first .*, got 1"),
        ('src,dst\n1,2\n \n""\n', "line 4, column 2: expected 2 cells, as in the first .*, got 1"),
        ("src,dst\n", "expected at least one row"),
        ("", "the file is empty"),
        ("src,dst\n1,1\n2,2\n", "expected edges between two nodes, got 2 self loops"),
        (b"src,dst\n1,2\n\xff\xfe,3\n", "line 3: not UTF-8 text"),
        ('src,dst\na,b\n" ",b\n', "line 3, column src: expected a node's id, got an empty cell"),
    ],
)
def test_errors_name_the_place(tmp_path, text, message):
    file = write(tmp_path, text)
    refused(f"^{re.escape(str(file))}.*{message}", file)


def test_files_that_are_not_there_or_of_another_kind(tmp_path):
    refused("no-such.csv: there is no such file", tmp_path / "no-such.csv")
    refused("expected a folder of Parquet files, got none", tmp_path)
    refused("expected a file or a folder", Path("/dev/null"))


def test_files_beyond_the_limit_are_refused(tmp_path, monkeypatch):
    edges = write(tmp_path, EDGES)
    table = save({"src": [5] * 99, "dst": list(range(99))}, tmp_path / "e.parquet")
    packed = write(tmp_path, gzip.compress(EDGES.encode()), "e.csv.gz")
    monkeypatch.setattr("dgl_dmns.cli.delimited.LARGEST", 10)
    for file in (edges, packed):
        refused("expected at most 10 bytes, got more; write it as Par", file)
    read_edges(table)
    monkeypatch.setattr("dgl_dmns.files.MOST_CELLS", 197)
    refused("expected at most .* 197 cells, got .* 198", table)


# Features.

EDGES = "src,dst\n10,20\n20,30\n"


def test_features_by_id(tmp_path):
    edges = write(tmp_path, EDGES)
    features = write(tmp_path, "a,id,b\n1,30,2\n3,10,4\n5,20,6\n7,40,8\n", "f.csv")
    graph = read_edges(edges, features)
    assert graph.ids.tolist() == [10, 20, 30, 40]
    expected = torch.tensor([[3.0, 4.0], [5.0, 6.0], [1.0, 2.0], [7.0, 8.0]])
    assert torch.equal(graph.data.features, expected)


def test_features_of_numbered_nodes(tmp_path):
    edges = write(tmp_path, "src,dst\n0,2\n2,1\n")
    np.save(tmp_path / "f.npy", np.arange(6.0).reshape(3, 2))
    graph = read_edges(edges, tmp_path / "f.npy")
    assert graph.data.features.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,x\n10,1\n20,2\n", "no features for 1 node.* of e.csv, for example 30"),
        ("id,x\n10,1\n20,b\n30,1\n", "line 3, column x: expected a number, got 'b'"),
        ("id,x\n10,1\n20,inf\n30,1\n", "line 3, column x: expected a finite number, got inf"),
        ("id,x\n10,1\n20,\n30,1\n", "line 3, column x: expected a number, got an empty cell"),
        ("id,x\n10,1\n\n20,nan\n30,1\n", "line 4, column x: expected a finite number, got nan"),
        ("id,x\n10,1\n020,1\n30,1\n", "no features for 1 node.* example 20 "),
        ("id\n10\n20\n30\n", "expected columns with numbers beside the ids"),
        ("id,x\n10,1\n20,1\n10,3\n30,1\n", "line 4, column id: 10 stands there twice"),
        ("id,x\na,1\nb,1\n", "no features for 3 node.* for example 10 .*first row is of a"),
        (f"id,x\n10,1\n20,{'9' * 400}\n30,3\n", "line 3, column x: expected a finite number"),
        ("x\n1\n", r"line 1: expected the column\(s\) id, got x"),
    ],
)
def test_errors_in_features(tmp_path, text, message):
    refused(f"f.csv.*{message}", write(tmp_path, EDGES), write(tmp_path, text, "f.csv"))


def npy(shape, rows=b"", dtype="<f4"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a NumPy file of numbers"),
        (b"text", "not a NumPy file of numbers"),
        (npy((3,), bytes(12)), r"expected numbers of shape \[N, F\], got float32 \[3\]"),
        (npy((1 << 40, 1 << 10), b"1234"), "not a NumPy file"),  # would take all memory
        (npy((-1, 2), struct.pack("<4f", 1, 2, 3, 4)), "not a NumPy file"),
        (npy((1, 1), b"x" * 16, "<c16"), "expected numbers"),
        (npy((1, 1), b"x" * 8, "|O"), "not a NumPy file"),
    ],
    ids=["empty", "text", "flat", "huge", "negative", "complex", "objects"],
)
def test_numpy_files_made_to_harm(tmp_path, content, message):
    edges = write(tmp_path, EDGES)
    refused(message, edges, write(tmp_path, content, "f.npy"))
    refused("there is no such file", edges, tmp_path / "h.npy")


# Parquet.


def test_parquet_without_pyarrow_or_that_is_none(tmp_path, monkeypatch):
    file = write(tmp_path, "src,dst\n", "e.parquet")
    refused("e.parquet: not a Parquet file", file)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="Parquet needs pyarrow .* convert the file to CSV"):
        read_edges(file)


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
        save({"src": column, "dst": column.take(pa.array([1, 2, 0]))}, file)
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
        ([["a"], ["b"], ["c"]], "row 1, column src: expected integers or text, got list"),
    ],
)
def test_parquet_that_holds_no_ids(tmp_path, values, message):
    pa = pytest.importorskip("pyarrow")
    file = save({"src": pa.array(values), "dst": [1, 2, 3]}, tmp_path / "e.parquet")
    refused(message, file)


def test_columns_of_one_name_are_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    column = pa.array([1, 2])
    table = pa.Table.from_arrays([column] * 3, names=["src", "dst", "src"])
    refused("'src' twice", save(table, tmp_path / "e.parquet"))


def test_a_folder_of_part_files(tmp_path):
    folder = tmp_path / "edges"
    (folder / "day=1").mkdir(parents=True)
    (folder / "_temporary").mkdir()
    save({"src": [1, 2], "dst": [2, 3]}, folder / "part-0.snappy.parquet")
    save({"dst": [1, 3], "src": [9, 9]}, folder / "day=1" / "part-1")
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.snappy.parquet.crc").write_bytes(b"crc")
    (folder / "_temporary" / "part-0").write_bytes(b"half")
    assert pairs_of(read_edges(folder)) == {(1, 2), (2, 3), (1, 9), (3, 9)}
    x = folder.with_name("x")
    x.mkdir()
    save({"id": [1, 2], "x": [1.0, 2.0], "y": [1, 2]}, x / "a.parquet")
    save({"y": [9, 3], "x": [9.0, 3.0], "id": [9, 3]}, x / "b.parquet")
    assert read_edges(folder, x).data.features.tolist() == [[1, 1], [2, 2], [3, 3], [9, 9]]
    # Text in one part, integers in another: all of them are text.
    save({"src": ["01"], "dst": ["2"]}, folder / "part-2")
    assert read_edges(folder).ids.tolist() == ["01", "1", "2", "3", "9"]
    save({"src": [1, None], "dst": [1, 2]}, folder / "part-3")
    refused("part-3, row 2, column src: .* an empty cell", folder)
    save({"source": [1], "target": [1]}, folder / "part-3")
    refused("part-3: .* got source, target; add --source source", folder)
    write(folder, "src,dst\n", "part-4.csv")
    refused("got part-4.csv in it", folder)
    (folder / "_delta_log").mkdir()
    refused("a Delta table", folder)


def test_no_header_is_for_text(tmp_path):
    file = save({"src": [1], "dst": [2]}, tmp_path / "e.parquet")
    refused("--no-header is for text", file, header=False)
