"""profile explain, create and tune; a dry run on machines that are not here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance import paths
from appliance.cli import prepare, tune
from appliance.errors import EngineError
from appliance.hardware import HardwareSnapshot
from appliance.profiles import search, store
from appliance.profiles.reasons import OF_A_PROFILE, WHY, explained
from appliance.profiles.schema import SECTIONS

Cli = Callable[..., Any]
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "eos_token_id": 1,
}
MACHINE = HardwareSnapshot(8, 64 << 30, 60 << 30)


@pytest.fixture
def shape(own_home: Path) -> str:
    """A folder that holds a config.json and no weights."""
    folder = own_home / "llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    return str(folder)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "detect", lambda: MACHINE)


def test_dry_run_on_a_machine_that_is_not_here(cli: Cli, shape: str) -> None:
    said = cli("up", shape, "--dry-run", "--assume-gpus", "h100x8", "--json")
    assert said.code == 0
    data = json.loads(said.out)
    assert data["profile"]["name"] == "h100x1-bf16"
    assert data["fit"]["longest_context"] == 131072
    assert [g["name"] for g in data["fit"]["gpus"]] == ["NVIDIA H100 80GB HBM3"]
    assert "1 of 8 GPUs are used; `--set engine.replicas=8` serves from all" in said.err
    words = ("--assume-gpus", "h100x8", "--profile", "h100x8-fp8", "--json")
    fp8 = json.loads(cli("up", shape, "--dry-run", *words).out)
    assert fp8["config"]["model"]["quantization"] == "fp8"
    assert fp8["config"]["engine"]["tp"] == 8
    text = cli("up", shape, "--dry-run", "--assume-gpus", "h100x8", "--tp", "2").out
    assert "profile  h100x2-bf16" in text and "GPU 1 NVIDIA H100" in text
    assert "KV pages" in text and "graphs" in text


def test_dry_run_that_does_not_fit_is_7_with_ways_out(cli: Cli, shape: str) -> None:
    said = cli("up", shape, "--dry-run", "--assume-gpus", "t4")
    assert said.code == 7 and said.out == ""
    assert "Machines that hold it: " in said.err
    said = cli("up", shape, "--dry-run", "--assume-gpus", "rtx4090", "--context", "131072")
    assert said.code == 7 and "Use `--context " in said.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--assume-gpus", "h100x8"], "--dry-run"),
        (["--dry-run", "--assume-gpus", "h10x8"], "Did you mean 'h100'"),
        (["--dry-run", "--assume-gpus", "h100x1", "--tp", "2"], "1 can be seen"),
        (["--dry-run", "--profile", "h100x8-fp88"], "Did you mean 'h100x8-fp8'"),
    ],
)
def test_what_cannot_be_assumed(cli: Cli, shape: str, words: list[str], says: str) -> None:
    said = cli("up", shape, *words)
    assert said.code in (2, 4, 8) and says in said.err


def test_explain_gives_every_value_a_reason(cli: Cli, shape: str) -> None:
    said = cli("profile", "explain", "--model", shape, "--assume-gpus", "h100", "--json")
    data = json.loads(said.out)
    assert data["schema"] == "appliance.explain/1" and data["evidence"]["measured"] is True
    by_field = {a["field"]: a for a in data["answers"]}
    assert all(a["source"] and a["reason"] for a in data["answers"])
    assert by_field["schedule.max_running"]["reason"].startswith("measured on 1x NVIDIA H100")
    assert by_field["schedule.max_prefill"]["reason"].endswith("; derived, ran so")
    assert by_field["schedule.policy"]["reason"].startswith(WHY["schedule.policy"])
    assert by_field["serve.host"]["reason"] == WHY["serve.host"]
    text = cli(
        "profile", "explain", "--model", shape, "--assume-gpus", "t4x4", "--set", "engine.seed=3"
    ).out
    assert "profile  t4x4-fp16" in text and "asked for" in text


@pytest.mark.parametrize("where", [("--profile", "cpu"), ("--assume-gpus", "a100-80")])
def test_every_default_has_a_reason_of_its_own(cli: Cli, shape: str, where: list[str]) -> None:
    data = json.loads(cli("profile", "explain", "--model", shape, *where, "--json").out)
    told = {a["field"]: a["reason"] for a in data["answers"] if a["source"] == "default"}
    assert told and told == {field: WHY[field] for field in told}


def test_a_default_that_was_measured_says_so(shape: str) -> None:
    evidence = store.find("h100x1-bf16").profile.evidence
    plan = prepare.prepare(prepare.Asked(shape, options={"load_format": "dummy"})).plan
    for fields, says in (
        (("schedule.chunk",), WHY["schedule.beside_filled"]),
        (("schedule.beside_filled",), "measured on 1x NVIDIA H100"),
    ):
        unsaid = tuple(msgspec.structs.replace(a, reason="") for a in plan.answers)
        of_it = msgspec.structs.replace(plan, answers=unsaid)
        told = explained(of_it, msgspec.structs.replace(evidence, fields=fields)).answers
        by_field = {a.field: a.reason for a in told}
        assert by_field["schedule.beside_filled"].startswith(says)


def test_each_value_that_ships_has_a_reason_of_its_own(
    cli: Cli, shape: str, tmp_path: Path
) -> None:
    for stored in store.load(own=tmp_path).values():
        assert stored.profile.values().keys() <= OF_A_PROFILE.keys()
    told = {}
    for words in (("--profile", "cpu"), ("--assume-gpus", "l4")):
        data = json.loads(cli("profile", "explain", "--model", shape, *words, "--json").out)
        told |= {(words[1], a["field"]): a["reason"] for a in data["answers"]}
    assert told["cpu", "engine.device"] == "the machine that the profile is for; derived"
    assert told["l4", "engine.graphs"] == "a captured step saves the host its launches; derived"


def test_what_was_asked_for_says_so_wherever_settings_are_shown(
    cli: Cli, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPLIANCE_SERVE_DRAIN_S", "7")
    said = cli("up", shape, "--dry-run", "--set", "schedule.chunk=1024", "--json")
    by_field = {a["field"]: a for a in json.loads(said.out)["answers"]}
    for field, source in (("schedule.chunk", "flag"), ("serve.drain_s", "environment")):
        assert (by_field[field]["source"], by_field[field]["reason"]) == (source, "asked for")
    assert all(a["reason"] for a in by_field.values())


def test_a_plan_of_what_is_not_here_needs_no_download(cli: Cli) -> None:
    for words in (("up", "org/far", "--dry-run"), ("profile", "explain", "--model", "org/far")):
        said = cli(*words)
        assert said.code == 4 and "appliance pull org/far --dry-run " in said.err
    assert "--dry-run" not in cli("up", "org/far").err


def test_explain_for_a_profile_of_another_machine(cli: Cli, shape: str) -> None:
    said = cli("profile", "explain", "h100x8-fp8", "--model", shape)
    assert said.code == 0 and "h100x8, which is not here" in said.err
    assert "profile  h100x8-fp8: named" in said.out and "GPU 7 NVIDIA H100" in said.out
    assert "not here" not in cli("profile", "explain", "cpu", "--model", shape).err
    assert cli("profile", "explain", "cpu", "--profile", "cpu-large").code == 2
    assert cli("profile", "explain", "generic").code == 8


def test_show_tells_of_each_value_what_it_stands_on(cli: Cli) -> None:
    text = cli("profile", "show", "h100x1-bf16").out
    rows = dict(line.split(maxsplit=1) for line in text.splitlines() if line.count("  "))
    assert rows["schedule.max_running"].endswith(" measured")
    assert rows["schedule.max_prefill"].endswith(" derived, ran so")
    assert "machine   1x NVIDIA H100" in text and "date      2026-" in text
    assert "measured" not in cli("profile", "show", "h100x8-fp8").out.partition("SETTING")[2]


def test_list_begins_with_those_for_this_machine(cli: Cli) -> None:
    lines = cli("profile", "list").out.splitlines()
    assert lines[1].startswith("*  cpu") and lines[1].endswith("chosen")


def test_no_reason_is_for_a_setting_that_is_none() -> None:
    fields = {
        f"{section}.{field.name}"
        for section, kind in SECTIONS.items()
        for field in msgspec.structs.fields(kind)
    }
    assert WHY.keys() | OF_A_PROFILE.keys() <= fields


def test_create_and_use(cli: Cli, own_home: Path) -> None:
    paths.config_dir().mkdir(parents=True, exist_ok=True)
    (paths.config_dir() / "config.toml").write_text("[schedule]\nmax_running = 7\n[serve]\nport=1")
    said = cli("profile", "create", "mine", "--from", "cpu", "--set", "schedule.chunk=512")
    assert said.code == 0
    made = store.load()["mine"].profile
    assert made.schedule["chunk"] == 512 and made.schedule["max_running"] == 7
    assert "port" not in made.serve and not made.evidence.measured
    assert cli("profile", "create", "mine", "--from", "cpu").code == 11
    assert cli("profile", "create", "mine", "--from", "cpu", "--yes").code == 0
    assert cli("profile", "show", "mine").code == 0
    assert cli("profile", "create", "x", "--set", "serve.port=9").code == 2
    assert cli("profile", "create", "x", "--from", "cpuu").code == 4


def test_tune_writes_what_won_with_its_evidence(
    cli: Cli, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trial(prepared: prepare.Prepared, *rest: object) -> tuple[float, str]:
        schedule = prepared.plan.config.schedule
        return 1000.0 + schedule.chunk / 10 + 200 * schedule.mixed_chunk, "TTFT 1 ms"

    monkeypatch.setattr(tune, "trial", trial)
    words = ["profile", "tune", shape, "--load-format", "dummy", "--profile", "cpu"]
    mine = paths.supervisor_log("default")
    mine.parent.mkdir(parents=True)
    mine.touch()
    paths.supervisor_log(f"tune-{os.getpid()}").touch()
    paths.request_log(f"tune-{os.getpid()}", 0).touch()
    said = cli(*words, "--budget", "1h", "--json")
    assert said.code == 0
    data = json.loads(said.out)
    assert data["complete"] and data["best"]["values"] == {
        "schedule.chunk": 4096,
        "schedule.mixed_chunk": True,
    }
    made = store.load()["tuned"].profile
    assert made.schedule["chunk"] == 4096 and made.schedule["mixed_chunk"] is True
    assert made.evidence.measured and "-> 1610 output tok/s" in made.evidence.result
    assert "schedule.max_running" in made.evidence.fields
    assert "twice" in made.evidence.note
    assert not list(paths.logs_dir().glob("tune-*")) and mine.exists()
    assert cli(*words).code == 11
    assert cli(*words, "--budget", "soon").code == 2


def test_tune_claims_nothing_that_was_not_compared(
    cli: Cli, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def trial(prepared: prepare.Prepared, *rest: object) -> tuple[float, str]:
        nonlocal now
        now += 10
        if prepared.plan.config.schedule.chunk != 2048:
            raise EngineError("it died")
        return 1000.0, "TTFT 1 ms"

    monkeypatch.setattr(tune, "trial", trial)
    monkeypatch.setattr("time.monotonic", lambda: now)
    words = ["profile", "tune", shape, "--load-format", "dummy", "--profile", "cpu"]
    short = cli(*words, "--budget", "30s")
    assert short.code == 2 and "--budget 50s" in short.err and "tuned" not in store.load()
    assert cli(*words, "--budget", "1h").code == 0
    evidence = store.load()["tuned"].profile.evidence
    assert "schedule.chunk" not in evidence.fields and "2 of them failed" in evidence.note

    monkeypatch.setattr(search, "axes", lambda *_: {"schedule.chunk": (1024, 4096)})
    failed = cli(*words, "--name", "other")
    assert failed.code == 10 and "it died" in failed.err and "other" not in store.load()
