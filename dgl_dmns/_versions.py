"""Versions of what a result depends on; needs nothing but Python."""

from __future__ import annotations

import platform
from importlib import metadata

__all__ = ["version_of", "versions"]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, by name."""
    names = ("dgl-dmns", "dgl", "torch", "numpy", "pandas")
    return {"python": platform.python_version(), **{name: version_of(name) for name in names}}


def version_of(name: str) -> str:
    """Version of an installed package, or ``"not installed"``."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
