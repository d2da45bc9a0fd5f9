"""``dgl-dmns train`` and ``dgl-dmns bench``: from a data set or files to embeddings and figures."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dgl_dmns._versions import versions
from dgl_dmns.cli.edges import FileError, NamedGraph, read_edges
from dgl_dmns.cli.samplers import parse_options
from dgl_dmns.cli.training import Outcome, Settings, train
from dgl_dmns.data import GraphData, load_dataset
from dgl_dmns.evaluate import mean_and_stderr
from dgl_dmns.report import save_run, write_report

__all__ = ["run_bench", "run_train"]

_LEAST_PAIRS = 20  # the fewest with a validation edge, at 5 %


def run_train(arguments: argparse.Namespace, command: str) -> int:
    """Train once; embeddings, metrics and the report go to ``--out``.

    Raises:
        ValueError: for files, options or a checkpoint that do not fit.
        OSError: for a data set that cannot be had, or a folder that cannot be written.
    """
    out: Path = arguments.out
    checkpoint = out / "checkpoint.npz"
    if checkpoint.exists() and not arguments.resume:
        raise ValueError(
            f"--out: {out} holds a run already; add --resume to go on with it, or name another "
            "folder"
        )
    graph = _graph(arguments)
    settings = _settings(arguments, arguments.sampler, arguments.seed)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    _say(f"{_facts(graph.data)}; {settings.k} negatives an edge, {settings.sampler}")
    outcome = train(
        graph.data, settings, checkpoint=checkpoint, resume=arguments.resume, quiet=arguments.quiet
    )
    _write(out, graph, settings, outcome, command)
    _say(_table([{"sampler": settings.sampler, **outcome.metrics}]))
    _say(f"{outcome.measured} {outcome.epochs} epochs. Written to {out}:")
    _say(", ".join(sorted(file.name for file in out.iterdir())))
    return 0


def run_bench(arguments: argparse.Namespace, command: str) -> int:
    """Train with several samplers at equal negatives and seeds; a table goes to ``--out``.

    Raises:
        ValueError: for files that do not fit.
        OSError: for a data set that cannot be had, or a folder that cannot be written.
    """
    graph = _graph(arguments)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for name in arguments.samplers:
            outcome = train(graph.data, _settings(arguments, name, seed), quiet=arguments.quiet)
            row = {"sampler": name, "seed": seed, "epochs": outcome.epochs, **outcome.metrics}
            rows.append(row)
            pd.DataFrame(rows).to_csv(arguments.out / "bench.csv", index=False)
    facts = {"command": command, "data": repr(graph.data), "versions": versions()}
    (arguments.out / "bench.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    _say(_table(_means(rows)))
    _say(
        f"Mean (and standard error) of {arguments.seeds} seed(s), {arguments.k} negatives an edge "
        f"each. {outcome.measured} Every run: {arguments.out / 'bench.csv'}"
    )
    return 0


def _graph(arguments: argparse.Namespace) -> NamedGraph:
    if arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out: {arguments.out} is a file; name a folder")
    if arguments.edges is not None:
        graph = read_edges(
            arguments.edges,
            arguments.features,
            source=arguments.source or "src",
            target=arguments.target or "dst",
            header=not arguments.no_header,
            kind=arguments.kind,
        )
        pairs = len(graph.data.src) // 2
        if pairs < _LEAST_PAIRS:
            raise FileError(
                f"{arguments.edges}: expected at least {_LEAST_PAIRS} different edges, of which "
                f"one is held out for validation and two for the test, got {pairs}"
            )
        return graph
    data = load_dataset(arguments.dataset, arguments.data_dir)
    return NamedGraph(data, np.arange(data.num_nodes))


def _facts(data: GraphData) -> str:
    width = data.features.shape[1]
    features = f"{width} features" if width else "no features: a learned vector for each node"
    return f"{data.name}: {data.num_nodes} nodes, {len(data.src) // 2} edges, {features}"


def _settings(arguments: argparse.Namespace, sampler: str, seed: int) -> Settings:
    return Settings(
        sampler=sampler,
        k=arguments.k,
        epochs=arguments.epochs,
        patience=arguments.patience,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        hidden=arguments.hidden,
        layers=arguments.layers,
        fanout=arguments.fanout,
        seed=seed,
        options=parse_options(getattr(arguments, "set", [])),
    )


def _write(
    out: Path, graph: NamedGraph, settings: Settings, outcome: Outcome, command: str
) -> None:
    np.savez_compressed(out / "embeddings.npz", **graph.arrays(), embedding=outcome.h.numpy())
    (out / "metrics.json").write_text(json.dumps(outcome.metrics, indent=1), encoding="utf-8")
    data = graph.data
    save_run(
        out,
        outcome.sampler,
        outcome.monitor,
        title=f"{data.name}: link prediction with {settings.sampler} negatives",
        embeddings=outcome.h,
        command=command,
        data={
            "name": data.name,
            "nodes": data.num_nodes,
            "edges": f"{len(data.src) // 2}, each in both directions",
            "features": data.features.shape[1] or "none; a learned vector for each node",
            "held out": "5 % of the edges for validation (mrr), 10 % for the test",
        },
        settings={**asdict(settings), "epochs run": outcome.epochs},
        result=outcome.metrics,
        measured=outcome.measured,
        history=outcome.history,
    )
    if util.find_spec("matplotlib") is None:
        _say(
            "No report: it needs matplotlib (pip install 'dgl-dmns[plot]'); dgl-dmns report "
            f"{out} writes it later"
        )
    else:
        write_report(out)


def _means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    frame = pd.DataFrame(rows).drop(columns="seed")
    found = []
    for name, part in frame.groupby("sampler", sort=False):
        row: dict[str, Any] = {"sampler": name}
        for column in part.columns.drop("sampler"):
            values = [float(value) for value in part[column]]
            if len(values) > 1:
                mean, error = mean_and_stderr(values)
                row[str(column)] = f"{mean:.3f} ({error:.3f})"
            else:
                row[str(column)] = values[0]
        found.append(row)
    return found


def _table(rows: list[dict[str, Any]]) -> str:
    return pd.DataFrame(rows).to_string(index=False, float_format=lambda v: f"{v:.3f}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
