"""The log book: ring, filter, rotation, followers, a disk that refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.supervisor.logs import KEPT_FILES, Filter, LogBook, read_file

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
    for wanted, ends in (
        (Filter(since="2026-11-20T12:00:02"), ["fails", "trace", "ends"]),
        (Filter(until="2026-11-20T12:00:02.000"), ["begins", "fails", "trace"]),
        (Filter(holds=("req-1",)), ["begins", "ends"]),
        (Filter(since="2026-11-20T12:00:02", holds=("req-1", "ends")), ["ends"]),
    ):
        assert [line.text.split()[-1] for line in book.tail(9, wanted)] == ends
        assert [text.split()[-1] for text in read_file(path, 9, wanted)] == ends
    book.close()
