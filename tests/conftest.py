"""What holds for the tests of all folders; what they share is in `shared`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from shared import seed


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test draws the same numbers alone and among others."""
    seed()


@pytest.fixture
def error(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that has to fail; its one line."""
    from dgl_dmns.cli import main

    def fails(*words: object) -> str:
        capsys.readouterr()
        assert main([*map(str, words)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return fails
