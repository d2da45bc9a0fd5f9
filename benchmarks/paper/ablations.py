"""Ablations and the paper's open questions, as groups of rows around the latent row.

Each group holds the row it varies, unchanged, so that a group can be read on its own; the store
runs that cell once for all groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

from benchmarks.paper.config import PAPER_FRACTIONS, Latent, Row, Training, Uniform
from benchmarks.paper.rows import main_rows
from benchmarks.paper.tuning import Choices

__all__ = ["ABLATIONS", "ablation_rows"]

Variants = dict[str, tuple[Latent, Training]]

STEPS = (10, 20, 50, 100, 200)
COARSE_FRACTIONS = {10: (0.1, 0.2, 0.3, 0.5), 20: (0.1, 0.15, 0.25, 0.5)}
"""With few steps, the paper's fractions fall on one step; these are the nearest that do not."""


def _changed(training: Training, **changes: Any) -> Training:
    return replace(training, **changes)


def _method(base: Latent, **changes: Any) -> Latent:
    return replace(base, **changes)


def _diffusion(base: Latent, **changes: Any) -> Latent:
    return replace(base, diffusion=replace(base.diffusion, **changes))


def _levels(base: Latent, fractions: tuple[float, ...]) -> Latent:
    """Other levels, of weight 1, at the same K: fewer levels have more latents each."""
    copies = max(1, (base.k - base.uniform) // len(fractions))
    changed = _diffusion(base, fractions=fractions, weights=(1.0,) * len(fractions))
    return _method(changed, copies=copies, uniform=base.k - copies * len(fractions))


def _condition(base: Latent, training: Training) -> Variants:
    return {"without the condition": (_diffusion(base, conditional=False), training)}


def _single_levels(base: Latent, training: Training) -> Variants:
    return {
        f"level T*{fraction:g} alone": (_levels(base, (fraction,)), training)
        for fraction in (0.02, *PAPER_FRACTIONS, 1.0)
    }


def _pairs(base: Latent, training: Training) -> Variants:
    return {
        f"levels T*{a:g} and T*{b:g}": (_levels(base, (a, b)), training)
        for a, b in combinations(PAPER_FRACTIONS, 2)
    }


def _process(base: Latent, training: Training) -> Variants:
    return {
        "noised true neighbours": (_method(base, source="forward"), training),
        "sampling chain": (_method(base, sampling="chain"), training),
    }


def _steps(base: Latent, training: Training) -> Variants:
    found = {}
    for steps in STEPS:
        fractions = base.diffusion.fractions
        if fractions == PAPER_FRACTIONS:
            fractions = COARSE_FRACTIONS.get(steps, fractions)
        found[f"T = {steps}"] = (_diffusion(base, steps=steps, fractions=fractions), training)
    return found


def _schedule(base: Latent, training: Training) -> Variants:
    return {
        f"{kind} schedule": (_diffusion(base, schedule=kind), training)
        for kind in ("linear", "cosine")
    }


def _fitting(base: Latent, training: Training) -> Variants:
    return {
        f"{steps} fitting steps": (_diffusion(base, fit_steps=steps, warmup_steps=steps), training)
        for steps in (1, 5, 20, 80)
    }


def _staleness(base: Latent, training: Training) -> Variants:
    return {
        f"refresh every {every}": (_diffusion(base, refresh_every=every), training)
        for every in (1, 2, 5, 10)
    }


def _space(base: Latent, training: Training) -> Variants:
    return {
        "raw space": (_diffusion(base, space="raw"), training),
        "compact space (16)": (_diffusion(base, space="compact", compact_width=16), training),
    }


def _width(base: Latent, training: Training) -> Variants:
    return {f"width {w}": (base, _changed(training, hidden=w)) for w in (16, 32, 64)}


def _loss(base: Latent, training: Training) -> Variants:
    return {
        f"{form}, scale {scale:g}": (base, _changed(training, loss=form, scale=scale))
        for form, scale in (
            ("sigmoid", 1.0),
            ("sigmoid", 3.0),
            ("logsigmoid", 1.0),
            ("logsigmoid", 5.0),
        )
    }


def _features(base: Latent, training: Training) -> Variants:
    return {
        f"{kind} features, {activation}": (
            base,
            _changed(training, features=kind, activation=activation),
        )
        for kind in ("binary", "stored", "unit")
        for activation in ("relu", "none")
    }


def _curriculum(base: Latent, training: Training) -> Variants:
    return {
        f"{kind}, stage {stage}": (_method(base, curriculum=kind, stage=stage), training)
        for kind in ("easy-first", "hard-first")
        for stage in (5, 10, 20)
    }


def _psi(base: Latent, training: Training) -> Variants:
    return {
        f"Psi < 0 dropped ({kind})": (_method(base, drop=kind), training)
        for kind in ("distance", "density")
    }


ABLATIONS: dict[str, Callable[[Latent, Training], Variants]] = {
    "condition": _condition,
    "levels": _single_levels,
    "pairs": _pairs,
    "process": _process,
    "steps": _steps,
    "schedule": _schedule,
    "fitting": _fitting,
    "staleness": _staleness,
    "space": _space,
    "width": _width,
    "loss": _loss,
    "features": _features,
    "curriculum": _curriculum,
    "psi": _psi,
}
"""Groups by their command-line names."""


def ablation_rows(
    name: str, dataset: str, training: Training | None = None, choices: Choices | None = None
) -> list[Row]:
    """The rows of a group, around the latent row with its chosen setting.

    Args:
        name: one of `ABLATIONS`.
        dataset: name of the data set.
        training: how the unchanged row is trained apart from that; the default where None.
        choices: what was chosen, as in `benchmarks.paper.rows.main_rows`.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in ABLATIONS:
        raise ValueError(f"ablation: expected one of {', '.join(ABLATIONS)}, got {name!r}")
    row = main_rows(dataset, training, choices)["dmns-latent"]
    assert isinstance(row.method, Latent)
    rows = [row]
    for title, (method, changed) in ABLATIONS[name](row.method, row.training).items():
        rows.append(Row(title, method, changed))
        if name in ("width", "loss", "features"):
            rows.append(Row(f"uniform (5), {title}", Uniform(5), changed))
    return rows
