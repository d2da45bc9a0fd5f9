import bz2
import gzip
import io
import lzma
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dgl_dmns.cli.edges import FileError, read_edges


def write(folder, name, text):
    file = folder / name
    if isinstance(text, bytes):
        file.write_bytes(text)
    else:
        file.write_text(text)
    return file


def pairs_of(graph):
    ids = graph.ids.tolist()
    return {(ids[a], ids[b]) for a, b in zip(graph.data.src.tolist(), graph.data.dst.tolist())}


def test_ids_need_not_be_consecutive(tmp_path):
    file = write(tmp_path, "e.csv", "weight,dst,src\n0.5,30,7\n1,7,30\n1,30,-2\n1,7,7\n")
    graph = read_edges(file)
    assert graph.ids.tolist() == [-2, 7, 30]
    assert pairs_of(graph) == {(7, 30), (30, 7), (-2, 30), (30, -2)}
    assert graph.data.name == "e"
    assert graph.data.features.shape == (3, 0)


def test_ids_may_be_words_or_both(tmp_path):
    file = write(tmp_path, "e.csv", "src,dst\nann, bob\n7,ann\n")
    assert pairs_of(read_edges(file)) >= {("ann", "bob"), ("7", "ann")}
    file = write(tmp_path, "e.csv", "src,dst\n1,a\n2,b\n")
    assert pairs_of(read_edges(file)) >= {("1", "a"), ("b", "2")}


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    pd.DataFrame({"src": [5, 6], "dst": [6, 9]}).to_parquet(tmp_path / "e.parquet")
    graph = read_edges(tmp_path / "e.parquet")
    assert pairs_of(graph) == {(5, 6), (6, 5), (6, 9), (9, 6)}
    pd.DataFrame({"src": [5.0, None], "dst": [6, 9]}).to_parquet(tmp_path / "f.parquet")
    with pytest.raises(
        FileError, match=r"f.parquet, row 2, column src: expected a node's id, got an empty"
    ):
        read_edges(tmp_path / "f.parquet")
    broken = write(tmp_path, "g.parquet", "src,dst\n")
    with pytest.raises(FileError, match=r"g.parquet: not a Parquet file"):
        read_edges(broken)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    file = write(tmp_path, "e.parquet", "")
    with pytest.raises(FileError, match="reading Parquet needs pyarrow"):
        read_edges(file)


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
        ("# a\n# b\n1 2\n", "line 3: .* got 1, 2; .* --no-header"),
        ("# a\n\n", "empty but for comments"),
        (b"src,dst\n1,2\na\x00b,3\n", "line 3: not UTF-8 text"),
        ("src,dst\n1,2\n".encode("utf-16"), "line 1: not UTF-8 text"),
        (b"PK\x03\x04 workbook", "a zip archive or a workbook"),
        (
            gzip.compress(gzip.compress(b"src,dst\n1,2\n", mtime=0), mtime=0),
            "packed by gzip twice; unpack it",
        ),
        (bz2.compress(b"src,dst\n1,2\n"), "packed by bzip2; unpack it"),
        (lzma.compress(b"src,dst\n1,2\n"), "packed by xz; unpack it"),
        (b"\x28\xb5\x2f\xfd\x00", "packed by zstd; unpack it"),
        (b"\x1f\x8b but no more of it", "not a complete gzip file"),
        ('src,dst\n"a\nb",2\n1,\n', "line 4, column dst: expected a node's id, got an empty"),
        (
            "src,dst\n1,2\n3,4,5\n",
            "line 3, column 3: expected 2 cells, as in the first line, got 3",
        ),
        (
            "src,dst,w\n1,2,1\n3\n",
            "line 3, column 2: expected 3 cells, as in the first line, got 1",
        ),
        ("from,to\n1,2\n", r"line 1: expected the column\(s\) src, dst, got from, to"),
        ("src,dst\n", "expected at least one row"),
        ("", "the file is empty"),
        ("src,dst\n1,2,3\n", "line 2, column 3: expected 2 cells, as in the first line, got 3"),
        ("src,dst\n1,1\n2,2\n", "expected edges between two nodes, got 2 self loops"),
        (b"src,dst\n1,2\n\xff\xfe,3\n", "line 3: not UTF-8 text"),
        ('src,dst\na,b\n" ",b\n', "line 3, column src: expected a node's id, got an empty cell"),
    ],
)
def test_errors_name_the_place(tmp_path, text, message):
    file = write(tmp_path, "edges.csv", text)
    with pytest.raises(FileError, match=f"^{re.escape(str(file))}.*{message}"):
        read_edges(file)


def test_files_that_are_not_there_or_of_another_kind(tmp_path):
    with pytest.raises(FileError, match="no-such.csv: there is no such file"):
        read_edges(tmp_path / "no-such.csv")
    with pytest.raises(FileError, match="expected a folder of Parquet files, got none"):
        read_edges(tmp_path)
    with pytest.raises(FileError, match="expected a file or a folder"):
        read_edges(Path("/dev/null"))


