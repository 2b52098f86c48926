"""Keys and colours that the other files do not press and do not look at."""

import fakecontrol
import pytest
from test_tui_app import Source, came, first_frame, ids, text_of, until
from test_tui_terminal import dashboard

from appliance.status import TopSnapshot
from appliance.tui.app import TopApp
from appliance.tui.graphs import METRICS
from appliance.tui.screens.dialogs import Detail
from appliance.tui.widgets.lines import Log
from appliance.tui.widgets.requests import Requests
from appliance.tui.widgets.throughput import History


@pytest.mark.parametrize("key", ["h", "f1", "question_mark"])
async def test_each_key_of_help_opens_it(key):
    app = TopApp(Source(fakecontrol.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        await first_frame(pilot, app)
        await pilot.press(key)
        await until(pilot, lambda: "!word leaves out" in text_of(app))


async def test_a_full_stop_takes_the_next_column_and_a_comma_the_one_before():
    app = TopApp(Source(fakecontrol.snapshot(requests=3)))
    async with app.run_test(size=(80, 24)) as pilot:
        await first_frame(pilot, app)
        table = app.dashboard.query_one(Requests)
        await pilot.press("full_stop")
        assert table.sort_name == "id"
        await pilot.press("comma")
        assert table.sort_name == "age"


async def test_escape_leads_back_from_a_request():
    app = TopApp(Source(fakecontrol.snapshot(requests=2)))
    async with app.run_test(size=(100, 30)) as pilot:
        await first_frame(pilot, app)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Detail) and app.screen.is_mounted)
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.dashboard)


async def test_t_goes_through_every_figure_and_begins_again():
    app = TopApp(Source(fakecontrol.snapshot()))
    async with app.run_test(size=(140, 42)) as pilot:
        await first_frame(pilot, app)
        history = app.dashboard.query_one(History)
        seen = []
        for _ in METRICS:
            seen.append(history.metric)
            assert history.head.startswith(METRICS[history.metric])
            await pilot.press("t")
        assert seen == list(METRICS) and history.metric == seen[0]


async def test_the_cursor_stays_on_its_request():
    source = Source(fakecontrol.snapshot(requests=6))
    app = TopApp(source, interval=0.25)
    async with app.run_test(size=(80, 24)) as pilot:
        await first_frame(pilot, app)
        table = app.dashboard.query_one(Requests)
        table.move_cursor(row=5)
        assert ids(app)[table.cursor_row] == "req-0005"
        rows = [fakecontrol.request(n) for n in (0, 2, 5, 7)]
        source.shown = TopSnapshot(state="ready", requests=rows)
        await until(pilot, lambda: came(app, source))
        assert ids(app)[table.cursor_row] == "req-0005"


async def test_a_warning_has_its_colour_in_the_log():
    lines = [
        "2026-11-20T12:00:01.000Z INFO    engine-0 calm",
        "2026-11-20T12:00:02.000Z WARNING engine-0 odd",
        "2026-11-20T12:00:03.000Z ERROR   engine-0 bad",
    ]
    app = TopApp(Source(fakecontrol.snapshot(log_tail=lines)))
    async with app.run_test(size=(140, 42)) as pilot:
        await first_frame(pilot, app)
        drawn = app.dashboard.query_one(Log).render()
        style = {
            drawn.plain[span.start : span.end].strip(): str(span.style) for span in drawn.spans
        }
        assert len({style.get(word, "") for word in ("calm", "odd", "bad")}) == 3


def test_ctrl_c_leaves_as_q_does(tmp_path):
    control = tmp_path / "default" / "control.sock"
    control.parent.mkdir()
    with (
        fakecontrol.serving(control, fakecontrol.snapshot()),
        dashboard(APPLIANCE_RUNTIME_DIR=str(tmp_path)) as terminal,
    ):
        terminal.sees("READY", "q quit")
        terminal.keys("\x03")
        assert "The server keeps running" in terminal.rest()
        assert terminal.process.wait(20) == 0
