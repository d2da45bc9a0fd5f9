"""What the negatives do: statistics, a monitor over training, and warnings with remedies."""

from dgl_dmns.diagnostics.measures import entropy, gini, percentiles, psi_distance, top_share
from dgl_dmns.diagnostics.monitor import Monitor
from dgl_dmns.diagnostics.observation import Observation, QueryView, observe, view_query
from dgl_dmns.diagnostics.signs import NegativesWarning, Sign, Thresholds, signs
from dgl_dmns.diagnostics.statistics import HeldOut, negative_statistics

__all__ = [
    "HeldOut",
    "Monitor",
    "NegativesWarning",
    "Observation",
    "QueryView",
    "Sign",
    "Thresholds",
    "entropy",
    "gini",
    "negative_statistics",
    "observe",
    "percentiles",
    "psi_distance",
    "signs",
    "top_share",
    "view_query",
]
