"""Do the two columns of an edge list name one kind of nodes, or two that share numbers?

Users 1 .. 6040 and items 1 .. 3706 look like one graph of 6040 nodes, in which user 5 is item 5.
Nothing in the file says so; but ids that were numbered by themselves show it by four signs that an
ordinary graph does not have together:

1. Some ids are in both columns (otherwise nothing is merged, and nothing is asked).
2. One column ends early: beyond its last id (or before its first) a good part of the ids is in the
   other column alone, more than chance would have left out of a column that has so many of the ids
   between its ends.
3. Pairs run both ways, from smaller to larger ids and back. In trees, citations and lists of
   undirected edges that are sorted they run one way, which explains 2.
4. Pairs that are their own reverse, and those of a node with itself, are as frequent as chance has
   it. Directed graphs have more; lists that have each undirected edge once have none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["looks_bipartite", "names_of_two_kinds"]

_LEFT_OUT = 0.05  # share of the nodes beyond the end of a column
_SURE = math.log(1e6)
_BOTH_WAYS = 0.05  # share of the pairs that run the rarer way
_AGENTS = {"user", "customer", "reader", "buyer", "author", "person", "member", "visitor", "client"}
_THINGS = {"item", "product", "movie", "film", "book", "song", "track", "artist", "game", "paper"}
_THINGS |= {"article", "page", "tag", "category", "business", "venue", "place", "anime", "ad"}

Array = np.ndarray[Any, Any]


def names_of_two_kinds(first: str, second: str) -> bool:
    """Whether columns are named after two kinds of nodes, such as ``user_id`` and ``movie_id``."""
    words = {name.lower().replace("_", "").removesuffix("id") for name in (first, second)}
    return bool(words & _AGENTS) and bool(words & _THINGS)


def looks_bipartite(src: Array, dst: Array, num_nodes: int) -> bool:
    """Whether a list of pairs has the four signs.

    Args:
        src: numbers of the nodes in the one column, by ascending id, shape [E].
        dst: those in the other, shape [E].
        num_nodes: number of different ids in both.
    """
    first, second = np.zeros((2, num_nodes), dtype=bool)
    first[src] = True
    second[dst] = True
    shared = first & second
    if not shared.any() or not (_ends_early(first) or _ends_early(second)):
        return False
    key = np.unique(src * num_nodes + dst)  # each pair once
    src, dst = key // num_nodes, key % num_nodes
    out, into = (np.bincount(end, minlength=num_nodes).astype(float) for end in (src, dst))
    among = shared[src] & shared[dst]
    src, dst = src[among], dst[among]
    up, down = int((src < dst).sum()), int((src > dst).sum())
    if min(up, down) < max(3, _BOTH_WAYS * (up + down)):
        return False
    chance = np.minimum(out[dst] * into[src] / len(key), 1.0)[src != dst].sum() / 2
    chance += np.minimum(out * into / len(key), 1.0).sum()
    seen = int(np.isin(dst * num_nodes + src, key)[src != dst].sum()) / 2 + int((src == dst).sum())
    noise = 3 * math.sqrt(chance)
    return bool(chance / 2 - noise <= seen <= 2 * chance + noise + 3)


def _ends_early(there: Array) -> bool:
    """Whether more ids lie beyond the ends of a column than its gaps between them explain."""
    places = np.flatnonzero(there)
    within = int(places[-1] - places[0]) + 1
    beyond = len(there) - within
    gap = (within - len(places) + 1) / (within + 2)
    return beyond >= _LEFT_OUT * len(there) and beyond * -math.log(gap) > _SURE
