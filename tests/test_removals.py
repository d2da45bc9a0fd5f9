"""The protections that ``python tools/removals.py`` takes out are where it looks for them."""

from __future__ import annotations

import pytest
from removals import REMOVALS, ROOT


@pytest.mark.parametrize("name", REMOVALS)
def test_what_is_to_be_removed_stands_once_in_its_file(name: str) -> None:
    one = REMOVALS[name]
    text = (ROOT / one.file).read_text(encoding="utf-8")
    assert text.count(one.old) == 1
    assert one.new != one.old
