"""Elements of HTML and SVG whose text is escaped, always.

What goes into an element is text from anybody until `element` has made markup of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

from prewarm.core.text import printable

_VOID: Final = frozenset({"br", "meta", "wbr"})


class Markup(str):
    """Text that is markup already: made by `element`, or written by us."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """Return an element; children that are no Markup are text.

    The name of an attribute has `_` for `-`, and one at its end where Python has that word. One
    that is None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{joined(children)}</{name}>")


def joined(parts: Iterable[str], between: str = "") -> Markup:
    """Return the parts one after the other; those that are no Markup are text."""
    return Markup(_escaped(between).join(map(_escaped, parts)))


def _escaped(text: str) -> str:
    return text if isinstance(text, Markup) else escape(printable(text))
