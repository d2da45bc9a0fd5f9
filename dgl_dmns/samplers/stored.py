"""Embeddings of all nodes that lie elsewhere, in a ``DistTensor`` on servers: rows by node id."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgl_dmns.samplers.pacing import in_a_task

__all__ = ["StoredRows"]

_ROWS = 1 << 16  # that are asked for at a time: a bounded working set
_KEPT = 1 << 13  # that are kept at most, until others are asked for


class StoredRows:
    """Embeddings [N, D] of a node type that are read a few rows at a time.

    Args:
        name: what errors call them.
        h: a ``DistTensor``, or a tensor on any device, of floating point.
    """

    def __init__(self, name: str, h: Any) -> None:
        self.name = name
        self.h = h
        self._last: tuple[Tensor, Tensor] | None = None  # scores and densities ask for the same

    @property
    def width(self) -> int:
        """Width D of the rows."""
        return int(self.h.shape[1])

    def rows(self, ids: Tensor) -> Tensor:
        """Rows [P, D], float32, on the CPU, without gradient, of ids [P].

        Raises:
            ValueError: if there is NaN or infinity in them.
            RuntimeError: in the thread of a refresh, beside which the training asks servers, too.
        """
        if self._last is not None and torch.equal(self._last[0], ids):
            return self._last[1]
        if in_a_task():
            raise RuntimeError(
                f"{self.name}: a refresh in the background asked for {ids.numel()} rows that it "
                "does not hold, and its thread must not talk to the servers; let rule and scorer "
                "look at the nodes of their pools alone, or leave Resources(background=True) out"
            )
        rows = torch.empty(ids.numel(), self.width, dtype=torch.float32)
        for some, part in zip(ids.split(_ROWS), rows.split(_ROWS)):
            part.copy_(self.h[some.to(getattr(self.h, "device", "cpu"))].detach())
            bad = int((~part.isfinite()).any(dim=1).sum())
            if bad:
                raise ValueError(
                    f"{self.name}: NaN or infinity in {bad} of {len(part)} rows that were read; "
                    "lower the learning rate or clip gradients if training has diverged (the last "
                    "table stays in use)"
                )
        if ids.numel() <= _KEPT:
            self._last = ids, rows
        return rows
