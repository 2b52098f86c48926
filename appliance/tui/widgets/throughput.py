"""One figure over time, as bars."""

from __future__ import annotations

from appliance.tui import figures
from appliance.tui.figures import Glyphs
from appliance.tui.widgets.lines import Lines


class History(Lines):
    """The last seconds of one metric of the history, one column a second."""

    def __init__(self, glyphs: Glyphs, *, id: str | None = None) -> None:
        super().__init__(glyphs, id=id)
        self.metric: figures.Metric = "gen_tok_s"

    def next_metric(self) -> None:
        names = list(figures.METRICS)
        self.metric = names[(names.index(self.metric) + 1) % len(names)]
        self.refresh()

    def lines(self, width: int, height: int) -> list[tuple[str, str]]:
        values = self.top.history.get(self.metric, []) if self.top else []
        largest = max(values[-width:], default=0.0) if width else 0.0
        ratio = self.metric == "kv_ratio"
        shown = figures.percent(largest) if ratio else figures.whole(largest)
        head = f"{figures.METRICS[self.metric]}, last {width} s, at most {shown}"
        scale = 1.0 if ratio else 0.0
        drawn = figures.bars(values, width, height - 1, self.glyphs, scale)
        return [("dim", head), *(("green", line) for line in drawn)]
