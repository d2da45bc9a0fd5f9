"""The folder of a run: what a training leaves behind for its report.

``run.json`` says what was run, with what, and what came out; ``negatives.csv`` holds the records of
the monitor, ``metrics.csv`` the values of each epoch; ``scores.npz`` and ``query.npz`` are the last
look at the negatives. All but ``run.json`` may be missing: the report leaves out what they show.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dgl_dmns._versions import versions
from dgl_dmns.core.generator import DiffusionGenerator
from dgl_dmns.core.predictor import AffineNoisePredictor
from dgl_dmns.diagnostics import Monitor, Observation, QueryView, observe, view_query

__all__ = ["Run", "save_run"]

_WORDS = ("title", "sampler", "command")
_TABLES = ("data", "settings", "result", "baseline", "versions")
_LARGEST = 256 << 20  # bytes of a file that is read

FORMAT = "dgl-dmns run 1"


@dataclass(frozen=True, eq=False)
class Run:
    """A run as read from its folder.

    Attributes:
        folder: where it lies.
        title: what the report is called.
        sampler: the sampler in words.
        command: how to run it again; empty where unknown.
        data: facts of the data set by name.
        settings: settings by name.
        result: test metrics by name.
        baseline: those of the same training with uniform negatives.
        measured: how they were measured, in words.
        versions: versions by name.
        signs: failure signs that were warned of, each with ``name``, ``refresh``, ``message``.
        negatives: records of the monitor, or None.
        metrics: values of each epoch, or None.
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
    negatives: pd.DataFrame | None = None
    metrics: pd.DataFrame | None = None
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
            record = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
                raise ValueError(f"expected the format {FORMAT!r}")
            _check_record(record)
            return cls(
                folder,
                **record,
                negatives=_read(folder / "negatives.csv", pd.read_csv),
                metrics=_read(folder / "metrics.csv", pd.read_csv),
                seen=_read(folder / "scores.npz", Observation.load),
                query=_read(folder / "query.npz", QueryView.load),
            )
        except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
            raise ValueError(
                f"{folder}: not a complete run ({type(error).__name__}: {error}); run it again, or "
                "remove the file that is named"
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
    history: Sequence[Mapping[str, float]] | None = None,
) -> Path:
    """Write the folder of a run, for `write_report`.

    Args:
        folder: made where it does not exist; files of an earlier run in it are replaced.
        sampler: the sampler, after its last refresh.
        monitor: what was recorded, if anything.
        title: what the report is called.
        embeddings: as in `RefreshingSampler.refresh`; of the sampler's encoder where not given.
        command: how to run it again.
        data: facts of the data set by name, for example ``{"nodes": 2708}``.
        settings: settings by name.
        result: test metrics by name.
        baseline: those of the same training with uniform negatives, to compare with.
        measured: how they were measured, in words.
        history: values of each epoch by name; what the monitor's `log` was given where not given.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("negatives.csv", "metrics.csv", "scores.npz", "query.npz"):
        (folder / name).unlink(missing_ok=True)
    if monitor is not None:
        monitor.save(folder / "negatives.csv")
    logged = pd.DataFrame() if monitor is None else monitor.metrics()
    metrics = logged if history is None else pd.DataFrame(history)
    if len(metrics):
        metrics.to_csv(folder / "metrics.csv", index=False)
    if len(sampler.known_by_type) == 1:
        observe(sampler, embeddings=embeddings, queries=500).save(folder / "scores.npz")
        if _has_gaussians(sampler):
            view_query(sampler, embeddings=embeddings).save(folder / "query.npz")
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
    }
    unfinished = folder / "run.json.part"
    unfinished.write_text(json.dumps(record, indent=1), encoding="utf-8")
    unfinished.replace(folder / "run.json")
    return folder


def _has_gaussians(sampler: Any) -> bool:
    model = getattr(sampler, "model", None)
    return isinstance(model, DiffusionGenerator) and isinstance(
        model.predictor, AffineNoisePredictor
    )


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


def _read(file: Path, read: Any) -> Any:
    if not file.is_file():
        return None
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"expected at most {_LARGEST} bytes")
        return read(file)
    except Exception as error:
        raise ValueError(f"{file.name}: {error}") from error
