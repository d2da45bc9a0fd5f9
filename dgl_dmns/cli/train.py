"""``dgl-dmns train`` and ``dgl-dmns bench``: from a data set or files to embeddings and figures."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dgl_dmns._versions import versions
from dgl_dmns.archives import write_arrays
from dgl_dmns.cli.edges import FileError, NamedGraph, read_edges
from dgl_dmns.cli.identity import fingerprints
from dgl_dmns.cli.samplers import check_sampler, follows_encoder, parse_options
from dgl_dmns.cli.training import Outcome, Settings, read_checkpoint, train
from dgl_dmns.data import GraphData, load_dataset
from dgl_dmns.report import save_run, write_report
from dgl_dmns.report.run import means, verdict

__all__ = ["run_bench", "run_train"]

_LEAST_PAIRS = 20  # the fewest with a validation edge, at 5 %


def run_train(arguments: argparse.Namespace, command: str) -> int:
    """Train once, and once more with uniform negatives for comparison; all goes to ``--out``.

    Raises:
        ValueError: for files, options or a checkpoint that do not fit; nothing is written then.
        OSError: for a data set that cannot be had, or a folder that cannot be written.
    """
    out: Path = arguments.out
    _check_out(out, arguments.resume)
    settings = _settings(arguments, arguments.sampler, arguments.seed)
    runs = [(settings, out / "checkpoint.npz")]
    if arguments.baseline and follows_encoder(settings.sampler):
        runs.append((replace(settings, sampler="uniform", options={}), out / "baseline.npz"))
    graph = _graph(arguments)
    identity = fingerprints(graph)
    states = [
        read_checkpoint(file, one, identity) if arguments.resume else None for one, file in runs
    ]
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    _say(
        f"{_facts(graph.data)}; {settings.k} negatives an edge, {settings.sampler}, "
        f"{settings.loss} loss"
    )
    outcomes: list[Outcome] = []
    for (one, file), state in zip(runs, states):
        outcomes.append(
            train(
                graph.data,
                one,
                checkpoint=file,
                identity=identity,
                state=state,
                quiet=arguments.quiet,
            )
        )
        _write_results(out, graph, outcomes)  # of the first as soon as it is there
    _say(_table([{"sampler": one.sampler, **o.metrics} for (one, _), o in zip(runs, outcomes)]))
    first, baseline = outcomes[0], outcomes[1].metrics if len(outcomes) > 1 else None
    if baseline is not None:
        _say(verdict(first.metrics, baseline))
    _write_report(out, graph, settings, first, baseline, command)
    _say(f"{first.measured} {first.epochs} epochs. Written to {out}:")
    _say(", ".join(sorted(file.name for file in out.iterdir())))
    return 0


def run_bench(arguments: argparse.Namespace, command: str) -> int:
    """Train with several samplers at equal negatives and seeds; a table goes to ``--out``.

    Raises:
        ValueError: for files or options that do not fit; nothing is written then.
        OSError: for a data set that cannot be had, or a folder that cannot be written.
    """
    out: Path = arguments.out
    _check_out(out, resume=False)
    samplers = list(dict.fromkeys(arguments.samplers))
    settings = {name: _settings(arguments, name, seed=0) for name in samplers}
    graph = _graph(arguments)
    torch.set_num_threads(arguments.threads)
    out.mkdir(parents=True, exist_ok=True)
    facts = {"command": command, "data": repr(graph.data), "versions": versions()}
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for name in samplers:
            outcome = train(graph.data, replace(settings[name], seed=seed), quiet=arguments.quiet)
            rows.append(
                {"sampler": name, "seed": seed, "epochs": outcome.epochs, **outcome.metrics}
            )
            pd.DataFrame(rows).to_csv(out / "bench.csv", index=False)
            said = json.dumps({**facts, "measured": outcome.measured}, indent=1)
            (out / "bench.json").write_text(said, encoding="utf-8")
    _say(means(pd.DataFrame(rows)).to_string(index=False))
    _say(
        f"Mean (and standard error) of {arguments.seeds} seed(s), {settings[samplers[0]].k} "
        f"negatives an edge each, {arguments.loss} loss. {outcome.measured} Every run: "
        f"{out / 'bench.csv'}"
    )
    _say(f"Written to {write_report(out)}")
    return 0


_WRITTEN = (
    *("checkpoint.npz", "baseline.npz", "embeddings.npz", "metrics.json", "metrics.csv"),
    *("negatives.csv", "scores.npz", "query.npz", "run.json", "bench.csv", "bench.json"),
    "report.html",
)


def _check_out(out: Path, resume: bool) -> None:
    """Refuse a folder in which something would be overwritten, whatever wrote it.

    Raises:
        ValueError: for such a folder, or a file.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file; name a folder")
    there = [name for name in _WRITTEN if (out / name).exists()]
    if "checkpoint.npz" in there and not {"bench.csv", "bench.json"} & set(there):
        if not resume:
            raise ValueError(
                f"--out: {out} holds a run already; add --resume (and the same arguments) to go on "
                "with it, or name another folder"
            )
    elif there:
        raise ValueError(
            f"--out: {out} holds {', '.join(there)} already, which would be overwritten; name "
            "another folder"
        )


def _graph(arguments: argparse.Namespace) -> NamedGraph:
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
    options = parse_options(sampler, getattr(arguments, "set", []))
    k = (1 if arguments.loss == "shared" else 5) if arguments.k is None else arguments.k
    check_sampler(sampler, k, options, arguments.loss)
    return Settings(
        sampler=sampler,
        loss=arguments.loss,
        k=k,
        epochs=arguments.epochs,
        patience=arguments.patience,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        hidden=arguments.hidden,
        layers=arguments.layers,
        fanout=arguments.fanout,
        seed=seed,
        options=options,
    )


def _write_results(out: Path, graph: NamedGraph, outcomes: list[Outcome]) -> None:
    """Embeddings and metrics: what a run must not end without."""
    first, *others = outcomes
    with (out / "embeddings.npz").open("wb") as file:
        write_arrays(file, {**graph.arrays(), "embedding": first.h.numpy()})
    metrics: dict[str, Any] = dict(first.metrics)
    for other in others:
        metrics["uniform"] = other.metrics
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")


def _write_report(
    out: Path,
    graph: NamedGraph,
    settings: Settings,
    outcome: Outcome,
    baseline: dict[str, float] | None,
    command: str,
) -> None:
    """The folder's record and its page; a run that was trained ends well without them."""
    data = graph.data
    try:
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
            baseline=baseline,
            measured=outcome.measured,
            history=outcome.history,
        )
        if util.find_spec("matplotlib") is None:
            _say(
                "No report: it needs matplotlib (python -m pip install matplotlib); "
                f"dgl-dmns report {out} writes it later"
            )
        else:
            write_report(out)
    except Exception as error:  # hours of training are not lost to a picture
        said = " ".join(f"{type(error).__name__}: {error}".split("\n"))
        sys.stderr.write(f"warning: no report ({said}); embeddings and metrics are in {out}\n")


def _table(rows: list[dict[str, Any]]) -> str:
    return pd.DataFrame(rows).to_string(index=False, float_format=lambda v: f"{v:.3f}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
