"""Seeds of any size, in the ranges that the libraries take.

torch takes seeds of 64 bits, NumPy's global stream of 32, DGL of 31. A seed that fits is used as it
is; one that does not, and one for a place in a run (an epoch, say), is hashed into the range.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from dgl_dmns._compat import require_dgl

__all__ = ["fit_seed", "seed_all"]


def fit_seed(seed: int, *places: int, bits: int = 63) -> int:
    """A seed below ``2**bits`` from a whole number of any size and sign.

    Args:
        seed: the user's seed.
        *places: what tells several seeds of one run apart, such as the number of an epoch.
        bits: width of the range, at most 64.

    Returns:
        ``seed`` itself where it is in the range and no place is given; otherwise bits of a SHA-256.

    >>> fit_seed(7), fit_seed(7, 1) == fit_seed(8, 1), fit_seed(1 << 70) < 1 << 63
    (7, False, True)
    """
    if not places and 0 <= seed < 1 << bits:
        return int(seed)
    digest = hashlib.sha256(",".join(str(int(part)) for part in (seed, *places)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - bits)


def seed_all(seed: int, *places: int) -> None:
    """Seed the global streams of torch, NumPy (DGL's loader shuffles with it) and DGL.

    Args:
        seed: the user's seed, of any size.
        *places: see `fit_seed`.
    """
    torch.manual_seed(fit_seed(seed, *places))
    np.random.seed(fit_seed(seed, *places, bits=32))  # noqa: NPY002 (the stream DGL draws from)
    require_dgl().seed(fit_seed(seed, *places, bits=31))
