"""Every alert comes with its cause, has a fix, keeps its age and goes with its cause."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from appliance.hardware import Gpu
from appliance.supervisor.alerts import CODES, Alerts, Seen, findings, seconds_above
from appliance.supervisor.disks import disk_free

CALM = Seen(now=1000.0, max_running=64, context=8192, disk={"/data": 10**12})
HOT = Gpu(0, "GPU-0", "H100", 1, 1, 90, temperature_c=91, throttle=("heat", "power"))

CAUSES = {
    "APL-ENG-001": {"failure": ("APL-ENG-001", "it died", "read the log"), "failed_at": 990.0},
    "APL-ALR-001": {"deaths": 1, "died_at": 990.0},
    "APL-ALR-002": {"kv_high_s": 60},
    "APL-ALR-003": {"gpus": [HOT]},
    "APL-ALR-004": {"preemptions": 2.0},
    "APL-ALR-005": {"queue_wait_p99_s": 7.0, "waiting": 3.0},
    "APL-ALR-006": {"errors": {"5xx": 4.0}},
    "APL-ALR-007": {"disk": {"/data": 10**9}},
    "APL-ALR-008": {"gpus": [msgspec.structs.replace(HOT, throttle=(), ecc_uncorrected=2)]},
    "APL-ALR-009": {"silent": {"engine 0": 0.7}},
    "APL-ALR-010": {"frontends": ["frontend 1"]},
    "APL-ALR-011": {"xids": [(990.0, 1, 79)]},
    "APL-ALR-012": {"errors": {"4xx": 40.0}, "requests": 100.0},
    "APL-ALR-013": {"refused": {"context_length_exceeded": 2.0}, "errors": {"4xx": 2.0}},
    "APL-ALR-014": {"log_missing": 3},
    "APL-ALR-015": {"slow_links": ["GPU 0 and GPU 2: 0.9 GB/s"]},
    "APL-ALR-016": {"plain": "ninja is not there"},
}


def test_calm_is_silent() -> None:
    powered = msgspec.structs.replace(HOT, throttle=("power",), ecc_uncorrected=0)
    silent = {"engine 0": 0.3}
    assert not findings(msgspec.structs.replace(CALM, gpus=[powered], silent=silent))


@pytest.mark.parametrize("code", CAUSES)
def test_each_cause_has_its_alert_with_a_fix(code: str) -> None:
    (found,) = findings(msgspec.structs.replace(CALM, **CAUSES[code]))
    assert found.code == code and found.message and found.fix
    assert found.level in ("warn", "error")


def test_every_code_has_its_cause_here() -> None:
    assert set(CODES) == {code for code in CAUSES if code.startswith("APL-ALR")}


def test_fixes_are_computed() -> None:
    (full,) = findings(msgspec.structs.replace(CALM, kv_high_s=60))
    assert "model.context=4096" in full.fix
    (put_back,) = findings(msgspec.structs.replace(CALM, preemptions=1.0))
    assert "schedule.max_running=48" in put_back.fix


def test_critical_errors_tell_what_they_mean_and_how_often() -> None:
    xids = [(100.0, 0, 31), (800.0, 0, 31), (900.0, 1, 79), (-9999.0, 1, 48)]
    program, bus = findings(msgspec.structs.replace(CALM, xids=xids))
    assert program.level == "warn" and "GPU 0: Xid 31, 2 times" in program.message
    assert bus.level == "error" and "fallen off the bus" in bus.message
    assert (program.since, bus.since) == (800.0, 900.0)
    (strange,) = findings(msgspec.structs.replace(CALM, xids=[(990.0, 0, 999)]))
    assert strange.level == "error" and strange.fix


def test_refusals_name_the_commonest_cause_and_few_are_no_alert() -> None:
    seen = msgspec.structs.replace(
        CALM,
        errors={"4xx": 40.0},
        requests=100.0,
        refused={"invalid_api_key": 25.0, "invalid_value": 15.0},
    )
    (found,) = findings(seen)
    assert "40% of all" in found.message and "invalid_api_key" in found.message
    assert "appliance key" in found.fix
    assert not findings(msgspec.structs.replace(seen, errors={"4xx": 9.0}, requests=9.0))
    assert not findings(msgspec.structs.replace(seen, errors={"4xx": 40.0}, requests=4000.0))


def test_the_context_limit_tells_both_ways_to_meet_it() -> None:
    seen = msgspec.structs.replace(
        CALM, errors={"4xx": 90.0}, refused={"context_length_exceeded": 90.0}, requests=90.0, cut=3
    )
    (found,) = findings(seen)
    assert "8,192" in found.message and "90 requests" in found.message
    assert "3 answers" in found.message and "--context 16384" in found.fix
    (found,) = findings(msgspec.structs.replace(seen, longest=True))
    assert "longest" in found.fix and "--context" not in found.fix


def test_disks_are_told_once_and_missing_folders_left_out(tmp_path: Path) -> None:
    inner = tmp_path / "in"
    inner.mkdir()
    assert list(disk_free(tmp_path, inner, tmp_path / "none")) == [str(tmp_path)]


def test_age_stays_while_the_cause_does_and_starts_anew() -> None:
    alerts = Alerts()
    hot = msgspec.structs.replace(CALM, gpus=[HOT])
    assert [at for at, _ in alerts.judge(hot)] == [1000.0]
    later = msgspec.structs.replace(hot, now=1030.0, errors={"5xx": 1.0})
    assert [(at, f.code) for at, f in alerts.judge(later)] == [
        (1030.0, "APL-ALR-006"),
        (1000.0, "APL-ALR-003"),
    ]
    assert not alerts.judge(msgspec.structs.replace(CALM, now=1040.0))
    assert [at for at, _ in alerts.judge(msgspec.structs.replace(hot, now=1050.0))] == [1050.0]


def test_two_gpus_are_two_alerts() -> None:
    both = [HOT, msgspec.structs.replace(HOT, index=1)]
    assert len(Alerts().judge(msgspec.structs.replace(CALM, gpus=both))) == 2


def test_seconds_above() -> None:
    assert seconds_above([0.99, 0.1, 0.95, 0.96], 0.9) == 2
    assert seconds_above([], 0.9) == 0


def test_the_document_has_every_alert() -> None:
    root = Path(__file__).parent.parent.parent
    document = (root / "docs" / "dashboard.md").read_text()
    assert set(re.findall(r"APL-ALR-\d+", document)) == {c for c in CAUSES if "ALR" in c}
