"""The figures of the paper (WWW 2024, its table of link prediction): MAP and NDCG."""

from __future__ import annotations

__all__ = ["PUBLISHED", "PUBLISHED_PSI", "published"]

_DATASETS = ("cora", "citeseer", "coauthor-cs", "actor")

PUBLISHED: dict[str, tuple[tuple[float, float], ...]] = {
    "GCN": ((0.742, 0.805), (0.735, 0.799), (0.823, 0.867), (0.521, 0.634)),
    "PNS": ((0.730, 0.795), (0.748, 0.809), (0.817, 0.863), (0.517, 0.631)),
    "DNS": ((0.735, 0.799), (0.777, 0.831), (0.845, 0.883), (0.558, 0.663)),
    "MCNS": ((0.756, 0.815), (0.750, 0.810), (0.824, 0.868), (0.555, 0.659)),
    "KBGAN": ((0.615, 0.705), (0.568, 0.668), (0.852, 0.888), (0.472, 0.596)),
    "DMNS": ((0.793, 0.844), (0.790, 0.841), (0.871, 0.903), (0.600, 0.696)),
}
"""(MAP, NDCG) by method, in the order Cora, Citeseer, Coauthor-CS, Actor."""

PUBLISHED_PSI: dict[str, float] = dict(zip(_DATASETS, (0.8014, 0.8162, 0.8165, 0.8431)))
"""Share of Psi >= 0, over all four levels."""


def published(row: str, dataset: str) -> tuple[float, float] | None:
    """The published figures of the method that a row stands for, if there are any.

    Args:
        row: the row's title, such as ``PNS (5)``; ``uniform, fixed (1)`` is the paper's GCN row.
        dataset: name of the data set.
    """
    method = "GCN" if row.startswith("uniform, fixed") else row.split(" (")[0].split(",")[0]
    if method not in PUBLISHED or dataset not in _DATASETS:
        return None
    return PUBLISHED[method][_DATASETS.index(dataset)]
