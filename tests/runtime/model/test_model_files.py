"""What of a model's files is not in memory is read ahead, by as many as share the work."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from appliance.runtime.model import files
from appliance.runtime.model.files import ReadAhead, resident

BLOCK = 1 << 20
FREE = 1 << 40


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK", BLOCK)


def forgotten(folder: Path, *sizes: int) -> list[Path]:
    """Files of these sizes that are on the disk alone."""
    names = [f"model-{i}.safetensors" for i in range(len(sizes))]
    weight_map = {"weight_map": {f"t{i}": name for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weight_map))
    made = []
    for name, size in zip(names, sizes, strict=True):
        path = folder / name
        path.write_bytes(os.urandom(size))
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        made.append(path)
        if resident(path, 0, BLOCK):
            pytest.skip("this file system keeps all of its files in memory")
    return made


def test_what_is_not_in_memory_is_read(tmp_path: Path) -> None:
    paths = forgotten(tmp_path, 3 * BLOCK + 5, BLOCK)
    (tmp_path / "consolidated.safetensors").write_bytes(b"x" * BLOCK)  # nobody loads it
    ahead = ReadAhead(tmp_path, FREE, 16)
    ahead.join()
    assert 0 < ahead.bytes <= 4 * BLOCK + 5  # the kernel may read on by itself
    assert all(resident(path, at, BLOCK) for path in paths for at in range(0, 4 * BLOCK, BLOCK))


def test_what_is_in_memory_is_not_read_again(tmp_path: Path) -> None:
    (path,) = forgotten(tmp_path, 4 * BLOCK)
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no more than is asked for
        os.preadv(file.fileno(), [bytearray(2 * BLOCK)], BLOCK)
    ahead = ReadAhead(tmp_path, FREE, 16)
    ahead.join()
    assert ahead.bytes == 2 * BLOCK


def test_ranks_share_the_work(tmp_path: Path) -> None:
    forgotten(tmp_path, 4 * BLOCK, 4 * BLOCK)
    shares = [set(files._missing(tmp_path, FREE, rank, 3)) for rank in range(3)]
    assert sorted(map(len, shares)) == [2, 3, 3]
    assert len(set.union(*shares)) == 8


def test_weights_that_memory_cannot_keep_are_left(tmp_path: Path) -> None:
    forgotten(tmp_path, BLOCK)
    ahead = ReadAhead(tmp_path, BLOCK, 16)
    ahead.join()
    assert ahead.bytes == 0


def test_few_cores_have_other_things_to_do(tmp_path: Path) -> None:
    forgotten(tmp_path, BLOCK)
    for cores, ranks in ((2, 1), (16, 8)):
        ahead = ReadAhead(tmp_path, FREE, cores, 0, ranks)
        ahead.join()
        assert ahead.bytes == 0


def test_files_that_cannot_be_read_are_left_to_who_loads_them(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        ahead = ReadAhead(folder, FREE, 16)
        ahead.join()
        assert ahead.bytes == 0
    (tmp_path / "model.safetensors.index.json").write_text("{")
    ReadAhead(tmp_path, FREE, 16).join()
