"""appliance reload: settings read anew, applied to what serves where that is possible."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
import msgspec

from appliance import paths
from appliance.cli.given import (
    Given,
    check_door,
    compose_anew,
    content_warning,
    read_given,
    up_again,
    write_given,
)
from appliance.cli.output import Output, table
from appliance.cli.prepare import run_folder, short
from appliance.client import Client
from appliance.keys import read_plain_keys, write_digests
from appliance.profiles import store
from appliance.profiles.compose import Composed, set_values
from appliance.profiles.reasons import reason_of
from appliance.profiles.schema import Evidence
from appliance.runtime.config import changed, replaced, setting
from appliance.runtime.plan import Answer
from appliance.status import Change, Reloaded


@click.command()
@click.argument("name", default="default")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting, too.")
@click.pass_obj
def reload(out: Output, /, name: str, settings: tuple[str, ...]) -> None:
    """Read the settings of run NAME anew; what can change while it serves does, at once."""
    run = run_folder(name)
    client = Client(paths.control_socket(run))
    client.status()
    given = read_given(run)
    given = msgspec.structs.replace(given, flags=given.flags | set_values(settings))
    # all of it is looked at before anything changes
    new = compose_anew(given)
    check_door(new.config.serve)
    keys = read_plain_keys(Path(given.api_key_file)) if given.api_key_file else ()
    values = changed(given.composed, new.config)
    told = client.reload(values, _answers(new, values))
    if given.api_key_file:
        write_digests(paths.run_keys(run), keys)
    kept = {key: value for key, value in values.items() if key not in {c.key for c in told.up}}
    write_given(msgspec.structs.replace(given, composed=replaced(given.composed, kept)), run)
    for warning in content_warning(new.config):
        out.warn(warning)
    restart = f"appliance restart {shlex.quote(name)}{' --rolling' if told.rolling else ''}"
    data = msgspec.to_builtins(told) | {
        "restart_command": restart if told.restart else None,
        "up_command": up_again(given) if told.up else None,
        "keys": len(keys) if given.api_key_file else None,
    }
    out.result(_text(told, given, restart, len(keys)), data)


def _answers(new: Composed, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """As they stand in a plan: where each value comes from, and why."""
    name = new.config.profile
    evidence = store.find(name).profile.evidence if name != "none" else Evidence(False, "")
    told = {}
    for key in values:
        answer = Answer(key, setting(new.config, key), new.sources.get(key, "default"))
        reason = reason_of(answer, evidence)
        told[key] = {"value": answer.value, "source": answer.source, "reason": reason}
    return told


def _text(told: Reloaded, given: Given, restart: str, keys: int) -> str:
    parts: list[str] = []
    if told.applied:
        parts.append(f"{told.run}: these hold now\n{_rows(told.applied)}")
    if given.api_key_file:
        parts.append(f"{told.run}: {keys} key(s) of {given.api_key_file} hold now")
    if told.restart:
        what = f"{told.run}: these hold from the next start of each engine on"
        parts.append(f"{what}\n{_rows(told.restart)}\n  now    {restart}")
    if told.up:
        what = f"{told.run}: these need another start of the whole run; nothing of them has changed"
        parts.append(f"{what}\n{_rows(told.up)}\n  now    {up_again(given)}")
    if told.late:
        parts.append(f"{told.run}: not yet taken over by {', '.join(told.late)}")
    return "\n".join(parts) or f"{told.run}: no setting has changed"


def _rows(changes: list[Change]) -> str:
    rows = [[f"  {c.key}", f"{_shown(c.before)} -> {_shown(c.value)}"] for c in changes]
    return table(rows)


def _shown(value: Any) -> str:
    return short(value)
