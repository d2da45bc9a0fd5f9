"""The kinds of data that are trained on, their defaults, and which options go with which.

Nothing here needs DGL or torch: ``--help`` and a command line that is wrong do without.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

__all__ = ["GENERATED", "KINDS", "LAYERED", "Kind", "complete", "in_words", "kind_of"]


@dataclass(frozen=True)
class Kind:
    """What a kind of data has.

    Attributes:
        models: names of `dgl_dmns.models.MODELS` that fit it, the default first.
        columns: names of the columns by the options that name them.
        defaults: of training options, by their names in `Settings`.
    """

    models: tuple[str, ...]
    columns: dict[str, str]
    defaults: dict[str, Any]


_GRAPH: dict[str, Any] = {
    "sampler": "dmns",
    "epochs": 200,
    "patience": 30,
    "batch_size": 2048,
    "lr": 3e-3,
    "hidden": 64,
    "temperature": None,
    "dropout": 0.0,
    "regularization": 0.0,
    "known": "leave-out",
    "discount": 0.0,
}
_QUERIES = {**_GRAPH, "sampler": "uniform", "patience": 10, "hidden": 128}
KINDS: dict[str, Kind] = {
    "graph": Kind(("sage",), {"source": "src", "target": "dst"}, _GRAPH),
    "bipartite": Kind(
        ("mf", "lightgcn", "sage"),
        {"source": "user", "target": "item"},
        {**_QUERIES, "lr": 1e-2, "temperature": 0.2, "discount": 0.25},
    ),
    "knowledge": Kind(
        ("complex", "distmult", "transe", "rgcn"),
        {"head": "head", "relation": "relation", "tail": "tail"},
        {**_QUERIES, "batch_size": 1024, "dropout": 0.2, "known": "count"},
    ),
}
GENERATED = {"shop": "bipartite", "triples": "knowledge"}
"""The kinds of the generated data sets that are no graph."""

LAYERED = ("sage", "lightgcn", "rgcn")
"""The models with layers, which read neighbours."""
_BY_MODEL = {"transe": {"dropout": 0.0}}  # against those of the kind
_LAYERS = {"layers": 2, "fanout": 0}
_BY_KIND = {  # options that not all kinds have, and which have them
    "features": ("graph",),
    "source": ("graph", "bipartite"),
    "target": ("graph", "bipartite"),
    "head": ("knowledge",),
    "relation": ("knowledge",),
    "tail": ("knowledge",),
    "test": ("bipartite", "knowledge"),
    "validation": ("bipartite", "knowledge"),
    "time": ("bipartite", "knowledge"),
    "temperature": ("bipartite",),
    "dropout": ("bipartite", "knowledge"),
    "regularization": ("knowledge",),
}
_OF_FILES = ("features", "source", "target", "head", "relation", "tail", "test", "validation")


def in_words(option: str) -> str:
    """The defaults of an option by kind, for its help."""
    values = {kind: one.defaults[option] for kind, one in KINDS.items()}
    first = values.pop("graph")
    others = (f"{value} for {kind}" for kind, value in values.items() if value != first)
    return ", ".join([str(first), *others])


def kind_of(arguments: argparse.Namespace) -> str:
    """The kind of the data that are named."""
    kind: str = arguments.kind or GENERATED.get(getattr(arguments, "dataset", ""), "graph")
    return kind


def complete(arguments: argparse.Namespace) -> str | None:
    """Fill in what depends on the kind of data; what does not go together, if anything."""
    problem = _problem(arguments)
    kind = KINDS[kind_of(arguments)]
    arguments.model = arguments.model or kind.models[0]
    for name, value in {**kind.defaults, **_BY_MODEL.get(arguments.model, {})}.items():
        if getattr(arguments, name, "none") is None:
            setattr(arguments, name, value)
    for name, value in _LAYERS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return problem


def _problem(arguments: argparse.Namespace) -> str | None:
    given = {
        name for name, value in vars(arguments).items() if value is not None and value is not False
    }
    kind = kind_of(arguments)
    if arguments.edges is None:
        for name in (*_OF_FILES, "time", "no_header", "kind"):
            if name in given:
                return f"{_option(name)}: goes with --edges, a data set has its own"
    for name, kinds in _BY_KIND.items():
        if name in given and kind not in kinds:
            return f"{_option(name)}: goes with --kind {' or '.join(kinds)}, not with {kind}"
    columns = {"source", "target", "head", "relation", "tail", "time"} & given
    if arguments.no_header and columns:
        options = ", ".join(_option(name) for name in sorted(columns))
        return (
            f"--no-header: without names, the first columns are taken in order; leave {options} out"
        )
    if "validation" in given and "test" not in given:
        return "--validation: goes with --test; give both, or --test alone"
    if "time" in given and "test" in given:
        return "--time: splits the edges by time, and --test gives the split; leave one out"
    if "model" in given and arguments.model not in KINDS[kind].models:
        models = ", ".join(KINDS[kind].models)
        return f"--model {arguments.model}: --kind {kind} takes {models}"
    model = arguments.model or KINDS[kind].models[0]
    for name in _LAYERS:
        if name in given and model not in LAYERED:
            return f"{_option(name)}: {model} has no layers; leave it out"
    if "known" in given and arguments.loss != "shared":
        return f"--known: goes with --loss shared, not with {arguments.loss}"
    if "discount" in given and arguments.loss == "bce":
        return "--discount: goes with --loss shared or softmax, not with bce"
    if model == "transe" and arguments.loss == "bce":
        return "--loss bce: the scores of transe are distances; take --loss shared or softmax"
    return None


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
