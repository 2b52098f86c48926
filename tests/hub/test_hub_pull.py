"""Pulls through the real clients, over a hub that does everything a hub can do wrong."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakehub import FakeHub, Fault, Repo, safetensors, tiny_model
from pulling import QUICK, Puller

from appliance.errors import (
    ApplianceError,
    DoesNotFitError,
    IntegrityError,
    NetworkError,
    NotAuthorisedError,
    NotFoundError,
)
from appliance.hub import part
from appliance.hub import plan as planning
from appliance.hub.fetch import Fetcher, Transfer
from appliance.hub.plan import Want, make_plan
from appliance.hub.pull import carry_out
from appliance.hub.store import find_model

SHARD = "model-00001-of-00002.safetensors"


def test_cold_then_warm(puller: Puller) -> None:
    first = puller.pull()
    puller.assert_complete(first.folder)
    assert first.verified_files == len(puller.files)
    assert first.received_bytes == sum(map(len, puller.files.values()))
    assert len(puller.hub.bodies(SHARD)) == 1
    second = puller.pull()
    assert second.received_bytes == 0 and second.folder == first.folder
    assert len(puller.hub.bodies(SHARD)) == 1


def test_progress_is_monotone_and_ends_at_the_total(puller: Puller) -> None:
    puller.hub.fault(SHARD, cut_after=70_000)
    puller.hub.fault(SHARD, ignore_range=True)
    plan = puller.plan()
    puller.pull(plan)
    done = [p.done_bytes for p in puller.told]
    assert done == sorted(done) and done[-1] == plan.total_bytes


def test_the_real_clients_find_it_and_fetch_nothing(puller: Puller, env: dict[str, str]) -> None:
    folder = puller.pull().folder
    puller.hub.log.clear()
    if puller.source == "hf":
        code = (
            "from huggingface_hub import snapshot_download, scan_cache_dir, HfApi\n"
            "a = snapshot_download('org/tiny', local_files_only=True)\n"
            "b = snapshot_download('org/tiny')\n"
            "scan = scan_cache_dir()\n"
            "assert not scan.warnings and len(scan.repos) == 1, scan\n"
            "check = HfApi().verify_repo_checksums('org/tiny')\n"
            "assert check.checked_count == 7 and not check.mismatches, check\n"
            "assert not check.missing_paths and not check.extra_paths, check\n"
            "print(a); print(b)"
        )
    else:
        code = (
            "from modelscope import snapshot_download\n"
            "a = snapshot_download('org/tiny', local_files_only=True)\n"
            "b = snapshot_download('org/tiny')\n"
            "print(a); print(b)"
        )
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    assert [Path(p) for p in out.stdout.split()[-2:]] == [folder, folder]
    assert not puller.hub.bodies(".safetensors") and not puller.hub.bodies("config.json")


def test_what_the_real_client_fetched_is_verified_once_and_used(
    puller: Puller, env: dict[str, str]
) -> None:
    package = "huggingface_hub" if puller.source == "hf" else "modelscope"
    code = f"from {package} import snapshot_download as s; s('org/tiny')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, check=True)
    puller.hub.log.clear()
    pulled = puller.pull()
    assert pulled.received_bytes == 0 and pulled.verified_files == len(puller.files)
    assert not puller.hub.bodies(SHARD)
    assert puller.pull().verified_files == 0
    puller.assert_complete(pulled.folder)


def test_rot_in_a_file_that_another_tool_named_is_fetched_again(
    hf: Puller, env: dict[str, str]
) -> None:
    hf.hub.fault(SHARD, corrupt=True)
    code = "from huggingface_hub import snapshot_download as s; print(s('org/tiny'))"
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True
    )
    folder = Path(out.stdout.split()[-1])
    assert (folder / SHARD).read_bytes() != hf.files[SHARD], "the library began to verify"
    hf.pull()
    hf.assert_complete(folder)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(SHARD, cut_after=100_000),
        Fault(SHARD, cut_after=0),
        Fault(SHARD, cut_after=65_536, times=4),
        Fault(SHARD, status=503, times=2),
        Fault(SHARD, status=502),
        Fault(SHARD, status=429, headers={"Retry-After": "0"}, times=3),
        Fault(SHARD, corrupt=True),
        Fault(SHARD, html=True),
        Fault(SHARD, stall_s=5.0),
        Fault(SHARD, headers={"Content-Length": "0"}, status=416),
    ],
    ids=lambda f: "-".join(f"{k}" for k, v in vars(f).items() if v not in (0, -1, False, {}, None)),
)
def test_a_passing_fault_is_survived(puller: Puller, fault: Fault) -> None:
    puller.hub.faults.append(fault)
    puller.assert_complete(puller.pull().folder)
    assert fault.used == fault.times


def test_a_cut_is_resumed_where_it_was(puller: Puller) -> None:
    puller.hub.fault(SHARD, cut_after=100_000)
    pulled = puller.pull()
    assert [s.range for s in puller.hub.bodies(SHARD)] == ["", "bytes=100000-"]
    assert pulled.received_bytes == sum(map(len, puller.files.values()))


def test_cuts_without_end_still_make_progress(puller: Puller) -> None:
    cut = puller.hub.fault(SHARD, cut_after=20_000, times=9)
    puller.assert_complete(puller.pull().folder)
    assert cut.used > QUICK.attempts


def test_an_ignored_range_starts_the_file_again(puller: Puller) -> None:
    puller.hub.fault(SHARD, cut_after=100_000)
    puller.hub.fault(SHARD, ignore_range=True)
    puller.assert_complete(puller.pull().folder)
    assert [s.status for s in puller.hub.bodies(SHARD)] == [200, 200]


def test_another_range_than_asked_is_not_believed(puller: Puller) -> None:
    puller.hub.fault(SHARD, cut_after=100_000)
    puller.hub.fault(SHARD, wrong_range=True)
    puller.assert_complete(puller.pull().folder)


def test_a_stall_gets_a_new_connection_that_resumes(puller: Puller) -> None:
    puller.hub.fault(SHARD, stall_s=5.0)
    whys: set[str] = set()
    slower = replace(QUICK, first_wait_s=0.5, longest_wait_s=0.5)
    carry_out(puller.plan(), slower, 4, lambda p: whys.update(t.why for t in p.active))
    puller.assert_complete(find_model("org/tiny").folder)
    assert puller.hub.bodies(SHARD)[1].range.startswith("bytes=1000")
    assert "the connection stalled, retrying 1/4" in whys


def test_always_wrong_bytes_are_refused_and_leave_nothing(puller: Puller) -> None:
    puller.hub.fault(SHARD, corrupt=True, times=9)
    with pytest.raises(IntegrityError, match="twice with wrong bytes") as e:
        puller.pull()
    assert SHARD in e.value.message and "sha256" in e.value.message
    assert len(puller.hub.bodies(SHARD)) == 2
    plan = puller.plan()
    shard = next(t.file for t in plan.takes if t.file.path == SHARD)
    assert plan.layout.present(shard) is None and not plan.layout.part(shard).exists()
    with pytest.raises(NotFoundError, match="only in part"):
        find_model("org/tiny")


def test_another_length_than_listed_ends_with_a_sentence(puller: Puller) -> None:
    puller.hub.fault(SHARD, html=True, times=20)
    with pytest.raises(NetworkError, match=r"sends 26 bytes where 2000\d\d were listed"):
        puller.pull()


def test_patience_ends(puller: Puller) -> None:
    fault = puller.hub.fault(SHARD, status=503, times=99)
    with pytest.raises(NetworkError, match="the hub answers 503") as e:
        puller.pull()
    assert fault.used == QUICK.attempts and "resumes" in e.value.hint


def test_retry_after_is_honoured(puller: Puller) -> None:
    waits: list[float] = []
    puller.hub.fault(SHARD, status=429, headers={"Retry-After": "1"})
    plan = puller.plan()
    shard = next(t.file for t in plan.takes if t.file.path == SHARD)

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return False

    fetcher = Fetcher(QUICK, Stop())
    request = plan.source.request(plan.listing, shard)
    fetcher.fetch(request, shard, plan.layout.part(shard), plan.layout.body(shard), Transfer(shard))
    fetcher.close()
    assert waits == [1.0]


def test_a_hub_that_asks_to_wait_an_hour_is_told(puller: Puller) -> None:
    puller.hub.fault(SHARD, status=429, headers={"Retry-After": "3600"})
    with pytest.raises(NetworkError, match="asks to wait 3600 s"):
        puller.pull()


def test_files_refused_after_the_listing(puller: Puller) -> None:
    puller.hub.fault(SHARD, status=403)
    with pytest.raises(NotAuthorisedError, match="does not give it"):
        puller.pull()
    puller.hub.fault(SHARD, status=404)
    with pytest.raises(NotFoundError, match="no longer has it"):
        puller.pull()


def test_the_token_goes_to_the_hub_and_not_to_the_content_network(
    hf: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hf.hub.cdn_on = True
    hf.assert_complete(hf.pull().folder)
    away = [s for s in hf.hub.log if s.origin == "cdn"]
    assert away and not any(s.auth for s in away)
    assert all(s.auth for s in hf.hub.seen("/resolve/"))


def test_an_expired_link_is_asked_for_again(hf: Puller) -> None:
    hf.hub.cdn_on = True
    hf.hub.fault("/hf/.*" + SHARD, cut_after=100_000)
    hf.hub.fault("/hf/.*" + SHARD, status=403)
    hf.assert_complete(hf.pull().folder)
    assert len(hf.hub.seen(f"/resolve/{hf.hub.hf['org/tiny'].commit}/{SHARD}")) == 3
    assert hf.hub.bodies("/hf/org/tiny/" + SHARD)[-1].range == "bytes=100000-"


def test_a_body_longer_than_one_response_comes_in_ranges(hf: Puller) -> None:
    plan = hf.plan()
    shard = next(t.file for t in plan.takes if t.file.path == SHARD)
    fetcher = Fetcher(QUICK, threading.Event(), longest_body=90_000)
    request = plan.source.request(plan.listing, shard)
    body = plan.layout.body(shard)
    fetcher.fetch(request, shard, plan.layout.part(shard), body, Transfer(shard))
    fetcher.close()
    assert body.read_bytes() == hf.files[SHARD]
    ranges = [s.range for s in hf.hub.bodies(SHARD)]
    assert ranges == ["bytes=0-89999", "bytes=90000-179999", "bytes=180000-"]


def test_too_small_a_disk_is_told_before_the_first_byte(
    puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.hub.pull.free_bytes", lambda path: 100_000)
    with pytest.raises(DoesNotFitError, match="are lacking") as e:
        puller.pull()
    assert "HF_HOME" in e.value.hint
    assert not puller.hub.bodies(SHARD)


def test_a_disk_that_fills_meanwhile_keeps_the_part(puller: Puller) -> None:
    room = 300_000
    real = os.pwrite

    def pwrite(fd: int, block: bytes, offset: int) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        room -= len(block)
        return real(fd, block, offset)

    with pytest.MonkeyPatch.context() as full, pytest.raises(DoesNotFitError) as e:
        full.setattr(part.os, "pwrite", pwrite)
        puller.pull(jobs=1)
    assert "is full" in e.value.message and "more bytes" in e.value.message
    assert e.value.exit_code == 7 and "resumes" in e.value.hint
    pulled = puller.pull()
    puller.assert_complete(pulled.folder)
    assert pulled.received_bytes < sum(map(len, puller.files.values())) - 250_000


def test_short_writes_are_continued(puller: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(part.os, "pwrite", lambda fd, b, at: real(fd, b[: 1 + len(b) // 3], at))
    puller.assert_complete(puller.pull().folder)


def test_a_failed_sync_discards_the_part(puller: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = puller.plan()
    shard = next(t.file for t in plan.takes if t.file.path == SHARD)

    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    fetcher = Fetcher(QUICK, threading.Event())
    monkeypatch.setattr(part.os, "fsync", fsync)
    with pytest.raises(IntegrityError, match="could not store"):
        fetcher.fetch(
            plan.source.request(plan.listing, shard),
            shard,
            plan.layout.part(shard),
            plan.layout.body(shard),
            Transfer(shard),
        )
    fetcher.close()
    assert not plan.layout.part(shard).exists() and not plan.layout.body(shard).exists()


def test_a_name_comes_after_the_bytes_and_is_synced_too(
    puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = puller.plan()
    shard = next(t.file for t in plan.takes if t.file.path == SHARD)
    steps: list[str] = []
    replace_file = os.replace

    def fsync(fd: int) -> None:
        steps.append("sync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")

    def rename(a: Path, b: Path) -> None:
        steps.append("name")
        replace_file(a, b)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    fetcher = Fetcher(QUICK, threading.Event())
    request = plan.source.request(plan.listing, shard)
    fetcher.fetch(request, shard, plan.layout.part(shard), plan.layout.body(shard), Transfer(shard))
    fetcher.close()
    assert steps == ["sync file", "name", "sync folder"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_really_full_disk(hf: Puller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        monkeypatch.setenv("HF_HOME", str(small))
        with pytest.raises(DoesNotFitError, match="are lacking"):
            hf.pull()
        monkeypatch.setattr("appliance.hub.pull.free_bytes", lambda path: 10**12)
        with pytest.raises(DoesNotFitError, match="is full"):
            hf.pull(jobs=1)
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        pulled = hf.pull()
        hf.assert_complete(pulled.folder)
        assert pulled.received_bytes < sum(map(len, hf.files.values()))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_two_pulls_at_once_fetch_once(puller: Puller) -> None:
    for path in puller.files:
        puller.hub.fault(path, rate=400_000)
    plan = puller.plan()
    ends: list[Any] = []
    first = threading.Thread(target=lambda: ends.append(puller.pull(plan)))
    first.start()
    assert puller.hub.body_started.wait(5)
    other = Puller(puller.hub, puller.source, puller.files)
    second = other.pull()
    first.join()
    puller.assert_complete(second.folder)
    assert second.received_bytes == 0 and ends[0].received_bytes == plan.total_bytes
    assert other.told[0].waiting
    assert len(puller.hub.bodies(SHARD)) == 1


def test_names_with_spaces_and_letters_of_everywhere(puller: Puller) -> None:
    puller.files["extra/größe und 模型 (1).txt"] = b"spaces and all"
    puller.hub.hf["org/tiny"].commit = "b" * 40
    puller.assert_complete(puller.pull().folder)


def test_equal_files_share_one_body(hf: Puller) -> None:
    hf.files["copy/model-again.bin"] = hf.files["other.bin"] = safetensors(30_000, 9)
    hf.hub.hf["org/tiny"].commit = "c" * 40
    pulled = hf.pull(jobs=8)
    hf.assert_complete(pulled.folder)
    assert len(hf.hub.bodies("copy/model-again.bin")) + len(hf.hub.bodies("other.bin")) == 1


def test_empty_files(puller: Puller) -> None:
    puller.files["empty.txt"] = b""
    puller.hub.hf["org/tiny"].commit = "d" * 40
    puller.assert_complete(puller.pull().folder)


def test_an_update_leaves_the_old_snapshot_whole(hf: Puller) -> None:
    old = hf.pull()
    old_files = dict(hf.files)
    hf.hub.hf["org/tiny"] = Repo(tiny_model(seed=7))
    new = hf.pull()
    assert new.folder != old.folder
    for path, content in old_files.items():
        assert (old.folder / path).read_bytes() == content
    assert find_model("org/tiny").folder == new.folder
    assert find_model("org/tiny", old.folder.name).folder == old.folder


def test_an_update_in_place_replaces_only_what_changed(hub: FakeHub, env: dict[str, str]) -> None:
    hub.modelscope["org/tiny"] = Repo(tiny_model())
    puller = Puller(hub, "modelscope", hub.modelscope["org/tiny"].files)
    puller.pull()
    puller.files[SHARD] = safetensors(50_000, 77)
    hub.log.clear()
    puller.assert_complete(puller.pull().folder)
    assert [s.path.rpartition("=")[2] for s in hub.bodies("repo?")] == [SHARD]


def test_a_model_that_changes_during_the_pull_is_not_mixed(hf: Puller) -> None:
    plan = hf.plan()
    hf.hub.hf["org/tiny"].files[SHARD] = safetensors(50_000, 99)
    with pytest.raises(IntegrityError):
        hf.pull(plan)


def test_by_commit_and_by_branch(hf: Puller) -> None:
    commit = hf.hub.hf["org/tiny"].commit
    plan = make_plan(Want(f"org/tiny@{commit}", source="hf"), QUICK)
    carry_out(plan, QUICK, 2, lambda p: None)
    assert find_model("org/tiny").revisions == ()
    hf.pull()
    assert find_model("org/tiny@main").revisions == ("main",)


def test_an_unwritable_cache_is_told(hf: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = hf.plan()

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere")

    monkeypatch.setattr(part.os, "open", refuse)
    with pytest.raises(ApplianceError, match="/somewhere cannot be written"):
        hf.pull(plan)


def test_the_margin_shrinks_with_the_model(hf: Puller) -> None:
    plan = hf.plan()
    assert plan.remaining_bytes < plan.needed_bytes < 1.2 * plan.remaining_bytes
    assert planning._LARGEST_MARGIN == 1_000_000_000
