"""From what was typed to a run that can start: model, machine, profile, every value, the fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from appliance import paths
from appliance.cli.given import Given, address_that_was_typed, content_warning, own_keys
from appliance.cli.output import gigabytes, nearest, table
from appliance.errors import ABSENT, NotFoundError
from appliance.hardware import HardwareSnapshot, detect
from appliance.profiles import compose, match, store
from appliance.profiles.fit import Fit
from appliance.profiles.known import assumed
from appliance.profiles.pick import Picked, pick
from appliance.profiles.reasons import explained
from appliance.profiles.schema import Profile, convert
from appliance.profiles.ways import limit_context
from appliance.runtime.config import ModelConfig
from appliance.runtime.model.registry import read_spec
from appliance.runtime.plan import Plan, resolve
from appliance.runtime.spec import ModelSpec

DEFAULT_ID = "appliance-default"

FLAGS = {
    "host": "serve.host",
    "port": "serve.port",
    "uds": "serve.uds",
    "served_name": "model.served_names",
    "load_format": "model.load_format",
    "tp": "engine.tp",
    "context": "model.context",
    "chat_template": "model.chat_template",
    "no_auth": "serve.no_auth",
    "api_key_file": "serve.keys_file",
    "request_log": "serve.request_log",
    "profile_steps": "engine.profile_steps",
}
"""Options of `up` -> the setting each is short for."""


@dataclass(frozen=True)
class Asked:
    """What the command line says. options: those of FLAGS that were given."""

    model: str | None = None
    name: str = "default"
    profile: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    assume: str | None = None
    """GPUs to reckon with instead of those that are here: `h100x8`."""
    weights: bool = True
    """Whether the model's weights must be on this disk; its config.json always must."""


@dataclass(frozen=True)
class Prepared:
    plan: Plan
    spec: ModelSpec
    fit: Fit
    hardware: HardwareSnapshot
    why_profile: str
    warnings: tuple[str, ...]
    given: Given
    """What the values came from, so that a reload can compose them anew."""
    weaker: Mapping[str, tuple[tuple[str, Any], ...]] = field(default_factory=dict)
    """Setting -> (who, value) of the layers that set it too and lost, the strongest first."""


def locate(name: str | None, load_format: str | None, weights: bool = True) -> ModelConfig:
    """Where the model lies on this disk. Nothing is fetched: NotFoundError names the pull."""
    if not weights:
        load_format = "dummy"
    if not name or name == DEFAULT_ID:
        return ModelConfig(path=str(_default_model(load_format)), id=DEFAULT_ID)
    folder = Path(name).expanduser()
    if load_format == "dummy" and (folder / "config.json").is_file():
        # weights are made up, so a folder without them will do
        return ModelConfig(path=str(folder.resolve()), id=folder.resolve().name)
    from appliance.hub import local
    from appliance.hub import store as disk

    if local.is_folder_name(name):
        found = local.folder_of(name)
        return ModelConfig(path=str(found.resolve()), id=found.resolve().name)
    model = disk.find_model(name)
    return ModelConfig(path=str(model.folder), id=model.name, revision=model.commit)


def _default_model(load_format: str | None) -> Path:
    folder = paths.default_model()
    wanted = "config.json" if load_format == "dummy" else "model.safetensors"
    if not (folder / wanted).is_file():
        raise NotFoundError(
            f"the embedded default model is not in this installation: {folder} has no {wanted}.",
            "Install the appliance again, or name a model: appliance up MODEL",
            code="APL-NOT-009",
        )
    return folder


