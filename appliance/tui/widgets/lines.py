"""Widgets of plain lines: the title, the key figures, alerts, GPUs, the log's end, the keys."""

from __future__ import annotations

from time import monotonic

from rich.text import Text
from textual.widget import Widget

from appliance.status import TopSnapshot
from appliance.tui import figures, tables
from appliance.tui.graphs import gauge
from appliance.tui.styles import BADGES, STYLES
from appliance.tui.text import Line, bare, duration, fit_line, inert, said, wrapped
from appliance.tui.told import Told

_LABEL_ROOM = 28
"""Width from which a key figure on one line has its long label."""
_GAUGE_LEAST = 4


class Lines(Widget):
    """Draws lines made from what was told, cut at its own width; markup in them means nothing."""

    def __init__(self, told: Told, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.told = told
        self.glyphs = told.glyphs
        self._drawn: list[Line] | None = None
        self._next: tuple[tuple[int, int], list[Line]] | None = None

    @property
    def top(self) -> TopSnapshot | None:
        return self.told.shown

    def draw(self) -> None:
        """Draws anew if what it would draw has changed."""
        width, height = size = self.content_size
        lines = self.lines(width, height)[:height]
        if lines != self._drawn:
            self._next = size, lines
            self.refresh(layout=self.styles.auto_dimensions)

    def name_box(self, title: str) -> None:
        """Its name on the border; said again, it would be drawn again."""
        if self.border_title != title:
            self.border_title = title

    def lines(self, width: int, height: int) -> list[Line]:
        """Height of them at most."""
        raise NotImplementedError

    def render(self) -> Text:
        width, height = size = self.content_size
        drawn = Text(no_wrap=True, end="")
        ready, self._next = self._next, None
        fresh = ready[1] if ready is not None and ready[0] == size else self.lines(width, height)
        self._drawn = fresh[:height]
        styles = STYLES[self.app.current_theme.dark]
        for i, line in enumerate(self._drawn):
            drawn.append("\n" if i else "")
            for style, text in fit_line(line, width, self.glyphs):
                drawn.append(text, styles[style] or None)
        return drawn

    @property
    def text(self) -> str:
        """What it shows now, as plain text."""
        return self.render().plain


class Title(Lines):
    """One line: state, model, profile, time up, URL; or for how long nobody has answered."""

    def lines(self, width: int, height: int) -> list[Line]:
        told, top = self.told, self.top or TopSnapshot()
        badge = BADGES[top.state]
        state = figures.state_words(top, self.glyphs)
        if told.away_since is not None:
            badge = BADGES["failed"]
            away = duration(max(0.0, monotonic() - told.away_since))
            state = f"UNREACHABLE {away}"
        elif self.top is None:
            badge, state = BADGES["stopped"], "CONNECTING"
        if told.label:
            state = f"{inert(told.label, self.glyphs)} {state}"
        if told.paused:
            state += " PAUSED"
        return [figures.title(top, width, state, badge, self.glyphs)]


class Figure(Lines):
    """One key figure: in a box with its label on the border, or on one line behind its label."""

    def __init__(self, index: int, told: Told) -> None:
        super().__init__(told, id=f"figure-{index}")
        self.index = index
        found = self._found()
        self.border_title = found.title or found.label

    def _found(self) -> figures.KeyFigure:
        return figures.key_figure(self.index, self.top or TopSnapshot(), self.glyphs)

    def lines(self, width: int, height: int) -> list[Line]:
        found = self._found()
        if height >= 2:
            return [self._value(found, width), said(found.more or found.extra, found.more_style)]
        label = found.label if width >= _LABEL_ROOM else found.short
        more = f"  {found.more}" if found.more else ""
        return [
            (
                ("dim", f"{label}  "),
                (found.style, found.value),
                (found.more_style, more),
            )
        ]

    def _value(self, found: figures.KeyFigure, width: int) -> Line:
        room = width - len(found.value) - 2
        if found.ratio is None or room < _GAUGE_LEAST:
            return said(found.value, found.style)
        calm = found.style == "value"
        bar = gauge(found.ratio, room, self.glyphs)
        return ((found.style, f"{found.value}  "), ("graph" if calm else found.style, bar))


class Alerts(Lines):
    """An alert on a line, or two where there is room; none when all is well.

    most: alerts shown. tall: one that is too long for its line may have another.
    """

    def __init__(self, told: Told, *, id: str) -> None:
        super().__init__(told, id=id)
        self.most = 1
        self.tall = False

    def found(self) -> list[Line]:
        lines = figures.alert_lines(self.top, self.glyphs) if self.top else []
        if self.told.why_away:
            why = inert(self.told.why_away, self.glyphs)
            lines.insert(0, figures.alert_line("error", why))
        return lines

    def lines(self, width: int, height: int) -> list[Line]:
        lines: list[Line] = []
        for alert in self.found()[: self.most]:
            lines += _two_lines(wrapped(alert, width)) if self.tall else [alert]
        return lines


def _two_lines(lines: list[Line]) -> list[Line]:
    """What does not stand on the first joins the second, to be cut there."""
    if len(lines) <= 1:
        return lines
    rest = tuple(span for line in lines[2:] for span in line[1:])
    return [lines[0], lines[1] + rest]


class Gpus(Lines):
    """The GPU table, or the CPU's line where there is none."""

    def lines(self, width: int, height: int) -> list[Line]:
        lines = tables.gpu_lines(self.top or TopSnapshot(), width, self.glyphs)
        if len(lines) > height >= 2:
            hidden = len(lines) - height + 1
            return [*lines[: height - 1], said(f"and {hidden} more: 3 shows all", "dim")]
        return lines


class Log(Lines):
    """The end of the log, newest last."""

    def __init__(self, told: Told, *, id: str) -> None:
        super().__init__(told, id=id)
        self.border_title = "log"

    def lines(self, width: int, height: int) -> list[Line]:
        if self.top is None or height < 1:
            return []
        tail = self.top.log_tail[-height:]
        if not tail:
            return [said("nothing has been logged yet", "dim")]
        return [tables.log_line(line, self.glyphs, short=True) for line in tail]


class Keys(Lines):
    """The keys, as many as fit; those that matter most come first."""

    def __init__(self, told: Told, hints: tuple[tuple[str, str], ...], *, id: str) -> None:
        super().__init__(told, id=id)
        self._hints = hints

    def lines(self, width: int, height: int) -> list[Line]:
        shown: Line = ()
        for key, does in self._hints:
            if len(bare(shown)) + len(key) + len(does) + 3 > width:
                break
            shown += (("key", f" {key}"), ("dim", f" {does} "))
        return [shown]


class Tabs(Lines):
    """The pages by number; the one in sight stands out. Names go where there is no room."""

    def __init__(self, told: Told, names: tuple[str, ...], here: int) -> None:
        super().__init__(told, id="tabs")
        self._names, self._here = names, here

    def lines(self, width: int, height: int) -> list[Line]:
        line: Line = ()
        for long in (True, False):
            line = tuple(
                ("tab", f"[{number} {name}]" if self.glyphs.ascii else f" {number} {name} ")
                if number == self._here
                else ("dim", f" {number} {name if long else ''}".rstrip() + " ")
                for number, name in enumerate(self._names, 1)
            )
            if len(bare(line)) <= width:
                break
        return [line]
