"""Seeds of any size, in the ranges that generators take."""

from __future__ import annotations

import hashlib
from typing import Any

from dgl_dmns.checks import as_integer

__all__ = ["fit_seed"]


def fit_seed(seed: Any, *places: int, bits: int = 63) -> int:
    """A seed below ``2**bits`` from a whole number of any size and sign.

    A seed that fits is used as it is; one that does not, and one for a place in a run (an epoch,
    say), is hashed into the range.

    Args:
        seed: the user's seed; integers of NumPy are taken.
        *places: what tells several seeds of one run apart, such as the number of an epoch.
        bits: width of the range, at most 64.

    Returns:
        ``seed`` itself where it is in the range and no place is given; otherwise bits of a SHA-256.

    Raises:
        TypeError: if the seed is no integer.

    >>> fit_seed(7), fit_seed(7, 1) == fit_seed(8, 1), fit_seed(1 << 70) < 1 << 63
    (7, False, True)
    """
    number = as_integer("seed", seed)
    if not places and 0 <= number < 1 << bits:
        return number
    text = ",".join(str(int(part)) for part in (number, *places))
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - bits)
