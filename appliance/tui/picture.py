"""A picture of the screen that stands alone: nothing in it is fetched from elsewhere."""

from __future__ import annotations

import re

_FONT = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono"


def plain_svg(svg: str) -> str:
    """As Textual exports it, without the font on a server, and with names that do not change."""
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code", _FONT)
    svg = re.sub(r"terminal-\d+", "t", svg)
    svg = svg.replace("<text ", '<text xml:space="preserve" ')
    return re.sub(r"[ \t]*\n\s*", "\n", svg).strip() + "\n"