EDGES = "src,dst\n10,20\n20,30\n"


def test_features_by_id(tmp_path):
    edges = write(tmp_path, "e.csv", EDGES)
    features = write(tmp_path, "f.csv", "a,id,b\n1,30,2\n3,10,4\n5,20,6\n7,40,8\n")
    graph = read_edges(edges, features)
    assert graph.ids.tolist() == [10, 20, 30, 40]
    expected = torch.tensor([[3.0, 4.0], [5.0, 6.0], [1.0, 2.0], [7.0, 8.0]])
    assert torch.equal(graph.data.features, expected)


def test_features_of_numbered_nodes(tmp_path):
    edges = write(tmp_path, "e.csv", "src,dst\n0,2\n2,1\n")
    np.save(tmp_path / "f.npy", np.arange(6.0).reshape(3, 2))
    graph = read_edges(edges, tmp_path / "f.npy")
    assert graph.data.features.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


def test_features_of_words(tmp_path):
    edges = write(tmp_path, "e.csv", "src,dst\na,b\n7,a\n")
    features = write(tmp_path, "f.csv", "id,x\na,1\nb,2\n7,3\n")
    assert read_edges(edges, features).data.features.shape == (3, 1)
    number = write(tmp_path, "g.csv", "id,x\n1,1\n2,2\n")
    with pytest.raises(FileError, match="no features for 3 node"):
        read_edges(edges, number)


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
        ("x\n1\n", r"line 1: expected the column\(s\) id, got x"),
    ],
)
def test_errors_in_features(tmp_path, text, message):
    edges = write(tmp_path, "e.csv", EDGES)
    with pytest.raises(FileError, match=f"f.csv.*{message}"):
        read_edges(edges, write(tmp_path, "f.csv", text))


def test_errors_in_numpy_files(tmp_path):
    edges = write(tmp_path, "e.csv", EDGES)
    np.save(tmp_path / "f.npy", np.arange(3))
    with pytest.raises(FileError, match=r"expected numbers of shape \[N, F\], got int64 \[3\]"):
        read_edges(edges, tmp_path / "f.npy")
    with pytest.raises(FileError, match="not a NumPy file"):
        read_edges(edges, write(tmp_path, "g.npy", "text"))
    with pytest.raises(FileError, match="there is no such file"):
        read_edges(edges, tmp_path / "h.npy")


def npy(shape, rows=b"", dtype="<f4"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + rows


@pytest.mark.parametrize(
    "content",
    [
        b"",
        npy((1 << 40, 1 << 10), b"1234"),  # a shape that would take all memory
        npy((-1, 2), struct.pack("<4f", 1, 2, 3, 4)),
        npy((1, 1), b"x" * 16, "<c16"),
        npy((1, 1), b"x" * 8, "|O"),
    ],
    ids=["empty", "huge", "negative", "complex", "objects"],
)
def test_numpy_files_made_to_harm(tmp_path, content):
    edges = write(tmp_path, "e.csv", EDGES)
    with pytest.raises(FileError, match="not a NumPy file of numbers|expected numbers of shape"):
        read_edges(edges, write(tmp_path, "f.npy", content))


def test_files_beyond_the_limit_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    edges = write(tmp_path, "e.csv", EDGES)
    frame = pd.DataFrame({"src": [5] * 99, "dst": range(99)})
    frame.to_parquet(tmp_path / "e.parquet")
    packed = write(tmp_path, "e.csv.gz", gzip.compress(EDGES.encode()))
    monkeypatch.setattr("dgl_dmns.cli.delimited.LARGEST", 10)
    for file in (edges, packed):
        with pytest.raises(FileError, match="expected at most 10 bytes, got more; write it as Par"):
            read_edges(file)
    read_edges(tmp_path / "e.parquet")
    monkeypatch.setattr("dgl_dmns.files.MOST_CELLS", 197)
    with pytest.raises(FileError, match="expected at most .* 197 cells, got .* 198"):
        read_edges(tmp_path / "e.parquet")


def test_columns_of_one_name_are_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    column = pa.array([1, 2])
    table = pa.Table.from_arrays([column, column, column], names=["src", "dst", "src"])
    parquet.write_table(table, tmp_path / "e.parquet")
    with pytest.raises(FileError, match="'src' twice"):
        read_edges(tmp_path / "e.parquet")


def test_cells_that_are_no_words(tmp_path):
    pytest.importorskip("pyarrow")
    pd.DataFrame({"src": ["a", "b"], "dst": [[1], [2]]}).to_parquet(tmp_path / "e.parquet")
    with pytest.raises(FileError, match="row 1, column dst: expected integers or text"):
        read_edges(tmp_path / "e.parquet")
    edges = write(tmp_path, "e.csv", EDGES)
    big = "9" * 400
    features = write(tmp_path, "f.csv", f"id,x\n10,1\n20,{big}\n30,3\n")
    with pytest.raises(FileError, match="line 3, column x: expected a"):
        read_edges(edges, features)
