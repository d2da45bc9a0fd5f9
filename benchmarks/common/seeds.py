"""One seed for all streams of random numbers that a training with DGL draws from."""

from __future__ import annotations

import dgl
import numpy as np
import torch

__all__ = ["seed_all"]


def seed_all(seed: int) -> None:
    """Seed the global streams of torch, NumPy (DGL's loader shuffles with it) and DGL."""
    for seed_one in (torch.manual_seed, np.random.seed, dgl.seed):
        seed_one(seed)
