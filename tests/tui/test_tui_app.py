"""The dashboard under Textual's Pilot, fed by a source in memory."""

import threading

import fakecontrol
import msgspec
import pytest

from appliance.errors import NotRunningError
from appliance.status import TopSnapshot
from appliance.tui.app import TopApp
from appliance.tui.poller import LONGEST_S, SHORTEST_S
from appliance.tui.widgets.lines import Alerts, Figure, Gpus, Log, Title
from appliance.tui.widgets.requests import Requests
from appliance.tui.widgets.throughput import History

PLAN = {"answers": [
    {"field": "engine.tp", "value": 2, "source": "profile h100x2-bf16", "reason": "two GPUs"},
    {"field": "schedule.chunk", "value": 4096, "source": "flag", "reason": "--set"},
]}  # fmt: skip
SIZES = [(140, 42), (100, 30), (100, 28), (80, 24), (60, 16), (40, 12), (40, 10)]


class Source:
    """Answers with what it holds; None: nobody is there."""

    def __init__(self, shown: TopSnapshot | None) -> None:
        self.shown = shown
        self.asked = 0
        self.drained = threading.Event()
        self.changed = threading.Event()
        self.told_plan: dict = PLAN
        self.cancelled: list[str] = []

    def top(self, history: int = 900, lines: int = 50) -> TopSnapshot:
        self.asked += 1
        if self.shown is None:
            raise NotRunningError("nothing runs under the name 'default'.", "appliance up")
        return self.shown

    def plan(self) -> dict:
        return self.told_plan

    def cancel(self, id: str) -> None:
        self.cancelled.append(id)
        self.changed.set()

    def down(self, drain_s: float = 30.0) -> None:
        self.drained.set()


async def until(pilot, condition) -> None:
    for _ in range(4000):
        if condition():
            await pilot.pause()
            return
        await pilot.pause(0.01)
    raise AssertionError("the dashboard did not come to it")


def came(app, source) -> bool:
    """The dashboard has been told what the source shows now."""
    newest = app.told.newest
    return newest is not None and msgspec.structs.replace(newest, history={}) == (
        msgspec.structs.replace(source.shown, history={})
    )


async def first_frame(pilot, app) -> None:
    await until(pilot, lambda: app.told.newest is not None)


def text_of(app) -> str:
    return "\n".join(
        "".join(segment.text for segment in strip)
        for strip in app.screen._compositor.render_strips()
    )


