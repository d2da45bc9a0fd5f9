"""One query in the plane: what `dgl_dmns.plots.plot_query` draws."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dgl_dmns.checks import as_integer
from dgl_dmns.core import shielded
from dgl_dmns.files import read_arrays, write_arrays

if TYPE_CHECKING:
    from dgl_dmns.samplers import DMNSSampler
    from dgl_dmns.samplers.base import EdgeName
    from dgl_dmns.samplers.encoder import Embeddings

__all__ = ["QueryView", "view_query"]

_BACKGROUND = 2000


@dataclass(frozen=True, eq=False)
class QueryView:
    """A query, its neighbours and negatives, and its level Gaussians, projected to the plane.

    A space of width 1 has no plane: then each 2 below is a 1.

    Attributes:
        query: id of the source node.
        levels: names of the L levels, hardest first.
        point: the query, shape [2].
        neighbours: its known neighbours, shape [P, 2].
        negatives: the candidates that the table holds for it, shape [C, 2].
        negative_level: index of their levels, 255 for none, shape [C].
        mean: of the level Gaussians, shape [L, 2].
        covariance: of the same, shape [L, 2, 2].
        background: at most 2000 of all destination nodes, shape [M, 2].
    """

    query: int
    levels: tuple[str, ...]
    point: np.ndarray[Any, Any]
    neighbours: np.ndarray[Any, Any]
    negatives: np.ndarray[Any, Any]
    negative_level: np.ndarray[Any, Any]
    mean: np.ndarray[Any, Any]
    covariance: np.ndarray[Any, Any]
    background: np.ndarray[Any, Any]

    def save(self, path: str | Path) -> None:
        """Write a NumPy archive (``.npz``)."""
        with Path(path).open("wb") as file:
            write_arrays(file, vars(self))

    @classmethod
    def load(cls, path: str | Path) -> QueryView:
        """Read what `save` wrote; nothing in the file is executed."""
        values: dict[str, Any] = dict(read_arrays(Path(path)))
        values["query"] = int(values["query"])
        values["levels"] = tuple(values["levels"].tolist())
        return cls(**values)


@torch.no_grad()
@shielded
def view_query(
    sampler: DMNSSampler,
    node: int | None = None,
    *,
    embeddings: Embeddings | None = None,
    etype: EdgeName | None = None,
) -> QueryView:
    """Project a query and what belongs to it to the plane.

    The projection is linear (the two leading principal directions of the destination nodes in the
    generator's space), so that a level Gaussian remains one.

    Args:
        sampler: a `DMNSSampler` after a refresh.
        node: the query; where not given, a node of middling degree: the first of the degree nearest
            to 12.
        embeddings: shape [N, D], or a dict of those by node type; of the sampler's encoder where
            not given.
        etype: edge type; may be left out where the sampler holds one.

    Returns:
        The view.

    Raises:
        ValueError: for a sampler without a generator in closed form, or a node that does not exist
            or has no known neighbour.
        RuntimeError: before the first refresh.
    """
    relation = sampler.relation(etype)
    if relation.table.version == 0:
        raise RuntimeError("sampler: it has not been refreshed; call refresh() or attach() first")
    if relation.model is None:
        raise ValueError(
            f"sampler: {type(sampler).__name__} has no generator to show; use a DMNSSampler"
        )
    degrees = relation.known.degrees()
    middling = (degrees - 12).abs().masked_fill(degrees == 0, 1 << 40).argmin()
    query = as_integer("node", middling if node is None else node)
    if not 0 <= query < len(degrees) or not int(degrees[query]):
        raise ValueError(
            f"node: expected a source node with a known neighbour, in 0 .. {len(degrees) - 1}, got "
            f"{query}"
        )
    model = relation.model
    h = sampler._embeddings(embeddings)
    source, _, destination = relation.etype
    z_query = model.space.encode(h[source][query : query + 1])
    z = model.space.encode(h[destination])
    try:
        gaussians = model.gaussians(z_query)
    except TypeError as error:
        raise ValueError(f"sampler: it has no level Gaussians to show ({error})") from error
    centre = z.mean(0)
    _, vectors = torch.linalg.eigh((z - centre).T @ (z - centre))
    plane = vectors[:, -2:].flip(1)
    _, place = relation.table.spread(torch.tensor([query]))
    held = relation.table.look_up(place, count=False)
    variance = gaussians.std[:, 0].square()

    def project(points: torch.Tensor) -> np.ndarray[Any, Any]:
        flat: np.ndarray[Any, Any] = ((points - centre) @ plane).numpy()
        return flat

    return QueryView(
        query=query,
        levels=tuple(f"{f:g}T" for f in model.levels.fractions),
        point=project(z_query)[0],
        neighbours=project(z[relation.known.neighbours(query).long()]),
        negatives=project(z[held.ids.flatten()]),
        negative_level=held.level.flatten().numpy().copy(),
        mean=project(gaussians.mean[:, 0]),
        covariance=(plane.T @ (variance.unsqueeze(-1) * plane)).numpy(),
        background=project(z[:: max(1, -(-len(z) // _BACKGROUND))]),
    )
