"""The rows that can be run, in named groups; ablations are further groups.

A group is a function of the recipe, since titles say how many negatives a row has. Differences are
taken to its first row.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.dropin.config import (
    DMNS,
    Dynamic,
    InBatch,
    MarkovChain,
    Popularity,
    Recipe,
    Row,
    SelfAdversarial,
    Uniform,
)

__all__ = ["GROUPS", "main_rows"]


def main_rows(recipe: Recipe) -> dict[str, Row]:
    """What a DGL user can choose from, all with their default settings, by command-line names."""
    k = recipe.k
    return {
        "uniform": Row(f"uniform ({k})", Uniform()),
        "uniform-20": Row("uniform (20), more negatives", Uniform(20)),
        "uniform-50": Row("uniform (50), more negatives", Uniform(50)),
        "in-batch": Row(f"in-batch ({k})", InBatch()),
        "pns": Row(f"PNS ({k})", Popularity()),
        "dns": Row(f"DNS ({k})", Dynamic()),
        "self-adversarial": Row(f"self-adversarial ({k})", SelfAdversarial()),
        "mcns": Row(f"MCNS ({k})", MarkovChain()),
        "dmns": Row(f"DMNS ({k})", DMNS()),
        "gate": Row(f"DMNS, gate ({k})", DMNS(rule="gate")),
        "calibrated": Row(f"DMNS, calibrated ({k})", DMNS(rule="density", calibrated=True)),
    }


GROUPS: dict[str, Callable[[Recipe], dict[str, Row]]] = {"main": main_rows}
"""Groups by their command-line names."""
