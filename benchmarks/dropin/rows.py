"""The rows that can be run, in named groups; ablations are further groups.

A group is a function of the recipe's number of negatives, which titles state. Differences are taken
to its first row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.common.rows import Row
from dgl_dmns.core import Blend, Density, Gate

__all__ = ["GROUPS", "main_rows"]

_SHARPENED = {"rule": Blend(score_share=0.8, edge_ratio=8.0)}


def main_rows(k: int) -> dict[str, Row]:
    """What a DGL user can choose from, by command-line names; defaults but for ``sharpened``."""
    rows = {
        "uniform": Row(f"uniform ({k})", "dgl"),
        "uniform-20": Row("uniform (20), more negatives", "dgl", {"k": 20}),
        "uniform-50": Row("uniform (50), more negatives", "dgl", {"k": 50}),
        "in-batch": Row(f"in-batch ({k})", "in-batch"),
        "pns": Row(f"PNS ({k})", "popularity"),
        "dns": Row(f"DNS ({k})", "dynamic"),
        "self-adversarial": Row(f"self-adversarial ({k})", "self-adversarial"),
        "mcns": Row(f"MCNS ({k})", "mcns"),
        "dmns": Row(f"DMNS ({k})", "dmns"),
        "sharpened": Row(f"DMNS, sharpened ({k})", "dmns", _SHARPENED),
        "gate": Row(f"DMNS, gate ({k})", "dmns", {"rule": Gate()}),
        "density": Row(f"DMNS, density ({k})", "dmns", {"rule": Density()}),
    }
    calibrated = {
        "self-adversarial-calibrated": "self-adversarial",
        "sharpened-calibrated": "sharpened",
        "calibrated": "dmns",
        "density-calibrated": "density",
    }
    for name, plain in calibrated.items():
        title = rows[plain].title.replace(f" ({k})", f", calibrated ({k})")
        rows[name] = replace(rows[plain], title=title, loss="calibrated")
    title = f"DMNS, density, negatives calibrated ({k})"
    half = replace(rows["density"], title=title, loss="negatives calibrated")
    return {**rows, "density-half-calibrated": half}


def _stand_ins(title: str, row: Row, score: Row) -> dict[str, Row]:
    """What the diffusion model has to beat in the same rule and loss, and the score alone."""
    rows = {"diffusion": replace(row, title=f"{title}: diffusion model")}
    for centre, words in (
        ("neighbour", "noised neighbours"),
        ("query", "Gaussian around the query"),
        ("mean", "Gaussian around the neighbours' mean"),
    ):
        own = replace(row, title=f"{title}: {words}", sampler="stand-in")
        rows[centre] = own.with_options(centre=centre)
    return {**rows, "score": score}


def gate_rows(k: int) -> dict[str, Row]:
    """Other generators in the gate."""
    score = Row("the score alone", "self-adversarial")
    return _stand_ins("gate", Row("", "dmns", {"rule": Gate()}), score)


def blend_rows(k: int) -> dict[str, Row]:
    """The same in the default rule."""
    return _stand_ins("blend", Row("", "dmns"), Row("the score alone", "self-adversarial"))


def calibrated_rows(k: int) -> dict[str, Row]:
    """The same with densities and a calibrated loss."""
    score = Row("the score, calibrated", "self-adversarial", loss="calibrated")
    row = Row("", "dmns", {"rule": Density()}, "calibrated")
    return _stand_ins("calibrated", row, score)


def shared_rows(k: int) -> dict[str, Row]:
    """Negatives that the batch shares, beside those of the recipe's loss."""

    def shared(title: str, sampler: str, queries: int | None = None, **options: Any) -> Row:
        return Row(title, sampler, options, "shared", queries)

    return {
        "uniform": Row(f"uniform ({k})", "dgl"),
        "uniform-shared": shared(f"uniform, shared ({k})", "uniform"),
        "uniform-shared-1": shared("uniform, shared, one an edge", "uniform", k=1),
        "uniform-shared-32": shared(
            "uniform, one an edge, shared by 32 queries", "uniform", queries=32, k=1
        ),
        "in-batch-shared": shared(f"in-batch, shared ({k})", "in-batch"),
        "self-adversarial-shared-1": shared(
            "self-adversarial, shared, one an edge", "self-adversarial", k=1, uniform_share=0.5
        ),
        "dmns-shared": shared(f"DMNS, shared ({k})", "dmns"),
        "dmns-shared-1": shared("DMNS, shared, one an edge", "dmns", k=1),
        "full-softmax": shared("full softmax over all nodes", "every node"),
    }


GROUPS: dict[str, Callable[[int], dict[str, Row]]] = {
    "main": main_rows,
    "gate": gate_rows,
    "blend": blend_rows,
    "calibrated": calibrated_rows,
    "shared": shared_rows,
}
"""Groups by their command-line names."""
