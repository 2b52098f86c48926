"""The ring between the ranks of an engine: every record, in order, to every reader."""

from __future__ import annotations

import random
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import EngineError
from appliance.runtime.wire.ring import RingReader, RingWriter

SMALL = 256


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ring"


def ends(path: Path, readers: int, capacity: int = SMALL) -> tuple[RingWriter, list[RingReader]]:
    writer = RingWriter(path, readers, capacity)
    return writer, [RingReader(path, readers, r, capacity) for r in range(1, readers + 1)]


def test_what_is_written_is_read_in_order(path: Path) -> None:
    writer, (reader,) = ends(path, 1)
    for record in (b"", b"a", b"12345678", b"123456789"):
        writer.write(record)
    assert [reader.read(1) for _ in range(4)] == [b"", b"a", b"12345678", b"123456789"]
    assert reader.read(0) is None


def test_ring_is_for_this_user_only(path: Path) -> None:
    ends(path, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@given(st.lists(st.binary(max_size=SMALL // 2 - 8), max_size=60), st.integers(0, 2**32))
@settings(max_examples=50)
def test_records_of_any_length_go_round(
    tmp_path_factory: pytest.TempPathFactory, records: list[bytes], seed: int
) -> None:
    """Two readers that fall behind by different amounts, over many turns of a small ring."""
    path = tmp_path_factory.mktemp("ring") / "ring"
    writer, readers = ends(path, 2)
    chance = random.Random(seed)
    got: list[list[bytes]] = [[], []]
    for record in records:
        while True:
            try:
                writer.write(record, timeout=0)
                break
            except EngineError:  # full: the slowest must read first
                slowest = min((0, 1), key=lambda r: len(got[r]))
                read = readers[slowest].read(0)
                assert read is not None
                got[slowest].append(read)
        for index, reader in enumerate(readers):
            if chance.random() < 0.5 and (read := reader.read(0)) is not None:
                got[index].append(read)
    for index, reader in enumerate(readers):
        while (read := reader.read(0)) is not None:
            got[index].append(read)
    assert got == [records, records]


def test_a_full_ring_waits_for_its_slowest_reader(path: Path) -> None:
    writer, (quick, slow) = ends(path, 2)
    record = bytes(56)  # 64 with its length: four fill the ring
    for _ in range(3):
        writer.write(record)
        assert quick.read(1) == record
    with pytest.raises(EngineError, match="stopped reading"):
        for _ in range(3):
            writer.write(record, timeout=0)
    assert slow.read(1) == record
    writer.write(record, timeout=0)


def test_a_record_larger_than_half_the_ring_is_refused(path: Path) -> None:
    writer, (reader,) = ends(path, 1)
    with pytest.raises(EngineError, match="larger than the ring"):
        writer.write(bytes(SMALL // 2))
    writer.write(b"still good")
    assert reader.read(1) == b"still good"


def test_reader_in_a_thread_hears_the_writer(path: Path) -> None:
    writer, (first, second) = ends(path, 2)
    records = [bytes([i % 251]) * (i % 90) for i in range(3000)]
    heard: dict[int, list[bytes | None]] = {}

    def listen(number: int, reader: RingReader) -> None:
        heard[number] = [reader.read(20) for _ in records]

    threads = [
        threading.Thread(target=listen, args=(number, reader))
        for number, reader in ((1, first), (2, second))
    ]
    for thread in threads:
        thread.start()
    for record in records:
        writer.write(record, timeout=20)
    for thread in threads:
        thread.join(20)
    assert heard == {1: records, 2: records}
