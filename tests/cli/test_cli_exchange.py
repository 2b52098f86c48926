"""doctor --links: what each pair's exchange came to, in words and with a cure that was tried."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.cli import doctor, exchange
from appliance.cli.conditions import Check
from appliance.hardware import HardwareSnapshot
from appliance.profiles.known import assumed

Cli = Callable[..., Any]
MOVED = 8 << 20


def pair(a: int, b: int, seconds: float | None, **more: Any) -> dict[str, Any]:
    usual = {"why": "", "host_seconds": None, "slow": False}
    return {"a": a, "b": b, "seconds": seconds, **usual, **more}


def checks(tmp_path: Path, *pairs: dict[str, Any], gpus: int = 3) -> list[Check]:
    """What is said when the program answers so."""
    script = tmp_path / "program.py"
    answer = json.dumps({"moved_bytes": MOVED, "pairs": pairs})
    script.write_text(f"import sys; assert sys.argv[1:] == ['--kind', 'cuda', '--count', "
                      f"'{gpus}'], sys.argv; print({answer!r})")  # fmt: skip
    return exchange.exchange(assumed(f"l40sx{gpus}"), [sys.executable, str(script)])


def test_all_well(tmp_path: Path) -> None:
    (check,) = checks(tmp_path, pair(0, 1, 0.0004), pair(0, 2, 0.0008), pair(1, 2, 0.0004))
    assert check.verdict == "ok"
    assert check.found == ("all 3 pairs reach one another; GPU 0 and GPU 2: 10.5 GB/s, the slowest")
    (two,) = checks(tmp_path, pair(0, 1, 0.001), gpus=2)
    assert two.found == "both reach one another; GPU 0 and GPU 1: 8.4 GB/s"


def test_a_pair_that_hangs_is_named_with_the_way_that_went(tmp_path: Path) -> None:
    broken = pair(0, 2, None, why="nothing arrived within 10 s", host_seconds=0.002)
    first, second = checks(tmp_path, broken, pair(0, 1, 0.001), pair(1, 2, 0.02, slow=True))
    assert first.verdict == "block" and "(nothing arrived within 10 s)" in first.found
    assert first.found.startswith("GPU 0 and GPU 2 do not reach one another")
    assert first.fix.startswith("NCCL_P2P_DISABLE=1 appliance up …     tried: 4.2 GB/s")
    assert second.verdict == "warn" and second.found.startswith("GPU 1 and GPU 2: 0.4 GB/s")
    (none,) = checks(tmp_path, pair(0, 1, None), gpus=2)
    assert "neither directly nor through the host" in none.fix and "P2P_DISABLE" not in none.fix


def test_gpus_are_called_by_their_own_numbers(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    told = {"moved_bytes": MOVED, "pairs": [pair(0, 1, 0.001)]}
    script.write_text(f"print({json.dumps(told)!r})")
    two = assumed("l40sx4").gpus[2:]
    machine = msgspec.structs.replace(assumed("l40sx4"), gpus=two)
    (check,) = exchange.exchange(machine, [sys.executable, str(script)])
    assert "GPU 2 and GPU 3" in check.found


def test_a_trial_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "program.py"
    script.write_text("raise SystemExit('no module named torch')")
    program = [sys.executable, str(script)]
    (check,) = exchange.exchange(assumed("l40sx2"), program)
    assert check.verdict == "block" and check.found.endswith("no module named torch")
    script.write_text("import threading; threading.Event().wait()")
    monkeypatch.setattr(exchange, "_LIMIT_S", 0.2)
    (late,) = exchange.exchange(assumed("l40sx2"), program)
    assert late.verdict == "block" and "did not end" in late.found


def test_the_real_program_over_gloo() -> None:
    (check,) = exchange.exchange(assumed("l40sx2"), kind="cpu")
    assert check.verdict == "ok" and check.found.startswith("both reach one another; GPU 0")


def test_doctor_asks_when_it_is_told_to(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "detect", lambda: HardwareSnapshot(8, 64 << 30, 60 << 30))
    assert "nothing to exchange" in cli("doctor", "--links").out
    assert "exchange" not in cli("doctor").out
    found = [Check("exchange", "block", "GPU 0 and GPU 1 do not reach one another", "try")]
    monkeypatch.setattr(exchange, "exchange", lambda hardware: found)
    said = cli("doctor", "--links")
    assert said.code == 8 and "In the way: exchange" in said.out
