"""A few attempts of `fuzzing` on each kind of file, always the same ones."""

import random

import pytest
from fuzzing import KINDS, fuzz, prepare


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    prepare(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(kind, good, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    r = random.Random(kind)
    counts = {"read": 0, "refused": 0}
    for _ in range({"run": 1, "sampler": 5}.get(kind, 10)):
        what, detail = fuzz(kind, good, work, r)
        assert detail is None, detail
        counts[what] += 1
    assert counts["refused"] or kind == "run", counts
