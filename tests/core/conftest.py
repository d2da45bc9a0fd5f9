"""What the tests of the core share as fixtures."""

import pytest
from listed import KNOWN, SHARES, WIDTH, H
from small import rng

from dgl_dmns.core import DiffusionGenerator


@pytest.fixture(scope="session")
def model() -> DiffusionGenerator:
    """A diffusion model of the listed graph."""
    made = DiffusionGenerator(WIDTH, levels=SHARES, space="raw", batch_pairs=256)
    made.fit(H, H, KNOWN, 60, generator=rng(2))
    return made
