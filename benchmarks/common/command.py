"""The command line as a report may show it: without the folders of one machine."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

__all__ = ["public_command"]


def public_command(words: Sequence[str], placeholders: Mapping[str, str]) -> str:
    """A command line with the values of some options replaced.

    The parser of the command must not allow abbreviated options, which would be overlooked here.

    Args:
        words: the words of the command.
        placeholders: what stands for the value of an option, by the option's full name.

    Returns:
        The command, quoted for a shell where needed.

    >>> public_command(["run", "--out", "/home/me/x", "--jobs=2"], {"--out": "OUT"})
    'run --out OUT --jobs=2'
    """
    shown: list[str] = []
    previous = ""
    for word in words:
        option, equals, _ = word.partition("=")
        if previous in placeholders:
            shown.append(placeholders[previous])
        elif equals and option in placeholders:
            shown.append(f"{option}={placeholders[option]}")
        else:
            shown.append(word)
        previous = word
    return shlex.join(shown)
