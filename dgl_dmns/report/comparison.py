"""Is a sampler better than uniform negatives? The words and tables that answer it.

A run beside its baseline has a `verdict`; a bench, several samplers at the same seeds, has a page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from dgl_dmns.evaluate.statistics import mean_and_stderr

__all__ = ["bench_parts", "comparison_table", "is_better", "means", "table_html", "verdict"]

_METRIC = "MRR"
_NOT_METRICS = ("sampler", "seed", "epochs")
_WIDTH, _LEFT, _ROW = 640, 150, 34  # of the chart, in pixels


def is_better(result: Mapping[str, float], baseline: Mapping[str, float]) -> bool:
    """Whether a run has the higher test MRR (the first metric of both where there is none)."""
    name = _compared(result, baseline)
    return float(result[name]) > float(baseline[name])


def verdict(result: Mapping[str, float], baseline: Mapping[str, float]) -> str:
    """Say how a run compares with its uniform baseline.

    >>> verdict({"MRR": 0.29}, {"MRR": 0.37}).partition(";")[0]
    'MRR 0.290 here, 0.370 with uniform negatives: not better than uniform'
    """
    name = _compared(result, baseline)
    better = is_better(result, baseline)
    said = "better than uniform" if better else "not better than uniform"
    advice = "" if better else "use uniform negatives here, or try another sampler; "
    return (
        f"{name} {result[name]:.3f} here, {baseline[name]:.3f} with uniform negatives: {said}; "
        f"{advice}one run each, so that a small difference says little: dgl-dmns bench compares "
        "at several seeds."
    )


def _compared(result: Mapping[str, float], baseline: Mapping[str, float]) -> str:
    both = [name for name in result if name in baseline]
    if not both:
        raise ValueError("baseline: expected the metrics of result")
    return _METRIC if _METRIC in both else both[0]


def comparison_table(result: Mapping[str, float], baseline: Mapping[str, float]) -> pd.DataFrame:
    """Metrics of a run and of its baseline, a row each."""
    names = [name for name in result if name in baseline]
    rows = (("this sampler", result), ("uniform", baseline))
    return pd.DataFrame(
        [{"negatives": who, **{name: f"{side[name]:.3f}" for name in names}} for who, side in rows]
    )


def means(runs: pd.DataFrame) -> pd.DataFrame:
    """The mean of each metric by sampler, as text, with its standard error where there are more.

    Where uniform negatives are among them, the last column is the difference of the MRR to theirs,
    paired by seed.
    """
    rows = []
    for name, part in runs.groupby("sampler", sort=False):
        row = {"sampler": str(name)}
        for column in part.columns.drop(["sampler", "seed"]):
            row[str(column)] = _mean([float(value) for value in part[column]])
        paired = _less_uniform(runs, str(name))
        if paired:
            row[f"{_METRIC} - uniform"] = _mean(paired)
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def _mean(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    mean, error = mean_and_stderr(values)
    return f"{mean:.3f} ({error:.3f})"


def _less_uniform(runs: pd.DataFrame, name: str) -> list[float]:
    """Differences of a sampler's MRR to that of uniform negatives at the same seeds."""
    if name == "uniform" or _METRIC not in runs.columns:
        return []
    by_seed = runs.pivot_table(index="seed", columns="sampler", values=_METRIC)
    if "uniform" not in by_seed.columns or name not in by_seed.columns:
        return []
    return [float(value) for value in (by_seed[name] - by_seed["uniform"]).dropna()]


def bench_parts(folder: Path) -> tuple[str, list[str]]:
    """Title and parts of the page of a bench, as HTML.

    Raises:
        ValueError: if ``bench.csv`` or ``bench.json`` is not what a bench writes.
    """
    try:
        runs = pd.read_csv(folder / "bench.csv")
        missing = {"sampler", "seed"} - set(runs.columns)
        if missing or not len(runs):
            raise ValueError(f"bench.csv: expected rows with {', '.join(sorted(missing))}")
        file = folder / "bench.json"
        facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if not isinstance(facts, dict):
            raise ValueError("bench.json: expected names and values")
        return _parts(runs, {str(name): value for name, value in facts.items()})
    except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
        raise ValueError(
            f"{folder}: not a complete bench ({type(error).__name__}: {error}); run it again in "
            "another folder"
        ) from error


def _parts(runs: pd.DataFrame, facts: Mapping[str, Any]) -> tuple[str, list[str]]:
    title = f"{runs['sampler'].nunique()} samplers at {runs['seed'].nunique()} seed(s)"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{escape(str(facts.get("data", "")))}</p>',
        "<h2>Means</h2>",
        "<p>The mean over the seeds, and its standard error in brackets. All samplers had the same "
        "number of negatives, the same seeds and the same patience.</p>",
        table_html(means(runs)),
        f'<p class="quiet">{escape(str(facts.get("measured", "")))}</p>',
    ]
    if _METRIC in runs.columns:
        parts += [f"<h2>Test {_METRIC} of every run</h2>", _chart(runs)]
    numbers = [name for name in runs.columns if name not in _NOT_METRICS]
    every = runs.assign(**{name: runs[name].map(lambda v: f"{v:.3f}") for name in numbers})
    said = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>"
        for name, value in dict(facts.get("versions") or {}).items()
    )
    parts += [
        f"<details><summary>All runs</summary>\n{table_html(every)}</details>",
        f'<h2>Versions</h2>\n<dl class="facts">{said}</dl>' if said else "",
        f"<h2>Run it again</h2>\n<pre>{escape(str(facts.get('command', '')))}</pre>",
    ]
    return title, parts


def table_html(table: pd.DataFrame) -> str:
    """A table of words, escaped."""
    head = "".join(f"<th>{escape(str(name))}</th>" for name in table.columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in table.itertuples(index=False)
    )
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n'
        "</tbody></table></div>"
    )


def _chart(runs: pd.DataFrame) -> str:
    """A dot for each run and a bar at the mean, a row for each sampler; the axis starts at 0."""
    largest = max(float(runs[_METRIC].max()), 1e-9)
    scale = (_WIDTH - _LEFT - 40) / largest
    lines = []
    groups = list(runs.groupby("sampler", sort=False))
    for place, (name, part) in enumerate(groups):
        y = _ROW * place + _ROW / 2
        values = [float(value) for value in part[_METRIC]]
        x = _LEFT + scale * sum(values) / len(values)
        lines.append(f'<text x="0" y="{y + 5:.0f}" font-size="14">{escape(str(name))}</text>')
        lines.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 11:.0f}" y2="{y + 11:.0f}" stroke="#1d2129" '
            'stroke-width="2"/>'
        )
        lines += [
            f'<circle cx="{_LEFT + scale * value:.1f}" cy="{y:.0f}" r="5" fill="#00795a" '
            'fill-opacity="0.5"/>'
            for value in values
        ]
    bottom = _ROW * len(groups) + 4
    lines.append(
        f'<line x1="{_LEFT}" x2="{_WIDTH - 40}" y1="{bottom}" y2="{bottom}" stroke="#5b6470"/>'
    )
    lines += [
        f'<text x="{_LEFT + scale * largest * part / 4:.1f}" y="{bottom + 18}" font-size="12" '
        f'text-anchor="middle" fill="#5b6470">{largest * part / 4:.3f}</text>'
        for part in range(5)
    ]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {bottom + 26}" width="100%" style="max-width: 46rem" '
        f'role="img" aria-label="Test {_METRIC} by sampler, a dot for each seed">\n'
        + "\n".join(lines)
        + '\n</svg>\n<p class="quiet">A dot for each seed; the bar is the sampler\'s mean.</p>'
    )
