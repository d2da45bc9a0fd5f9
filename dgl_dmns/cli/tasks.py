"""What differs by the kind of data: split, DGL graph, model, loader, scores and metrics.

`Run` in `dgl_dmns.cli.training` trains any of these tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dgl_dmns._compat import require_dgl
from dgl_dmns.cli.edges import NamedGraph
from dgl_dmns.cli.tables import Array, arrays_of
from dgl_dmns.core import fit_seed
from dgl_dmns.data import split_pairs
from dgl_dmns.evaluate import candidate_ranking, full_ranking, ranking_metrics
from dgl_dmns.models import GraphSAGE, block_sampler
from dgl_dmns.seeds import seed_all

__all__ = ["GraphTask", "Settings", "Task", "Tested", "chance_mrr", "ranks_by_name"]

_dgl: Any = require_dgl()
_MOST_PAIRS = 2000  # validation and test pairs that are ranked among all nodes


@dataclass(frozen=True)
class Settings:
    """What decides a run; see ``dgl-dmns train --help``."""

    kind: str = "graph"
    model: str = "sage"
    sampler: str = "dmns"
    loss: str = "shared"
    k: int = 1
    epochs: int = 200
    patience: int = 30
    batch_size: int = 2048
    lr: float = 3e-3
    hidden: int = 64
    layers: int = 2
    fanout: int = 0
    temperature: float | None = None
    dropout: float = 0.0
    regularization: float = 0.0
    known: str = "leave-out"
    discount: float = 0.0
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


class Tested(NamedTuple):
    """What a test came to.

    Attributes:
        metrics: by name.
        measured: how, in words.
        ranks: the test edges, or some of many, of `ranks_by_name`.
    """

    metrics: dict[str, float]
    measured: str
    ranks: pd.DataFrame


class Task(ABC):
    """Data of one kind, split and made ready to train on; the constructor makes the model.

    Attributes:
        g: the graph of the training edges; ``feat`` is what the model takes of its nodes.
        model: called by samplers as a module on the graph.
        num_edges: how many edges are trained on.
        held_out: validation edges, for the monitor.
        own: arguments of samplers that take them, beside the user's.
        watched: what decides when training stops, a name in ``metrics.csv``.
    """

    g: Any
    model: Any
    num_edges: int
    held_out: Any
    own: Mapping[str, Any]
    watched: str

    @abstractmethod
    def loader(self, negatives: Any) -> Any:
        """DGL's loader of the training edges, with the negatives of a sampler."""

    @abstractmethod
    def forward(self, input_nodes: Any, blocks: Any) -> Any:
        """Embeddings of a batch."""

    @abstractmethod
    def validate(self, h: Any) -> float:
        """The watched metric on the validation edges."""

    @abstractmethod
    def test(self, h: Any) -> Tested:
        """Metrics and ranks of the test edges."""

    @abstractmethod
    def arrays(self, h: Any) -> dict[str, Any]:
        """What ``embeddings.npz`` holds."""


class GraphTask(Task):
    """One kind of nodes: GraphSAGE, undirected edges, ranks among all nodes."""

    watched = "mrr"
    own: Mapping[str, Any] = {}

    def __init__(self, graph: NamedGraph, settings: Settings) -> None:
        data = graph.data
        self.graph, self.data, self.settings = graph, data, settings
        self.split = split_pairs(data, seed=settings.seed)
        self.known = data.csr()
        src, dst = self.split.message_edges()
        self.g = _dgl.graph((src, dst), num_nodes=data.num_nodes)
        width = data.features.shape[1]
        own = torch.arange(data.num_nodes)
        self.g.ndata["feat"] = nn.functional.normalize(data.features, dim=1) if width else own
        seed_all(settings.seed, 0)
        self.model = GraphSAGE(data.num_nodes, settings.hidden, settings.layers, features=width)
        key, twin = src * data.num_nodes + dst, dst * data.num_nodes + src
        self.reverse = torch.searchsorted(key, twin)  # edges are ordered by (src, dst)
        self.num_edges = len(src)
        self.held_out = self.split.val

    def loader(self, negatives: Any) -> Any:  # noqa: D102
        loading, size = _dgl.dataloading, self.settings.batch_size
        flow = loading.as_edge_prediction_sampler(
            block_sampler(self.model, self.settings.fanout or -1, prefetch_node_feats=["feat"]),
            exclude="reverse_id",
            reverse_eids=self.reverse,
            negative_sampler=negatives,
        )
        eids = torch.arange(self.num_edges)
        return loading.DataLoader(self.g, eids, flow, batch_size=size, shuffle=True)

    def forward(self, input_nodes: Any, blocks: Any) -> Any:  # noqa: D102
        return self.model(blocks, blocks[0].srcdata["feat"])

    def _ranks(self, h: Tensor, pairs: Tensor) -> Tensor:
        return full_ranking(h, pairs[:, :_MOST_PAIRS], self.known)

    def validate(self, h: Any) -> float:  # noqa: D102
        return ranking_metrics(self._ranks(h, self.split.val))["MRR"]

    def test(self, h: Any) -> Tested:  # noqa: D102
        nodes, pairs = self.data.num_nodes, self.split.test
        ranks, count = self._ranks(h, pairs), pairs.shape[1]
        full = ranking_metrics(ranks, hits=(10, 50))
        generator = torch.Generator().manual_seed(fit_seed(self.settings.seed))
        nine = torch.randint(0, nodes, (count, 9), generator=generator)
        candidates = torch.cat([pairs[1].unsqueeze(1), nine], dim=1)
        among = ranking_metrics(candidate_ranking(h, pairs[0], candidates))
        metrics = {name: full[name] for name in ("MRR", "Hits@10", "Hits@50")}
        metrics["MAP@9"] = among["MRR"]
        which = f"the {count}" if count <= _MOST_PAIRS else f"{_MOST_PAIRS} of the {count}"
        measured = (
            f"MRR and Hits: the destination of {which} test edges ranked among all {nodes} nodes, "
            f"known edges left out; a random order would have an MRR of {chance_mrr(nodes):.2g}. "
            "MAP@9: ranked among nine uniform nodes; a random order would have 0.29."
        )
        ids = [(self.graph.ids, end) for end in pairs[:, : len(ranks)]]
        return Tested(metrics, measured, ranks_by_name(self.graph.columns, ids, ranks))

    def arrays(self, h: Any) -> dict[str, Any]:  # noqa: D102
        indptr, indices = self.known
        return {
            **arrays_of(self.graph.ids),
            "embedding": h.numpy(),
            "kind": np.array("graph"),
            "model": np.array(self.settings.model),
            "columns": np.array(self.graph.columns),
            "known_indptr": indptr.numpy(),
            "known_indices": indices.numpy(),
        }


def ranks_by_name(
    columns: Sequence[str], ids: Sequence[tuple[Array, Tensor]], ranks: Tensor
) -> pd.DataFrame:
    """Edges by the names of their nodes, with their ranks in the last column, the best first.

    Args:
        columns: what the ends are called.
        ids: for each of them the ids of its nodes, and the nodes, int64 [P].
        ranks: float64 [P].
    """
    order = ranks.argsort(stable=True)
    ends = [pd.Series(own[nodes[order].numpy()], dtype=object) for own, nodes in ids]
    return pd.concat([*ends, pd.Series(ranks[order].numpy())], axis=1, keys=[*columns, "rank"])


def chance_mrr(candidates: int) -> float:
    """The MRR of a random order."""
    return float((1 / torch.arange(1, candidates + 1, dtype=torch.float64)).mean())
