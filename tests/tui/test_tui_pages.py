"""Every page at every size, what may be changed and what may not, and pictures of the demo."""

import json
import os
import re
import shlex
import threading
from pathlib import Path

import fakecontrol
import msgspec
import pytest
from test_tui_app import SIZES, Source, first_frame, text_of, until

from appliance.status import ClientRow, PrefixRow, TopSnapshot
from appliance.tui.app import TopApp
from appliance.tui.poller import FEW_LINES, MANY_LINES
from appliance.tui.screens.dashboard import heights
from appliance.tui.screens.dialogs import Detail, Question
from appliance.tui.screens.page import NAMES
from appliance.tui.source import DEMO, Replay
from appliance.tui.styles import STYLES
from appliance.tui.widgets.requests import Requests

GOLDEN = Path(__file__).parent / "golden"
DOCS = Path(__file__).parent.parent.parent / "docs"
SCREENS = DOCS / "screens"
URL = re.compile('https?://([^:/"<]+)')
WORDS = {False: "dark", True: "light"}


async def go(pilot, app, number: int) -> None:
    await pilot.press(str(number))
    await until(pilot, lambda: app.screen is app.pages[number - 1] and app.screen.is_mounted)


def check_edges(app, size) -> None:
    for widget in app.screen.query("*"):
        if widget.display and widget.region:
            assert widget.region.right <= size[0] and widget.region.bottom <= size[1], widget


@pytest.mark.parametrize(
    "size, ascii", [*((size, False) for size in SIZES), ((100, 30), True), ((40, 12), True)]
)
async def test_every_page_stays_inside(size, ascii):
    app = TopApp(Source(fakecontrol.snapshot(8, 60)), interval=0.25, ascii=ascii)
    async with app.run_test(size=size) as pilot:
        await first_frame(pilot, app)
        for number in range(1, len(NAMES) + 1):
            await go(pilot, app, number)
            check_edges(app, size)
            shown = text_of(app)
            assert "READY" in shown and "q quit" in shown
            assert not ascii or shown.isascii()
        await go(pilot, app, 2)
        table = app.screen.query_one(Requests)
        assert table.size.height - 1 >= 3
        assert table.virtual_size.width <= table.size.width


@pytest.mark.parametrize(
    "top",
    [fakecontrol.hostile(), TopSnapshot(), fakecontrol.snapshot(0, 0)],
    ids=["bad", "no", "0"],
)
async def test_every_page_bears_anything(top):
    source = Source(top)
    source.told_plan = {
        "answers": [{"field": fakecontrol.ESCAPE, "value": fakecontrol.ESCAPE, "reason": None}]
    }
    app = TopApp(source, interval=0.25)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.told.newest is not None and bool(app.told.plan))
        for number in range(1, len(NAMES) + 1):
            await go(pilot, app, number)
            assert all(line.isprintable() for line in text_of(app).split("\n"))


async def test_tab_turns_the_pages_and_back():
    app = TopApp(Source(fakecontrol.snapshot()))
    async with app.run_test(size=(100, 30)) as pilot:
        await first_frame(pilot, app)
        for number in (2, 3, 4, 5, 6, 7, 1):
            await pilot.press("tab")
            assert app.page.number == number and app.screen is app.page
        await pilot.press("shift+tab")
        assert app.page.number == 7


async def test_requests_page_shows_those_that_ended_after_those_that_live():
    app = TopApp(Source(fakecontrol.snapshot(requests=2)))
    async with app.run_test(size=(100, 30)) as pilot:
        await first_frame(pilot, app)
        await go(pilot, app, 2)
        table = app.screen.query_one(Requests)
        await until(pilot, lambda: table.row_count == 3)
        rows = [[cell.plain.strip() for cell in table.get_row_at(i)][:2] for i in range(3)]
        assert rows == [["req-0000", "decode"], ["req-0001", "decode"], ["req-0090", "stop"]]


async def test_gpu_page_names_strangers_and_power():
    top = fakecontrol.snapshot(2)
    top.gpus[1]["processes"] = [
        {"pid": 4121, "name": "python", "memory_bytes": 5 << 30, "ours": False},
        {"pid": 9, "name": "mine", "memory_bytes": 5 << 30, "ours": True},
    ]
    app = TopApp(Source(top))
    async with app.run_test(size=(120, 40)) as pilot:
        await first_frame(pilot, app)
        await go(pilot, app, 3)
        shown = text_of(app)
        assert "1,220 W in all" in shown and "9.23 tokens/J" in shown and "2.00 kWh" in shown
        assert "pid 4121 'python' holds 5.0 GiB" in shown and "mine" not in shown
        assert "slowed by power" in shown


