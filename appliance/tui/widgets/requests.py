"""The table of requests: updated in place, so that cursor and scroll stay."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.strip import Strip
from textual.widgets import DataTable

from appliance.status import RequestRow
from appliance.tui import tables
from appliance.tui.styles import STYLES
from appliance.tui.tables import Column
from appliance.tui.text import Glyphs, fit

_SCROLLBAR = 2


class Requests(DataTable[Text]):
    """Filtered and sorted as asked; the columns are those that fit its width.

    Live requests stand before those that have ended. notice: stands there while it has no row.
    """

    def __init__(self, glyphs: Glyphs, *, id: str | None = None) -> None:
        super().__init__(id=id, cursor_type="row", zebra_stripes=False, cell_padding=1)
        self.glyphs = glyphs
        self.words = ""
        self.notice = ""
        self.sort_name = "age"
        self.descending = False
        self._shown: tuple[Column, ...] = ()
        self._newest: Sequence[RequestRow] = ()
        self._ended: Sequence[RequestRow] = ()
        self._order: list[str] = []

    def show(self, rows: Sequence[RequestRow], ended: Sequence[RequestRow] = ()) -> None:
        if (rows, ended) != (self._newest, self._ended):
            self._newest, self._ended = rows, ended
            self._draw()

    def tell(self, notice: str) -> None:
        if notice != self.notice:
            self.notice = notice
            self.refresh()

    def render_line(self, y: int) -> Strip:
        if self.row_count or y != (2 if self.size.height > 3 else 1):
            return super().render_line(y)
        width = self.size.width
        style = Style.parse(STYLES[self.app.current_theme.dark]["dim"])
        ground = Style(bgcolor=self.rich_style.bgcolor)
        text = fit(f" {self.notice}", width, self.glyphs)
        return Strip([Segment(text, ground + style)], width)

    @property
    def chosen(self) -> str:
        """The id under the cursor; empty when there is none."""
        if not 0 <= self.cursor_row < self.row_count:
            return ""
        key = self.coordinate_to_cell_key(self.cursor_coordinate).row_key
        return str(key.value or "")

    def restyle(self) -> None:
        """Its cells anew, for the theme has changed."""
        self._draw()

    def filter(self, words: str) -> None:
        self.words = words
        self._draw()

    def sort_by_next(self, step: int = 1) -> None:
        names = [column.name for column in self._shown] or ["age"]
        at = names.index(self.sort_name) if self.sort_name in names else -1
        self.sort_name = names[(at + step) % len(names)]
        self._start_over()

    def reverse(self) -> None:
        self.descending = not self.descending
        self._start_over()

    def on_resize(self) -> None:
        if self._fitting() != self._shown:
            self._start_over()

    def _fitting(self) -> tuple[Column, ...]:
        return tables.columns_for(self.size.width - _SCROLLBAR)

    def _start_over(self) -> None:
        """Columns anew: their set or the sort mark has changed."""
        kept = self.cursor_row
        self._shown = self._fitting()
        self.clear(columns=True)
        self._order = []
        mark = self.glyphs.falling if self.descending else self.glyphs.rising
        for column in self._shown:
            name = column.name + (mark if column.name == self.sort_name else "")
            label = fit(name, column.width, self.glyphs, right=column.right)
            self.add_column(Text(label), width=column.width, key=column.name)
        self._draw()
        if self.row_count:
            self.move_cursor(row=min(kept, self.row_count - 1))

    def _draw(self) -> None:
        if not self._shown:
            return
        unique: dict[str, RequestRow] = {}
        for some in (self._newest, self._ended):
            column = tables.COLUMNS[self.sort_name]
            for row in tables.chosen_requests(some, self.words, column, self.descending):
                unique.setdefault(row.id, row)
        for gone in [key for key in self._order if key not in unique]:
            self.remove_row(gone)
        known = [key for key in self._order if key in unique]
        for key in known:
            for column, cell in zip(self._shown, self._cells(unique[key]), strict=True):
                if self.get_cell(key, column.name) != cell:
                    self.update_cell(key, column.name, cell)
        added = [key for key in unique if key not in set(known)]
        for key in added:
            self.add_row(*self._cells(unique[key]), key=key)
        self._order = list(unique)
        if known + added != self._order:
            self._sort_rows(unique)

    def _sort_rows(self, wanted: dict[str, RequestRow]) -> None:
        """The table sorts by cells: a row's place is found by the cell that shows its id."""
        place = {self._cells(row)[0].plain: i for i, row in enumerate(wanted.values())}
        first = self._shown[0].name
        self.sort(first, key=lambda cell: place.get(cell.plain, 0))

    def _cells(self, row: RequestRow) -> list[Text]:
        g, styles = self.glyphs, STYLES[self.app.current_theme.dark]
        return [
            Text.assemble(
                (fit(c.cell(row, g), c.width, g, right=c.right), styles[c.style(row)]),
                no_wrap=True,
            )
            for c in self._shown
        ]
