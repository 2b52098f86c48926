"""The file of keys: what is kept, what is refused, who changes it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from appliance import keys
from appliance.errors import NotFoundError, UsageError


def test_a_key_is_told_once_and_kept_as_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys.json"
    made = keys.add_key(path, "ci", requests_per_minute=60)
    assert made.startswith(keys.PREFIX) and len(made) > 40
    assert made not in path.read_text()
    (kept,) = keys.read_keys(path)
    assert (kept.name, kept.slot, kept.requests_per_minute) == ("ci", 0, 60)
    assert kept.sha256 == keys.digest(made.encode())
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == ["keys.json", "keys.json.lock"]


def test_a_revoked_slot_is_given_again_and_names_are_unique(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for name in ("a", "b", "c"):
        keys.add_key(path, name)
    keys.revoke_key(path, "b")
    keys.add_key(path, "d")
    assert {k.name: k.slot for k in keys.read_keys(path)} == {"a": 0, "c": 2, "d": 1}
    with pytest.raises(UsageError, match="already"):
        keys.add_key(path, "a")
    with pytest.raises(NotFoundError) as missing:
        keys.revoke_key(path, "b")
    assert "a, c, d" in missing.value.hint


@pytest.mark.parametrize("name", ["", "a b", "-a", "ü", "a/b", "x" * 41, "a\n"])
def test_names_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        keys.add_key(tmp_path / "keys.json", name)
    assert not (tmp_path / "keys.json").exists()


GOOD = {"name": "a", "sha256": "0" * 64, "slot": 0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 2}',
        json.dumps({"version": 1, "keys": [{"name": "a"}]}),
        json.dumps({"version": 1, "keys": [GOOD | {"sha256": "0" * 63}]}),
        json.dumps({"version": 1, "keys": [GOOD | {"slot": 1024}]}),
        json.dumps({"version": 1, "keys": [GOOD | {"colour": "red"}]}),
        json.dumps({"version": 1, "keys": [GOOD, GOOD | {"slot": 1, "sha256": "1" * 64}]}),
        json.dumps({"version": 1, "keys": [GOOD, GOOD | {"name": "b", "sha256": "1" * 64}]}),
        json.dumps({"version": 1, "keys": [GOOD, GOOD | {"name": "b", "slot": 1}]}),
        "[" * 100_000,
    ],
)
def test_files_that_make_no_sense(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(UsageError):
        keys.read_keys(path)


def test_a_file_that_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys.add_key(path, "a")
    path.chmod(0o620)
    with pytest.raises(UsageError) as refused:
        keys.read_keys(path)
    assert "chmod 600" in refused.value.hint
    with pytest.raises(UsageError):
        keys.read_keys(tmp_path / "none.json")


def test_plain_keys_that_others_read_are_refused_but_for_the_group_they_were_handed_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    path.write_text("k" * 40 + "\n")
    path.chmod(0o440)
    with pytest.raises(UsageError, match="others may read"):
        keys.read_plain_keys(path)
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)  # a secret of the cluster's
    assert keys.read_plain_keys(path) == ("k" * 40,)
    for mode in (0o444, 0o460):
        path.chmod(mode)
        with pytest.raises(UsageError, match="others may read"):
            keys.read_plain_keys(path)


def test_many_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    names = [f"k{i}" for i in range(24)]
    threads = [threading.Thread(target=keys.add_key, args=(path, n)) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = keys.read_keys(path)
    assert sorted(k.name for k in kept) == sorted(names)
    assert {k.slot for k in kept} == set(range(24))


def test_an_admin_is_told_apart_and_others_are_written_as_ever(tmp_path: Path) -> None:
    """A file without an admin can be read by versions that know of none."""
    path = tmp_path / "keys.json"
    keys.add_key(path, "joe")
    assert "admin" not in path.read_text()
    keys.add_key(path, "boss", admin=True)
    assert [(k.name, k.admin) for k in keys.read_keys(path)] == [("joe", False), ("boss", True)]
    assert path.read_text().count("admin") == 1
