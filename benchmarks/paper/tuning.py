"""One tuning budget for every row: six settings each, the best validation MAP of seed 0 is taken.

Four settings of the training are shared by all rows, which keep their default negatives there; two
more are the row's own, most of them at the default rate and activation.  The choices are kept in a
JSON file, ``{data set: {row: setting}}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common.cells import CellStore, write_text
from benchmarks.common.report import Found, Section, mean, table
from benchmarks.common.rows import Cell
from benchmarks.paper.config import ROWS, Line, Training
from dgl_dmns.core import Nearest

__all__ = [
    "CHOICES",
    "SETTINGS",
    "SHARED_NAMES",
    "Trials",
    "choose",
    "chosen_lines",
    "chosen_settings",
    "read_choices",
    "trials_of",
    "tuning_section",
    "tuning_table",
    "write_choices",
]

CHOICES = Path(__file__).with_name("choices.json")
"""Where choices lie unless another file is named; without it every row has its defaults."""

Choices = Mapping[str, Mapping[str, str]]
"""Names of settings by data set and row."""


class Setting(NamedTuple):
    """What one candidate changes of a row's defaults."""

    name: str  # as it stands in tables and in the file of choices
    training: dict[str, Any]  # fields of the training
    options: dict[str, Any]  # options of the row

    def of(self, line: Line) -> Line:
        """The line with this setting, its title unchanged."""
        return line.changed(line.row.title, {**_DEFAULT, **self.training}, self.options)


_DEFAULT = {"learning_rate": Training.learning_rate, "activation": Training.activation}

_SHARED = tuple(
    Setting(f"lr={rate:g},{activation}", {"learning_rate": rate, "activation": activation}, {})
    for rate in (0.01, 0.002)
    for activation in ("relu", "none")
)

SHARED_NAMES = tuple(setting.name for setting in _SHARED)
"""The settings that all rows share."""

_SLOW_AND_STEEP = Setting(
    "lr=0.002,none,scale=3", {"learning_rate": 0.002, "activation": "none", "scale": 3.0}, {}
)
_LOSS = (Setting("scale=3", {"scale": 3.0}, {}), _SLOW_AND_STEEP)


def _option(option: str, *values: float, title: str = "") -> tuple[Setting, ...]:
    """Settings of one option of a row."""
    return tuple(Setting(f"{title or option}={v:g}", {}, {option: v}) for v in values)


_OWN: dict[str, tuple[Setting, ...]] = {
    "fixed": _LOSS,
    "uniform-1": _LOSS,
    "uniform-5": _LOSS,
    "in-batch": _LOSS,
    "pns": _option("exponent", 0.5, 1.0),
    "dns": _option("pool", 20, 10),
    "mcns": (*_option("alpha", 0.5), *_option("steps", 5)),
    "kbgan": (*_option("learning_rate", 3e-3, title="generator lr"), *_option("pool", 64)),
    "self-adversarial": _option("temperature", 0.5, 0.25),
    "dmns-latent": (*_option("learning_rate", 1e-2, title="diffusion lr"), _SLOW_AND_STEEP),
    "dmns-nearest": (
        *_option("uniform_share", 0.4, title="uniform share"),
        Setting("pool=64", {}, {"pool": 64, "rule": Nearest(64)}),
    ),
    "dmns-density": (
        *_option("uniform_share", 0.4, title="uniform share"),
        *_option("pool", 256),
    ),
}

SETTINGS: dict[str, tuple[Setting, ...]] = {name: (*_SHARED, *own) for name, own in _OWN.items()}
"""The six settings of each row."""


Trials = dict[str, dict[int, Cell]]
"""The runs of a data set by row and place of the setting in `SETTINGS`.

Equal places are counterparts: settings that all rows share, or a row's own first or second one.
"""


def trials_of(
    dataset: str, names: Sequence[str], training: Training, shared: Sequence[str] | None = None
) -> Trials:
    """The runs that settle the settings of a data set's rows.

    With ``shared`` only these of `SHARED_NAMES`, and none of the rows' own; otherwise all six.
    """
    trials: Trials = {}
    for name in names:
        lines = [setting.of(Line(ROWS[name], training)) for setting in SETTINGS[name]]
        trials[name] = {
            slot: Cell(dataset, line.training, line.row, 0)
            for slot, line in enumerate(lines)
            if shared is None or SETTINGS[name][slot].name in shared
        }
    return trials


def choose(trials: Trials, store: CellStore) -> dict[str, str]:
    """The setting with the best validation MAP for each row of one data set.

    Raises:
        ValueError: if rows have results for different settings, and so different budgets, or none
            has any. Settings that all rows lack alike do no harm.
    """
    found: dict[str, dict[int, float]] = {}
    for row, cells in trials.items():
        results = {slot: store.load(cell) for slot, cell in cells.items()}
        found[row] = {slot: one["val"]["MAP"] for slot, one in results.items() if one}
    done = {slot for slots in found.values() for slot in slots}
    if not done:
        raise ValueError("no setting has a result, nothing to choose from")
    lacking = [
        f"{row} lacks {', '.join(SETTINGS[row][slot].name for slot in sorted(done - set(slots)))}"
        for row, slots in found.items()
        if done - set(slots)
    ]
    if lacking:
        raise ValueError(
            "nothing chosen, since rows have results for different settings and so different "
            f"budgets: {'; '.join(lacking)}"
        )
    return {
        row: SETTINGS[row][max(slots, key=lambda slot: slots[slot])].name
        for row, slots in found.items()
    }


def chosen_settings(dataset: str, training: Training, choices: Choices) -> dict[str, str]:
    """Names of the settings chosen for a data set's rows; choices are made and hold for GCN."""
    return dict(choices.get(dataset, {})) if training.encoder == "gcn" else {}


def chosen_lines(dataset: str, training: Training, choices: Choices) -> dict[str, Line]:
    """The rows of a data set, each with its chosen setting or its defaults, by their names.

    Raises:
        ValueError: for a choice that the row does not have.
    """
    lines = {name: Line(row, training) for name, row in ROWS.items()}
    for name, chosen in chosen_settings(dataset, training, choices).items():
        known = {setting.name: setting for setting in SETTINGS[name]}
        if chosen not in known:
            raise ValueError(
                f"choices: expected one of {' | '.join(known)} for row {name}, got {chosen!r}"
            )
        lines[name] = known[chosen].of(lines[name])
    return lines


def read_choices(path: Path = CHOICES) -> dict[str, dict[str, str]]:
    """The choices in a file; none where it is absent."""
    if not path.exists():
        return {}
    found: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write_choices(path: Path, choices: Choices) -> None:
    """Add choices to a file; those of other data sets and rows stay."""
    merged = read_choices(path)
    for dataset, rows in choices.items():
        merged.setdefault(dataset, {}).update(rows)
    write_text(path, json.dumps(merged, indent=1, sort_keys=True) + "\n")


def tuning_section(dataset: str, trials: Trials, chosen: Mapping[str, str]) -> Section:
    """Every setting as a line, those that were chosen marked."""
    cells = {}
    for row, by_slot in trials.items():
        for slot, cell in by_slot.items():
            name = SETTINGS[row][slot].name
            mark = " (chosen)" if chosen.get(row) == name else ""
            cells[f"{row}: {name}{mark}"] = [cell]
    return Section("settings", dataset, cells, "")


def tuning_table(section: Section, found: Found) -> str:
    """Validation MAP, which decides, and test MAP, which does not."""
    columns = (mean("val MAP", "val MAP", 4), mean("test MAP", "test MAP", 4))
    return table(found, "", (*columns, mean("best epoch", "best epoch", 0)))
