"""What a refresh reports of memory."""

from __future__ import annotations

import torch

from dgl_dmns.core import FetchedRows, KnownEdges, held_bytes


def test_each_memory_is_counted_once() -> None:
    h = torch.zeros(100, 4)
    rows = FetchedRows(torch.arange(10), h[:10], lambda ids: h[ids])
    assert held_bytes([h, h[5:], {"rows": rows}]) == 1600 + 80
    known = KnownEdges(torch.arange(5), torch.arange(5), 5)
    buffers = sum(b.numel() * b.element_size() for b in [*known.buffers()])
    assert held_bytes(known) == buffers
