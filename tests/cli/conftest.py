"""What the tests of the command line share as fixtures."""

import pytest

from dgl_dmns.cli import main


@pytest.fixture
def error(capsys):
    """Runs a command that has to fail; its one line."""

    def fails(*words):
        capsys.readouterr()
        assert main([*map(str, words)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return fails
