"""One figure over time, as bars."""

from __future__ import annotations

from appliance.tui import graphs
from appliance.tui.text import Line, duration, said
from appliance.tui.told import Told
from appliance.tui.widgets.lines import Lines

_AXIS_FROM = 30


class History(Lines):
    """The last seconds of one metric of the history, the largest of each column's seconds."""

    def __init__(self, told: Told, *, id: str | None = None) -> None:
        super().__init__(told, id=id)
        self.metric: graphs.Metric = "gen_tok_s"
        self.border_title = graphs.METRICS[self.metric]

    def next_metric(self) -> None:
        names = list(graphs.METRICS)
        self.metric = names[(names.index(self.metric) + 1) % len(names)]
        self.draw()

    def draw(self) -> None:
        self.name_box(self.head)
        super().draw()

    @property
    def head(self) -> str:
        """What is shown, for how long back, and its largest value."""
        values, seconds = self._shown(self._bars_room(self.content_size.width))
        name = graphs.METRICS[self.metric]
        if not values:
            return name
        head = f"{name}, last {duration(len(values) * seconds)}"
        peak = f", at most {graphs.metric_value(self.metric, max(values), self.glyphs)}"
        return head + peak if len(head + peak) <= self.content_size.width - 2 else head

    def lines(self, width: int, height: int) -> list[Line]:
        room = self._bars_room(width)
        values, _ = self._shown(room)
        if not values:
            return [said("nothing measured yet", "dim")]
        full = 1.0 if graphs.is_share(self.metric) else 0.0
        if room < width:
            return graphs.with_axis(values, self.metric, width, height, self.glyphs, full)
        return graphs.shaded(graphs.bars(values, width, height, self.glyphs, full))

    def _bars_room(self, width: int) -> int:
        return width - graphs.AXIS if width >= _AXIS_FROM else width

    def _shown(self, room: int) -> tuple[list[float], int]:
        values = self.top.history.get(self.metric, []) if self.top else []
        return graphs.buckets(values, room)
