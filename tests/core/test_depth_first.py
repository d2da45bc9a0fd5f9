"""The depth-first proposal: its lists, and its density against what it draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shared import assert_drawn_from
from torch import Tensor

from dgl_dmns.core import DepthFirstProposal, KnownEdges


def lists_of(src: Tensor, dst: Tensor, count: int, **arguments: Any) -> DepthFirstProposal:
    return DepthFirstProposal(KnownEdges(src, dst, count), **arguments)


def path(count: int) -> tuple[Tensor, Tensor, int]:
    return torch.arange(count - 1), torch.arange(1, count), count


def test_depth_first_lists_of_a_path() -> None:
    proposal = lists_of(*path(6))
    assert proposal.lists[0, :4].tolist() == [2, 3, 4, 5]
    assert proposal.lengths.tolist() == [4, 3, 3, 3, 3, 4]
    assert (proposal.lists[0, 4:] == -1).all()
    inner = proposal.lists[2, :3].tolist()
    assert inner in ([0, 4, 5], [4, 5, 0])  # one side to its end, then the other


def test_depth_first_lists_leave_out_the_node_and_its_neighbours() -> None:
    src, dst = torch.randint(0, 60, (2, 90))
    proposal = lists_of(src, dst, 60, width=10)
    linked = torch.zeros(60, 60)
    linked[src, dst] = linked[dst, src] = 1
    for node in range(60):
        length = int(proposal.lengths[node])
        mine = proposal.lists[node, :length].long()
        assert mine.unique().numel() == length <= 10
        assert not (mine == node).any()
        assert not linked[node, mine].any()
    # Each node reaches its whole component, or ten of it.
    component = torch.linalg.matrix_power((linked + torch.eye(60)).clamp(max=1).double(), 60) > 0
    reach = (component & (linked == 0)).sum(1) - 1 + linked.diagonal().bool().int()
    assert torch.equal(proposal.lengths.long(), reach.clamp(max=10))


def test_a_walk_goes_deep_first() -> None:
    # From the root of a binary tree: left or right subtree entirely before the other.
    child = torch.arange(1, 31)
    proposal = lists_of((child - 1) // 2, child, 31)
    assert proposal.lengths[0] == 28
    top = proposal.lists[0, :28].long()
    while (top > 2).any():
        top = torch.where(top > 2, (top - 1) // 2, top)
    assert (top[:14] == top[0]).all()
    assert (top[14:] == 3 - top[0]).all()


def test_dense_neighbourhoods_end_a_walk_early() -> None:
    src, dst = torch.nonzero(~torch.eye(300, dtype=torch.bool), as_tuple=True)
    assert (lists_of(src, dst, 300, width=2).lengths == 0).all()


@pytest.mark.parametrize("weights", ["gaussian", "uniform"])
def test_proposals_follow_their_density(weights: Any) -> None:
    proposal = lists_of(*path(130), weights=weights)
    everyone = torch.arange(130)
    for state in (0, 60, 128):
        density = proposal.density(torch.full_like(everyone, state), everyone)
        assert float(density.sum()) == pytest.approx(1.0, abs=1e-12)
        states = torch.full((20_000,), state)
        drawn, ratio = proposal.propose(states)
        assert_drawn_from(drawn, density)
        exact = proposal.density(drawn, states) / proposal.density(states, drawn)
        torch.testing.assert_close(ratio, exact.float())


def test_gaussian_weights_favour_the_middle_of_the_list() -> None:
    proposal = lists_of(*path(130))
    nodes = torch.arange(130)
    density = proposal.density(torch.zeros_like(nodes), nodes) - 0.5 / 130
    # Node i stands at place i - 2 of the list of node 0.
    place = torch.arange(100.0).double()
    exact = torch.exp(-0.5 * ((place - 50) / 10) ** 2)
    torch.testing.assert_close(density[2:102], 0.5 * exact / exact.sum())
    assert density[102:].abs().max() < 1e-12


def test_a_node_without_a_list_proposes_uniformly() -> None:
    nodes = torch.arange(5)
    for edges in (([0], [1]), ([0, 1], [1, 2])):
        proposal = lists_of(*torch.tensor(edges), 5)
        assert proposal.lengths[4] == 0
        density = proposal.density(torch.full((5,), 4), nodes)
        assert density.tolist() == pytest.approx([0.2] * 5)
        drawn, _ = proposal.propose(torch.full((5000,), 4))
        assert_drawn_from(drawn, torch.ones(5))
