"""What holds for the tests of all folders; what they share is in `shared`."""

from __future__ import annotations

import pytest
from shared import seed


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test draws the same numbers alone and among others."""
    seed()
