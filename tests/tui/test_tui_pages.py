"""Every page at every size, what may be changed and what may not, and pictures of the demo."""

import os
from pathlib import Path

import fakecontrol
import msgspec
import pytest
from test_tui_app import SIZES, Source, first_frame, text_of, until

from appliance.status import TopSnapshot
from appliance.tui.app import TopApp
from appliance.tui.poller import FEW_LINES, MANY_LINES
from appliance.tui.screens.dialogs import Detail, Question
from appliance.tui.screens.page import NAMES
from appliance.tui.source import DEMO, Replay
from appliance.tui.widgets.requests import Requests

GOLDEN = Path(__file__).parent / "golden"
DOCS = Path(__file__).parent.parent.parent / "docs"
SCREENS = DOCS / "screens"
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
        assert "http" not in svg.replace("http://www.w3.org/", "").replace("http://127.0.0.1", "")
