"""Pictures of the negatives, one function each, which returns matplotlib axes.

Matplotlib (the extra ``plot``) is imported when a function is called.
"""

from dgl_dmns.plots.hardness import plot_hardness
from dgl_dmns.plots.positivity import plot_positivity
from dgl_dmns.plots.query import plot_query
from dgl_dmns.plots.scores import plot_scores

__all__ = ["plot_hardness", "plot_positivity", "plot_query", "plot_scores"]