def ids(app) -> list[str]:
    table = app.dashboard.query_one(Requests)
    return [table.get_row_at(i)[0].plain.strip() for i in range(table.row_count)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ascii", [False, True])
async def test_nothing_passes_the_right_edge(size, ascii):
    app = TopApp(Source(fakecontrol.snapshot(8, 60)), interval=0.25, ascii=ascii)
    async with app.run_test(size=size) as pilot:
        await first_frame(pilot, app)
        for widget in app.screen.query("*"):
            if widget.display and widget.region:
                assert widget.region.right <= size[0] and widget.region.bottom <= size[1], widget
        shown = text_of(app)
        assert "READY" in shown and "11,263" in shown and "71%" in shown and "q quit" in shown
        assert not ascii or shown.isascii()
        table = app.dashboard.query_one(Requests)
        assert table.virtual_size.width <= table.size.width or not table.display
        if size[1] >= 16:
            assert table.size.height - 1 >= 3  # one line is the head
        assert app.dashboard.query_one(Gpus).display is (size[0] >= 100 and size[1] >= 28)


async def test_too_small_says_so():
    app = TopApp(Source(fakecontrol.snapshot()))
    async with app.run_test(size=(32, 8)) as pilot:
        await first_frame(pilot, app)
        assert "needs 40×10, this is 32×8" in text_of(app)
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert "READY" in text_of(app) and "needs" not in text_of(app)


async def test_a_machine_without_gpu_shows_its_cpu():
    app = TopApp(Source(fakecontrol.snapshot(gpus=0)))
    async with app.run_test(size=(120, 40)) as pilot:
        await first_frame(pilot, app)
        assert "CPU (no GPU)" in app.dashboard.query_one(Gpus).text
        assert "40%" in app.dashboard.query_one(Gpus).text


async def test_starting_shows_phase_and_progress():
    top = TopSnapshot(state="starting", phase="load", progress=0.5, detail="3 of 4 shards")
    app = TopApp(Source(top))
    async with app.run_test(size=(80, 24)) as pilot:
        await first_frame(pilot, app)
        assert "STARTING 4/8 load 50%" in app.dashboard.query_one(Title).text
        assert "3 of 4 shards" in app.dashboard.query_one(Alerts).text


async def test_pause_keeps_the_frame_and_catches_up():
    source = Source(fakecontrol.snapshot())
    app = TopApp(source, interval=0.25)
    async with app.run_test(size=(80, 24)) as pilot:
        await first_frame(pilot, app)
        await pilot.press("p")
        assert "PAUSED" in app.dashboard.query_one(Title).text
        source.shown = fakecontrol.snapshot(throughput={"gen_tok_s": 77.0})
        await until(pilot, lambda: came(app, source))
        assert "11,263" in app.dashboard.query_one("#figure-0", Figure).text
        await pilot.press("space")
        assert "77" in app.dashboard.query_one("#figure-0", Figure).text
        assert "PAUSED" not in app.dashboard.query_one(Title).text


async def test_the_filter_narrows_and_escape_clears():
    app = TopApp(Source(fakecontrol.snapshot(requests=4)))
    async with app.run_test(size=(80, 24)) as pilot:
        await first_frame(pilot, app)
        await pilot.press("slash", *"team")
        await pilot.pause()
        assert ids(app) == ["req-0000", "req-0002"]
        await pilot.press("enter")
        assert app.focused is app.dashboard.query_one(Requests)
        assert app.dashboard.query_one("#filter").display
        await pilot.press("escape")
        await pilot.pause()
        assert len(ids(app)) == 4 and not app.dashboard.query_one("#filter").display
        await pilot.press("slash", "exclamation_mark", *"team")
        await pilot.pause()
        assert ids(app) == ["req-0001", "req-0003"]


async def test_sort_goes_through_the_columns_and_reverses():
    app = TopApp(Source(fakecontrol.snapshot(requests=3)))
    async with app.run_test(size=(80, 24)) as pilot:
        await first_frame(pilot, app)
        table = app.dashboard.query_one(Requests)
        assert table.sort_name == "age" and ids(app)[0] == "req-0000"
        await pilot.press("r")
        assert ids(app) == ["req-0002", "req-0001", "req-0000"]
        await pilot.press("r", "s")
        assert table.sort_name == "id"
        await pilot.press("comma", "comma")
        assert table.sort_name == "tok/s"
        assert ids(app) == ["req-0002", "req-0001", "req-0000"]


async def test_rows_come_go_and_change_in_place():
    source = Source(fakecontrol.snapshot(requests=6))
    app = TopApp(source, interval=0.25)
    async with app.run_test(size=(80, 24)) as pilot:
        await first_frame(pilot, app)
        table = app.dashboard.query_one(Requests)
        table.move_cursor(row=3)
        rows = [fakecontrol.request(0, output_tokens=99), fakecontrol.request(5),
                fakecontrol.request(2, age_s=0.5), fakecontrol.request(7)]  # fmt: skip
        source.shown = TopSnapshot(state="ready", requests=rows)
        await until(pilot, lambda: came(app, source))
        assert ids(app) == ["req-0000", "req-0002", "req-0005", "req-0007"]
        assert "99/512" in table.get_row_at(0)[4].plain


@pytest.mark.parametrize("size", [(80, 24), (60, 16)])
async def test_g_and_l_swap_the_lower_half(size):
    app = TopApp(Source(fakecontrol.snapshot()))
    async with app.run_test(size=size) as pilot:
        await first_frame(pilot, app)
        await pilot.press("g")
        await pilot.pause()
        assert "612" in text_of(app) and "req-0001" not in text_of(app)
        await pilot.press("l")
        await pilot.pause()
        assert "WARNING engine-0" in text_of(app) and "612" not in text_of(app)
        await pilot.press("l")
        await pilot.pause()
        assert "req-0001" in text_of(app)


async def test_g_l_and_t_on_a_wide_screen():
    app = TopApp(Source(fakecontrol.snapshot()))
    async with app.run_test(size=(140, 42)) as pilot:
        await first_frame(pilot, app)
        history = app.dashboard.query_one(History)
        assert "gen tok/s, last" in text_of(app) and "█" in history.text
        await pilot.press("t", "t", "t", "t")
        assert history.metric == "kv_ratio" and "at most 50%" in history.head
        await pilot.press("g", "l")
        assert not app.dashboard.query_one(Gpus).display
        assert not app.dashboard.query_one(Log).display
        await pilot.press("g", "l")
        assert app.dashboard.query_one(Gpus).display


async def test_help_opens_and_any_key_closes_it():
    app = TopApp(Source(fakecontrol.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        await first_frame(pilot, app)
        await pilot.press("question_mark")
        await pilot.pause()
        assert "!word leaves out" in text_of(app) and "drain" in text_of(app)
        await pilot.press("x")
        assert app.screen is app.dashboard


async def test_the_interval_has_limits():
    app = TopApp(Source(fakecontrol.snapshot()), interval=1.0)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press(*["plus"] * 6)
        assert app.poller.interval == SHORTEST_S
        await pilot.press(*["minus"] * 9)
        assert app.poller.interval == LONGEST_S


async def test_unreachable_keeps_the_last_frame_and_comes_back():
    source = Source(fakecontrol.snapshot())
    app = TopApp(source, interval=0.25)
    async with app.run_test(size=(80, 24)) as pilot:
        await first_frame(pilot, app)
        source.shown = None
        await until(pilot, lambda: app.told.away_since is not None)
        assert "UNREACHABLE 0s" in app.dashboard.query_one(Title).text
        assert "11,263" in text_of(app) and "nothing runs" in text_of(app)
        source.shown = fakecontrol.snapshot(throughput={"gen_tok_s": 5.0})
        await until(pilot, lambda: came(app, source))
        assert "READY" in app.dashboard.query_one(Title).text
        assert "nothing runs" not in text_of(app)


async def test_nobody_there_from_the_start():
    source = Source(None)
    app = TopApp(source)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.told.away_since is not None)
        assert "UNREACHABLE" in text_of(app)
        await pilot.press("s", "t", "g", "p", "p", "slash", "x", "escape")
        assert app.is_running


@pytest.mark.parametrize("size", SIZES)
async def test_hostile_names_are_inert(size):
    app = TopApp(Source(fakecontrol.hostile()))
    async with app.run_test(size=size) as pilot:
        await first_frame(pilot, app)
        for key in ("", "l", "g", "g"):
            if key:
                await pilot.press(key)
                await pilot.pause()
            shown = text_of(app)
            assert "\x1b" not in shown and "\u202e" not in shown and "\r" not in shown
        assert "[red]" in shown or "[bold]" in shown  # markup is shown, not obeyed


async def test_d_drains_after_a_yes_only():
    source = Source(fakecontrol.snapshot())
    app = TopApp(source)
    async with app.run_test(size=(80, 24)) as pilot:
        await first_frame(pilot, app)
        await pilot.press("d", "n")
        assert not source.drained.is_set() and app.screen is app.dashboard
        await pilot.press("d", "y")
        await until(pilot, source.drained.is_set)


async def test_readonly_has_no_key_that_changes_anything():
    source = Source(fakecontrol.snapshot())
    app = TopApp(source, readonly=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await first_frame(pilot, app)
        await pilot.press("d")
        assert app.screen is app.dashboard
        await pilot.press("question_mark")
        await pilot.pause()
        assert "drain" not in text_of(app)


async def test_q_quits():
    app = TopApp(Source(fakecontrol.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        await first_frame(pilot, app)
        await pilot.press("q")
        await pilot.pause()
    assert app.return_code == 0
