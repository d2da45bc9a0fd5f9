"""One self-contained HTML page of a run or bench: no script, nothing fetched, text escaped."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from dgl_dmns.diagnostics import Thresholds
from dgl_dmns.messages import one_line
from dgl_dmns.plots import label_of
from dgl_dmns.report.pictures import PAPER, Picture, bench_chart, pictures_of
from dgl_dmns.report.run import (
    Run,
    comparison,
    is_better,
    means,
    metrics_of,
    verdict,
)

__all__ = ["write_report"]

_CASES = 10  # best and worst test edges that are shown
_STYLE = """
:root { --line: #dcdfe4; --quiet: #5b6470; --good: #00795a; --bad: #a3301f; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem; color: #1d2129; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: .6rem 0 0; overflow-wrap: anywhere; }
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
th, td { text-align: right; padding: .25rem .4rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0;
  background: #fff; }
details { margin-top: .8rem; }
summary { cursor: pointer; color: var(--quiet); }
img { display: block; width: 100%; max-width: 36rem; height: auto; margin-top: auto; }
.pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.2rem 2rem; }
.pictures section { display: flex; flex-direction: column; min-width: 0; }
.pictures p { font-size: .9rem; }
pre { background: #f4f5f7; border-radius: .4rem; padding: .7rem 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
dl.facts { display: grid; grid-template-columns: fit-content(45%) 1fr; gap: .15rem 1.2rem;
  margin: 0; }
dl.facts dt { color: var(--quiet); overflow-wrap: anywhere; min-width: 0; }
dl.facts dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
@media (max-width: 44rem) { .pictures { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 40rem) { body { padding: 1rem; } .figures div { min-width: 6.2rem; }
  .figures dd { font-size: 1.2rem; } }
"""

_COLUMNS = {
    "level": ("level", "0.1T is the level at a tenth of the diffusion steps, the hardest"),
    "share": ("share", "of the negatives that are of this level"),
    "score": ("score", "mean score"),
    "expected_score": ("expected", "mean score that the generator expects of the level"),
    "percentile": ("percentile", "share of random nodes of the same query that score lower"),
    "above_positive": ("above pos.", "share that scores above a positive of the query"),
    "false_negatives": ("false neg.", "share that is a held-out edge, of queries that have one"),
    "false_negative_lift": ("lift", "false negatives, times those of uniform draws"),
    "distinct": ("distinct", "distinct nodes among the negatives looked at"),
    "handed_out": ("handed out", "how often each candidate of the table before was, on average"),
    "gini": ("Gini", "unevenness of how often nodes are drawn, 0 to 1"),
    "gini_uniform": ("Gini, unif.", "the same of as many uniform draws"),
    "density_auc": ("density AUC", "how well the level's density tells positives from random ones"),
}
_PSI_SHARE = {"psi_share": ("Psi ≥ 0", "share of latents where Psi is not negative")}
_PSI_COLUMNS = {"level": _COLUMNS["level"], **_PSI_SHARE}
_ROWS = {
    "no level": "uniform negatives, and those that the score alone has chosen",
    "random nodes": "uniform draws without a known edge, to compare with",
    "positives": "known neighbours, to compare with",
}
_PSI = (
    "The paper shows that its negatives follow the positives with a lower power (sub-linear "
    "positivity) wherever a quantity Psi is not negative. The share of latents where it holds is "
    "near 1 for easy levels and least for the hardest. Whether negatives help a training is not "
    "read from it: see the percentile and the test."
)


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run, or of a bench.

    Args:
        folder: of the run, as `save_run` or ``dgl-dmns train`` writes it, or of ``dgl-dmns bench``.
        out: the file to write; defaults to ``report.html`` in the folder.

    Returns:
        The file.

    Raises:
        FileNotFoundError: if the folder holds no run.
        ValueError: if a file of it is not complete, or ``out`` is a folder.
        ImportError: if matplotlib is missing.
    """
    folder = Path(folder)
    file = folder / "report.html" if out is None else Path(out)
    if file.is_dir():
        raise ValueError(
            f"out: expected the name of a file, got the folder {file}; name a file in it"
        )
    bench = (folder / "bench.csv").is_file() and not (folder / "run.json").is_file()
    run = None if bench else Run.load(folder)
    try:
        page = _page_of_bench(folder) if run is None else _page_of_run(run)
    except ImportError:
        raise
    except Exception as error:  # values of the files that do not fit together
        kind = "bench" if bench else "run"
        raise ValueError(
            f"{folder}: not a complete {kind} ({one_line(error)}); run it again into another folder"
        ) from error
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(page.encode("utf-8", "replace"))
    return file


def _page_of_run(run: Run) -> str:
    pictures = pictures_of(run)
    parts = [
        f"<h1>{escape(run.title)}</h1>",
        f'<p class="quiet">{escape(run.sampler)}</p>',
        _figures(run.result, run.measured),
        _comparison(run),
        "" if run.ranks is None else _cases(run.ranks),
        _signs(run),
        *_sections([picture for picture in pictures if picture.section != PAPER]),
        "" if run.negatives is None else _last_record(run.negatives),
        _conditions(run.negatives, [picture for picture in pictures if picture.section == PAPER]),
        _facts("Data", run.data),
        _facts("Settings", run.settings),
        _facts("Versions", run.versions),
        _command(run.command) if run.command else "",
    ]
    return _html(run.title, parts)


def _page_of_bench(folder: Path) -> str:
    runs = pd.read_csv(folder / "bench.csv")
    missing = {"sampler", "seed"} - set(runs.columns)
    if missing or not len(runs):
        raise ValueError(f"bench.csv: expected rows with {', '.join(sorted(missing))}")
    file = folder / "bench.json"
    facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(facts, dict):
        raise ValueError("bench.json: expected names and values")
    title = f"{runs['sampler'].nunique()} samplers at {runs['seed'].nunique()} seed(s)"
    numbers = metrics_of(runs)
    every = runs.assign(**{name: runs[name].map(lambda v: f"{v:.3f}") for name in numbers})
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{escape(str(facts.get("data", "")))}</p>',
        "<h2>Means</h2>",
        "<p>The mean over the seeds, and its standard error in brackets. All samplers had the same "
        "number of negatives, the same seeds and the same patience.</p>",
        _words(means(runs)),
        f'<p class="quiet">{escape(str(facts.get("measured", "")))}</p>',
        *(_sections([bench_chart(runs)]) if numbers else []),
        f"<details><summary>All runs</summary>\n{_words(every)}</details>",
        _facts("Versions", dict(facts.get("versions") or {})),
        _command(str(facts.get("command", ""))),
    ]
    return _html(title, parts)


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
    style = "fine" if is_better(run.result, run.baseline) else "sign"
    return (
        f'<h2>Beside uniform negatives</h2>\n<p class="{style}">'
        f"{escape(verdict(run.result, run.baseline))}</p>\n"
        f"{_words(comparison(run.result, run.baseline))}"
    )


def _cases(ranks: pd.DataFrame) -> str:
    """The test edges with the best and the worst ranks, of a frame in this order."""
    parts = []
    for title, some in (("Best", ranks.head(_CASES)), ("Worst", ranks.iloc[::-1].head(_CASES))):
        shown = some.assign(**{some.columns[-1]: some.iloc[:, -1].map("{:g}".format)})
        parts.append(f"<section><h3>{title}</h3>\n{_words(shown)}</section>")
    return (
        f"<h2>Test edges by rank</h2>\n<p>The rank of the true answer among all candidates: 1 is "
        f"the best, and .5 stands for a tie. All {len(ranks)} are in <code>ranks.csv</code>.</p>\n"
        f'<div class="pictures">{"".join(parts)}</div>'
    )


def _signs(run: Run) -> str:
    if run.negatives is not None and run.signs:
        found = "\n".join(
            f'<p class="sign"><b>{escape(str(sign["name"]))}</b>, refresh '
            f"{escape(str(sign['refresh']))}: {escape(str(sign['message']))}</p>"
            for sign in run.signs
        )
        return f"<h2>Failure signs</h2>\n{found}"
    refreshes = 0 if run.negatives is None else int(run.negatives["refresh"].max())
    early, style = Thresholds().warmup, "quiet"
    if run.negatives is None:
        text = "The negatives were not watched: there are no records of a monitor."
    elif refreshes < early:
        text = (
            f"None seen, but it is early to tell (refresh {refreshes}): most signs "
            f"are looked for from refresh {early} on."
        )
    else:
        style = "fine"
        text = (
            f"None seen in {refreshes} refreshes. The signs are rules of thumb: whether these "
            "negatives are better than uniform ones, only a training with uniform negatives tells."
        )
    return f'<h2>Failure signs</h2>\n<p class="{style}">{text}</p>'


def _sections(pictures: list[Picture]) -> list[str]:
    """The pictures under the headings of their sections."""
    return [
        f'<h2>{escape(title)}</h2>\n<div class="pictures">\n{"".join(map(_picture, some))}</div>'
        for title, some in groupby(pictures, key=lambda picture: picture.section)
    ]


def _picture(picture: Picture) -> str:
    said = f"<p>{escape(picture.text)}</p>\n" if picture.text else ""
    shown = f'<p class="quiet">Not drawn: {escape(picture.reason)}</p>'
    if picture.png:
        shown = (
            f'<img alt="{escape(picture.title)}" src="data:image/png;base64,'
            f'{base64.b64encode(picture.png).decode("ascii")}">'
        )
    return f"<section>\n<h3>{escape(picture.title)}</h3>\n{said}{shown}\n</section>\n"


def _last(negatives: pd.DataFrame) -> pd.DataFrame:
    last: pd.DataFrame = negatives[negatives["refresh"] == negatives["refresh"].max()]
    return last


def _last_record(negatives: pd.DataFrame) -> str:
    last = _last(negatives)
    said = dict(_COLUMNS[column] for column in _COLUMNS if _has_value(last, column))
    labels = {label_of(str(level)) for level in last["level"]}
    said |= {label: text for label, text in _ROWS.items() if label in labels}
    return (
        f"<h2>Negatives at refresh {int(last['refresh'].iloc[0])}</h2>\n"
        f"{_tables(last, _COLUMNS)}\n<details><summary>What the columns and rows say</summary>\n"
        f"{_list(said)}</details>"
    )


def _tables(last: pd.DataFrame, of: Mapping[str, tuple[str, str]]) -> str:
    """A table for each edge type, with those of the columns that have a value."""
    parts = []
    for etype, rows in last.groupby("etype", sort=False):
        if last["etype"].nunique() > 1:
            parts.append(f"<p><b>{escape(str(etype))}</b></p>")
        columns = [column for column in of if _has_value(rows, column)]
        head = [f'<th title="{escape(of[c][1])}">{escape(of[c][0])}</th>' for c in columns]
        body = [[_cell(row, c) for c in columns] for row in rows.to_dict("records")]
        parts.append(_table(head, body))
    return "\n".join(parts)


def _words(table: pd.DataFrame) -> str:
    """A table of words."""
    head = [f"<th>{escape(str(name))}</th>" for name in table.columns]
    return _table(head, [[escape(str(cell)) for cell in row] for row in table.to_numpy(object)])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of heads and cells that are HTML."""
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{"".join(head)}</tr></thead>\n<tbody>\n{body}\n'
        "</tbody></table></div>"
    )


def _has_value(rows: pd.DataFrame, column: str) -> bool:
    return column in rows.columns and bool(rows[column].notna().any())


def _cell(row: Mapping[Any, Any], column: str) -> str:
    if column == "level":
        return escape(label_of(str(row[column])).removeprefix("level "))
    return _number(row[column])


def _conditions(negatives: pd.DataFrame | None, pictures: list[Picture]) -> str:
    """Psi and sub-linear positivity, folded away."""
    table = ""
    if negatives is not None and "psi_share" in negatives.columns:
        table = _tables(_last(negatives).dropna(subset=["psi_share"]), _PSI_COLUMNS)
    if not table and not pictures:
        return ""
    drawn = f'<div class="pictures">\n{"".join(map(_picture, pictures))}</div>' if pictures else ""
    return (
        f"<details><summary>{escape(PAPER)}: Psi and sub-linear positivity</summary>\n"
        f"<p>{escape(_PSI)}</p>\n{table}\n{drawn}</details>"
    )


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    said = {name: "none" if value == {} else value for name, value in facts.items()}
    return f"<h2>{escape(title)}</h2>\n{_list(said)}" if said else ""


def _list(said: Mapping[str, Any]) -> str:
    rows = [f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in said.items()]
    return f'<dl class="facts">{"".join(rows)}</dl>'


def _command(command: str) -> str:
    return f"<h2>Run it again</h2>\n<pre>{escape(command)}</pre>"


def _number(value: Any) -> str:
    if isinstance(value, float):
        if math.isnan(value):
            return "–"
        return f"{value:.0f}" if value == round(value) and abs(value) >= 10 else f"{value:.3f}"
    return escape(str(value))
