"""The rows that can be run, in named groups; ablations are further groups.

A group is a function of the recipe, since titles say how many negatives a row has. Differences are
taken to its first row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from benchmarks.dropin.config import (
    DMNS,
    Dynamic,
    InBatch,
    MarkovChain,
    Popularity,
    Recipe,
    Row,
    SelfAdversarial,
    Shared,
    Uniform,
)

__all__ = ["GROUPS", "main_rows"]

_SHARPENED = DMNS(score_share=0.8, edge_ratio=8.0)


def main_rows(recipe: Recipe) -> dict[str, Row]:
    """What a DGL user can choose from, by command-line names; defaults but for ``sharpened``."""
    k = recipe.k
    return {
        "uniform": Row(f"uniform ({k})", Uniform()),
        "uniform-20": Row("uniform (20), more negatives", Uniform(20)),
        "uniform-50": Row("uniform (50), more negatives", Uniform(50)),
        "in-batch": Row(f"in-batch ({k})", InBatch()),
        "pns": Row(f"PNS ({k})", Popularity()),
        "dns": Row(f"DNS ({k})", Dynamic()),
        "self-adversarial": Row(f"self-adversarial ({k})", SelfAdversarial()),
        "self-adversarial-calibrated": Row(
            f"self-adversarial, calibrated ({k})", SelfAdversarial(calibrated="both")
        ),
        "mcns": Row(f"MCNS ({k})", MarkovChain()),
        "dmns": Row(f"DMNS ({k})", DMNS()),
        "sharpened": Row(f"DMNS, sharpened ({k})", _SHARPENED),
        "sharpened-calibrated": Row(
            f"DMNS, sharpened, calibrated ({k})", replace(_SHARPENED, calibrated="both")
        ),
        "gate": Row(f"DMNS, gate ({k})", DMNS(rule="gate")),
        "calibrated": Row(f"DMNS, calibrated ({k})", DMNS(calibrated="both")),
        "density": Row(f"DMNS, density ({k})", DMNS(rule="density")),
        "density-calibrated": Row(
            f"DMNS, density, calibrated ({k})", DMNS(rule="density", calibrated="both")
        ),
        "density-half-calibrated": Row(
            f"DMNS, density, negatives calibrated ({k})",
            DMNS(rule="density", calibrated="negatives"),
        ),
    }


_STAND_INS: dict[Literal["query", "mean", "neighbour"], str] = {
    "neighbour": "noised neighbours",
    "query": "Gaussian around the query",
    "mean": "Gaussian around the neighbours' mean",
}


def _in_the_place_of_the_diffusion_model(title: str, method: DMNS) -> dict[str, Row]:
    rows = {"diffusion": Row(f"{title}: diffusion model", method)}
    for source, name in _STAND_INS.items():
        rows[source] = Row(f"{title}: {name}", replace(method, source=source))
    return rows


def gate_rows(recipe: Recipe) -> dict[str, Row]:
    """What the diffusion model has to beat in the same gate, and the score alone."""
    rows = _in_the_place_of_the_diffusion_model("gate", DMNS(rule="gate"))
    return {**rows, "score": Row("the score alone", SelfAdversarial())}


def blend_rows(recipe: Recipe) -> dict[str, Row]:
    """The same in the default rule."""
    rows = _in_the_place_of_the_diffusion_model("blend", DMNS())
    return {**rows, "score": Row("the score alone", SelfAdversarial())}


def calibrated_rows(recipe: Recipe) -> dict[str, Row]:
    """The same with densities and a calibrated loss."""
    method = DMNS(rule="density", calibrated="both")
    rows = _in_the_place_of_the_diffusion_model("calibrated", method)
    return {**rows, "score": Row("the score, calibrated", SelfAdversarial(calibrated="both"))}


_SPACES: dict[str, tuple[str, dict[str, Any]]] = {
    "compact": ("16 directions", {}),
    "raw": ("all directions", {"space": "raw"}),
    "sized": ("all directions, effective size 16", {"space": "raw", "effective_size": 16.0}),
}


def space_rows(recipe: Recipe) -> dict[str, Row]:
    """The generator's space: compact, or all directions of the embeddings, whose densities peak."""
    methods = {
        "default": ("default", DMNS()),
        "density": ("density, calibrated", DMNS(rule="density", calibrated="both")),
    }
    return {
        f"{rule}-{space}": Row(f"{title}: {words}", replace(method, **changes))
        for rule, (title, method) in methods.items()
        for space, (words, changes) in _SPACES.items()
    }


def fitting_rows(recipe: Recipe) -> dict[str, Row]:
    """How far a refresh fits the diffusion model: steps after the first fit, which has 200."""
    rows = {"default": Row("default", DMNS())}
    for steps in (0, 5, 160):
        rows[f"steps-{steps}"] = Row(f"{steps} fitting steps", DMNS(fit_steps=steps))
    return rows


def sharpness_rows(recipe: Recipe) -> dict[str, Row]:
    """Scores sharpened at each refresh, with the generator and without, beside scores as is."""
    return {
        "default": Row("default", DMNS()),
        "half-sharpened": Row("default, sharpened", DMNS(edge_ratio=8.0)),
        "as-they-are": Row("four fifths by the score", DMNS(score_share=0.8)),
        "as-they-are-calibrated": Row(
            "four fifths by the score, calibrated", DMNS(score_share=0.8, calibrated="both")
        ),
        "sharpened": Row("four fifths by the score, sharpened", _SHARPENED),
        "score": Row("the score alone, sharpened", SelfAdversarial(edge_ratio=8.0)),
        "score-as-it-is": Row("the score alone", SelfAdversarial()),
    }


def shared_rows(recipe: Recipe) -> dict[str, Row]:
    """Negatives that the batch shares, beside those of the recipe's loss."""
    k = recipe.k
    return {
        "uniform": Row(f"uniform ({k})", Uniform()),
        "uniform-shared": Row(f"uniform, shared ({k})", Shared()),
        "uniform-shared-1": Row("uniform, shared, one an edge", Shared(k=1)),
        "uniform-shared-32": Row(
            "uniform, one an edge, shared by 32 queries", Shared(k=1, queries=32)
        ),
        "in-batch-shared": Row(f"in-batch, shared ({k})", Shared("in-batch")),
        "self-adversarial-shared-1": Row(
            "self-adversarial, shared, one an edge", Shared("self-adversarial", k=1)
        ),
        "dmns-shared": Row(f"DMNS, shared ({k})", Shared("dmns")),
        "dmns-shared-1": Row("DMNS, shared, one an edge", Shared("dmns", k=1)),
        "full-softmax": Row("full softmax over all nodes", Shared("all")),
    }


GROUPS: dict[str, Callable[[Recipe], dict[str, Row]]] = {
    "main": main_rows,
    "gate": gate_rows,
    "blend": blend_rows,
    "calibrated": calibrated_rows,
    "spaces": space_rows,
    "fitting": fitting_rows,
    "sharpness": sharpness_rows,
    "shared": shared_rows,
}
"""Groups by their command-line names."""
