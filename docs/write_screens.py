"""Draws the dashboard's pages as pictures for the site, from the recording that `--demo` plays.

    python docs/write_screens.py

A test compares them with what this would draw.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path

from textual.pilot import Pilot

from appliance.tui.app import TopApp
from appliance.tui.picture import plain_svg
from appliance.tui.poller import FEW_LINES, MANY_LINES
from appliance.tui.screens.page import NAMES
from appliance.tui.source import DEMO, Replay

FOLDER = Path(__file__).parent / "screens"
SIZE = (120, 36)
FRAME_S = 45.0
"""Seconds into the recording: one moment on every picture."""
_LIGHT_TOO = {"overview"}
_GIVE_UP = 1200


async def draw(light: bool) -> dict[str, str]:
    """File name -> SVG."""
    moments = chain([0.0], repeat(FRAME_S))
    replay = Replay(DEMO, clock=lambda: next(moments))
    replay.top()
    app = TopApp(replay, interval=10.0, label=replay.label)
    drawn = {}
    async with app.run_test(size=SIZE) as pilot:
        await _until(pilot, lambda: app.told.newest is not None and bool(app.told.plan))
        if light:
            await pilot.press("D")
        for number, name in enumerate(NAMES, 1):
            if light and name not in _LIGHT_TOO:
                continue
            page = app.pages[number - 1]
            await pilot.press(str(number))
            await _until(pilot, lambda page=page: app.screen is page and page.is_mounted)
            # the log's page asks for more lines at once
            lines = MANY_LINES if name == "logs" else FEW_LINES
            await _until(pilot, lambda lines=lines: app.poller.lines == lines)
            picture = plain_svg(app.export_screenshot(title="appliance top --demo"))
            drawn[f"{name.lower()}-{'light' if light else 'dark'}.svg"] = picture
    return drawn


async def _until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    for _ in range(_GIVE_UP):
        if condition():
            await pilot.pause()
            return
        await pilot.pause(0.05)
    raise AssertionError("the dashboard did not come to it")


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for light in (False, True):
        for name, svg in asyncio.run(draw(light)).items():
            path = FOLDER / name
            path.write_text(svg)
            sys.stdout.write(f"{path}: {path.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    write()
