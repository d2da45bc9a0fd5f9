"""Samplers by the names that the command line has for them."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from dgl_dmns.samplers import (
    AdversarialSampler,
    DMNSSampler,
    DynamicSampler,
    InBatchSampler,
    MCNSSampler,
    NegativeSampler,
    PopularitySampler,
    SelfAdversarialSampler,
    UniformSampler,
)

__all__ = ["SAMPLERS", "make_sampler", "parse_options"]

SAMPLERS: dict[str, Callable[..., NegativeSampler]] = {
    "dmns": DMNSSampler,
    "uniform": UniformSampler,
    "popularity": PopularitySampler,
    "in-batch": InBatchSampler,
    "dynamic": DynamicSampler,
    "self-adversarial": SelfAdversarialSampler,
    "mcns": MCNSSampler,
    "adversarial": AdversarialSampler,
}


def parse_options(words: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` words as arguments; values are Python literals, else text.

    >>> parse_options(["pool=64", "levels=(0.25, 0.5)", "space=raw"])
    {'pool': 64, 'levels': (0.25, 0.5), 'space': 'raw'}

    Raises:
        ValueError: for a word without an equals sign.
    """
    options: dict[str, Any] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise ValueError(f"--set: expected NAME=VALUE, for example pool=64, got {word!r}")
        options[name] = _literal(value)
    return options


def _literal(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def make_sampler(
    name: str, g: Any, model: nn.Module, k: int, seed: int, options: dict[str, Any]
) -> NegativeSampler:
    """A sampler by name; those that follow an encoder are given ``model``.

    Raises:
        ValueError: for an option that the sampler does not take, or a value out of range.
        TypeError: for a value of a wrong type.
    """
    kind = SAMPLERS[name]
    taken = inspect.signature(kind).parameters
    follows = "encoder" in taken
    reserved = {"g", "encoder", "k", "seed", "generator", "feat", "etypes"}
    unknown = sorted(set(options) - (set(taken) - reserved))
    if unknown:
        raise ValueError(
            f"--set: {name} takes {sorted(set(taken) - reserved) or 'no options'}, got {unknown}"
        )
    arguments: dict[str, Any] = {"k": k, **options}
    if "seed" in taken:
        arguments["seed"] = seed
    return kind(g, model, **arguments) if follows else kind(g, **arguments)
