"""A reload: settings of a run that change while it serves. All of what is asked for, or nothing."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from appliance import paths
from appliance.runtime.config import AT_ENGINE_START, LIVE, replaced, setting, write_config
from appliance.status import Change, FrontendSnapshot, Reloaded
from appliance.supervisor.child import child_environment
from appliance.supervisor.lifecycle import Lifecycle

log = logging.getLogger("appliance.supervisor")

_TAKEN_WITHIN_S = 3.0
"""Frontends look at the settings four times a second."""
_COMPOSED_WITHIN_S = 60.0


class Reloader:
    """Hands new settings to the processes of a run."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._one_at_a_time = asyncio.Lock()

    async def apply(
        self, values: Mapping[str, Any], answers: Mapping[str, Mapping[str, Any]]
    ) -> Reloaded:
        """values: dotted setting -> plain value. answers: of the plan, those of these settings.

        Returns when the frontends go by what they can take. UsageError: nothing has changed.
        """
        async with self._one_at_a_time:
            life = self._lifecycle
            old = life.config
            replaced(old, values)  # what can be had in no way is refused before anything changes
            here = {key: value for key, value in values.items() if key in LIVE | AT_ENGINE_START}
            new = replaced(old, here)
            write_config(new, paths.config_file(life.run))
            version = paths.config_file(life.run).stat().st_mtime_ns
            self._write_plan(here, answers)
            life.reloaded(new)
            logging.getLogger().setLevel(new.log_level.upper())
            told = Reloaded(
                run=new.run,
                applied=_changes(old, {k: v for k, v in here.items() if k in LIVE}),
                restart=life.waiting_for_engines(),
                up=_changes(old, {k: v for k, v in values.items() if k not in here}),
                rolling=len(life.replicas) > 1,
                late=await self._late(version),
            )
            life.tell("reload", words_of(told))
            return told

    def _write_plan(
        self, values: Mapping[str, Any], answers: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """So that `config show` and the dashboard tell what holds."""
        path = paths.plan_file(self._lifecycle.run)
        try:
            plan = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError):
            return
        for answer in plan.get("answers", []):
            if answer.get("field") in values:
                answer |= answers.get(answer["field"], {})
                answer["value"] = values[answer["field"]]
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            (plan["config"][section] if section else plan["config"])[name] = value
        temporary = path.with_name(f".{path.name}")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=1))
        temporary.replace(path)

    async def _late(self, version: int) -> list[str]:
        """Frontends that go by older settings even now. One that has not told of itself yet reads
        the new ones when it does."""
        end = time.monotonic() + _TAKEN_WITHIN_S
        while True:
            late = [
                f"frontend {index}"
                for index, frontend in self._lifecycle.frontends.items()
                if frontend.child.alive and self._behind(index, frontend.child.pid, version)
            ]
            if not late or time.monotonic() > end:
                return late
            await asyncio.sleep(0.02)

    def _behind(self, index: int, pid: int, version: int) -> bool:
        path = paths.frontend_snapshot(self._lifecycle.run, index)
        with suppress(OSError, msgspec.DecodeError):
            found = msgspec.json.decode(path.read_bytes(), type=FrontendSnapshot)
            return found.pid == pid and found.config_version != version
        return False


def _changes(old: Any, values: Mapping[str, Any]) -> list[Change]:
    return [Change(key, setting(old, key), value) for key, value in sorted(values.items())]


def words_of(told: Reloaded) -> str:
    """`log_level is debug; with the next start of the engines: schedule.policy`."""
    parts = [f"{c.key} is {msgspec.json.encode(c.value).decode()}" for c in told.applied]
    if told.restart:
        parts.append(f"with the engines' next start: {', '.join(c.key for c in told.restart)}")
    if told.up:
        parts.append(f"with another `up`: {', '.join(c.key for c in told.up)}")
    if told.late:
        parts.append(f"not yet taken over by {', '.join(told.late)}")
    return "; ".join(parts) or "nothing has changed"


async def reload_by_signal(run: Path) -> None:
    """What SIGHUP asks for. The command line reads files and profiles, so it is asked to."""
    words = [sys.executable, "-m", "appliance", "reload", run.name, "--color", "never"]

    def ask() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMPOSED_WITHIN_S,
            env=child_environment(),
            cwd="/",
            check=False,
        )

    try:
        done = await asyncio.to_thread(ask)
    except (OSError, subprocess.TimeoutExpired) as e:
        log.error("the settings could not be read anew: %s", e)
        return
    if done.returncode:
        log.error("nothing was reloaded: %s", "; ".join(done.stderr.split("\n")).strip("; "))
