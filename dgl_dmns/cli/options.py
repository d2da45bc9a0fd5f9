"""``--set NAME=VALUE``: arguments of samplers as words."""

from __future__ import annotations

import ast
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from dgl_dmns._compat import require_dgl
from dgl_dmns.samplers import NegativeSampler
from dgl_dmns.samplers.registry import RULES, default_options, follows_encoder, make_sampler

__all__ = ["check_options", "naming_options", "parse_options", "sampler_of_options"]

_ELSEWHERE = ("seed", "generator", "feat", "etypes")  # never by --set
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
    "rule": (f"one of {', '.join(RULES)}", lambda value: value in list(RULES)),
    "edge_ratio": _NUMBER,
    "groups": _WHOLE,
}


def parse_options(sampler: str, words: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` words as arguments of a sampler; values are Python literals, else text.

    >>> parse_options("dmns", ["pool=64", "levels=(0.25, 0.5)", "space=raw"])
    {'pool': 64, 'levels': (0.25, 0.5), 'space': 'raw'}
    """
    kinds = _kinds(sampler)
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
            takes = ", ".join(name for name, kind in kinds.items() if kind) or "none"
            raise ValueError(f"--set {name}: no argument of {sampler}, which takes {takes}")
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
    return {
        name: _BY_NAME.get(name, _BY_DEFAULT.get(type(default)))
        for name, default in sorted(default_options(sampler).items())
        if name not in _ELSEWHERE
    }


def _literal(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return tuple(value) if isinstance(value, list) else value


def sampler_of_options(
    name: str,
    g: Any,
    encoder: Any,
    k: int,
    seed: int,
    options: Mapping[str, Any],
    loss: str,
    own: Mapping[str, Any],
) -> NegativeSampler:
    """A sampler by name, with the options of the command line; errors name the option.

    ``own`` are further arguments, for samplers that take them. Under another loss than ``bce`` half
    of the negatives are uniform unless the options say more.
    """
    more = dict(options)
    more.update({one: value for one, value in own.items() if one in default_options(name)})
    if loss != "bce" and "uniform_share" in default_options(name):
        more.setdefault("uniform_share", 0.5)
    with naming_options(name, options):
        return make_sampler(name, g, encoder, k, seed=seed, **more)


def check_options(
    name: str, k: int, options: Mapping[str, Any], loss: str, kind: str = "graph"
) -> None:
    """Refuse what a sampler does not take, on a graph of three nodes: before data is read.

    With queries and items it has to take a graph of several types. A loss may need uniform
    negatives, or the distribution of all, which the sampler then has to have.
    """
    if kind != "graph" and name in ("mcns", "adversarial"):
        raise ValueError(
            f"--sampler {name}: it takes one kind of nodes; with --kind {kind} take dmns, "
            "self-adversarial, dynamic or uniform"
        )
    g = require_dgl().graph(([0, 1, 2], [1, 2, 0]))
    sampler = sampler_of_options(name, g, lambda: torch.eye(3), k, 0, options, loss, {})
    if loss == "bce":
        return
    if options.get("source", "edge") != "edge":
        raise ValueError(
            f"--loss {loss}: it needs negatives of the positives' sources; write --loss bce with "
            "--set source=uniform"
        )
    share = options.get("uniform_share", 0.5)
    if share == 0 and (loss == "shared" or name != "dmns"):
        raise ValueError(
            f"--set uniform_share={share}: --loss {loss} needs some uniform negatives; leave it "
            "out, or write --loss bce"
        )
    if loss == "shared":
        if follows_encoder(name) and "uniform_share" not in default_options(name):
            raise ValueError(
                f"--loss shared: {name} draws no uniform negatives, which a batch could share; "
                "write --loss bce"
            )
    elif not getattr(getattr(sampler, "rule", None), "tractable", True):
        raise ValueError(
            f"--loss {loss}: the negatives of {name} have no distribution that it could correct "
            "for; write --loss bce"
        )


@contextlib.contextmanager
def naming_options(sampler: str, options: Mapping[str, Any]) -> Iterator[None]:
    """What a sampler says of an argument, with the option of the command line before it."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, MemoryError, OverflowError) as error:
        text = str(error) or type(error).__name__
        named = {part.strip() for part in text.partition(":")[0].split(",")}
        mine = [f"--set {name}={value}" for name, value in options.items() if name in named]
        settable = {name for name, kind in _kinds(sampler).items() if kind}
        if not mine and not named & settable:  # any of them may be the cause
            mine = [f"--set {name}={value}" for name, value in options.items()]
        start = " ".join(mine) or f"--sampler {sampler}"
        raise ValueError(f"{start}: {text}") from error
