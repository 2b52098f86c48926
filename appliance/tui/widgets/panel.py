"""A widget that draws one of the panels; with `scrolls` it is as high as what it says."""

from __future__ import annotations

from collections.abc import Callable

from textual.geometry import Size

from appliance.status import TopSnapshot
from appliance.tui.text import Line
from appliance.tui.told import Told
from appliance.tui.widgets.lines import Lines

Drawing = Callable[[Told, TopSnapshot, int, int], list[Line]]
"""(told, the snapshot that is shown, width, height) -> lines"""


class Panel(Lines):
    def __init__(
        self, told: Told, drawing: Drawing, *, scrolls: bool = False, id: str = "panel"
    ) -> None:
        super().__init__(told, id=id)
        self._drawing = drawing
        self.set_class(scrolls, "-scrolls")

    def lines(self, width: int, height: int) -> list[Line]:
        return self._drawing(self.told, self.top or TopSnapshot(), width, height)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self.lines(width, 10_000))
