"""`Monitor`: what the negatives did, refresh by refresh.

It is called after every refresh, with the embeddings that the refresh used, so that watching costs
no pass of the encoder. Records go to a table in memory, to a line of the log, and to TensorBoard
where wanted; `signs` judges them, and each failure sign is a warning once.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dgl_dmns.checks import as_integer
from dgl_dmns.core import EdgeType, Look, Refreshed, RefreshReport
from dgl_dmns.diagnostics.measures import percentiles
from dgl_dmns.diagnostics.observation import Observation, observe_look
from dgl_dmns.diagnostics.signs import NegativesWarning, Sign, Thresholds, signs
from dgl_dmns.diagnostics.statistics import HeldOut, held_out_pairs, summarise
from dgl_dmns.files import check_parquet
from dgl_dmns.messages import warn

__all__ = ["Monitor"]

_LOG = logging.getLogger("dgl_dmns.monitor")


class Monitor:
    """Record the negatives of a sampler at every refresh.

    Make it before the training (before ``attach``, to have the first refresh too). Each record is a
    row for each edge type and level, with the columns of `negative_statistics` and

    - ``refresh``: how many refreshes there were; ``seconds`` since the monitor was made;
    - ``filtered``: share of proposed candidates that were rejected, as known edges or as the query
      itself; ``fallback``: query rows that ran out of admissible candidates;
    - ``fit_loss``: loss of the diffusion model at the end of this refresh's fitting;
    - ``staleness``: how far the embeddings had moved away from the last table when this refresh
      replaced it, the mean of 1 minus the cosine over nodes;
    - ``handed_out``: how many times each candidate of the last table was handed out, on average,
      until this refresh replaced it; NaN at the first one, and for a sampler of chains;
    - ``end_percentile``: ``percentile`` of the last table's negatives by the embeddings of this
      refresh, that is, at the end of their time; below 0.5, uniform negatives would have taught
      more; NaN likewise;
    - ``refresh_seconds``, ``embed_seconds``, ``fit_seconds``, ``table_seconds``: cost of it;
    - ``table_mib``: memory of the table and the known edges; ``process_mib``: the most that the
      process has had so far.

    Every record is a line of the logger ``dgl_dmns.monitor`` at level INFO.

    Args:
        sampler: a sampler that follows an encoder.
        held_out: true edges that the sampler does not know, for the false negatives; see
            `negative_statistics`.
        queries: at most this many source nodes are looked at; 0.05 s a refresh for 1000.
        every: record every so many refreshes.
        thresholds: when to warn; see `Thresholds`.
        tensorboard: folder of TensorBoard's event files (needs the extra ``tensorboard``).
        seed: of the choice of queries.

    Attributes:
        found: the failure signs so far, `Sign`, in the order they were seen.
        seconds: what watching has cost.

    Raises:
        TypeError: if the sampler follows no encoder.
        ValueError: if ``every`` is below 1.
        ImportError: if TensorBoard is asked for and not installed.

    Examples:
        >>> import dgl, torch
        >>> from dgl_dmns import DMNSSampler
        >>> g = dgl.rand_graph(50, 200)
        >>> sampler = DMNSSampler(g, lambda: torch.randn(50, 8), k=2)
        >>> monitor = Monitor(sampler)
        >>> report = sampler.refresh()
        >>> monitor.frame()["level"].tolist()
        ['0.1T', '0.125T', '0.25T', '0.5T', 'no level', 'all', 'random', 'positive']
    """

    def __init__(
        self,
        sampler: Refreshed,
        *,
        held_out: HeldOut | None = None,
        queries: int = 1000,
        every: int = 1,
        thresholds: Thresholds | None = None,
        tensorboard: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        if not hasattr(sampler, "on_refresh"):
            raise TypeError(
                f"sampler: expected one that is refreshed, got {type(sampler).__name__}; for a "
                "sampler without an encoder call sampler.stats(embeddings=...)"
            )
        self.sampler = sampler
        self.held_out = held_out
        self.queries = queries
        self.every = as_integer("every", every, 1)
        self.thresholds = thresholds or Thresholds()
        self.seed = seed
        self.found: list[Sign] = []
        self.seconds = 0.0
        self._records: list[pd.DataFrame] = []
        self._metrics: list[dict[str, Any]] = []
        self._watched: str | None = None
        self._started = time.perf_counter()
        self._last: dict[str, Tensor] | None = None
        self._board = None if tensorboard is None else _tensorboard(tensorboard)
        self._handle = sampler.on_refresh(self._record)

    # ---- recording --------------------------------------------------------------------------

    def _record(self, report: RefreshReport, h: dict[str, Tensor]) -> None:
        started = time.perf_counter()
        staleness = self._staleness(h)
        if report.version % self.every == 0 or not self._records:
            frame = pd.concat(
                [self._rows(etype, report, h, staleness) for etype in report.by_type],
                ignore_index=True,
            )
            self._records.append(frame)
            _LOG.info("%s", _line_of(frame))
            if self._board is not None:
                self._to_board(report.version, _scalars(frame))
            self._judge()
        self.seconds += time.perf_counter() - started

    def _rows(
        self,
        etype: EdgeType,
        report: RefreshReport,
        h: dict[str, Tensor],
        staleness: dict[str, float],
    ) -> pd.DataFrame:
        one = report.by_type[etype]
        look = self.sampler.look(etype, h)
        seen = observe_look(look, self.queries, self.seed)
        pairs = held_out_pairs(self.held_out, etype, self.sampler)
        rows = summarise(look, seen, pairs, self.seed)
        rows.insert(0, "refresh", report.version)
        rows.insert(1, "seconds", time.perf_counter() - self._started)
        return rows.assign(
            filtered=one.table.filtered,
            fallback=one.table.fallback,
            fit_loss=float("nan") if one.fit is None else one.fit.loss,
            staleness=staleness[etype[2]],
            **_last_table(look, report.version, seen),
            refresh_seconds=report.seconds,
            **{f"{part}_seconds": value for part, value in report.seconds_by_part.items()},
            table_mib=_table_mebibytes(look),
            process_mib=_process_mebibytes(),
        )

    def _staleness(self, h: dict[str, Tensor]) -> dict[str, float]:
        last, self._last = self._last, {ntype: part.clone() for ntype, part in h.items()}
        if last is None:
            return dict.fromkeys(h, float("nan"))
        both = {n: min(len(part), len(last[n])) for n, part in h.items()}  # a graph may have grown
        return {
            n: float((1 - cosine_similarity(part[: both[n]], last[n][: both[n]], dim=1)).mean())
            for n, part in h.items()
        }

    def log(self, watch: str | None = None, **metrics: float) -> None:
        """Record values of the training beside the negatives, for example after each epoch.

        Args:
            watch: name of the value, larger is better, whose standstill counts as a plateau, for
                example ``monitor.log(watch="mrr", epoch=3, loss=0.4, mrr=0.21)``.
            **metrics: values by name.

        Raises:
            ValueError: if ``watch`` is not among the values.
        """
        if watch is not None and watch not in metrics:
            raise ValueError(f"watch: expected one of the values {sorted(metrics)}, got {watch!r}")
        self._watched = watch or self._watched
        row = {"refresh": self.sampler.version, **metrics}
        self._metrics.append(row)
        _LOG.info("%s", "  ".join(f"{name} {value:.4g}" for name, value in row.items()))
        values = {f"training/{name}": value for name, value in metrics.items()}
        self._to_board(len(self._metrics), values)

    def _to_board(self, step: int, values: dict[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def _judge(self) -> None:
        name = self._watched
        # By refresh, the last value where several were logged.
        latest = {row["refresh"]: row[name] for row in self._metrics if name in row}
        watched = None if name is None else [float(value) for value in latest.values()]
        known = {sign.name for sign in self.found}
        for _, records in self.frame().groupby("etype", sort=False):
            for sign in signs(records, watched, self.thresholds):
                if sign.name not in known:
                    known.add(sign.name)
                    self.found.append(sign)
                    warn(f"refresh {sign.refresh}: {sign.message}", NegativesWarning)

    # ---- reading ----------------------------------------------------------------------------

    def frame(self) -> pd.DataFrame:
        """All records: a row for each refresh, edge type and level."""
        if not self._records:
            return pd.DataFrame(columns=["refresh", "seconds", "etype", "level"])
        return pd.concat(self._records, ignore_index=True)

    def metrics(self) -> pd.DataFrame:
        """What `log` was given, a row a call."""
        return pd.DataFrame(self._metrics)

    def save(self, path: str | Path) -> None:
        """Write `frame` to a file.

        Args:
            path: a name that ends in ``.csv``, or in ``.parquet`` where pyarrow is installed.

        Raises:
            ValueError: for another ending.
            ImportError: if pyarrow is missing.
        """
        path = Path(path)
        if path.suffix not in (".csv", ".parquet"):
            raise ValueError(
                f"path: expected a name that ends in .csv or .parquet, got {path.name!r}"
            )
        frame = self.frame()
        if path.suffix == ".csv":
            frame.to_csv(path, index=False)
        else:
            check_parquet(path, "write a .csv file")
            frame.to_parquet(path, index=False)

    # ---- ending and resuming ----------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The records, to go on with in another process, and whose they are."""
        return {
            "of": self._identity(),
            "records": self.frame().to_dict("list"),
            "metrics": list(self._metrics),
            "watched": self._watched,
            "found": [vars(sign) for sign in self.found],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the records of another monitor; warnings that it gave are not repeated.

        Raises:
            ValueError: if they are of another class of samplers, other edge types, or a graph with
                other edges; this monitor then stays as it was.
        """
        given, own = state.get("of"), self._identity()
        if given != own:
            raise ValueError(
                f"state: expected the records of a monitor of {own}, got those of {given}; load "
                "them beside a sampler of the same class and graph, or begin a new monitor"
            )
        records = pd.DataFrame(state["records"])
        self._records = [records] if len(records) else []
        self._metrics = list(state["metrics"])
        self._watched = state["watched"]
        self.found = [Sign(**sign) for sign in state["found"]]

    def _identity(self) -> str:
        """The sampler's class, its edge types and the edges of each, in words."""
        parts = [
            f"{':'.join(etype)} ({known.fingerprint()})"
            for etype, known in self.sampler.known_by_type.items()
        ]
        return f"{type(self.sampler).__name__}: {', '.join(parts)}"

    def close(self) -> None:
        """Stop watching; the records stay."""
        self._handle.remove()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        refreshes = self.frame()["refresh"].nunique()
        return f"Monitor({self.sampler!r}, records={refreshes}, signs={len(self.found)})"


def _last_table(look: Look, version: int, seen: Observation) -> dict[str, float]:
    """How far the table that this refresh has replaced was used, and used up."""
    if version < 2 or look.chains or look.rows is None or look.snapshot is None:
        return {"handed_out": float("nan"), "end_percentile": float("nan")}
    table = look.rows.table
    # The last table stands in the hidden buffer until the next refresh.
    last = table.hidden(look.rows.first_places(seen.query)).ids.flatten(1).long()
    score = look.snapshot.scores(seen.query.unsqueeze(1), last).squeeze(1)
    return {
        "handed_out": table.handed_out(version - 1),
        "end_percentile": float(percentiles(score, seen.random_score).double().mean()),
    }


def _table_mebibytes(look: Look) -> float:
    parts = [*(() if look.rows is None else look.rows.table.buffers()), *look.known.buffers()]
    return float(sum(part.numel() * part.element_size() for part in parts)) / 2**20


def _process_mebibytes() -> float:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    return most / (2**20 if sys.platform == "darwin" else 2**10)


# ---- where records go --------------------------------------------------------------------------


def _line_of(frame: pd.DataFrame) -> str:
    """The rows of one refresh in words: score and percentile by level, and what stands out."""
    lines: list[str] = []
    by_type = frame.groupby("etype", sort=False)
    for etype, rows in by_type:
        by_level = rows.set_index("level")
        parts = [f"refresh {rows['refresh'].iloc[0]}", *[str(etype)] * (len(by_type) > 1)]
        for level, row in by_level.iterrows():
            parts.append(f"{level} {row['score']:.3g} ({row['percentile']:.2f})")
        every = by_level.loc["all"]
        parts.append(f"gini {every['gini']:.2f} (uniform {every['gini_uniform']:.2f})")
        if pd.notna(every["false_negatives"]):
            parts.append(f"false negatives {every['false_negatives']:.2%}")
        if pd.notna(every["fit_loss"]):
            parts.append(f"fit {every['fit_loss']:.3g}")
        lines.append("  ".join([*parts, f"{every['refresh_seconds']:.2f} s"]))
    return " | ".join(lines)


def _tensorboard(folder: str | Path) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard: it is not installed; python -m pip install tensorboard, or leave "
            "tensorboard= out"
        ) from error
    return SummaryWriter(str(folder))


def _scalars(frame: pd.DataFrame) -> dict[str, float]:
    """The rows of one refresh as values of ``negatives/COLUMN/LEVEL``."""
    long = frame.drop(columns="refresh").melt(["etype", "level"]).dropna()
    several = frame["etype"].nunique() > 1
    return {
        f"negatives/{column}/{f'{etype}/{level}' if several else level}".replace(" ", "_"): value
        for etype, level, column, value in long.itertuples(index=False)
    }
