"""One self-contained HTML page of a run: no script, nothing fetched, all text escaped."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from dgl_dmns.diagnostics import Thresholds
from dgl_dmns.report.comparison import (
    bench_parts,
    comparison_table,
    is_better,
    table_html,
    verdict,
)
from dgl_dmns.report.pictures import pictures_of
from dgl_dmns.report.run import Run

__all__ = ["page_of", "write_report"]

_STYLE = """
:root { --line: #dcdfe4; --quiet: #5b6470; --good: #00795a; --bad: #a3301f; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem; color: #1d2129; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.quiet { color: var(--quiet); overflow-wrap: anywhere; }
.figures { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; padding: 0; }
.figures div { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem 1rem;
  min-width: 7.5rem; max-width: 100%; overflow-wrap: anywhere; }
.figures dt { color: var(--quiet); font-size: .85rem; }
.figures dd { margin: 0; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.sign { border-left: 4px solid var(--bad); padding: .2rem 0 .2rem .9rem; margin: .8rem 0; }
.fine { border-left: 4px solid var(--good); padding: .2rem 0 .2rem .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .45rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
details { margin-top: .8rem; }
summary { cursor: pointer; color: var(--quiet); }
img { display: block; width: 100%; max-width: 46rem; height: auto; }
pre { background: #f4f5f7; border-radius: .4rem; padding: .7rem 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
dl.facts { display: grid; grid-template-columns: fit-content(45%) 1fr; gap: .15rem 1.2rem;
  margin: 0; }
dl.facts dt { color: var(--quiet); overflow-wrap: anywhere; min-width: 0; }
dl.facts dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
@media (max-width: 40rem) { body { padding: 1rem; } .figures div { min-width: 6.2rem; }
  .figures dd { font-size: 1.2rem; } }
"""

_COLUMNS = {
    "level": ("level", "0.1T is the level at a tenth of the diffusion steps, the hardest"),
    "share": ("share", "of the negatives that are of this level"),
    "score": ("score", "mean score"),
    "expected_score": ("expected", "mean score that the generator expects of the level"),
    "percentile": ("rank", "share of random nodes of the same query that score lower"),
    "above_positive": ("above pos.", "share that scores above a true neighbour of the query"),
    "false_negatives": (
        "false",
        "share that is a held-out edge (of queries that have one)",
    ),
    "false_negative_lift": ("lift", "false negatives, times those of uniform draws"),
    "distinct": ("distinct", "distinct nodes among the negatives looked at"),
    "gini": ("Gini", "unevenness of how often nodes are drawn, 0 to 1"),
    "gini_uniform": ("Gini, unif.", "the same of as many uniform draws"),
    "density_auc": ("AUC", "how well the level's density tells positives from random nodes"),
    "psi_share": ("Psi ≥ 0", "share of latents that keep the paper's condition"),
}


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run, or of a bench.

    Args:
        folder: of the run, as `save_run` or ``dgl-dmns train`` writes it, or of ``dgl-dmns bench``.
        out: the file to write; ``report.html`` in the folder where not given.

    Returns:
        The file.

    Raises:
        FileNotFoundError: if the folder holds no run.
        ValueError: if a file of it is not complete.
        ImportError: if matplotlib is missing.
    """
    folder = Path(folder)
    file = folder / "report.html" if out is None else Path(out)
    if (folder / "bench.csv").is_file() and not (folder / "run.json").is_file():
        return _write(file, _html(*bench_parts(folder)))
    run = Run.load(folder)
    try:
        page = page_of(run)
    except ImportError:
        raise
    except Exception as error:  # values of the run's files that do not fit together
        raise ValueError(
            f"{run.folder}: not a complete run ({type(error).__name__}: {error}); run it again"
        ) from error
    return _write(file, page)


def _write(file: Path, page: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(page.encode("utf-8", "replace"))
    return file


def page_of(run: Run) -> str:
    """The page of a run, as HTML."""
    parts = [
        f"<h1>{escape(run.title)}</h1>",
        f'<p class="quiet">{escape(run.sampler)}</p>',
        _figures(run.result, run.measured),
        _comparison(run),
        _signs(run),
        *(
            f"<h2>{escape(picture.title)}</h2>\n<p>{escape(picture.text)}</p>\n"
            f'<img alt="{escape(picture.title)}" src="data:image/png;base64,'
            f'{base64.b64encode(picture.png).decode("ascii")}">'
            for picture in pictures_of(run)
        ),
        "" if run.negatives is None else _last_record(run.negatives),
        _facts("Data", run.data),
        _facts("Settings", run.settings),
        _facts("Versions", run.versions),
        f"<h2>Run it again</h2>\n<pre>{escape(run.command)}</pre>" if run.command else "",
    ]
    return _html(run.title, parts)


def _html(title: str, parts: list[str]) -> str:
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _figures(result: Mapping[str, Any], measured: str) -> str:
    if not result:
        return ""
    cells = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{_number(value)}</dd></div>"
        for name, value in result.items()
    )
    said = f'\n<p class="quiet">{escape(measured)}</p>' if measured else ""
    return f'<h2>Test</h2>\n<dl class="figures">{cells}</dl>{said}'


def _comparison(run: Run) -> str:
    """The run beside its uniform baseline, and which of them is better."""
    if not run.baseline:
        return ""
    better = is_better(run.result, run.baseline)
    return (
        "<h2>Beside uniform negatives</h2>\n"
        f'<p class="{"fine" if better else "sign"}">{escape(verdict(run.result, run.baseline))}'
        f"</p>\n{table_html(comparison_table(run.result, run.baseline))}"
    )


def _signs(run: Run) -> str:
    if run.negatives is None:
        text = "This sampler follows no encoder, so that its negatives were not watched."
        return f'<h2>Failure signs</h2>\n<p class="quiet">{text}</p>'
    refreshes = int(run.negatives["refresh"].max())
    if not run.signs and refreshes < Thresholds().warmup:
        text = (
            f"None seen, but {refreshes} refresh(es) are too few to tell: most signs are looked "
            f"for from refresh {Thresholds().warmup} on."
        )
        return f'<h2>Failure signs</h2>\n<p class="quiet">{text}</p>'
    if not run.signs:
        text = (
            "None seen: no training that diverges under hard negatives, no plateau with misaligned "
            "hardness, no negatives that are no better than uniform, no collapse onto a few nodes."
        )
        return f'<h2>Failure signs</h2>\n<p class="fine">{text}</p>'
    found = "\n".join(
        f'<p class="sign"><b>{escape(str(sign["name"]))}</b>, refresh '
        f"{escape(str(sign['refresh']))}: {escape(str(sign['message']))}</p>"
        for sign in run.signs
    )
    return f"<h2>Failure signs</h2>\n{found}"


def _last_record(negatives: pd.DataFrame) -> str:
    last = negatives[negatives["refresh"] == negatives["refresh"].max()]
    parts = [f"<h2>Negatives at refresh {escape(str(last['refresh'].iloc[0]))}</h2>"]
    for etype, rows in last.groupby("etype", sort=False):
        if last["etype"].nunique() > 1:
            parts.append(f"<p><b>{escape(str(etype))}</b></p>")
        columns = [c for c in _COLUMNS if c in rows.columns and rows[c].notna().any()]
        head = "".join(
            f'<th title="{escape(_COLUMNS[c][1])}">{escape(_COLUMNS[c][0])}</th>' for c in columns
        )
        body = "\n".join(
            "<tr>" + "".join(f"<td>{_number(row[c])}</td>" for c in columns) + "</tr>"
            for row in rows.to_dict("records")
        )
        parts.append(
            f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n'
            "</tbody></table></div>"
        )
    said = "".join(
        f"<dt>{escape(short)}</dt><dd>{escape(long)}</dd>" for short, long in _COLUMNS.values()
    )
    parts.append(
        f'<details><summary>What the columns say</summary>\n<dl class="facts">{said}</dl></details>'
    )
    return "\n".join(parts)


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    rows = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape('none' if value == {} else str(value))}</dd>"
        for name, value in facts.items()
    )
    return f'<h2>{escape(title)}</h2>\n<dl class="facts">{rows}</dl>'


def _number(value: Any) -> str:
    if isinstance(value, float):
        if math.isnan(value):
            return "–"
        return f"{value:.0f}" if value == round(value) and abs(value) >= 10 else f"{value:.3f}"
    return escape(str(value))
