"""pull, list, show and rm as commands: words, JSON and exit codes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from fakehub import TOKEN, FakeHub, Repo, tiny_model
from pulling import QUICK, Puller

from appliance.cli import pull as pull_module
from appliance.cli import rate, start
from appliance.cli.main import run
from appliance.errors import UsageError
from appliance.hub.throttle import Throttle

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    monkeypatch.setattr(pull_module, "Patience", lambda: QUICK)


def answer(capsys: Captured, *argv: str) -> tuple[int, Any, str]:
    code = run([*argv, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_pull_list_show_rm(puller: Puller, capsys: Captured) -> None:
    code, pulled, err = answer(capsys, "pull", "org/tiny", "--source", puller.source)
    assert code == 0 and err.startswith("Plan  org/tiny from ")
    total = sum(map(len, puller.files.values()))
    assert pulled["downloaded_bytes"] == pulled["total_bytes"] == total
    assert pulled["source"] == puller.source and pulled["dry_run"] is False
    assert pulled["fit"]

    code, listed, _ = answer(capsys, "list")
    [model] = listed["models"]
    assert code == 0 and listed["schema"] == "appliance.list/1"
    assert model["complete"] and model["size_bytes"] == total and model["files"] == 7
    assert model["path"] == pulled["path"] and model["modified"].endswith("+00:00")

    code, shown, _ = answer(capsys, "show", "org/tiny")
    assert code == 0 and shown["schema"] == "appliance.show/1"
    assert shown["architecture"] == "LlamaForCausalLM" and shown["supported"]
    assert (shown["parameters"], shown["context_tokens"]) == (100_000, 512)
    assert shown["license"] == "apache-2.0" and shown["chat_template"]

    code, would, _ = answer(capsys, "rm", "org/tiny", "--dry-run")
    assert code == 0 and would["dry_run"] and would["freed_bytes"] >= total
    code, refused, _ = answer(capsys, "rm", "org/tiny")
    assert code == 2 and refused["error"]["fix"] == ["Add -y."]
    code, removed, _ = answer(capsys, "rm", "org/tiny", "-y")
    assert code == 0 and removed["freed_bytes"] == would["freed_bytes"]
    assert answer(capsys, "list")[1]["models"] == []
    code, lost, _ = answer(capsys, "rm", "org/tiny", "-y")
    assert code == 4 and lost["error"]["code"] == "APL-NOT-001"


def test_words_for_people(hf: Puller, capsys: Captured) -> None:
    hf.files["pytorch_model.bin"] = b"x" * 5000
    assert run(["list"]) == 0
    assert "No models on this disk" in capsys.readouterr().out
    assert run(["pull", "org/tiny"]) == 0
    out, err = capsys.readouterr()
    assert "pytorch_model.bin (the same weights, pickled); --all-files to keep" in err
    assert "0.4 MB to download" in err and "this machine: " in err
    assert out.startswith("Pulled  0.4 MB in 0s") and "digests of 7 files verified" in out
    assert run(["pull", "org/tiny"]) == 0
    out, err = capsys.readouterr()
    assert "already here 0.4 MB, 0.0 MB to download" in err
    assert out.startswith("Here already: org/tiny, 0.4 MB")
    assert run(["list"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "SOURCE", "REV", "SIZE", "FILES", "LAST", "USED", "COMPLETE"]
    assert row.split()[:2] == ["org/tiny", "hf"] and row.endswith("yes")
    assert run(["show", "org/tiny"]) == 0
    card = capsys.readouterr().out
    assert "json: its template knows of no tools" in card
    config = hf.pull().folder / "tokenizer_config.json"
    template = "{% if tools %}<|python_tag|>{% endif %}{{ messages }} enable_thinking"
    config.write_text(json.dumps({"chat_template": template}))
    _, shown, _ = answer(capsys, "show", str(config.parent))
    assert (shown["tool_calls"], shown["reasoning"]) == ("llama3", "qwen3")
    assert "100.00 k" in card and "512 tokens" in card and "apache-2.0" in card


def test_list_tree_sort_and_show_parts(hf: Puller, capsys: Captured) -> None:
    hf.pull()
    assert run(["list", "--tree", "--sort", "used"]) == 0
    tree = capsys.readouterr().out
    assert tree.startswith("org/tiny  hf\n  main@") and "model.safetensors.index.json" in tree
    code, listed, _ = answer(capsys, "list", "--sort", "used")
    assert code == 0 and listed["models"][0]["used"].endswith("+00:00")
    code, shown, _ = answer(capsys, "show", "org/tiny", "--files", "--template", "--config")
    assert code == 0 and {f["path"] for f in shown["files"]} == set(hf.files)
    assert shown["config"]["hidden_size"] and "template" in shown
    code, shown, _ = answer(capsys, "show", "org/tiny", "--fit")
    told = {f["profile"]: f["fit"] for f in shown["fits"]}
    assert code == 0 and told["cpu"].startswith("fits with profile cpu")
    assert told["h100x1-bf16"].startswith("fits with profile h100x1-bf16")


def test_list_of_one_hub(puller: Puller, capsys: Captured) -> None:
    puller.pull()
    for source in ("hf", "modelscope"):
        _, listed, _ = answer(capsys, "list", "--source", source)
        assert [m["source"] for m in listed["models"]] == [source] * (source == puller.source)


def test_a_disk_too_small_names_what_could_go(
    hub: FakeHub, hf: Puller, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf.pull()
    hub.hf["org/large"] = Repo(tiny_model())
    monkeypatch.setattr("appliance.hub.plan.free_bytes", lambda path: 1000)
    code, said, _ = answer(capsys, "pull", "org/large", "--source", "hf")
    error = said["error"]
    assert code == 7 and error["detail"]["free_bytes"] == 1000 < error["detail"]["needed_bytes"]
    assert any("appliance rm org/tiny" in way and "frees 0.4" in way for way in error["fix"])


def test_one_revision_goes(hf: Puller, capsys: Captured) -> None:
    hf.pull()
    code, said, _ = answer(capsys, "rm", "org/tiny", "--revision", "nope", "-y")
    assert code == 4
    code, said, _ = answer(capsys, "rm", "org/tiny", "--revision", "main", "-y")
    assert code == 0 and said["freed_bytes"] > 0


def test_no_more_than_the_rate_that_was_asked_for(hf: Puller, capsys: Captured) -> None:
    now = [100.0]
    throttle = Throttle(1000, lambda: now[0])
    assert throttle.taken(500) == 0.5 and throttle.taken(500) == 1.0
    now[0] += 10
    assert throttle.taken(500) == 0.5, "silence is not saved up"
    assert Throttle(0).taken(1 << 40) == 0
    code, pulled, _ = answer(capsys, "pull", "org/tiny", "--max-rate", "2MB/s")
    assert code == 0
    assert pulled["downloaded_bytes"] / pulled["duration_s"] < 4e6
    code, error, _ = answer(capsys, "pull", "org/tiny", "--max-rate", "2k")
    assert code == 2 and error["error"]["code"] == "APL-USE-033"


def test_files_of_other_tools_are_read_or_believed(hf: Puller, capsys: Captured) -> None:
    folder = hf.pull().folder
    manifests = list((folder.parents[1]).rglob("*.json"))
    body = (folder / "model-00001-of-00002.safetensors").resolve()
    content = bytearray(body.read_bytes())
    content[-1] ^= 1
    body.write_bytes(content)
    assert manifests
    before = len(hf.hub.bodies("model-00001"))
    code, _, _ = answer(capsys, "pull", "org/tiny", "--verify", "size")
    assert code == 0 and len(hf.hub.bodies("model-00001")) == before
    code, _, _ = answer(capsys, "pull", "org/tiny", "--verify", "full")
    assert code == 0 and len(hf.hub.bodies("model-00001")) == before + 1
    hf.assert_complete(folder)


def test_the_verdict_for_another_machine(hf: Puller, capsys: Captured) -> None:
    code, plan, _ = answer(capsys, "pull", "org/tiny", "--dry-run", "--for-profile", "h100x1-bf16")
    assert code == 0 and plan["fit"].startswith("fits with profile h100x1-bf16")
    code, error, _ = answer(capsys, "pull", "org/tiny", "--for-profile", "h100x1-bf61")
    assert code == 4 and "Did you mean 'h100x1-bf16'" in error["error"]["message"]


def test_a_token_from_a_file(
    hub: FakeHub, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.hf["org/tiny"] = Repo(tiny_model(), private=True)
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o644)
    code, error, _ = answer(capsys, "pull", "org/tiny", "--token-file", str(file))
    assert code == 2 and error["error"]["fix"] == [f"chmod 600 {file}"]
    file.chmod(0o600)
    code, _, _ = answer(capsys, "pull", "org/tiny", "--token-file", str(file))
    assert code == 0 and "HF_TOKEN" not in os.environ
    code, error, _ = answer(capsys, "pull", "org/tiny", "--token-file", str(tmp_path / "none"))
    assert code == 2 and error["error"]["code"] == "APL-USE-034"


def test_how_long_it_may_take(
    hf: Puller, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate, "LARGE_PULL", 100_000)
    assert run(["pull", "org/tiny"]) == 0
    assert "last rate" not in capsys.readouterr().err
    assert run(["rm", "org/tiny", "-y"]) == 0
    assert run(["pull", "org/tiny", "--dry-run"]) == 0
    assert re.search(r"about \d+s at your last rate", capsys.readouterr().out)


def test_up_offers_the_pull(hf: Puller, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(["up", "org/tiny"]) == 4, "nobody is there to ask"
    assert "appliance pull org/tiny" in capsys.readouterr().err
    assert not hf.hub.bodies(".safetensors")

    class FarEnoughError(UsageError):
        pass

    def claim(*_: object) -> None:
        raise FarEnoughError("far enough")

    monkeypatch.setattr(start, "Claim", claim)
    assert run(["up", "org/tiny", "-y", "--offline"]) == 4
    assert run(["up", "org/tiny", "-y", "--port", "0"]) == 2
    err = capsys.readouterr().err
    assert "Plan  org/tiny" in err and "Pulled  0.4 MB" in err and "far enough" in err
    monkeypatch.setattr(pull_module, "fits", lambda plan: "does not fit: 9.9 GB more")
    assert run(["rm", "org/tiny", "-y"]) == 0
    assert run(["up", "org/tiny", "-y"]) == 7
    assert "appliance pull org/tiny     downloads it all the same" in capsys.readouterr().err


def test_dry_run(hf: Puller, capsys: Captured) -> None:
    code, plan, err = answer(capsys, "pull", "org/tiny", "--dry-run", "--exclude", "*.md")
    assert code == 0 and plan["dry_run"] and err == ""
    assert [f["path"] for f in plan["files"]] == [p for p in hf.files if p != "README.md"]
    assert plan["skipped"][0]["why"] == "--exclude *.md"
    assert not hf.hub.bodies(".safetensors")
    assert run(["pull", "org/tiny", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("Plan  org/tiny from Hugging Face, main@")


def test_include(hf: Puller, capsys: Captured) -> None:
    code, pulled, _ = answer(capsys, "pull", "org/tiny", "--include", "*.json")
    assert code == 0 and len(pulled["files"]) == 4 and not hf.hub.bodies("model-0")
    code, _, err = answer(capsys, "show", "org/tiny")
    assert code == 4 and "only in part" in err


def test_a_folder_needs_no_pull(hf: Puller, capsys: Captured) -> None:
    folder = hf.pull().folder
    code, pulled, _ = answer(capsys, "pull", str(folder))
    assert code == 0 and pulled["downloaded_bytes"] == 0
    code, shown, _ = answer(capsys, "show", str(folder))
    assert code == 0 and shown["path"] == str(folder)


def test_offline_and_here(hf: Puller, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    hf.pull()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(["pull", "org/tiny"]) == 0
    assert "nothing to pull" in capsys.readouterr().out


def case(hub: FakeHub, name: str) -> list[str]:
    """Breaks the hub in one way, and says which command meets it."""
    shard = "model-00001"
    match name:
        case "unknown flag":
            return ["pull", "org/tiny", "--wat"]
        case "bad name":
            return ["pull", "org/../tiny"]
        case "no such model":
            return ["pull", "org/nothing"]
        case "no such revision":
            return ["pull", "org/tiny@nope"]
        case "gated":
            hub.hf["org/tiny"].gated = True
        case "down":
            return ["pull", "org/tiny", "--endpoint", "http://127.0.0.1:9"]
        case "cut":
            hub.fault(shard, cut_after=0, times=99)
        case "busy":
            hub.fault(shard, status=429, times=99)
        case "corrupt":
            hub.fault(shard, corrupt=True, times=99)
        case "pickled":
            hub.hf["org/tiny"].files = {"config.json": b"{}", "pytorch_model.bin": b"x"}
            hub.hf["org/tiny"].commit = "e" * 40
    return ["pull", "org/tiny"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("unknown flag", 2),
        ("bad name", 2),
        ("no such model", 4),
        ("no such revision", 4),
        ("pickled", 4),
        ("gated", 5),
        ("down", 6),
        ("cut", 6),
        ("busy", 6),
        ("disk", 7),
        ("corrupt", 9),
    ],
)
def test_exit_codes(
    hub: FakeHub, capsys: Captured, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    hub.hf["org/tiny"] = Repo(tiny_model())
    if name == "disk":
        monkeypatch.setattr("appliance.hub.plan.free_bytes", lambda path: 1000)
    got, error, err = answer(capsys, *case(hub, name))
    assert got == code == error["error"]["exit_code"]
    assert error["schema"] == "appliance.error/1" and error["error"]["fix"]
    assert "Traceback" not in err and f"error[{error['error']['code']}]" in err
