"""What a batch's queries draw together: against a matrix of all probabilities."""

from __future__ import annotations

import pytest
import torch
from small import rng
from torch import Tensor

from dgl_dmns.core import FilteredDraws, KnownEdges
from dgl_dmns.core import mixture as module
from dgl_dmns.core.mixture import known_among

N = 12


def edges(exclude_self: bool) -> KnownEdges:
    """Node 0 knows all, node 1 all but node 2, node 4 itself; the others a few."""
    generator = rng(0)
    src, dst = torch.randint(5, 9, (10,), generator=generator), torch.randint(N, (10,))
    src = torch.cat([src, torch.zeros(N).long(), torch.ones(N).long(), torch.tensor([4, 4])])
    dst = torch.cat([dst, torch.arange(N), torch.arange(N), torch.tensor([4, 6])])
    keep = ~((src == 1) & (dst == 2))
    return KnownEdges(src[keep], dst[keep], N, N, exclude_self=exclude_self)


def probabilities(known: KnownEdges, weight: Tensor) -> Tensor:
    """``q(u|v)`` of all nodes, [N, N]."""
    every = torch.arange(N)
    allowed = ~known.contains(every.unsqueeze(1), every)
    rows = []
    for v in range(N):
        row = weight * allowed[v]
        if not row.any():
            row = allowed[v].double()
        if not row.any():
            row = (every == v).double() if known.exclude_self else torch.ones(N).double()
        rows.append(row / row.sum())
    return torch.stack(rows)


def draws(known: KnownEdges, weight: Tensor | None) -> FilteredDraws:
    if weight is None:
        return FilteredDraws(known)
    return FilteredDraws(known, weight.__getitem__, float(weight.sum()), int((weight > 0).sum()))


WEIGHTS = {
    "uniform": None,
    "any": torch.linspace(0.5, 3.0, N).double(),
    "two nodes": torch.eye(N).double()[[2, 9]].sum(0),
    "known ones": torch.eye(N).double()[6],
}
QUERIES = torch.tensor([4, 1, 7, 7, 0, 8, 4, 11, 4])


@pytest.mark.parametrize("exclude_self", [True, False])
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("at_a_time", [1, 1 << 20])
def test_ratios_are_those_of_all_probabilities(
    name: str, exclude_self: bool, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAIRS", at_a_time)
    known, weight = edges(exclude_self), WEIGHTS[name]
    q = probabilities(known, torch.ones(N).double() if weight is None else weight)
    mine = draws(known, weight)
    for queries in (QUERIES, QUERIES[:1], torch.tensor([0, 0]), torch.tensor([1])):
        found = mine.mixture_log_ratio(queries, torch.arange(N)).exp()
        torch.testing.assert_close(found, N * q[queries].mean(0))
        some = torch.tensor([2, 3, 6, 9])
        torch.testing.assert_close(mine.mixture_log_ratio(queries, some).exp(), found[some])
    admissible = ~known.contains(QUERIES.unsqueeze(1), torch.arange(N))
    own = mine.own_log_ratio(QUERIES, torch.arange(N).expand(len(QUERIES), N)).exp()
    torch.testing.assert_close(own[admissible], (N * q[QUERIES])[admissible])


@pytest.mark.parametrize("exclude_self", [True, False])
def test_known_pairs_are_found_once(exclude_self: bool) -> None:
    known = edges(exclude_self)
    for nodes in (torch.arange(N), torch.tensor([4, 6, 11]), torch.tensor([5]), QUERIES[:0]):
        row, column = known_among(known, QUERIES, nodes)
        found = torch.zeros(len(QUERIES), len(nodes), dtype=torch.int64)
        found.index_put_((row, column), torch.ones_like(row), accumulate=True)
        assert torch.equal(found, known.contains(QUERIES.unsqueeze(1), nodes).long())


def test_ids_that_share_a_flag_are_told_apart() -> None:
    far = 1 << 12
    known = KnownEdges(torch.tensor([0, 0, 0]), torch.tensor([5, 5 + 16, far]), far + 1)
    row, column = known_among(known, torch.tensor([0, 1]), torch.tensor([5 + 32]))
    assert not row.numel()
    row, column = known_among(known, torch.tensor([0, 1]), torch.tensor([21, far]))
    assert (row.tolist(), column.sort().values.tolist()) == ([0, 0], [0, 1])
