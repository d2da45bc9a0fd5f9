"""What the pictures share: matplotlib on demand, and one colour and one word for each thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["axes_or_new", "colours", "label_of", "legend_beside", "plain_ticks", "pyplot"]

_POSITIVE, _RANDOM, _NO_LEVEL, _ALL = "#00795a", "#8a8a8a", "#56b4e9", "#222222"
_LEVELS = ("#8b0a50", "#c1443c", "#e07b39", "#f0b04c", "#c8b560", "#9aa36b")


def pyplot() -> Any:
    """``matplotlib.pyplot``.

    Raises:
        ImportError: if matplotlib is missing.
    """
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ImportError("pictures need matplotlib: python -m pip install matplotlib") from error
    return plt


def axes_or_new(ax: Any) -> Any:
    """The axes given, or those of a new figure."""
    if ax is not None:
        return ax
    return pyplot().subplots(figsize=(6.4, 4.2), layout="constrained")[1]


def legend_beside(ax: Any, handles: Sequence[Any] | None = None) -> None:
    """A legend to the right of the axes, where it covers nothing."""
    given = {} if handles is None else {"handles": handles}
    ax.legend(
        **given, fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )


def plain_ticks(ax: Any, *, whole_x: bool = False) -> None:
    """Ticks that read as they stand: no offset beside the axis; whole numbers on x if wanted."""
    ax.ticklabel_format(useOffset=False)
    if whole_x:
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name; hardness levels go from dark (hard) to light (easy)."""
    fixed = {"positive": _POSITIVE, "random": _RANDOM, "no level": _NO_LEVEL, "all": _ALL}
    levels = [name for name in names if name not in fixed]
    return {**fixed, **{name: _LEVELS[i % len(_LEVELS)] for i, name in enumerate(levels)}}


def label_of(name: str) -> str:
    """A name as legends say it."""
    words = {
        "positive": "positives",
        "random": "random nodes",
        "all": "all negatives",
        "no level": "no level",
    }
    return words.get(name, f"level {name}")