async def test_latency_cache_and_config_pages():
    app = TopApp(Source(fakecontrol.snapshot()))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: bool(app.told.plan) and app.told.newest is not None)
        await go(pilot, app, 4)
        assert "<250 ms" in text_of(app) and "more" in text_of(app) and " 70" in text_of(app)
        await go(pilot, app, 5)
        assert "in use 4.5M (71%)" in text_of(app) and "hit 83% in the last minute" in text_of(app)
        await go(pilot, app, 7)
        assert "schedule.chunk  4096" in text_of(app) and "flag: --set" in text_of(app)


async def test_logs_page_asks_for_more_filters_and_scrolls():
    lines = [f"2026-11-20T12:00:01.000Z INFO    engine-0 line {i}" for i in range(100)]
    lines[7] = "2026-11-20T12:00:01.000Z WARNING engine-0 retracted"
    source = Source(fakecontrol.snapshot(log_tail=lines))
    app = TopApp(source, interval=0.25)
    async with app.run_test(size=(80, 24)) as pilot:
        await first_frame(pilot, app)
        assert app.poller.lines == FEW_LINES
        await go(pilot, app, 6)
        assert app.poller.lines == MANY_LINES
        assert "line 99" in text_of(app) and "line 60" not in text_of(app)
        await pilot.press("home")
        assert "line 0" in text_of(app) and "line 99" not in text_of(app)
        await pilot.press("end", "w")
        assert "retracted" in text_of(app) and "line 99" not in text_of(app)
        await pilot.press("w", "slash", *"!line", "enter")
        assert "retracted" in text_of(app) and "line 1" not in text_of(app)
        await pilot.press("escape")
        assert "line 99" in text_of(app)
        await go(pilot, app, 1)
        assert app.poller.lines == FEW_LINES


async def test_detail_follows_its_request_and_leads_to_its_log():
    lines = ["2026-11-20T12:00:01.000Z INFO    x req-0001 admitted", "other"]
    source = Source(fakecontrol.snapshot(requests=2, log_tail=lines))
    app = TopApp(source, interval=0.25)
    async with app.run_test(size=(100, 30)) as pilot:
        await first_frame(pilot, app)
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(app.screen, Detail) and app.screen.is_mounted)
        shown = text_of(app)
        assert "req-0001" in shown and "41 of at most 512" in shown and "admitted" in shown
        source.shown = fakecontrol.snapshot(
            requests=0, finished=[fakecontrol.request(1, phase="done", finish="length")]
        )
        await until(pilot, lambda: "ended: length" in text_of(app))
        source.shown = fakecontrol.snapshot(log_tail=lines)
        await pilot.press("l")
        await until(pilot, lambda: app.page.number == 6 and "admitted" in text_of(app))
        await until(pilot, lambda: "other" not in text_of(app))


@pytest.mark.parametrize("way", ["table", "detail"])
async def test_cancel_asks_first(way):
    source = Source(fakecontrol.snapshot(requests=3))
    app = TopApp(source, interval=0.25)
    async with app.run_test(size=(100, 30)) as pilot:
        await first_frame(pilot, app)
        await pilot.press("down", *(["enter"] if way == "detail" else []), "k")
        await until(pilot, lambda: isinstance(app.screen, Question))
        assert "Cancel request req-0001?" in text_of(app)
        await pilot.press("n")
        assert not source.cancelled
        await pilot.press("k")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("y")
        await until(pilot, source.changed.is_set)
        assert source.cancelled == ["req-0001"]


async def test_readonly_has_no_keys_that_change_anything():
    source = Source(fakecontrol.snapshot())
    app = TopApp(source, readonly=True)
    async with app.run_test(size=(100, 30)) as pilot:
        await first_frame(pilot, app)
        await pilot.press("k", "d")
        assert app.screen is app.dashboard
        bound = {binding.action for _, binding, *_ in app.screen.active_bindings.values()}
        assert not {"cancel", "drain"} & bound and "pause" in bound
        titles = {command.title for command in app.get_system_commands(app.screen)}
        assert not {"cancel request", "drain"} & titles
        await pilot.press("enter", "k")
        assert isinstance(app.screen, Detail) and "cancel" not in text_of(app)


async def test_the_palette_knows_the_pages():
    app = TopApp(Source(fakecontrol.snapshot()))
    async with app.run_test(size=(100, 30)) as pilot:
        await first_frame(pilot, app)
        await pilot.press("ctrl+p", *"latency")
        await until(pilot, lambda: "page 4" in text_of(app))
        await pilot.press("enter", "enter")
        await until(pilot, lambda: app.page.number == 4)


