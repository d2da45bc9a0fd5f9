"""Files of a soak: samples as CSV, a page of figures with what they have to be, and a plot."""

from __future__ import annotations

from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.cells import write_text
from benchmarks.common.report import markdown_table, save_plot, write_csv
from benchmarks.soak.run import Outcome, Sample, Setting

__all__ = ["checks", "growth", "write_report"]

_WARM = 0.2  # share of the samples that warming up takes
_FLAT = 5.0  # per cent that memory may grow from the first to the last third


def growth(values: list[float]) -> float:
    """By how many per cent the last third of the warm samples lies above the first, in medians."""
    warm = values[int(_WARM * len(values)) :]
    third = len(warm) // 3
    if not third:
        return float("nan")
    first, last = float(np.median(warm[:third])), float(np.median(warm[-third:]))
    return 100 * (last / first - 1)


def checks(setting: Setting, outcome: Outcome) -> list[tuple[str, str, str, bool]]:
    """What was measured, what it has to be, and whether it is."""
    oldest = max(outcome.age, default=0)
    main = growth([sample.main_mb for sample in outcome.samples])
    files = growth([float(sample.files) for sample in outcome.samples])
    shared = [sample.shared for sample in outcome.samples]
    return [
        ("loaders ended by a kill", str(len(outcome.kills)), "at least 1", bool(outcome.kills)),
        ("edges lost", str(outcome.lost), "0", outcome.lost == 0),
        ("edges trained on twice", str(outcome.repeated), "0", outcome.repeated == 0),
        (
            "oldest negatives, in steps",
            str(oldest),
            f"at most {setting.bound}",
            oldest <= setting.bound,
        ),
        ("batches from no known table", str(outcome.unknown), "0", outcome.unknown == 0),
        ("growth of memory", f"{main:+.1f} %", f"below {_FLAT:.0f} %", main < _FLAT),
        ("growth of open files", f"{files:+.1f} %", f"below {_FLAT:.0f} %", files < _FLAT),
        (
            "names in shared memory, at most",
            str(max(shared, default=0)),
            "no more at the end than at the start",
            not shared or shared[-1] <= max(shared[: max(1, len(shared) // 3)]),
        ),
        ("left behind", ", ".join(outcome.left) or "nothing", "nothing", not outcome.left),
    ]


def write_report(setting: Setting, outcome: Outcome, out: Path, heading: str) -> list[Path]:
    """Write ``results.csv``, ``results.md`` and, with matplotlib, ``results.png``."""
    files = [out / "results.csv", out / "results.md"]
    header = [f.name for f in fields(Sample)]
    rows = [
        [round(v, 3) if isinstance(v, float) else v for v in astuple(s)] for s in outcome.samples
    ]
    write_csv(files[0], header, rows)
    lines = [
        [what, found, wanted, "yes" if fine else "**no**"]
        for what, found, wanted, fine in checks(setting, outcome)
    ]
    text = heading + "\n" + markdown_table(("", "measured", "has to be", "it is"), lines)
    text += (
        f"\n{outcome.steps} steps ({outcome.redone} more were cut short and done again), "
        f"{outcome.epochs} whole epochs of {outcome.edges} edges, {outcome.versions} refreshes.\n"
    )
    if outcome.kills:
        ends = ", ".join(f"{seconds:.0f} s" for seconds, _ in outcome.kills)
        kinds = sorted({error.split(":")[0] for _, error in outcome.kills})
        text += f"\nLoaders ended at {ends}; each by {' or '.join(kinds)}.\n"
    write_text(files[1], text)
    return files + save_plot(out / "results.png", lambda plt: _draw(plt, outcome))


def _draw(plt: Any, outcome: Outcome) -> Any:
    """Memory over time with the kills, and the ages of the negatives."""
    if not outcome.samples:
        return None
    minutes = [sample.seconds / 60 for sample in outcome.samples]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    axes[0].plot(minutes, [sample.main_mb for sample in outcome.samples], label="main process")
    axes[0].plot(minutes, [sample.workers_mb for sample in outcome.samples], label="workers")
    for number, (seconds, _) in enumerate(outcome.kills):
        label = "a worker is killed" if number == 0 else None
        axes[0].axvline(seconds / 60, color="0.8", linewidth=1, zorder=0, label=label)
    axes[0].set(xlabel="minutes", ylabel="memory (MB, PSS)")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(fontsize="small")
    ages = sorted(outcome.age)
    axes[1].bar(ages, [outcome.age[age] for age in ages], width=1.0)
    axes[1].set(xlabel="age of the negatives (steps)", ylabel="batches")
    return figure
