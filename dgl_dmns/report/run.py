"""The folder of a run: what a training leaves behind for its report, and the words on its result.

``run.json`` says what was run, with what, and what came out; ``negatives.csv`` holds the records of
the monitor, ``metrics.csv`` the values of each epoch, ``ranks.csv`` the rank of each test edge;
``scores.npz`` and ``query.npz`` are the last look at the negatives. All but ``run.json`` may be
missing: the report leaves out what they show, and says why where that is known. A run beside its
uniform baseline has a `verdict`; several samplers at the same seeds have their `means`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from dgl_dmns._compat import versions
from dgl_dmns.core import look_at
from dgl_dmns.core.look import EdgeName
from dgl_dmns.diagnostics import Monitor, Observation, QueryView
from dgl_dmns.diagnostics.observation import observe_look, view_look
from dgl_dmns.evaluate import mean_and_stderr
from dgl_dmns.files import whole_file
from dgl_dmns.messages import one_line, warn

__all__ = [
    "Run",
    "compared",
    "comparison",
    "is_better",
    "means",
    "metrics_of",
    "save_run",
    "verdict",
]

_METRIC = "MRR"

_WORDS = ("title", "sampler", "command")
_TABLES = ("data", "settings", "result", "baseline", "versions", "left_out")
_QUERIES = 500  # of the last look
_LARGEST = 256 << 20  # bytes of a file that is read

FORMAT = "dgl-dmns run 1"


@dataclass(frozen=True, eq=False)
class Run:
    """A run as read from its folder.

    Attributes:
        folder: where it lies.
        title, command, data, settings, result, baseline, measured: as of `save_run`.
        sampler: the sampler in words.
        versions: versions by name.
        signs: failure signs that were warned of, each with ``name``, ``refresh``, ``message``.
        left_out: why a last look is missing, by the name of its file.
        negatives: records of the monitor, or None.
        metrics: values of each epoch, or None.
        ranks: names and ranks of test edges, the best first, or None.
        seen: the last look at the scores, or None.
        query: the last look at one query, or None.
    """

    folder: Path
    title: str
    sampler: str
    command: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    result: dict[str, float] = field(default_factory=dict)
    baseline: dict[str, float] = field(default_factory=dict)
    measured: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    signs: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    negatives: pd.DataFrame | None = None
    metrics: pd.DataFrame | None = None
    ranks: pd.DataFrame | None = None
    seen: Observation | None = None
    query: QueryView | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """Read the folder of a run.

        Raises:
            FileNotFoundError: if there is no ``run.json`` in it.
            ValueError: if a file of it is not complete.
        """
        folder = Path(folder)
        file = folder / "run.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder}: expected the folder of a run, with a file run.json; save_run and "
                "dgl-dmns train write one"
            )
        try:
            record = _read(file, _read_settings)
            return cls(
                folder,
                **record,
                negatives=_read(folder / "negatives.csv", _read_records),
                metrics=_read(folder / "metrics.csv", pd.read_csv),
                ranks=_read(folder / "ranks.csv", _read_ranks),
                seen=_read(folder / "scores.npz", Observation.load),
                query=_read(folder / "query.npz", QueryView.load),
            )
        except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
            raise ValueError(
                f"{folder}: not a complete run ({one_line(error)}); remove the file that is named, "
                "or run it again into another folder"
            ) from error


def save_run(
    folder: str | Path,
    sampler: Any,
    monitor: Monitor | None = None,
    *,
    title: str,
    embeddings: Any = None,
    command: str = "",
    data: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    result: dict[str, float] | None = None,
    baseline: dict[str, float] | None = None,
    measured: str = "",
    ranks: pd.DataFrame | None = None,
    etype: EdgeName | None = None,
    history: Sequence[Mapping[str, float]] | None = None,
) -> Path:
    """Write the folder of a run, for `write_report`.

    Args:
        folder: made where it does not exist; files of an earlier run in it are replaced. A last
            look that cannot be had is left out with a warning, and the page says why.
        sampler: the sampler, after its last refresh.
        monitor: what was recorded, if anything.
        title: what the report is called.
        embeddings: as in `RefreshingSampler.refresh`; defaults to those of the sampler's encoder.
        command: how to run it again.
        data: facts of the data set by name, for example ``{"nodes": 2708}``.
        settings: settings by name; what JSON does not know is kept as text.
        result: test metrics by name.
        baseline: those of the same training with uniform negatives, to compare with.
        measured: how they were measured, in words.
        ranks: test edges, the best first: columns of names, and ``rank`` as the last.
        etype: edge type of the last looks; defaults to the sampler's first.
        history: values of each epoch by name; defaults to what the monitor's `log` was given. The
            page calls ``loss`` the training loss and ``mrr`` the validation MRR.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("negatives.csv", "metrics.csv", "ranks.csv", "scores.npz", "query.npz"):
        (folder / name).unlink(missing_ok=True)
    if monitor is not None and len(monitor.frame()):
        monitor.save(folder / "negatives.csv")
    logged = pd.DataFrame() if monitor is None else monitor.metrics()
    metrics = logged if history is None else pd.DataFrame(history)
    if len(metrics):
        metrics.to_csv(folder / "metrics.csv", index=False)
    if ranks is not None:
        ranks.to_csv(folder / "ranks.csv", index=False)
    record = {
        "format": FORMAT,
        "title": title,
        "sampler": repr(sampler),
        "command": command,
        "data": data or {},
        "settings": settings or {},
        "result": result or {},
        "baseline": baseline or {},
        "measured": measured,
        "versions": versions(),
        "signs": [] if monitor is None else [vars(sign) for sign in monitor.found],
        "left_out": _save_looks(folder, sampler, embeddings, etype),
    }
    with whole_file(folder / "run.json") as file:
        file.write(json.dumps(_plain(record), indent=1).encode())
    return folder


