"""Diffusion-based negative sampling (DMNS) for link prediction with DGL.

``DMNSSampler(g, encoder)`` takes the place of ``dgl.dataloading.negative_sampler.Uniform``. The
method itself lives in `dgl_dmns.core`, in plain torch. Samplers need DGL and are imported on first
use, so that the core works without it; where DGL cannot be used, importing this package says so
once.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dgl_dmns._compat import require_dgl, version_of, why_unusable

if TYPE_CHECKING:
    from dgl_dmns.samplers import (
        AdversarialSampler,
        Diffusion,
        DMNSSampler,
        DynamicSampler,
        InBatchSampler,
        MCNSSampler,
        NegativeSampler,
        Pools,
        PopularitySampler,
        RefreshingSampler,
        Resources,
        SelfAdversarialSampler,
        UniformSampler,
    )

__all__ = [
    "AdversarialSampler",
    "DMNSSampler",
    "Diffusion",
    "DynamicSampler",
    "InBatchSampler",
    "MCNSSampler",
    "NegativeSampler",
    "Pools",
    "PopularitySampler",
    "RefreshingSampler",
    "Resources",
    "SelfAdversarialSampler",
    "UniformSampler",
    "__version__",
]

_SAMPLERS = frozenset(__all__) - {"__version__"}

__version__ = version_of("dgl-dmns") or "0+unknown"  # a source tree, not installed

_problem = why_unusable()
if _problem is not None:
    warnings.warn(_problem, UserWarning, stacklevel=2)


def __getattr__(name: str) -> Any:
    if name in _SAMPLERS:
        require_dgl()
        return getattr(import_module("dgl_dmns.samplers"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
