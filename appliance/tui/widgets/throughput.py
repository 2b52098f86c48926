"""One figure over time, as bars."""

from __future__ import annotations

from appliance.tui import figures
from appliance.tui.figures import Glyphs
from appliance.tui.widgets.lines import Lines


class History(Lines):
    """The last seconds of one metric of the history, the largest of each column's seconds."""

    def __init__(self, glyphs: Glyphs, *, id: str | None = None) -> None:
        super().__init__(glyphs, id=id)
        self.metric: figures.Metric = "gen_tok_s"

    def next_metric(self) -> None:
        names = list(figures.METRICS)
        self.metric = names[(names.index(self.metric) + 1) % len(names)]
        self.refresh()

    def lines(self, width: int, height: int) -> list[tuple[str, str]]:
        values = self.top.history.get(self.metric, []) if self.top else []
        shown, seconds = figures.buckets(values, width)
        ratio = self.metric == "kv_ratio"
        largest = max(shown, default=0.0)
        peak = figures.percent(largest) if ratio else figures.whole(largest)
        span = figures.duration(len(shown) * seconds)
        head = f"{figures.METRICS[self.metric]}, last {span}, at most {peak}"
        drawn = figures.bars(shown, width, height - 1, self.glyphs, 1.0 if ratio else 0.0)
        return [("dim", head), *(("green", line) for line in drawn)]
