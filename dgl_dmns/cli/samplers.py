"""Samplers by the names that the command line has for them, and their arguments as words."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from dgl_dmns._compat import require_dgl
from dgl_dmns.core import Blend, Density, Gate, Nearest
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

__all__ = [
    "SAMPLERS",
    "check_sampler",
    "follows_encoder",
    "make_sampler",
    "option_error",
    "parse_options",
]

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

_RULES: dict[str, Callable[[], Any]] = {
    "blend": Blend,
    "gate": Gate,
    "density": Density,
    "nearest": Nearest,
}
_GIVEN = ("g", "encoder", "k", "seed", "generator", "feat", "etypes")  # never by --set
_LARGEST = 2**31 - 1


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) <= _LARGEST


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (type(value) is float and math.isfinite(value))


def _are_numbers(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(map(_is_number, value))


_Kind = tuple[str, Callable[[Any], bool]]
_WHOLE: _Kind = (f"a whole number of at most {_LARGEST}", _is_whole)
_NUMBER: _Kind = ("a number", _is_number)
_WORD: _Kind = ("a word", lambda value: isinstance(value, str))
_BY_DEFAULT: dict[type, _Kind] = {int: _WHOLE, float: _NUMBER, str: _WORD}
_BY_NAME: dict[str, _Kind] = {  # their default is None
    "levels": ("numbers in brackets, for example [0.25,0.5]", _are_numbers),
    "rule": (f"one of {', '.join(_RULES)}", lambda value: value in list(_RULES)),
    "edge_ratio": _NUMBER,
    "groups": _WHOLE,
}


def parse_options(sampler: str, words: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` words as arguments of a sampler; values are Python literals, else text.

    >>> parse_options("dmns", ["pool=64", "levels=(0.25, 0.5)", "space=raw"])
    {'pool': 64, 'levels': (0.25, 0.5), 'space': 'raw'}

    Raises:
        ValueError: for a word that is not of this form, a name that comes twice or that the sampler
            does not take, or a value of another kind than it takes.
    """
    kinds = _kinds(sampler)
    names = [name for name, kind in kinds.items() if kind]
    options: dict[str, Any] = {}
    for word in words:
        name, _, text = (part.strip() for part in word.partition("="))
        if not name or not text:
            raise ValueError(f"--set: expected NAME=VALUE, for example pool=64, got {word!r}")
        if name in options:
            raise ValueError(f"--set {name}: given twice; leave one out")
        if name in ("k", "seed"):
            raise ValueError(f"--set {name}: it has an option of its own; write --{name} {text}")
        if name not in kinds:
            raise ValueError(
                f"--set {name}: no argument of {sampler}, which takes {', '.join(names) or 'none'}"
            )
        kind = kinds[name]
        if kind is None:
            raise ValueError(
                f"--set {word}: {name} is an object, which words cannot make; pass it in Python"
            )
        value = _literal(text)
        if not kind[1](value):
            raise ValueError(f"--set {word}: expected {kind[0]}")
        options[name] = value
    return options


def _kinds(sampler: str) -> dict[str, _Kind | None]:
    """What a sampler's arguments take, by name; None for objects, which words cannot make."""
    taken = inspect.signature(SAMPLERS[sampler]).parameters
    return {
        name: _BY_NAME.get(name, _BY_DEFAULT.get(type(one.default)))
        for name, one in sorted(taken.items())
        if name not in _GIVEN
    }


def _literal(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return tuple(value) if isinstance(value, list) else value


def make_sampler(
    name: str,
    g: Any,
    encoder: Any,
    k: int,
    seed: int,
    options: Mapping[str, Any],
    loss: str = "bce",
) -> NegativeSampler:
    """A sampler by name; those that follow an encoder are given ``encoder``.

    Under another loss than ``bce`` half of the negatives are uniform where the options say nothing.

    Raises:
        ValueError: for a value out of range; the message names the option.
    """
    kind = SAMPLERS[name]
    taken = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {"k": k, **options}
    if "rule" in options:
        arguments["rule"] = _RULES[options["rule"]]()
    if "seed" in taken:
        arguments["seed"] = seed
    if loss != "bce" and "uniform_share" in taken:
        arguments.setdefault("uniform_share", 0.5)
    try:
        return kind(g, *([encoder] if follows_encoder(name) else []), **arguments)
    except (ValueError, TypeError, RuntimeError, MemoryError, OverflowError) as error:
        raise option_error(name, options, error) from error


def follows_encoder(name: str) -> bool:
    """Whether a sampler is given the encoder, so that its negatives change with it."""
    return "encoder" in inspect.signature(SAMPLERS[name]).parameters


def check_sampler(name: str, k: int, options: Mapping[str, Any], loss: str = "bce") -> None:
    """Refuse what a sampler does not take, on a graph of three nodes: before data is read.

    Raises:
        ValueError: for a value out of range; the message names the option; or for a loss that needs
            the distribution of the negatives, which the sampler does not have.
    """
    g = require_dgl().graph(([0, 1, 2], [1, 2, 0]))
    sampler = make_sampler(name, g, lambda: torch.eye(3), k, 0, options, loss)
    if loss != "bce" and options.get("source", "edge") != "edge":
        raise ValueError(
            f"--loss {loss}: it needs negatives of the positives' sources; write --loss bce with "
            "--set source=uniform"
        )
    share = options.get("uniform_share", 0.5)
    least = {"shared": share >= 0.5, "softmax": share > 0 or name == "dmns"}
    if not least.get(loss, True):
        raise ValueError(
            f"--set uniform_share={share}: --loss {loss} needs "
            + ("at least a half" if loss == "shared" else "some")
            + " of uniform negatives; leave it out, or write --loss bce"
        )
    if loss != "bce" and not getattr(getattr(sampler, "rule", None), "tractable", True):
        raise ValueError(
            f"--loss {loss}: the negatives of {name} have no distribution that it could correct "
            "for; write --loss bce"
        )


def option_error(sampler: str, options: Mapping[str, Any], error: Exception) -> ValueError:
    """What a sampler says of an argument, with the option of the command line before it."""
    text = str(error) or type(error).__name__
    named = {part.strip() for part in text.partition(":")[0].split(",")}
    mine = [f"--set {name}={value}" for name, value in options.items() if name in named]
    settable = {name for name, kind in _kinds(sampler).items() if kind}
    if not mine and not named & settable:  # any of them may be the cause
        mine = [f"--set {name}={value}" for name, value in options.items()]
    return ValueError(f"{' '.join(mine) or f'--sampler {sampler}'}: {text}")
