"""What is told before the first byte: names, refusals, what is skipped, where it comes from."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakehub import FakeHub, Repo, tiny_model
from pulling import QUICK, Puller

from appliance.errors import (
    ApplianceError,
    IntegrityError,
    NetworkError,
    NotAuthorisedError,
    NotFoundError,
    UsageError,
)
from appliance.hub import plan as planning
from appliance.hub.choose import choose
from appliance.hub.layout import layout_of
from appliance.hub.plan import Want, already_here, make_plan
from appliance.hub.source import Listing, RemoteFile, is_inside, parse_name


def plan_of(name: str = "org/tiny", **more: Any) -> planning.Plan:
    return make_plan(Want(name, **more), QUICK)


def test_a_plan_counts_and_writes_nothing(puller: Puller, tmp_path: Path) -> None:
    plan = puller.plan()
    assert plan.total_bytes == plan.remaining_bytes == sum(map(len, puller.files.values()))
    assert plan.weight_bytes == sum(len(c) for p, c in puller.files.items() if "model-0" in p)
    assert plan.config is not None and plan.config["hidden_size"] == 64
    assert plan.free_bytes > 0 and not plan.layout.repo.exists()
    assert not puller.hub.bodies(".safetensors")


def test_a_plan_counts_what_is_here(puller: Puller) -> None:
    plan = puller.plan()
    by_path = {t.file.path: t.file for t in plan.takes}
    first = by_path["model-00001-of-00002.safetensors"]
    second = by_path["model-00002-of-00002.safetensors"]
    for file, path, size in (
        (first, plan.layout.body(first), first.size),
        (second, plan.layout.part(second), 50_000),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(puller.files[file.path][:size])
    again = puller.plan()
    assert again.here_bytes == first.size + 50_000


def test_gated(hub: FakeHub, env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.hf["org/tiny"] = hub.modelscope["org/tiny"] = Repo(tiny_model(), gated=True)
    with pytest.raises(NotAuthorisedError, match="gated on Hugging Face: no token") as e:
        plan_of(source="hf")
    assert f"{hub.url}/org/tiny" in e.value.hint and e.value.exit_code == 5
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    with pytest.raises(NotAuthorisedError, match="the account 'tester' may not"):
        plan_of(source="hf")
    with pytest.raises(NotAuthorisedError, match="wants a token"):
        plan_of(source="modelscope")


def test_wrong_token(hub: FakeHub, env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.hf["org/tiny"] = Repo(tiny_model())
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(NotAuthorisedError, match="refuses this token"):
        plan_of(source="hf")


@pytest.mark.parametrize("source", ["hf", "modelscope", "auto"])
def test_no_such_model(hub: FakeHub, env: dict[str, str], source: planning.SourceChoice) -> None:
    with pytest.raises(NotFoundError, match="there is no org/nothing") as e:
        plan_of("org/nothing", source=source)
    assert e.value.exit_code == 4 and "private" in e.value.message


def test_a_private_model_needs_a_token(
    hub: FakeHub, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.hf["org/tiny"] = Repo(tiny_model(), private=True)
    with pytest.raises(NotFoundError, match="HF_TOKEN is not set"):
        plan_of(source="hf")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert plan_of(source="hf").listing.name == "org/tiny"


def test_no_such_revision(puller: Puller) -> None:
    puller.hub.hf["org/tiny"].branches = ("main", "fp8")
    with pytest.raises(NotFoundError, match="v9") as e:
        puller.plan(revision="v9")
    if puller.source == "hf":
        assert "It has: main, fp8" in e.value.message
    assert puller.plan(revision="fp8").listing.revision == "fp8"


def test_auto_takes_hugging_face_first_and_says_when_not(hub: FakeHub, env: dict[str, str]) -> None:
    repo = Repo(tiny_model())
    hub.modelscope["org/tiny"] = repo
    plan = plan_of()
    assert plan.listing.source == "modelscope"
    assert plan.note == "from ModelScope: not on Hugging Face"
    hub.hf["org/tiny"] = repo
    plan = plan_of()
    assert plan.listing.source == "hf" and plan.note == ""
    hub.fault("/api/models/", status=503, times=99)
    assert plan_of().note == "from ModelScope: Hugging Face is away"


def test_without_the_modelscope_client(
    hub: FakeHub, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "installed_client", lambda: False)
    with pytest.raises(UsageError, match="not installed") as e:
        plan_of(source="modelscope")
    assert "appliance[modelscope]" in e.value.hint
    with pytest.raises(NotFoundError, match="on Hugging Face"):
        plan_of("org/nothing")


def test_questions_are_asked_again(puller: Puller) -> None:
    puller.hub.fault("/api/", status=503)
    puller.hub.fault("/api/", status=429, headers={"Retry-After": "0"})
    assert puller.plan().total_bytes


def test_a_hub_that_is_down(puller: Puller) -> None:
    puller.hub.fault("/api/", status=503, times=999)
    with pytest.raises(NetworkError, match="cannot be asked") as e:
        puller.plan()
    assert e.value.exit_code == 6


@pytest.mark.parametrize("source", ["hf", "modelscope"])
def test_a_hub_that_does_not_listen(env: dict[str, str], source: planning.SourceChoice) -> None:
    with pytest.raises(NetworkError, match="cannot be asked"):
        plan_of(source=source, endpoint="http://127.0.0.1:9")


def test_a_hub_that_does_not_answer(hub: FakeHub, env: dict[str, str]) -> None:
    asked = threading.Event()

    class Silent(dict[str, Repo]):
        def get(self, *args: Any) -> Any:
            asked.wait(10)
            return None

    hub.hf = Silent()
    impatient = replace(QUICK, stall_s=0.05, questions=2)
    with pytest.raises(NetworkError, match=r"no answer within 0.05 s"):
        make_plan(Want("org/tiny", source="hf"), impatient)
    asked.set()


def test_a_login_page_instead_of_a_hub(puller: Puller) -> None:
    puller.hub.fault("/api/", status=200, html=True, times=9)
    with pytest.raises(NetworkError, match="does not speak the protocol"):
        puller.plan()


def test_a_commit_that_is_a_path_is_refused(hub: FakeHub, env: dict[str, str]) -> None:
    hub.hf["org/tiny"] = Repo(tiny_model(), commit="../../evil")
    with pytest.raises(IntegrityError, match="names no commit"):
        plan_of(source="hf")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline(puller: Puller, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    before = len(puller.hub.log)
    with pytest.raises(NetworkError, match=f"switched off by {variable}"):
        puller.plan()
    assert already_here(Want("org/tiny")) is None
    monkeypatch.delenv(variable)
    assert already_here(Want("org/tiny")) is None
    folder = puller.pull().folder
    calls = len(puller.hub.log)
    monkeypatch.setenv(variable, "1")
    here = already_here(Want("org/tiny"))
    assert here is not None and here.folder == folder
    assert before == 0 and len(puller.hub.log) == calls


@pytest.mark.parametrize(
    "path",
    [
        "../evil",
        "/etc/evil",
        "a/../../evil",
        "a\\..\\evil",
        "C:evil",
        "a//b",
        "./a",
        "a\0b",
        "x" * 300,
    ],
)
def test_paths_that_leave_the_folder_are_refused(
    hub: FakeHub, env: dict[str, str], path: str, tmp_path: Path
) -> None:
    assert not is_inside(path)
    repo = hub.hf["org/tiny"] = Repo(tiny_model())
    sha = "0" * 40
    repo.listing = [*repo.tree(), {"type": "file", "oid": sha, "size": 3, "path": path}]
    with pytest.raises(IntegrityError, match="leaves the model's folder"):
        plan_of(source="hf")
    ms = hub.modelscope["org/tiny"] = Repo({**tiny_model(), path: b"bad"})
    with pytest.raises(IntegrityError, match="leaves the model's folder"):
        plan_of(source="modelscope")
    assert ms.files and not list(tmp_path.rglob("*evil*"))


def test_digests_that_are_paths_are_refused(hub: FakeHub, env: dict[str, str]) -> None:
    repo = hub.hf["org/tiny"] = Repo(tiny_model())
    for oid in ("../../../../evil", "A" * 63 + "/", ""):
        lfs = {"oid": oid or "-", "size": 9, "pointerSize": 1}
        bad = {"type": "file", "oid": "0" * 40, "size": 9, "path": "model.safetensors", "lfs": lfs}
        repo.listing = [*repo.tree(), bad]
        with pytest.raises(IntegrityError, match="no sha256 digest"):
            plan_of(source="hf")
        repo.listing = None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a/b/c",
        "../x",
        "a/..",
        "a b/c",
        "a/b?x",
        "-x/y",
        "a/b.git",
        "a/b--c",
        "host:80/x",
        "a\\b",
    ],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(UsageError, match="not the name of a model"):
        parse_name(text)


def test_names() -> None:
    assert parse_name("gpt2") == ("gpt2", None)
    assert parse_name("Qwen/Qwen3-8B@refs/pr/1") == ("Qwen/Qwen3-8B", "refs/pr/1")
    assert parse_name("a/b", "v1") == parse_name("a/b@v1") == parse_name("a/b@v1", "v1")
    with pytest.raises(UsageError, match="two revisions"):
        parse_name("a/b@x", "y")
    with pytest.raises(UsageError, match="not a revision"):
        parse_name("a/b@../x")
    with pytest.raises(UsageError, match="an address") as e:
        parse_name("https://huggingface.co/Qwen/Qwen3-8B/tree/main")
    assert e.value.hint == "appliance pull Qwen/Qwen3-8B"


def listing(*paths: str) -> Listing:
    files = tuple(RemoteFile(p, 10, "sha256", "0" * 64) for p in paths)
    return Listing("hf", "Hugging Face", "http://x", "a/b", "main", "c" * 40, files)


def test_second_formats_are_skipped_and_named() -> None:
    duplicates = [
        "original/consolidated.00.pth",
        "original/params.json",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model.bin.index.json",
        "consolidated.safetensors",
        "tf_model.h5",
        "flax_model.msgpack",
        "onnx/model.onnx",
        "model-q4.gguf",
    ]
    kept = ["config.json", "model.safetensors", "tokenizer.model", "README.md"]
    choice = choose(listing(*kept, *duplicates))
    assert [f.path for f in choice.take] == kept
    assert {s.file.path for s in choice.skipped} == set(duplicates)
    assert all(s.why for s in choice.skipped)
    assert len(choose(listing(*kept, *duplicates), all_files=True).take) == 13
    only = choose(listing(*kept, *duplicates), include=["*.gguf", "*.json"], exclude=["orig*"])
    assert [f.path for f in only.take] == [
        "config.json",
        "pytorch_model.bin.index.json",
        "model-q4.gguf",
    ]
    with pytest.raises(NotFoundError, match="no file of a/b matches"):
        choose(listing(*kept), include=["*.nothing"])


def test_a_lone_consolidated_file_is_kept() -> None:
    assert len(choose(listing("config.json", "consolidated.safetensors")).take) == 2


def test_pickled_weights_are_refused() -> None:
    with pytest.raises(NotFoundError, match=r"only pickled weights \(pytorch_model.bin\)"):
        choose(listing("config.json", "pytorch_model.bin"))
    with pytest.raises(NotFoundError, match="no safetensors weights"):
        choose(listing("config.json", "model.gguf"))


def test_refusals_have_a_cure(hub: FakeHub, env: dict[str, str]) -> None:
    hub.hf["org/gated"] = Repo(tiny_model(), gated=True)
    for name in ("org/gated", "org/nothing", "no good"):
        with pytest.raises(ApplianceError) as e:
            plan_of(name)
        assert e.value.hint and e.value.code != "APL-000"


def test_layouts_are_the_hubs_own(env: dict[str, str], tmp_path: Path) -> None:
    hf = layout_of("hf", "org/tiny", "abc")
    assert hf.folder == tmp_path / "hf/hub/models--org--tiny/snapshots/abc"
    ms = layout_of("modelscope", "org/tiny", "master")
    assert ms.folder == tmp_path / "ms/models/org--tiny/snapshots/master"
