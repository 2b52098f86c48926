"""One figure over time, as bars."""

from __future__ import annotations

from appliance.tui import figures
from appliance.tui.told import Told
from appliance.tui.widgets.lines import Lines


class History(Lines):
    """The last seconds of one metric of the history, the largest of each column's seconds."""

    def __init__(self, told: Told, *, id: str | None = None) -> None:
        super().__init__(told, id=id)
        self.metric: figures.Metric = "gen_tok_s"

    def next_metric(self) -> None:
        names = list(figures.METRICS)
        self.metric = names[(names.index(self.metric) + 1) % len(names)]
        self.refresh()

    def lines(self, width: int, height: int) -> list[tuple[str, str]]:
        values = self.top.history.get(self.metric, []) if self.top else []
        shown, seconds = figures.buckets(values, width)
        largest = max(shown, default=0.0)
        peak = figures.metric_value(self.metric, largest, self.glyphs)
        span = figures.duration(len(shown) * seconds)
        head = f"{figures.METRICS[self.metric]}, last {span}, at most {peak}"
        full = 1.0 if self.metric == "kv_ratio" else 0.0
        drawn = figures.bars(shown, width, height - 1, self.glyphs, full)
        return [("dim", head), *(("green", line) for line in drawn)]
