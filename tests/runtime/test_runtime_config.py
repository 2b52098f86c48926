"""The config's file: read back as written, refused with the field that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.errors import UsageError
from appliance.runtime.config import (
    EngineConfig,
    ModelConfig,
    RuntimeConfig,
    ScheduleConfig,
    ServeConfig,
    read_config,
    write_config,
)

CONFIG = RuntimeConfig(
    run="default",
    dir="/run/x",
    model=ModelConfig(path="/m", id="org/model", served_names=("a", "b")),
    profile="cpu",
    serve=ServeConfig(port=9000),
    schedule=ScheduleConfig(policy="lpm", chunk=512),
    engine=EngineConfig(tp=2, graph_batch_sizes=(1, 2, 4)),
)


def test_written_config_is_read_back(tmp_path: Path) -> None:
    write_config(CONFIG, tmp_path / "config.json")
    assert read_config(tmp_path / "config.json") == CONFIG


@pytest.mark.parametrize(
    "section,field,value",
    [
        ("engine", "tp", 0),
        ("engine", "tpp", 1),
        ("engine", "tp", "two"),
        ("serve", "port", 70000),
        ("schedule", "policy", "fastest"),
        ("schedule", "depth", 2),
        ("schedule", "conservativeness", -0.5),
        ("engine", "memory_fraction", 1.5),
        ("model", "dtype", "int3"),
    ],
)
def test_wrong_field_is_named(tmp_path: Path, section: str, field: str, value: Any) -> None:
    data = msgspec.to_builtins(CONFIG)
    data[section][field] = value
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=field):
        read_config(path)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_config(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"run": "x"')
    with pytest.raises(UsageError, match="not a runtime config"):
        read_config(tmp_path / "torn.json")


def test_sections_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        CONFIG.engine.tp = 4  # type: ignore[misc]