async def test_light_and_dark_and_alerts_with_their_age():
    top = fakecontrol.snapshot(
        at="2026-11-20T12:05:00Z",
        alerts=[{"code": "APL-ALR-003", "level": "warn", "since": "2026-11-20T12:00:00Z",
                 "message": "GPU 1 is slowed down: heat", "fix": "look at its cooling"}],
    )  # fmt: skip
    app = TopApp(Source(top))
    async with app.run_test(size=(100, 30)) as pilot:
        await first_frame(pilot, app)
        assert "! GPU 1 is slowed down: heat (5m00s): look at its cooling" in text_of(app)
        await pilot.press("D")
        assert not app.current_theme.dark
        await pilot.press("D")
        assert app.current_theme.dark


async def test_save_writes_json_and_svg(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = TopApp(Source(fakecontrol.snapshot()))
    async with app.run_test(size=(100, 30)) as pilot:
        await first_frame(pilot, app)
        await pilot.press("S")
        await until(pilot, lambda: len(list(tmp_path.iterdir())) == 2)
    (plain,) = tmp_path.glob("*.json")
    (picture,) = tmp_path.glob("*.svg")
    assert msgspec.json.decode(plain.read_bytes(), type=TopSnapshot).state == "ready"
    assert "READY" in picture.read_text()


BAD = {"code": "APL-ALR-011", "level": "error", "since": "2026-11-20T12:00:00Z",
       "message": "GPU 1: Xid 79: the GPU has fallen off the bus",
       "fix": "restart the machine; if it comes again, check the cables and power"}  # fmt: skip


@pytest.mark.parametrize("size", [(100, 28), (140, 40)])
@pytest.mark.parametrize("gpus", [1, 8, 16])
async def test_every_gpu_and_every_alert_leave_room_for_requests(size, gpus):
    top = fakecontrol.snapshot(gpus, 30, at="2026-11-20T12:05:00Z", alerts=[BAD, BAD, BAD])
    app = TopApp(Source(top), interval=10.0)
    async with app.run_test(size=size) as pilot:
        await first_frame(pilot, app)
        await pilot.pause()
        check_edges(app, size)
        table = app.screen.query_one(Requests)
        assert table.display and table.size.height >= 4
        shown = text_of(app)
        assert shown.count("Xid 79") == 3 and "(5m00s)" in shown
        assert "3 shows all" in shown or f" {gpus - 1:<4}  91%" in shown
        await go(pilot, app, 3)
        shown = text_of(app)
        assert all(f"GPU {i} " in shown for i in range(gpus))
        check_edges(app, size)


def test_the_table_keeps_its_least_and_the_log_goes_first():
    assert heights(28, 0, 3) == (7, 5) and heights(60, 0, 3) == (11, 9)
    assert heights(28, 3, 9) == (11, 0) and heights(28, 6, 17)[1] == 0
    for height in range(28, 80):
        for alerts in range(7):
            middle, log = heights(height, alerts, 17)
            assert height - 7 - alerts - middle - log >= 4, (height, alerts)


async def test_an_alert_too_long_for_its_line_tells_its_fix_on_the_next():
    app = TopApp(Source(fakecontrol.snapshot(at="2026-11-20T12:05:00Z", alerts=[BAD])))
    async with app.run_test(size=(80, 24)) as pilot:
        await first_frame(pilot, app)
        await pilot.pause()
        assert "fallen off the bus (5m00s)" in text_of(app) and "cables and power" in text_of(app)
        await pilot.resize_terminal(60, 16)
        await pilot.pause()
        assert "cables and power" not in text_of(app) and "fallen off the bus" in text_of(app)


async def test_y_copies_the_id_and_a_command_that_asks(monkeypatch):
    copied = []
    monkeypatch.setattr(TopApp, "copy_to_clipboard", lambda self, text: copied.append(text))
    top = fakecontrol.snapshot(requests=2, url="http://127.0.0.1:8000", model={"id": "it's"})
    app = TopApp(Source(top))
    async with app.run_test(size=(100, 30)) as pilot:
        await first_frame(pilot, app)
        await pilot.press("down", "y", "Y", "enter")
        await until(pilot, lambda: isinstance(app.screen, Detail) and app.screen.is_mounted)
        await pilot.press("y", "Y")
        await pilot.pause()
    assert copied[::2] == ["req-0001"] * 2 and copied[1] == copied[3]
    words = shlex.split(copied[1])
    assert words[:2] == ["curl", "http://127.0.0.1:8000/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == "it's"


async def test_who_asks_what_was_shared_and_engines_that_are_away():
    top = fakecontrol.snapshot(
        clients=[ClientRow("key:team-a", 12, 3, 48_000, 900, 610.0, 4.0)],
        prefixes=[PrefixRow(7, 2048, 1024, 400, 12), PrefixRow(9, 512, 512, 3, 0)],
        engines=[{"replica": 0.0, "generation": 2.0, "connected": 0.0, "running": 0.0}],
    )
    app = TopApp(Source(top))
    async with app.run_test(size=(100, 30)) as pilot:
        await first_frame(pilot, app)
        await go(pilot, app, 2)
        await until(pilot, lambda: "key:team-a    12       3" in text_of(app))
        await go(pilot, app, 5)
        shown = text_of(app)
        assert "#7" in shown and "410k" in shown and "1 engine away" in shown
        await pilot.resize_terminal(60, 16)
        await go(pilot, app, 2)
        check_edges(app, (60, 16))
        assert not app.screen.query_one("#clients").display


@pytest.mark.parametrize("state", ["degraded", "draining", "failed", "stopped"])
async def test_each_state_has_its_word(state):
    top = fakecontrol.snapshot(state=state, phase="load", progress=0.4, detail="engine 0 died")
    app = TopApp(Source(top))
    async with app.run_test(size=(100, 30)) as pilot:
        await first_frame(pilot, app)
        await pilot.pause()
        assert state.upper() in text_of(app)
        assert ("DEGRADED 4/8 load 40%" in text_of(app)) == (state == "degraded")
        assert ("! engine 0 died" in text_of(app)) == (state in ("degraded", "failed"))


async def test_before_the_first_answer_it_says_so_and_shows_no_zeros():
    source = Source(fakecontrol.snapshot())
    held = threading.Event()
    answer = source.top

    def late(history: int = 900, lines: int = 50) -> TopSnapshot:
        held.wait(60)
        return answer(history, lines)

    source.top = late
    app = TopApp(source)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        shown = text_of(app)
        assert "CONNECTING" in shown and "waiting for the server's first answer" in shown
        assert "– / –" in shown and " 0 " not in shown.replace(" 0 ms", "")
        held.set()
        await first_frame(pilot, app)
        await until(pilot, lambda: "READY" in text_of(app))


async def test_help_is_read_to_its_end_on_the_smallest_terminal():
    app = TopApp(Source(fakecontrol.snapshot()))
    async with app.run_test(size=(40, 10)) as pilot:
        await first_frame(pilot, app)
        await pilot.press("question_mark")
        await until(pilot, lambda: "quit; the server" in text_of(app))
        assert app.screen.query_one("#help").region.bottom <= 10
        await pilot.press("end")
        await until(pilot, lambda: "drain and stop" in text_of(app))
        await pilot.press("x")
        assert app.screen is app.dashboard


async def test_the_light_theme_colours_the_table_too():
    top = TopSnapshot(state="ready", requests=[fakecontrol.request(0, phase="prefill")])
    app = TopApp(Source(top))
    async with app.run_test(size=(100, 30)) as pilot:
        await first_frame(pilot, app)
        for dark in (True, False):
            (cell,) = app.screen.query_one(Requests).get_row_at(0)[1].spans
            assert str(cell.style) == STYLES[dark]["info"]
            await pilot.press("D")


@pytest.mark.parametrize("size", [(140, 42), (100, 30), (80, 24), (60, 16), (40, 12)])
async def test_the_demo_looks_as_it_did(size):
    """Golden pictures. APPLIANCE_GOLDEN=1 draws them anew."""
    replay = Replay(DEMO, clock=lambda: 0.0)
    app = TopApp(replay, interval=10.0, readonly=True, label=replay.label)
    pages = range(1, len(NAMES) + 1) if size == (100, 30) else (1,)
    drawn = ""
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.told.newest is not None and bool(app.told.plan))
        for number in pages:
            await go(pilot, app, number)
            drawn += "\n".join(line.rstrip() for line in text_of(app).split("\n")) + "\n\n"
    file = GOLDEN / f"demo-{size[0]}x{size[1]}.txt"
    if os.environ.get("APPLIANCE_GOLDEN"):
        file.write_text(drawn)
    assert drawn == file.read_text()


@pytest.mark.parametrize("light", [False, True])
async def test_the_pictures_of_the_documents_are_what_it_draws(light, monkeypatch):
    """Colours and all. `python docs/write_screens.py` draws them anew."""
    monkeypatch.syspath_prepend(str(DOCS))
    import write_screens

    drawn = await write_screens.draw(light)
    assert drawn and set(drawn) == {f.name for f in SCREENS.glob(f"*-{WORDS[light]}.svg")}
    for name, svg in drawn.items():
        assert svg == (SCREENS / name).read_text(), f"{name} has changed"
        assert {host for host in URL.findall(svg)} <= {"www.w3.org", "127.0.0.1"}
