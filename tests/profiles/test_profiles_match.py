"""Shipped profiles are whole, and every machine gets the one that is for it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from profiles_machines import A100, A100_40, H100, H100X8, H200, HOST, RTX4090, T4, machine

from appliance import paths
from appliance.errors import HardwareError, NotFoundError, UsageError
from appliance.hardware import HardwareSnapshot
from appliance.profiles import match, schema, store

SHIPPED = paths.shipped_profiles()
FILES = runpy.run_path(str(SHIPPED / "make.py"))["files"]()


@pytest.fixture
def shipped(tmp_path: Path) -> dict[str, store.Stored]:
    return store.load(SHIPPED, tmp_path)


def test_shipped_set(shipped: dict[str, store.Stored]) -> None:
    written = {Path(name).stem for name in FILES}
    assert set(shipped) == {"cpu", "cpu-large", "generic"} | written
    assert len(written) == (13 + 7) * 4
    for name, stored in shipped.items():
        assert Path(stored.path).stem == name
        assert stored.profile.evidence.note
        assert not stored.own
        if not stored.profile.evidence.measured:
            assert stored.profile.evidence.note.startswith("derived")


def test_a_profile_that_rounds_is_named_and_never_chosen(shipped: dict[str, store.Stored]) -> None:
    fp8 = shipped["h100x8-fp8"].profile
    assert fp8.model["quantization"] == "fp8" and match.rounds(fp8)
    assert not match.mismatch(fp8, H100X8)
    offered = [c.profile.name for c in match.candidates(shipped.values(), H100X8)]
    assert offered == [f"h100x{n}-bf16" for n in (1, 2, 4, 8)]
    assert not any(name.startswith(("a100", "t4")) and "fp8" in name for name in shipped)


def test_files_are_as_the_table_says() -> None:
    for name, text in FILES.items():
        assert (SHIPPED / name).read_text() == text, "python profiles/make.py"


def test_measured_fields_are_set_by_the_profile(shipped: dict[str, store.Stored]) -> None:
    measured = [s.profile for s in shipped.values() if s.profile.evidence.measured]
    assert [p.name for p in measured] == [
        f"{gpu}x1-{numbers}" for gpu in ("h100", "h200") for numbers in ("bf16", "fp8")
    ]
    for profile in measured:
        assert set(profile.evidence.fields) <= set(profile.values())
        assert profile.evidence.machine and profile.evidence.date


@pytest.mark.parametrize(
    ("hardware", "name", "why"),
    [
        (H100, "h100x1-bf16", "made for NVIDIA H100"),
        (H100X8, "h100x1-bf16", "made for"),
        (H200, "h200x1-bf16", "made for"),
        (A100, "a100-80x1-bf16", "made for"),
        (A100_40, "a100-40x1-bf16", "made for"),
        (RTX4090, "rtx4090x1-bf16", "made for"),
        (T4, "t4x1-fp16", "made for"),
        (machine("Tesla V100", 16384, sm=70), "generic", "no profile names Tesla V100"),
        (HOST, "cpu-large", "no GPU can be seen"),
        (HardwareSnapshot(2, 1 << 34, 1 << 33), "cpu", "no GPU can be seen"),
    ],
)
def test_choice(
    shipped: dict[str, store.Stored], hardware: HardwareSnapshot, name: str, why: str
) -> None:
    chosen = match.choose(shipped.values(), hardware)
    assert chosen.profile.name == name
    assert why in chosen.why


def test_broken_driver_is_told(shipped: dict[str, store.Stored]) -> None:
    broken = HardwareSnapshot(4, 1, 1, problem="the NVIDIA driver does not answer")
    assert "does not answer" in match.choose(shipped.values(), broken).why
    with pytest.raises(HardwareError, match="does not answer"):
        match.require(shipped["h100x1-bf16"].profile, broken)


OWN = b"""
name = "mine"
summary = "ours"
[match]
gpus = ["H100"]
[evidence]
measured = true
note = "ran it"
[schedule]
chunk = 4096
"""


def test_own_profile_goes_before_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(OWN)
    chosen = match.choose(store.load(SHIPPED, tmp_path).values(), H100)
    assert chosen.profile.name == "mine" and chosen.why == "your own: ours"


def test_unknown_name_suggests(shipped: dict[str, store.Stored]) -> None:
    with pytest.raises(NotFoundError, match="Did you mean 'h100x1-bf16'") as caught:
        store.find("h100x1-bf61", shipped)
    assert "appliance profile list" in caught.value.hint


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"[engine]\ntpp = 2", "engine.tpp"),
        (b"[engine]\ntp = 0", "engine.tp cannot be 0"),
        (b"[schedule]\npolicy = 'lifo'", "schedule.policy cannot be 'lifo'"),
        (b"[model]\npath = '/x'", "belongs to a run"),
        (b"[sched]\nchunk = 1", "unknown field"),
        (b"= 3", "is not a profile"),
    ],
)
def test_wrong_profile_names_the_field(line: bytes, says: str) -> None:
    text = OWN.replace(b"[schedule]\nchunk = 4096", line)
    with pytest.raises(UsageError) as caught:
        schema.parse(text, "mine.toml")
    assert says in caught.value.message
    assert "mine.toml" in caught.value.message


def test_nearest_setting_is_named() -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'schedule\.page_size'"):
        schema.convert("schedule.pagesize", 16, "--set")
    with pytest.raises(UsageError, match=r"Did you mean 'engine\.tp'"):
        schema.convert("tp", 2, "--set")
