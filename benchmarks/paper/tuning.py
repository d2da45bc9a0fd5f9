"""One tuning budget for every row: six settings each, the best validation MAP of seed 0 is taken.

Four settings of the training are shared by all rows, which keep their default method there; two
more are the row's own, most of them at the default rate and activation.  The choices are kept in a
JSON file, ``{data set: {row: setting}}``, that `benchmarks.paper.rows.main_rows` reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.common import CellStore, markdown_table, write_csv, write_text
from benchmarks.paper.config import Cell, Row, Training

__all__ = [
    "CHOICES",
    "SETTINGS",
    "SHARED_NAMES",
    "Choices",
    "Setting",
    "Trial",
    "choose",
    "chosen_row",
    "read_choices",
    "trials_of",
    "why_unequal",
    "write_choices",
    "write_tuning",
]

CHOICES = Path(__file__).with_name("choices.json")
"""Where choices lie unless another file is named; without it every row has its defaults."""

Choices = Mapping[str, Mapping[str, str]]
"""Names of settings by data set and row."""

_CSV_HEADER = ("dataset", "row", "setting", "val MAP", "test MAP", "best epoch", "chosen")


@dataclass(frozen=True)
class Setting:
    """What one candidate changes of a row's defaults.

    Args:
        name: as it stands in tables and in the file of choices.
        training: fields of the training.
        method: fields of the method.
        diffusion: fields of the method's diffusion model.
    """

    name: str
    training: Mapping[str, Any] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)
    diffusion: Mapping[str, Any] = field(default_factory=dict)

    def of(self, row: Row) -> Row:
        """The row with this setting, its displayed name unchanged."""
        changes = dict(self.method)
        method: Any = row.method
        if self.diffusion:
            changes["diffusion"] = replace(method.diffusion, **self.diffusion)
        training = replace(row.training, **{**_DEFAULT, **self.training})
        return replace(row, method=replace(method, **changes), training=training)


_DEFAULT = {"learning_rate": Training.learning_rate, "activation": Training.activation}

_SHARED = tuple(
    Setting(f"lr={rate:g},{activation}", {"learning_rate": rate, "activation": activation})
    for rate in (0.01, 0.002)
    for activation in ("relu", "none")
)

SHARED_NAMES = tuple(setting.name for setting in _SHARED)
"""The settings that all rows share."""

_SLOW_AND_STEEP = Setting(
    "lr=0.002,none,scale=3", {"learning_rate": 0.002, "activation": "none", "scale": 3.0}
)
_LOSS = (Setting("scale=3", {"scale": 3.0}), _SLOW_AND_STEEP)

_OWN: dict[str, tuple[Setting, Setting]] = {
    "fixed": _LOSS,
    "uniform-1": _LOSS,
    "uniform-5": _LOSS,
    "in-batch": _LOSS,
    "pns": (
        Setting("exponent=0.5", method={"exponent": 0.5}),
        Setting("exponent=1", method={"exponent": 1.0}),
    ),
    "dns": (Setting("pool=20", method={"pool": 20}), Setting("pool=10", method={"pool": 10})),
    "mcns": (Setting("alpha=0.5", method={"alpha": 0.5}), Setting("steps=5", method={"steps": 5})),
    "kbgan": (
        Setting("generator lr=0.003", method={"learning_rate": 3e-3}),
        Setting("pool=64", method={"pool": 64}),
    ),
    "self-adversarial": (
        Setting("temperature=0.5", method={"temperature": 0.5}),
        Setting("temperature=0.25", method={"temperature": 0.25}),
    ),
    "dmns-latent": (
        Setting("diffusion lr=0.01", diffusion={"learning_rate": 1e-2}),
        _SLOW_AND_STEEP,
    ),
    "dmns-nearest": (
        Setting("uniform share=0.4", method={"uniform_share": 0.4}),
        Setting("pool=64", method={"pool": 64}),
    ),
    "dmns-density": (
        Setting("uniform share=0.4", method={"uniform_share": 0.4}),
        Setting("pool=256", method={"pool": 256}),
    ),
}

SETTINGS: dict[str, tuple[Setting, ...]] = {name: (*_SHARED, *own) for name, own in _OWN.items()}
"""The six settings of each row."""


@dataclass(frozen=True)
class Trial:
    """One setting of one row on one data set.

    Args:
        dataset: name of the data set.
        row: command-line name of the row.
        slot: place of the setting in `SETTINGS`; equal for counterparts of different rows.
        cell: what is run.
    """

    dataset: str
    row: str
    slot: int
    cell: Cell

    @property
    def setting(self) -> str:
        """Name of the setting."""
        return SETTINGS[self.row][self.slot].name


def trials_of(
    dataset: str, rows: Mapping[str, Row], official: bool, shared: Sequence[str] | None = None
) -> list[Trial]:
    """The runs that settle the settings of a data set's rows.

    Args:
        dataset: name of the data set.
        rows: rows with their defaults, by their command-line names.
        official: whether to use the published split.
        shared: run only these of `SHARED_NAMES`, and none of the rows' own; None: all six.
    """
    return [
        Trial(dataset, name, slot, Cell(dataset, setting.of(row), 0, official))
        for name, row in rows.items()
        for slot, setting in enumerate(SETTINGS[name])
        if shared is None or setting.name in shared
    ]


def _validation(trials: Sequence[Trial], store: CellStore) -> dict[str, dict[int, float]]:
    """Validation MAP by row and place of the setting, where there is a result."""
    found: dict[str, dict[int, float]] = {trial.row: {} for trial in trials}
    for trial in trials:
        result = store.load(trial.cell)
        if result is not None:
            found[trial.row][trial.slot] = result["val"]["MAP"]
    return found


def why_unequal(trials: Sequence[Trial], store: CellStore) -> str:
    """Why no choice among the trials of a data set would be fair, or nothing.

    Rows with results for different settings would have different budgets. Settings that all rows
    lack alike do no harm.
    """
    found = _validation(trials, store)
    done = {slot for slots in found.values() for slot in slots}
    if not done:
        return "no setting has a result, nothing to choose from"
    lacking = [
        f"{row} lacks {', '.join(SETTINGS[row][slot].name for slot in sorted(done - set(slots)))}"
        for row, slots in found.items()
        if done - set(slots)
    ]
    if not lacking:
        return ""
    return (
        "nothing chosen, since rows have results for different settings and so different budgets: "
        + "; ".join(lacking)
    )


def choose(trials: Sequence[Trial], store: CellStore) -> dict[str, str]:
    """The setting with the best validation MAP for each row of one data set.

    Args:
        trials: of one data set.
        store: the finished cells.

    Raises:
        ValueError: where `why_unequal` has something to say.
    """
    if reason := why_unequal(trials, store):
        raise ValueError(reason)
    return {
        row: SETTINGS[row][max(slots, key=lambda slot: slots[slot])].name
        for row, slots in _validation(trials, store).items()
    }


def chosen_row(row: Row, name: str, setting: str) -> Row:
    """A row with a setting of its choice.

    Args:
        row: the row with its defaults.
        name: its command-line name.
        setting: name of one of its settings.

    Raises:
        ValueError: for a setting that the row does not have.
    """
    known = {candidate.name: candidate for candidate in SETTINGS[name]}
    if setting not in known:
        raise ValueError(
            f"choices: expected one of {' | '.join(known)} for row {name}, got {setting!r}"
        )
    return known[setting].of(row)


def read_choices(path: Path = CHOICES) -> dict[str, dict[str, str]]:
    """The choices in a file; none where it is absent."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    found: dict[str, dict[str, str]] = json.loads(text)
    return found


