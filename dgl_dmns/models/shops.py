"""Models of users and items, and GraphSAGE of graphs of one type, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dgl_dmns._compat import require_dgl
from dgl_dmns.checks import as_integer
from dgl_dmns.models.base import SIDES, Ids, Model, blocks_of, neighbour_mean, table_of

__all__ = ["GraphSAGE", "LightGCN", "MatrixFactorization"]

_dgl: Any = require_dgl()


class MatrixFactorization(Model):
    """A vector for each query and item (Koren et al., IEEE Computer 42, 2009).

    Args:
        num_queries: Q.
        num_items: N.
        width: D.
        temperature: see the top of this module; None for plain inner products.
        dropout: share of the entries of embeddings that training sets to 0.

    Raises:
        TypeError, ValueError: for numbers out of range, as in all models.
    """

    def __init__(
        self,
        num_queries: int,
        num_items: int,
        width: int = 64,
        *,
        temperature: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(temperature, dropout)
        self.query = table_of("num_queries", num_queries, width)
        self.item = table_of("num_items", num_items, width)

    def forward(self, graph: Any, ids: Ids) -> dict[str, Tensor]:
        """Embeddings [n, D] of ids [n] by node type; the graph does not count."""
        h = (self.dropped(table(ids[n])) for n, table in zip(SIDES, (self.query, self.item)))
        return self.finished(*h)


class LightGCN(MatrixFactorization):
    r"""The mean over 0 to L hops of vectors that neighbours pass on (He et al., SIGIR 2020).

    Equation 3 divides a message by ``sqrt(d_u d_i)``. In vectors over ``sqrt(d)`` that is the mean
    of the neighbours, which sampled neighbours estimate; d are the degrees in the whole graph.

    Args:
        g: the training graph, of `dgl_dmns.data.shop_graph`.
        width: D.
        layers: L.
        temperature: as in `MatrixFactorization`, like ``dropout``.
        dropout: of the vectors of hop 0.
    """

    root_query: Tensor
    root_item: Tensor

    def __init__(
        self,
        g: Any,
        width: int = 64,
        layers: int = 2,
        *,
        temperature: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        queries, items = (g.num_nodes(n) for n in SIDES)
        super().__init__(queries, items, width, temperature=temperature, dropout=dropout)
        self.num_layers = as_integer("layers", layers, 1)
        for name, etype in (("root_query", "from"), ("root_item", "to")):
            degree = g.in_degrees(etype=etype).clamp(min=1)
            self.register_buffer(name, degree.float().sqrt().unsqueeze(1))

    def forward(self, graph: Any, ids: Ids) -> dict[str, Tensor]:
        """Embeddings [n, D] by node type: of the output nodes of blocks, or of all of a graph."""
        blocks = blocks_of(graph, self.num_layers)
        count = {n: blocks[-1].num_dst_nodes(n) for n in SIDES}
        root = {"query": self.root_query[ids["query"]], "item": self.root_item[ids["item"]]}
        x = {n: self.dropped(self.get_submodule(n)(ids[n])) / root[n] for n in SIDES}
        total = {n: x[n][: count[n]] for n in SIDES}
        for block in blocks:
            x = {
                "query": neighbour_mean(block, "from", x["item"]),
                "item": neighbour_mean(block, "to", x["query"]),
            }
            total = {n: total[n] + x[n][: count[n]] for n in SIDES}
        h = (total[n] * root[n][: count[n]] / (self.num_layers + 1) for n in SIDES)
        return self.finished(*h)


class GraphSAGE(Model):
    """GraphSAGE with mean aggregation (Hamilton et al., NeurIPS 2017), over learned vectors.

    Args:
        num_nodes: N of a graph of one type, or a dict of numbers by node type, ``query`` and
            ``item``, for a graph of `dgl_dmns.data.shop_graph`.
        width: D.
        layers: number of layers.
        features: width of given features, which take the place of learned vectors; for one type.
        temperature: as in `MatrixFactorization`.
        dropout: between the layers.
    """

    def __init__(
        self,
        num_nodes: int | Mapping[str, int],
        width: int = 64,
        layers: int = 2,
        *,
        features: int = 0,
        temperature: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(temperature, dropout)
        self.num_layers = as_integer("layers", layers, 1)
        self.own: Any = None
        layer: Any = _dgl.nn.SAGEConv
        if isinstance(num_nodes, Mapping):
            if features:
                raise ValueError("features: expected 0 with several node types; leave it out")
            tables = {n: table_of(f"num_nodes of {n}", num_nodes[n], width) for n in SIDES}
            self.own = nn.ModuleDict(tables)
            self.layers = nn.ModuleList(
                nn.ModuleDict({n: layer(width, width, "mean") for n in SIDES})
                for _ in range(layers)
            )
            return
        if not features:
            self.own = table_of("num_nodes", num_nodes, width)
        widths = [features or width, *[width] * layers]
        self.layers = nn.ModuleList([layer(a, b, "mean") for a, b in zip(widths, widths[1:])])

    def forward(self, graph: Any, x: Any) -> Any:
        """Embeddings of the output nodes of blocks, or of all nodes of a graph.

        Args:
            graph: blocks or a graph.
            x: ids [n] of the input nodes, or their features [n, F]; by node type for several.

        Returns:
            Embeddings [N, D]; by node type for several.
        """
        blocks = blocks_of(graph, self.num_layers)
        if not isinstance(self.own, nn.ModuleDict):
            x = x if self.own is None else self.own(x)
            for block, layer in zip(blocks, self.layers):
                x = self._between(layer(block, x), layer)
            return self.scaled(x)
        x = {n: self.own[n](x[n]) for n in SIDES}
        for block, layer in zip(blocks, self.layers):
            ends = {n: (x[n], x[n][: block.num_dst_nodes(n)]) for n in SIDES}
            query = layer["query"](block["from"], (ends["item"][0], ends["query"][1]))
            item = layer["item"](block["to"], (ends["query"][0], ends["item"][1]))
            x = {"query": self._between(query, layer), "item": self._between(item, layer)}
        return self.finished(x["query"], x["item"])

    def _between(self, h: Tensor, layer: nn.Module) -> Tensor:
        return h if layer is self.layers[-1] else self.dropped(torch.relu(h))
