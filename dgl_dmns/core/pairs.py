"""Training pairs of the diffusion model: a query and one of its neighbours.

The model learns the distribution of a query's one-hop neighbours (DMNS, section 4.2). Minibatches
of random pairs estimate the objective of the paper's full passes over up to 20 neighbours a node.
A node without neighbours is its own neighbour, as in the paper, where both ends have one type.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgl_dmns.core.known import KnownEdges

__all__ = ["sample_neighbours", "sample_pairs"]


def sample_pairs(
    edges: KnownEdges,
    count: int,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw (query, neighbour) pairs: a uniform query, then a uniform neighbour of it.

    Args:
        edges: known edges.
        count: number of pairs P.
        generator: source of randomness.

    Returns:
        Query ids and neighbour ids, each of shape [P], int64.

    Raises:
        ValueError: if there is no edge to draw from.
    """
    if not edges.indices.numel():
        raise ValueError("edges: expected at least one edge to learn neighbours from, got none")
    device = edges.indices.device
    if edges.exclude_self:
        query = torch.randint(0, edges.num_src, (count,), generator=generator, device=device)
    else:
        linked = edges.degrees().nonzero().squeeze(1)
        pick = torch.randint(0, linked.numel(), (count,), generator=generator, device=device)
        query = linked[pick]
    return query, sample_neighbours(edges, query, generator=generator)


def sample_neighbours(
    edges: KnownEdges, query: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """A uniform neighbour of each query; a query without neighbours is its own.

    Args:
        edges: known edges, at least one.
        query: source ids, shape [P], int64.
        generator: source of randomness.

    Returns:
        Neighbour ids, shape [P], int64.
    """
    degree = edges.indptr[query + 1] - edges.indptr[query]  # of these alone, not of all nodes
    # float64: exact for degrees up to 2^53, where float32 would never reach the end of a long row.
    u = torch.rand(query.shape, generator=generator, device=query.device, dtype=torch.float64)
    offset = torch.minimum((u * degree).long(), (degree - 1).clamp(min=0))
    position = (edges.indptr[query] + offset).clamp(max=edges.indices.numel() - 1)
    return torch.where(degree > 0, edges.indices[position].long(), query)
