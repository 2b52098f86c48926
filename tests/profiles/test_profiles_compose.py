"""Layers lie on each other in one order, and each value knows who set it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from profiles_machines import H100, HOST, llama, machine

from appliance import paths
from appliance.errors import UsageError
from appliance.profiles import compose
from appliance.profiles.schema import Evidence, Match, Profile
from appliance.runtime.config import ModelConfig
from appliance.runtime.model.registry import spec_of
from appliance.runtime.plan import resolve

MODEL = ModelConfig(path="/m", id="m")
PROFILE = Profile(
    "p",
    "",
    Match(),
    Evidence(False, "derived"),
    schedule={"chunk": 4096, "max_running": 10},
    serve={"frontends": 2},
    engine={"graph_batch_sizes": [1, 2]},
)


def test_stronger_layers_win() -> None:
    made = compose.compose(
        "r",
        "/run",
        MODEL,
        PROFILE,
        files={"serve.frontends": (3, "/etc/a.toml"), "serve.max_queue": (9, "/etc/a.toml")},
        environment={"schedule.chunk": 1024, "serve.max_queue": 8},
        flags={"schedule.chunk": 512},
    )
    c = made.config
    assert (c.schedule.chunk, c.schedule.max_running) == (512, 10)
    assert (c.serve.frontends, c.serve.max_queue) == (3, 8)
    assert c.engine.graph_batch_sizes == (1, 2)
    assert made.sources == {
        "schedule.chunk": "flag",
        "schedule.max_running": "profile p",
        "serve.frontends": "file /etc/a.toml",
        "serve.max_queue": "environment",
        "engine.graph_batch_sizes": "profile p",
    }
    assert set(made.overridden) == {("schedule.chunk", 4096), ("serve.frontends", 2)}


def test_environment() -> None:
    values = compose.environment_values(
        {
            "APPLIANCE_PORT": "9000",
            "APPLIANCE_ENGINE_TP": "2",
            "APPLIANCE_SCHEDULE_PREFIX_CACHE": "false",
            "APPLIANCE_MODEL_SERVED_NAMES": "a,b",
            "APPLIANCE_LOG_LEVEL": "DEBUG",
            "APPLIANCE_STATE_DIR": "/x",
            "APPLIANCE_MODEL": "some/model",
            "HOME": "/root",
        }
    )
    assert values == {
        "serve.port": 9000,
        "engine.tp": 2,
        "schedule.prefix_cache": False,
        "model.served_names": ("a", "b"),
        "log_level": "debug",
    }


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("APPLIANCE_ENGINE_TPP", "2", "APPLIANCE_ENGINE_TP"),
        ("APPLIANCE_PORT", "eight", "serve.port cannot be 'eight'"),
        ("APPLIANCE_PORT", "70000", "65535"),
        ("APPLIANCE_LOG_LEVEL", "loud", "log_level"),
    ],
)
def test_wrong_environment_is_refused(name: str, value: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        compose.environment_values({name: value})
    assert says in caught.value.message


def test_files(tmp_path: Path) -> None:
    weak, strong = tmp_path / "a.toml", tmp_path / "b.toml"
    weak.write_text("log_level = 'warning'\n[serve]\nport = 1\nmax_queue = 5\n")
    strong.write_text("[serve]\nport = 2\n")
    values = compose.file_values([weak, strong, tmp_path / "none.toml"])
    assert values["serve.port"] == (2, str(strong))
    assert values["serve.max_queue"] == (5, str(weak))
    assert values["log_level"] == ("warning", str(weak))
    weak.write_text("[serve]\nprot = 1\n")
    with pytest.raises(UsageError, match=r"Did you mean 'serve\.port'"):
        compose.file_values([weak])
    weak.write_text("port = 1\n")
    with pytest.raises(UsageError, match=r"Did you mean 'serve\.port'"):
        compose.file_values([weak])


def test_the_machines_folder_speaks_to_whom_it_lets_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its service's folder is shut to other users, who run the appliance for themselves."""
    folder = tmp_path / "etc"
    monkeypatch.setitem(paths.MACHINE, "CONFIG", folder)
    assert compose.config_files()[0] == folder / "config.toml"
    folder.mkdir()
    assert compose.config_files()[0] == folder / "config.toml"
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder)
    assert folder / "config.toml" not in compose.config_files()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("engine.tp", "section.key=value"),
        ("engine.tp=x", "engine.tp cannot be 'x'"),
        ("engine.tpx=2", "Did you mean 'engine.tp'"),
        ("schedule.conservativeness=11", "schedule.conservativeness cannot be"),
    ],
)
def test_wrong_setting_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        compose.set_values([text])
    assert says in caught.value.message


def test_sizes_of_graphs_from_text() -> None:
    assert compose.set_values(["engine.graph_batch_sizes=[1, 2,4]"]) == {
        "engine.graph_batch_sizes": (1, 2, 4)
    }


def test_plan_names_each_source() -> None:
    made = compose.compose("r", "/run", MODEL, PROFILE, flags={"serve.port": 9000})
    plan = resolve(made.config, spec_of(llama()), H100, made.sources)
    found = {a.field: a for a in plan.answers}
    assert (found["serve.port"].value, found["serve.port"].source) == (9000, "flag")
    assert found["schedule.chunk"].source == "profile p"
    assert found["engine.memory_fraction"].source == "rule"
    assert found["engine.memory_fraction"].reason
    assert found["serve.host"].source == "default"
    assert {"auto", 0} & {found["model.dtype"].value, plan.config.serve.frontends} == set()


def test_every_auto_is_answered_on_a_cpu() -> None:
    plan = resolve(compose.compose("r", "/", MODEL, None).config, spec_of(llama()), HOST)
    c = plan.config
    assert (c.engine.device, c.model.dtype, c.engine.attention) == ("cpu", "float32", "reference")
    assert c.engine.graphs is False
    assert c.profile == "none"


@pytest.mark.parametrize("sm", [70, 75])
def test_gpus_without_bfloat16_get_float16_and_the_reason(sm: int) -> None:
    old = machine("Tesla V100" if sm == 70 else "Tesla T4", 16384, sm=sm)
    plan = resolve(compose.compose("r", "/", MODEL, None).config, spec_of(llama()), old)
    (told,) = [a for a in plan.answers if a.field == "model.dtype"]
    assert (told.value, told.reason) == ("float16", f"compute capability {sm / 10} has no bfloat16")
    new = machine("NVIDIA A10", 24576, sm=86)
    plan = resolve(compose.compose("r", "/", MODEL, None).config, spec_of(llama()), new)
    assert plan.config.model.dtype == "bfloat16"
