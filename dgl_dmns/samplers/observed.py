"""Embeddings that minibatches have computed anyway, kept beside their age.

Source: historical embeddings as in Fey et al., "GNNAutoScale", ICML 2021: a node's last embedding
stands in for the current one, which nobody has computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Union

import torch
from torch import Tensor

from dgl_dmns.checks import check_ids, check_tensor

__all__ = ["NodeIds", "ObservedEmbeddings", "ids_by_type"]

NodeIds = Union[Tensor, Mapping[str, Tensor]]
"""Ids of nodes, shape [B], integer, of the only node type; or a dict of those by node type."""

_WHOLE = "pass those of the whole graph (dgl.NID), not of the block"


class ObservedEmbeddings:
    """The last embedding that was seen of every node, float32 [N, D] by node type, from some on."""

    def __init__(self, h: Mapping[str, Tensor]) -> None:
        self.h = {ntype: part.clone() for ntype, part in h.items()}
        self.seen = {n: torch.zeros(len(part), dtype=torch.int32) for n, part in h.items()}
        self.clock = 0  # how often `observe` was called, as `seen` reads it

    def observe(self, ids: Any, h: Any) -> None:
        """Write the rows of one observation, see `RefreshingSampler.observe`."""
        if not isinstance(ids, Mapping) and not isinstance(h, Mapping) and len(self.h) == 1:
            ids, h = dict.fromkeys(self.h, ids), dict.fromkeys(self.h, h)
        if not (isinstance(ids, Mapping) and isinstance(h, Mapping) and ids.keys() == h.keys()):
            raise ValueError(
                f"node_ids, embeddings: expected two dicts with the same node types among "
                f"{sorted(self.h)}, got {_kind(ids)} and {_kind(h)}"
            )
        rows = {n: self._checked(n, ids[n], h[n]) for n in ids if n in self.h}
        self.clock += 1
        for ntype, (at, part) in rows.items():
            self.h[ntype][at] = part
            self.seen[ntype][at] = self.clock

    def since(self, other: ObservedEmbeddings, clock: int) -> ObservedEmbeddings:
        """These, with what another one of the same nodes has observed after a clock's reading."""
        for ntype, seen in other.seen.items():
            rows = seen > clock
            self.h[ntype][rows] = other.h[ntype][rows]
            self.seen[ntype][rows] = seen[rows] - clock
        self.clock = other.clock - clock
        return self

    def _checked(self, ntype: str, ids: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        count, width = self.h[ntype].shape
        check_ids("node_ids", ids, count, f"ids of type {ntype!r}", advice=_WHOLE)
        check_tensor("embeddings", h, "embeddings [B, D]")
        if h.shape != (ids.numel(), width) or not h.is_floating_point():
            raise ValueError(
                f"node_ids, embeddings: expected ids [B] and embeddings [B, {width}] of type "
                f"{ntype!r}, floating point, got {tuple(ids.shape)}, and {tuple(h.shape)} of "
                f"{h.dtype}; pass a row for each id"
            )
        return ids.cpu().long(), h.detach().cpu().float()

    def age(self, ntype: str) -> Tensor:
        """Observations since each node was seen last, int64 [N]."""
        age: Tensor = self.clock - self.seen[ntype].long()
        return age

    def mean_age(self) -> float:
        """Mean age over all nodes of all node types."""
        ages = [self.age(ntype) for ntype in self.h]
        return float(torch.cat(ages).double().mean())

    def state_dict(self) -> dict[str, Any]:
        """The embeddings and their ages, by reference."""
        return {"h": self.h, "seen": self.seen, "clock": self.clock}

    @classmethod
    def restored(cls, state: Mapping[str, Any], counts: Mapping[str, int]) -> ObservedEmbeddings:
        """What `state_dict` gave, as a copy, if it is of as many nodes of each type."""
        found = {ntype: len(part) for ntype, part in state["h"].items()}
        if found != dict(counts):
            raise ValueError(
                f"state: observed embeddings of {found} nodes, this sampler has {dict(counts)}; "
                "load it into a sampler of the same graph"
            )
        made = cls(state["h"])
        made.seen = {ntype: part.clone() for ntype, part in state["seen"].items()}
        made.clock = int(state["clock"])
        return made


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict of {sorted(value)}"
    return type(value).__name__


def ids_by_type(nodes: NodeIds, counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Sorted and distinct ids of so many nodes, int64, by node type, if they are."""
    if not isinstance(nodes, Mapping) and len(counts) == 1:
        nodes = dict.fromkeys(counts, nodes)
    if not isinstance(nodes, Mapping) or not nodes.keys() <= counts.keys():
        raise ValueError(
            f"nodes: expected a dict of ids by source node type, of {sorted(counts)}, got "
            f"{_kind(nodes)}"
        )
    try:
        for ntype, ids in nodes.items():
            check_ids("nodes", ids, counts[ntype], f"integer ids of type {ntype!r}")
    except TypeError as error:
        raise ValueError(str(error)) from None
    return {ntype: torch.unique(ids.cpu().long()) for ntype, ids in nodes.items()}
