"""Known edges with candidates against a dense matrix of what may be drawn."""

import pickle

import pytest
import torch
from shared import assert_drawn_from, pairs, rng

from dgl_dmns.core import FilteredDraws, KnownEdges, restricted

N = 12
SOME = torch.tensor([1, 2, 5, 8, 9, 11])
FORMS = ["one type", "two types", "rows of a part"]


def made(form):
    """Known edges with candidates, and which pairs may be drawn, bool [sources, N]."""
    src, dst = pairs(8, N, 30)
    src, dst = torch.cat([src, torch.full((6,), 3)]), torch.cat([dst, SOME])  # 3 knows them all
    src, dst = torch.cat([src, torch.tensor([5, 7])]), torch.cat([dst, torch.tensor([5, 8])])
    own = torch.tensor([0, 2, 4, 5, 6, 8, 9, 11]) if form == "rows of a part" else None
    known = KnownEdges(src, dst, 8, N, exclude_self=form != "two types", own=own)
    may = torch.zeros(8, N, dtype=torch.bool)
    may[:, SOME] = True
    may[src, dst] = False
    if known.exclude_self:
        may[torch.arange(8), known.itself(torch.arange(8))] = False
    return known, restricted(known, SOME), may


@pytest.mark.parametrize("form", FORMS)
def test_what_is_barred_counted_and_ranked(form):
    plain, known, may = made(form)
    every, nodes = torch.arange(8), torch.arange(N)
    assert torch.equal(known.contains(every.unsqueeze(1), nodes), ~may)
    src, dst = (end.flatten() for end in torch.meshgrid(every, nodes, indexing="ij"))
    src, dst = src.repeat(9), dst.repeat(9)  # enough for a look at the bitmap
    assert torch.equal(known.contains(src, dst), ~may[src, dst])
    assert torch.equal(known.admissible_count(every), may.sum(1))
    assert torch.equal(known.saturated(), (~may.any(1)).nonzero().squeeze(1))
    for v in every[may.any(1)]:
        left = may[v].nonzero().squeeze(1)
        rank = torch.arange(len(left))
        assert torch.equal(known.nth_admissible(v.view(1), rank), left)
        assert torch.equal(known.admissible_rank(v.view(1), left), rank)
    owner, node = known.barred_of(every)
    barred = torch.zeros_like(may)
    barred[owner, node] = True
    within = torch.zeros_like(may)
    within[:, SOME] = True
    assert torch.equal(barred, ~may & within)
    assert len(owner) == int(barred.sum())  # each once
    # The edges themselves are what they were.
    assert torch.equal(known.find(src, dst)[1], plain.find(src, dst)[1])
    assert torch.equal(known.knows(src, dst), plain.contains(src, dst))
    assert known.fingerprint() == plain.fingerprint()
    assert torch.equal(known.degrees(), plain.degrees())


@pytest.mark.parametrize("form", FORMS)
def test_draws_are_uniform_over_admissible_candidates(form):
    _, known, may = made(form)
    known.share()
    known = pickle.loads(pickle.dumps(known))
    every = torch.arange(8)
    drawn = known.uniform(every, 3000, generator=rng())
    by_rank = known.uniform_by_rank(every.repeat(3000), generator=rng()).view(3000, 8).T
    for ids in (drawn, by_rank):
        for v in every:
            weight = may[v].double()
            if not may[v].any():  # itself, or any candidate
                weight[known.itself(v) if known.exclude_self else SOME] = 1.0
            assert_drawn_from(ids[v], weight)


@pytest.mark.parametrize("form", FORMS)
def test_ratios_are_to_uniform_draws_among_candidates(form):
    _, known, may = made(form)
    queries = torch.tensor([0, 0, 1, 3, 4, 7])
    q = may.double() / may.sum(1, keepdim=True).clamp(min=1)
    if known.exclude_self:
        q[3, known.itself(torch.tensor(3))] = 1.0
    else:
        q[3, SOME] = 1.0 / len(SOME)
    draws = FilteredDraws(known)
    ratio = draws.mixture_log_ratio(queries, torch.arange(N)).exp()
    torch.testing.assert_close(ratio, len(SOME) * q[queries].mean(0))
    own = draws.own_log_ratio(queries, SOME.expand(6, -1)).exp()
    for at, v in enumerate(queries):
        if v != 3:
            mine = may[v, SOME]
            torch.testing.assert_close(own[at, mine], len(SOME) * q[v, SOME][mine])