@dataclass(frozen=True)
class _Layers:
    """What is said of a run, from which the same run on another machine or with further settings
    can be composed. profile: that was named, if one was."""

    run: str
    model: ModelConfig
    spec: ModelSpec
    environment: dict[str, Any]
    files: dict[str, tuple[Any, str]]
    flags: dict[str, Any]
    profile: str | None
    stored: dict[str, store.Stored] = field(default_factory=store.load)

    def composed_with(self, profile: Profile) -> compose.Composed:
        return compose.compose(
            self.run,
            str(paths.runtime_dir() / self.run),
            self.model,
            profile,
            environment=self.environment,
            files=self.files,
            flags=self.flags,
        )

    def picked(self, hardware: HardwareSnapshot) -> Picked:
        """The profile for that machine, and the plan with it."""

        def plan_with(profile: Profile) -> Plan:
            made = self.composed_with(profile)
            return resolve(made.config, self.spec, hardware, made.sources)

        if self.profile:
            profile = store.find(self.profile, self.stored).profile
            match.require(profile, hardware)
            offered = [match.Chosen(profile, "named")]
        else:
            offered = match.candidates(self.stored.values(), hardware)
            tp = self.flags.get("engine.tp")
            offered = [c for c in offered if c.profile.match.count == tp] or offered
        return pick(offered, self.spec, hardware, plan_with)

    def reckon(
        self, hardware: HardwareSnapshot, settings: Mapping[str, Any], elsewhere: bool = False, /
    ) -> Fit:
        """As profiles.fit.Reckon has it."""
        changed = replace(self, flags={**self.flags, **settings})
        return (changed._elsewhere() if elsewhere else changed).picked(hardware).fit

    def _elsewhere(self) -> _Layers:
        here = ("engine.tp", "engine.replicas", "engine.device")
        return replace(
            self,
            profile=None,
            environment={k: v for k, v in self.environment.items() if k not in here},
            files={k: v for k, v in self.files.items() if k not in here},
            flags={k: v for k, v in self.flags.items() if k not in here},
        )


def prepare(asked: Asked, environ: Mapping[str, str] = os.environ) -> Prepared:
    """Answers every value and checks that it can be had here. Reads no weights.

    UsageError, NotFoundError, HardwareError or DoesNotFitError, each with its cure.
    """
    flags = {
        FLAGS[k]: convert(FLAGS[k], v, f"--{k.replace('_', '-')}")
        for k, v in asked.options.items()
        if v is not None and v is not False and v != ()
    }
    flags |= compose.set_values(asked.settings)
    environment = compose.environment_values(environ)
    named = asked.model or environ.get("APPLIANCE_MODEL")
    try:
        model = locate(named, flags.get("model.load_format"), asked.weights)
    except NotFoundError as e:
        if asked.weights or e.code not in ABSENT:
            raise
        hint = f"appliance pull {named} --dry-run     tells whether it fits; nothing is downloaded"
        raise NotFoundError(e.message, f"{e.hint}\n{hint}", code=e.code) from e
    spec = read_spec(Path(model.path))
    hardware = assumed(asked.assume) if asked.assume else detect()
    read = compose.config_files()
    files = own_keys(paths.keys_file()) | compose.file_values(read)
    flags = address_that_was_typed(flags, {*files, *environment})

    wanted = asked.profile or environ.get("APPLIANCE_PROFILE")
    layers = _Layers(asked.name, model, spec, environment, files, flags, wanted)
    picked = layers.picked(hardware)
    profile, why = picked.profile, picked.why
    composed = layers.composed_with(profile)
    plan, fit = limit_context(
        picked.plan, spec, hardware, composed.config.model.context > 0, layers.reckon
    )
    plan = explained(plan, profile.evidence)
    warnings = []
    odd = match.mismatch(profile, hardware)
    if odd:
        warnings.append(f"profile {profile.name} was made for another machine: {odd}")
    for name, value in composed.overridden:
        now = next(a.value for a in plan.answers if a.field == name)
        warnings.append(f"{name} is {now} ({composed.sources[name]}), not the profile's {value}")
    warnings += content_warning(plan.config)
    idle = len(hardware.gpus) - len(fit.gpus)
    if fit.gpus and idle:
        warnings.append(_idle_text(plan, len(hardware.gpus), len(fit.gpus)))
    given = Given(
        name=asked.name,
        profile=plan.config.profile,
        flags=flags,
        environment=environment,
        files=tuple(str(path) for path in read),
        own_keys=str(paths.keys_file()),
        composed=composed.config,
        model=asked.model,
    )
    return Prepared(plan, spec, fit, hardware, why, tuple(warnings), given, composed.weaker)


