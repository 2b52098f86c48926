"""What the dashboard has been told so far: one object, which every page draws from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from appliance.status import RequestRow, TopSnapshot
from appliance.tui.text import Glyphs


@dataclass
class Told:
    """newest: the last answer; shown: the one that is drawn, older while paused.

    away_since: monotonic seconds since when nobody answers. label: of a recording.
    inline: drawn under the prompt in a few lines. readonly: nothing may be changed.
    """

    glyphs: Glyphs
    label: str = ""
    readonly: bool = False
    inline: bool = False
    newest: TopSnapshot | None = None
    shown: TopSnapshot | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    away_since: float | None = None
    why_away: str = ""
    paused: bool = False

    def take(self, top: TopSnapshot) -> None:
        self.newest = top
        self.away_since, self.why_away = None, ""
        if not self.paused:
            self.shown = top

    def pause(self) -> None:
        self.paused = not self.paused
        if not self.paused:
            self.shown = self.newest

    def request(self, id: str) -> RequestRow | None:
        """As it was last told, alive or ended."""
        top = self.newest or TopSnapshot()
        return next((row for row in (*top.requests, *top.finished) if row.id == id), None)
