"""What a result depends on besides its configuration: versions, machine, memory."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["environment_record", "peak_memory_mb", "reset_peak_memory"]

_PACKAGES = ("dgl-dmns", "dgl", "torch", "numpy")


def _line(path: str, start: str) -> str:
    """What follows the first such start of a line of a system file, or nothing."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            if line.startswith(start):
                return line.partition(":")[2].strip()
    return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def environment_record() -> dict[str, str | int]:
    """Versions, processor and cores, as plain values for a results file."""
    processor = _line("/proc/cpuinfo", "model name")
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
    }


def reset_peak_memory() -> None:
    """Let `peak_memory_mb` count from now on, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb() -> float:
    """The largest resident size of this process in MB of 10^6 bytes; NaN on Windows.

    Counted since the last `reset_peak_memory`, or since the start where the system cannot reset it.
    """
    if peak := _line("/proc/self/status", "VmHWM"):
        return float(peak.split()[0]) * 1024 / 1e6
    if sys.platform == "win32":
        return float("nan")
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(usage) / 1e6 if sys.platform == "darwin" else float(usage) * 1024 / 1e6
