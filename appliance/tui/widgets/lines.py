"""Widgets of plain lines: the title, the key figures, alerts, GPUs, the log's end, the keys."""

from __future__ import annotations

from time import monotonic

from rich.text import Text
from textual.widget import Widget

from appliance.status import TopSnapshot
from appliance.tui import figures
from appliance.tui.told import Told

_ALARM = "bold white on dark_red"  # readable too when NO_COLOR leaves only greys
_STATE_STYLES = {
    "ready": "bold green",
    "starting": "bold yellow",
    "degraded": "bold yellow",
    "draining": "bold yellow",
    "failed": _ALARM,
    "stopped": _ALARM,
}
LEVEL_STYLES = {"": "", "info": "cyan", "warn": "yellow", "warning": "yellow", "error": _ALARM}
_ON_LIGHT = {
    "green": "dark_green",
    "bold green": "bold dark_green",
    "yellow": "dark_orange3",
    "bold yellow": "bold dark_orange3",
    "cyan": "blue",
}
"""Styles that cannot be read on a light ground, and what stands for them there."""

_LABEL_ROOM = 28
"""Width from which a key figure on one line has its long label."""


class Lines(Widget):
    """Draws lines made from what was told, cut at its own width; markup in them means nothing."""

    def __init__(self, told: Told, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.told = told
        self.glyphs = told.glyphs
        self._drawn: list[tuple[str, str]] | None = None

    @property
    def top(self) -> TopSnapshot | None:
        return self.told.shown

    def draw(self) -> None:
        """Draws anew if what it would draw has changed."""
        width, height = self.content_size
        if self.lines(width, height)[:height] != self._drawn:
            self.refresh(layout=self.styles.auto_dimensions)

    def lines(self, width: int, height: int) -> list[tuple[str, str]]:
        """(style, text) of each line, height of them at most."""
        raise NotImplementedError

    def render(self) -> Text:
        width, height = self.content_size
        drawn = Text(no_wrap=True, end="")
        self._drawn = self.lines(width, height)[:height]
        dark = self.app.current_theme.dark
        for i, (style, text) in enumerate(self._drawn):
            drawn.append("\n" if i else "")
            shown = style if dark else _ON_LIGHT.get(style, style)
            drawn.append(figures.fit(text, width, self.glyphs), shown or None)
        return drawn

    @property
    def text(self) -> str:
        """What it shows now, as plain text."""
        return self.render().plain


class Title(Lines):
    """One line: state, model, profile, time up, URL; or for how long nobody has answered."""

    def lines(self, width: int, height: int) -> list[tuple[str, str]]:
        told, top = self.told, self.top or TopSnapshot()
        style = _STATE_STYLES[top.state]
        state = figures.state_words(top, self.glyphs)
        if told.away_since is not None:
            style = _STATE_STYLES["failed"]
            away = figures.duration(max(0.0, monotonic() - told.away_since))
            state = f"UNREACHABLE {away}"
        elif self.top is None:
            style, state = "bold", "CONNECTING"
        if told.label:
            state = f"{figures.inert(told.label, self.glyphs)} {state}"
        if told.paused:
            state += " PAUSED"
        return [(style, figures.title(top, width, state, self.glyphs))]


class Figure(Lines):
    """One key figure: its label above the value where there are two lines, else before it."""

    def __init__(self, index: int, told: Told) -> None:
        super().__init__(told, id=f"figure-{index}")
        self.index = index

    def lines(self, width: int, height: int) -> list[tuple[str, str]]:
        found = figures.key_figures(self.top or TopSnapshot(), self.glyphs)[self.index]
        if height >= 2:
            return [("dim", found.label), ("bold", found.value), ("", found.more)]
        label = found.label if width >= _LABEL_ROOM else found.short
        return [("", f"{label}  {found.line}")]


class Alerts(Lines):
    """A line for each alert; none when all is well."""

    def found(self) -> list[tuple[str, str]]:
        lines = figures.alert_lines(self.top, self.glyphs) if self.top else []
        if self.told.why_away:
            lines.insert(0, ("error", figures.inert(self.told.why_away, self.glyphs)))
        return lines

    def lines(self, width: int, height: int) -> list[tuple[str, str]]:
        return [(LEVEL_STYLES.get(level, "yellow"), f"! {text}") for level, text in self.found()]


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
            (LEVEL_STYLES[figures.log_level(line)], figures.inert(line, self.glyphs))
            for line in self.top.log_tail[-height:]
        ]


class Keys(Lines):
    """The keys, as many as fit; those that matter most come first."""

    def __init__(self, told: Told, hints: tuple[tuple[str, str], ...], *, id: str) -> None:
        super().__init__(told, id=id)
        self._hints = hints

    def lines(self, width: int, height: int) -> list[tuple[str, str]]:
        shown = ""
        for key, does in self._hints:
            if len(shown) + len(key) + len(does) + 4 > width:
                break
            shown += f" {key} {does} "
        return [("dim", shown)]


class Tabs(Lines):
    """The pages by number; the one in sight stands in brackets. Names go where there is no room."""

    def __init__(self, told: Told, names: tuple[str, ...], here: int) -> None:
        super().__init__(told, id="tabs")
        self._names, self._here = names, here

    def lines(self, width: int, height: int) -> list[tuple[str, str]]:
        for long in (True, False):
            words = [
                f"[{number} {name}]"
                if number == self._here
                else f" {number}{f' {name}' if long else ''} "
                for number, name in enumerate(self._names, 1)
            ]
            line = "".join(words)
            if len(line) <= width:
                break
        return [("dim", line)]
