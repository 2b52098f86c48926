"""`up --profile-steps`: the setting it is short for, and where the traces will lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from appliance import paths
from appliance.cli import start
from appliance.cli.output import Output
from appliance.cli.prepare import Asked, prepare

Cli = Callable[..., Any]


def test_steps_to_trace_are_a_setting(cli: Cli) -> None:
    plan = json.loads(cli("up", "--dry-run", "--profile-steps", "3", "--json").out)
    (answer,) = [a for a in plan["answers"] if a["field"] == "engine.profile_steps"]
    assert (answer["value"], answer["source"]) == (3, "flag")
    assert cli("up", "--dry-run", "--profile-steps", "0").code == 2


def test_each_engine_is_said_to_write_its_own() -> None:
    settings = ("engine.replicas=2", "serve.port=0")
    for steps, files in ((None, 0), (5, 2)):
        asked = Asked(None, "traced", options={"profile_steps": steps}, settings=settings)
        claim = start.Claim(prepare(asked), Output())
        told = start.traces(claim)
        claim.listener.close()
        claim.lock.release()
        assert len(told) == files
        for replica, line in enumerate(told):
            assert f"5 steps to {paths.trace_file('traced', replica)}" in line
