"""Samplers by name, once for the command line, the benchmarks and the tests.

A new sampler is one class and one line in `SAMPLERS`; a new rule that words can name, one in
`RULES`. Options are flat: ``make_sampler("dmns", g, model, k=5, pool=64, rule="gate")``;
`in_families` puts them into the families that classes take.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from dgl_dmns.core import Blend, Density, Gate, Nearest
from dgl_dmns.samplers.adversarial import AdversarialSampler
from dgl_dmns.samplers.base import NegativeSampler
from dgl_dmns.samplers.dmns import DMNSSampler
from dgl_dmns.samplers.dynamic import DynamicSampler, SelfAdversarialSampler
from dgl_dmns.samplers.filtered import UniformSampler
from dgl_dmns.samplers.mcns import MCNSSampler
from dgl_dmns.samplers.plain import InBatchSampler, PopularitySampler
from dgl_dmns.samplers.refreshing import RefreshingSampler
from dgl_dmns.samplers.settings import Diffusion, Pools, Resources

__all__ = ["RULES", "SAMPLERS", "default_options", "follows_encoder", "in_families", "make_sampler"]

SAMPLERS: dict[str, Any] = {  # classes that derive from NegativeSampler
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

_PLACES = ("g", "encoder", "k")
_FAMILIES: dict[str, Any] = {"pools": Pools, "diffusion": Diffusion, "resources": Resources}


def default_options(name: str) -> dict[str, Any]:
    """The options of a sampler with their defaults, by name; those of families as well.

    The resources of a machine say nothing of the negatives, and stay together; candidates are ids
    of one graph, and left out.
    """
    kind = SAMPLERS[name]
    found = _keywords(kind)
    if found.pop("options", None) is not None and issubclass(kind, RefreshingSampler):
        taken = _keywords(RefreshingSampler)
        found.update({one: taken[one] for one in kind.takes if one in taken})
    for family in {"pools", "diffusion"} & found.keys():
        del found[family]
        defaults = kind.defaults if family == "pools" else _FAMILIES[family]()
        found.update({n: getattr(defaults, n) for n in _names(family) if hasattr(defaults, n)})
    found.pop("candidates", None)
    return found


def _names(family: str) -> list[str]:
    return [one.name for one in fields(_FAMILIES[family])]


def _keywords(kind: type) -> dict[str, Any]:
    """Keyword arguments of a class with their defaults; ``options`` stands for those of a base."""
    taken = inspect.signature(kind).parameters.values()
    return {one.name: one.default for one in taken if one.name not in _PLACES}


def follows_encoder(name: str) -> bool:
    """Whether a sampler is given the encoder, so that its negatives change with it."""
    return "encoder" in inspect.signature(SAMPLERS[name]).parameters


def in_families(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a sampler's class from flat options: ``pool=64`` is in ``pools=Pools(pool=64)``.

    Arguments of the class itself and what is of no family stay as they are.
    """
    made, own = dict(options), _keywords(kind).keys()
    for family, settings in _FAMILIES.items():
        names = set(_names(family)) & made.keys() - own
        if names:
            made[family] = settings(**{name: made.pop(name) for name in names})
    return made


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
        TypeError, ValueError: for an option that the sampler does not take, or out of range.
    """
    if "seed" in default_options(name):
        options["seed"] = seed
    rule = options.get("rule")
    if isinstance(rule, str) and rule in RULES:
        options["rule"] = RULES[rule]()
    kind, given = SAMPLERS[name], [g, k]
    if follows_encoder(name):
        given, options = [g, encoder, k], in_families(kind, options)
    made: NegativeSampler = kind(*given, **options)
    return made
