"""Samplers by name, once for the command line, the benchmarks and the tests.

A new sampler is one class and one line in `SAMPLERS`; a new rule that words can name, one in
`RULES`. Options are flat: ``make_sampler("dmns", g, model, k=5, pool=64, rule="gate")``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from dgl_dmns.core import Blend, Density, Gate, Nearest
from dgl_dmns.samplers.adversarial import AdversarialSampler
from dgl_dmns.samplers.base import NegativeSampler
from dgl_dmns.samplers.dmns import DMNSSampler
from dgl_dmns.samplers.dynamic import DynamicSampler, SelfAdversarialSampler
from dgl_dmns.samplers.mcns import MCNSSampler
from dgl_dmns.samplers.popularity import PopularitySampler
from dgl_dmns.samplers.shared import InBatchSampler
from dgl_dmns.samplers.uniform import UniformSampler

__all__ = ["RULES", "SAMPLERS", "default_options", "follows_encoder", "make_sampler"]

SAMPLERS: dict[str, type[NegativeSampler]] = {
    "dmns": DMNSSampler,
    "uniform": UniformSampler,
    "popularity": PopularitySampler,  # PNS
    "in-batch": InBatchSampler,
    "dynamic": DynamicSampler,  # DNS
    "self-adversarial": SelfAdversarialSampler,
    "mcns": MCNSSampler,
    "adversarial": AdversarialSampler,  # KBGAN
}

RULES: dict[str, Callable[[], Any]] = {
    "blend": Blend,
    "gate": Gate,
    "density": Density,
    "nearest": Nearest,
}
"""What ``rule=`` of ``dmns`` may be in words."""

_NO_OPTIONS = ("g", "encoder", "k", "curriculum", "effective_size")


def default_options(name: str) -> dict[str, Any]:
    """The options of a sampler with their defaults, by name."""
    taken = inspect.signature(SAMPLERS[name]).parameters
    return {one.name: one.default for one in taken.values() if one.name not in _NO_OPTIONS}


def follows_encoder(name: str) -> bool:
    """Whether a sampler is given the encoder, so that its negatives change with it."""
    return "encoder" in inspect.signature(SAMPLERS[name]).parameters


def make_sampler(
    name: str, g: Any, encoder: Any, k: Any = 1, *, seed: int = 0, **options: Any
) -> NegativeSampler:
    """A sampler by its name in `SAMPLERS`.

    Args:
        name: which one.
        g: the training graph.
        encoder: as for `DMNSSampler`; samplers that follow no encoder leave it.
        k: negatives per edge.
        seed: of samplers that have one; the others draw from torch's global stream.
        **options: see `default_options`; ``rule`` may be a word of `RULES`.

    Raises:
        TypeError: for an option that the sampler does not take, or of another type.
        ValueError: for a value out of range.
    """
    if "seed" in default_options(name):
        options["seed"] = seed
    rule = options.get("rule")
    if isinstance(rule, str) and rule in RULES:
        options["rule"] = RULES[rule]()
    places = (g, encoder, k) if follows_encoder(name) else (g, k)
    return SAMPLERS[name](*places, **options)