def _save_looks(
    folder: Path, sampler: Any, embeddings: Any, etype: EdgeName | None
) -> dict[str, str]:
    """Write the last looks at the negatives; why one is missing, by the name of its file.

    A training that has ended is not lost because they cannot be had.
    """
    try:
        if etype is None:
            etype = next(iter(getattr(sampler, "known_by_type", ())), None)
        look = look_at(sampler, etype, embeddings)
        looks: dict[str, Observation | QueryView] = {
            "scores.npz": observe_look(look, _QUERIES, seed=0)
        }
        if look.closed_form:
            looks["query.npz"] = view_look(look)
    except Exception as error:
        warn(f"{folder}: scores.npz and query.npz are left out: {one_line(error)}")
        return dict.fromkeys(("scores.npz", "query.npz"), one_line(error))
    for name, seen in looks.items():
        seen.save(folder / name)
    missing = {"query.npz": "it needs level Gaussians, which this sampler does not hold"}
    return {} if look.closed_form else missing


def _plain(value: Any) -> Any:
    """A value as JSON knows it: numbers of NumPy and torch as numbers, other things as text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, (np.generic, np.ndarray, Tensor)):
        return _plain(value.tolist())
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def _check_record(record: dict[str, Any]) -> None:
    """Refuse values of another kind than `save_run` writes.

    Raises:
        ValueError: for one that is.
    """
    for names, kind in ((_WORDS, str), (_TABLES, dict)):
        for name in names:
            if not isinstance(record.get(name, kind()), kind):
                raise ValueError(f"run.json, {name}: expected {kind.__name__}")
    signs = record.get("signs", [])
    if not isinstance(signs, list) or not all(
        isinstance(sign, dict) and sign.keys() >= {"name", "refresh", "message"} for sign in signs
    ):
        raise ValueError("run.json, signs: expected name, refresh and message of each")


def _read_settings(file: Path) -> dict[str, Any]:
    record = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
        raise ValueError(f"expected the format {FORMAT!r}")
    _check_record(record)
    return record


def _read_records(file: Path) -> pd.DataFrame | None:
    """The records of a monitor; None where it has none."""
    frame = pd.read_csv(file)
    if not {"refresh", "etype", "level"} <= set(frame.columns) or (
        len(frame) and not pd.api.types.is_numeric_dtype(frame["refresh"])
    ):
        raise ValueError("expected columns refresh (numbers), etype and level")
    return frame if len(frame) else None


def _read_ranks(file: Path) -> pd.DataFrame:
    """Names as they are written, and ranks."""
    frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    if frame.shape[1] < 2 or frame.columns[-1].partition(".")[0] != "rank":
        raise ValueError("expected columns of names, and rank")
    return frame.assign(**{frame.columns[-1]: pd.to_numeric(frame.iloc[:, -1])})


def _read(file: Path, read: Any) -> Any:
    if not file.is_file():
        return None
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"expected at most {_LARGEST} bytes")
        return read(file)
    except Exception as error:
        raise ValueError(f"{file.name}: {error}") from error


# ---- is it better than uniform negatives? -------------------------------------------------------


def is_better(result: Mapping[str, float], baseline: Mapping[str, float]) -> bool:
    """Whether a run has the higher test MRR (the first metric of both where there is none)."""
    name = _compared(result, baseline)
    return float(result[name]) > float(baseline[name])


def verdict(result: Mapping[str, float], baseline: Mapping[str, float]) -> str:
    """Say how a run compares with its uniform baseline.

    >>> verdict({"MRR": 0.29}, {"MRR": 0.37}).partition(";")[0]
    'MRR 0.290 here, 0.370 with uniform negatives: not better than uniform'
    """
    name, better = _compared(result, baseline), is_better(result, baseline)
    advice = "" if better else "use uniform negatives here, or try another sampler; "
    return (
        f"{name} {result[name]:.3f} here, {baseline[name]:.3f} with uniform negatives: "
        f"{'' if better else 'not '}better than uniform; {advice}one run each, so that a small "
        "difference says little: dgl-dmns bench compares at several seeds."
    )


def _compared(result: Mapping[str, float], baseline: Mapping[str, float]) -> str:
    both = [name for name in result if name in baseline]
    if not both:
        raise ValueError("baseline: expected the metrics of result")
    return compared(both)


def compared(metrics: Sequence[str]) -> str:
    """What samplers are compared by: the MRR, or else the first of their metrics."""
    return _METRIC if _METRIC in metrics else metrics[0]


def comparison(result: Mapping[str, float], baseline: Mapping[str, float]) -> pd.DataFrame:
    """The metrics that a run and its baseline both have, a row each, as text."""
    names = [name for name in result if name in baseline]
    rows = (("this sampler", result), ("uniform", baseline))
    return pd.DataFrame(
        [{"negatives": who, **{name: f"{side[name]:.3f}" for name in names}} for who, side in rows]
    )


def means(runs: pd.DataFrame) -> pd.DataFrame:
    """The mean of each metric by sampler, as text, with its standard error where there are more.

    Where uniform negatives are among them, the last column is the difference to theirs, paired by
    seed, of what samplers are compared by.
    """
    rows, metrics = [], metrics_of(runs)
    for name, part in runs.groupby("sampler", sort=False):
        row = {"sampler": str(name)}
        for column in part.columns.drop(["sampler", "seed"]):
            row[str(column)] = _mean([float(value) for value in part[column]])
        paired = _less_uniform(runs, str(name), compared(metrics)) if metrics else []
        if paired:
            row[f"{compared(metrics)} - uniform"] = _mean(paired)
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def _mean(values: list[float]) -> str:
    mean, error = mean_and_stderr(values)
    return f"{mean:.3f} ({error:.3f})" if len(values) > 1 else f"{mean:.3f}"


def metrics_of(runs: pd.DataFrame) -> list[str]:
    """The metrics of a table of runs, in its order."""
    return [name for name in runs.columns if name not in ("sampler", "seed", "epochs")]


def _less_uniform(runs: pd.DataFrame, name: str, metric: str) -> list[float]:
    """Differences of a sampler's metric to that of uniform negatives at the same seeds."""
    if name == "uniform":
        return []
    by_seed = runs.pivot_table(index="seed", columns="sampler", values=metric)
    if "uniform" not in by_seed.columns or name not in by_seed.columns:
        return []
    return [float(value) for value in (by_seed[name] - by_seed["uniform"]).dropna()]
