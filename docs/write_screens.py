"""Draws the dashboard's pages as pictures for the site, from the recording that `--demo` plays.

    python docs/write_screens.py

They are drawn anew when the dashboard has changed enough to matter; nothing compares them.
"""

from __future__ import annotations

import asyncio
import re
import sys
from itertools import chain, repeat
from pathlib import Path

from appliance.tui.app import TopApp
from appliance.tui.screens.page import NAMES
from appliance.tui.source import DEMO, Replay

FOLDER = Path(__file__).parent / "screens"
SIZE = (120, 36)
FRAME_S = 42.0
"""Seconds into the recording: one moment on every picture."""
_LIGHT_TOO = {"overview"}
_GIVE_UP = 400


async def _draw(light: bool) -> dict[str, str]:
    """Page -> SVG."""
    moments = chain([0.0], repeat(FRAME_S))
    replay = Replay(DEMO, clock=lambda: next(moments))
    replay.top()
    app = TopApp(replay, interval=0.25, label=replay.label)
    drawn = {}
    async with app.run_test(size=SIZE) as pilot:
        if light:
            await pilot.press("D")
        for number, name in enumerate(NAMES, 1):
            await pilot.press(str(number))
            for _ in range(_GIVE_UP):
                if app.told.newest is not None and app.told.plan and app.page.number == number:
                    break
                await pilot.pause(0.05)
            await pilot.pause(0.3)
            drawn[name.lower()] = _plain(app.export_screenshot(title="appliance top --demo"))
    return drawn


def _plain(svg: str) -> str:
    """Without what would be fetched from elsewhere, and with names that do not change."""
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")
    svg = re.sub(r"terminal-\d+", "t", svg)
    return re.sub(r"[ \t]*\n\s*", "\n", svg).strip() + "\n"


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for light in (False, True):
        for name, svg in asyncio.run(_draw(light)).items():
            if not light or name in _LIGHT_TOO:
                path = FOLDER / f"{name}-{'light' if light else 'dark'}.svg"
                path.write_text(svg)
                sys.stdout.write(f"{path}: {path.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    write()
