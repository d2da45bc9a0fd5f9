"""Named data sets as `GraphData`: two generated graphs, and four that DGL's own classes load.

The files lie in DGL's cache: ``data_dir/<folder>/<file>``. DGL downloads what is absent. Where that
cannot work it makes ten attempts without a time limit and raises an error of its HTTP client (or,
with a half-filled folder, of its parser). So the files are looked for first, and the server is
asked once, with a time limit, before DGL is let at the download. DGL is imported only when one of
its data sets is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dgl_dmns._compat import require_dgl
from dgl_dmns.core import shielded
from dgl_dmns.data.embedded import GraphData, dense_graph, embedded_graph, simple_undirected

__all__ = ["DATASET_NAMES", "load_dataset"]

SERVER = "https://data.dgl.ai/"
SERVER_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class _Source:
    """DGL's class of a data set, its name in the cache, its raw files, and those that DGL makes."""

    cls: str
    raw: str
    files: tuple[str, ...]
    processed: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """The address of the archive; DGL reads another server from the variable DGL_REPO."""
        server = os.environ.get("DGL_REPO", SERVER)
        return f"{server.rstrip('/')}/dataset/{self.raw}.zip"

    @property
    def folder(self) -> str:
        """The folder's name inside the cache: the name and eight digits of the address's SHA-1."""
        return f"{self.raw}_{hashlib.sha1(self.url.encode('utf-8')).hexdigest()[:8]}"


def _planetoid(cls: str, raw: str) -> _Source:
    parts = ("x", "y", "tx", "ty", "allx", "ally", "graph", "test.index")
    processed = (f"{raw}_dgl_graph.bin", f"{raw}_dgl_graph.pkl")
    return _Source(cls, raw, tuple(f"ind.{raw}.{p}" for p in parts), processed)


_ACTOR = ("out1_node_feature_label.txt", "out1_graph_edges.txt")
_ACTOR_SPLITS = [f"actor_split_0.6_0.2_{i}.npz" for i in range(10)]
_SOURCES: dict[str, _Source] = {
    "cora": _planetoid("CoraGraphDataset", "cora_v2"),
    "citeseer": _planetoid("CiteseerGraphDataset", "citeseer"),
    "coauthor-cs": _Source(
        "CoauthorCSDataset", "coauthor_cs", ("coauthor_cs.npz",), ("dgl_graph_v1.bin",)
    ),
    "actor": _Source("ActorDataset", "actor", (*_ACTOR, *_ACTOR_SPLITS)),
}

_GENERATED: dict[str, Callable[[], GraphData]] = {"embedded": embedded_graph, "dense": dense_graph}
DATASET_NAMES: tuple[str, ...] = (*_GENERATED, *_SOURCES)


def _why_unreachable(url: str) -> str | None:
    """Why the server does not answer; None if it does, or if DGL's client may know better."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=SERVER_TIMEOUT_S):
            return None
    except urllib.error.HTTPError:
        return None
    except urllib.error.URLError as error:
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except OSError as error:
        return str(error) or type(error).__name__


def _check_files(name: str, source: _Source, cache: Path) -> None:
    """Raise unless DGL will find the files of `source` or can at least reach their server."""
    folder = cache / source.folder
    if not folder.exists():
        reason = _why_unreachable(source.url)
        if reason is not None:
            raise FileNotFoundError(
                f"data set {name!r}: no folder {source.folder} in {cache}, and its download from "
                f"{source.url} cannot start ({reason}). Connect to the network, or copy the "
                f"folder {source.folder} with the files {', '.join(source.files)} from the DGL "
                f"cache of another machine (~/.dgl) into {cache}, or pass the directory that "
                "holds it as data_dir; load_dataset('embedded') needs no file"
            )
        return
    if source.processed and all((folder / file).exists() for file in source.processed):
        return
    missing = [file for file in source.files if not (folder / file).exists()]
    if missing:
        raise FileNotFoundError(
            f"data set {name!r}: {folder} lacks {', '.join(missing)}. Copy the missing files into "
            "it, or remove the folder so that DGL downloads it again"
        )
    if source.processed and not os.access(folder, os.W_OK):
        raise PermissionError(
            f"data set {name!r}: DGL writes {', '.join(source.processed)} into {folder}, which is "
            f"not writable. Copy {source.folder} into a directory that is, and pass that "
            "directory as data_dir"
        )


@shielded
def load_dataset(name: str, data_dir: str | os.PathLike[str] | None = None) -> GraphData:
    """Load a data set by name.

    Node ids, features (row-normalised for Cora and Citeseer) and raw edges are those of DGL's
    class. ``src`` and ``dst`` are the simple undirected graph of these edges: self loops and
    duplicates removed, both directions present (Actor comes directed and with both).

    Args:
        name: ``embedded``, ``dense``, ``cora``, ``citeseer``, ``coauthor-cs`` or ``actor``.
        data_dir: DGL's cache directory, which holds one folder for each data set; DGL downloads
            into it what is absent, and writes processed files into it. None: DGL's own, the
            environment variable DGL_DOWNLOAD_DIR or else ~/.dgl. Generated ones ignore it.

    Returns:
        The graph; all its tensors are on the CPU.

    Raises:
        ValueError: the name is unknown.
        FileNotFoundError: files are absent, and the server does not answer or the folder is
            incomplete; the message names the files and the places.
        PermissionError: DGL would have to write into a directory that is read-only.
        RuntimeError: the download or DGL's reading of the files failed.
    """
    if name in _GENERATED:
        return _GENERATED[name]()
    if name not in _SOURCES:
        raise ValueError(
            f"name: expected one of {', '.join(DATASET_NAMES)}, got {name!r}; "
            "load another graph with DGL and build a GraphData from its edges"
        )
    dgl = require_dgl()
    source = _SOURCES[name]
    cache = Path(data_dir or os.environ.get("DGL_DOWNLOAD_DIR") or "~/.dgl").expanduser()
    _check_files(name, source, cache)
    notices = io.StringIO()
    try:
        with contextlib.redirect_stdout(notices):
            cls: Any = getattr(dgl.data, source.cls)
            graph: Any = cls(raw_dir=str(cache), verbose=False)[0]
    except Exception as error:
        said = notices.getvalue().strip()
        raise RuntimeError(
            f"data set {name!r}: DGL's {source.cls} failed with {type(error).__name__}: {error}. "
            f"It read {cache / source.folder} or downloaded {source.url}; check these files "
            "against an intact copy, or remove the folder so that DGL downloads it again"
            + (f". DGL's notices: {said}" if said else "")
        ) from error
    raw_src, raw_dst = (ends.to(torch.int64) for ends in graph.edges())
    src, dst = simple_undirected(raw_src, raw_dst)
    return GraphData(
        name=name,
        num_nodes=int(graph.num_nodes()),
        src=src,
        dst=dst,
        features=graph.ndata["feat"].to(torch.float32),
        labels=graph.ndata["label"].to(torch.int64),
        raw_src=raw_src,
        raw_dst=raw_dst,
    )
