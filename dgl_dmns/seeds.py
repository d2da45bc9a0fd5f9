"""Seeds of any size, in the ranges that the libraries take.

torch takes seeds of 64 bits, NumPy's global stream of 32, DGL of 31; see `fit_seed`.
"""

from __future__ import annotations

import numpy as np
import torch

from dgl_dmns._compat import require_dgl
from dgl_dmns.core import fit_seed

__all__ = ["fit_seed", "seed_all"]


def seed_all(seed: int, *places: int) -> None:
    """Seed the global streams of torch, NumPy (DGL's loader shuffles with it) and DGL.

    Args:
        seed: the user's seed, of any size.
        *places: see `fit_seed`.
    """
    torch.manual_seed(fit_seed(seed, *places))
    np.random.seed(fit_seed(seed, *places, bits=32))  # noqa: NPY002 (the stream DGL draws from)
    require_dgl().seed(fit_seed(seed, *places, bits=31))
