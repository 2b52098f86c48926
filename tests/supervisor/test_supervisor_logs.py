"""The log book: ring, filter, rotation, followers, a disk that refuses."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from pathlib import Path

import pytest
from supervisor_stage import staged

from appliance import paths
from appliance.log import rotated
from appliance.supervisor import daemon
from appliance.supervisor.logs import (
    KEPT_FILES,
    Filter,
    Line,
    LogBook,
    journal_text,
    on_journal,
    read_file,
)

LINE = "2026-11-20T12:00:01.123Z {level:<7} {who} {text}"


def say(book: LogBook, component: str, level: str, text: str) -> None:
    book.add(component, LINE.format(level=level, who=component, text=text))


def test_filter_by_component_and_level(tmp_path: Path) -> None:
    book = LogBook(tmp_path / "run.log")
    say(book, "engine-0", "INFO", "loaded")
    say(book, "engine-0.1", "ERROR", "out of memory")
    book.add("engine-0.1", "Traceback (most recent call last):")
    say(book, "frontend-0", "WARNING", "slow")
    say(book, "engine-1", "INFO", "loaded too")

    def texts(**wanted: str) -> list[str]:
        return [line.text.split()[-1] for line in book.tail(99, Filter(**wanted))]

    assert len(book.tail(99)) == 5
    assert texts(component="engine-0") == ["loaded", "memory", "last):"]
    assert texts(component="engine") == ["loaded", "memory", "last):", "too"]
    assert texts(level="error") == ["memory", "last):"]
    assert texts(component="frontend", level="warning") == ["slow"]
    assert [line.text for line in book.tail(1)] == [book.ring[-1].text]
    book.close()


def test_control_characters_are_inert(tmp_path: Path) -> None:
    book = LogBook(tmp_path / "run.log")
    book.add("engine-0", "a\x1b[2Jb\rc\td")
    assert book.ring[0].text == "a\\x1b[2Jb\\rc\td"
    book.close()


def test_rotates_and_keeps_so_many_files(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "run.log"
    book = LogBook(path, max_bytes=1000)
    for n in range(200):
        book.add("engine-0", f"line {n:03d} " + "x" * 50)
    book.close()
    files = sorted(path.parent.iterdir())
    assert len(files) == KEPT_FILES + 1
    assert all(f.stat().st_size <= 1000 for f in files)
    assert path.read_text().splitlines()[-1].startswith("line 199")
    assert path.stat().st_mode & 0o777 == 0o600


def test_full_disk_costs_the_file_only(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    book = LogBook(Path("/dev/full"))
    for n in range(10):
        book.add("engine-0", f"line {n}")
    assert [line.text for line in book.tail(2)] == ["line 8", "line 9"]
    assert book.writer.written(20) and book.writer.dropped == book.writer.missing == 10
    book.close()


async def test_followers_get_new_lines_and_the_end(tmp_path: Path) -> None:
    book = LogBook(tmp_path / "run.log")
    queue = book.follow()
    book.add("engine-0", "one")
    line = await queue.get()
    assert line is not None and line.text == "one"
    for n in range(2000):
        book.add("engine-0", f"{n}")
    book.close()
    got = []
    while (line := await queue.get()) is not None:
        got.append(line.text)
    assert got == [str(n) for n in range(1, 1000)]  # the first gave its place to the end


def test_file_of_an_ended_run_is_filtered_alike(tmp_path: Path) -> None:
    book = LogBook(tmp_path / "run.log")
    say(book, "engine-0", "ERROR", "broken")
    book.add("engine-0", "  File x")
    say(book, "supervisor", "INFO", "stopped")
    book.close()
    found = read_file(book.path, 10, Filter("engine", "error"))
    assert [line.split()[-1] for line in found] == ["broken", "x"]
    assert read_file(tmp_path / "none.log", 10, Filter()) == []


def test_lines_by_time_and_text(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    book = LogBook(path)
    book.add("engine-0", "2026-11-20T12:00:01.000Z INFO    engine-0 req-1 begins")
    book.add("engine-0", "2026-11-20T12:00:02.000Z ERROR   engine-0 req-2 fails")
    book.add("engine-0", "    with a trace")
    book.add("engine-0", "2026-11-20T12:00:03.000Z INFO    engine-0 req-1 ends")
    assert book.writer.written(20)
    for wanted, ends in (
        (Filter(since="2026-11-20T12:00:02"), ["fails", "trace", "ends"]),
        (Filter(until="2026-11-20T12:00:02.000"), ["begins", "fails", "trace"]),
        (Filter(holds=("req-1",)), ["begins", "ends"]),
        (Filter(since="2026-11-20T12:00:02", holds=("req-1", "ends")), ["ends"]),
    ):
        assert [line.text.split()[-1] for line in book.tail(9, wanted)] == ends
        assert [text.split()[-1] for text in read_file(path, 9, wanted)] == ends
    book.close()


def test_no_line_is_lost_or_cut_by_rotation(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    said = [f"{n:04d} " + "x" * (n % 90) for n in range(300)]
    book = LogBook(path, max_bytes=4000)
    for text in said[:150]:
        book.add("engine-0", text)
    book.close()
    book = LogBook(path, max_bytes=4000)  # the run that follows goes on in the same files
    for text in said[150:]:
        book.add("engine-0", text)
    book.close()
    files = rotated(path)
    assert [f.name for f in files] == ["run.log"] + [f"run.log.{n}" for n in range(1, len(files))]
    assert 3 < len(files) <= KEPT_FILES + 1
    written = [line for f in reversed(files) for line in f.read_text().splitlines()]
    assert written == said
    assert all(f.stat().st_size <= 4000 and f.stat().st_mode & 0o777 == 0o600 for f in files)
    assert read_file(path, 200, Filter()) == said[-200:]
    assert read_file(path, 1000, Filter(holds=("00",))) == [t for t in said if "00" in t]


async def test_who_follows_does_not_notice_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "LogBook", functools.partial(LogBook, max_bytes=2000))
    heard: list[str] = []
    followed, ended = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async with staged() as stage:
        await stage.heard("ready")

        def listen() -> None:
            for line in stage.client.follow_logs(5, holds=("count ",)):
                heard.append(line.rpartition(" ")[2])
                loop.call_soon_threadsafe(followed.set)
                if heard[-1] == "200":
                    break
            loop.call_soon_threadsafe(ended.set)

        logging.getLogger("appliance.test").warning("count 0")
        ear = asyncio.create_task(asyncio.to_thread(listen))
        async with asyncio.timeout(60):
            await followed.wait()
            for n in range(1, 201):
                logging.getLogger("appliance.test").warning("count %d", n)
                await asyncio.sleep(0)
            await ended.wait()
            await ear
        assert heard == [str(n) for n in range(201)]
    assert len(rotated(paths.supervisor_log(stage.run.name))) > 3


def test_a_disk_that_was_full_is_written_to_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = LogBook(tmp_path / "run.log")
    book.add("engine-0", "before")
    assert book.writer.written(20)
    real, room = os.write, [3]

    def short(fd: int, data: bytes) -> int:
        if not room:
            raise OSError(28, "No space left on device")
        return real(fd, data[: room.pop()])

    monkeypatch.setattr(os, "write", short)
    book.add("engine-0", "cut short")
    book.add("engine-0", "not written")
    assert book.writer.written(20) and book.writer.missing == 2
    monkeypatch.undo()
    book.add("engine-0", "after")
    book.close()
    before, note, after = (tmp_path / "run.log").read_text().splitlines()
    assert (before, after) == ("before", "after") and book.writer.missing == 0
    assert note.endswith("the log file can be written again; 2 line(s) are missing here")
    assert [line.text for line in book.tail(1)] == ["after"]


def test_the_journal_gets_priorities_and_no_second_time(tmp_path: Path) -> None:
    told: list[Line] = []
    book = LogBook(tmp_path / "run.log", echo=told.append)
    say(book, "engine-0", "ERROR", "broken <5>")
    book.add("engine-0", "  File x")
    say(book, "frontend-0", "INFO", "accepts")
    say(book, "supervisor", "WARNING", "slow")
    book.close()
    assert [journal_text(line) for line in told] == [
        "<3>engine-0 broken <5>",
        "<3>  File x",
        "<6>frontend-0 accepts",
        "<4>supervisor slow",
    ]


def test_the_journal_is_known_by_its_stream(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as file:
        st = os.fstat(file.fileno())
        told = {"JOURNAL_STREAM": f"{st.st_dev}:{st.st_ino}"}
        assert on_journal(file.fileno(), told)
        assert not on_journal(2, told) and not on_journal(file.fileno(), {})
        assert not on_journal(file.fileno(), {"JOURNAL_STREAM": "nonsense"})
    assert not on_journal(987_654, told)
