"""The profile for a model on a machine: the fewest GPUs that hold it with its whole context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from appliance.errors import ApplianceError
from appliance.hardware import HardwareSnapshot, detect
from appliance.profiles.fit import Fit, fit, gb
from appliance.profiles.known import assumed_for
from appliance.profiles.match import Chosen, candidates, mismatch
from appliance.profiles.schema import Profile
from appliance.profiles.store import load
from appliance.profiles.ways import machine_that_holds
from appliance.runtime.config import RuntimeConfig
from appliance.runtime.model.registry import spec_of
from appliance.runtime.plan import Plan, resolve
from appliance.runtime.spec import ModelSpec


class Picked(Struct, frozen=True):
    """fit: of the plan, before its context is cut to what fits."""

    profile: Profile
    why: str
    plan: Plan
    fit: Fit


def pick(
    offered: Sequence[Chosen],
    spec: ModelSpec,
    hardware: HardwareSnapshot,
    plan_with: Callable[[Profile], Plan],
) -> Picked:
    """The first offered profile with which the model and its whole context fit; else the one with
    the longest context. When none can be planned, the first one's ApplianceError.

    plan_with: a profile -> the resolved plan of the run with it.
    """
    tried: list[Picked] = []
    problem: ApplianceError | None = None
    for chosen in offered:
        try:
            plan = plan_with(chosen.profile)
            found = fit(spec, plan.config, hardware)
        except ApplianceError as e:
            problem = problem or e
            continue
        tried.append(Picked(chosen.profile, chosen.why, plan, found))
        if found.fits and found.longest_context >= found.context:
            break
    if not tried:
        raise problem or ApplianceError("no profile was offered")
    last = tried[-1]
    if not last.fit.fits or last.fit.longest_context < last.fit.context:
        return max(tried, key=lambda p: (p.fit.fits, p.fit.longest_context, p.profile.match.count))
    if len(tried) > 1:
        fewer = tried[-2]
        lacks = "its whole context" if fewer.fit.fits else "it"
        why = f"{last.why}, and {fewer.profile.match.count} GPU(s) do not hold {lacks}"
        return msgspec.structs.replace(last, why=why)
    return last


def verdict(
    config_json: dict[str, Any],
    weight_bytes: int,
    hardware: HardwareSnapshot | None = None,
    profile: Profile | None = None,
) -> str:
    """One sentence on whether a model can be served here, before it is downloaded.

    weight_bytes: of its safetensors together. hardware: None looks at this machine. profile: the
    verdict for this one, on the machine it is for where this one is not such a machine.
    """
    try:
        spec = spec_of(config_json)
    except ApplianceError as e:
        return f"cannot be served: {e.message}"
    machine = hardware or detect()
    if profile and mismatch(profile, machine):
        machine = assumed_for(profile.match) or machine
    profiles = list(load().values())

    def picked(machine: HardwareSnapshot, named: Profile | None) -> Picked:
        offered = [Chosen(named, "named")] if named else candidates(profiles, machine)
        return pick(offered, spec, machine, lambda p: _plan_of(spec, p.values(), machine))

    try:
        found = picked(machine, profile)
    except ApplianceError as e:
        return f"cannot be served here: {e.message}"
    result, name, plan = found.fit, found.profile.name, found.plan
    if not result.fits:
        lacking = result.weights_bytes + result.workspace_bytes - result.budget_bytes
        elsewhere = machine_that_holds(
            spec, plan.config, 0, lambda m, _, __=False: picked(m, None).fit
        )
        return (
            f"does not fit: {gb(weight_bytes)} of weights take "
            f"{gb(result.weights_bytes)} as {plan.config.model.dtype} with profile {name}, "
            f"{gb(max(lacking, result.kv_bytes_per_token))} more than there is room for."
            + (f" {elsewhere}" if elsewhere else "")
        )
    return (
        f"fits with profile {name}: {result.numbers()}, "
        f"at most {result.longest_context:,} for one request."
    )


def _plan_of(spec: ModelSpec, values: dict[str, Any], hardware: HardwareSnapshot) -> Plan:
    sections: dict[str, dict[str, Any]] = {"model": {}, "serve": {}, "schedule": {}, "engine": {}}
    for field, value in values.items():
        section, _, name = field.partition(".")
        sections[section][name] = value
    sections["model"] |= {"path": "", "id": ""}
    bare: dict[str, Any] = {"run": "", "dir": "", **sections}
    return resolve(msgspec.convert(bare, RuntimeConfig), spec, hardware)
