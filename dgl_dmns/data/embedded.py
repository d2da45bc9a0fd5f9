"""A small synthetic graph for link prediction, generated on the spot, and the container for graphs.

The generator needs no file and no network, so that examples and tests run anywhere. What it makes
resembles a citation graph: homophilous, heavy-tailed, clustered, with sparse word features.

Symbols: N nodes, E stored edges (both directions), F words, L latent width.

1. Positions. The latent space has three scales: a centre for each community, a centre for each
   group inside its community, and the node's own offset. ``z_i = a_c + b_g + e_i``, normalised.
   Knowing the community narrows a ranking down, knowing the group does so further, and only the
   position orders the nodes of one group: the full ranking can be learnt beyond the community.
2. Weights. ``w_i`` follows a power law with exponent ``EXPONENT``, cut at ``MAX_WEIGHT`` times the
   smallest, so that a few nodes collect many edges.
3. Edges. A pair is joined independently with probability ``min(1, c w_i w_j k_ij)``, where
   ``k_ij = exp(SHARPNESS (z_i . z_j - 1)) / sqrt(r_i r_j)`` and ``r_i`` is the weighted sum of row
   i, which keeps a node's degree in proportion to its weight wherever it lies. A share ``STRAY``
   of the edges ignores the positions. ``c`` is set by the wished mean degree. A node that is
   left without an edge gets one, drawn from its own row.
4. Triadic closure. A share ``CLOSURE`` of the edges joins two neighbours of a common node.
5. Words. A node has a Poisson number of occurrences of each word; the feature says whether the
   word occurs. The rates mix a distribution per community (topic), one that depends on the
   node's position, and a background that is the same for all nodes.

The generator is not a model of any real graph: figures measured on it are checks, not evidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dgl_dmns.checks import as_integer, check_ids
from dgl_dmns.core import shielded

__all__ = ["GraphData", "dense_graph", "embedded_graph", "simple_undirected"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LATENT = 16
GROUPS = 9
COMMUNITY_SCALE, GROUP_SCALE, NODE_SCALE = 1.0, 0.8, 0.45
EXPONENT, MAX_WEIGHT = 2.4, 60.0
SHARPNESS = 25.0
STRAY = 0.05
CLOSURE = 0.35
WORDS_PER_NODE = 30.0
TOPIC_SHARE, POSITION_SHARE, BACKGROUND_SHARE = 0.35, 0.5, 0.15
WORD_SHARPNESS = 12.0
BLOCK = 512  # rows of the pair probabilities held at once


@dataclass(frozen=True, eq=False)
class GraphData:
    """A graph with features and labels, as plain tensors.

    Attributes:
        name: what the graph is called in tables and messages.
        num_nodes: N; node ids run from 0 to N - 1.
        src: int64 [E], first ends of the simple undirected graph (no self loop, no duplicate, each
            pair in both directions), ordered by (src, dst).
        dst: int64 [E], second ends.
        features: float32 [N, F].
        labels: int64 [N].
        raw_src: int64 [R], first ends exactly as the source of the graph lists them: order, self
            loops, duplicates and single directions included.
        raw_dst: int64 [R], second ends of the same list.

    Raises:
        TypeError: a field has another dtype.
        ValueError: a field has another shape, or an edge refers to a node outside 0 .. N - 1.
    """

    name: str
    num_nodes: int
    src: Tensor
    dst: Tensor
    features: Tensor
    labels: Tensor
    raw_src: Tensor
    raw_dst: Tensor

    def __post_init__(self) -> None:
        for name in [field.name for field in fields(self)[2:]]:
            value: Tensor = getattr(self, name)
            what = f"{name} of graph {self.name!r}: expected"
            dtype, dims = (torch.float32, 2) if name == "features" else (torch.int64, 1)
            if value.dtype != dtype:
                raise TypeError(f"{what} {dtype}, got {value.dtype}; convert it with .to({dtype})")
            per_node = name in ("features", "labels")
            if value.dim() != dims or (per_node and len(value) != self.num_nodes):
                rows = f" and {self.num_nodes} rows, one for each node" if per_node else ""
                raise ValueError(
                    f"{what} {dims} dimension(s){rows}, got shape {tuple(value.shape)}; pass one "
                    "entry for each node or edge"
                )
        for first, second in (("src", "dst"), ("raw_src", "raw_dst")):
            a, b = getattr(self, first), getattr(self, second)
            what = f"{first} and {second} of graph {self.name!r}"
            if len(a) != len(b):
                raise ValueError(
                    f"{what}: expected equal lengths, got {len(a)} and {len(b)}; pass both ends of "
                    "each edge"
                )
            check_ids(what, torch.cat([a, b]), self.num_nodes, advice="check num_nodes")

    def __repr__(self) -> str:
        return (
            f"GraphData(name={self.name!r}, num_nodes={self.num_nodes}, edges={len(self.src)}, "
            f"features={tuple(self.features.shape)})"
        )

    @shielded
    def csr(self) -> tuple[Tensor, Tensor]:
        """The known edges in both directions as a CSR pair, the form the evaluation filters with.

        Returns:
            indptr: int64 [N + 1] and indices: int64 [E]; the neighbours of node v, ascending, are
            ``indices[indptr[v] : indptr[v + 1]]``.
        """
        degree = torch.bincount(self.src, minlength=self.num_nodes)
        return torch.cat([degree.new_zeros(1), degree.cumsum(0)]), self.dst


@shielded
def simple_undirected(src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor]:
    """The simple undirected graph of a list of edges, each pair in both directions.

    Args:
        src: int64 [R], first ends; self loops and duplicates are allowed.
        dst: int64 [R], second ends.

    Returns:
        src and dst: int64 [E] each, ordered by (src, dst), without self loops and duplicates.
    """
    if len(src) == 0:
        return src.clone(), dst.clone()
    base = int(torch.maximum(src, dst).max()) + 1
    loop = src == dst
    key = torch.cat([src * base + dst, dst * base + src])[~torch.cat([loop, loop])].unique()
    return torch.div(key, base, rounding_mode="floor"), key % base


def _positions(
    rng: np.random.Generator, num_nodes: int, communities: int
) -> tuple[FloatArray, IntArray]:
    """Unit latent positions [N, L] and the community of each node [N]."""
    sizes = rng.dirichlet(np.full(communities, 8.0))
    label = rng.choice(communities, size=num_nodes, p=sizes).astype(np.int64)
    group = label * GROUPS + rng.integers(0, GROUPS, size=num_nodes)
    z = (
        COMMUNITY_SCALE * rng.standard_normal((communities, LATENT))[label]
        + GROUP_SCALE * rng.standard_normal((communities * GROUPS, LATENT))[group]
        + NODE_SCALE * rng.standard_normal((num_nodes, LATENT))
    )
    return z / np.linalg.norm(z, axis=1, keepdims=True), label


def _blocks(z: FloatArray, scale: FloatArray) -> Iterator[tuple[int, FloatArray]]:
    """Blocks of rows of ``scale_i scale_j exp(SHARPNESS (z_i . z_j - 1))``, diagonal zeroed."""
    for start in range(0, len(z), BLOCK):
        part = slice(start, start + BLOCK)
        block: FloatArray = np.exp(SHARPNESS * (z[part] @ z.T - 1.0))
        block *= scale[part, None] * scale[None, :]
        block[np.arange(len(block)), np.arange(start, start + len(block))] = 0.0
        yield start, block


def _independent_pairs(
    rng: np.random.Generator, z: FloatArray, weight: FloatArray, wished: float
) -> IntArray:
    """Pairs [2, P] (smaller id first) joined independently: about ``wished`` of them."""
    num_nodes = len(z)
    flat = np.ones(num_nodes)
    r = np.concatenate([block @ weight for _, block in _blocks(z, flat)])
    scale = weight / np.sqrt(r)
    near = sum(float(block.sum()) for _, block in _blocks(z, scale)) / 2.0
    stray = (weight.sum() ** 2 - (weight**2).sum()) / 2.0
    pairs = []
    partner = np.empty(num_nodes, dtype=np.int64)
    for start, block in _blocks(z, scale):
        rows = np.arange(start, start + len(block))
        mass = block.cumsum(axis=1)
        target = rng.random(len(block)) * mass[:, -1]
        partner[rows] = np.minimum((mass <= target[:, None]).sum(axis=1), num_nodes - 1)
        chance = wished * (
            (1.0 - STRAY) / near * block + STRAY / stray * weight[rows, None] * weight[None, :]
        )
        hit = (rng.random(block.shape) < chance) & (rows[:, None] < np.arange(num_nodes)[None, :])
        row, column = hit.nonzero()
        pairs.append(np.stack([row + start, column]).astype(np.int64))
    joined = np.concatenate(pairs, axis=1)
    alone = np.flatnonzero(np.bincount(joined.ravel(), minlength=num_nodes) == 0)
    rescued = np.sort(np.stack([alone, partner[alone]]), axis=0)
    return _unique_pairs(np.concatenate([joined, rescued], axis=1), num_nodes)


def _unique_pairs(pairs: IntArray, num_nodes: int) -> IntArray:
    """The distinct pairs [2, P] in the order of their first appearance; self loops dropped."""
    pairs = pairs[:, pairs[0] != pairs[1]]
    key = pairs.min(axis=0) * num_nodes + pairs.max(axis=0)
    first = np.sort(np.unique(key, return_index=True)[1])
    return np.stack([key[first] // num_nodes, key[first] % num_nodes])


def _close_triangles(
    rng: np.random.Generator, pairs: IntArray, num_nodes: int, total: int
) -> IntArray:
    """Add pairs of neighbours of a common node until there are ``total`` (or no more are found)."""
    missing = total - pairs.shape[1]
    if missing <= 0 or pairs.shape[1] == 0:
        return pairs
    src = np.concatenate([pairs[0], pairs[1]])
    dst = np.concatenate([pairs[1], pairs[0]])
    order = np.argsort(src, kind="stable")
    src, dst = src[order], dst[order]
    degree = np.bincount(src, minlength=num_nodes)
    start = np.concatenate([[0], degree.cumsum()])
    edge = rng.integers(0, len(src), size=4 * missing)
    centre = src[edge]
    other = start[centre] + np.floor(rng.random(len(edge)) * degree[centre]).astype(np.int64)
    found = np.stack([dst[edge], dst[other]])
    return _unique_pairs(np.concatenate([pairs, found], axis=1), num_nodes)[:, :total]


def _words(
    rng: np.random.Generator, z: FloatArray, label: IntArray, communities: int, words: int
) -> FloatArray:
    """Which words occur at which node: 0 or 1, [N, F]."""
    zipf = 1.0 / (np.arange(words) + 10.0)
    topic = np.stack([rng.permutation(zipf) for _ in range(communities)]) ** 1.5
    topic /= topic.sum(axis=1, keepdims=True)
    place = rng.standard_normal((words, z.shape[1]))
    place /= np.linalg.norm(place, axis=1, keepdims=True)
    near = np.exp(WORD_SHARPNESS * (z @ place.T))
    near /= near.sum(axis=1, keepdims=True)
    background = rng.permutation(zipf) / zipf.sum()
    rate = WORDS_PER_NODE * (
        TOPIC_SHARE * topic[label] + POSITION_SHARE * near + BACKGROUND_SHARE * background
    )
    occurs: FloatArray = (rng.random(rate.shape) < 1.0 - np.exp(-rate)).astype(np.float64)
    return occurs


@shielded
def embedded_graph(
    num_nodes: int = 2500,
    seed: int = 0,
    *,
    communities: int = 7,
    words: int = 500,
    mean_degree: float = 8.0,
) -> GraphData:
    """Generate a homophilous graph with heavy-tailed degrees and word features.

    The same arguments give the same graph; no global random state has a part in it. Time: N * N
    pair probabilities are computed, a block of rows at once.

    Args:
        num_nodes: N, at least 50.
        seed: seed of the generator, 0 or more.
        communities: number of communities, which are the labels; 1 or more.
        words: F, number of words; 1 or more.
        mean_degree: wished number of neighbours of a node, above 0 and at most N / 5.

    Returns:
        The graph, named ``embedded``; its features are 0 or 1 and its raw edges are its edges.

    Raises:
        ValueError: an argument is outside its range.
    """
    as_integer("num_nodes", num_nodes, least=50)
    as_integer("seed", seed, least=0)
    as_integer("communities", communities, least=1)
    as_integer("words", words, least=1)
    if not 0.0 < mean_degree <= num_nodes / 5:
        raise ValueError(
            f"mean_degree: expected a number in (0, num_nodes / 5 = {num_nodes / 5:g}], "
            f"got {mean_degree}; lower it or raise num_nodes"
        )
    rng = np.random.default_rng(seed)
    z, label = _positions(rng, num_nodes, communities)
    weight = np.minimum((1.0 - rng.random(num_nodes)) ** (-1.0 / (EXPONENT - 1.0)), MAX_WEIGHT)
    total = int(num_nodes * mean_degree / 2)
    pairs = _independent_pairs(rng, z, weight, total * (1.0 - CLOSURE))
    pairs = _close_triangles(rng, pairs, num_nodes, total)
    features = _words(rng, z, label, communities, words)
    src, dst = simple_undirected(torch.from_numpy(pairs[0]), torch.from_numpy(pairs[1]))
    return GraphData(
        name="embedded",
        num_nodes=num_nodes,
        src=src,
        dst=dst,
        features=torch.from_numpy(features).to(torch.float32),
        labels=torch.from_numpy(label),
        raw_src=src,
        raw_dst=dst,
    )


def dense_graph() -> GraphData:
    """A graph of 1200 nodes, with 30 edges for each and hubs, of `embedded_graph`.

    Queries are drawn often between two refreshes here. It has no features (their width is 0): a
    model has learned vectors alone.
    """
    made = embedded_graph(1200, words=1, mean_degree=30.0)
    return replace(made, name="dense", features=made.features[:, :0])
