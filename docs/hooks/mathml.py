r"""Formulas as MathML, made when the site is built: pages need no script and no network.

The Markdown extension ``arithmatex`` leaves ``\(..\)`` and ``\[..\]`` in elements of class
``arithmatex``; MkDocs calls `on_page_content` with the HTML of each page.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

__all__ = ["on_page_content"]

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(page_html: str, **_: Any) -> str:
    """The page with every formula replaced by MathML."""

    def replace(match: re.Match[str]) -> str:
        block = match["tag"] == "div"
        mathml: str = convert(html.unescape(match["latex"]), display="block" if block else "inline")
        # A formula wider than a phone is scrolled by itself; the page is not.
        style = ' style="overflow-x: auto; overflow-y: hidden"' if block else ""
        return f"<{match['tag']}{style}>{mathml}</{match['tag']}>"

    return _FORMULA.sub(replace, page_html)
