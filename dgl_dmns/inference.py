"""Embeddings of all nodes in bounded memory: layer by layer, with or without sampled neighbours.

A pass of an encoder over the whole graph holds what all layers need at once. Layer by layer, a
batch of nodes at a time, two embeddings a node are held: the layer's input and its output. With a
fanout, hubs cost no more than other nodes, and embeddings become estimates.

Symbols: N nodes, B nodes in a batch, D width of a layer's output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Union

import torch
from torch import Tensor, nn

from dgl_dmns._compat import require_dgl
from dgl_dmns.checks import as_integer
from dgl_dmns.core import callers_device, shielded
from dgl_dmns.eval_mode import modes_kept

_dgl: Any = require_dgl()

__all__ = ["Layer", "layerwise_inference"]

Layer = Callable[[Any, Any], Any]
"""From a block and the input of its source nodes to the output of its destination nodes.

``layer(block, h)`` with h [S, F] gives [B, D], as DGL's convolutions do; on a heterogeneous graph
both are dicts by node type, as ``dgl.nn.HeteroGraphConv`` has them.
"""

Features = Union[Tensor, Mapping[str, Tensor]]


@shielded
@torch.no_grad()
def layerwise_inference(
    g: Any,
    features: Features,
    layers: Sequence[Layer],
    *,
    fanout: int | None = None,
    batch_size: int = 4096,
    model: nn.Module | None = None,
) -> Any:
    """Embeddings of all nodes, layer by layer.

    As the encoder of a sampler, for a two-layer model:

        def embed():
            first = lambda block, h: model.conv1(block, h).relu()
            return layerwise_inference(g, x, [first, model.conv2], model=model, fanout=10)


        sampler = DMNSSampler(g, embed)

    Args:
        g: the graph, on the CPU.
        features: input of the first layer, shape [N, F]; a dict by node type for a heterogeneous
            graph.
        layers: what each layer does, activation and normalisation included. Heads of an attention
            have to be joined there: a layer returns [B, D].
        fanout: neighbours drawn for each node (and edge type) in each layer, from DGL's random
            generator; None for all of them, which gives the embeddings of the whole graph.
        batch_size: nodes in a batch.
        model: the module behind the layers; it is in eval mode meanwhile.

    Returns:
        Embeddings [N, D], without gradient; a dict by node type for a heterogeneous graph, of the
        node types that the last layer returns. Nodes that a layer returns nothing for in their
        batch, as layers do that leave out relations without edges, have what it returns for them
        beside a node with edges: as in one batch of all nodes.

    Raises:
        ValueError: if there is no layer, a number is below 1, features do not fit the nodes, or a
            layer returns something else than a row for each node of a batch, no rows for some, or
            rows of different widths or dtypes.
    """
    if not layers:
        raise ValueError("layers: expected at least one layer, got none")
    fanout = None if fanout is None else as_integer("fanout", fanout, least=1)
    batch_size = as_integer("batch_size", batch_size, least=1)
    single = len(g.ntypes) == 1 and len(g.canonical_etypes) == 1
    h = {g.ntypes[0]: features} if isinstance(features, Tensor) else dict(features)
    for ntype, part in h.items():
        if ntype not in g.ntypes or len(part) != g.num_nodes(ntype):
            count = g.num_nodes(ntype) if ntype in g.ntypes else "no"
            raise ValueError(
                f"features: expected a row for each node, got {len(part)} for {count} nodes of "
                f"type {ntype!r}; on a heterogeneous graph pass a dict by node type"
            )
    with modes_kept() as settle:
        if model is not None:
            settle(model)
        for layer in layers:
            rows_of = partial(_rows, g, h, layer, fanout, single)
            h = _one_layer(g, rows_of, batch_size)
    return next(iter(h.values())) if single else h


def _one_layer(
    g: Any, rows_of: Callable[[str, Tensor], Tensor | None], batch_size: int
) -> dict[str, Tensor]:
    """The output of a layer for all nodes, by node type, given that for a batch of one type."""
    out: dict[str, Tensor] = {}
    for ntype in g.ntypes:
        made: Tensor | None = None
        without: list[Tensor] = []
        everyone = torch.arange(g.num_nodes(ntype), dtype=g.idtype)
        for seeds in everyone.split(batch_size):
            rows = rows_of(ntype, seeds)
            if rows is None:
                without.append(seeds)
                continue
            if made is None:
                made = rows.new_zeros(g.num_nodes(ntype), rows.shape[1])
            _write(made, ntype, seeds, rows)
        if made is None:  # no edge leads to this node type
            continue
        for seeds in without:  # beside a node that has edges, as in one batch of all nodes
            degree = sum(g.in_degrees(etype=e) for e in g.canonical_etypes if e[2] == ntype)
            other = torch.as_tensor(degree).argmax().view(1).to(seeds)
            rows = None
            if not bool((seeds == other).any()):
                rows = rows_of(ntype, torch.cat([seeds, other]))
            if rows is None:
                ids = seeds[:5].tolist()
                raise ValueError(
                    f"layers: a layer returned no rows for nodes {ids}{' ..' * (len(seeds) > 5)} "
                    f"of type {ntype!r}, and rows for others of that type; return a row for each "
                    "destination node of the block, zeros for nodes without edges"
                )
            _write(made, ntype, seeds, rows[:-1])
        out[ntype] = made
    if not out:
        raise ValueError("layers: a layer returned no rows for any node; return those of the block")
    return out


def _rows(
    g: Any,
    h: Mapping[str, Tensor],
    layer: Layer,
    fanout: int | None,
    single: bool,
    ntype: str,
    seeds: Tensor,
) -> Tensor | None:
    """The output [B, D] of a layer for a batch of nodes; None where it returns none of the type."""
    # All neighbours without DGL's sampler: in DGL 1.1 it mixes up the ids of int32 graphs then.
    of_type = {ntype: seeds}
    if fanout is None:
        block = _dgl.to_block(_dgl.in_subgraph(g, of_type), of_type)
    else:
        block = _dgl.dataloading.NeighborSampler([fanout]).sample(g, of_type)[2][0]
    ids = {n: block.srcnodes[n].data[_dgl.NID].long() for n in h}
    given = {n: part.index_select(0, ids[n]) for n, part in h.items()}
    with callers_device():
        made = layer(block, given[ntype] if single else given)
    if not (made is None or isinstance(made, Tensor if single else Mapping)):
        wanted = "a tensor" if single else "a dict of tensors by node type"
        raise ValueError(f"layers: expected {wanted} from each layer, got {type(made).__name__}")
    rows = made if single or made is None else made.get(ntype)
    if rows is not None and (rows.dim() != 2 or len(rows) != len(seeds)):
        raise ValueError(
            f"layers: expected [{len(seeds)}, D] for the nodes of a batch, got "
            f"{tuple(rows.shape)}; flatten the heads of an attention in the layer"
        )
    return rows


def _write(made: Tensor, ntype: str, seeds: Tensor, rows: Tensor) -> None:
    """Put the rows of a batch into those of all nodes, which they have to be like."""
    if rows.shape[1] != made.shape[1] or rows.dtype != made.dtype or rows.device != made.device:
        raise ValueError(
            f"layers: a layer returned [B, {rows.shape[1]}] of {rows.dtype} on {rows.device} for "
            f"one batch of type {ntype!r}, [B, {made.shape[1]}] of {made.dtype} on {made.device} "
            "for another; return the same kind of rows for each"
        )
    made[seeds.long()] = rows