def write_choices(path: Path, choices: Choices) -> None:
    """Add choices to a file; those of other data sets and rows stay."""
    merged = read_choices(path)
    for dataset, rows in choices.items():
        merged.setdefault(dataset, {}).update(rows)
    write_text(path, json.dumps(merged, indent=1, sort_keys=True) + "\n")


def write_tuning(
    trials: Sequence[Trial], store: CellStore, choices: Choices, out: Path, heading: str
) -> list[Path]:
    """Write ``tuning.csv`` and ``tuning.md``: every setting, chosen or not.

    Args:
        trials: of all data sets.
        store: the finished cells; absent ones show as "-".
        choices: what was chosen from them.
        out: the folder.
        heading: Markdown above the table.

    Returns:
        The files written.
    """
    lines = []
    for trial in trials:
        result = store.load(trial.cell)
        figures = ["-"] * 3
        if result is not None:
            maps = (f"{result[part]['MAP']:.4f}" for part in ("val", "test"))
            figures = [*maps, str(result["best epoch"])]
        chosen = choices.get(trial.dataset, {}).get(trial.row) == trial.setting
        mark = "x" if chosen else ""
        lines.append([trial.dataset, trial.row, trial.setting, *figures, mark])
    files = [out / "tuning.csv", out / "tuning.md"]
    write_csv(files[0], _CSV_HEADER, lines)
    header = ("data set", *_CSV_HEADER[1:])
    write_text(files[1], f"{heading}\n{markdown_table(header, lines)}")
    return files
