"""Ablations and the paper's open questions, as groups of rows around the latent row.

Each group holds the row it varies, unchanged, so that a group can be read on its own; the store
runs that cell once for all groups. A variant is what it changes of the training, and of `Latent`.
"""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

from benchmarks.common.rows import Row
from benchmarks.paper.config import PAPER_FRACTIONS, Line

__all__ = ["ABLATIONS", "ablation_lines"]

_Changes = dict[str, Any]

_COARSE = {10: (0.1, 0.2, 0.3, 0.5), 20: (0.1, 0.15, 0.25, 0.5)}
"""With few steps, the paper's fractions fall on one step; these are the nearest that do not."""


def _levels(*fractions: float) -> _Changes:
    """Other levels, of weight 1, at the same K: fewer levels have more latents each."""
    copies = 4 // len(fractions)
    return {"fractions": fractions, "weights": (1.0,) * len(fractions), "copies": copies}


_OF_THE_LATENTS: dict[str, dict[str, _Changes]] = {
    "condition": {"without the condition": {"conditional": False}},
    "levels": {f"level T*{f:g} alone": _levels(f) for f in (0.02, *PAPER_FRACTIONS, 1.0)},
    "pairs": {
        f"levels T*{a:g} and T*{b:g}": _levels(a, b) for a, b in combinations(PAPER_FRACTIONS, 2)
    },
    "process": {
        "noised true neighbours": {"source": "forward"},
        "sampling chain": {"sampling": "chain"},
    },
    "steps": {
        f"T = {steps}": {"steps": steps, "fractions": _COARSE.get(steps, PAPER_FRACTIONS)}
        for steps in (10, 20, 50, 100, 200)
    },
    "schedule": {f"{kind} schedule": {"schedule": kind} for kind in ("linear", "cosine")},
    "fitting": {
        f"{steps} fitting steps": {"fit_steps": steps, "warmup_steps": steps}
        for steps in (1, 5, 20, 80)
    },
    "staleness": {f"refresh every {every}": {"refresh_every": every} for every in (1, 2, 5, 10)},
    "space": {
        "raw space": {"space": "raw"},
        "compact space (16)": {"space": "compact", "compact_width": 16},
    },
    "curriculum": {
        f"{kind}, stage {stage}": {"curriculum": kind, "stage": stage}
        for kind, stage in product(("easy-first", "hard-first"), (5, 10, 20))
    },
    "psi": {f"Psi < 0 dropped ({kind})": {"drop": kind} for kind in ("distance", "density")},
}

_OF_THE_TRAINING: dict[str, dict[str, _Changes]] = {
    "width": {f"width {w}": {"hidden": w} for w in (16, 32, 64)},
    "loss": {
        f"{form}, scale {scale:g}": {"loss": form, "scale": scale}
        for form, scale in (
            ("sigmoid", 1.0),
            ("sigmoid", 3.0),
            ("logsigmoid", 1.0),
            ("logsigmoid", 5.0),
        )
    },
    "features": {
        f"{kind} features, {activation}": {"features": kind, "activation": activation}
        for kind, activation in product(("binary", "stored", "unit"), ("relu", "none"))
    },
}
"""These have the uniform row beside each variant."""

ABLATIONS = (*_OF_THE_LATENTS, *_OF_THE_TRAINING)
"""Groups by their command-line names."""


def ablation_lines(group: str, latent: Line) -> list[Line]:
    """The lines of a group, around the latent row with its chosen setting.

    Raises:
        ValueError: for an unknown name.
    """
    if group not in ABLATIONS:
        raise ValueError(f"ablation: expected one of {', '.join(ABLATIONS)}, got {group!r}")
    lines = [latent]
    for title, options in _OF_THE_LATENTS.get(group, {}).items():
        lines.append(latent.changed(title, {}, options))
    for title, training in _OF_THE_TRAINING.get(group, {}).items():
        lines.append(latent.changed(title, training, {}))
        lines.append(Line(Row(f"uniform (5), {title}", "uniform"), lines[-1].training))
    return lines