def _idle_text(plan: Plan, seen: int, used: int) -> str:
    more = seen // plan.config.engine.tp
    cure = f"; `--set engine.replicas={more}` serves from all" if more * used == seen else ""
    return f"{used} of {seen} GPUs are used{cure}"


def plan_data(prepared: Prepared) -> dict[str, Any]:
    """Schema appliance.plan/1: what is written to the run's plan file, too."""
    plan = prepared.plan
    return {
        "schema": "appliance.plan/1",
        "config": msgspec.to_builtins(plan.config),
        "answers": msgspec.to_builtins(plan.answers),
        "profile": {"name": plan.config.profile, "why": prepared.why_profile},
        "fit": msgspec.to_builtins(prepared.fit),
    }


def answers_text(answers: list[dict[str, Any]]) -> str:
    """One line a setting: value, who set it, why."""
    rows = [("SETTING", "VALUE", "FROM", "WHY")]
    for a in answers:
        rows.append((a["field"], short(a["value"]), a["source"], a["reason"] or ""))
    return table(rows)


def machine_text(hardware: HardwareSnapshot) -> str:
    """`1× NVIDIA H100 80GB HBM3, driver 580.95, CUDA 13.0` or `2 cores, 25.3 GB memory, no GPU`."""
    if not hardware.gpus:
        gpu = f"no GPU ({hardware.problem})" if hardware.problem else "no GPU"
        return f"{hardware.cores} cores, {gigabytes(hardware.memory_total)} memory, {gpu}"
    names = {g.name for g in hardware.gpus}
    counted = " + ".join(f"{sum(g.name == n for g in hardware.gpus)}× {n}" for n in sorted(names))
    return f"{counted}, driver {hardware.driver}, CUDA {hardware.cuda}"


def memory_lines(fit: Fit) -> list[str]:
    """What each part takes of one rank, and what others hold of each GPU."""
    parts = [
        ("weights", fit.weights_bytes),
        ("KV pages", fit.pool_bytes),
        ("activations", fit.activations_bytes),
        ("graphs", fit.graphs_bytes),
    ]
    lines = ["memory   " + " + ".join(f"{gigabytes(n)} {word}" for word, n in parts if n)]
    for g in fit.gpus:
        held = f": {', '.join(g.holders)}" if g.holders else ""
        lines.append(
            f"         GPU {g.index} {g.name}: {gigabytes(g.room_bytes)} of "
            f"{gigabytes(g.memory_total)} for us, {gigabytes(g.others_bytes)} in use before{held}"
        )
    return lines


def resolved_text(prepared: Prepared) -> str:
    c = prepared.plan.config
    parts = [f"tp={c.engine.tp}", c.model.dtype, f"context={c.model.context}"]
    parts += [f"chunk={c.schedule.chunk}", f"running≤{c.schedule.max_running}"]
    return f"profile {c.profile} ({prepared.why_profile}): {' '.join(parts)}"


def runs() -> list[Path]:
    """The folders of runs that have been started and not been cleaned away."""
    base = paths.runtime_dir()
    return sorted(p.parent for p in base.glob("*/lock")) if base.is_dir() else []


def run_folder(name: str) -> Path:
    """The folder of a run that exists; NotFoundError with the names of those that do."""
    folder = paths.runtime_dir() / name
    if name != "default" and not folder.is_dir():
        known = ", ".join(p.name for p in runs()) or "none"
        raise NotFoundError(
            f"there is no run named '{name}'.{nearest(name, [p.name for p in runs()])}",
            f"Runs: {known}.",
            code="APL-NOT-011",
        )
    return folder


def short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        if len(value) > 6:
            return f"{', '.join(map(str, value[:4]))}, … {value[-1]} ({len(value)})"
        return ", ".join(map(str, value)) or "(none)"
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value) if value != "" else "(none)"
