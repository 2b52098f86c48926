"""Commands where nothing runs, and on a run of stand-ins."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_stage import FakeModel
from tiny_llama import LLAMA

from appliance import paths
from appliance.cli import conditions, doctor, preflight, prepare, rate, welcome
from appliance.cli import status as status_module
from appliance.hardware import Gpu, HardwareSnapshot
from appliance.profiles import known, store
from appliance.status import RunStatus
from appliance.supervisor.claim import bind, held

GOLDEN = Path(__file__).with_name("golden")
Cli = Callable[..., Any]

MACHINE = HardwareSnapshot(8, 64 << 30, 60 << 30)


@pytest.fixture
def tiny(own_home: Path) -> Path:
    folder = own_home / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "detect", lambda: MACHINE)


def check_golden(name: str, text: str, home: Path) -> None:
    """Compares with a kept file; how columns are padded does not count."""
    clean = text.replace(str(home), "HOME").replace(str(paths.shipped_profiles()), "SHIPPED")
    clean = re.sub(r"[ \t]+$", "", re.sub(" {2,}", "  ", clean), flags=re.MULTILINE)
    if os.environ.get("APPLIANCE_RENEW_SCHEMAS"):
        (GOLDEN / name).write_text(clean)
    assert clean == (GOLDEN / name).read_text(), clean


def test_where_the_machines_service_is_asked(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(paths.MACHINE, "RUNTIME", tmp_path)
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert "sudo -u appliance -H appliance ps" in cli("ps").out
    assert "sudo -u appliance -H appliance status" in cli("status").out


def test_nothing_runs(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(paths.MACHINE, "RUNTIME", tmp_path / "none")
    assert cli("status").code == 3
    assert json.loads(cli("status", "--json").out)["state"] == "stopped"
    assert cli("status", "other").code == 4
    assert cli("ps").out == "No model is being served.\n"
    assert cli("down").code == 0
    for words in (["logs"], ["logs", "-f"], ["restart"], ["top"], ["top", "--once"], ["run", "hi"]):
        said = cli(*words)
        assert said.code == 3, words
        assert "appliance up" in said.err


@pytest.mark.usefixtures("machine")
def test_dry_run_tells_every_value(cli: Cli, tiny: Path, own_home: Path) -> None:
    words = ["up", str(tiny), "--load-format", "dummy", "--dry-run", "--port", "9000"]
    said = cli(*words, "--set", "schedule.chunk=512")
    assert said.code == 0
    check_golden("dry-run.txt", said.out, own_home)
    assert "schedule.chunk is 512 (flag), not the profile's 2048" in said.err
    plan = json.loads(cli(*words, "--json").out)
    assert plan["schema"] == "appliance.plan/1"
    assert plan["config"]["serve"]["port"] == 9000
    # the chat template says which parsers, where it is read
    open_ = {a["field"] for a in plan["answers"] if a["value"] == "auto"}
    assert open_ <= {"model.tool_parser", "model.reasoning_parser"}
    assert not held(paths.runtime_dir() / "default")
    any_port = json.loads(cli(*words[:-1], "0", "--json").out)
    assert any_port["config"]["serve"]["port"] == 0


@pytest.mark.usefixtures("machine")
def test_config_show_is_the_same_table(cli: Cli, tiny: Path, monkeypatch: Any) -> None:
    (tiny / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    monkeypatch.setenv("APPLIANCE_MODEL", str(tiny))
    monkeypatch.setenv("APPLIANCE_SCHEDULE_CHUNK", "1024")
    said = cli("config", "show", "--json")
    answers = {a["field"]: a for a in json.loads(said.out)["answers"]}
    assert (answers["schedule.chunk"]["value"], answers["schedule.chunk"]["source"]) == (
        1024,
        "environment",
    )
    assert answers["model.context"]["reason"]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["no/such"], 4, "appliance pull no/such"),
        (["./nowhere"], 4, "lacks config.json"),
        (["--profile", "cpuu"], 4, "Did you mean 'cpu'"),
        (["--profile", "h100x1-bf16"], 8, "needs 1 GPU(s) and none can be seen"),
        (["--set", "engine.tpp=1"], 2, "Did you mean 'engine.tp'"),
        (["--tp", "3"], 2, "tp 3 does not divide"),
        (["--context", "1000"], 2, "longer than the model's 512"),
        (["--port", "70000"], 2, "not from 0 to 65535"),
        (["--name", "../x"], 2, "cannot be the name of a run"),
        (["--host", "203.0.113.7", "--no-auth"], 2, "cannot listen on 203.0.113.7"),
    ],
)
def test_up_refuses_before_it_starts_anything(
    cli: Cli, tiny: Path, words: list[str], code: int, says: str
) -> None:
    model = [] if words[0][0] != "-" else [str(tiny), "--load-format", "dummy"]
    said = cli("up", *model, *words)
    assert said.code == code
    assert says in said.err
    assert not held(paths.runtime_dir() / "default")


def test_up_refuses_what_does_not_fit(cli: Cli, tiny: Path, monkeypatch: Any) -> None:
    gpu = Gpu(0, "GPU-0", "NVIDIA H100 80GB HBM3", 81559 << 20, 1 << 29, 90)
    seen = HardwareSnapshot(8, 64 << 30, 60 << 30, (gpu,), "580.95")
    monkeypatch.setattr(prepare, "detect", lambda: seen)
    large = LLAMA | {"hidden_size": 16384, "num_hidden_layers": 80, "intermediate_size": 53248}
    (tiny / "config.json").write_text(json.dumps(large))
    said = cli("up", str(tiny), "--load-format", "dummy", "--json")
    assert said.code == 7
    error = json.loads(said.out)["error"]
    assert error["message"] == "tiny does not fit profile h100x1-bf16"
    assert "GPU 0 has 85.5 GB" in error["why"]


@pytest.mark.usefixtures("machine")
def test_port_in_use_is_told_at_once(cli: Cli, tiny: Path) -> None:
    taken = bind("127.0.0.1", 0)
    port = str(taken.getsockname()[1])
    said = cli("up", str(tiny), "--load-format", "dummy", "--port", port)
    taken.close()
    assert said.code == 11
    assert f"127.0.0.1:{port} is used by pid" in said.err
    assert not held(paths.runtime_dir() / "default")


def test_live_run(cli: Cli, live: Path) -> None:
    status = json.loads(cli("status", "--json").out)
    assert status["schema"] == "appliance.status/1"
    assert [p["role"] for p in status["processes"]] == ["supervisor", "frontend", "engine"]
    said = cli("status")
    assert said.code == 0 and said.out.startswith("READY  tiny  at http://127.0.0.1:")
    assert "tiny" in cli("ps").out
    assert json.loads(cli("ps", "--json").out)["runs"][0]["state"] == "ready"
    fit = {"gpus": [{"index": 2}, {"index": 3}]}
    paths.plan_file(live).write_text(json.dumps({"fit": fit, "answers": []}))
    assert json.loads(cli("ps", "--json").out)["runs"][0]["gpus"] == [2, 3]
    assert "2,3" in cli("ps").out
    assert cli("ps", "-q").out == "default\n"
    assert cli("status", "-q").out == ""
    assert cli("logs", "--component", "engine", "-n", "1").out.endswith("something odd\n")
    assert cli("logs", "--component", "frontend").out == ""
    top = json.loads(cli("top", "--once", "--json").out)
    assert (top["schema"], top["state"]) == ("appliance.top/1", "ready")
    assert "tiny" in cli("top").out  # no terminal here: one snapshot
    assert "starting again" in cli("restart", "--rolling").out
    assert json.loads(cli("--json").out)["run"] == "default"


def test_status_tells_each_change(cli: Cli, live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter(["ready", "ready", "draining"])

    def look(name: str) -> RunStatus:
        try:
            return RunStatus(run=name, state=next(seen))
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(status_module, "_look", look)
    monkeypatch.setattr(status_module, "_WATCH_S", 0.0)
    said = cli("status", "--watch", "--json")
    assert said.code == 130
    assert [json.loads(line)["state"] for line in said.out.splitlines()] == ["ready", "draining"]


@pytest.mark.usefixtures("machine")
def test_second_up_names_what_runs(cli: Cli, live: Path, tiny: Path) -> None:
    said = cli("up", str(tiny), "--load-format", "dummy", "--port", "0")
    assert said.code == 11
    assert "the run 'default' is up already: tiny at http://127.0.0.1:" in said.err


def test_down_tells_each_step_and_logs_remain(cli: Cli, live: Path) -> None:
    said = cli("down", "-t", "5")
    assert said.code == 0 and said.out == "default: stopped\n"
    assert said.err.startswith("draining 0 request(s)") and "stopped in" in said.err
    assert not held(live)
    after = cli("logs", "--component", "engine", "-n", "1")
    assert after.code == 0 and after.out.endswith("something odd\n")
    assert "has ended" in after.err


def test_profiles(cli: Cli, own_home: Path) -> None:
    said = cli("profile", "list", "--json")
    assert [p["name"] for p in json.loads(said.out)["profiles"] if p["chosen"]]
    check_golden("profile-show-cpu.txt", cli("profile", "show", "cpu").out, own_home)
    assert cli("profile", "show", "cpux").code == 4


def test_version(cli: Cli) -> None:
    data = json.loads(cli("version", "--json").out)
    assert data["appliance"] and data["torch"]
    assert cli("--version").out == cli("version").out


def test_first_screen(cli: Cli) -> None:
    said = cli()
    assert said.code == 0
    assert "appliance pull" in said.out and "appliance up" in said.out


def test_first_screen_tells_size_and_time_of_the_download(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu(0, "GPU-0", "NVIDIA A10", 24 << 30, 1 << 30, 86)
    machine = HardwareSnapshot(8, 64 << 30, 60 << 30, (gpu,), "580.95", "13.0")
    monkeypatch.setattr(welcome, "detect", lambda: machine)
    said = cli()
    assert "pull Qwen/Qwen3-8B    download (16.4 GB, about 5 min at 50 MB/s, which is a guess)" in (
        said.out
    )
    told = json.loads(cli("--json").out)
    assert told["here"] is False and told["download"]["assumed"] is True
    rate.keep_rate(5_000_000, 0.001)  # too little to say anything
    assert json.loads(cli("--json").out)["download"]["assumed"] is True
    rate.keep_rate(820_000_000, 2.0)
    assert "download (16.4 GB, about 40 s at your last rate)" in cli().out
    told = json.loads(cli("--json").out)["download"]
    assert (told["bytes"], told["bytes_per_s"]) == (16_381_000_000, 410e6)
    assert (told["duration_s"], told["assumed"]) == (40, False)
    monkeypatch.setattr(welcome, "locate", lambda name, load_format: None)
    assert "pull Qwen/Qwen3-8B    is here already" in cli().out


def test_each_suggested_model_has_a_size() -> None:
    suggested = {s.profile.suggest for s in store.load().values()} - {""}
    assert suggested == set(known.SUGGESTED_BYTES)


def test_doctor_on_machines(cli: Cli, monkeypatch: Any) -> None:
    assert cli("doctor", "--port", "1").code in (0, 8)
    gpu = Gpu(0, "GPU-0", "NVIDIA H100", 80 << 30, 1 << 30, 90)
    monkeypatch.setattr(conditions, "torch_cuda", lambda: "13.0")
    monkeypatch.setattr(conditions, "_version", lambda name: "1.0")

    def verdicts(hardware: HardwareSnapshot) -> dict[str, str]:
        return {c.name: c.verdict for c in doctor.examine(hardware, 8000)}

    good = HardwareSnapshot(8, 64 << 30, 60 << 30, (gpu,), "580.95", "13.0")
    assert {verdicts(good)[k] for k in ("gpu", "torch", "flashinfer", "memory")} == {"ok"}
    old = HardwareSnapshot(8, 64 << 30, 60 << 30, (gpu,), "535.10", "12.2")
    assert verdicts(old)["torch"] == "block"
    broken = HardwareSnapshot(8, 64 << 30, 60 << 30, problem="the driver does not answer")
    assert verdicts(broken)["gpu"] == "block"
    ancient = Gpu(0, "GPU-0", "Tesla M40", 24 << 30, 0, 52)
    assert verdicts(HardwareSnapshot(8, 64 << 30, 1, (ancient,), "580"))["gpu"] == "block"
    monkeypatch.setattr(conditions, "torch_cuda", lambda: "")
    assert verdicts(good)["torch"] == "block"
    monkeypatch.setattr(doctor, "detect", lambda: broken)
    said = cli("doctor", "--json")
    assert said.code == 8 and json.loads(said.out)["ok"] is False


def test_one_answer(cli: Cli, url: str, monkeypatch: Any) -> None:
    said = cli("run", "--url", url, "a", "b", "c", "--stats")
    assert (said.code, said.out) == (0, "c b a \n")
    assert "7 prompt tokens, 3 tokens in" in said.err
    data = json.loads(cli("chat", "x y", "--url", url + "/v1", "--json").out)
    assert (data["text"], data["finish_reason"]) == ("y x ", "stop")
    assert data["usage"] == {"prompt_tokens": 7, "completion_tokens": 2}


def test_what_an_answer_is_asked_with(cli: Cli, url: str, tmp_path: Path) -> None:
    notes, schema = tmp_path / "notes.txt", tmp_path / "schema.json"
    notes.write_text("one two")
    schema.write_text('{"type": "object"}')
    words = ["--file", str(notes), "--json-schema", str(schema), "--top-p", "0.5", "--top-k", "3"]
    said = cli("run", "--url", url, *words, "--stop", "x", "--no-stream", "--stats", "three")
    assert (said.code, said.out) == (0, "three two one\n")
    assert "1 tokens in" in said.err and "first after" not in said.err
    body = FakeModel.asked[-1]
    assert body["messages"][-1]["content"] == "one two\n\nthree" and "stream" not in body
    assert (body["top_p"], body["top_k"], body["stop"]) == (0.5, 3, ["x"])
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert cli("run", "--url", url, "--file", str(notes)).out == "two one \n"
    notes.write_bytes(b"\xff\xfe")
    said = cli("run", "--url", url, "--file", str(notes), "x")
    assert said.code == 2 and "it is no text" in said.err
    schema.write_text("{")
    said = cli("run", "--url", url, "--json-schema", str(schema), "x")
    assert said.code == 2 and "is no JSON" in said.err


def test_what_follows_a_text(cli: Cli, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("complete", "--url", url, "Once upon", "--max-tokens", "3").out == "Once upon!\n"
    assert FakeModel.asked[-1]["max_tokens"] == 3 and FakeModel.asked[-1]["stream"]
    said = cli("complete", "--url", url, "ab", "--logprobs", "2", "--echo")
    assert "ab!" in said.out and "-0.5000  'b'" in said.out and "–  'a'" in said.out
    assert FakeModel.asked[-1]["logprobs"] == 2 and FakeModel.asked[-1]["echo"]
    told = json.loads(cli("complete", "--url", url, "ab", "--logprobs", "0", "--json").out)
    assert told["logprobs"]["tokens"] == ["a", "b"] and told["finish_reason"] == "length"
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    said = cli("complete", "--url", url)
    assert said.code == 2 and "appliance complete" in said.err


def test_answers_that_do_not_come(cli: Cli, url: str) -> None:
    said = cli("run", "--url", url, "loading")
    assert said.code == 3 and "still loading" in said.err
    assert cli("run", "--url", "http://127.0.0.1:1", "x").code == 6
    assert cli("run", "--url", "ftp://x", "x").code == 2


def test_prompt_from_stdin_and_repl(url: str, own_home: Path) -> None:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "appliance", "run", "--url", url],
        input="one two",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "two one \n")


@pytest.mark.parametrize("listed", ["0", "0,7"])
def test_gpus_that_are_not_here_are_no_reason_for_the_cpu(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, listed: str
) -> None:
    here = known.assumed("l4") if listed == "0,7" else HardwareSnapshot(8, 64 << 30, 60 << 30)
    monkeypatch.setattr(preflight, "detect", lambda: here)
    for words in (("up", "--dry-run"), ("up", "-d")):
        said = cli(*words, "--gpus", listed)
        assert said.code == 8 and f"--gpus {listed} asks for" in said.err
        assert ("0 (NVIDIA L4)" if here.gpus else "--profile cpu") in said.err
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
