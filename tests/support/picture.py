"""Draws what a terminal showed as SVG, for the README: rich reads the colours and makes the SVG."""

from __future__ import annotations

import io
import re
from typing import Final

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

_NORMAL: Final = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
DARK: Final = TerminalTheme(
    (13, 17, 23),
    (214, 221, 229),
    [
        (13, 17, 23), (255, 123, 114), (86, 211, 100), (227, 179, 65),
        (121, 192, 255), (210, 168, 255), (86, 212, 221), (214, 221, 229),
    ],
    [(139, 148, 158)] * 8,
)  # fmt: skip
LIGHT: Final = TerminalTheme(
    (255, 255, 255),
    (31, 35, 40),
    [
        (31, 35, 40), (180, 28, 33), (17, 99, 41), (125, 78, 0),
        (5, 80, 174), (98, 51, 161), (27, 98, 109), (89, 99, 110),
    ],
    [(89, 99, 110)] * 8,
)  # fmt: skip
"""Every colour but the background has a contrast of at least 4.5 to it."""

_SVG: Final = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<style>
text {{ font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; }}
.{unique_id}-title {{ font-family: sans-serif; font-size: 16px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
{matrix}
</g>
</svg>
"""
"""No font is fetched: each piece of text is stretched to the width that it has in the terminal."""


def picture(session: str, theme: TerminalTheme) -> str:
    """Return the SVG of a session: what was typed after `$ `, what came, in its ANSI colours."""
    lines = [Text.from_ansi(line) for line in session.rstrip("\n").split("\n")]
    for line in lines:
        if line.plain.startswith("$ "):
            line.stylize("bold")
    width = max(line.cell_len for line in lines)
    console = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    for line in lines:
        console.print(line, soft_wrap=True)
    svg = console.export_svg(title="prewarm", theme=theme, code_format=_SVG, unique_id="p")
    # rich draws the frame in white, for dark pages alone.
    svg = svg.replace("rgba(255,255,255,0.35)", theme.ansi_colors[8].hex)
    return re.sub(r"(?m)^ +|[ ]+$", "", svg)
