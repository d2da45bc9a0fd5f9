"""The tables and the plot of protocol A, beside the paper's own figures (WWW 2024)."""

from __future__ import annotations

from typing import Any

from benchmarks.common.report import (
    Column,
    Done,
    Found,
    Section,
    difference,
    markdown_table,
    mean,
    plot_runs,
    spread,
    table,
)

__all__ = ["draw", "psi_table", "published", "tables"]

_DATASETS = ("cora", "citeseer", "coauthor-cs", "actor")

_PUBLISHED: dict[str, tuple[tuple[float, float], ...]] = {
    "GCN": ((0.742, 0.805), (0.735, 0.799), (0.823, 0.867), (0.521, 0.634)),
    "PNS": ((0.730, 0.795), (0.748, 0.809), (0.817, 0.863), (0.517, 0.631)),
    "DNS": ((0.735, 0.799), (0.777, 0.831), (0.845, 0.883), (0.558, 0.663)),
    "MCNS": ((0.756, 0.815), (0.750, 0.810), (0.824, 0.868), (0.555, 0.659)),
    "KBGAN": ((0.615, 0.705), (0.568, 0.668), (0.852, 0.888), (0.472, 0.596)),
    "DMNS": ((0.793, 0.844), (0.790, 0.841), (0.871, 0.903), (0.600, 0.696)),
}
"""(MAP, NDCG) of link prediction by method, in the order of `_DATASETS`."""

_PUBLISHED_PSI = dict(zip(_DATASETS, (0.8014, 0.8162, 0.8165, 0.8431)))
"""Share of Psi >= 0, over all four levels."""


def published(row: str, dataset: str) -> tuple[float, float] | None:
    """The published figures of the method that a row stands for, if there are any.

    Args:
        row: the row's title, such as ``PNS (5)``; ``uniform, fixed (1)`` is the paper's GCN row.
        dataset: name of the data set.
    """
    method = "GCN" if row.startswith("uniform, fixed") else row.split(" (")[0].split(",")[0]
    if method not in _PUBLISHED or dataset not in _DATASETS:
        return None
    return _PUBLISHED[method][_DATASETS.index(dataset)]


def tables(section: Section, found: Found) -> str:
    """Metrics beside the published ones and the reference's, and costs."""
    figures = {id(runs): published(title, section.dataset) for title, runs in found.items()}

    def of_the_paper(runs: Any, _: Any) -> str:
        known = figures[id(runs)]
        return "-" if known is None else f"{known[0]:.3f} / {known[1]:.3f}"

    columns = (
        mean("MAP (val)", "val MAP"),
        *(mean(metric, f"test {metric}") for metric in ("MAP", "NDCG", "Hits@1")),
        Column("published MAP / NDCG", of_the_paper),
        difference(f"MAP, difference to {section.reference}", "test MAP"),
        mean("probe", "probe"),
        mean("s / epoch", "seconds per epoch"),
        mean("epochs", "epochs", 0),
        mean("peak MB", "peak MB", 0),
    )
    return table(found, section.reference, columns)


def psi_table(done: Done) -> str:
    """Shares of sub-linear positivity of the latent rows, beside the published ones."""
    lines: dict[tuple[str, ...], None] = {}
    for section, found in done:
        paper = _PUBLISHED_PSI.get(section.dataset)
        for title, runs in found.items():
            if title.startswith("DMNS, latent"):
                for name in dict.fromkeys(n for r in runs.values() for n in r if n[:4] == "psi "):
                    share = spread([run[name] for run in runs.values() if name in run])
                    words = (section.dataset, *name.split(" ")[1:], share)
                    lines[(*words, f"{paper:.3f}" if paper else "-")] = None
    if not lines:
        return ""
    header = ("data set", "Psi by", "level", "share >= 0", "published, all levels")
    return "\n## Sub-linear positivity\n\n" + markdown_table(header, list(lines))


def draw(plt: Any, done: Done) -> Any:
    """Test MAP of the rows, a panel for each table; crosses are the published figures."""
    height = 1.0 + 0.3 * max(len(found) for _, found in done)
    figure, axes = plt.subplots(1, len(done), figsize=(4.5 * len(done), height), squeeze=False)
    for axis, (section, found) in zip(axes[0], done):
        known = {title: published(title, section.dataset) for title in found}
        marks = {title: figures[0] for title, figures in known.items() if figures}
        plot_runs(axis, found, "test MAP", marks)
        axis.set_title(section.dataset)
    return figure
