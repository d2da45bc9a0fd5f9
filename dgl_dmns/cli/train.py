"""``dgl-dmns train`` and ``dgl-dmns bench``: from a data set or files to embeddings and figures."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields, replace
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dgl_dmns._compat import versions
from dgl_dmns.cli.edges import FileError, NamedGraph, read_edges
from dgl_dmns.cli.kinds import GENERATED, KINDS, kind_of
from dgl_dmns.cli.options import check_options, parse_options
from dgl_dmns.cli.records import Records, generated_records, read_records
from dgl_dmns.cli.tasks import Settings
from dgl_dmns.cli.training import Run, read_checkpoint, train
from dgl_dmns.data import load_dataset
from dgl_dmns.files import whole_file, write_arrays
from dgl_dmns.messages import one_line, say
from dgl_dmns.report import save_run, write_report
from dgl_dmns.report.run import means, verdict
from dgl_dmns.samplers.registry import follows_encoder

__all__ = ["read_data", "run_bench", "run_train"]

_LEAST_PAIRS = 20  # the fewest with a validation edge, at 5 %
_WRITTEN = (
    *("checkpoint.npz", "baseline.npz", "embeddings.npz", "metrics.json", "metrics.csv"),
    *("negatives.csv", "scores.npz", "query.npz", "run.json", "bench.csv", "bench.json"),
    *("ranks.csv", "report.html"),
)


def run_train(arguments: argparse.Namespace, command: str) -> int:
    """Train once, and once more with uniform negatives for comparison; all goes to ``--out``.

    Files, options or a checkpoint that do not fit are a ValueError, before anything is written.
    """
    out: Path = arguments.out
    _check_out(out, arguments.resume)
    settings = _settings(arguments, sampler=arguments.sampler, seed=arguments.seed)
    runs = [(settings, out / "checkpoint.npz")]
    if arguments.baseline and follows_encoder(settings.sampler):
        runs.append((replace(settings, sampler="uniform", options={}), out / "baseline.npz"))
    data = read_data(arguments)
    identity, quiet = data.fingerprints(), arguments.quiet
    states = [
        read_checkpoint(file, one, identity) if arguments.resume else None for one, file in runs
    ]
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    of = f"{settings.k} negatives an edge, {settings.sampler}, {settings.loss} loss"
    say(f"{data}; {of}")
    done: list[Run] = []
    for (one, file), state in zip(runs, states):
        done.append(train(data, one, checkpoint=file, identity=identity, state=state, quiet=quiet))
        _write_results(out, done)  # of the first as soon as it is there
    tests = [run.tested for run in done]
    rows = [{"sampler": one.sampler, **test.metrics} for (one, _), test in zip(runs, tests)]
    say(pd.DataFrame(rows).to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    baseline = tests[1].metrics if len(tests) > 1 else None
    if baseline is not None:
        say(verdict(tests[0].metrics, baseline))
    _write_report(out, data, settings, done[0], baseline, command)
    say(f"{tests[0].measured} {done[0].epoch} epochs. Written to {out}:")
    say(", ".join(sorted(file.name for file in out.iterdir())))
    return 0


def run_bench(arguments: argparse.Namespace, command: str) -> int:
    """Train with several samplers at equal negatives and seeds; a table goes to ``--out``."""
    out: Path = arguments.out
    _check_out(out, resume=False)
    samplers = list(dict.fromkeys(arguments.samplers))
    settings = {name: _settings(arguments, sampler=name, seed=0) for name in samplers}
    data = read_data(arguments)
    torch.set_num_threads(arguments.threads)
    out.mkdir(parents=True, exist_ok=True)
    facts = {"command": command, "data": str(data), "versions": versions()}
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for name in samplers:
            run = train(data, replace(settings[name], seed=seed), quiet=arguments.quiet)
            ran = {"sampler": name, "seed": seed, "epochs": run.epoch}
            rows.append({**ran, **run.tested.metrics})
            pd.DataFrame(rows).to_csv(out / "bench.csv", index=False)
            _write_json(out / "bench.json", {**facts, "measured": run.tested.measured})
    say(means(pd.DataFrame(rows)).to_string(index=False))
    say(
        f"Mean (and standard error) of {arguments.seeds} seed(s), {settings[samplers[0]].k} "
        f"negatives an edge each, {arguments.loss} loss. {run.tested.measured} Every run: "
        f"{out / 'bench.csv'}"
    )
    say(f"Written to {write_report(out)}")
    return 0


def _check_out(out: Path, resume: bool) -> None:
    """Refuse a folder in which something would be overwritten, whatever wrote it."""
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


def _settings(arguments: argparse.Namespace, sampler: str, seed: int) -> Settings:
    options = parse_options(sampler, getattr(arguments, "set", []))
    k = (1 if arguments.loss == "shared" else 5) if arguments.k is None else arguments.k
    kind = kind_of(arguments)
    check_options(sampler, k, options, arguments.loss, kind)
    own: dict[str, Any] = {"sampler": sampler, "k": k, "seed": seed, "options": options}
    own["kind"] = kind
    names = {one.name for one in fields(Settings)} - own.keys()
    return Settings(**own, **{name: getattr(arguments, name) for name in names})


def read_data(arguments: argparse.Namespace) -> NamedGraph | Records:
    """The data set or the files that are named."""
    kind = kind_of(arguments)
    if arguments.dataset in GENERATED:
        return generated_records(kind)
    if arguments.edges is None:
        data = load_dataset(arguments.dataset, arguments.data_dir)
        return NamedGraph(data, np.arange(data.num_nodes))
    columns = [getattr(arguments, name) or own for name, own in KINDS[kind].columns.items()]
    header = not arguments.no_header
    if kind != "graph":
        return read_records(
            arguments.edges,
            kind,
            columns,
            test=arguments.test,
            validation=arguments.validation,
            time=arguments.time,
            header=header,
        )
    graph = read_edges(
        arguments.edges,
        arguments.features,
        source=columns[0],
        target=columns[1],
        header=header,
        sure=arguments.kind is not None,
    )
    pairs = len(graph.data.src) // 2
    if pairs < _LEAST_PAIRS:
        raise FileError(
            f"{arguments.edges}: expected at least {_LEAST_PAIRS} different edges, of which one is "
            f"held out for validation and two for the test, got {pairs}"
        )
    return graph


def _write_json(file: Path, record: dict[str, Any]) -> None:
    with whole_file(file) as content:
        content.write(json.dumps(record, indent=1).encode())


def _write_results(out: Path, done: list[Run]) -> None:
    """Embeddings and metrics: what a run must not end without."""
    first, *baseline = done
    with whole_file(out / "embeddings.npz") as file:
        write_arrays(file, first.task.arrays(first.h))
    metrics: dict[str, Any] = {**first.tested.metrics}
    if baseline:
        metrics["uniform"] = baseline[0].tested.metrics
    _write_json(out / "metrics.json", metrics)


def _write_report(
    out: Path,
    data: NamedGraph | Records,
    settings: Settings,
    run: Run,
    baseline: dict[str, float] | None,
    command: str,
) -> None:
    """The folder's record and its page; a run that was trained ends well without them."""
    try:
        save_run(
            out,
            run.sampler,
            run.monitor,
            title=f"{data.name}: link prediction with {settings.sampler} negatives",
            embeddings=run.h,
            etype=next(iter(run.task.own.get("etypes", ())), None),
            command=command,
            data=data.facts(),
            settings={**asdict(settings), "epochs run": run.epoch},
            result=run.tested.metrics,
            baseline=baseline,
            measured=run.tested.measured,
            ranks=run.tested.ranks,
            history=run.history,
        )
        if util.find_spec("matplotlib") is None:
            say(
                "No report: it needs matplotlib (python -m pip install matplotlib); "
                f"dgl-dmns report {out} writes it later"
            )
        else:
            write_report(out)
    except Exception as error:  # hours of training are not lost to a picture
        said = one_line(error, longest=1000)
        sys.stderr.write(f"warning: no report ({said}); embeddings and metrics are in {out}\n")
