"""Widgets of plain lines: the title, the key figures, alerts, GPUs, the log's end, the keys."""

from __future__ import annotations

from rich.text import Text
from textual.widget import Widget

from appliance.status import TopSnapshot
from appliance.tui import figures
from appliance.tui.figures import Glyphs

_ALARM = "bold white on dark_red"  # readable too when NO_COLOR leaves only greys
_STATE_STYLES = {
    "ready": "bold green",
    "starting": "bold yellow",
    "degraded": "bold yellow",
    "draining": "bold yellow",
    "failed": _ALARM,
    "stopped": _ALARM,
}
_LEVEL_STYLES = {"": "", "info": "cyan", "warn": "yellow", "warning": "yellow", "error": _ALARM}

_LABEL_ROOM = 28
"""Width from which a key figure on one line has its long label."""


class Lines(Widget):
    """Draws the lines it was shown, cut at its own width; markup in them means nothing."""

    def __init__(self, glyphs: Glyphs, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.glyphs = glyphs
        self.top: TopSnapshot | None = None

    def show(self, top: TopSnapshot) -> None:
        self.top = top
        self.refresh(layout=self.styles.auto_dimensions)

    def lines(self, width: int, height: int) -> list[tuple[str, str]]:
        """(style, text) of each line, height of them at most."""
        raise NotImplementedError

    def render(self) -> Text:
        width, height = self.content_size
        drawn = Text(no_wrap=True, end="")
        for i, (style, text) in enumerate(self.lines(width, height)[:height]):
            drawn.append("\n" if i else "")
            drawn.append(figures.fit(text, width, self.glyphs), style or None)
        return drawn

    @property
    def text(self) -> str:
        """What it shows now, as plain text."""
        return self.render().plain


class Title(Lines):
    """One line: state, model, profile, time up, URL; or for how long nobody has answered."""

    def __init__(self, glyphs: Glyphs, *, id: str | None = None) -> None:
        super().__init__(glyphs, id=id)
        self.away_s: float | None = None
        self.paused = False

    def lines(self, width: int, height: int) -> list[tuple[str, str]]:
        top = self.top or TopSnapshot()
        style = _STATE_STYLES[top.state]
        state = figures.state_words(top, self.glyphs)
        if self.away_s is not None:
            style = _STATE_STYLES["failed"]
            state = f"UNREACHABLE {figures.duration(self.away_s)}"
        elif self.top is None:
            style, state = "bold", "CONNECTING"
        if self.paused:
            state += " PAUSED"
        return [(style, figures.title(top, width, state, self.glyphs))]


class Figure(Lines):
    """One key figure: its label above the value where there are two lines, else before it."""

    def __init__(self, index: int, glyphs: Glyphs) -> None:
        super().__init__(glyphs, id=f"figure-{index}")
        self.index = index

    def lines(self, width: int, height: int) -> list[tuple[str, str]]:
        found = figures.key_figures(self.top or TopSnapshot(), self.glyphs)[self.index]
        if height >= 2:
            return [("dim", found.label), ("bold", found.value), ("", found.more)]
        label = found.label if width >= _LABEL_ROOM else found.short
        return [("", f"{label}  {found.line}")]


class Alerts(Lines):
    """A line for each alert; none when all is well."""

    def __init__(self, glyphs: Glyphs, *, id: str | None = None) -> None:
        super().__init__(glyphs, id=id)
        self.why_away = ""

    def found(self) -> list[tuple[str, str]]:
        lines = figures.alert_lines(self.top, self.glyphs) if self.top else []
        if self.why_away:
            lines.insert(0, ("error", figures.inert(self.why_away, self.glyphs)))
        return lines

    def lines(self, width: int, height: int) -> list[tuple[str, str]]:
        return [(_LEVEL_STYLES.get(level, "yellow"), f"! {text}") for level, text in self.found()]


class Gpus(Lines):
    """The GPU table, or the CPU's line where there is none."""

    def lines(self, width: int, height: int) -> list[tuple[str, str]]:
        head, *rest = figures.gpu_lines(self.top or TopSnapshot(), self.glyphs)
        return [("dim", head), *(("", line) for line in rest)]


class Log(Lines):
    """The end of the log, newest last."""

    def lines(self, width: int, height: int) -> list[tuple[str, str]]:
        if self.top is None or height < 1:
            return []
        return [
            (_LEVEL_STYLES[figures.log_level(line)], figures.inert(line, self.glyphs))
            for line in self.top.log_tail[-height:]
        ]


class Keys(Lines):
    """The keys, as many as fit; those that matter most come first."""

    HINTS = (
        ("q", "quit"),
        ("?", "help"),
        ("p", "pause"),
        ("/", "filter"),
        ("s", "sort"),
        ("l", "logs"),
        ("g", "GPUs"),
        ("t", "graph"),
        ("+-", "interval"),
    )

    def lines(self, width: int, height: int) -> list[tuple[str, str]]:
        shown = ""
        for key, does in self.HINTS:
            if len(shown) + len(key) + len(does) + 4 > width:
                break
            shown += f" {key} {does} "
        return [("dim", shown)]
